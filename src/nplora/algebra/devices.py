"""Take arrays to the device that computes and back; torch is imported only for a device other than the cpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..extras import lacking


@contextmanager
def to_device(device: str) -> Iterator[Callable[[NDArray[np.generic]], Any]]:
    """A function that takes NumPy arrays to the device (the identity for "cpu").

    Raises:
        UsageError: torch is missing or the device is not there.
    """
    if device == "cpu":
        yield lambda array: array
        return
    torch = _torch(device)
    with torch.no_grad():
        yield lambda array: torch.from_numpy(_for_torch(array, device)).to(device)


def _for_torch(array: NDArray[np.generic], device: str) -> NDArray[np.generic]:
    return array.astype(np.float32) if device == "mps" else np.require(array, requirements=["C", "W"])


def _torch(device: str) -> Any:
    try:
        import torch
    except ImportError:
        raise lacking(f"device {device} needs", "torch", ["torch"]) from None
    backend = torch.cuda if device == "cuda" else torch.backends.mps
    if not backend.is_available():
        raise UsageError(f"device {device} is not available on this machine", hint="Use --device cpu.")
    return torch


def to_host(array: Any) -> NDArray[np.generic]:
    """The array as NumPy."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())
