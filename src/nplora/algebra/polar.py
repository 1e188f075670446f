"""Polar factors: columns made orthonormal with the least change. Functions take leading axes as a batch."""

from __future__ import annotations

from .factors import Array, namespace, transpose

NEAR_UNIT, STEPS = 4.0, 10  # largest row sum of a matrix whose root Newton and Schulz find in so many steps, if any


def polar_root(G: Array, tolerance: float = 1e-6) -> Array:
    """``(F^T F)^(-1/2)`` on its support from ``G = F^T F``: F times it is the partial polar factor of F.

    Directions with a singular value of at most `tolerance` of the largest one are dropped: they would be turned into
    arbitrary ones. G (..., k, k) may be a batch.
    """
    quick = _inverse_root(G)
    if quick is not None:
        return quick
    xp = namespace(G)
    w, W = xp.linalg.eigh(G)
    dead = w <= tolerance**2 * w[..., -1:]
    scale = xp.where(dead, xp.zeros_like(w), 1 / xp.sqrt(xp.where(dead, xp.ones_like(w), w)))
    return (W * scale[..., None, :]) @ transpose(W)


def _inverse_root(G: Array) -> Array | None:
    """``G^(-1/2)`` by Newton and Schulz, in a few small products where no eigenvalue is small; None elsewhere.

    The coupled iteration (Higham, Functions of Matrices, Eq. 6.35) is stable, and converges for eigenvalues in (0, 3).
    """
    xp = namespace(G)
    bound = xp.max(xp.sum(xp.abs(G), axis=-1), axis=-1)[..., None, None]  # of the eigenvalues
    if not bool(xp.all((bound > 0) & (bound < NEAR_UNIT))):
        return None
    eye = xp.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    Y, Z, enough = G / bound, eye + xp.zeros_like(G), xp.finfo(G.dtype).eps
    for _ in range(STEPS):
        ZY = Z @ Y
        T = 1.5 * eye - 0.5 * ZY
        Y, Z = Y @ T, T @ Z
        if bool(xp.all(xp.sum((ZY - eye) ** 2, axis=(-2, -1)) < enough)):  # more than what this step leaves
            return Z / xp.sqrt(bound)
    return None


def polar(F: Array) -> Array:
    """The partial polar factor of a long F: its columns made orthonormal with the least change, on their support."""
    return F @ polar_root(transpose(F) @ F)
