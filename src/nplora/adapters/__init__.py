"""Adapter kinds: what the tensors of one module mean. Each kind is one small file, found by scanning this folder.

A kind says which roles mark it, how large the weight is that it changes, and, where nplora can express the
update exactly, its low-rank factors. Kinds that change the base weight by what it is (DoRA, OFT, ...) say what they
make of it once it is there (`Opaque.on_base`). To add one, write one file with ``KINDS = (Kind(...),)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import Tensor
from ..storage.matrices import Changed, Combined, Factor, Matrix, Rows, take_rows, wide

__all__ = [
    "Changed", "Combined", "Factor", "Full", "Group", "Kind", "LowRank", "Matrix", "Opaque", "Rows",
    "Update", "all_kinds", "kind_of", "opaque", "read_scalar", "rows_of", "take_rows", "wide",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LowRank:
    """``dW = scale * up @ down``: up (out, r), down (r, in*kh*kw); ``kernel`` is () for a linear layer."""

    up: Matrix
    down: Matrix
    scale: float
    scale_from: str  # how the scale is known: "alpha", "config", "metadata", "assumed 1", ...
    kernel: tuple[int, ...] = ()
    kind: str = "LoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.up.keys + self.down.keys

    def delta(self) -> NDArray[np.float64]:
        """The dense update in float64, (out, in*kh*kw)."""
        float64 = np.dtype(np.float64)
        return self.scale * (self.up.read().astype(float64) @ self.down.read().astype(float64))


@dataclass(frozen=True, slots=True)
class Full:
    """``dW`` as it is, stored or computed from the base weight: (out, in*kh*kw); no alpha applies.

    ``around`` is the low-rank part of a kind that also rescales the base weight: its row space is what "all
    directions" of such an update means, since the rest is the base's own.
    """

    diff: Matrix
    kernel: tuple[int, ...] = ()
    kind: str = "full"
    scale: float = 1.0
    scale_from: str = "none needed"
    around: LowRank | None = None

    @property
    def rank(self) -> int:
        return min(self.diff.shape)

    @property
    def size(self) -> tuple[int, int]:
        return self.diff.shape

    @property
    def keys(self) -> tuple[str, ...]:
        return self.diff.keys

    def delta(self) -> NDArray[np.float64]:
        """The dense update in float64, (out, in*kh*kw)."""
        return self.diff.read().astype(np.float64)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A kind whose update is not known from the file alone: carried along, or expanded when the base weight is there.

    ``on_base(W, kernel)`` gives the exact update for the base weight W (out, in*kernel) of the module as the file
    names it; ``rows`` and ``swap`` then say which part of a fused projection this is. ``alone()`` gives what needs no
    base weight: the exact update where the part that does is zero, else None. ``rest`` is what is left of the update
    when the part that needs the base is ignored.
    """

    kind: str
    parts: Mapping[str, Tensor]  # suffix -> tensor
    size: tuple[int, int] | None = None
    kernel: tuple[int, ...] = ()
    scale: float = 1.0
    scale_from: str = "unknown"
    rank: int = 0
    on_base: Callable[[Matrix, tuple[int, ...]], LowRank | Full] | None = None
    alone: Callable[[], LowRank | None] = lambda: None
    rest: LowRank | Full | None = None
    rows: tuple[int, int] | None = None
    swap: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(tensor.key for tensor in self.parts.values())

    @property
    def dtype(self) -> str:
        return next(iter(self.parts.values())).dtype

    def delta(self) -> NDArray[np.float64]:
        raise InputError(
            f"what a {self.kind} module adds is not known without the base weight" if self.on_base
            else f"{self.kind} modules cannot be turned into a dense update yet",
            key=self.keys[0], hint="They are carried along unchanged.",
        )  # fmt: skip


Update = LowRank | Full | Opaque


def rows_of(update: LowRank | Full, rows: tuple[int, int] | None, swap: bool) -> LowRank | Full:
    """The part of an update that lies in some rows of the weight, its halves exchanged if asked."""
    if rows is None and not swap:
        return update
    if isinstance(update, LowRank):
        return replace(update, up=take_rows(update.up, rows, swap))
    around = None if update.around is None else replace(update.around, up=take_rows(update.around.up, rows, swap))
    return replace(update, diff=take_rows(update.diff, rows, swap), around=around)


@dataclass(frozen=True)
class Group:
    """The tensors of one module of a file, by role, with what is needed to read them."""

    file: str
    module: str
    tensors: Mapping[str, Tensor]  # role -> tensor
    suffixes: Mapping[str, str]  # role -> suffix
    config: Mapping[str, object] | None = None  # the adapter_config.json beside the file

    def error(self, problem: str, role: str | None = None, **facts: object) -> InputError:
        """An error about this module, or about one of its tensors."""
        key = self.tensors[role].key if role else self.module
        return InputError(problem, file=self.file, key=key, **facts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kind:
    """One adapter kind.

    Args:
        name: as shown to the user.
        marks: roles any of which marks the kind.
        size: the weight's (out, in*kernel) from the header alone, or None where it cannot be told.
        read: (group, scale, how the scale is known) -> update.
        priority: the higher is asked first; a module with a DoRA magnitude is DoRA, not LoRA.
        alpha_rank: what alpha is divided by; None where the module has no scale.
        fate: what happens to such a module, for the documentation's table.
    """

    name: str
    marks: frozenset[str]
    size: Callable[[Group], tuple[int, int] | None]
    read: Callable[[Group, float, str], Update]
    priority: int = 0
    alpha_rank: Callable[[Group], int | None] = lambda _: None
    fate: str = "fused"


@lru_cache(maxsize=1)
def all_kinds() -> tuple[Kind, ...]:
    """Every kind, the most specific first."""
    found: list[Kind] = []
    for info in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{info.name}").KINDS
    return tuple(sorted(found, key=lambda kind: -kind.priority))


def kind_of(group: Group) -> Kind | None:
    """The kind of a module; None where it holds only vectors (biases, norms)."""
    return _kind_for(frozenset(group.tensors))


@cache
def _kind_for(tensors: frozenset[str]) -> Kind | None:
    # PEFT's other methods are marked by their prefix: "other:vera_lambda_b" is VeRA's.
    roles = {role.partition("_")[0] if role.startswith("other:") else role for role in tensors}
    return next((kind for kind in all_kinds() if not kind.marks.isdisjoint(roles)), None)


def opaque(group: Group, name: str, size: tuple[int, int] | None) -> Opaque:
    """The module carried along: every tensor under its suffix."""
    return Opaque(name, {group.suffixes[role]: tensor for role, tensor in group.tensors.items()}, size)


def read_scalar(group: Group, role: str) -> float:
    """A stored scalar (alpha, scale) of any float or integer type, as it is."""
    tensor = group.tensors[role]
    if prod(tensor.shape) != 1:
        raise group.error(
            "this must be a single number", role, expected="shape () or (1,)", got=f"shape {tensor.shape}"
        )
    return float(tensor.read().reshape(-1)[0])
