"""``python -m ssl_wm`` is ``ssl-wm``."""

from ssl_wm.cli import main

if __name__ == "__main__":
    main()
