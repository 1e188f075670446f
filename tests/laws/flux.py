"""Fused modules of FLUX.1 as kohya and diffusers store them, and the formula on a few of their rows."""

from __future__ import annotations

import numpy as np

import nplora
from laws.making import (
    Factors,
    factors,
    kohya_tensors,
    peft_tensors,
    read,
    reference,
    relative,
    write,
)

WIDTH = 3072
QKV = {"to_q": (0, 3072), "to_k": (3072, 6144), "to_v": (6144, 9216)}
LINEAR1 = {"attn." + name: rows for name, rows in QKV.items()} | {"proj_mlp": (9216, 21504)}
DOUBLE = "double_blocks.0.img_attn.qkv"
SINGLE = "single_blocks.3.linear1"
LAST = "final_layer.adaLN_modulation.1"
TOLERANCE = {"F32": 2e-7, "F16": 1e-3, "BF16": 8e-3}  # a few roundings of the down factor


def kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def canonical(name: str) -> dict[str, tuple[int, int]]:
    """Canonical path -> rows of a native module."""
    if name == DOUBLE:
        return {f"transformer_blocks.0.attn.{part}": rows for part, rows in QKV.items()}
    if name == SINGLE:
        return {f"single_transformer_blocks.3.{part}": rows for part, rows in LINEAR1.items()}
    return {"norm_out.linear": (0, 6144)}


def made(seed: int, name: str = DOUBLE, rank: int = 2, dtype: str = "F32", scale: float = 0.5) -> Factors:
    out = max(stop for _, stop in canonical(name).values())
    return factors(np.random.default_rng(seed), out, WIDTH, rank, dtype=dtype, scale=scale)


def kohya_file(path, modules: dict[str, Factors]):
    return write(path, kohya_tensors({kohya(name): module for name, module in modules.items()}))


def split(name: str, module: Factors) -> dict[str, Factors]:
    """The parts by canonical name, as diffusers stores them: rows of the up factor, the down factor again and again."""
    return {
        part: Factors(
            halves(module.up[start:stop]) if name == LAST else module.up[start:stop], module.down, module.scale
        )
        for part, (start, stop) in canonical(name).items()
    }


def halves(array: np.ndarray) -> np.ndarray:
    """Shift and scale the other way round."""
    middle = array.shape[0] // 2
    return np.concatenate([array[middle:], array[:middle]])


def diffusers_file(path, modules: dict[str, Factors]):
    """Parts in diffusers' naming, the scale folded into the up factors (a power of two: exact)."""
    parts = {}
    for name, module in modules.items():
        for part, piece in split(name, module).items():
            parts["transformer." + part] = Factors((piece.up * piece.up.dtype.type(piece.scale)), piece.down)
    return write(path, peft_tensors(parts))


def fuse(tmp_path, subject, style, *, format="auto", **parameters):
    """Two paths in, one path out."""
    out = tmp_path / ("fused" if format == "peft" else "fused.safetensors")
    report = nplora.fuse(nplora.load(subject), nplora.load(style), **parameters).save(
        out, format=format, overwrite=True
    )
    return out, report


def sampled(start: int, stop: int) -> np.ndarray:
    """A few rows stand for all: the input side treats every row alike."""
    return np.linspace(start, stop - 1, 12).astype(int)


def stack_of(path, name: str) -> Factors:
    """A fused kohya module as it was written, read without nplora."""
    tensors, _ = read(path)
    up, down = (tensors[f"{kohya(name)}.lora_{side}.weight"] for side in ("up", "down"))
    return Factors(up, down, float(tensors[f"{kohya(name)}.alpha"]) / down.shape[0])


def rows_of(module: Factors, rows: np.ndarray) -> np.ndarray:
    return module.scale * module.up[rows].astype(np.float64) @ module.down.astype(np.float64)


def require_fused(path, name: str, subject: Factors, style: Factors, dtype: str, **parameters):
    """Every part of the written module is the formula on that part alone: the finest split decides."""
    written = stack_of(path, name)
    w = {"w_c": parameters.pop("subject_strength", 1.0), "w_s": parameters.pop("style_strength", 1.0)}
    for part in canonical(name).values():
        rows = sampled(*part)
        wanted = reference(rows_of(subject, rows), rows_of(style, rows), **parameters, **w)
        assert relative(rows_of(written, rows), wanted) < TOLERANCE[dtype]
