"""LoKr: ``dW = scale * kron(w1, w2)``, as exact low-rank factors.

With ``w1 = U1 V1`` and ``w2 = U2 V2`` the factors are ``kron(U1, U2)`` and ``kron(V1, V2)``. A full side needs no
decomposition: the identity stands in for its shorter factor, so every number stays as it was stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS, Tensor, wider
from . import Full, Group, Kind, LowRank, Update


@dataclass(frozen=True, slots=True)
class Side:
    """One Kronecker side as a product: stored whole, or as two factors (with a core for Tucker convolutions)."""

    whole: Tensor | None
    a: Tensor | None
    b: Tensor | None
    core: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in (self.whole, self.a, self.b, self.core) if tensor is not None)

    @property
    def shape(self) -> tuple[int, int]:
        if self.whole is not None:
            return self.whole.shape[0], prod(self.whole.shape[1:])
        assert self.a is not None
        assert self.b is not None
        if self.core is not None:
            return prod(self.a.shape[1:]), prod(self.b.shape[1:]) * prod(self.core.shape[2:])
        return self.a.shape[0], prod(self.b.shape[1:])

    @property
    def rank(self) -> int:
        if self.whole is not None:
            return min(self.shape)
        assert self.b is not None
        return self.core.shape[0] if self.core is not None else self.b.shape[0]

    def left(self) -> NDArray[np.float64]:
        if self.whole is None:
            assert self.a is not None
            return _flat(self.a).T if self.core is not None else _flat(self.a)
        return np.eye(self.shape[0]) if self._wide else _flat(self.whole)

    def right(self) -> NDArray[np.float64]:
        if self.whole is None:
            assert self.b is not None
            down = _flat(self.b)
            if self.core is None:
                return down
            core = self.core.read().astype(np.float64)
            flat = core.reshape(*core.shape[:2], -1)
            contracted: NDArray[np.float64] = np.einsum("ijk,jc->ick", flat, down).reshape(core.shape[0], -1)
            return contracted
        return _flat(self.whole) if self._wide else np.eye(self.shape[1])

    @property
    def _wide(self) -> bool:
        return self.shape[0] <= self.shape[1]


def _flat(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.read().astype(np.float64).reshape(tensor.shape[0], -1)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """``kron`` of the left or the right factors of both sides, or (``what`` "both") of the sides themselves."""

    one: Side
    two: Side
    what: str
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        rank = self.one.rank * self.two.rank
        out, width = (self.one.shape[axis] * self.two.shape[axis] for axis in (0, 1))
        return {"left": (out, rank), "right": (rank, width), "both": (out, width)}[self.what]

    @property
    def dtype(self) -> str:
        return wider([*(tensor.dtype for tensor in (*self.one.tensors, *self.two.tensors)), "F32"])

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(tensor.key for tensor in (*self.one.tensors, *self.two.tensors))

    def read(self) -> NDArray[Any]:
        if self.what == "left":
            return np.kron(self.one.left(), self.two.left())
        if self.what == "right":
            return np.kron(self.one.right(), self.two.right())
        one, two = (side.left() @ side.right() for side in (self.one, self.two))
        return self.scale * np.kron(one, two)


def _sides(group: Group) -> tuple[Side, Side]:
    one, two = (_side(group, name) for name in ("lokr_w1", "lokr_w2"))
    return one, two


def _side(group: Group, name: str) -> Side:
    whole, a, b = (group.tensors.get(name + suffix) for suffix in ("", "_a", "_b"))
    core = group.tensors.get("lokr_t2") if name == "lokr_w2" else None
    side = Side(whole, None, None) if whole is not None else Side(None, a, b, core)
    incomplete = whole is None and (a is None or b is None)
    if incomplete or any(len(tensor.shape) < 2 or tensor.dtype not in FLOATS for tensor in side.tensors):
        raise group.error(
            "the LoKr module is incomplete", next(role for role in group.tensors if role in MARKS),
            expected=f"{name}, or {name}_a and {name}_b, of floats",
            hint="The file was saved incompletely: get the original.",
        )  # fmt: skip
    if side.a is not None and side.b is not None:
        inner = (side.a.shape[0] if core else prod(side.a.shape[1:]), side.b.shape[0])
        expected = core.shape[:2] if core else (inner[0], inner[0])
        if inner != expected:
            raise group.error(
                "the LoKr factors do not fit each other",
                name + "_b",
                expected=f"ranks {expected}",
                got=f"ranks {inner}",
            )
    return side


def size(group: Group) -> tuple[int, int] | None:
    one, two = _sides(group)
    return one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]


def alpha_rank(group: Group) -> int | None:
    """What alpha is divided by: the rows of ``w2_b``, else of ``w1_b``; None (scale 1) where both are full."""
    for side in ("lokr_w2", "lokr_w1"):
        factor = group.tensors.get(side + "_b")
        if side not in group.tensors and factor is not None and factor.shape:
            return factor.shape[0]
    return None


def _kernel(group: Group) -> tuple[int, ...]:
    for name in ("lokr_w2", "lokr_t2", "lokr_w2_b"):  # whole, the core of factors, factors that keep the kernel
        if name in group.tensors:
            return tuple(group.tensors[name].shape[2:])
    return ()


def read(group: Group, scale: float, scale_from: str) -> Update:
    one, two = _sides(group)
    if one.whole is not None and two.whole is not None:  # usually of full rank: kept full
        return Full(Kronecker(one, two, "both", scale), _kernel(group), kind="LoKr")
    return LowRank(
        Kronecker(one, two, "left"), Kronecker(one, two, "right"), scale, scale_from, _kernel(group), kind="LoKr"
    )


MARKS = frozenset(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2"))
KINDS = (Kind("LoKr", MARKS, size, read, priority=2, alpha_rank=alpha_rank),)
