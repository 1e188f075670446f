"""DoRA: a magnitude beside a LoRA, LoHa or LoKr, ``W' = m V / ||V||`` with ``V = W + dV`` and dV the kind's own update.

The magnitude holds one number for each output row (PEFT's ``lora_magnitude_vector``, LyCORIS' ``wd_on_output``) or for
each input channel (older LyCORIS, OneTrainer's default): ``dora_scale`` is (out, 1) or (1, in). Norms are of V, as the
trainers have it; ComfyUI divides by ``||W||`` on the output axis. The exact update ``W' - W`` has full rank:
``(D - I) W + D dV`` with D diagonal.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS
from . import Changed, Full, Group, Kind, LowRank, Matrix, Opaque, Update, kind_of, lora, opaque


def rescaled(
    W: NDArray[np.float64], dV: NDArray[np.float64], magnitude: NDArray[np.float64], per_output: bool
) -> NDArray[np.float64]:
    """``m V / ||V|| - W`` with ``V = W + dV``.

    Args:
        W, dV: (out, in*kernel), float64.
        magnitude: (out,), or (in,) where it goes by input channel (its norm runs over outputs and kernel).

    Returns:
        The update (out, in*kernel). A row or channel of V that is zero stays zero, as no direction can be given to it.
    """
    V = W + dV
    grouped = V.reshape(V.shape[0], -1) if per_output else V.reshape(V.shape[0], magnitude.size, -1)
    axes = 1 if per_output else (0, 2)
    norms = np.sqrt(np.sum(grouped * grouped, axis=axes, keepdims=True))
    factors = magnitude.reshape(norms.shape) / np.where(norms > 0, norms, 1.0)
    return np.asarray((grouped * factors).reshape(V.shape) - W)


def _inner(group: Group) -> tuple[Kind | None, Group]:
    """The kind that the magnitude stands beside, and its tensors."""
    without = replace(group, tensors={role: tensor for role, tensor in group.tensors.items() if role != "dora"})
    return kind_of(without), without


def size(group: Group) -> tuple[int, int] | None:
    kind, without = _inner(group)
    if kind is None or (kind.name == "LoRA" and not {"up", "down"} <= group.tensors.keys()):
        return None
    return kind.size(without)


def alpha_rank(group: Group) -> int | None:
    kind, without = _inner(group)
    return lora.alpha_rank(group) if kind is None else kind.alpha_rank(without)


def read(group: Group, scale: float, scale_from: str) -> Update:
    kind, without = _inner(group)
    shape = size(group)
    if kind is None or shape is None:
        return opaque(group, "DoRA", None)
    inner = kind.read(without, scale, scale_from)
    if isinstance(inner, Opaque):
        return opaque(group, "DoRA", shape)
    inner = replace(inner, kind="DoRA direction")
    per_output = _per_output(group, shape)
    return replace(
        opaque(group, "DoRA", shape), on_base=partial(_on_base, group, inner, per_output), rest=inner, rank=inner.rank
    )


def _per_output(group: Group, shape: tuple[int, int]) -> bool:
    """Which axis the magnitude goes by: its first axis is the outputs, or it is PEFT's, which knows no other."""
    tensor = group.tensors["dora"]
    count, (out, width) = prod(tensor.shape), shape
    peft = group.suffixes["dora"] != ".dora_scale"
    per_output = peft or (bool(tensor.shape) and tensor.shape[0] == out)
    fits = count == out if per_output else count > 0 and width % count == 0
    if tensor.dtype not in FLOATS or not fits:
        raise group.error(
            "the magnitude does not fit the module", "dora",
            expected=f"floats of shape ({out}, 1)" + ("" if peft else f" or (1, {width})"),
            got=f"{tensor.dtype} {list(tensor.shape)}",
        )  # fmt: skip
    return per_output


def _on_base(group: Group, inner: LowRank | Full, per_output: bool, weight: Matrix, kernel: tuple[int, ...]) -> Full:
    magnitude = group.tensors["dora"]

    def change(W: NDArray[np.float64]) -> NDArray[np.float64]:
        numbers = magnitude.read().astype(np.float64).reshape(-1)
        return rescaled(W, inner.delta(), numbers, per_output)

    keys = (*inner.keys, magnitude.key)
    around = inner if isinstance(inner, LowRank) else None
    return Full(Changed(weight, change, keys, inner.size), kernel, "DoRA", around=around)


FATE = "fused with `--base`; without it carried along, or its direction alone with `--dora ignore`"
KINDS = (Kind("DoRA", frozenset({"dora"}), size, read, priority=3, alpha_rank=alpha_rank, fate=FATE),)
