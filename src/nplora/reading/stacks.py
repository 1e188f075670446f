"""Updates put together without multiplying anything out: what several adapters bring, seen as one low-rank update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Matrix
from ..storage import cast, compute_dtype, numpy_dtype, wider


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices one below the other."""

    parts: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def dtype(self) -> str:
        return wider(part.dtype for part in self.parts) if len(self.parts) > 1 else self.parts[0].dtype

    @property
    def keys(self) -> tuple[str, ...]:
        return self.parts[0].keys

    def read(self) -> NDArray[np.generic]:
        return np.concatenate([_as(part, numpy_dtype(self.dtype)) for part in self.parts])


@dataclass(frozen=True, slots=True)
class Beside:
    """Matrices side by side."""

    parts: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    @property
    def dtype(self) -> str:
        return wider(part.dtype for part in self.parts)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.parts[0].keys

    def read(self) -> NDArray[np.generic]:
        return np.concatenate([_as(part, numpy_dtype(self.dtype)) for part in self.parts], axis=1)


@dataclass(frozen=True, slots=True)
class Diagonal:
    """Matrices along a diagonal, each times its factor, zero elsewhere."""

    parts: tuple[Matrix, ...]
    factors: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), sum(part.shape[1] for part in self.parts)

    @property
    def dtype(self) -> str:
        return "F32" if compute_dtype([part.dtype for part in self.parts]) == np.float32 else "F64"

    @property
    def keys(self) -> tuple[str, ...]:
        return self.parts[0].keys

    def read(self) -> NDArray[np.generic]:
        out = np.zeros(self.shape, numpy_dtype(self.dtype))
        row = column = 0
        for part, factor in zip(self.parts, self.factors, strict=True):
            rows, columns = part.shape
            out[row : row + rows, column : column + columns] = factor * _as(part, out.dtype)
            row, column = row + rows, column + columns
        return out


def _as(matrix: Matrix, dtype: np.dtype[Any]) -> NDArray[Any]:
    return cast(np.ascontiguousarray(matrix.read()), dtype)


Update = tuple[Matrix, Matrix, float]  # up, down, factor


def together(updates: Sequence[Update], side: str) -> Update:
    """One update whose row space (column space with side "output") is that of all updates together.

    ``[f_1 dW_1; f_2 dW_2; ..]``, one below the other, has as Gram matrix the sum of ``f_i^2 dW_i^T dW_i``: its row
    space is the union, and its right singular vectors say which inputs matter most to all of them. As factors:
    ``diag(f_1 B_1, f_2 B_2, ..) [A_1; A_2; ..]``. With side "output" they stand side by side.
    """
    if len(updates) == 1:
        return updates[0]
    ups, downs, factors = (tuple(parts) for parts in zip(*updates, strict=True))
    if side == "input":
        return Diagonal(ups, factors), Stacked(downs), 1.0
    return Beside(ups), Diagonal(downs, factors), 1.0
