"""After DO-Merging: the updates made orthogonal to each other as vectors, their magnitudes kept."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from ..algebra import namespace, transpose
from ..algebra.bases import Factors, stacked
from . import Part, Product, merge, weighted


@merge(
    "do-merging",
    title="Orthogonalised sum, after DO-Merging",
    reference="after arXiv 2505.15875, much simplified",
    formula="v_j = dW_j - sum over later i of <dW_j, v_i> v_i / ||v_i||^2; D = sum_j ||dW_j|| v_j / ||v_j||",
    guarantee="the parts keep their norms and are orthogonal as vectors, but for one in the span of others",
)
def do_merging(parts: Sequence[Part], *, seed: int = 0) -> Product:
    """Gram-Schmidt from the last adapter to the first, on the updates as vectors; exact in the stack of all factors.

    An update that lies in the span of later ones has no direction of its own left and is added as it is.

    >>> import numpy as np
    >>> row = np.eye(2)[:1]
    >>> found = do_merging([Part(np.array([[3.0], [4.0]]), row), Part(np.array([[1.0], [0.0]]), row)])
    >>> (found.up @ found.down).round(6)
    array([[1., 0.],
           [5., 0.]])
    """
    factors = weighted(parts)
    inner = [[_inner(one, two) for two in factors] for one in factors]
    count = len(factors)
    done: dict[int, list[float]] = {}  # coordinates of each v_j in the updates
    for j in reversed(range(count)):
        v = [float(i == j) for i in range(count)]
        for other in done.values():
            size = _form(inner, other, other)
            share = _form(inner, v, other) / size if size else 0.0
            v = [a - share * b for a, b in zip(v, other, strict=True)]
        left, whole = _form(inner, v, v), inner[j][j]
        own = left > 1e-12 * whole
        done[j] = [sqrt(whole / left) * a for a in v] if own else [float(i == j) for i in range(count)]
    totals = [sum(v[i] for v in done.values()) for i in range(count)]
    return Product(*stacked([(total * up, down) for total, (up, down) in zip(totals, factors, strict=True)]))


def _inner(one: Factors, two: Factors) -> float:
    """``<dW_1, dW_2> = <B_1^T B_2, A_1 A_2^T>``."""
    return float(namespace(one[0]).sum((transpose(one[0]) @ two[0]) * (one[1] @ transpose(two[1]))))


def _form(inner: list[list[float]], a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y * inner[i][j] for i, x in enumerate(a) for j, y in enumerate(b))
