"""What PEFT's `add_weighted_adapter(combination_type="ties")` computes: TIES on A and on B, one by one."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra import Array, namespace
from ..algebra.blocks import kth_largest, of_matrix
from ..parameters import DENSITY, ELECTION
from . import Part, Product, merge
from .peft_linear import require_equal_ranks, split, stored


@merge(
    "peft-ties",
    title="PEFT's ties (compatibility)",
    reference="peft 0.21.2, LoraModel.add_weighted_adapter",
    formula="B = TIES(sqrt|z_i|, B_i), A = TIES(sgn(z_i) sqrt|z_i|, A_i), D = B A, z_i = w_i scale_i",
    guarantee="the incumbent's numbers, not the paper's TIES, which works on dW; equal ranks only",
    parameters=(DENSITY, ELECTION),
)
def peft_ties(parts: Sequence[Part], *, seed: int = 0, density: float = 0.2, election: str = "total") -> Product:
    """Trim each stored factor, elect signs without the strengths, and average the weighted factors that agree.

    >>> import numpy as np
    >>> half = Part(np.eye(2)[:, :1], np.eye(2)[:1], 0.5)
    >>> found = peft_ties([half, half], density=1.0)
    >>> float((found.up @ found.down)[0, 0].round(6))
    0.5
    """
    require_equal_ranks(parts, "peft-ties")
    ups, downs = zip(*map(stored, parts), strict=True)
    roots = [split(part) for part in parts]
    up, down = (
        _merged(factors, [pair[side] for pair in roots], density, election) for side, factors in enumerate((ups, downs))
    )
    return Product(up, down)


def _merged(factors: Sequence[Array], weights: Sequence[float], density: float, election: str) -> Array:
    """Where a zero vote elects plus and a zero entry never agrees, as in PEFT."""
    xp = namespace(factors[0])
    kept = []
    for factor in factors:
        count = int(density * factor.shape[0] * factor.shape[1])
        threshold = kth_largest(of_matrix(factor), count)
        kept.append(factor * xp.astype(abs(factor) >= threshold, factor.dtype))
    vote = sum(kept) if election == "total" else sum(xp.sign(factor) for factor in kept)
    positive = vote >= 0
    agrees = [xp.astype(((x > 0) & positive) | ((x < 0) & ~positive), x.dtype) for x in kept]
    total = sum(weight * x * agree for weight, x, agree in zip(weights, kept, agrees, strict=True))
    count_of = sum(agrees)
    return total / xp.maximum(count_of, xp.ones_like(count_of))
