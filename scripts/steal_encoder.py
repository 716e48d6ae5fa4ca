"""Copy an encoder by querying it.

    python scripts/steal_encoder.py --victim marked --images digits --out stolen

The same as ``ssl-wm steal``: all its options work here; ``--help`` lists them.
"""

from __future__ import annotations

import sys

from ssl_wm.cli import main

if __name__ == "__main__":
    main(["steal", *sys.argv[1:]])
