"""Put an adapter file on a pipeline as any program would, and take it off again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .pipelines import Opened, in_short, quiet

NAME = "nplora"  # of the one adapter that is on the pipeline


@contextmanager
def adapter_on(opened: Opened, file: Path | None, strength: float, name: str, modules: int) -> Iterator[list[str]]:
    """Put one adapter on the pipeline and take it off again; what was not loaded is said in notes.

    Args:
        opened: the pipeline, with no adapter on it.
        file: a safetensors file that diffusers reads; None for the bare base.
        strength: of the whole adapter.
        name: what messages call it.
        modules: how many modules the file changes.

    Raises:
        InputError: it does not fit this base, or changes nothing in it.
    """
    if file is None:
        yield []
        return
    pipe = opened.pipe
    with quiet():
        try:
            pipe.load_lora_weights(
                os.fspath(file.parent), weight_name=file.name, adapter_name=NAME, local_files_only=True
            )
        except Exception as error:
            pipe.unload_lora_weights()
            raise InputError(
                f"does not fit {opened.base.name} ({in_short(error)})", file=name,
                hint="Check which base model the adapter is for: nplora inspect says it.",
            ) from error  # fmt: skip
    try:
        loaded = _loaded(pipe)
        if not loaded:
            raise InputError(
                f"changes nothing in {opened.base.name}: diffusers knows none of its modules there", file=name,
                hint="Check which base model the adapter is for: nplora inspect says it.",
            )  # fmt: skip
        if strength != 1.0:
            pipe.set_adapters([NAME], [strength])
        yield [] if loaded >= modules else [f"{name}: diffusers loaded {loaded} of {modules} modules"]
    finally:
        with quiet():
            pipe.unload_lora_weights()


def _loaded(pipe: Any) -> int:
    """Modules of the pipeline that carry the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = [part for part in pipe.components.values() if hasattr(part, "named_modules")]
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer))
    return sum(NAME in getattr(layer, "lora_A", {}) for layer in layers)
