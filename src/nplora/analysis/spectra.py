"""Singular values and singular vectors of low-rank updates, batched, from r x r Gram matrices in float64.

With ``H = A A^T = C^T C`` and ``G = B^T B`` of ``dW = B A``, ``C G C^T = W S^2 W^T`` gives the singular values S, the
right vectors ``V = A^T C^-1 W`` and the left ones ``U = B H C^-1 W S^-1``. Both are coefficients of
r x k times a factor, so nothing larger than r x r is made.

The Gram route squares the condition number: a singular value is exact to about ``1e-8 s_1``. Directions below
`WEAK` times the largest do not count as directions; they hold less than 1e-10 of the energy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank, Matrix
from ..fusion.jobs import BATCH_ELEMENTS, read_stack
from ..reading.adapter import Module
from ..threads import run_threads

Array = NDArray[Any]  # float64; read_stack and linalg say less about what they return
WEAK = 1e-5  # of the largest singular value
SURE = 1e-3  # a row this far from the span of those before it, at length 1, is no copy of them
FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one update at strength 1, descending, and what follows from them.

    ``rank`` is what the file stores (rows of the down factor); a full matrix has the smaller side of its shape.
    """

    values: Array
    rank: int
    norm: float  # Frobenius; infinite where a number is not finite

    @property
    def alive(self) -> int:
        """How many directions count: singular values above `WEAK` times the largest."""
        return int(np.sum(self.values > WEAK * self.values[0])) if len(self.values) and self.values[0] > 0 else 0

    @property
    def dead(self) -> int:
        """Ranks that are stored and do nothing."""
        return self.rank - self.alive

    @property
    def effective_rank(self) -> float:
        """``exp(-sum p ln p)`` with ``p = s / sum s``: how many directions share the work (Roy and Vetterli, 2007).

        >>> round(Spectrum(np.array([2.0, 2.0, 0.0]), 3, 8**0.5).effective_rank, 6)
        2.0
        """
        total = float(np.sum(self.values))
        if not total > 0:
            return 0.0
        shares = self.values[self.values > 0] / total
        return float(np.exp(-np.sum(shares * np.log(shares))))

    @property
    def stable_rank(self) -> float:
        """``||dW||_F^2 / ||dW||_2^2``: 1 where one direction holds all of the energy."""
        largest = float(self.values[0]) if len(self.values) else 0.0
        return float(np.sum(self.values**2)) / largest**2 if largest > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Form:
    """Thin singular value decompositions of a batch, as coefficients of the factors.

    ``s`` (k, r) descending; ``V = A^T right`` and ``U = B left`` with ``left``, ``right`` (k, r, r). Columns of
    directions that do not count are zero.
    """

    s: Array
    left: Array
    right: Array


def form(G: Array, H: Array) -> Form:
    """The decomposition of ``B A`` from ``G = B^T B`` and ``H = A A^T``, both (k, r, r) float64.

    Ranks are scaled to rows of length 1 first, so that a rank of tiny A and huge B is no false zero. Matrices that
    hold NaN or infinity come out as zero.
    """
    good: Array = np.isfinite(G + H).all(axis=(-2, -1))
    G, H = np.where(good[:, None, None], G, 0.0), np.where(good[:, None, None], H, 0.0)
    lengths = np.sqrt(np.diagonal(H, axis1=-2, axis2=-1))
    scale = np.where(lengths > 0, lengths, 1.0)
    H1, G1 = H / (scale[:, :, None] * scale[:, None, :]), G * (scale[:, :, None] * scale[:, None, :])
    C, back = _root_of(H1)
    squares, W = np.linalg.eigh(C @ G1 @ np.swapaxes(C, -1, -2))
    squares, W = np.maximum(squares[:, ::-1], 0.0), W[:, :, ::-1]
    s = np.sqrt(squares)
    live = s > WEAK * s[:, :1]
    right = back @ W * live[:, None, :]
    left = H1 @ right / np.where(live, s, 1.0)[:, None, :]
    return Form(s, left * scale[:, :, None], right / scale[:, :, None])


