"""Fusion of modules of which one adapter stores the full matrix; only there something out x in exists already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .adapters import Full, LowRank, Update
from .algebra import numerical_rank
from .errors import UsageError
from .parameters import attenuation


def protected_directions(style: Update, directions: str | int | float) -> NDArray[np.float64]:
    """Right singular vectors (n, k) of a style's update that are protected, from a dense SVD in float64."""
    delta = style.delta()
    if not np.isfinite(delta).all():  # allowed by --allow-nonfinite: such a style has no directions
        return np.zeros((delta.shape[1], 0))
    _, s, vt = np.linalg.svd(delta, full_matrices=False)
    rank = numerical_rank(s, (delta.shape[0], delta.shape[1]))
    if isinstance(directions, int):
        rank = min(rank, directions)
    elif isinstance(directions, float) and rank:
        energy = np.cumsum(s[:rank] ** 2)
        rank = int(np.searchsorted(energy, directions * energy[-1] * (1 - 1e-12))) + 1
    return np.ascontiguousarray(vt[:rank].T)


def fuse_dense(
    subject: Update, style: Update, strengths: tuple[float, float], mu: float, directions: str | int | float, side: str
) -> NDArray[np.float64]:
    """``w_s dW_s + w_c dW_c (I - g V V^T)`` with at least one of the two stored as a full matrix.

    Returns:
        The dense float64 update (out, in*kernel).
    """
    if not (isinstance(subject, (Full, LowRank)) and isinstance(style, (Full, LowRank))):
        raise UsageError("only LoRA and full modules can be fused", hint="Please report this.")
    dW_c, dW_s, g = subject.delta(), style.delta(), attenuation(mu)
    with np.errstate(all="ignore"):
        if g:
            if side == "output":
                U = _left(style, directions)
                dW_c = dW_c - g * U @ (U.T @ dW_c)
            else:
                V = protected_directions(style, directions)
                dW_c = dW_c - g * (dW_c @ V) @ V.T
        return np.asarray(strengths[1] * dW_s + strengths[0] * dW_c)


def _left(style: Update, directions: str | int | float) -> NDArray[np.float64]:
    V = protected_directions(style, directions)
    if not V.shape[1]:
        return np.zeros((style.delta().shape[0], 0))
    u, _, _ = np.linalg.svd(style.delta(), full_matrices=False)
    return np.asarray(u[:, : V.shape[1]])
