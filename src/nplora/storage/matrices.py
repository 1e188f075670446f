"""Matrices that are read when they are used: stored ones, parts of them, what follows from a base weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import Tensor, cast, compute_dtype, wider


class Matrix(Protocol):
    """A two-dimensional array that is read on demand."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    def read(self) -> NDArray[np.generic]: ...


class Factor(NamedTuple):
    """A stored factor seen as a matrix (trailing kernel axes flattened), or some rows and columns of it.

    ``rows`` are ranges that are read one after the other (two of them: halves stored in the opposite order).
    """

    tensor: Tensor
    rows: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, int]:
        shape = self.tensor.shape
        first, rest = shape[0], shape[1] if len(shape) == 2 else prod(shape[1:])
        return (rest, first) if self.transposed else (first, rest)

    @property
    def shape(self) -> tuple[int, int]:
        if len(self.tensor.shape) == 2 and not (
            self.rows or self.columns or self.transposed
        ):  # nearly all, often asked
            return self.tensor.shape
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
        return self._replace(rows=(rows,) if rows else self.rows, columns=columns or self.columns)

    def swapped(self) -> Factor:
        """The same rows with their two halves exchanged."""
        start, stop = self.rows[0] if self.rows else (0, self.shape[0])
        middle = (start + stop) // 2
        return self._replace(rows=((middle, stop), (start, middle)))


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
class Changed:
    """What an adapter makes of a base weight: ``change(W)``, computed in float64 whenever it is read, never kept.

    Its type is float32, since the numbers are products that no 16-bit type holds.
    """

    weight: Matrix
    change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    keys: tuple[str, ...]  # the adapter's tensors behind it
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        return wider([self.weight.dtype, "F32"])

    def read(self) -> NDArray[Any]:
        return self.change(wide(self.weight))


@dataclass(frozen=True, slots=True)
class Combined:
    """Sums of stored factors: ``sum_i F_i C_i`` of up factors, ``sum_i C_i F_i`` of down factors.

    Computed whenever it is read and never kept: in float64, then rounded to float32 unless the factors are wider.
    ``gentle`` says that little cancels in the sums, so that float32 is enough for numbers of 16 bits.
    """

    factors: tuple[Matrix, ...]
    coefficients: tuple[NDArray[np.float64], ...]
    name: str  # what messages call it
    from_left: bool = False
    gentle: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        if self.from_left:
            return self.coefficients[0].shape[0], self.factors[0].shape[1]
        return self.factors[0].shape[0], self.coefficients[0].shape[1]

    @property
    def dtype(self) -> str:
        return wider(factor.dtype for factor in self.factors)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self) -> NDArray[Any]:
        return self._total(np.dtype(np.float64)).astype(np.float64 if self.dtype == "F64" else np.float32)

    def read_for(self, dtype: str) -> NDArray[Any]:
        """The same where it is to be rounded to a safetensors type: with no more digits than that needs."""
        quick = self.gentle and compute_dtype([self.dtype, dtype]) == np.float32
        return self._total(np.dtype(np.float32)) if quick else self.read()

    def _total(self, number: np.dtype[Any]) -> NDArray[Any]:
        total: NDArray[Any] | None = None
        for F, C in zip(self.factors, self.coefficients, strict=True):
            numbers, c = cast(np.ascontiguousarray(F.read()), number), np.ascontiguousarray(C, number)
            term = c @ numbers if self.from_left else numbers @ c
            total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        return total


def wide(matrix: Matrix) -> NDArray[np.float64]:
    """The numbers in float64."""
    return cast(np.ascontiguousarray(matrix.read()), np.dtype(np.float64))
