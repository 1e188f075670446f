"""A weight's own directions, and the leading ones of the tuned weight in their terms.

This is the one place that forms a whole weight: intruder dimensions speak of all directions of ``W_0``. In the frame of
the base, ``W_0 W_0^T = X diag(L) X^T``, a low-rank update leaves a diagonal and a term of rank 2r::

    X^T W W^T X = diag(L) + P S P^T,   P = X^T [W_0 A^T, B],   S = [[0, s I], [s I, s^2 A A^T]]

for ``W = W_0 + s B A``. Its leading eigenvectors are the cosines with the base's directions, and come from products
with P alone (SciPy's Lanczos; without SciPy the matrix is formed). The input side goes likewise, with transposes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..adapters import Full, LowRank
from ..fusion.jobs import read_stack
from .spectra import FLOAT64, Array

THIN = 4  # a side this many times as wide as the term's rank is worth Lanczos


@dataclass(frozen=True, slots=True)
class Frame:
    """The directions of a weight's smaller side: ``squares`` (k,), the squared singular values, and X (k, k) ascending.

    ``left``: they are left singular vectors (out <= in), and ``W`` is the weight itself, else its transpose.
    """

    W: Array
    X: Array
    squares: Array
    left: bool


def frame_of(W_0: Array) -> Frame:
    """Take a weight (out, n), float64, apart."""
    left = W_0.shape[0] <= W_0.shape[1]
    W = W_0 if left else W_0.T
    squares, X = np.linalg.eigh(W @ W.T)
    return Frame(W, X, squares, left)


def tuned_by_matrix(frame: Frame, W: Array, count: int) -> tuple[Array, Array]:
    """The leading directions of a tuned weight: squared singular values (k,) and cosines (side, k), descending.

    Args:
        frame: of the base weight. W: the tuned one, (out, n). count: how many directions.
    """
    tuned = W if frame.left else W.T
    squares, Y = np.linalg.eigh(tuned @ tuned.T)
    return squares[::-1][:count], frame.X.T @ Y[:, ::-1][:, :count]


def tuned_by_update(frame: Frame, update: LowRank | Full, count: int) -> tuple[Array, Array] | None:
    """The same for the weight of the frame with an update on it; None where a number is not finite."""
    with np.errstate(all="ignore"):
        low = isinstance(update, LowRank) and THIN * 2 * update.rank <= len(frame.squares)
        if not (low and isinstance(update, LowRank)):
            W = (frame.W if frame.left else frame.W.T) + update.delta()
            return tuned_by_matrix(frame, W, count) if np.isfinite(W).all() else None
        B, A = (read_stack([matrix], FLOAT64)[0] for matrix in (update.up, update.down))
        if not frame.left:
            B, A = A.T, B.T
        P = frame.X.T @ np.hstack([frame.W @ A.T, B])
        s, one = update.scale, np.eye(update.rank)
        S = np.block([[np.zeros_like(one), s * one], [s * one, s**2 * (A @ A.T)]])
    if not (np.isfinite(P).all() and np.isfinite(S).all()):
        return None
    return leading_of(frame.squares, P, S, count)


def leading_of(diagonal: Array, P: Array, S: Array, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues and eigenvectors of ``diag + P S P^T``, descending.

    Args:
        diagonal: (n,). P: (n, k). S: (k, k), symmetric. count: how many; fewer where n is smaller.

    >>> leading_of(np.array([1.0, 2.0]), np.zeros((2, 1)), np.eye(1), 1)[0].tolist()
    [2.0]
    """
    n = len(diagonal)
    if THIN * count <= n:
        try:
            from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
        except ImportError:
            pass
        else:
            SP = S @ P.T
            times = LinearOperator((n, n), lambda x: diagonal * x.ravel() + P @ (SP @ x.ravel()), dtype=np.float64)
            start = np.ones(n)  # the same start, the same result
            with suppress(ArpackError):  # it gives up where eigenvalues crowd; the matrix then decides
                squares, Y = eigsh(times, count, which="LA", v0=start, ncv=min(n, 4 * count), maxiter=100 * n)
                order = np.argsort(squares)[::-1]
                return squares[order], Y[:, order]
    squares, Y = np.linalg.eigh(np.diag(diagonal) + P @ S @ P.T)
    return squares[::-1][:count], Y[:, ::-1][:, :count]
