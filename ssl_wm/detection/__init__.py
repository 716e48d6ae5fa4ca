"""How a thief finds out that an encoder is marked. Nothing here knows of keys."""
