"""Model Breadcrumbs: the largest and the smallest entries of each update are left out (Davari and Belilovsky 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra.blocks import Blocks
from ..algebra.entries import added, merge_entries, without_extremes
from ..parameters import DENSITY, RANK, SCALING, SPACE, Parameter
from . import Part, Product, merge, weighted

OUTLIERS = Parameter(
    "outliers", "number", 0.01, "Share of the entries, the largest, that is left out (the paper's gamma).",
    low=0.0, high=1.0,
)  # fmt: skip


@merge(
    "breadcrumbs",
    title="Model Breadcrumbs",
    reference="arXiv 2312.06795, Section 3",
    formula="D = scaling * sum of w_i dW_i: without its largest `outliers`, the next largest `density` of its entries",
    guarantee="outliers 0 is magnitude pruning; then nearly the nearest product of the rank, residual reported",
    parameters=(replace(DENSITY, default=0.9), OUTLIERS, SCALING, SPACE, RANK),
)
def breadcrumbs(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    density: float = 0.9,
    outliers: float = 0.01,
    scaling: float = 1.0,
    space: str = "weights",
    rank: int | None = None,
) -> Product:
    """Mask outliers and small entries of each ``w_i dW_i``, and add what is left.

    >>> import numpy as np
    >>> found = breadcrumbs([Part(np.eye(2), np.array([[1.0, 9.0], [8.0, 2.0]]))], density=0.5, outliers=0.25)
    >>> (found.up @ found.down).round(6)
    array([[0., 0.],
           [8., 2.]])
    """

    def rule(sources: Sequence[Blocks]) -> Blocks:
        return added([without_extremes(source, density, outliers) for source in sources], scaling)

    return Product(*merge_entries(weighted(parts), rule, space=space, rank=rank, seed=seed))
