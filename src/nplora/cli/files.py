"""Adapters named on the command line: files, PEFT folders, and folders full of either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import NploraError
from .text import printable

if TYPE_CHECKING:
    from ..reading.adapter import Adapter

CONFIGS = ("adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def expand(paths: Sequence[str]) -> list[str]:
    """Every adapter behind the words of a command line: a folder that is no adapter itself stands for those in it.

    >>> expand(["no-such-file.safetensors"])
    ['no-such-file.safetensors']
    """
    found: list[str] = []
    for path in paths:
        found += _inside(path) or [path]
    return list(dict.fromkeys(found))


def _inside(path: str) -> list[str]:
    """The adapters in a folder; none where it is a file or an adapter of its own."""
    if not os.path.isdir(path) or any((Path(path) / name).is_file() for name in CONFIGS):  # noqa: PTH112 - as in storage
        return []
    files = sorted(Path(path).iterdir())
    if len(files) == 1 and files[0].suffix == ".safetensors":
        return []
    return [
        os.fspath(file)
        for file in files
        if file.suffix == ".safetensors" or (file.is_dir() and any((file / name).is_file() for name in CONFIGS))
    ]


def load_all(paths: Sequence[str]) -> tuple[dict[str, Adapter], int]:
    """Load what can be loaded; one message for each other, and the exit status that they ask for."""
    from .. import load

    loaded, status = {}, 0
    for path in paths:
        try:
            loaded[path] = load(path)
        except NploraError as error:
            if len(paths) == 1:
                raise
            click.echo(f"nplora: {printable(str(error))}", err=True)
            status = error.exit_code
    return loaded, status
