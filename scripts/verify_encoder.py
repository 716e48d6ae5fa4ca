"""Judge whether an encoder carries a key's watermark: exit code 0 yes, 1 no, 2 unclear.

    python scripts/verify_encoder.py --key owner.key --suspect stolen --images digits --null clean

The same as ``ssl-wm verify``: all its options work here; ``--help`` lists them.
"""

from __future__ import annotations

import sys

from ssl_wm.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
