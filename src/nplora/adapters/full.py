"""Full updates: ``diff`` holds dW itself; no alpha applies to it."""

from __future__ import annotations

from ..storage import FLOATS
from . import Factor, Full, Group, Kind, Update


def size(group: Group) -> tuple[int, int] | None:
    tensor = group.tensors["diff"]
    if not tensor.shape or tensor.dtype not in FLOATS:
        raise group.error(
            "a delta must be an array of floats",
            "diff",
            expected="one axis or more",
            got=f"{tensor.dtype} {list(tensor.shape)}",
        )
    return Factor(tensor).shape


def read(group: Group, scale: float, scale_from: str) -> Update:
    diff = group.tensors["diff"]
    return Full(Factor(diff), tuple(diff.shape[2:]))


KINDS = (Kind("full", frozenset({"diff"}), size, read),)
