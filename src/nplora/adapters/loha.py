"""LoHa: ``dW = (w1_a w1_b) * (w2_a w2_b)``. Recognised and carried along; its exact factors are still to come."""

from __future__ import annotations

from math import prod

from . import Group, Kind, Update, opaque


def size(group: Group) -> tuple[int, int] | None:
    a, b = group.tensors.get("hada_w1_a"), group.tensors.get("hada_w1_b")
    if a is None or b is None or "hada_t1" in group.tensors:
        return None
    return a.shape[0], prod(b.shape[1:])


def read(group: Group, scale: float, scale_from: str) -> Update:
    return opaque(group, "LoHa", size(group))


MARKS = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"})
KINDS = (Kind("LoHa", MARKS, size, read, priority=2),)
