"""LoHa: ``dW = scale * (w1_a w1_b) * (w2_a w2_b)`` elementwise, as exact low-rank factors.

The Hadamard product of two low-rank matrices is low-rank: with the row-wise Khatri-Rao product
``B[o,(i,j)] = w1_a[o,i] w2_a[o,j]`` and ``A[(i,j),n] = w1_b[i,n] w2_b[j,n]`` it is ``B A``, rank r1 * r2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS, Tensor, wider
from . import Group, Kind, LowRank, Update

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")


@dataclass(frozen=True, slots=True)
class KhatriRao:
    """Products of every pair of ranks: rows (i, j) are ``one[i] * two[j]``; ``up`` gives the transposed factor.

    A product of two 16-bit numbers fits float32 exactly. With cores (Tucker LoHa) the downs are contracted first.
    """

    one: Tensor
    two: Tensor
    cores: tuple[Tensor, Tensor] | None = None
    up: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        if self.up:
            (out, first), (_, second) = (_up_shape(tensor, self.cores is not None) for tensor in (self.one, self.two))
            return out, first * second
        if self.cores is None:
            return self.one.shape[0] * self.two.shape[0], prod(self.one.shape[1:])
        first, second = (core.shape[0] for core in self.cores)
        return first * second, prod(self.one.shape[1:]) * prod(self.cores[0].shape[2:])

    @property
    def dtype(self) -> str:
        return wider([self.one.dtype, self.two.dtype, "F32"])

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(tensor.key for tensor in (self.one, self.two, *(self.cores or ())))

    def read(self) -> NDArray[Any]:
        if self.up:
            one, two = self._up(self.one), self._up(self.two)
            return (one[:, :, None] * two[:, None, :]).reshape(self.shape)
        one, two = (self._down(index) for index in (0, 1))
        return (one[:, None, :] * two[None, :, :]).reshape(self.shape)

    def _up(self, tensor: Tensor) -> NDArray[np.float64]:
        matrix = tensor.read().astype(np.float64).reshape(tensor.shape[0], -1)
        return matrix.T if self.cores else matrix  # Tucker files store the outer factors transposed

    def _down(self, index: int) -> NDArray[np.float64]:
        tensor = (self.one, self.two)[index]
        down = tensor.read().astype(np.float64).reshape(tensor.shape[0], -1)
        if self.cores is None:
            return down
        core = self.cores[index].read().astype(np.float64)
        flat = core.reshape(*core.shape[:2], -1)
        contracted: NDArray[np.float64] = np.einsum("ijk,jc->ick", flat, down).reshape(core.shape[0], -1)
        return contracted


def _up_shape(tensor: Tensor, tucker: bool) -> tuple[int, int]:
    """(out, rank) of an outer factor; Tucker files store it transposed."""
    height, width = tensor.shape[0], prod(tensor.shape[1:])
    return (width, height) if tucker else (height, width)


def _matrices(group: Group) -> tuple[KhatriRao, KhatriRao]:
    cores_stored = not group.tensors.keys().isdisjoint(CORES)
    for name in (*NAMES, *(CORES if cores_stored else ())):
        tensor = group.tensors.get(name)
        if tensor is None or len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            present = next(role for role in group.tensors if role in MARKS)
            raise group.error(
                "the LoHa module is incomplete", present, expected=f"a float matrix {name} beside it",
                hint="The file was saved incompletely: get the original.",
            )  # fmt: skip
    w1_a, w1_b, w2_a, w2_b = (group.tensors[name] for name in NAMES)
    cores = (group.tensors["hada_t1"], group.tensors["hada_t2"]) if cores_stored else None
    _require_fit(group, cores)
    return KhatriRao(w1_a, w2_a, cores, up=True), KhatriRao(w1_b, w2_b, cores)


def _require_fit(group: Group, cores: tuple[Tensor, Tensor] | None) -> None:
    """Each pair must be a product, and both products must have one shape."""
    outs, widths = [], []
    for index, side in enumerate(("w1", "w2")):
        b = group.tensors[f"hada_{side}_b"]
        out, rank = _up_shape(group.tensors[f"hada_{side}_a"], cores is not None)
        inner = (rank, b.shape[0])
        if inner != (cores[index].shape[:2] if cores else (b.shape[0], b.shape[0])):
            expected = f"ranks {cores[index].shape[:2]}" if cores else f"rank {rank}"
            got = f"ranks {inner}" if cores else f"rank {b.shape[0]}"
            raise group.error("the LoHa factors do not fit each other", f"hada_{side}_b", expected=expected, got=got)
        outs.append(out)
        widths.append((prod(b.shape[1:]), b.shape[2:] if cores is None else cores[index].shape[2:]))
    if outs[0] != outs[1] or widths[0] != widths[1]:
        raise group.error(
            "the LoHa factors do not fit each other", "hada_w2_b",
            expected=f"({outs[0]}, {widths[0][0]}) as hada_w1", got=f"({outs[1]}, {widths[1][0]})",
        )  # fmt: skip


def size(group: Group) -> tuple[int, int] | None:
    a, b, core = (group.tensors.get(name) for name in ("hada_w1_a", "hada_w1_b", "hada_t1"))
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    out, _ = _up_shape(a, core is not None)
    return out, prod(b.shape[1:]) * (prod(core.shape[2:]) if core is not None else 1)


def alpha_rank(group: Group) -> int | None:
    """What alpha is divided by: the rows of ``w1_b``."""
    tensor = group.tensors.get("hada_w1_b")
    return tensor.shape[0] if tensor is not None and tensor.shape else None


def read(group: Group, scale: float, scale_from: str) -> Update:
    up, down = _matrices(group)
    core, plain = group.tensors.get("hada_t1"), group.tensors["hada_w1_b"]
    kernel = tuple(core.shape[2:]) if core is not None else tuple(plain.shape[2:])
    return LowRank(up, down, scale, scale_from, kernel, kind="LoHa")


MARKS = frozenset((*NAMES, *CORES))
KINDS = (Kind("LoHa", MARKS, size, read, priority=2, alpha_rank=alpha_rank),)
