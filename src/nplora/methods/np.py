"""NP-LoRA: the subject is projected away from the style's input directions (arXiv 2511.11051)."""

from __future__ import annotations

from ..algebra import Array, Grams, inner, namespace, transpose
from ..parameters import DIRECTIONS, MU, attenuation
from . import Result, method


@method(
    "np",
    title="Null-space projection (NP-LoRA)",
    reference="arXiv 2511.11051, Eq. 12 of its third version",
    parameters=(MU, DIRECTIONS),
    formula="dW = w_s dW_s + w_c dW_c (I - g V V^T) with g = mu / (1 + mu)",
    guarantee="The subject's response in the protected directions is divided by 1 + mu (0 for mu = inf). Exact.",
    linear=True,
)
def np_projection(grams: Grams, *, mu: float = 0.5, directions: str | int | float = "all") -> Result:
    """``dW_c (I - g V V^T)`` with ``g = mu / (1 + mu)`` and V the style's right singular vectors.

    In Gram form ``V V^T = A_s^T T T^T A_s``, so ``C = g K T T^T`` with ``T T^T = H_s^-1`` for all directions.

    Args:
        grams: of one module or a batch; ``H_s`` must be well conditioned (see `algebra.well_conditioned`).
        mu: 0 is plain addition, infinity the hard projection.
        directions: "all", an integer k (the top k), or a fraction of the style's energy.

    Returns:
        Coefficients, the subject's energy inside the protected space, and the number of directions.
    """
    xp = namespace(grams.K)
    if directions == "all":
        KP = transpose(xp.linalg.solve(grams.H_s, transpose(grams.K)))
        protected = xp.full_like(xp.sum(KP, axis=(-2, -1)), float(grams.K.shape[-1]))
    else:
        T, keep = _leading_directions(grams, directions)
        KP = (grams.K @ T) @ transpose(T)
        protected = xp.sum(keep, axis=-1)
    inside = inner(grams.G_c, KP @ transpose(grams.K))
    return Result(attenuation(mu) * KP, inside, protected)


def _leading_directions(grams: Grams, directions: str | int | float) -> tuple[Array, Array]:
    """T (..., r, r) with ``V = A_s^T T`` the leading right singular vectors, other columns zero; and the mask."""
    xp = namespace(grams.H_s)
    energy, T = _spectrum(grams)
    above = xp.cumulative_sum(energy, axis=-1) - energy  # of all larger ones
    if isinstance(directions, int):
        chosen = xp.broadcast_to(xp.arange(energy.shape[-1], device=energy.device) < directions, energy.shape)
    else:
        # direction i is needed while those above it alone do not hold the asked share
        chosen = (above < float(directions) * xp.sum(energy, axis=-1, keepdims=True)) | (directions == 1.0)
    keep = xp.astype(chosen, energy.dtype)
    return T * keep[..., None, :], keep


def _spectrum(grams: Grams) -> tuple[Array, Array]:
    """Energies ``s_i^2`` (..., r), the largest first, and T (..., r, r) with ``V = A_s^T T``."""
    xp = namespace(grams.H_s)
    if grams.s is not None:
        eye = xp.eye(grams.s.shape[-1], dtype=grams.s.dtype, device=grams.s.device)
        return grams.s**2, xp.broadcast_to(eye, grams.H_s.shape)
    w, W = xp.linalg.eigh(grams.G_s)
    root = W * xp.sqrt(xp.where(w > 0, w, xp.zeros_like(w)))[..., None, :]  # G = root root^T
    energy, Z = xp.linalg.eigh(transpose(root) @ grams.H_s @ root)  # ascending
    energy, Z = xp.flip(energy, axis=-1), xp.flip(Z, axis=-1)
    return energy, (root @ Z) / xp.sqrt(energy)[..., None, :]
