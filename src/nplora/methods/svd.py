"""The exact weighted sum, truncated to a rank by its singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra.bases import stacked, truncated
from ..parameters import RANK
from . import Part, Product, merge, weighted


@merge(
    "svd",
    title="Truncated sum",
    reference="Eckart and Young 1936",
    formula="D = sum_i w_i dW_i, its `rank` largest singular values kept",
    guarantee="the nearest update of that rank; without a rank the exact sum in as few ranks as it has",
    parameters=(replace(RANK, sentence="Rank of the result; by default as many as the exact sum has."),),
    cores=True,
    batches=True,
)
def svd(parts: Sequence[Part], *, seed: int = 0, rank: int | None = None) -> Product:
    """``sum_i w_i dW_i`` truncated to a rank: QR of both stacks and an SVD of the small core between them.

    >>> import numpy as np
    >>> one, two = Part(np.eye(3)[:, :1], np.eye(4)[:1], 3.0), Part(np.eye(3)[:, 1:2], np.eye(4)[1:2], 4.0)
    >>> found = svd([one, two], rank=1)
    >>> found.up.shape, found.error
    ((3, 1), 3.0)
    """
    return Product(*truncated(*stacked(weighted(parts)), rank))
