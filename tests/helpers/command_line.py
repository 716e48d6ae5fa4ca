"""One call of the command line inside the tests' own process."""

from __future__ import annotations

import contextlib
import io
import json
from typing import NamedTuple

from ssl_wm.cli import main


class Ran(NamedTuple):
    """What a command left: its exit code and the text on both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one line of JSON that a command prints with ``--json``."""
        assert self.out.count("\n") == 1, self.err
        return json.loads(self.out)


def run(*words: object) -> Ran:
    """Return what ``ssl-wm WORDS`` does; like the program, it always ends by SystemExit."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            return Ran(int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() returned")
