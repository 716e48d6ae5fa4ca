"""What each command does: settings and specs in, a JSON-ready dictionary out."""
