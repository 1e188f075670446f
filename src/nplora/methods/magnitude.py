"""Magnitude pruning: only the largest entries of each update are added."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.blocks import Blocks
from ..algebra.entries import added, largest, merge_entries
from ..parameters import DENSITY, RANK, SCALING, SPACE
from . import Part, Product, merge, weighted


@merge(
    "magnitude",
    title="Magnitude pruning",
    reference="`magnitude_prune` of PEFT, on dW instead of the factors; TIES without its election",
    formula="D = scaling * sum of the largest `density` of each w_i dW_i",
    guarantee="density 1 is the exact sum; then nearly the nearest product of the rank, residual reported",
    parameters=(DENSITY, SCALING, SPACE, RANK),
)
def magnitude(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    density: float = 0.2,
    scaling: float = 1.0,
    space: str = "weights",
    rank: int | None = None,
) -> Product:
    """Trim each ``w_i dW_i`` to its largest entries and add them.

    >>> import numpy as np
    >>> found = magnitude([Part(np.eye(2), np.array([[1.0, 9.0], [8.0, 2.0]]))], density=0.5)
    >>> (found.up @ found.down).round(6)
    array([[0., 9.],
           [8., 0.]])
    """

    def rule(sources: Sequence[Blocks]) -> Blocks:
        return added([largest(source, density) for source in sources], scaling)

    return Product(*merge_entries(weighted(parts), rule, space=space, rank=rank, seed=seed))
