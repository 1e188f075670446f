"""K-LoRA's selection as a report: which adapter each module would use, and until which step (arXiv 2502.18461).

K-LoRA writes no file. At each sampling step every attention module uses one of two adapters, the subject early and the
style late. What decides are sums of the largest entries of both updates, which do not change while sampling: so the
step at which a module changes over is known beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..adapters import LowRank
from ..algebra import Array, double, namespace
from ..algebra.bases import Factors
from ..algebra.blocks import kth_largest, of_large_product
from ..fusion.leftovers import LeftOut
from ..fusion.pairing import match_modules
from ..reading.adapter import Adapter

SLOPE, OFFSET = 1.5, 0.5  # the paper's a and b of S(t) = a t / T + b


@dataclass(frozen=True)
class Choice:
    """One module: the sums of the K largest entries, and the share of the steps during which the subject is used."""

    name: str
    K: int
    subject: float
    style: float
    switch: float


def absolute_sums(up: Array, down: Array, K: int) -> tuple[float, float]:
    """The sum of the K largest absolute entries of ``up @ down``, and of all of them; read block by block.

    >>> import numpy as np
    >>> absolute_sums(np.eye(2), np.array([[1.0, -4.0], [3.0, 0.0]]), 2)
    (7.0, 8.0)
    """
    matrix, xp = of_large_product(up, down), namespace(up)
    least = kth_largest(matrix, K)
    top = whole = 0.0
    above = 0
    for _, block in matrix:
        size = abs(block)
        larger = size > least
        above += int(xp.count_nonzero(larger))
        top += float(xp.sum(double(size[larger])))
        whole += float(xp.sum(double(size)))
    return top + max(K - above, 0) * least, whole


def choices(
    pairs: Mapping[str, tuple[Factors, Factors]], *, slope: float = SLOPE, offset: float = OFFSET
) -> tuple[list[Choice], float]:
    """The choice of every module, and ``gamma = sum of |dW_c| / sum of |dW_s|`` over all of them.

    The subject is used while ``S_c >= S_s gamma (slope t / T + offset)`` with K = r_c r_s entries in the sums S: up to
    the step ``t / T = (S_c / (S_s gamma) - offset) / slope``.

    Args:
        pairs: module -> factors of the subject and of the style.
        slope, offset: of the schedule.
    """
    sums = {}
    for name, (subject, style) in pairs.items():
        K = subject[1].shape[0] * style[1].shape[0]
        sums[name] = (K, absolute_sums(*subject, K), absolute_sums(*style, K))
    theirs = sum(style[1] for _, _, style in sums.values())
    gamma = sum(subject[1] for _, subject, _ in sums.values()) / theirs if theirs else float("inf")
    found = []
    for name, (K, (S_c, _), (S_s, _)) in sums.items():
        weighed = S_s * gamma if S_s else 0.0
        until = (S_c / weighed - offset) / slope if weighed > 0 else float("inf") if S_c else 0.0
        found.append(Choice(name, K, S_c, S_s, min(max(until, 0.0), 1.0)))
    return found, gamma


def selection(
    subject: Adapter, style: Adapter, *, slope: float = SLOPE, offset: float = OFFSET
) -> tuple[list[Choice], float]:
    """`choices` of two adapters, for the modules that both change by low-rank updates."""
    pairs = {}
    for match in match_modules({"subject": subject, "style": style}, None, LeftOut()):
        updates = [module.update for module in match.members.values()]
        if len(updates) == 2 and all(isinstance(update, LowRank) for update in updates):
            pairs[match.name] = (_factors(updates[0]), _factors(updates[1]))
    return choices(pairs, slope=slope, offset=offset)


def _factors(update: object) -> Factors:
    assert isinstance(update, LowRank)
    return update.scale * update.up.read().astype("float64"), update.down.read().astype("float64")
