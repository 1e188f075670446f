"""Fuse small adapters of one folder, and change what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import nplora
from making import make, write
from nplora.storage import TensorFile


def fused(folder: Path, **parameters: object) -> Path:
    """Fuse subject and style of a folder; the output's path."""
    subject, style = (nplora.load(next(folder.glob(f"{role}*"))) for role in ("subject", "style"))
    output = folder / ("out" if parameters.get("format") == "peft" else "out.safetensors")
    nplora.fuse(subject, style, **parameters).save(output, overwrite=True)
    return output


def pair(folder: Path, **options: object) -> Path:
    """A subject and a style of rank 8 in one folder."""
    make(folder / "subject.safetensors", seed=1, rank=8, alpha=4, **options)
    make(folder / "style.safetensors", "diffusers", seed=2, rank=8, **options)
    return folder


def changed(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """The file with other tensors under the same header strings."""
    file = TensorFile(path)
    arrays = {key: tensor.read().copy() for key, tensor in file.tensors.items()}
    change(arrays)
    write(path, arrays, file.header.metadata)