def _root_of(H: Array) -> tuple[Array, Array]:
    """C with ``H = C^T C``, and its inverse: by Cholesky where all of a batch has full rank, else by eigenvectors."""
    try:
        L = np.linalg.cholesky(H)
    except np.linalg.LinAlgError:
        L = np.zeros_like(H)
    if np.min(np.diagonal(L, axis1=-2, axis2=-1), initial=1.0) > SURE:
        C = np.swapaxes(L, -1, -2)
        return C, np.linalg.inv(C)
    eigenvalues, Q = np.linalg.eigh(H)
    kept = eigenvalues > WEAK**2 * np.maximum(eigenvalues[:, -1:], 0.0)
    roots = np.sqrt(np.where(kept, eigenvalues, 0.0))
    inverse = np.where(kept, 1.0 / np.where(kept, roots, 1.0), 0.0)
    return roots[:, :, None] * np.swapaxes(Q, -1, -2), Q * inverse[:, None, :]


def grams_of(B: Array, A: Array) -> tuple[Array, Array]:
    """``B^T B`` and ``A A^T`` of stacks (k, out, r) and (k, r, n)."""
    with np.errstate(all="ignore"):
        return np.swapaxes(B, -1, -2) @ B, A @ np.swapaxes(A, -1, -2)


def spectra(modules: Iterable[Module]) -> dict[str, Spectrum | None]:
    """Module name -> its spectrum at strength 1; None for a kind whose update is not known.

    Args:
        modules: of an adapter; batches of equal shapes are read together, one thread for each core.

    Returns:
        Spectra in the order of the modules.
    """
    listed = list(modules)
    found: dict[str, Spectrum | None] = {}
    for batch, part in run_threads(_spectra, _batches(listed), os.cpu_count() or 1):
        found.update((module.name, spectrum) for module, spectrum in zip(batch, part, strict=True))
    return {module.name: found[module.name] for module in listed}


def _batches(modules: Sequence[Module]) -> Iterator[list[Module]]:
    groups: dict[tuple[object, ...], list[Module]] = {}
    for module in modules:
        update = module.update
        shapes = (update.up.shape, update.down.shape) if isinstance(update, LowRank) else (module.name,)
        groups.setdefault(shapes, []).append(module)
    for group in groups.values():
        update = group[0].update
        numbers = max(_size(update.up), _size(update.down)) if isinstance(update, LowRank) else BATCH_ELEMENTS
        step = max(1, BATCH_ELEMENTS // max(numbers, 1))
        for start in range(0, len(group), step):
            yield group[start : start + step]


def _size(matrix: Matrix) -> int:
    return matrix.shape[0] * matrix.shape[1]


def _spectra(batch: Sequence[Module]) -> list[Spectrum | None]:
    updates: list[Any] = [module.update for module in batch]
    if isinstance(updates[0], Full):
        return [_of_full(update) for update in updates]
    if not isinstance(updates[0], LowRank):
        return [None] * len(batch)
    B, A = (read_stack([getattr(update, side) for update in updates], FLOAT64) for side in ("up", "down"))
    G, H = grams_of(B, A)
    values = form(G, H).s[:, : min(updates[0].size)]
    with np.errstate(all="ignore"):
        squares = np.sum(G * H, axis=(-2, -1))
    return [
        Spectrum(abs(update.scale) * s, update.rank, abs(update.scale) * _root(float(square)))
        for update, s, square in zip(updates, values, squares, strict=True)
    ]


def _root(square: float) -> float:
    return sqrt(max(square, 0.0)) if isfinite(square) else inf


def _of_full(update: Full) -> Spectrum:
    """A full matrix is stored whole: its smaller Gram matrix."""
    dense = np.asarray(update.diff.read(), FLOAT64)
    with np.errstate(all="ignore"):
        gram = dense @ dense.T if dense.shape[0] <= dense.shape[1] else dense.T @ dense
    if not np.isfinite(gram).all():
        return Spectrum(np.zeros(0), update.rank, inf)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return Spectrum(values, update.rank, float(np.linalg.norm(dense)))
