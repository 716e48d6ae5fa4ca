"""Print a result as a Markdown table, for docs/results.

python scripts/results_table.py runs/cifar10-small/result.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ssl_wm.cli.terminal import guarded
from ssl_wm.errors import SslWmError
from ssl_wm.files import read_json
from ssl_wm.report.words import DASH, p_text, percent

HEAD = (
    "| encoder | made | linear | kNN | decision | p | margins over null (rank among keys) | WSR | "
    "WFPR | reader | training |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, result: dict[str, Any]) -> str:
    """Return one encoder's line."""
    made, utility = result["made"][name], result["utility"][name]
    verdict = result["verdicts"].get(name)
    stage = made["stage"] + (f" of {made['of']}" if made["of"] else "")
    cells = [name, stage, *(f"{100 * utility[reader]:.2f}" for reader in ("linear", "knn"))]
    if verdict:
        margins = ", ".join(
            f"{sub['statistic']:.2f} ({sub['rank']:,})" for sub in verdict["sub_keys"]
        )
        rates = [percent(verdict["wsr"]), percent(verdict["wfpr"]), verdict["reader"]]
        cells += [verdict["decision"], p_text(verdict["p_value"]), margins, *rates]
    else:
        cells += [DASH] * 6
    cells.append(f"{result['seconds'][name]['make']:,.0f} s")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table of the result named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("result", type=Path, metavar="FILE.json", help="of ssl-wm bench or demo")
    place = parser.parse_args().result
    result = read_json(place, what="result")
    if not isinstance(result, dict) or "verdicts" not in result:
        raise SslWmError(f"{place} is no result of ssl-wm bench or demo; name its result.json")
    print(HEAD)
    for name in result["utility"]:
        print(row(name, result))


if __name__ == "__main__":
    sys.exit(guarded(main))
