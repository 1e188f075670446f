"""From made files through nplora into the real consumers: the steps that the tests of written files share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

import nplora
from consumers.harness import Deltas, assert_deltas, effective_deltas, peft_deltas
from consumers.tiny import tiny_pipeline
from consumers.writer import Spec, random_spec, write_lora


class Input(NamedTuple):
    """A file to be made: naming, the modules in it, ranks in turn, alpha, number type, one down for all modules."""

    naming: str
    only: str
    ranks: tuple[int, ...] = (4,)
    alpha: float = 2.0
    dtype: str = "float32"
    shared: bool = False

    def spec(self, kind: str, seed: int) -> Spec:
        spec = random_spec(kind, self.only, self.alpha, self.ranks, seed)
        if self.shared:
            spec = {name: factors._replace(down=next(iter(spec.values())).down) for name, factors in spec.items()}
        return spec

    def make(self, path: Path, kind: str, seed: int) -> nplora.Adapter:
        """The file under `path` plus its ending, loaded."""
        path = path if self.naming == "peft" else path.with_suffix(".safetensors")
        return nplora.load(write_lora(path, self.spec(kind, seed), self.naming, getattr(torch, self.dtype)))


def target(folder: Path, format: str, name: str = "out") -> Path:
    return folder / (name if format == "peft" else f"{name}.safetensors")


def dense(adapter: Mapping[str, object]) -> Deltas:
    """Canonical name -> nplora's float64 delta, (out, in*kh*kw)."""
    deltas = {name: module.delta() for name, module in adapter.items()}
    return {name: delta.reshape(len(delta), -1) for name, delta in deltas.items()}


def loaded(kind: str, path: Path, component: str | None = None) -> Deltas:
    """What diffusers adds for a file, or PEFT for a folder around the model `component`."""
    if component is None:
        return effective_deltas(tiny_pipeline(kind), path)
    deltas = peft_deltas(getattr(tiny_pipeline(kind), component), path)
    return {f"{component}.{name}": delta for name, delta in deltas.items()}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path / "adapter_model.safetensors" if path.is_dir() else path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)


def assert_loads(kind: str, path: Path, expected: Deltas) -> None:
    """The consumer takes the whole file and adds what is expected, to the precision of its coarsest number type.

    A part of a fused module that no input changes is written as zeros, so a zero delta is no module too many.
    """
    component = next(iter(expected)).split(".")[0] if path.is_dir() else None
    state = tensors(path)
    found = {n: delta for n, delta in loaded(kind, path, component).items() if n in expected or delta.any()}
    assert_deltas(found, expected, max(torch.finfo(tensor.dtype).eps for tensor in state.values()))
    for key, tensor in state.items():
        assert not key.endswith(".alpha") or (tensor.dtype == torch.float32 and tensor.ndim == 0 and tensor > 0), key
