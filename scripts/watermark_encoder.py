"""Watermark a pretrained encoder with a key (from ``ssl-wm keygen``).

    python scripts/watermark_encoder.py --encoder clean --key owner.key --images digits --out marked

The same as ``ssl-wm watermark``: all its options work here; ``--help`` lists them.
"""

from __future__ import annotations

import sys

from ssl_wm.cli import main

if __name__ == "__main__":
    main(["watermark", *sys.argv[1:]])
