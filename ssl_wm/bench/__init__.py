"""Benchmarks: whole stories from one config, and what a thief or an owner measures on them."""
