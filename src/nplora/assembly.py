"""Put the numbers of one band together: copies where nothing changes, products rounded once elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import OutputError
from .plan import Band, Piece
from .storage import cast, compute_dtype, numpy_dtype


def assemble(band: Band, projected: NDArray[Any] | None) -> NDArray[Any]:
    """The numbers of a band: copies where the factor is 1 and the type stays, else products rounded once.

    Raises:
        OutputError: a product does not fit the output's number type.
    """
    dtype = numpy_dtype(band.dtype)
    if len(band.pieces) == 1:
        numbers = _numbers(band.pieces[0], dtype, projected, band)
        if numbers.shape == band.shape:
            return numbers.T if band.transposed else numbers
    out = (np.empty if band.covered else np.zeros)(band.shape, dtype)
    for piece in band.pieces:
        numbers = _numbers(piece, dtype, projected, band)
        rows, columns = numbers.shape
        out[piece.row : piece.row + rows, piece.column : piece.column + columns] = numbers
    return out.T if band.transposed else out


def _numbers(piece: Piece, dtype: np.dtype[Any], projected: NDArray[Any] | None, band: Band) -> NDArray[Any]:
    if piece.job is not None:
        assert projected is not None
        numbers: NDArray[Any] = projected
    else:
        numbers = piece.matrix.read()
    if piece.swap:
        half = numbers.shape[0] // 2
        numbers = np.concatenate([numbers[half:], numbers[:half]])
    if piece.job is None and piece.factor == 1.0 and numbers.dtype == dtype:
        return numbers
    if piece.factor != 1.0:
        wide = (
            numbers if numbers.dtype.itemsize >= 4 else cast(np.ascontiguousarray(numbers), compute_dtype([band.dtype]))
        )
        numbers = wide * wide.dtype.type(piece.factor)
    return rounded(numbers, dtype, band.key)


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
