"""GLoRA: ``dW = scale * (W a1 a2 + b1 b2)``: exact low-rank factors ``[W a1 | b1] [a2; b2]`` once W is there.

Only the a half needs the base weight. Where it is zero (a fresh or pruned module) the b half alone is the update, a
plain LoRA. Old LyCORIS files hold the transposed halves, ``b2 b1 + W a2 a1``; shapes tell them apart, as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..storage import FLOATS, wider
from . import Factor, Group, Kind, LowRank, Matrix, Update, opaque, wide

NAMES = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")


@dataclass(frozen=True, slots=True)
class Halves:
    """``a`` = (in, r), (r, in) and ``b`` = (out, r), (r, in*kernel), whichever names the file gives them."""

    a_left: Factor
    a_right: Factor
    b_left: Factor
    b_right: Factor

    @property
    def fit(self) -> bool:
        """Whether all have one rank, and a and b the same inputs."""
        ranks = {self.a_left.shape[1], self.a_right.shape[0], self.b_left.shape[1], self.b_right.shape[0]}
        width = self.a_left.shape[0]
        return len(ranks) == 1 and width == self.a_right.shape[1] and self.b_right.shape[1] % max(width, 1) == 0

    @property
    def dtype(self) -> str:
        return wider([*(m.dtype for m in (self.a_left, self.a_right, self.b_left, self.b_right)), "F32"])


@dataclass(frozen=True, slots=True)
class Joined:
    """A factor of both halves together, made when it is read."""

    shape: tuple[int, int]
    dtype: str
    keys: tuple[str, ...]
    make: Callable[[], NDArray[np.float64]]

    def read(self) -> NDArray[np.float64]:
        return self.make()


def joined(
    W: NDArray[np.float64], a_left: NDArray[np.float64], b_left: NDArray[np.float64], kernel: int
) -> NDArray[np.float64]:
    """``[W a1 | b1]``: (out, r*kernel + r) from W (out, in*kernel), a1 (in, r), b1 (out, r)."""
    spatial = W.reshape(W.shape[0], -1, kernel)
    return np.hstack([np.einsum("oik,ij->ojk", spatial, a_left).reshape(W.shape[0], -1), b_left])


def _halves(group: Group) -> Halves:
    missing = next((name for name in NAMES if name not in group.tensors), None)
    if missing or any(len(group.tensors[name].shape) < 2 or group.tensors[name].dtype not in FLOATS for name in NAMES):
        raise group.error(
            "the GLoRA module is incomplete", next(name for name in (*NAMES, "glora_bm") if name in group.tensors),
            expected="a1, a2, b1 and b2 of floats", hint="The file was saved incompletely: get the original.",
        )  # fmt: skip
    a1, a2, b1, b2 = (Factor(group.tensors[name]) for name in NAMES)
    fitting = [halves for halves in (Halves(a1, a2, b1, b2), Halves(a2, a1, b2, b1)) if halves.fit]
    if fitting:  # on a square weight both do, and the smaller rank is the rank
        return min(fitting, key=lambda halves: halves.a_right.shape[0])
    raise group.error(
        "the GLoRA halves do not fit each other", "glora_a1", expected="(in, r), (r, in), (out, r), (r, in)",
        got=", ".join(str(factor.shape) for factor in (a1, a2, b1, b2)),
    )  # fmt: skip


def _expandable(group: Group) -> bool:
    return "glora_bm" not in group.tensors and all(name in group.tensors for name in NAMES)


def size(group: Group) -> tuple[int, int] | None:
    if not _expandable(group):
        return None
    halves = _halves(group)
    return halves.b_left.shape[0], halves.b_right.shape[1]


def alpha_rank(group: Group) -> int | None:
    """What alpha is divided by: the rank of both halves."""
    return _halves(group).a_right.shape[0] if _expandable(group) else None


def read(group: Group, scale: float, scale_from: str) -> Update:
    if not _expandable(group):  # LyCORIS writes the Tucker core bm for no kernel it needs one for
        return opaque(group, "GLoRA", None)
    halves = _halves(group)
    kernel = tuple(halves.b_right.tensor.shape[2:])
    plain = LowRank(halves.b_left, halves.b_right, scale, scale_from, kernel, kind="GLoRA")

    def alone() -> LowRank | None:
        return plain if not (np.any(wide(halves.a_left)) and np.any(wide(halves.a_right))) else None

    return replace(
        opaque(group, "GLoRA", plain.size), on_base=partial(_on_base, halves, scale, scale_from), alone=alone,
        rest=plain, rank=2 * plain.rank,
    )  # fmt: skip


def _on_base(halves: Halves, scale: float, scale_from: str, weight: Matrix, kernel: tuple[int, ...]) -> LowRank:
    out, width = weight.shape
    spatial = width // halves.a_left.shape[0]  # places of the kernel
    rank = halves.a_right.shape[0]

    def up() -> NDArray[np.float64]:
        return joined(wide(weight), wide(halves.a_left), wide(halves.b_left), spatial)

    def down() -> NDArray[np.float64]:
        return np.vstack([np.kron(wide(halves.a_right), np.eye(spatial)), wide(halves.b_right)])

    total = rank * spatial + rank
    return LowRank(
        Joined((out, total), halves.dtype, halves.a_left.keys + halves.b_left.keys, up),
        Joined((total, width), halves.dtype, halves.a_right.keys + halves.b_right.keys, down),
        scale, scale_from, kernel, kind="GLoRA",
    )  # fmt: skip


FATE = "fused with `--base`, and without it where the half that multiplies the base is zero; else carried along"
KINDS = (Kind("GLoRA", frozenset((*NAMES, "glora_bm")), size, read, priority=2, alpha_rank=alpha_rank, fate=FATE),)
