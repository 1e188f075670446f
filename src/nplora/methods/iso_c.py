"""Iso-C: the sum with all its singular values made equal (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra import namespace
from ..algebra.bases import spectrum, stacked
from ..parameters import RANK, SCALING
from . import Part, Product, merge, weighted


@merge(
    "iso-c",
    title="Iso-C, on the support of the sum",
    reference="arXiv 2502.04959, Algorithm 1",
    formula="sum_i w_i dW_i = U S V^T; D = scaling * mean(S) U V^T",
    guarantee="the directions of the exact sum, all equally strong; also for a single adapter",
    parameters=(SCALING, RANK),
    cores=True,
    batches=True,
)
def iso_c(parts: Sequence[Part], *, seed: int = 0, scaling: float = 1.0, rank: int | None = None) -> Product:
    """Flatten the spectrum of the sum to its mean; directions outside the sum's numerical rank stay empty.

    >>> import numpy as np
    >>> found = iso_c([Part(np.diag([1.0, 3.0]), np.eye(2))])
    >>> found.up @ found.down
    array([[2., 0.],
           [0., 2.]])
    """
    found = spectrum(*stacked(weighted(parts)))
    xp = namespace(found.s)
    count = found.s.shape[-1] if rank is None else min(rank, found.s.shape[-1])
    level = xp.mean(found.s[..., :count], axis=-1, keepdims=True)
    up, down = found.product(xp.zeros_like(found.s[..., :count]) + abs(scaling) * level, count)
    return Product(up if scaling >= 0 else -up, down)
