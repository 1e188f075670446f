"""Fuzz target for what opens and fuses a file: whatever the bytes, nothing but NploraError may come out.

    PYTHONPATH=tests python -m hostile.fuzz_header --seconds 300

Guided by coverage where atheris is installed (`pip install -e '.[fuzz]'`), else by a cheaper sign that an input was
new: a message that no input before it had caused.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import nplora
from nplora.errors import NploraError
from nplora.storage.tensors import TensorFile

from .crafting import assemble, padded, tensor


def open_and_read(path: Path) -> None:
    """The storage layer: header, metadata, and every tensor's numbers where NumPy has the type."""
    file = TensorFile(path)
    for item in file.tensors.values():
        if item.dtype not in ("F4", "F6_E2M3", "F6_E3M2"):
            assert item.read().shape == item.shape
    # Whatever is accepted can be written into another header.
    json.dumps([*file.tensors, dict(file.header.metadata)], ensure_ascii=False).encode()


def load_and_fuse(path: Path) -> None:
    """Key detection, kinds and scales; then the file fused with itself, in its own naming and in another one."""
    adapter = nplora.load(path)
    if any(prod(module.update.size or (1,)) > MAX_PRODUCT for module in adapter.values()):
        return  # tiny tensors may stand for a large weight: honest, but slow
    for format in ("auto", "kohya"):
        fusion = nplora.fuse(adapter, adapter, format=format)
        fusion.save(path.with_name("fused.safetensors"), overwrite=True)
        nplora.load(path.with_name("fused.safetensors"))


EntryPoint = Callable[[Path], object]
# What is fuzzed: functions that take a path.
ENTRY_POINTS: list[EntryPoint] = [open_and_read, load_and_fuse]
MAX_PRODUCT = 1 << 16


def _pair(name: str, down: str = "lora_down.weight", up: str = "lora_up.weight", rank: int = 2) -> dict[str, object]:
    size = 4 * rank * 4
    return {
        f"{name}.{down}": tensor(0, size, shape=[rank, 4]),
        f"{name}.{up}": tensor(size, 2 * size, shape=[4, rank]),
        f"{name}.alpha": tensor(2 * size, 2 * size + 4, shape=[]),
    }


