"""The nearest low-rank product of a matrix that is read by blocks: a randomised block Krylov method.

An entry-wise result (TIES, DARE, ...) has full rank, and much of it is lost with the truncation to the rank that was
asked for. The search for the best subspace (Halko et al. 2011, Musco and Musco 2015) therefore does not start from
random columns alone but from the row space of the updates that the result was made of, which is nearly right.
"""

from __future__ import annotations

from math import sqrt

from .bases import basis
from .blocks import BLOCK_ENTRIES, Blocks
from .factors import Array, double, namespace, transpose

OVERSAMPLING = 8  # random columns
PASSES = 4  # readings of the matrix: residuals within about 1 % of the least possible for TIES and DARE of real shapes


def nearest(
    matrix: Blocks, rank: int, *, start: Array | None = None, passes: int = PASSES, seed: int = 0
) -> tuple[Array, Array, float]:
    """The best approximation of a given rank: exact for a small matrix, else nearly the best.

    Args:
        matrix: (m, n), read `passes` times.
        rank: of the result.
        start: (n, .) columns that are thought to lie near the leading right singular vectors.
        passes: an even number, at least 2; more come closer to the best approximation.
        seed: of the random columns.

    Returns:
        Balanced factors up (m, rank) and down (rank, n) in float64, and the Frobenius distance from the matrix: the
        energy of the matrix less that of the result, which holds whatever subspace was found. Its square is known to
        about 1e-6 of the matrix's energy where the blocks are float32, to 1e-15 where they are float64.
    """
    m, n = matrix.shape
    xp = namespace(matrix.like)
    first = 0 if start is None else start.shape[1]
    width = max(first, rank) + OVERSAMPLING
    if m * n <= BLOCK_ENTRIES or min(m, n) <= width * (passes // 2):
        u, s, vt = xp.linalg.svd(double(matrix.whole()), full_matrices=False)
        root, rest = xp.sqrt(s[:rank]), s[rank:]
        return u[:, :rank] * root[None, :], root[:, None] * vt[:rank, :], float(xp.sqrt(xp.sum(rest * rest)))
    W = _first_columns(start, width - first, n, matrix.like, seed)
    Qs: list[Array] = []
    Ws: list[Array] = []
    for left in reversed(range(passes // 2)):
        short = xp.astype(W, matrix.like.dtype)
        Y = double(xp.concat([block @ short for _, block in matrix], axis=0))
        Qs.append(_orthonormal_to(Qs, Y))
        W, whole = _projected(matrix, Qs[-1], measured=left == 0)
        Ws.append(W)
        W = _orthonormal(W)
    right = basis(xp.concat(Ws, axis=1))  # the matrix is near Q (D^T Q)^T
    u, s, vt = xp.linalg.svd(transpose(right.R), full_matrices=False)
    root = xp.sqrt(s[:rank])
    up, down = xp.concat(Qs, axis=1) @ (u[:, :rank] * root), right.lift(transpose(vt[:rank, :]) * root)
    missed = whole - float(xp.sum(s[:rank] ** 2))
    return up, transpose(down), sqrt(max(missed, 0.0))


def _projected(matrix: Blocks, Q: Array, *, measured: bool) -> tuple[Array, float]:
    """``D^T Q`` (n, l) and, if it is to be measured, ``||D||_F^2`` in one pass."""
    xp = namespace(Q)
    short = xp.astype(Q, matrix.like.dtype)
    W, energy = xp.zeros((matrix.shape[1], Q.shape[1]), dtype=Q.dtype, device=Q.device), 0.0
    for row, block in matrix:
        W += double(transpose(block) @ short[row : row + block.shape[0], :])
        if measured:
            energy += float(xp.sum(block * block))
    return W, energy


def _orthonormal(Y: Array) -> Array:
    found = basis(Y)
    return found.lift(namespace(Y).eye(found.R.shape[0], dtype=Y.dtype, device=Y.device))


def _orthonormal_to(Qs: list[Array], Y: Array) -> Array:
    """An orthonormal basis of what Y adds to the span of Qs; twice, since what is left may be rounding only."""
    for _ in range(2 if Qs else 0):
        for Q in Qs:
            Y = Y - Q @ (transpose(Q) @ Y)
        Y = _orthonormal(Y)
    return Y if Qs else _orthonormal(Y)


def _first_columns(start: Array | None, count: int, rows: int, like: Array, seed: int) -> Array:
    """The start and some random columns, of one size."""
    import numpy as np

    xp = namespace(like)
    random = np.random.default_rng([seed, 0x5EED]).standard_normal((rows, count)) / sqrt(rows)
    columns = double(xp.asarray(random, device=like.device))
    return columns if start is None else xp.concat([_orthonormal(double(start)), columns], axis=1)
