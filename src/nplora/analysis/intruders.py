"""Intruder dimensions: leading directions of a tuned weight that resemble none of the base's (arXiv 2410.21228).

A singular vector ``y_j`` of ``W_0 + dW``, among the k leading ones, is an intruder where
``max_i |cos(y_j, x_i)| < eps`` over *all* singular vectors ``x_i`` of ``W_0``; the paper takes k = 10, eps = 0.5. The
vectors are those of the weight's smaller side (left ones where out <= in), because only they are a complete basis.

Directions come from Gram matrices in float64 (`frames`), which tell directions of the base apart down to 1e-7 of its
largest singular value. Where neighbouring singular values are equal their directions are anybody's; `gap` tells. Each
weight is taken apart once, whatever number of adapters is compared with it, one module at a time for each core, and
only the tensors of the base that an adapter changes are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import Full, LowRank, Matrix
from ..errors import InputError
from ..fusion.jobs import read_stack
from ..fusion.overlap import percent
from ..layouts import Part
from ..reading.adapter import Adapter
from ..reading.base import BaseModel
from ..reading.expansion import expand
from ..threads import run_threads
from .blocks import model_order
from .frames import Frame, frame_of, tuned_by_matrix, tuned_by_update
from .spectra import FLOAT64, Array

LEADING = 10  # directions looked at in each weight
THRESHOLD = 0.5  # cosine below which one is an intruder
OTHERS = (0.3, 0.5, 0.7, 0.9)  # thresholds whose totals are told as well


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
    frame = frame_of(W_0)
    return _likeness(frame, *tuned_by_matrix(frame, W, leading + 1), leading)


def _likeness(frame: Frame, squares: Array, cosines: Array, leading: int) -> Likeness:
    values = np.sqrt(np.maximum(squares, 0.0))
    steps = -np.diff(values)
    gap = float(np.min(steps) / values[0]) if len(steps) and values[0] > 0 else 0.0
    largest = np.minimum(np.max(np.abs(cosines), axis=0), 1.0)
    return Likeness(largest[:leading], values[:leading], "output" if frame.left else "input", gap)


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
        The total of intruders ``of`` so many directions, their share of the energy, a sentence, the total at other
        thresholds (``at``); and each module's count, cosines, energy and gap. ``missing`` names modules that the base
        does not hold or whose kind is not known as a matrix.

    Raises:
        InputError: the base holds none of the adapter's modules, or one of another shape.
    """
    found = compare_with_base([adapter], base, leading=leading, threshold=threshold, progress=progress)[0]
    if isinstance(found, InputError):
        raise found
    return found


def compare_with_base(
    adapters: Sequence[Adapter],
    base: BaseModel,
    *,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any] | InputError]:
    """`find_intruders` of several adapters of one base, whose weights are taken apart once for all of them.

    Args:
        adapters, base, leading, threshold, progress: as there.

    Returns:
        For each adapter what `find_intruders` returns, or the error that it raises.
    """
    sides = [_expanded(adapter, base) for adapter in adapters]
    having: dict[str, list[int]] = {}
    for index, side in enumerate(sides):
        for module in () if isinstance(side, InputError) else side.modules.values():
            if isinstance(module.update, LowRank | Full):
                having.setdefault(module.name, []).append(index)
    found: list[dict[str, Likeness]] = [{} for _ in sides]
    errors = [side if isinstance(side, InputError) else None for side in sides]

    def one(name: str) -> list[Likeness | InputError | None]:
        return _of_weight(name, [sides[index] for index in having[name]], base, leading)  # type: ignore[misc]

    names = sorted(having, key=model_order)
    for done, (name, results) in enumerate(run_threads(one, names, os.cpu_count() or 1), 1):
        for index, result in zip(having[name], results, strict=True):
            if isinstance(result, Likeness):
                found[index][name] = result
            elif result is not None:
                errors[index] = errors[index] or result
        if progress:
            progress(done, len(names))
    return [
        error or _told(adapter, likenesses, base, leading, threshold)
        for adapter, likenesses, error in zip(adapters, found, errors, strict=True)
    ]


def _expanded(adapter: Adapter, base: BaseModel) -> Adapter | InputError:
    """The adapter with exact updates where they depend on the base (DoRA, OFT, ...)."""
    try:
        return expand(adapter, base, keep=False)
    except InputError as error:
        return error


def _of_weight(
    name: str, adapters: Sequence[Adapter], base: BaseModel, leading: int
) -> list[Likeness | InputError | None]:
    """One weight of the base, against every adapter that changes it; None where the base or the numbers fail."""
    frame: Frame | None = None
    found: list[Likeness | InputError | None] = []
    for adapter in adapters:
        update = adapter[name].update
        weight = _weight(name, adapter, base)
        if weight is None or not isinstance(update, LowRank | Full):
            found.append(None)
        elif weight.shape != update.size:
            found.append(_another_shape(weight, update.size, base))
        else:
            frame = frame or frame_of(read_stack([weight], FLOAT64)[0])
            tuned = tuned_by_update(frame, update, leading + 1)
            found.append(None if tuned is None else _likeness(frame, *tuned, leading))
    return found


def _weight(name: str, adapter: Adapter, base: BaseModel) -> Matrix | None:
    component, _, path = name.partition(".")
    transposed = bool((adapter.config or {}).get("fan_in_fan_out"))
    weight = base.weight(component, Part(path), adapter.layout, transposed)
    return None if weight is None else weight.matrix


def _another_shape(weight: Matrix, size: tuple[int, int], base: BaseModel) -> InputError:
    got, own = ("x".join(map(str, shape)) for shape in (weight.shape, size))
    return InputError(
        "the base model's weight has another shape than the adapter's update", file=base.path, key=weight.keys[0],
        expected=own, got=got, hint="Use the base model that the adapter was trained on.",
    )  # fmt: skip


def _told(
    adapter: Adapter, found: Mapping[str, Likeness], base: BaseModel, leading: int, threshold: float
) -> dict[str, Any] | InputError:
    listed = sorted(adapter.modules, key=model_order)
    if not found:
        return InputError(
            "the base model holds none of the adapter's modules", file=base.path,
            expected=f"weights such as {listed[0]}" if listed else None,
            hint="Name the model that the adapter was trained on: a checkpoint, or a diffusers folder.",
        )  # fmt: skip
    rows = [_row(name, found[name], threshold) for name in listed if name in found]
    count, of = sum(row["intruders"] for row in rows), sum(len(row["cosines"]) for row in rows)
    energies = [float(np.sum(like.values**2)) for like in found.values()]
    inside = [like.energy(threshold) * energy for like, energy in zip(found.values(), energies, strict=True)]
    share = sum(inside) / sum(energies) if sum(energies) else 0.0
    return {
        "base": base.name, "leading": leading, "threshold": threshold, "intruders": count, "of": of,
        "energy": round(share, 6), "sentence": _sentence(count, of, share, threshold),
        "at": {f"{other:g}": sum(like.intruders(other) for like in found.values()) for other in OTHERS},
        "modules": rows, "missing": [name for name in listed if name not in found],
    }  # fmt: skip


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
        f"{count} of the {of} leading directions are intruders, with {percent(share)} of their energy: they resemble "
        f"no direction of the base (cosine below {threshold:g}). More of them goes with more of what the base could "
        "do being forgotten; a lower strength has fewer."
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
