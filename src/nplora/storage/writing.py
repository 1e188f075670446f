"""Write a safetensors file whole or not at all.

The data goes to a temporary file in the same folder; it is flushed, read back and renamed over the target. A
kill at any instant leaves the old file or none. A temporary file that a killed run left behind is removed by
the next run that writes to the same name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import prod
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from .header import ITEM_BITS

# Room in the header for numbers that are known only when the data has been computed.
HEADER_SLACK = 1024
# Bytes after which the disk is set to work beside the computation, so that the last flush finds little to do.
FLUSH_EVERY = 48 << 20
MOST_BUFFERS = 1024  # IOV_MAX of Linux, macOS and the BSDs


class TensorWriter:
    """A safetensors file being written: header first, since offsets follow from shapes; then tensors in any order.

    Args:
        path: the target file.
        specs: (key, dtype, shape) of every tensor that will be written.
        metadata: header metadata, as far as it is known; `finish` may replace it by one of about this size.
        overwrite: whether an existing target may be replaced.
        beside: small text files (name -> text) that belong to the adapter and stand in the same folder.

    Raises:
        OutputError: the target exists, or the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        *,
        overwrite: bool = False,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._beside = dict(beside or {})
        if not overwrite:
            for target in (self.path, *(self.path.parent / name for name in self._beside)):
                if os.path.lexists(target):  # a link to nowhere would be replaced as well
                    raise OutputError(
                        "the output exists already", file=target, hint="Choose another name, or add --overwrite."
                    )
        # Wide types first, then by name: the order in which the safetensors library lays tensors out.
        self._specs = sorted(specs, key=lambda spec: (-ITEM_BITS[spec[1]], spec[0]))
        self._table: dict[str, object] = {}
        starts: dict[str, int] = {}
        position = 0
        for key, dtype, shape in self._specs:
            size = prod(shape) * ITEM_BITS[dtype] // 8
            self._table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
            starts[key] = position
            position += size
        self._data_size = position
        self._reserved = -(-(len(self._header(metadata)) + HEADER_SLACK) // 8) * 8
        self._places = {  # key -> first byte in the file, bytes of a row
            key: (8 + self._reserved + starts[key], prod(shape[1:]) * ITEM_BITS[dtype] // 8)
            for key, dtype, shape in self._specs
        }
        self._made: list[Path] = []  # folders, the innermost first
        self._unflushed = 0
        self._flushing: threading.Thread | None = None
        self._flush_errors: list[OSError] = []
        self._file = -1
        self._temporary = temporary_beside(self.path)
        try:
            self._open()
        except BaseException:
            self._clean_up()
            raise

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        table = {"__metadata__": dict(metadata), **self._table} if metadata else self._table
        return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()

    def _open(self) -> None:
        try:
            _make_folder(self.path.parent, self._made)
            _remove_strays(self.path)
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            _reserve(self._file, 8 + self._reserved + self._data_size)
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def write(self, key: str, array: NDArray[np.generic], row: int = 0) -> None:
        """Write a tensor, or rows of it from `row` on. Safe to call from several threads.

        Args:
            key: the tensor's name.
            array: numbers of the tensor's dtype.
            row: first row of the tensor that the array holds.
        """
        self.write_all([(key, array, row)])

    def write_all(self, tensors: Iterable[tuple[str, NDArray[np.generic], int]]) -> None:
        """Write several tensors (key, array, row); those that are neighbours in the file in one call."""
        placed = []
        for key, array, row in tensors:
            start, width = self._places[key]
            # As bytes: types that Python does not know (bfloat16) cannot be handed over otherwise.
            placed.append((start + row * width, np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        placed.sort(key=itemgetter(0))
        run: list[NDArray[np.uint8]] = []
        start = end = 0
        for position, data in placed:
            if run and (position != end or len(run) == MOST_BUFFERS):
                self._write_run(run, start, end)
                run = []
            start, end = start if run else position, position + data.nbytes
            run.append(data)
        if run:
            self._write_run(run, start, end)

    def _write_run(self, run: list[NDArray[np.uint8]], start: int, end: int) -> None:
        try:
            done = start + os.pwritev(self._file, run, start)  # type: ignore[arg-type]  # arrays are buffers
            if done < end:  # a signal or a nearly full disk cut the write short
                rest = memoryview(np.concatenate(run).data)
                while done < end:
                    done += os.pwritev(self._file, [rest[done - start :]], done)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self._unflushed += end - start
        if self._unflushed > FLUSH_EVERY and (self._flushing is None or not self._flushing.is_alive()):
            self._unflushed = 0
            self._flushing = threading.Thread(target=self._flush, args=(self._file,), daemon=True)
            self._flushing.start()

    def _flush(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as error:  # the kernel reports a failed write once: the last flush would not hear of it
            self._flush_errors.append(error)

    def _stop_flushing(self) -> None:
        if self._flushing is not None:
            self._flushing.join()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, flush, read back, and put the file in its place."""
        header = self._header(metadata)
        if len(header) > self._reserved:
            raise OutputError("the header outgrew the room reserved for it", file=self.path, hint="Please report this.")
        self._stop_flushing()
        try:
            for error in self._flush_errors:
                raise error
            beginning = self._reserved.to_bytes(8, "little") + header.ljust(self._reserved)
            os.pwrite(self._file, beginning, 0)
            if not self._table:
                os.ftruncate(self._file, 8 + self._reserved)
            os.fsync(self._file)
            self._read_back(beginning)
            os.close(self._file)
            self._file = -1
            self._put_in_place()
            self._made.clear()  # they hold the output now
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def _read_back(self, beginning: bytes) -> None:
        """Make sure that the header and the length on the disk are those that were meant, and every name is there."""
        with open(self._temporary, "rb") as stream:
            same = stream.read(len(beginning)) == beginning
            whole = os.fstat(stream.fileno()).st_size == len(beginning) + self._data_size
        if not (same and whole and len(self._table) == len(self._specs)):
            raise OutputError("the written file does not read back as intended", file=self.path, hint="Check the disk.")

    def _put_in_place(self) -> None:
        if self._beside:
            self._put_in_folder()
        else:
            os.replace(self._temporary, self.path)
        _sync_folder(self.path.parent)

    def _put_in_folder(self) -> None:
        """Replace several files that belong together: the old ones step aside, and come back if a step fails.

        A kill between two renames must not pair an old model with a new config: the old model is the first to go
        and the new one is the last to come.
        """
        texts = {self.path.parent / name: text for name, text in self._beside.items()}
        aside: dict[Path, Path] = {}
        placed: list[Path] = []
        try:
            for target, text in texts.items():
                _remove_strays(target)
                _write_text(temporary_beside(target), text)
            for target in (self.path, *texts):
                if os.path.lexists(target):
                    old = temporary_beside(target, "nplora-old")
                    os.replace(target, old)
                    aside[target] = old
            for target in (*texts, self.path):
                os.replace(temporary_beside(target), target)
                placed.append(target)
        except BaseException:
            for target in (*texts, self.path):
                temporary_beside(target).unlink(missing_ok=True)
            for target in placed:
                target.unlink(missing_ok=True)
            for target, old in reversed(aside.items()):
                os.replace(old, target)
            raise
        for old in aside.values():
            old.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        """Remove what is not needed: nothing after a success, every trace after a failure."""
        self._stop_flushing()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with suppress(OSError):  # the reason for the failure counts, not what it left
            self._temporary.unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()  # refuses where something stands in it


def temporary_beside(path: Path, mark: str = "nplora-part") -> Path:
    """Where this process keeps a file on its way to or from that path."""
    return path.with_name(f".{path.name}.{os.getpid()}.{mark}")


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; what was made is noted, the innermost first."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, made)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:  # a file of that name: say what is wrong with it
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    made.insert(0, folder)


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now, so that a full disk shows before any work is done."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def write_folder_file(path: Path, text: str | bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_strays(path)
        _write_text(temporary, text)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def _write_text(path: Path, text: str | bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(text.encode() if isinstance(text, str) else text)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_strays(path: Path) -> None:
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.nplora-(?:part|old)")
    for stray in path.parent.iterdir():
        match = pattern.fullmatch(stray.name)
        if match and not _alive(int(match[1])):
            stray.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to someone else; no process at all, so no file of ours
        return True
    return True


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    hints = {
        errno.ENOSPC: "The disk is full: free some space. Nothing was changed.",
        errno.EDQUOT: "The quota is used up: free some space. Nothing was changed.",
        errno.EROFS: "The folder is read-only: choose another. Nothing was changed.",
        errno.EACCES: "The folder is not yours to write: choose another. Nothing was changed.",
    }
    return OutputError(
        f"cannot be written ({error.strerror})", file=path, hint=hints.get(error.errno or 0, "Nothing was changed.")
    )
