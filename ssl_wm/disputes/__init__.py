"""Attacks on our own claim: false claims by a dishonest accuser, and two rival claims."""
