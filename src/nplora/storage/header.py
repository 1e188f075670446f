"""Parse the header of a safetensors file without trusting it.

Layout of the format: 8 bytes little-endian header length, that many bytes of JSON, then the data.
Everything is checked before a byte of data is touched; nothing here allocates what the header merely claims.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from math import prod
from typing import BinaryIO, NamedTuple

from ..errors import InputError

MAX_HEADER = 100_000_000  # the safetensors library's own limit
MAX_DIMENSIONS = 16
MAX_NUMBER = 2**63 - 1  # what an offset or a NumPy array's size can be

_DAMAGED = "This is not a safetensors file, or it is damaged: download it again."
_CUT_OFF = "The download was cut off: download it again."
_FAILED = "The download failed: download it again."
_BAD_WRITER = "The program that wrote the file made a mistake: export it again, or download it again."

# C0 and C1 control characters, and the marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

ITEM_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Entry(NamedTuple):
    """One tensor as the header describes it; `start` and `stop` are absolute offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """The tensors of a file in header order, its metadata and where the data begins."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(stream: BinaryIO, path: str) -> Header:
    """Read and check the header of an open file.

    Args:
        stream: the file, positioned anywhere.
        path: its name, for messages.

    Returns:
        The checked header; all offsets are absolute and lie inside the file.

    Raises:
        InputError: for anything that is not a whole, well-formed safetensors file.
    """
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    prefix = stream.read(64)
    _refuse_foreign(prefix, size, path)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        raise InputError(
            "the header's length is out of range", file=path, expected=f"at most {MAX_HEADER} bytes",
            got=f"{length} bytes", hint=_DAMAGED,
        )  # fmt: skip
    if 8 + length > size:
        raise InputError(
            "the file ends inside its header", file=path, expected=f"at least {8 + length} bytes",
            got=f"{size} bytes", hint=_CUT_OFF,
        )  # fmt: skip
    stream.seek(8)
    raw = _parse_json(stream.read(length), path)
    metadata = _metadata(raw.pop("__metadata__", {}), path)
    entries = {key: _entry(key, value, 8 + length, path) for key, value in raw.items()}
    _check_cover(entries, 8 + length, size, path)
    return Header(entries, metadata, 8 + length)


def _refuse_foreign(prefix: bytes, size: int, path: str) -> None:
    if size == 0:
        raise InputError("the file is empty", file=path, hint=_FAILED)
    # A header length may spell any of the marks below (640 bytes: a pickle's), so a header that begins is believed.
    if prefix[8:9] == b"{" and int.from_bytes(prefix[:8], "little") <= MAX_HEADER:
        return
    if prefix.startswith(b"version https://git-lfs"):
        raise InputError(
            "this is a Git LFS pointer (text), not the adapter itself", file=path,
            hint="Run `git lfs pull`, or download the file from its page.",
        )  # fmt: skip
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise pickle_error(path)
    text = prefix.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        raise InputError("this is a web page, not an adapter", file=path, hint=_FAILED)
    if text.startswith((b'{"', b"{\n", b"{\r", b"{ ")):
        hint = "Name the .safetensors file itself, or download it again."
        raise InputError("this is JSON text, not an adapter", file=path, hint=hint)
    if size < 10:  # 8 for the length, 2 for an empty object
        raise InputError(
            "the file is too short to be a safetensors file", file=path, expected="at least 10 bytes",
            got=f"{size} bytes", hint=_CUT_OFF,
        )  # fmt: skip


def pickle_error(path: str) -> InputError:
    """The refusal of a pickle file, with the safe way out."""
    return InputError(
        "this is a pickle file, which can run code when it is opened; nplora never loads one", file=path,
        hint="Convert it in a sandbox: `torch.load(path, weights_only=True)`, then `safetensors.torch.save_file`.",
    )  # fmt: skip


def _parse_json(text: bytes, path: str) -> dict[str, object]:
    if text[:1] != b"{":
        got = repr(text[:1])[1:] if text else "nothing"
        raise InputError("the header is not a JSON object", file=path, expected="'{'", got=got, hint=_DAMAGED)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InputError("the header has this name twice", file=path, key=_shown(twice), hint=_BAD_WRITER)
        return table

    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError:
        raise InputError("the header is not UTF-8 text", file=path, hint=_DAMAGED) from None
    except RecursionError:  # a nesting bomb
        raise InputError("the header is nested too deeply", file=path, hint=_DAMAGED) from None
    except ValueError:
        raise InputError("the header is not valid JSON", file=path, hint=_DAMAGED) from None
    if not isinstance(raw, dict):
        raise InputError("the header is not a JSON object", file=path, hint=_DAMAGED)
    return raw


def _metadata(raw: object, path: str) -> dict[str, str]:
    if raw is None:  # Apple MLX writes null where it has nothing to say
        return {}
    if not isinstance(raw, dict):
        raise InputError(
            "the metadata is malformed", file=path, key="__metadata__", expected="an object of strings",
            got=_shown(raw), hint=_BAD_WRITER,
        )  # fmt: skip
    for name, value in raw.items():
        if not isinstance(value, str):
            raise InputError(
                "the metadata is malformed", file=path, key=f"__metadata__.{_shown(name)}", expected="a string",
                got=_shown(value), hint=_BAD_WRITER,
            )  # fmt: skip
        if not _encodes(name + value):
            raise InputError(
                "the metadata is not Unicode text", file=path, key=f"__metadata__.{_shown(name)}", hint=_BAD_WRITER
            )
    return raw


def _entry(key: str, value: object, base: int, path: str) -> Entry:
    def refusal(problem: str, expected: str | None, got: object, hint: str = _BAD_WRITER) -> InputError:
        return InputError(problem, file=path, key=_shown(key), expected=expected, got=_shown(got), hint=hint)

    if not key.isprintable() and (_CONTROL.search(key) or not _encodes(key)):  # would play tricks on a terminal
        raise InputError(
            "the tensor's name holds control characters", file=path, key=_shown(key), hint=_DAMAGED
        )  # fmt: skip
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise refusal("the header's entry is malformed", "dtype, shape and two data_offsets", value) from None
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        hint = "The file is damaged, or newer than this version of nplora."
        raise refusal("the dtype is unknown", "one of " + ", ".join(ITEM_BITS), dtype, hint)
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise refusal("the shape is malformed", "a list of integers from 0 to 2^63 - 1", shape)
    if not _is_size(start) or not _is_size(stop):
        raise refusal("the byte range is malformed", "two integers from 0 to 2^63 - 1", [start, stop])
    if len(shape) > MAX_DIMENSIONS:
        raise refusal("the shape has too many dimensions", f"at most {MAX_DIMENSIONS}", len(shape))
    bits = prod(shape) * ITEM_BITS[dtype]
    # A zero among the dimensions makes any others cost no byte, yet NumPy refuses such an array.
    if bits > MAX_NUMBER or (bits == 0 and prod(filter(None, shape)) > MAX_NUMBER // 64):
        raise refusal("the shape is too large", "fewer than 2^63 bits", shape)
    if bits % 8:
        raise refusal("shape and byte range disagree", "whole bytes", f"{bits} bits for {dtype} {_shown(shape)}")
    if stop - start != bits // 8:
        expected = f"{bits // 8} bytes for {dtype} {_shown(shape)}"
        raise refusal("shape and byte range disagree", expected, f"{stop - start} bytes")
    return Entry(dtype, tuple(shape), base + start, base + stop)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_NUMBER  # an exact type: True is an int as well


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell: it could not be written again
        return False
    return True


def _shown(value: object, limit: int = 80) -> str:
    """A value of the file for a message: one short line of printable characters, whatever the file holds."""
    text = ""
    try:
        # Piece by piece, because a hostile value may be millions of numbers long.
        for piece in [value] if isinstance(value, str) else json.JSONEncoder().iterencode(value):
            text += piece[: limit + 1]
            if len(text) > limit:
                break
    except (ValueError, RecursionError):  # an integer of thousands of digits; deep nesting
        text += "…"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_cover(entries: Mapping[str, Entry], base: int, size: int, path: str) -> None:
    # Offsets in messages count from the start of the data, as they do in the header.
    position = base
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            word = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise InputError(
                f"the byte range {word}", file=path, key=_shown(key), expected=f"offset {position - base}",
                got=f"offset {entry.start - base}", hint=_BAD_WRITER,
            )  # fmt: skip
        position = entry.stop
    if position > size:
        raise InputError(
            "the file ends inside its data", file=path, expected=f"{position} bytes", got=f"{size} bytes", hint=_CUT_OFF
        )
    if position < size:
        raise InputError(
            "the file is longer than its header says", file=path, expected=f"{position} bytes", got=f"{size} bytes",
            hint="Something was appended to it: download it again.",
        )  # fmt: skip
