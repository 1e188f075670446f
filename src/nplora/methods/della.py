"""DELLA: entries are dropped by chance, the smaller ones of a row more often (Deep et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra.blocks import Blocks, keep_by_rank
from ..algebra.entries import added, elected, largest, merge_entries
from ..errors import UsageError
from ..parameters import AGREEING, DENSITY, ELECTION, RANK, SCALING, SPACE, VARIANT, Parameter
from . import Part, Product, merge, weighted

EPSILON = Parameter(
    "epsilon", "number", 0.15,
    "Half the range of the keeping probability in a row: from density - epsilon (above 0) to density + epsilon.",
    low=0.0, high=0.5,
)  # fmt: skip


@merge(
    "della",
    title="DELLA",
    reference="arXiv 2406.11617, Section 3 (MagPrune)",
    formula="t_i = w_i dW_i * Bernoulli(p) / p, p = density -+ epsilon linear in the rank in its row; then join",
    guarantee="epsilon 0 is DARE; linear: the expectation is the exact sum; the same seed gives the same file",
    parameters=(
        replace(DENSITY, default=0.5),
        EPSILON,
        replace(VARIANT, default="ties"),
        ELECTION,
        AGREEING,
        SCALING,
        SPACE,
        RANK,
    ),
)
def della(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    density: float = 0.5,
    epsilon: float = 0.15,
    variant: str = "ties",
    election: str = "total",
    agreeing: str = "mean",
    scaling: float = 1.0,
    space: str = "weights",
    rank: int | None = None,
) -> Product:
    """Keep each entry with a probability that grows with its magnitude's rank in its row, divide by it, and join.

    Probabilities above 1 are 1. A density of 0 keeps nothing.

    Raises:
        UsageError: the smallest probability is not above 0; what is kept could not be divided by it.
    """
    if density and density <= epsilon:
        raise UsageError(
            f"DELLA keeps a row's smallest entries with the probability density - epsilon = {density - epsilon:g}",
            expected="more than 0", hint="Lower --epsilon or raise --density.",
        )  # fmt: skip

    def rule(sources: Sequence[Blocks]) -> Blocks:
        if density == 0:
            return added([largest(x, 0.0) for x in sources])
        kept = [keep_by_rank(x, density, epsilon, (seed, index)) for index, x in enumerate(sources)]
        return added(kept, scaling) if variant == "linear" else elected(kept, election, agreeing, scaling)

    return Product(*merge_entries(weighted(parts), rule, space=space, rank=rank, seed=seed))
