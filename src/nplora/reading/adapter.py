"""Adapters as they are worked with: canonical modules with exact low-rank factors, whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank, Update
from ..formats import Format
from ..layouts import Layout, Part, Recognition
from ..storage import Tensor, TensorFile

# ``diff`` only where it is one-dimensional: a norm's weight.
VECTOR_ROLES = {"diff_b": "bias", "b_norm": "bias", "bias": "bias", "w_norm": "weight", "diff": "weight"}


class Origin(NamedTuple):
    """Where a module stood in its file: the name there, its parts in row order, its format, its roles' suffixes."""

    module: str
    parts: tuple[Part, ...]
    format: str
    suffixes: Mapping[str, str]
    scale_keys: tuple[str, ...] = ()

    @property
    def factor_suffixes(self) -> dict[str, str]:
        """Role -> suffix, with MLX's transposed factors under the plain roles."""
        return {role.removesuffix("_transposed"): suffix for role, suffix in self.suffixes.items()}


@dataclass(frozen=True, slots=True)
class Module:
    """One module of an adapter: ``name`` is canonical, ``<component>.<path>``; ``update`` is what it adds."""

    name: str
    update: Update
    origin: Origin
    stored: Mapping[str, Tensor] = field(default_factory=dict)  # suffix -> tensor, where the factors are computed

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every tensor of the file that belongs to it, the scale's too."""
        return tuple(dict.fromkeys((*self.update.keys, *self.origin.scale_keys)))

    def delta(self) -> NDArray[np.float64]:
        """The dense update at strength 1, float64, in the weight's shape ((out, in) or (out, in, kh, kw))."""
        flat = self.update.delta()
        kernel = self.update.kernel
        return flat.reshape(flat.shape[0], flat.shape[1] // prod(kernel), *kernel) if kernel else flat


def with_kernel(update: Update, shape: tuple[int, ...] | None) -> Update:
    """LyCORIS flattens kernels away: the base's shape tells a convolution from a linear layer."""
    if update.kernel or not isinstance(update, (LowRank, Full)):
        return update
    if shape is None or len(shape) < 3 or prod(shape[1:]) != update.size[1]:
        return update
    return replace(update, kernel=tuple(shape[2:]))


class Vector(NamedTuple):
    """A bias or norm delta: one-dimensional, added by strength, never projected."""

    name: str  # the module it belongs to
    role: str  # the role in its file: diff_b, w_norm, b_norm, bias, diff
    tensor: Tensor
    scale: float
    origin: Origin

    @property
    def target(self) -> tuple[str, str]:
        """(module, "weight" or "bias"): vectors with one target add up."""
        return self.name, VECTOR_ROLES[self.role]


@dataclass(frozen=True)
class Adapter(Mapping[str, Module]):
    """A loaded adapter: a mapping from canonical module names to modules.

    Attributes:
        path: where it came from.
        format: how its file names modules.
        layout: the base model's table, or None where the base is not known.
        recognition: the evidence for the base.
        modules: canonical name -> module.
        vectors: bias and norm deltas.
        others: keys that belong to no module (embeddings, heads), carried along untouched.
        unread: keys of modules that mean nothing beside the module's other tensors, and why.
        metadata: the header's strings. config: the adapter_config.json beside it.
    """

    path: str
    format: Format
    layout: Layout | None
    recognition: Recognition
    evidence: str
    modules: Mapping[str, Module]
    vectors: Mapping[tuple[str, str], Vector] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    file: TensorFile | None = None
    notes: tuple[str, ...] = ()  # what a user should know about how it was read

    def __getitem__(self, name: str) -> Module:
        return self.modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def base(self) -> str:
        """The base model in words: as recognised, else with the name that the file's own header gives it."""
        if self.layout:
            return self.layout.title
        told = self.metadata.get("ss_sd_model_name", "")[:60]  # trainers put a file name or a path here
        return f"{told!r}, as the file calls it" if told else "unknown base"

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of the model that the adapter changes, in file order."""
        return tuple(dict.fromkeys(module.component for module in self.modules.values()))

    def keys_of(self, name: str) -> tuple[str, ...]:
        """The tensors of a module."""
        return self.modules[name].update.keys
