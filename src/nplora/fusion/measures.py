"""What a merge made of a file: its error, how strongly each adapter is in the result, how far that is from the sum.

Everything follows from inner products of updates, summed over modules (never averaged).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..methods import Part
from .fused import Measure, Squeezed

ROUNDING = 1e-7  # distances from inner products in float64 feel rounding up to about here


@dataclass(frozen=True)
class Total:
    """Measures of a file.

    Attributes:
        roles: the adapters.
        gram: inner products of their updates at their strengths, and of the result, which comes last.
        error: distance from the method's definition, relative to what it defines.
    """

    roles: tuple[str, ...]
    gram: NDArray[np.float64]
    error: float

    @property
    def kept(self) -> dict[str, float]:
        """How strongly each adapter is in the result: the c_i of the nearest ``sum_i c_i w_i dW_i``; 1 is all of it.

        Exactly 1 for the plain sum, however the adapters overlap; equal adapters share.
        """
        inner, right = self.gram[:-1, :-1], self.gram[:-1, -1]
        lengths = np.sqrt(np.where(np.diag(inner) > 0, np.diag(inner), 1.0))
        found, *_ = np.linalg.lstsq(inner / lengths / lengths[:, None], right / lengths, rcond=1e-9)
        return {role: float(c) for role, c in zip(self.roles, found / lengths, strict=True)}

    @property
    def energies(self) -> dict[str, float]:
        """``||c_i w_i dW_i||^2 / ||dW||^2``: what each adapter's part of the result carries of its energy.

        With the square of what is foreign they add up to 1 where the adapters are orthogonal.
        """
        size, kept = float(self.gram[-1, -1]), self.kept
        return {
            role: kept[role] ** 2 * float(self.gram[index, index]) / size if size > 0 else 0.0
            for index, role in enumerate(self.roles)
        }

    @property
    def foreign(self) -> float:
        """The share of the result's norm that no sum of the adapters explains."""
        size = self.gram[-1, -1]
        explained = sum(c * g for c, g in zip(self.kept.values(), self.gram[:-1, -1], strict=True))
        share = sqrt(max(1.0 - float(explained) / size, 0.0)) if size > 0 else 0.0
        return share if share > sqrt(ROUNDING) / 10 else 0.0

    @property
    def distance(self) -> float:
        """``||dW - sum_i w_i dW_i|| / ||sum_i w_i dW_i||``, 0 where it is no more than rounding."""
        inner = self.gram[:-1, :-1]
        total = float(inner.sum())
        square = float(self.gram[-1, -1]) - 2 * float(self.gram[:-1, -1].sum()) + total
        if total <= 0:
            return float("inf") if self.gram[-1, -1] > 0 else 0.0
        share = sqrt(max(square / total, 0.0))
        return share if share > ROUNDING else 0.0


def gram(parts: Sequence[Part], up: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner products of the parts (at their strengths) and, last, of the result: (..., k + 1, k + 1)."""
    ups = [part.weight * part.up for part in parts] + [up]
    downs = [part.down for part in parts] + [down]
    left, right = np.concatenate(ups, axis=-1), np.concatenate(downs, axis=-2)
    entries = (np.swapaxes(left, -1, -2) @ left) * (right @ np.swapaxes(right, -1, -2))
    edges = np.cumsum([0, *(factor.shape[-1] for factor in ups)])[:-1]
    return np.add.reduceat(np.add.reduceat(entries, edges, axis=-2), edges, axis=-1)


def total(measures: Iterable[Measure], roles: Sequence[str]) -> Total:
    """Measures of all modules added up, but for those that hold NaN."""
    size = len(roles) + 1
    gram, error, defined = np.zeros((size, size)), 0.0, 0.0
    for measure in measures:
        if not np.isfinite(measure.gram).all():
            continue
        places = [*(roles.index(role) for role in measure.roles), size - 1]
        gram[np.ix_(places, places)] += measure.gram
        error += measure.error**2
        defined += float(measure.gram[-1, -1]) + measure.error**2
    return Total(tuple(roles), gram, sqrt(error / defined) if defined > 0 else 0.0)


def merged_sentence(title: str, found: Total) -> str:
    """What a merge did, in one sentence.

    >>> one = Measure("m", 2, 0.0, ("subject", "style"), np.array([[4.0, 0, 4], [0, 1.0, 1], [4, 1, 5]]))
    >>> merged_sentence("Sum", total([one], ("subject", "style")))
    'Sum: the result holds subject at 1.00 and style at 1.00 of their strengths, and equals the plain sum.'
    """
    shares = [f"{role} at {share:.2f}" for role, share in found.kept.items()]
    listed = " and ".join([", ".join(shares[:-1]), shares[-1]] if len(shares) > 1 else shares)
    strengths = "their strengths" if len(shares) > 1 else "its strength"
    text = f"{title}: the result holds {listed} of {strengths}"
    if found.distance == 0:
        return f"{text}, and equals the plain sum."
    text += f"; it is {_percent(found.distance)} away from the plain sum"
    if found.foreign > 0.005:
        text += f", and {_percent(found.foreign)} of its norm is in none of the adapters"
    if found.error > ROUNDING:
        text += f". Writing it at this rank costs {_percent(found.error)}"
    return text + "."


def _percent(share: float) -> str:
    number = 100 * share
    return f"{number:.0f} %" if number >= 10 else f"{number:.2g} %"


def squeezed_total(modules: Iterable[Squeezed]) -> dict[str, Any]:
    """What compressing a file cost: its exact relative Frobenius error and the worst module's, ranks before and after.

    >>> squeezed_total([Squeezed("a", 4, 2, 3.0, 5.0), Squeezed("b", 4, 4, 0.0, 12.0)])["relative_error"]
    0.23076923076923078
    """
    known = list(modules)
    norm, error = (
        sqrt(sum(value**2 for value in values)) for values in zip(*((m.norm, m.error) for m in known), strict=True)
    )
    worst = max(known, key=lambda module: module.relative)
    return {
        "relative_error": error / norm if norm else 0.0,
        "worst_module": worst.name,
        "worst_relative_error": worst.relative,
        "ranks_before": sum(module.before for module in known),
        "ranks": sum(module.rank for module in known),
    }
