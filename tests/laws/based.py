"""Kinds whose update depends on the base weight: files of them, a base, and what they mean, written out densely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laws.making import DTYPES, write

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v"
CONV = "conv_in"
SHAPES = {LINEAR: (320, 320), OTHER: (320, 320), CONV: (320, 4, 3, 3)}
ALPHA, RANK = 1.5, 3


@dataclass(frozen=True)
class Based:
    """One module of a file by suffix, and its dense update (out, in*kernel) on a base weight."""

    tensors: dict[str, np.ndarray]
    dense: np.ndarray


def base_weights(seed: int = 9) -> dict[str, np.ndarray]:
    """The base: canonical path -> weight."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def flat(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64).reshape(array.shape[0], -1)


def _numbers(rng: np.random.Generator, *shape: int, dtype: str = "F32") -> np.ndarray:
    return (rng.standard_normal(shape) / 4).astype(DTYPES[dtype])


def _lora(rng: np.random.Generator, W: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    out, width, *kernel = W.shape
    up, down = _numbers(rng, out, RANK, *(1 for _ in kernel)), _numbers(rng, RANK, width, *kernel)
    tensors = {".lora_up.weight": up, ".lora_down.weight": down, ".alpha": np.float32(ALPHA)}
    return tensors, ALPHA / RANK * flat(up) @ flat(down)


def dora_out(rng: np.random.Generator, W: np.ndarray) -> Based:
    """``dora_scale`` (out, 1): LyCORIS' wd_on_output."""
    tensors, delta = _lora(rng, W)
    m = 1 + np.abs(_numbers(rng, W.shape[0], *(1 for _ in W.shape[1:])))
    V = flat(W) + delta
    return Based(
        {**tensors, ".dora_scale": m}, m.reshape(-1, 1) / np.linalg.norm(V, axis=1, keepdims=True) * V - flat(W)
    )


def dora_in(rng: np.random.Generator, W: np.ndarray) -> Based:
    """``dora_scale`` (1, in): the norm runs over outputs and kernel."""
    tensors, delta = _lora(rng, W)
    m = 1 + np.abs(_numbers(rng, 1, *W.shape[1:2], *(1 for _ in W.shape[2:])))
    V = (flat(W) + delta).reshape(W.shape[0], W.shape[1], -1)
    norms = np.array([np.linalg.norm(V[:, channel]) for channel in range(W.shape[1])])
    new = V * (m.reshape(-1) / norms)[None, :, None]
    return Based({**tensors, ".dora_scale": m}, new.reshape(W.shape[0], -1) - flat(W))


def dora_loha(rng: np.random.Generator, W: np.ndarray) -> Based:
    """A magnitude beside a LoHa."""
    out, width = flat(W).shape
    w = {
        f"w{i}_{side}": _numbers(rng, *((out, RANK) if side == "a" else (RANK, width))) for i in (1, 2) for side in "ab"
    }
    delta = ALPHA / RANK * (flat(w["w1_a"]) @ flat(w["w1_b"])) * (flat(w["w2_a"]) @ flat(w["w2_b"]))
    m = 1 + np.abs(_numbers(rng, out, 1))
    V = flat(W) + delta
    tensors = {f".hada_{name}": array for name, array in w.items()} | {".dora_scale": m, ".alpha": np.float32(ALPHA)}
    return Based(tensors, m * V / np.linalg.norm(V, axis=1, keepdims=True) - flat(W))


def _rotation(X: np.ndarray, limit: float = 0.0) -> np.ndarray:
    Q = X - X.T
    if limit:
        Q = Q * limit
    return (np.eye(len(Q)) + Q) @ np.linalg.inv(np.eye(len(Q)) - Q)


def oft(rng: np.random.Generator, W: np.ndarray) -> Based:
    """40 blocks of 8 outputs: ``W' = R^T W``."""
    X = _numbers(rng, 40, 8, 8)
    R = np.zeros((320, 320))
    for k in range(40):
        R[8 * k : 8 * k + 8, 8 * k : 8 * k + 8] = _rotation(X[k].astype(np.float64))
    return Based({".oft_blocks": X, ".alpha": np.float32(0)}, R.T @ flat(W) - flat(W))


def oft_constrained(rng: np.random.Generator, W: np.ndarray) -> Based:
    """The norm of all of Q shrunk to ``alpha * out``, and a rescaled output."""
    X, gain = _numbers(rng, 40, 8, 8), 1 + _numbers(rng, 320, *(1 for _ in W.shape[1:]))
    limit = (
        float(np.float32(0.01))
        * 320
        / (np.linalg.norm(X.astype(np.float64) - X.astype(np.float64).swapaxes(1, 2)) + 1e-8)
    )
    R = np.zeros((320, 320))
    for k in range(40):
        R[8 * k : 8 * k + 8, 8 * k : 8 * k + 8] = _rotation(X[k].astype(np.float64), limit)
    tensors = {".oft_blocks": X, ".rescale": gain, ".alpha": np.float32(0.01)}
    return Based(tensors, gain.reshape(-1, 1).astype(np.float64) * (R.T @ flat(W)) - flat(W))


def boft(rng: np.random.Generator, W: np.ndarray) -> Based:
    """Two stages of 80 blocks of 4; in stage i the partners of a row lie 2^i * 2 rows apart."""
    X = _numbers(rng, 2, 80, 4, 4)
    M = np.eye(320)
    for stage in range(2):
        step = 2**stage * 2
        order = [
            group * 2 * step + half * step + place
            for group in range(320 // (2 * step))
            for place in range(step)
            for half in range(2)
        ]
        block = np.zeros((320, 320))
        for k in range(80):
            block[4 * k : 4 * k + 4, 4 * k : 4 * k + 4] = _rotation(X[stage, k].astype(np.float64))
        P = np.eye(320)[order]
        M = P.T @ block @ P @ M
    return Based({".oft_blocks": X, ".alpha": np.float32(0)}, M @ flat(W) - flat(W))


def glora(rng: np.random.Generator, W: np.ndarray, empty: bool = False) -> Based:
    """``W a1 a2 + b1 b2``; on a convolution a acts on channels."""
    out, width, *kernel = W.shape
    ones = tuple(1 for _ in kernel)
    a1, a2 = _numbers(rng, width, RANK, *ones), _numbers(rng, RANK, width, *ones) * (0 if empty else 1)
    b1, b2 = _numbers(rng, out, RANK, *ones), _numbers(rng, RANK, width, *kernel)
    changed = np.einsum("oik,ic->ock", flat(W).reshape(out, width, -1), flat(a1) @ flat(a2)).reshape(out, -1)
    tensors = {f".{name}.weight": array for name, array in {"a1": a1, "a2": a2, "b1": b1, "b2": b2}.items()}
    return Based({**tensors, ".alpha": np.float32(ALPHA)}, ALPHA / RANK * (changed + flat(b1) @ flat(b2)))


def glora_old(rng: np.random.Generator, W: np.ndarray) -> Based:
    """Old LyCORIS: ``b2 b1 + W a2 a1``."""
    made = glora(rng, W)
    swapped = {
        ".a1.weight": ".a2.weight",
        ".a2.weight": ".a1.weight",
        ".b1.weight": ".b2.weight",
        ".b2.weight": ".b1.weight",
    }
    return Based({swapped.get(suffix, suffix): array for suffix, array in made.tensors.items()}, made.dense)


def ia3_out(rng: np.random.Generator, W: np.ndarray) -> Based:
    w = _numbers(rng, W.shape[0])
    return Based({".weight": w, ".on_input": np.zeros((), np.uint8)}, w.astype(np.float64)[:, None] * flat(W))


def ia3_in(rng: np.random.Generator, W: np.ndarray) -> Based:
    w = _numbers(rng, 1, W.shape[1], *(1 for _ in W.shape[2:])) if W.ndim > 2 else _numbers(rng, W.shape[1])
    gains = np.repeat(w.reshape(-1).astype(np.float64), int(np.prod(W.shape[2:])))
    return Based({".weight": w, ".on_input": np.ones((), np.uint8)}, flat(W) * gains)


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], Based]] = {
    "DoRA by output": dora_out, "DoRA by input": dora_in, "DoRA of a LoHa": dora_loha, "OFT": oft,
    "OFT, constrained": oft_constrained, "BOFT": boft, "GLoRA": glora, "GLoRA, old": glora_old, "IA3 by output": ia3_out,
    "IA3 by input": ia3_in,
}  # fmt: skip
LOW_RANK = ("GLoRA", "GLoRA, old")
CELLS = [(kind, where) for kind in KINDS for where in (LINEAR, CONV)]


def module(kind: str, where: str, seed: int = 1) -> Based:
    return KINDS[kind](np.random.default_rng(seed), base_weights()[where])


def key(where: str) -> str:
    return "lora_unet_" + where.replace(".", "_")


def put(path: Path, where: str, made: Based) -> Path:
    return write(path, {key(where) + suffix: np.asarray(array) for suffix, array in made.tensors.items()})


def put_base(path: Path, prefix: str = "", weights: dict[str, np.ndarray] | None = None) -> Path:
    found = base_weights() if weights is None else weights
    return write(path, {f"{prefix}{name}.weight": array for name, array in found.items()})
