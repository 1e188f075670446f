"""Recompression: the nearest update of fewer ranks, with the error that it costs. Arrays only; factors of any library.

With ``B = Q_b R_b`` and ``A^T = Q_a R_a`` the singular values of ``B A`` are those of the small core ``R_b R_a^T``, so
nothing of shape out x in is formed. By Eckart and Young (1936) keeping the k largest is the nearest update of rank k,
and the error is exactly ``sqrt(sum_{i>k} s_i^2)``. Factors are ``U sqrt(S)`` and ``sqrt(S) V^T``: balanced for half
precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from .devices import to_host
from .factors import Array, namespace, numerical_rank, thin_svd, transpose

# A dense update's tail comes from its Gram matrix (quicker than an SVD) where it holds more than this share
# of the energy: the Gram's rounding, about n 2^-52, is then far below it. Smaller tails need the SVD.
GRAM_FLOOR = 1e-8
GRAM_SIDE = 128  # below this the SVD is quick
SLACK = 1e-6  # how far a goal is taken to reach when a result is checked: arithmetic may fall to either side of it


@dataclass(frozen=True, slots=True)
class Goal:
    """How far to compress: at most ``rank`` ranks, and as few as hold a share ``energy`` or keep within ``error``.

    ``energy`` is a share of a module's squared Frobenius norm, ``error`` one of its norm. ``keep_style`` compresses
    only what lies outside the style's input directions.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    keep_style: bool = False

    def count(self, s: NDArray[np.float64], kept: float = 0.0) -> int:
        """How many of the singular values s (descending) are needed, beside what is kept anyway (its energy).

        >>> Goal(energy=0.89).count(np.array([3.0, 1.0])), Goal(error=0.4).count(np.array([3.0, 1.0]))
        (1, 1)
        """
        tail = np.concatenate([np.cumsum(s[::-1] ** 2)[::-1], [0.0]])  # tail[k]: what is lost by keeping k
        total, allowed = kept + tail[0], [0.0]
        if self.energy is not None:
            allowed.append((1.0 - self.energy) * total)
        if self.error is not None:
            allowed.append(self.error**2 * total)
        count = len(s) if len(allowed) == 1 else int(np.argmax(tail <= max(allowed)))
        return count if self.rank is None else min(count, self.rank)

    def loosened(self) -> Goal:
        """The same a little wider."""
        energy = None if self.energy is None else self.energy * (1 - SLACK)
        error = None if self.error is None else self.error * (1 + SLACK)
        return replace(self, energy=energy, error=error)


@dataclass(frozen=True, slots=True)
class Compressed:
    """Factors up (out, k) and down (k, n) of what is left, what was lost (Frobenius), and the norm before."""

    up: Array
    down: Array
    error: float
    norm: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


class TooFewError(ValueError):
    """The ranks asked for are fewer than those that are to be kept."""

    def __init__(self, kept: int) -> None:
        super().__init__(f"{kept} ranks are to be kept")
        self.kept = kept


def recompress(B: Array, A: Array | None, goal: Goal, keep: Array | None = None) -> Compressed:
    """The nearest update of fewer ranks.

    Args:
        B, A: the update ``B A`` (out, r), (r, n), float64, of NumPy, torch or any array API; or, with A None, the dense
            update B itself as a NumPy array.
        goal: how far to go.
        keep: orthonormal V (n, q): ``dW V`` stays as it is, and only ``dW (I - V V^T)`` is compressed.

    Returns:
        Balanced factors with at least one rank, the exact Frobenius error before any rounding, and ``||B A||_F``.

    Raises:
        TooFewError: ``dW V`` alone has more ranks than ``goal.rank``.

    >>> B, A = np.eye(3) * [3.0, 2.0, 1.0], np.eye(3)
    >>> found = recompress(B, A, Goal(rank=2))
    >>> found.rank, found.error
    (2, 1.0)
    """
    xp = namespace(B)
    kept = _empty(B, B.shape[1] if A is None else A.shape[1])
    if keep is not None:
        response = B @ keep if A is None else B @ (A @ keep)
        kept = _spectrum(response, transpose(keep))
        B, A = (B - response @ transpose(keep), None) if A is None else (B, A - (A @ keep) @ transpose(keep))
    held = float(xp.sum(kept[1] ** 2))
    if goal.rank is not None:
        if goal.rank < kept[1].shape[0]:
            raise TooFewError(kept[1].shape[0])
        goal = replace(goal, rank=goal.rank - kept[1].shape[0])
    U, s, V = (_by_gram(B, goal, held) if A is None else None) or _spectrum(B, A)
    count = goal.count(np.asarray(to_host(s)), held)
    norm = sqrt(held + float(xp.sum(s**2)))
    error = sqrt(float(xp.sum(s[count:] ** 2)))
    up, down = (
        xp.concat([kept[i] * xp.sqrt(kept[1]), half[:, :count] * xp.sqrt(s[:count])], axis=1)
        for i, half in ((0, U), (2, V))
    )
    if not down.shape[1]:  # a file holds no factor of rank 0
        like = {"dtype": up.dtype, "device": up.device}
        return Compressed(xp.zeros((B.shape[0], 1), **like), xp.zeros((1, V.shape[0]), **like), error, norm)
    return Compressed(up, transpose(down), error, norm)


def _spectrum(B: Array, A: Array | None) -> tuple[Array, Array, Array]:
    """U (out, k), s (k,), V (n, k) of ``B A``, or of the dense B; k its numerical rank."""
    if A is None:
        U, s, vt = np.linalg.svd(B, full_matrices=False)
        V: Array = vt.T
    else:
        U, s, V = thin_svd(B, A)
    rank = numerical_rank(s, (U.shape[0], V.shape[0]))
    return U[:, :rank], s[:rank], V[:, :rank]


def _by_gram(D: NDArray[np.float64], goal: Goal, held: float) -> tuple[Array, Array, Array] | None:
    """The same for a dense D with what the goal keeps of U and V; None where the tail is too small for this route.

    ``U s V^T`` is ``D V V^T`` with V orthonormal, whatever the rounding of s.
    """
    if min(D.shape) < GRAM_SIDE:
        return None
    tall = D if D.shape[0] >= D.shape[1] else D.T
    w, V = np.linalg.eigh(tall.T @ tall)
    w, V = np.maximum(w[::-1], 0.0), V[:, ::-1]
    s = np.sqrt(w)
    count = goal.count(s, held)
    if count == 0 or float(np.sum(w[count:])) <= GRAM_FLOOR * (held + float(np.sum(w))):
        return None
    U = tall @ V[:, :count] / s[:count]
    return (U, s, V[:, :count]) if D.shape[0] >= D.shape[1] else (V[:, :count], s, U)


def _empty(B: Array, n: int) -> tuple[Array, Array, Array]:
    xp, like = namespace(B), {"dtype": B.dtype, "device": B.device}
    return xp.zeros((B.shape[0], 0), **like), xp.zeros((0,), **like), xp.zeros((n, 0), **like)
