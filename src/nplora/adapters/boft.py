"""BOFT: the base weight turned by a product of butterfly rotations; needs W, the update has full rank.

PEFT (``boft_R``, ``boft_s``) turns the inputs: ``W' = s * W M^T`` with ``M = M_m ... M_1``, each block-diagonal between
two permutations. LyCORIS stores its butterflies, which turn the outputs, as ``oft_blocks`` of four axes (`oft`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS
from . import Changed, Full, Group, Kind, Matrix, Update, opaque

Array = NDArray[np.float64]


def butterfly(W: Array, R: Array, rescale: Array | None) -> Array:
    """``rescale * M W - W`` with LyCORIS' butterfly of stages R (m, k, b, b); stage i mixes rows 2^i b/2 apart."""
    stages, blocks, b, _ = R.shape
    turned = W
    for stage in range(stages):
        step = 2**stage * (b // 2)
        mixed = turned.reshape(-1, 2, step, W.shape[1]).transpose(0, 2, 1, 3).reshape(blocks, b, -1)
        turned = (R[stage] @ mixed).reshape(-1, step, 2, W.shape[1]).transpose(0, 2, 1, 3).reshape(W.shape)
    return np.asarray((turned if rescale is None else rescale.reshape(-1, 1) * turned) - W)


def permutation(n: int, count: int, half: int) -> NDArray[np.intp]:
    """PEFT's butterfly permutation of n inputs: in each of ``count`` blocks, even runs of ``half`` before odd ones."""
    size = n // count
    runs = np.arange(size).reshape(-1, half)
    order = np.concatenate([runs[0::2], runs[1::2]]).reshape(-1)
    return np.asarray((np.arange(count)[:, None] * size + order[None, :]).reshape(-1))


def size(group: Group) -> tuple[int, int] | None:
    turns, gains = group.tensors.get("boft"), group.tensors.get("boft_scale")
    if turns is None or gains is None or len(turns.shape) != 4 or not gains.shape:
        return None
    return max(gains.shape), turns.shape[1] * turns.shape[2]


def read(group: Group, scale: float, scale_from: str) -> Update:
    shape = size(group)
    if shape is None:
        return opaque(group, "BOFT", None)
    turns = group.tensors["boft"]
    if turns.dtype not in FLOATS or turns.shape[2] != turns.shape[3]:
        raise group.error(
            "the rotation has an unknown shape", "boft", expected="floats of shape (stages, blocks, b, b)",
            got=f"{turns.dtype} {list(turns.shape)}",
        )  # fmt: skip
    return replace(opaque(group, "BOFT", shape), on_base=partial(_on_base, group))


def _on_base(group: Group, weight: Matrix, kernel: tuple[int, ...]) -> Full:
    turns, gains = group.tensors["boft"], group.tensors["boft_scale"]
    stages, blocks, b, _ = turns.shape
    n = weight.shape[1]

    def change(W: Array) -> Array:
        X = turns.read().astype(np.float64)
        Q, unit = (X - np.swapaxes(X, -1, -2)) / 2, np.eye(b)
        R = np.linalg.solve((unit + Q).swapaxes(-1, -2), (unit - Q).swapaxes(-1, -2)).swapaxes(-1, -2)
        turned = W.T
        for stage in range(stages):
            order = permutation(n, blocks // 2**stage, b // 2) if stages > 1 else np.arange(n)
            placed = np.empty_like(turned)
            placed[order] = turned
            turned = (R[stage] @ placed.reshape(blocks, b, -1)).reshape(turned.shape)[order]
        return np.asarray(gains.read().astype(np.float64).reshape(-1, 1) * turned.T - W)

    return Full(Changed(weight, change, (turns.key, gains.key), weight.shape), kernel, "BOFT")


KINDS = (
    Kind(
        "BOFT",
        frozenset({"boft", "boft_scale"}),
        size,
        read,
        priority=2,
        fate="fused with `--base`, else carried along",
    ),
)
