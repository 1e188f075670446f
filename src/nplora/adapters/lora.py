"""LoRA and LoCon: ``dW = scale * B A``, for linear layers and convolutions of any kernel."""

from __future__ import annotations

from math import prod

from ..storage import FLOATS
from . import Factor, Group, Kind, LowRank, Update


def size(group: Group) -> tuple[int, int] | None:
    up, down = factors(group)
    return up.shape[0], down.shape[1]


def factors(group: Group) -> tuple[Factor, Factor]:
    """Up (out, r) and down (r, in*kernel) of a module, checked against each other.

    Raises:
        InputError: a factor is missing, is no matrix, or the ranks differ.
    """
    transposed = "down_transposed" in group.tensors or "up_transposed" in group.tensors
    names = ("up_transposed", "down_transposed") if transposed else ("up", "down")
    for role, other in (names, names[::-1]):
        if role not in group.tensors:
            raise group.error(
                "half of the module is missing", other, expected=f"its {role.removesuffix('_transposed')} factor beside it",
                hint="The file was saved incompletely: get the original.",
            )  # fmt: skip
        tensor = group.tensors[role]
        if len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            raise group.error(
                "a factor must be a float matrix or convolution", role, expected="two axes or more of floats",
                got=f"{tensor.dtype} {list(tensor.shape)}",
            )  # fmt: skip
    up, down = (Factor(group.tensors[role], transposed=transposed) for role in names)
    if up.shape[1] != down.shape[0]:
        kernel = prod(up.tensor.shape[2:])
        if not transposed and kernel > 1:
            raise group.error("the up factor has a kernel", names[0], expected="a 1x1 kernel", got=f"shape {up.tensor.shape}")
        raise group.error(
            "the two factors differ in rank", names[1], expected=f"rank {up.shape[1]} as in {up.tensor.key}",
            got=f"rank {down.shape[0]}", hint="The file is damaged or badly converted: get the original.",
        )  # fmt: skip
    if down.shape[0] == 0:
        raise group.error("the rank is 0", names[1], expected="rank 1 or more", hint="The module is empty: get the original.")
    return up, down


def read(group: Group, scale: float, scale_from: str) -> Update:
    up, down = factors(group)
    kernel = () if down.transposed else tuple(down.tensor.shape[2:])
    return LowRank(up, down, scale, scale_from, kernel)


KINDS = (Kind("LoRA", frozenset({"up", "down", "up_transposed", "down_transposed"}), size, read),)
