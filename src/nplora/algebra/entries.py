"""Rules on the entries of updates, each a matrix read by blocks: what is kept, whose sign wins, how many are averaged.

The pieces of TIES, DARE, DELLA, Breadcrumbs and magnitude pruning. The same rules run on whole updates ``dW = B A``
(the papers' definition) and on their small cores (`bases.cores`), which is another, cheaper method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bases import Factors, cores, stacked, truncated
from .blocks import Blocks, combined, kth_largest, of_large_product, of_matrix, of_product
from .factors import Array, namespace, transpose
from .sketch import nearest

Rule = Callable[[Sequence[Blocks]], Blocks]  # updates -> the merged matrix


def merge_entries(
    factors: Sequence[Factors], rule: Rule, *, space: str, rank: int | None, seed: int
) -> tuple[Array, Array, float]:
    """Merge updates by a rule on their entries, and bring the result to a low rank.

    Args:
        factors: up (out, r_i) and down (r_i, n) of each update, strengths included.
        rule: from the updates to the merged matrix, all of one shape.
        space: "weights" applies the rule to ``dW_i``, "core" to the cores ``M_i`` of ``dW_i = U_B M_i V_A``.
        rank: of the result; None is the sum of the updates' ranks.
        seed: of the search for the nearest product.

    Returns:
        up (out, k), down (k, n), and the Frobenius distance from the rule's result.
    """
    up, down = stacked(factors)
    if space == "core":
        shared = cores(factors)
        found = shared.lift(rule([of_matrix(matrix) for matrix in shared.matrices]).whole())
        return (*found, 0.0) if rank is None else truncated(*found, rank)
    size = min(up.shape[1] if rank is None else rank, up.shape[0], down.shape[1])
    merged = rule([of_large_product(*pair) for pair in factors])
    if merged.factors is not None:  # nothing was dropped: the sum itself
        return truncated(*merged.factors, size)
    return nearest(merged, size, start=transpose(down), seed=seed)


# ------------------------------------------------------------------------------------------ what is kept


def largest(source: Blocks, density: float) -> Blocks:
    """The largest ``density`` of all entries by magnitude, the rest 0; entries equal to the last one kept stay too."""
    return _above(source, kth_largest(source, int(density * source.size)))


def without_extremes(source: Blocks, density: float, outliers: float) -> Blocks:
    """The largest ``density`` of all entries after the largest ``outliers`` of them (Breadcrumbs), the rest 0."""
    top = int(outliers * source.size)
    least = kth_largest(source, min(top + int(density * source.size), source.size))
    if top == 0:
        return _above(source, least)
    most = kth_largest(source, top)

    def kept(blocks: list[Array]) -> Array:
        (block,) = blocks
        size = abs(block)
        return block * namespace(block).astype((size >= least) & (size < most), block.dtype)

    return combined([source], kept)


def _above(source: Blocks, threshold: float) -> Blocks:
    if threshold == 0:
        return source
    return combined([source], lambda blocks: _chosen(abs(blocks[0]) >= threshold, blocks[0]))


def _chosen(chosen: Array, block: Array) -> Array:
    """The chosen entries, the rest 0."""
    kept = namespace(block).astype(chosen, block.dtype)
    kept *= block  # in place: a block's time is that of its temporaries
    return kept


# ------------------------------------------------------------------------------------------ how they are joined


def added(sources: Sequence[Blocks], scaling: float = 1.0) -> Blocks:
    """The sum, times `scaling`; the product of the stacked factors where the sources are products."""
    factors = [source.factors for source in sources if source.factors is not None]
    if len(factors) == len(sources):
        up, down = stacked(factors)
        return of_product(scaling * up, down)
    return combined(sources, lambda blocks: scaling * _total(blocks))


def elected(sources: Sequence[Blocks], election: str = "total", agreeing: str = "mean", scaling: float = 1.0) -> Blocks:
    """Entries whose sign the majority has (TIES), joined by their mean or sum, times `scaling`.

    Args:
        sources: the updates, trimmed already.
        election: "total" elects the sign of the sum, "frequency" that of the sum of signs; a zero vote elects plus.
        agreeing: "mean" divides by the number of nonzero entries that agree, "sum" by nothing.
        scaling: the paper's lambda.
    """

    def joined(blocks: list[Array]) -> Array:
        xp = namespace(blocks[0])
        plus = _total(blocks if election == "total" else [xp.sign(block) for block in blocks]) >= 0
        agree = [(block != 0) & ((block > 0) == plus) for block in blocks]
        merged = _chosen(agree[0], blocks[0])
        for own, block in zip(agree[1:], blocks[1:], strict=True):
            merged += _chosen(own, block)
        if agreeing == "mean":
            count = _total([xp.astype(own, xp.int16) for own in agree])
            merged /= xp.astype(xp.maximum(count, xp.ones_like(count)), merged.dtype)
        return merged if scaling == 1 else scaling * merged

    return combined(sources, joined)


def _total(blocks: Sequence[Array]) -> Array:
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total
