"""Measure an encoder's utility with a linear probe and nearest neighbours.

    python scripts/probe_encoder.py --encoder clean --images digits

The same as ``ssl-wm probe``: all its options work here; ``--help`` lists them.
"""

from __future__ import annotations

import sys

from ssl_wm.cli import main

if __name__ == "__main__":
    main(["probe", *sys.argv[1:]])
