"""The command as a person meets it: status, stdout, stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from making import SD15, TEXT, make
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


@pytest.fixture
def pair(tmp_path: Path) -> None:
    """cat and ink: two small adapters of Stable Diffusion 1.5 in two namings."""
    words = {"ss_tag_frequency": '{"10_sks cat": {"sks cat": 10}}', "ss_output_name": "cat"}
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1, rank=4, alpha=2, metadata=words)
    ink = {"modelspec.trigger_phrase": "ink wash", "modelspec.title": "Ink"}
    make(tmp_path / "ink.safetensors", "diffusers", SD15, seed=2, rank=8, metadata=ink)


@pytest.fixture
def refused(nplora: Nplora, tmp_path: Path) -> Nplora:
    """Two good files, cat and ink, stand there; a line must fail with one message and write nothing."""
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1, alpha=4)
    make(tmp_path / "ink.safetensors", modules=SD15, seed=2, alpha=4)
    before = sorted(tmp_path.iterdir())

    def run(line: str, *more: str) -> tuple[int, str]:
        ran = nplora(line, *more)
        assert ran.out == ""
        assert ran.err.startswith("nplora: ")
        assert ran.err.count("\n") == 1
        written = set(tmp_path.iterdir()) - set(before)
        assert not any(path.name.startswith("out") or "part" in path.name for path in written)
        return ran.status, ran.err.removeprefix("nplora: ").rstrip("\n")

    return run  # type: ignore[return-value]
