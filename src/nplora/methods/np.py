"""NP-LoRA: the subject is projected away from the style's input directions (arXiv 2511.11051)."""

from __future__ import annotations

from ..algebra import Array, Grams, inner, namespace, transpose
from ..parameters import DIRECTIONS, MU, attenuation
from . import Result, method


@method(
    "np",
    title="Null-space projection (NP-LoRA)",
    reference="arXiv 2511.11051, Eq. 12 (soft) and Eq. 11 (hard)",
    parameters=(MU, DIRECTIONS),
)
def np_projection(grams: Grams, *, mu: float = 0.5, directions: str | int | float = "all") -> Result:
    """``dW_c (I - g V V^T)`` with ``g = mu / (1 + mu)`` and V the style's right singular vectors (Eq. 12).

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
    w, W = xp.linalg.eigh(grams.G_s)
    root = W * xp.sqrt(xp.where(w > 0, w, xp.zeros_like(w)))[..., None, :]  # G = root root^T
    energy, Z = xp.linalg.eigh(transpose(root) @ grams.H_s @ root)  # ascending s_i^2
    energy = xp.where(energy > 0, energy, xp.zeros_like(energy))
    largest = energy[..., -1:]
    counts = energy > largest * (max(grams.size) * xp.finfo(energy.dtype).eps)
    above = xp.flip(xp.cumulative_sum(xp.flip(energy, axis=-1), axis=-1), axis=-1)  # energy of i and all larger
    if isinstance(directions, int):
        order = xp.flip(xp.arange(energy.shape[-1], device=energy.device))
        chosen = xp.broadcast_to(order < directions, energy.shape)
    else:
        # direction i is needed while those above it alone do not hold the asked share
        chosen = (above - energy) < float(directions) * above[..., :1]
    keep = xp.astype(chosen & counts, energy.dtype)
    inverse = keep / xp.sqrt(xp.where(counts, energy, xp.ones_like(energy)))
    return (root @ Z) * inverse[..., None, :], keep
