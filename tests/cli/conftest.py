"""The command as a person meets it: status, stdout, stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nplora.cli import main


class Ran(NamedTuple):
    """What a command line did."""

    status: int
    out: str
    err: str


Nplora = Callable[..., Ran]


@pytest.fixture
def nplora(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nplora:
    """Run a command line in tmp_path, so that messages hold plain names."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: str) -> Ran:
        capsys.readouterr()
        status = main([*line.split(), *more])
        return Ran(status, *capsys.readouterr())

    return run
