"""Arrays that are too many for the memory and needed only until the output is written."""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError


class Spool:
    """A temporary file without a name: arrays are added one after the other, then read through a map.

    Nothing of it is left when the process ends, however it ends.

    Args:
        folder: on whose disk it lies; None for the system's folder of temporary files.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        import tempfile  # most fusions need no spool

        self.folder = os.fspath(folder) if folder is not None else tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - it lives as long as the spool
        except OSError as error:
            raise self._cannot_write(error) from None
        weakref.finalize(self, self._file.close)
        self._size = 0

    def add(self, array: NDArray[np.floating], dtype: str, name: str) -> Spooled:
        """Keep a matrix.

        Args:
            array: the numbers.
            dtype: the safetensors type that the matrix counts as: it is rounded to that later.
            name: what messages call it.
        """
        start, data = self._size, np.ascontiguousarray(array)
        try:
            self._file.write(data.view(np.uint8).data)
        except OSError as error:
            raise self._cannot_write(error) from None
        self._size += data.nbytes
        rows, columns = data.shape
        return Spooled(self, start, data.dtype, (rows, columns), dtype, name)

    @cached_property
    def map(self) -> mmap.mmap:
        self._file.flush()
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"no room for what is computed ({error.strerror})", file=Path(self.folder),
            hint="Free some space there, or write the output to another disk.",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spooled:
    """A matrix in a spool: read on demand, once the spool is complete."""

    spool: Spool
    start: int
    stored: np.dtype[np.floating]
    shape: tuple[int, int]
    dtype: str
    name: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self) -> NDArray[np.generic]:
        count = self.shape[0] * self.shape[1]
        return np.frombuffer(self.spool.map, self.stored, count, self.start).reshape(self.shape)
