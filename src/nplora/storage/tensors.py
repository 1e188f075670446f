"""Files of named tensors, opened once and read on demand through a memory map."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Hashable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import hashing
from ..errors import InputError
from .dtypes import numpy_dtype
from .header import Header, pickle_error, read_header

PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
MAX_CONFIG = 10_000_000  # real ones hold a few kilobytes
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapters.safetensors")


class Tensor(NamedTuple):
    """One stored tensor: name, safetensors dtype and shape; its numbers are read when asked for."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorFile | NDArray[np.generic]
    start: int = 0

    def read(self) -> NDArray[np.generic]:
        """The numbers, as a read-only view of the file where possible (no copy)."""
        if isinstance(self.source, TensorFile):
            count = prod(self.shape)
            if not count:
                return np.empty(self.shape, numpy_dtype(self.dtype))
            return np.frombuffer(self.source.map, numpy_dtype(self.dtype), count, self.start).reshape(self.shape)
        return self.source

    @staticmethod
    def of(key: str, array: NDArray[np.generic]) -> Tensor:
        """A tensor that lives in memory."""
        return Tensor(key, dtype_name(array.dtype), array.shape, array)


def dtype_name(dtype: np.dtype) -> str:
    """The safetensors name of a NumPy dtype.

    >>> dtype_name(np.dtype("float16"))
    'F16'
    """
    special = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"}
    if dtype.name in special:
        return special[dtype.name]
    return f"{'U' if dtype.kind == 'u' else dtype.kind.upper()}{dtype.itemsize * 8}"


class TensorFile:
    """A safetensors file, checked and memory-mapped; or a folder that holds one beside its JSON config.

    Args:
        path: a ``.safetensors`` file, or a folder with ``adapter_model.safetensors`` and ``adapter_config.json``.

    Raises:
        InputError: not there, not readable, a pickle, or not a whole safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.given = os.fspath(path)
        # What was learned about its tensors, by whoever looked at them: small, and never changed.
        self.learned: dict[Hashable, object] = {}
        self._known_sha256: str | None = None
        self.path, self.config = _locate(self.given, Path(path))
        try:
            with open(self.path, "rb") as stream:  # the map outlives the stream
                self.header: Header = read_header(stream, self.path)
                self.identity = hashing.identity(stream.fileno())
                self._digest = hashing.begun(stream.fileno())
                self.map = self._digest.data if self._digest else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                self.size = len(self.map)
        except OSError as error:
            raise _unreadable(self.path, error) from None

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        return {
            key: Tensor(key, entry.dtype, entry.shape, self, entry.start) for key, entry in self.header.entries.items()
        }

    def begin_sha256(self) -> None:
        """Compute the digest on a thread of its own, so that `sha256` finds it done."""
        if self._known_sha256 is None:
            self._digest = self._digest or hashing.Digest(self.map)

    def require_sha256(self, digest: str, identity: tuple[int, ...]) -> None:
        """Take over what another process computed, where it had this very file before it; else compare.

        Args:
            digest: SHA-256 in hex. identity: of the file that it was computed of.

        Raises:
            InputError: the bytes are others.
        """
        if identity == self.identity:
            self._known_sha256 = digest
        elif self.sha256() != digest:
            raise InputError("the file changed during the run", file=self.given, hint="Run it again.")

    def sha256(self) -> str:
        """SHA-256 of the whole file, in hex; computed once."""
        if self._known_sha256 is not None:
            return self._known_sha256
        self.begin_sha256()
        assert self._digest is not None
        return self._digest.result()


def _locate(given: str, path: Path) -> tuple[str, dict[str, object] | None]:
    """The safetensors file behind a path, and the adapter config beside it."""
    if not given:
        raise InputError("no file is named", got="an empty name", hint="Check the command line.")
    if os.path.isdir(path):  # noqa: PTH112 - False for a name too long, where Path.is_dir raises
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return os.fspath(path / name), _read_config(path / "adapter_config.json")
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return os.fspath(found[0]), _read_config(path / "adapter_config.json")
        if (path / "adapter_model.bin").is_file():
            raise pickle_error(os.fspath(path / "adapter_model.bin"))
        raise InputError(
            "the folder holds no adapter", file=path, expected=FOLDER_FILES[0],
            got=f"{len(found)} safetensors files" if found else "no safetensors file",
            hint="Name the file itself.",
        )  # fmt: skip
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        raise InputError("no such file", file=path, hint=_near(path)) from None
    except (OSError, ValueError) as error:  # a name too long, a folder closed to us, a NUL in the name
        raise _unreadable(path, error) from None
    if not regular:  # opening a pipe would wait for its writer
        raise InputError("this is a pipe or a device, not a file", file=path, hint="Save it to a file first.")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise pickle_error(os.fspath(path))
    beside = path.with_name("adapter_config.json")
    named = path.name in FOLDER_FILES or path.name.endswith("adapters.safetensors")
    return os.fspath(path), _read_config(beside) if named else None


def _near(path: Path) -> str:
    """The file that may have been meant, else that the path is to be checked."""
    import difflib

    try:
        there = {
            entry.name.removesuffix(".safetensors"): entry.name
            for entry in path.parent.iterdir()
            if entry.suffix == ".safetensors" or entry.is_dir()
        }
    except (OSError, ValueError):
        return f"There is no folder {path.parent}: check the path."
    near = difflib.get_close_matches(path.name.removesuffix(".safetensors"), there, 1, 0.7)
    return f"Did you mean {path.with_name(there[near[0]])}?" if near else "Check the path."


def _unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot be read ({reason})", file=path, hint="Check the path and its permissions.")


def _read_config(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    mend = "Download it again, or mend it."
    try:
        with open(path, "rb") as stream:
            text = stream.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise InputError("the config is too long", file=path, expected=f"at most {MAX_CONFIG} bytes", hint=mend)
        config = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):  # RecursionError: a nesting bomb
        raise InputError("the config is not valid JSON", file=path, hint=mend) from None
    if not isinstance(config, dict):
        raise InputError("the config is not a JSON object", file=path, hint=mend)
    return config
