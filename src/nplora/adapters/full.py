"""Full updates: ``diff`` holds dW itself; no alpha applies to it."""

from __future__ import annotations

from . import Factor, Full, Group, Kind, Update


def size(group: Group) -> tuple[int, int] | None:
    return Factor(group.tensors["diff"]).shape


def read(group: Group, scale: float, scale_from: str) -> Update:
    diff = group.tensors["diff"]
    return Full(Factor(diff), tuple(diff.shape[2:]))


KINDS = (Kind("full", frozenset({"diff"}), size, read),)
