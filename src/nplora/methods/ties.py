"""TIES-Merging: trim, elect signs, average what agrees (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.blocks import Blocks
from ..algebra.entries import elected, largest, merge_entries
from ..parameters import AGREEING, DENSITY, ELECTION, RANK, SCALING, SPACE
from . import Part, Product, merge, weighted


@merge(
    "ties",
    title="TIES-Merging",
    reference="arXiv 2306.01708, Algorithm 1",
    formula="t_i = largest `density` of w_i dW_i; sign = sgn(sum t_i); D = scaling * mean of the t_i with that sign",
    guarantee="the paper's rule on the entries of dW, then nearly the nearest product of the rank; residual reported",
    parameters=(DENSITY, ELECTION, AGREEING, SCALING, SPACE, RANK),
)
def ties(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    density: float = 0.2,
    election: str = "total",
    agreeing: str = "mean",
    scaling: float = 1.0,
    space: str = "weights",
    rank: int | None = None,
) -> Product:
    """Trim each ``w_i dW_i`` to its largest entries, elect a sign for each entry, and average those that have it.

    >>> import numpy as np
    >>> one = Part(np.eye(2), np.array([[1.0, 9.0], [8.0, 2.0]]))
    >>> found = ties([one, one], density=0.5)
    >>> (found.up @ found.down).round(6)
    array([[0., 9.],
           [8., 0.]])
    """

    def rule(sources: Sequence[Blocks]) -> Blocks:
        return elected([largest(source, density) for source in sources], election, agreeing, scaling)

    return Product(*merge_entries(weighted(parts), rule, space=space, rank=rank, seed=seed))
