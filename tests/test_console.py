"""Messages and bars go to standard error, as they are; standard output stays for results."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ssl_wm import console
from ssl_wm.console import progress, say

HOSTILE = "folder[1]/[/bold] [red]x :smile: [link=http://x]"


def test_a_message_is_one_line_on_standard_error_and_no_markup(capsys):
    say(HOSTILE)
    say("long " * 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [HOSTILE, "long " * 100]


def test_off_a_terminal_one_line_tells_the_end(capsys):
    with progress(HOSTILE, total=7) as advance:
        for _ in range(3):
            advance(2)
        advance(1)
        assert capsys.readouterr() == ("", "")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(re.escape(HOSTILE) + r": 7 of 7 in \d+\.\d s\n", err)


def fail_in_the_middle() -> None:
    with progress("work", total=2) as advance:
        advance(1)
        raise KeyError


def test_off_a_terminal_a_failed_block_tells_no_end(capsys):
    with pytest.raises(KeyError):
        fail_in_the_middle()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch, capsys):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, markup=False)
    monkeypatch.setattr(console, "error_console", lambda: terminal)
    with progress(HOSTILE, total=4) as advance:
        advance(4)
    drawn = screen.getvalue()
    assert HOSTILE in drawn
    assert "4/4" in drawn
    assert drawn.endswith("\x1b[2K")  # the line is erased
    assert capsys.readouterr() == ("", "")


def test_importing_draws_and_prints_nothing(capsys):
    assert not console.error_console().is_terminal
    assert capsys.readouterr() == ("", "")
