"""LoKr: ``dW = kron(w1, w2)``. Recognised and carried along; its exact factors are still to come."""

from __future__ import annotations

from math import prod

from . import Group, Kind, Update, opaque


def size(group: Group) -> tuple[int, int] | None:
    """(a*b, c*d*kernel) of w1 (a, c) and w2 (b, d, ...)."""
    if "lokr_t2" in group.tensors:
        return None
    sides = []
    for name in ("lokr_w1", "lokr_w2"):
        whole, a, b = (group.tensors.get(name + suffix) for suffix in ("", "_a", "_b"))
        if whole is not None:
            sides.append((whole.shape[0], prod(whole.shape[1:])))
        elif a is not None and b is not None:
            sides.append((a.shape[0], prod(b.shape[1:])))
        else:
            return None
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


def read(group: Group, scale: float, scale_from: str) -> Update:
    return opaque(group, "LoKr", size(group))


MARKS = frozenset(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2"))
KINDS = (Kind("LoKr", MARKS, size, read, priority=2),)
