"""The attacks: bytes that lie about themselves, each with the sentence that it is answered with."""

from __future__ import annotations

from nplora.storage.header import ITEM_BITS, MAX_DIMENSIONS

from .crafting import assemble, tensor

GOOD = tensor()
DAMAGED = "This is not a safetensors file, or it is damaged: download it again."
CUT_OFF = "The download was cut off: download it again."
FAILED = "The download failed: download it again."
APPENDED = "Something was appended to it: download it again."
BAD_WRITER = "The program that wrote the file made a mistake: export it again, or download it again."
PICKLE = (
    "this is a pickle file, which can run code when it is opened; nplora never loads one. "
    "Convert it in a sandbox: `torch.load(path, weights_only=True)`, then `safetensors.torch.save_file`."
)
LFS = (
    "this is a Git LFS pointer (text), not the adapter itself. Run `git lfs pull`, or download the file from its page."
)
SIZES = "integers from 0 to 2^63 - 1"


def bad_shape(shape: object, shown: str) -> tuple[bytes, str]:
    message = f"a: the shape is malformed: expected a list of {SIZES}, got {shown}. {BAD_WRITER}"
    return assemble({"a": tensor(shape=shape)}), message


def bad_range(start: object, stop: object, shown: str) -> tuple[bytes, str]:
    message = f"a: the byte range is malformed: expected two {SIZES}, got {shown}. {BAD_WRITER}"
    return assemble({"a": tensor(start, stop)}), message


def bad_dtype(dtype: object, shown: str) -> tuple[bytes, str]:
    hint = "The file is damaged, or newer than this version of nplora."
    message = f"a: the dtype is unknown: expected one of {', '.join(ITEM_BITS)}, got {shown}. {hint}"
    return assemble({"a": tensor(dtype=dtype)}), message


def bad_entry(entry: object, shown: str) -> tuple[bytes, str]:
    problem = "the header's entry is malformed: expected dtype, shape and two data_offsets"
    return assemble({"a": entry}), f"a: {problem}, got {shown}. {BAD_WRITER}"


def bad_name(name: bytes, shown: str) -> tuple[bytes, str]:
    text = b'{"%s":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' % name
    return assemble(text), f"{shown}: the tensor's name holds control characters. {DAMAGED}"


def nested(opening: bytes, closing: bytes, depth: int = 100_000) -> tuple[bytes, str]:
    text = b'{"a":' + opening * depth + b"0" + closing * depth + b"}"
    return assemble(text), f"the header is nested too deeply. {DAMAGED}"


def html(text: bytes) -> tuple[bytes, str]:
    return text, f"this is a web page, not an adapter. {FAILED}"


def json_text(text: bytes) -> tuple[bytes, str]:
    return text, "this is JSON text, not an adapter. Name the .safetensors file itself, or download it again."


def not_an_object(text: bytes, got: str) -> tuple[bytes, str]:
    return assemble(text), f"the header is not a JSON object: expected '{{', got {got}. {DAMAGED}"


def not_json(text: bytes) -> tuple[bytes, str]:
    return assemble(text), f"the header is not valid JSON. {DAMAGED}"


