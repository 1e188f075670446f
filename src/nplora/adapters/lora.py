"""LoRA and LoCon: ``dW = scale * B A``, for linear layers and convolutions of any kernel."""

from __future__ import annotations

from math import prod

from ..errors import InputError
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
    tensors = group.tensors
    transposed = "down_transposed" in tensors or "up_transposed" in tensors
    names = ("up_transposed", "down_transposed") if transposed else ("up", "down")
    for role in names:
        tensor = tensors.get(role)
        if tensor is None or len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            raise _unusable(group, role, names)
    up, down = Factor(tensors[names[0]], transposed=transposed), Factor(tensors[names[1]], transposed=transposed)
    rank = down.shape[0]
    if up.shape[1] != rank:
        kernel = prod(up.tensor.shape[2:])
        if not transposed and kernel > 1:
            raise group.error(
                "the up factor has a kernel", names[0], expected="a 1x1 kernel", got=f"shape {up.tensor.shape}"
            )
        raise group.error(
            "the two factors differ in rank", names[1], expected=f"rank {up.shape[1]} as in {up.tensor.key}",
            got=f"rank {rank}", hint="The file is damaged or badly converted: get the original.",
        )  # fmt: skip
    if rank == 0:
        raise group.error(
            "the rank is 0", names[1], expected="rank 1 or more", hint="The module is empty: get the original."
        )
    return up, down


def alpha_rank(group: Group) -> int | None:
    """What alpha is divided by: the rows of the down factor."""
    for role, axis in (("down", 0), ("down_transposed", 1)):
        if role in group.tensors and len(group.tensors[role].shape) > axis:
            return group.tensors[role].shape[axis]
    return None


def _unusable(group: Group, role: str, names: tuple[str, str]) -> InputError:
    tensor = group.tensors.get(role)
    if tensor is None:
        other = names[0] if role == names[1] else names[1]
        return group.error(
            "half of the module is missing", other, expected=f"its {role.removesuffix('_transposed')} factor beside it",
            hint="The file was saved incompletely: get the original.",
        )  # fmt: skip
    return group.error(
        "a factor must be a float matrix or convolution", role, expected="two axes or more of floats",
        got=f"{tensor.dtype} {list(tensor.shape)}",
    )  # fmt: skip


def read(group: Group, scale: float, scale_from: str) -> Update:
    up, down = factors(group)
    kernel = () if down.transposed else tuple(down.tensor.shape[2:])
    return LowRank(up, down, scale, scale_from, kernel)


KINDS = (
    Kind("LoRA", frozenset({"up", "down", "up_transposed", "down_transposed"}), size, read, alpha_rank=alpha_rank),
)
