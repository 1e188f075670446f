"""Put the numbers of one band together: copies where nothing changes, products rounded once elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Matrix
from ..errors import OutputError
from ..storage import cast, compute_dtype, numpy_dtype
from .plan import Band, Piece


def assemble(
    band: Band,
    projected: NDArray[Any] | None = None,
    *,
    finished: bool = False,
    read: Callable[[Matrix], NDArray[Any]] = methodcaller("read"),
) -> NDArray[Any]:
    """The numbers of a band: copies where the factor is 1 and the type stays, else products rounded once.

    Args:
        band: what to put together.
        projected: what the band's projection has made; finished: whether it has its factor and the band's type.
        read: reads a stored matrix.

    Raises:
        OutputError: a product does not fit the output's number type.
    """
    dtype = numpy_dtype(band.dtype)

    def numbers(piece: Piece) -> NDArray[Any]:
        found = read(piece.matrix) if piece.job is None else projected
        assert found is not None
        if piece.swap:
            half = found.shape[0] // 2
            found = np.concatenate([found[half:], found[:half]])
        return found if finished and piece.job is not None else scaled(found, piece.factor, band.dtype, band.key)

    if len(band.pieces) == 1:
        whole = numbers(band.pieces[0])
        if whole.shape == band.shape:
            return whole.T if band.transposed else whole
    out = (np.empty if band.covered else np.zeros)(band.shape, dtype)
    for piece in band.pieces:
        part = numbers(piece)
        rows, columns = part.shape
        out[piece.row : piece.row + rows, piece.column : piece.column + columns] = part
    return out.T if band.transposed else out


def scaled(numbers: NDArray[Any], factor: float, dtype: str, key: str) -> NDArray[Any]:
    """Numbers times a factor in an output type, rounded once; the numbers themselves where nothing changes.

    Raises:
        OutputError: a product does not fit the type.
    """
    kind = numpy_dtype(dtype)
    if factor == 1.0 and numbers.dtype == kind:
        return numbers
    if factor != 1.0:
        if numbers.dtype.itemsize < 4:
            numbers = cast(np.ascontiguousarray(numbers), compute_dtype([dtype]))
        numbers = numbers * numbers.dtype.type(factor)
    return rounded(numbers, kind, key)


def rounded(numbers: NDArray[Any], dtype: np.dtype[Any], key: str) -> NDArray[Any]:
    """The numbers in the output's type, rounded once.

    Raises:
        OutputError: a finite number does not fit the type.
    """
    if dtype == np.float16 and numbers.size and not fits_half(numbers):
        raise OutputError(
            "a fused number does not fit fp16", key=key, expected="at most 65504", hint="Use --dtype bf16 or fp32."
        )
    return cast(np.ascontiguousarray(numbers), dtype)


def fits_half(numbers: NDArray[Any]) -> bool:
    """Whether every number is NaN, infinite, or small enough for float16 (checked by the extremes: no extra array)."""
    extreme = max(float(np.max(numbers)), -float(np.min(numbers)))
    return not 65519.99 < extreme < float("inf")
