"""OFT: the base weight turned by a block-diagonal rotation; ``dW = (R - I) W`` needs W and has full rank.

LyCORIS and kohya (``oft_blocks``, three axes) turn the outputs: ``W' = rescale * R^T W`` with the Cayley transform
``R = (I + Q)(I - Q)^-1``, ``Q = X - X^T``, shrunk to the norm ``alpha * out`` where alpha is positive. PEFT (``oft_R``)
turns the inputs: ``W' = W R^T``, with Q's upper triangle stored and R by its config a Cayley transform or its Neumann
series. Four axes are LyCORIS' BOFT (`boft`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import isqrt, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS
from . import Changed, Full, Group, Kind, Matrix, Update, boft, opaque, read_scalar

Array = NDArray[np.float64]


def skew(blocks: Array, limit: float) -> Array:
    """``Q = X - X^T`` of blocks (..., b, b), shrunk as a whole to the norm ``limit`` where that is positive."""
    Q = blocks - np.swapaxes(blocks, -1, -2)
    norm = float(np.linalg.norm(Q)) + 1e-8  # LyCORIS' own guard
    return np.asarray(Q * (limit / norm) if 0 < limit < norm else Q)


def cayley(Q: Array) -> Array:
    """``(I + Q)(I - Q)^-1``, orthogonal for a skew-symmetric Q (..., b, b)."""
    unit = np.eye(Q.shape[-1])
    return np.asarray(np.linalg.solve(np.swapaxes(unit - Q, -1, -2), np.swapaxes(unit + Q, -1, -2)).swapaxes(-1, -2))


def neumann(Q: Array, terms: int) -> Array:
    """PEFT's series for `cayley`: ``I + 2 Q + 2 Q^2 + ... + Q^(terms - 1)``."""
    R = np.broadcast_to(np.eye(Q.shape[-1]), Q.shape).copy()
    if terms > 1:
        R += 2 * Q
    if terms > 2:
        power = Q @ Q
        R += 2 * power
        for _ in range(3, terms - 1):
            power = power @ Q
            R += 2 * power
        R += power @ Q
    return R


def turned_outputs(W: Array, R: Array, rescale: Array | None) -> Array:
    """``rescale * R^T W - W`` for W (out, n) and blocks R (k, b, b) with ``k b = out``."""
    turned = np.einsum("knm,knx->kmx", R, W.reshape(*R.shape[:2], -1)).reshape(W.shape)
    return np.asarray((turned if rescale is None else rescale.reshape(-1, 1) * turned) - W)


def turned_inputs(W: Array, R: Array) -> Array:
    """``W R^T - W`` for W (out, n) and blocks R (k, b, b) with ``k b = n``."""
    blocks = W.reshape(W.shape[0], *R.shape[:2])
    return np.asarray(np.einsum("okb,kmb->okm", blocks, R).reshape(W.shape) - W)


def size(group: Group) -> tuple[int, int] | None:
    return None


def read(group: Group, scale: float, scale_from: str) -> Update:
    role = next((name for name in ("oft", "oft_rotation") if name in group.tensors), None)
    if role is None or "oft_scaled" in group.tensors:  # old diagonals, OneTrainer's scaled rotations
        return opaque(group, "OFT", None)
    tensor = group.tensors[role]
    axes = (3, 4) if role == "oft" else (2,)
    if (
        tensor.dtype not in FLOATS
        or len(tensor.shape) not in axes
        or (role == "oft" and len(set(tensor.shape[-2:])) > 1)
    ):
        expected = "(blocks, b, b), or (stages, blocks, b, b)" if role == "oft" else "(blocks, b (b - 1) / 2)"
        raise group.error(
            "the rotation has an unknown shape", role, expected=f"floats of shape {expected}",
            got=f"{tensor.dtype} {list(tensor.shape)}",
        )  # fmt: skip
    kind = "BOFT" if len(tensor.shape) == 4 else "OFT"
    on_base = partial(_peft_on_base if role == "oft_rotation" else _on_base, group, kind)
    return replace(opaque(group, kind, None), on_base=on_base)


def _on_base(group: Group, kind: str, weight: Matrix, kernel: tuple[int, ...]) -> Full:
    tensor, out = group.tensors["oft"], weight.shape[0]
    if tensor.shape[-3] * tensor.shape[-1] != out:
        raise _misfit(group, "oft", f"{tensor.shape[-3]} blocks of {tensor.shape[-1]}", f"{out} outputs")
    # LyCORIS and kohya register the constraint as alpha and multiply it by the outputs.
    limit = read_scalar(group, "alpha") * out if "alpha" in group.tensors else 0.0
    rescale = group.tensors.get("oft_rescale")
    if rescale is not None and rescale.shape[:1] != (out,):
        raise _misfit(group, "oft_rescale", f"{list(rescale.shape)}", f"{out} outputs")

    def change(W: Array) -> Array:
        R = cayley(skew(tensor.read().astype(np.float64), limit))
        gains = None if rescale is None else rescale.read().astype(np.float64)
        return boft.butterfly(W, R, gains) if R.ndim == 4 else turned_outputs(W, R, gains)

    return _full(group, kind, change, weight, kernel)


def _peft_on_base(group: Group, kind: str, weight: Matrix, kernel: tuple[int, ...]) -> Full:
    tensor, width = group.tensors["oft_rotation"], weight.shape[1]
    config: Mapping[str, Any] = group.config or {}
    count, elements = tensor.shape
    block = (1 + isqrt(1 + 8 * elements)) // 2
    repeats = width // block if config.get("block_share") else 1
    if block * (block - 1) // 2 != elements or count * repeats * block != width:
        raise _misfit(group, "oft_rotation", f"{count} blocks of {block}", f"{width} inputs")

    def change(W: Array) -> Array:
        rows, columns = np.triu_indices(block, 1)
        Q = np.zeros((count, block, block))
        Q[:, rows, columns] = tensor.read().astype(np.float64)
        Q = Q - np.swapaxes(Q, 1, 2)
        if config.get("coft"):
            Q = _constrained(Q, float(config.get("eps", 6e-5)))
        if config.get("use_cayley_neumann", True):
            R = neumann(Q, int(config.get("num_cayley_neumann_terms", 5)))
        else:
            R = cayley(-Q)
        return turned_inputs(W, np.tile(R, (repeats, 1, 1)))

    return _full(group, kind, change, weight, kernel)


def _constrained(Q: Array, eps: float) -> Array:
    """PEFT's constrained OFT: no block's norm above ``eps / sqrt(blocks)``."""
    limit = eps / sqrt(Q.shape[0])
    norms = np.linalg.norm(Q, axis=(1, 2), keepdims=True)
    return np.where(norms <= limit, Q, limit * Q / np.where(norms > 0, norms, 1.0))


def _full(group: Group, kind: str, change: Callable[[Array], Array], weight: Matrix, kernel: tuple[int, ...]) -> Full:
    return Full(Changed(weight, change, tuple(t.key for t in group.tensors.values()), weight.shape), kernel, kind)


def _misfit(group: Group, role: str, got: str, expected: str) -> Exception:
    return group.error(
        "the rotation does not fit the base weight", role, expected=expected, got=got,
        hint="Is this the base model that the adapter was trained on?",
    )  # fmt: skip


MARKS = frozenset({"oft", "oft_diag", "oft_rescale", "oft_rotation", "oft_scaled"})
KINDS = (Kind("OFT", MARKS, size, read, priority=2, fate="fused with `--base`, else carried along"),)
