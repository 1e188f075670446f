"""Safetensors files put together by hand, so that they can be wrong in exactly one way."""

from __future__ import annotations

import json


def tensor(start: object = 0, stop: object = 8, *, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    """One entry of a header: by default two float32 numbers."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def assemble(header: object, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    """A whole file: 8 bytes of length, the header (an object, or the bytes to take as they are), the data."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def padded(length: int) -> bytes:
    """A valid file whose header, filled up with blanks as the safetensors library does, has the given length."""
    return assemble(json.dumps({"a": tensor()}).encode().ljust(length))
