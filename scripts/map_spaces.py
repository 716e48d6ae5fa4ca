"""Draw where one key's groups and composites lie in the feature spaces of several encoders.

    python scripts/map_spaces.py --images digits --key owner.key --out map.png \
        clean=runs/demo/clean victim=runs/demo/watermarked copy=runs/demo/stolen

Each panel is one encoder's plane through the centres of the key's three groups, as in the report.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from ssl_wm.cli.terminal import guarded
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import load_encoder
from ssl_wm.files import write_bytes
from ssl_wm.pictures import feature_map
from ssl_wm.report.plots import maps_figure
from ssl_wm.watermark.keyfile import load_key


def main() -> None:
    """Read the options and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, metavar="SPEC")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE")
    parser.add_argument("--sub-key", type=int, default=0, metavar="I")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.png")
    parser.add_argument("encoders", nargs="+", metavar="NAME=SPEC")
    told = parser.parse_args()
    key, images = load_key(told.key), open_images(told.images)
    maps = {}
    for item in told.encoders:
        name, mark, spec = item.partition("=")
        if not mark:
            parser.error(
                f"an encoder is NAME=SPEC, for example copy=runs/demo/stolen; got '{item}'"
            )
        maps[name] = feature_map(load_encoder(spec), key, key.sub_keys[told.sub_key], images)
    picture = io.BytesIO()
    maps_figure(maps).savefig(picture, format="png", dpi=110)
    write_bytes(told.out, picture.getvalue())


if __name__ == "__main__":
    sys.exit(guarded(main))
