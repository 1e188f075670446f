"""Safetensors dtype names, their NumPy types, and exact fast casts between them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_NUMPY = {
    "BOOL": "bool", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip

FLOATS = frozenset(("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"))
WRITABLE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # what --dtype offers

# Largest relative error of rounding a number to the type (half a unit in the last place).
UNIT_ROUNDOFF = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24, "F64": 2.0**-53}
# Half of the smallest step: the absolute error where numbers are too small for the relative bound.
SMALLEST_STEP = {"F16": 2.0**-25, "BF16": 2.0**-134, "F32": 2.0**-150, "F64": 0.0}


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a safetensors dtype name (ml_dtypes is imported only for the types NumPy lacks).

    >>> numpy_dtype("F16")
    dtype('float16')
    """
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    if name not in _ML_DTYPES:
        raise InputError(f"numbers of the type {name} cannot be read", hint="Convert the file to fp16, bf16 or fp32.")
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
    return found


def wider(names: Iterable[str]) -> str:
    """The smallest float type that holds every value of the given float types exactly, at least 16 bits wide.

    >>> wider(["F16", "F16"]), wider(["F16", "BF16"]), wider(["F8_E4M3"])
    ('F16', 'F32', 'F16')
    """
    kinds = set(names)
    if "F64" in kinds:
        return "F64"
    if "F32" in kinds or kinds >= {"F16", "BF16"} or kinds >= {"BF16", "F8_E4M3"}:
        return "F32"
    # An fp8 range fits either 16-bit type; arithmetic in fp8 itself is impossible.
    return "BF16" if "BF16" in kinds else "F16"


def compute_dtype(names: Iterable[str]) -> np.dtype[Any]:
    """float32 where every number has 16 bits or fewer (its rounding is far below theirs), else float64."""
    return np.dtype(np.float32) if wider(names) in ("F16", "BF16") else np.dtype(np.float64)


def cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast with round-to-nearest-even; equal to ``array.astype(dtype)`` bit for bit, but fast for 16-bit floats.

    NumPy converts a half in about 2 ns; numkong's SIMD kernels take 0.1 ns.

    Args:
        array: any float array.
        dtype: the NumPy dtype to convert to.

    Returns:
        An array of that dtype: the input itself where it has it already.
    """
    if array.dtype == dtype:
        return array
    out = np.empty(array.shape, dtype)
    cast_into(array, out)
    return out


def cast_into(array: NDArray[np.generic], out: NDArray[np.generic]) -> None:
    """`cast` into an array that is there already (C-contiguous, of the same shape)."""
    kinds = array.dtype.char + out.dtype.char
    if kinds in _KERNELS and array.size and array.flags.c_contiguous and array.flags.aligned:
        kernel = _numkong()
        if kernel is not None:
            kernel(array, _KERNELS[kinds], out=out)
            return
    if kinds in _THROUGH_FLOAT32:
        out[...] = cast(array, np.dtype(np.float32))  # exact, and the first step is fast
    else:
        out[...] = array.astype(out.dtype) if array.dtype.itemsize < 4 else array


# NumPy's type letters: e half, f single, d double, E bfloat16 (ml_dtypes).
_KERNELS = {"ef": "float32", "fe": "float16", "Ef": "float32", "fE": "bfloat16"}
_THROUGH_FLOAT32 = {"ed", "Ed"}


@lru_cache(maxsize=1)
def _numkong() -> Any:
    try:
        from numkong import astype
    except ImportError:  # a platform without a wheel: NumPy gives the same bits, slower
        return None
    return astype
