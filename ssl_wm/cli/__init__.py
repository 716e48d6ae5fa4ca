"""The command line: parse, call, render; no logic. ``app.py`` puts the commands together."""

from ssl_wm.cli.app import app, main

__all__ = ["app", "main"]
