"""Evidence: a verdict with all that it rests on, sealed, and checked by others."""
