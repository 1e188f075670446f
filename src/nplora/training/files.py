"""Write trained factors as an adapter file, in the three forms people meet, with what the training was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats import Format, Written, all_formats
from ..layouts import Layout, recognise
from ..output.naming import target_path
from ..storage import WRITABLE, TensorWriter, cast, numpy_dtype

FORMS = ("diffusers", "kohya", "peft")

Factors = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


def write_adapter(
    path: str | os.PathLike[str],
    factors: Factors,
    metadata: Mapping[str, str],
    *,
    form: str = "diffusers",
    dtype: str = "fp16",
    overwrite: bool = False,
) -> Path:
    """Write an adapter, whole or not at all.

    Args:
        path: a ``.safetensors`` file, or a folder with the form peft.
        factors: canonical module name (``unet.<path>``) -> (up (out, r), down (r, n)); the update is ``up @ down``.
        metadata: header entries.
        form: one of `FORMS`. dtype: fp32, fp16 or bf16; each number is rounded once.
        overwrite: replace what stands there.

    Returns:
        The tensors' file.

    Raises:
        OutputError: it exists already, or cannot be written.
    """
    naming = all_formats()[form]
    target = target_path(path, naming, ())
    layout = recognise([("denoiser", name.partition(".")[2], len(up), down.shape[1])
                        for name, (up, down) in factors.items()]).layout  # fmt: skip
    tensors, spelled = _tensors(naming, layout, factors, WRITABLE[dtype])
    title = Path(path).stem if form != "peft" else Path(path).name
    told = naming.describe(Written(
        title, {name: down.shape[0] for name, (_, down) in factors.items()}, dict.fromkeys(factors, 1.0), spelled,
        tuple(tensors), (),
    ))  # fmt: skip
    header = {"format": "pt", **metadata, **told.metadata, **_modelspec(layout, title)}
    specs = [(key, kind, array.shape) for key, (kind, array) in tensors.items()]
    with TensorWriter(target, specs, header, overwrite=overwrite, beside=told.beside) as writer:
        for key, (_, array) in tensors.items():
            writer.write(key, array)
        writer.finish(header)
    return target


def _tensors(
    naming: Format, layout: Layout | None, factors: Factors, kind: str
) -> tuple[dict[str, tuple[str, NDArray[Any]]], dict[str, str]]:
    """Key -> (type, numbers), and module -> its name in the file."""
    found: dict[str, tuple[str, NDArray[Any]]] = {}
    spelled = {}
    for name, (up, down) in factors.items():
        component, _, path = name.partition(".")
        spelling = naming.spell(component, path, layout)
        assert spelling is not None  # all three forms have a name for every denoiser module
        spelled[name] = spelling.module
        for role, array in (("up", up), ("down", down)):
            numbers = cast(np.ascontiguousarray(array, np.float32), numpy_dtype(kind))
            found[spelling.module + naming.suffixes[role]] = kind, numbers
        if naming.scale == "alpha":
            found[spelling.module + naming.suffixes["alpha"]] = "F32", np.array(len(down), np.float32)
    return found, spelled


def _modelspec(layout: Layout | None, title: str) -> dict[str, str]:
    architecture = (layout and layout.modelspec) or "unknown"
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.title": title,
    }
