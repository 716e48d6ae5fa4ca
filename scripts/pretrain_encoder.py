"""Pretrain an encoder on images, without labels.

    python scripts/pretrain_encoder.py --images digits --arch convnet-xs --out clean

The same as ``ssl-wm pretrain``: all its options work here; ``--help`` lists them.
"""

from __future__ import annotations

import sys

from ssl_wm.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
