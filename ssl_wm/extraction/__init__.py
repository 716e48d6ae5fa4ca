"""Encoder theft by embedding queries. Nothing here knows of keys or watermarks."""
