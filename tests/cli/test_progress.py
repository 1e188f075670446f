"""A bar on a terminal for what takes long: also before the work has said how much there is; nothing elsewhere."""

from __future__ import annotations

import io
import sys
import time

import pytest

from nplora.cli import progress as module
from nplora.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as stderr; called in the test, since pytest sets its own stderr after the fixtures."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setenv("TERM", "xterm")
    return found


def wait(terminal: Terminal, text: str) -> bool:
    end = time.monotonic() + 20
    while text not in terminal.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    return text in terminal.getvalue()


def test_a_bar_appears_before_the_first_piece_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with Progress("comparing") as progress:
        assert wait(terminal, "comparing")
        progress(3, 7, "ties")
        assert wait(terminal, "3/7")
    assert "comparing ties" in terminal.getvalue()


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    with Progress("fusing") as progress:
        progress(1, 2)
        progress(2, 2)
    assert terminal.getvalue() == ""


def test_nothing_is_drawn_where_quiet_is_asked_for_or_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    for quiet, stream in ((True, terminal), (False, io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("fusing", quiet=quiet) as progress:
            progress(1, 2)
            time.sleep(0.2)
        assert stream.getvalue() == ""
