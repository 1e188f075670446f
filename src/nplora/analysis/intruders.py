"""Intruder dimensions: leading directions of a tuned weight that resemble none of the base's (arXiv 2410.21228).

A singular vector ``y_j`` of ``W_0 + dW``, among the k leading ones, is an intruder where
``max_i |cos(y_j, x_i)| < eps`` over *all* singular vectors ``x_i`` of ``W_0``; the paper takes k = 10, eps = 0.5. The
vectors are those of the weight's smaller side (left ones where out <= in), because only they are a complete basis.

This is the one place that forms a whole weight: the definition speaks of W_0 itself. One module at a time for each
core, and only the tensors of the base that the adapter changes are read. Directions come from Gram matrices in
float64, which tell directions of the base apart down to 1e-7 of its largest singular value. Where neighbouring
singular values are equal their directions are anybody's; `gap` tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank
from ..errors import InputError
from ..fusion.projection import read_stack
from ..layouts import Part
from ..reading.adapter import Adapter, Module
from ..reading.base import BaseModel
from ..threads import run_threads
from .blocks import model_order
from .spectra import FLOAT64

Array = NDArray[Any]
LEADING = 10  # directions looked at in each weight
THRESHOLD = 0.5  # cosine below which one is an intruder


@dataclass(frozen=True, slots=True)
class Likeness:
    """The leading directions of a tuned weight against those of the base, the strongest first.

    ``cosines`` (k,): the largest absolute cosine with any direction of the base; ``values`` (k,): their singular
    values; ``side``: "output" (left vectors) or "input" (right vectors); ``gap``: the smallest relative distance
    between neighbouring singular values.
    """

    cosines: Array
    values: Array
    side: str
    gap: float

    def intruders(self, threshold: float = THRESHOLD) -> int:
        """How many of them are intruders."""
        return int(np.sum(self.cosines < threshold))

    def energy(self, threshold: float = THRESHOLD) -> float:
        """The intruders' share of the energy of these directions."""
        whole = float(np.sum(self.values**2))
        return float(np.sum(self.values[self.cosines < threshold] ** 2)) / whole if whole > 0 else 0.0


def likeness(W_0: Array, W: Array, leading: int = LEADING) -> Likeness:
    """Compare the leading directions of a tuned weight with all directions of the base.

    Args:
        W_0, W: the base and the tuned weight, (out, n); float64.
        leading: how many directions to look at.

    >>> likeness(np.diag([3.0, 2.0, 1.0]), np.diag([3.0, 2.0, 1.0])).intruders()
    0
    """
    left = W_0.shape[0] <= W_0.shape[1]
    base, tuned = (M @ M.T if left else M.T @ M for M in (W_0, W))
    X = np.linalg.eigh(base)[1]
    squares, Y = np.linalg.eigh(tuned)
    k = min(leading, len(squares))
    values = np.sqrt(np.maximum(squares[::-1][: k + 1], 0.0))
    cosines = np.max(np.abs(X.T @ Y[:, ::-1][:, :k]), axis=0)
    steps = -np.diff(values)
    gap = float(np.min(steps) / values[0]) if len(steps) and values[0] > 0 else 0.0
    return Likeness(np.minimum(cosines, 1.0), values[:k], "output" if left else "input", gap)


def find_intruders(
    adapter: Adapter,
    base: BaseModel,
    *,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Intruder dimensions of every module that an adapter changes, as plain data ready for JSON.

    Args:
        adapter: from `load`; a fused one like any other.
        base: the model that it was trained on.
        leading: directions looked at in each weight. threshold: the cosine below which one is an intruder.
        progress: called with (modules done, modules in all).

    Returns:
        The total of intruders ``of`` so many directions, their share of the energy, a sentence; and each module's
        count, cosines, energy and gap. ``missing`` names modules that the base does not hold or whose kind is not
        known as a matrix.

    Raises:
        InputError: the base holds none of the adapter's modules, or one of another shape.
    """
    listed = sorted(adapter.modules.values(), key=lambda module: model_order(module.name))
    known = [module for module in listed if isinstance(module.update, LowRank | Full)]
    found: dict[str, Likeness] = {}

    def one(module: Module) -> Likeness | None:
        return _of_module(module, adapter, base, leading)

    for done, (module, like) in enumerate(run_threads(one, known, os.cpu_count() or 1), 1):
        if like is not None:
            found[module.name] = like
        if progress:
            progress(done, len(known))
    if not found:
        raise InputError(
            "the base model holds none of the adapter's modules", file=base.path,
            expected=f"weights such as {listed[0].name}" if listed else None,
            hint="Name the model that the adapter was trained on: a checkpoint, or a diffusers folder.",
        )  # fmt: skip
    rows = [_row(name, found[name], threshold) for name in (module.name for module in listed) if name in found]
    count, of = sum(row["intruders"] for row in rows), sum(len(row["cosines"]) for row in rows)
    energies = [float(np.sum(like.values**2)) for like in found.values()]
    inside = [like.energy(threshold) * energy for like, energy in zip(found.values(), energies, strict=True)]
    share = sum(inside) / sum(energies) if sum(energies) else 0.0
    return {
        "base": base.name, "leading": leading, "threshold": threshold, "intruders": count, "of": of,
        "energy": round(share, 6), "sentence": _sentence(count, of, share, threshold), "modules": rows,
        "missing": [module.name for module in listed if module.name not in found],
    }  # fmt: skip


def _of_module(module: Module, adapter: Adapter, base: BaseModel, leading: int) -> Likeness | None:
    component, _, path = module.name.partition(".")
    weight = base.weight(component, Part(path), adapter.layout)
    if weight is None:
        return None
    if weight.matrix.shape != module.update.size:
        shape, own = ("x".join(map(str, size)) for size in (weight.matrix.shape, module.update.size or ()))
        raise InputError(
            "the base model's weight has another shape than the adapter's update", file=base.path,
            key=weight.matrix.keys[0], expected=own, got=shape,
            hint="Use the base model that the adapter was trained on.",
        )  # fmt: skip
    W_0 = read_stack([weight.matrix], FLOAT64)[0]
    W = W_0 + np.asarray(module.update.delta()).reshape(W_0.shape)
    return likeness(W_0, W, leading) if np.isfinite(W).all() else None


def _row(name: str, like: Likeness, threshold: float) -> dict[str, Any]:
    return {
        "module": name, "intruders": like.intruders(threshold), "side": like.side,
        "energy": round(like.energy(threshold), 6), "gap": round(like.gap, 6),
        "cosines": [round(float(cosine), 4) for cosine in like.cosines],
    }  # fmt: skip


def _sentence(count: int, of: int, share: float, threshold: float) -> str:
    """What the count means."""
    if not count:
        return f"No intruders: each of the {of} leading directions resembles one of the base (cosine {threshold:g} up)."
    return (
        f"{count} of the {of} leading directions are intruders, with {share:.1%} of their energy: they resemble no "
        f"direction of the base (cosine below {threshold:g}). More of them goes with more of what the base could do "
        "being forgotten; a lower strength has fewer."
    )


def against_parts(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Counts of several adapters side by side, module by module: a fused one against its parts.

    Args:
        found: from `find_intruders`, in the order in which they are shown.
    """
    names: dict[str, list[int | None]] = {}
    for index, one in enumerate(found):
        for row in one["modules"]:
            names.setdefault(row["module"], [None] * len(found))[index] = row["intruders"]
    return [{"module": name, "intruders": counts} for name, counts in names.items()]