def _file(shapes: dict[str, tuple[int, ...]], **metadata: str) -> bytes:
    """A valid file of float32 numbers between -1 and 1."""
    random_, header, position = random.Random(len(shapes)), {}, 0
    for key, shape in shapes.items():
        header[key] = tensor(position, position + 4 * prod(shape), shape=list(shape))
        position += 4 * prod(shape)
    data = struct.pack(f"<{position // 4}f", *(random_.uniform(-1, 1) for _ in range(position // 4)))
    return assemble({"__metadata__": metadata, **header} if metadata else header, data)


def _suffixed(names: Sequence[str], **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{role.replace('__', '.')}": shape for name in names for role, shape in shapes.items()}


DOWN, UP = (2, 4), (6, 2)
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = ("lora_unet_" + BLOCK.replace(".", "_"), "lora_te_text_model_encoder_layers_0_mlp_fc1")
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
HADA = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4), "alpha": ()}
TUCKER = {"hada_w1_a": (2, 6), "hada_w2_a": (2, 6), "hada_w1_b": (2, 4), "hada_w2_b": (2, 4)}
CORES = {"hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)}
# Adapters as trainers name them, with small numbers of rows.
ADAPTERS: list[bytes] = [
    _file(_suffixed(KOHYA, lora_down__weight=DOWN, lora_up__weight=UP, alpha=()), ss_network_dim="2"),
    _file(
        _suffixed([CONV], lora_down__weight=(2, 4, 1, 1), lora_mid__weight=(2, 2, 3, 3), lora_up__weight=(6, 2, 1, 1))
    ),
    _file(_suffixed(["unet." + BLOCK], lora_A__weight=DOWN, lora_B__weight=UP, lora_B__bias=(6,), alpha=())),
    _file(_suffixed(["unet." + BLOCK], lora__down__weight=DOWN, lora__up__weight=UP)),
    _file(
        {f"unet.{BLOCK[:-5]}.processor.to_q_lora.{side}.weight": shape for side, shape in (("down", DOWN), ("up", UP))}
    ),
    _file(
        _suffixed(["base_model.model.layers.0.q_proj"], lora_A__weight=DOWN, lora_B__weight=UP),
        lora_adapter_metadata='{"r": 2, "lora_alpha": 4, "rank_pattern": {}}',
    ),
    _file(_suffixed(["base_model.model.q"], lora_A__default__weight=DOWN, lora_B__default__weight=UP)),
    _file(_suffixed(["model.layers.0.self_attn.q_proj"], lora_a=(4, 2), lora_b=(2, 6))),
    _file(_suffixed(KOHYA, **HADA)),
    _file(_suffixed([CONV], **TUCKER, **CORES)),
    _file(_suffixed(KOHYA, lokr_w1=(2, 2), lokr_w2=(3, 2), alpha=())),
    _file(_suffixed(KOHYA, lokr_w1=(2, 2), lokr_w2_a=(3, 1), lokr_w2_b=(1, 2), alpha=())),
    _file(
        _suffixed([CONV], lokr_w1_a=(2, 1), lokr_w1_b=(1, 2), lokr_w2_a=(1, 3), lokr_w2_b=(1, 2), lokr_t2=(1, 1, 3, 3))
    ),
    _file(_suffixed(KOHYA, diff=(6, 4), diff_b=(6,)) | _suffixed(["lora_unet_norm"], w_norm=(6,), b_norm=(6,))),
    _file(_suffixed(KOHYA, lora_down__weight=DOWN, lora_up__weight=UP, dora_scale=(6, 1), alpha=())),
    _file(_suffixed(["double_blocks.0.processor.qkv_lora1"], down__weight=(2, 4), up__weight=(12, 2))),
    _file(
        _suffixed(["lora_unet_double_blocks_0_img_attn_qkv"], lora_down__weight=DOWN, lora_up__weight=(9, 2), alpha=())
    ),
    _file({f"unet:{index}:{side}": shape for index in (0, 1) for side, shape in (("down", DOWN), ("up", UP))}),
    _file({f"w_{side}_00{index}": shape for index in (0, 1) for side, shape in (("a", DOWN), ("b", UP))}),
    _file(_suffixed(KOHYA, oft_blocks=(2, 2, 2), alpha=())),
    _file(_suffixed(KOHYA, on_input=(4,))),
]

# Valid files to start from, in several namings, so that key detection has something to misread.
SEEDS: list[bytes] = [
    assemble({}, b""),
    padded(640),
    assemble({"__metadata__": {"format": "pt", "ss_network_dim": "2"}, "a": tensor(), "b": tensor(8, 8, shape=[0])}),
    assemble(_pair("lora_unet_mid_block_attentions_0_proj_in"), bytes(68)),
    assemble(_pair("unet.mid_block.attentions.0.proj_in", "lora_A.weight", "lora_B.weight"), bytes(68)),
    assemble(_pair("base_model.model.q_proj", "lora_A.default.weight", "lora_B.default.weight"), bytes(68)),
    assemble({"unet:0:up": tensor(0, 16, shape=[2, 2]), "unet:0:down": tensor(16, 32, shape=[2, 2])}, bytes(32)),
    *ADAPTERS,
]

# What a parser trips over: limits, JSON's own signs, dtypes, namings.
NUMBERS = (0, 1, 2, 4, 8, 17, 255, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**4000, -1, -8)
ODD = (*NUMBERS, None, True, 0.5, 1e308, float("nan"), "", "x", "\ud800", "\x1b[2J", [], [[]], {}, {"dtype": "F32"})
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "F4", "F6_E2M3", "f32", "")
TOKENS = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u0000", b"\xff", b"null", b"true", b"NaN", b"-1", b"1e999",
    b"9" * 30, b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b"[" * 2000, b'{"a":' * 2000, b"\x80\x04",
    b"PK\x03\x04", b"version https://git-lfs", b"<html>",
)  # fmt: skip
SUFFIXES = (
    ".alpha", ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".lora_A.weight", ".lora_B.weight",
    ".lora_B.bias", ".diff", ".diff_b", ".hada_w1_a", ".hada_w2_b", ".hada_t1", ".lokr_w1", ".lokr_w1_b", ".lokr_w2",
    ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2", ".dora_scale", ".oft_blocks", ".scale", ".w_norm", ".lora_a",
    ".lora.up.weight", ":0:up", "", "\x1b[2J",
)  # fmt: skip


def mutate(data: bytes, random_: random.Random) -> bytes:
    """A file that differs from the given one: in its bytes, or, where the header still reads, in its structure."""
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        data = (_mutate_structure if random_.random() < 0.6 else _mutate_bytes)(data, random_)
    return data


def _mutate_bytes(data: bytes, random_: random.Random) -> bytes:
    places = [match.end() for match in re.finditer(rb"[:,\[{]", data[:4000])]  # where a value begins
    start = random_.choice(places) if places and random_.random() < 0.5 else random_.randrange(len(data) + 1)
    stop = min(len(data), start + random_.choice((1, 1, 2, 8, 64)))
    choice = random_.randrange(6)
    if choice == 0:
        return data[:start]
    if choice == 1:
        claim = random_.choice([n for n in NUMBERS if 0 <= n < 2**64])
        return claim.to_bytes(8, "little") + data[8:]
    middle = (bytes([random_.randrange(256)]), random_.choice(TOKENS), b"", data[start:stop] * 2)[choice - 2]
    changed = data[:start] + middle + data[stop:]
    if random_.random() < 0.7:  # let the length keep up, or the change would cut the header short and end there
        length = int.from_bytes(data[:8], "little") + len(changed) - len(data)
        changed = (length % 2**64).to_bytes(8, "little") + changed[8:]
    return changed


def _mutate_structure(data: bytes, random_: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        name = random_.choice(list(header))
        entry = header[name]
        _change(header, name, entry, random_)
        return assemble(header, data[8 + length :])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):  # no longer a header: bytes, then
        return _mutate_bytes(data, random_)


def _change(header: dict[str, object], name: str, entry: object, random_: random.Random) -> None:
    choice = random_.randrange(6)
    if choice == 0:
        header[name] = random_.choice(ODD)
    elif choice == 1:  # another name for the same tensor
        stem = random_.choice(list(header)).rsplit(".", 2)[0]
        header[stem + random_.choice(SUFFIXES)] = header.pop(name)
    elif choice == 2:
        entry["dtype"] = random_.choice(DTYPES + ODD)
    elif choice == 3:
        values = entry[random_.choice(("shape", "data_offsets"))]
        values.insert(random_.randrange(len(values) + 1), random_.choice(ODD))
        if random_.random() < 0.7:
            values.pop(random_.randrange(len(values)))
    elif choice == 4:  # another shape of as many numbers
        entry["shape"] = random_.choice(([1, *entry["shape"]], entry["shape"][::-1], [*entry["shape"], *[1] * 16]))
    else:
        metadata = header.setdefault("__metadata__", {})
        metadata[random_.choice(("format", "alpha", "ss_network_dim"))] = random_.choice(ODD)


@dataclass
class Findings:
    """What a run saw: how many files, which kinds of refusal, and the files that broke something."""

    runs: int = 0
    kinds: set[str] = field(default_factory=set)
    crashes: list[tuple[bytes, str]] = field(default_factory=list)


def try_file(data: bytes, path: Path, findings: Findings, entry_points: Sequence[EntryPoint]) -> bool:
    """Open one file through every entry point and note what happened; True where it was something new."""
    path.write_bytes(data)
    findings.runs += 1
    known = len(findings.kinds)
    for entry_point in entry_points:
        try:
            entry_point(path)
            kind = "accepted"
        except NploraError as error:
            str(error).encode()  # a message that cannot be printed is a crash of its own
            kind = re.sub(r"[0-9]+", "0", error.problem).partition(", and both")[0]  # without the module
        except Exception as error:  # noqa: BLE001 - any other exception is what is looked for
            kind = f"{type(error).__name__} in {entry_point.__name__}"
            if kind not in findings.kinds:
                findings.crashes.append((data, f"{kind}: {error}"[:500]))
        findings.kinds.add(kind)
    return len(findings.kinds) > known


def fuzz(seconds: float, seed: int = 0, entry_points: Sequence[EntryPoint] = ENTRY_POINTS) -> Findings:
    """Mutate valid files for a while; the same seed tries the same files in the same order."""
    random_ = random.Random(seed)
    findings, corpus = Findings(), list(SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.safetensors"
        for data in SEEDS:
            try_file(data, path, findings, entry_points)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = mutate(random_.choice(corpus), random_)
            if len(data) < 100_000 and try_file(data, path, findings, entry_points):
                corpus.append(data)
    return findings


def _fuzz_guided(seconds: float, seed: int) -> None:
    """The same target under libFuzzer, which ends the process itself and saves the input that broke something."""
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(SEEDS):
            (corpus / str(number)).write_bytes(data)
        path = Path(folder) / "fuzzed.safetensors"

        def one_input(data: bytes) -> None:
            path.write_bytes(data)
            for entry_point in ENTRY_POINTS:
                try:
                    entry_point(path)
                except NploraError as error:
                    str(error).encode()

        def mutator(data: bytes, size: int, number: int) -> bytes:
            return mutate(data, random.Random(number))[:size]

        atheris.instrument_all()
        options = [f"-max_total_time={seconds:.0f}", f"-seed={seed or 1}", "-max_len=20000", str(corpus)]
        atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutator)
        atheris.Fuzz()


def main() -> int:
    """Run for a time budget; files that broke something are kept beside the caller."""
    parser = argparse.ArgumentParser(description="Fuzz the opening of files.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="do without atheris even where it is installed")
    arguments = parser.parse_args()
    warnings.simplefilter("error")  # as in the tests
    if not arguments.plain:
        try:
            return _fuzz_guided(arguments.seconds, arguments.seed) or 0
        except ImportError:
            print("atheris is not installed: mutating without coverage")
    findings = fuzz(arguments.seconds, arguments.seed)
    print(f"{findings.runs} files, {len(findings.kinds)} kinds of outcome, {len(findings.crashes)} crashes")
    for kind in sorted(findings.kinds):
        print(f"  {kind}")
    for number, (data, story) in enumerate(findings.crashes):
        kept = Path(f"crash-{number}.safetensors")
        kept.write_bytes(data)
        print(f"{kept}: {story}")
    return 1 if findings.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