BIG = "9" * 4000  # Python turns it into an integer, but would not print its square
TAIL = " " * 60
ATTACKS: dict[str, tuple[bytes, str]] = {
    # What is no safetensors file at all.
    "empty": (b"", f"the file is empty. {FAILED}"),
    "two bytes": (
        b"\r\n",
        f"the file is too short to be a safetensors file: expected at least 10 bytes, got 2 bytes. {CUT_OFF}",
    ),
    "nine bytes": (
        bytes(9),
        f"the file is too short to be a safetensors file: expected at least 10 bytes, got 9 bytes. {CUT_OFF}",
    ),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n", LFS),
    "web page": html(b"<!DOCTYPE html><html><body>404</body></html>"),
    "web page after blanks": html(b"\n\n  <html>" + bytes(60)),
    "web page after a byte order mark": html(b"\xef\xbb\xbf<html>" + bytes(60)),
    "JSON": json_text(b'{"error":"Repository not found"}' + TAIL.encode()),
    "JSON, indented": json_text(b'{\n  "lora": 1\n}' + TAIL.encode()),
    "torch zip": (b"PK\x03\x04" + bytes(60), PICKLE),
    "pickle 2": (b"\x80\x02}q\x00" + bytes(60), PICKLE),
    "pickle 3": (b"\x80\x03}q\x00" + bytes(60), PICKLE),
    "pickle 4": (b"\x80\x04\x95" + bytes(60), PICKLE),
    "pickle 5": (b"\x80\x05\x95" + bytes(60), PICKLE),
    # The header's length.
    "length 2^40": (
        assemble({"a": GOOD}, length=2**40),
        f"the header's length is out of range: expected at most 100000000 bytes, got {2**40} bytes. {DAMAGED}",
    ),
    "length 2^64 - 1": (
        assemble({"a": GOOD}, length=2**64 - 1),
        f"the header's length is out of range: expected at most 100000000 bytes, got {2**64 - 1} bytes. {DAMAGED}",
    ),
    "length beyond the file": (
        assemble({"a": GOOD}, length=5000),
        f"the file ends inside its header: expected at least 5008 bytes, got 70 bytes. {CUT_OFF}",
    ),
    "cut in the header": (
        assemble({"a": GOOD})[:40],
        f"the file ends inside its header: expected at least 62 bytes, got 40 bytes. {CUT_OFF}",
    ),
    "length zero": not_an_object(b"", "nothing"),
    # The header as text.
    "blank before the object": not_an_object(b' {"a":1}', "' '"),
    "a list": not_an_object(b"[1,2,3]", "'['"),
    "a number": not_an_object(b"42", "'4'"),
    "zeros": not_an_object(bytes(16), r"'\x00'"),
    "not UTF-8": (assemble(b'{"\xff\xfe":1}'), f"the header is not UTF-8 text. {DAMAGED}"),
    "cut JSON": not_json(b'{"a":{"dtype":"F32","sha'),
    "second object after the first": not_json(b"{}{}"),
    "integer of 5000 digits": not_json(b'{"a":%s}' % (b"9" * 5000)),
    "nested lists": nested(b"[", b"]"),
    "nested objects": nested(b'{"a":', b"}"),
    "same tensor twice": (
        assemble(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'),
        f"a: the header has this name twice. {BAD_WRITER}",
    ),
    "same field twice": (
        assemble(b'{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,8]}}'),
        f"shape: the header has this name twice. {BAD_WRITER}",
    ),
    "metadata twice": (
        assemble(b'{"__metadata__":{},"__metadata__":{}}', b""),
        f"__metadata__: the header has this name twice. {BAD_WRITER}",
    ),
    # Metadata.
    "metadata is a list": (
        assemble({"__metadata__": ["x"], "a": GOOD}),
        f'__metadata__: the metadata is malformed: expected an object of strings, got ["x"]. {BAD_WRITER}',
    ),
    "metadata holds a number": (
        assemble({"__metadata__": {"format": "pt", "step": 100}, "a": GOOD}),
        f"__metadata__.step: the metadata is malformed: expected a string, got 100. {BAD_WRITER}",
    ),
    "metadata with half a surrogate pair": (
        assemble(b'{"__metadata__":{"title":"\\ud800"}}', b""),
        f"__metadata__.title: the metadata is not Unicode text. {BAD_WRITER}",
    ),
    # One entry.
    "entry is a number": bad_entry(1, "1"),
    "entry is a list": bad_entry(["F32", [2], [0, 8]], '["F32", [2], [0, 8]]'),
    "entry lacks its dtype": bad_entry(
        {"shape": [2], "data_offsets": [0, 8]}, '{"shape": [2], "data_offsets": [0, 8]}'
    ),
    "three offsets": bad_entry(
        GOOD | {"data_offsets": [0, 4, 8]}, '{"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}'
    ),
    "a hundred thousand offsets": bad_entry(
        GOOD | {"data_offsets": [0] * 10**5}, '{"dtype": "F32", "shape": [2], "data_offsets": [' + "0, " * 10 + "0…"
    ),
    "unknown dtype": bad_dtype("F128", "F128"),
    "dtype in small letters": bad_dtype("f32", "f32"),
    "dtype is a list": bad_dtype(["F32"], '["F32"]'),
    "dtype is null": bad_dtype(None, "null"),
    "shape is a number": bad_shape(2, "2"),
    "shape is text": bad_shape("2", "2"),
    "negative dimension": bad_shape([-2], "[-2]"),
    "two negative dimensions": bad_shape([-1, -2], "[-1, -2]"),
    "boolean dimension": bad_shape([True, 2], "[true, 2]"),
    "float dimension": bad_shape([2.0], "[2.0]"),
    "NaN dimension": bad_shape([float("nan")], "[NaN]"),
    "nested dimension": bad_shape([[2]], "[[2]]"),
    "dimension of 2^63": bad_shape([2**63], f"[{2**63}]"),
    "dimension of 4000 digits": bad_shape([int(BIG)], "[" + "9" * 78 + "…"),
    "negative offset": bad_range(-8, 0, "[-8, 0]"),
    "boolean offsets": bad_range(False, True, "[false, true]"),
    "float offset": bad_range(0, 8.0, "[0, 8.0]"),
    "text offsets": bad_range("0", "8", '["0", "8"]'),
    "infinite offset": bad_range(0, float("inf"), "[0, Infinity]"),
    "offset of 2^63": bad_range(0, 2**63, f"[0, {2**63}]"),
    "too many dimensions": (
        assemble({"a": tensor(0, 4, shape=[1] * 17)}, bytes(4)),
        f"a: the shape has too many dimensions: expected at most {MAX_DIMENSIONS}, got 17. {BAD_WRITER}",
    ),
    "bytes beyond any file": (
        assemble({"a": tensor(shape=[2**62, 2**62])}),
        f"a: the shape is too large: expected fewer than 2^63 bits, got [{2**62}, {2**62}]. {BAD_WRITER}",
    ),
    "huge but empty": (  # costs no byte, yet NumPy cannot make the array
        assemble({"a": tensor(0, 0, shape=[2**62, 8, 0])}, b""),
        f"a: the shape is too large: expected fewer than 2^63 bits, got [{2**62}, 8, 0]. {BAD_WRITER}",
    ),
    "more numbers than bytes": (
        assemble({"a": tensor(shape=[1000])}),
        f"a: shape and byte range disagree: expected 4000 bytes for F32 [1000], got 8 bytes. {BAD_WRITER}",
    ),
    "fewer numbers than bytes": (
        assemble({"a": tensor(shape=[])}),
        f"a: shape and byte range disagree: expected 4 bytes for F32 [], got 8 bytes. {BAD_WRITER}",
    ),
    "half a byte": (
        assemble({"a": tensor(0, 1, dtype="F4", shape=[1])}, b"\0"),
        f"a: shape and byte range disagree: expected whole bytes, got 4 bits for F4 [1]. {BAD_WRITER}",
    ),
    "offsets backwards": (
        assemble({"a": tensor(8, 0)}),
        f"a: shape and byte range disagree: expected 8 bytes for F32 [2], got -8 bytes. {BAD_WRITER}",
    ),
    # Names.
    "name that colours the terminal": bad_name(rb"\u001b[31mred", r"\x1b[31mred"),
    "name with a line break": bad_name(rb"a\nnplora: all is well", r"a\nnplora: all is well"),
    "name that turns the writing around": bad_name(rb"a\u202eb", r"a\u202eb"),
    "name with half a surrogate pair": bad_name(rb"a\udc00", r"a\udc00"),
    "name of a megabyte": (
        assemble({"x" * 10**6: tensor(shape=[3])}),
        f"{'x' * 79}…: shape and byte range disagree: expected 12 bytes for F32 [3], got 8 bytes. {BAD_WRITER}",
    ),
    # All entries together.
    "two tensors on the same bytes": (
        assemble({"a": GOOD, "b": GOOD}),
        f"b: the byte range overlaps the tensor before it: expected offset 8, got offset 0. {BAD_WRITER}",
    ),
    "half overlapping": (
        assemble({"a": GOOD, "b": tensor(4, 12)}, bytes(12)),
        f"b: the byte range overlaps the tensor before it: expected offset 8, got offset 4. {BAD_WRITER}",
    ),
    "nothing inside something": (
        assemble({"a": GOOD, "b": tensor(4, 4, shape=[0])}),
        f"b: the byte range overlaps the tensor before it: expected offset 8, got offset 4. {BAD_WRITER}",
    ),
    "a hole": (
        assemble({"a": GOOD, "b": tensor(12, 20)}, bytes(20)),
        f"b: the byte range leaves a hole before it: expected offset 8, got offset 12. {BAD_WRITER}",
    ),
    "a hole at the start": (
        assemble({"a": tensor(8, 16)}, bytes(16)),
        f"a: the byte range leaves a hole before it: expected offset 0, got offset 8. {BAD_WRITER}",
    ),
    "offset beyond the file": (
        assemble({"a": GOOD, "b": tensor(2**40, 2**40 + 8)}, bytes(16)),
        f"b: the byte range leaves a hole before it: expected offset 8, got offset {2**40}. {BAD_WRITER}",
    ),
    "cut in the data": (
        assemble({"a": GOOD, "b": tensor(8, 16)}, bytes(15)),
        f"the file ends inside its data: expected 132 bytes, got 131 bytes. {CUT_OFF}",
    ),
    "a terabyte of data promised": (
        assemble({"a": tensor(0, 2**40, shape=[2**38])}),
        f"the file ends inside its data: expected {2**40 + 85} bytes, got 93 bytes. {CUT_OFF}",
    ),
    "trailing bytes": (
        assemble({"a": GOOD}, bytes(8) + b"PK\x05\x06"),
        f"the file is longer than its header says: expected 70 bytes, got 74 bytes. {APPENDED}",
    ),
}
