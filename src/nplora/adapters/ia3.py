"""IA3: one trained number for each row or input channel of the weight; the update is the base weight itself, rescaled.

LyCORIS stores ``w`` with ``W' = (1 + w) W`` (beside ``.on_input``), PEFT stores ``l`` with ``W' = l W``. Nothing of it
can be said without W, and the update has full rank. PEFT's output-side vectors also scale the layer's bias, which
a file of weight updates cannot say.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS
from . import Changed, Full, Group, Kind, Matrix, Update, opaque, read_scalar


def scaled(W: NDArray[np.float64], gains: NDArray[np.float64], on_input: bool) -> NDArray[np.float64]:
    """``gains * W`` for W (out, in*kernel): by output row (out,), or by input channel (in,)."""
    if on_input:
        return np.asarray((W.reshape(W.shape[0], gains.size, -1) * gains[None, :, None]).reshape(W.shape))
    return np.asarray(W * gains[:, None])


def size(group: Group) -> tuple[int, int] | None:
    return None  # one side only is known


def read(group: Group, scale: float, scale_from: str) -> Update:
    role = next((name for name in ("ia3", "ia3_weight") if name in group.tensors), None)
    if role is None:
        return opaque(group, "IA3", None)
    tensor = group.tensors[role]
    if tensor.dtype not in FLOATS or prod(tensor.shape) != max(tensor.shape, default=0):
        raise group.error(
            "an IA3 module holds one vector of floats", role, expected="(out,) or (in,)",
            got=f"{tensor.dtype} {list(tensor.shape)}",
        )  # fmt: skip
    return replace(opaque(group, "IA3", None), on_base=partial(_on_base, group, role))


def _on_base(group: Group, role: str, weight: Matrix, kernel: tuple[int, ...]) -> Full:
    tensor, (out, width) = group.tensors[role], weight.shape
    channels = width // prod(kernel)
    on_input = _on_input(group, role, out, channels)
    count = prod(tensor.shape)
    if count != (channels if on_input else out):
        raise group.error(
            "the IA3 vector does not fit the base weight", role,
            expected=f"{channels if on_input else out} numbers for {out}x{channels}", got=count,
            hint="Is this the base model that the adapter was trained on?",
        )  # fmt: skip
    identity = 1.0 if role == "ia3" else 0.0

    def change(W: NDArray[np.float64]) -> NDArray[np.float64]:
        return scaled(W, tensor.read().astype(np.float64).reshape(-1) - identity, on_input)

    return Full(Changed(weight, change, tuple(t.key for t in group.tensors.values()), weight.shape), kernel, "IA3")


def _on_input(group: Group, role: str, out: int, channels: int) -> bool:
    """Which side the vector goes by: LyCORIS says so; PEFT's is (out, 1) or (1, in), on a convolution (1, n, 1, 1)."""
    if role == "ia3_weight":
        return bool(read_scalar(group, "ia3_on_input"))
    shape = group.tensors[role].shape
    if len(shape) == 2:
        return shape[0] == 1 and not (shape[1] == 1 and out == 1)
    if out == channels:
        raise group.error(
            "an IA3 vector of a square convolution does not say which side it scales", role,
            hint="Merge it with PEFT, which knows its feedforward_modules.",
        )  # fmt: skip
    return prod(shape) == channels


KINDS = (
    Kind(
        "IA3",
        frozenset({"ia3_on_input", "ia3"}),
        size,
        read,
        priority=2,
        fate="fused with `--base`, else carried along",
    ),
)
