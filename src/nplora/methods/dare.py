"""DARE: drop entries by chance and rescale the rest (Yu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra.blocks import Blocks, keep
from ..algebra.entries import added, elected, merge_entries
from ..parameters import AGREEING, DENSITY, ELECTION, RANK, SCALING, SPACE, VARIANT
from . import Part, Product, merge, weighted


@merge(
    "dare",
    title="DARE",
    reference="arXiv 2311.03099, Eqs. 1-3",
    formula="t_i = w_i dW_i * Bernoulli(density) / density; D = scaling * sum t_i, or TIES' election on the t_i",
    guarantee="linear: the expectation is the exact sum; the same seed gives the same file; residual reported",
    parameters=(replace(DENSITY, default=0.5), VARIANT, ELECTION, AGREEING, SCALING, SPACE, RANK),
)
def dare(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    density: float = 0.5,
    variant: str = "linear",
    election: str = "total",
    agreeing: str = "mean",
    scaling: float = 1.0,
    space: str = "weights",
    rank: int | None = None,
) -> Product:
    """Keep each entry of ``w_i dW_i`` with probability `density`, divide by it, and join the results."""

    def rule(sources: Sequence[Blocks]) -> Blocks:
        kept = [keep(source, density, (seed, index)) for index, source in enumerate(sources)]
        return added(kept, scaling) if variant == "linear" else elected(kept, election, agreeing, scaling)

    return Product(*merge_entries(weighted(parts), rule, space=space, rank=rank, seed=seed))
