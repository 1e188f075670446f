"""Adapter kinds: what the tensors of one module mean. Each kind is one small file, found by scanning this folder.

A kind says which roles mark it, how large the weight is that it changes, and, where nplora can express the
update exactly, its low-rank factors. To add one, write one file with ``KINDS = (Kind(...),)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import Tensor


class Matrix(Protocol):
    """A two-dimensional array that is read on demand."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    def read(self) -> NDArray[np.generic]: ...


@dataclass(frozen=True)
class Factor:
    """A stored factor seen as a matrix (trailing kernel axes flattened), or some rows and columns of it.

    ``rows`` are ranges that are read one after the other (two of them: halves stored in the opposite order).
    """

    tensor: Tensor
    rows: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, int]:
        first, rest = self.tensor.shape[0], prod(self.tensor.shape[1:])
        return (rest, first) if self.transposed else (first, rest)

    @cached_property
    def shape(self) -> tuple[int, int]:
        height, width = self.stored_shape
        if self.rows:
            height = sum(stop - start for start, stop in self.rows)
        if self.columns is not None:
            width = self.columns[1] - self.columns[0]
        return height, width

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.tensor.key,)

    def read(self) -> NDArray[np.generic]:
        array = self.tensor.read()
        array = array.reshape(array.shape[0], -1)
        if self.transposed:
            array = array.T
        if len(self.rows) == 1:
            array = array[self.rows[0][0] : self.rows[0][1]]
        elif self.rows:
            array = np.concatenate([array[start:stop] for start, stop in self.rows])
        return array if self.columns is None else array[:, self.columns[0] : self.columns[1]]

    def take(self, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> Factor:
        """The same factor, narrowed to a row range and a column range (of a factor not yet narrowed)."""
        return replace(self, rows=(rows,) if rows else self.rows, columns=columns or self.columns)

    def swapped(self) -> Factor:
        """The same rows with their two halves exchanged."""
        start, stop = self.rows[0] if self.rows else (0, self.shape[0])
        middle = (start + stop) // 2
        return replace(self, rows=((middle, stop), (start, middle)))


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a matrix that is computed when it is read; ranges are read one after the other."""

    matrix: Matrix
    rows: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(stop - start for start, stop in self.rows), self.matrix.shape[1]

    @property
    def dtype(self) -> str:
        return self.matrix.dtype

    @property
    def keys(self) -> tuple[str, ...]:
        return self.matrix.keys

    def read(self) -> NDArray[np.generic]:
        array = self.matrix.read()
        return np.concatenate([array[start:stop] for start, stop in self.rows])


def take_rows(matrix: Matrix, rows: tuple[int, int] | None, swap: bool) -> Matrix:
    """A row range of a matrix, with its two halves exchanged if asked."""
    if isinstance(matrix, Factor):
        taken = matrix.take(rows=rows)
        return taken.swapped() if swap else taken
    start, stop = rows or (0, matrix.shape[0])
    middle = (start + stop) // 2
    return Rows(matrix, ((middle, stop), (start, middle)) if swap else ((start, stop),))


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
    """``dW`` stored as it is: (out, in*kh*kw); no alpha applies."""

    diff: Matrix
    kernel: tuple[int, ...] = ()
    kind: str = "full"
    scale: float = 1.0
    scale_from: str = "none needed"

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
    """A kind that is recognised but not expressed as factors: it can be carried along, not fused."""

    kind: str
    parts: Mapping[str, Tensor]  # suffix -> tensor
    size: tuple[int, int] | None = None
    kernel: tuple[int, ...] = ()
    scale: float = 1.0
    scale_from: str = "unknown"
    rank: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(tensor.key for tensor in self.parts.values())

    @property
    def dtype(self) -> str:
        return next(iter(self.parts.values())).dtype

    def delta(self) -> NDArray[np.float64]:
        raise InputError(
            f"{self.kind} modules cannot be turned into a dense update yet", key=self.keys[0],
            hint="They are carried along unchanged.",
        )  # fmt: skip


Update = LowRank | Full | Opaque


@dataclass(frozen=True)
class Group:
    """The tensors of one module of a file, by role, with what is needed to read them."""

    file: str
    module: str
    tensors: Mapping[str, Tensor]  # role -> tensor
    suffixes: Mapping[str, str]  # role -> suffix

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
    """

    name: str
    marks: frozenset[str]
    size: Callable[[Group], tuple[int, int] | None]
    read: Callable[[Group, float, str], Update]
    priority: int = 0
    alpha_rank: Callable[[Group], int | None] = lambda _: None


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
def _kind_for(roles: frozenset[str]) -> Kind | None:
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
