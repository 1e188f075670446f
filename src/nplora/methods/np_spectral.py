"""NP-LoRA by the style's spectrum: each of its directions is protected as much as it matters to the style."""

from __future__ import annotations

from ..algebra import Array, Grams, namespace, transpose
from ..parameters import MU, attenuation
from . import Result, method
from .np import np_projection


@method(
    "np-spectral",
    title="Null-space projection by the style's spectrum",
    reference="operator of arXiv 2511.11051 with C_s = dW_s^T dW_s / s_1^2",
    parameters=(MU,),
    formula="X = dW_c (I + mu dW_s^T dW_s / s_1^2)^-1: direction i keeps s_1^2 / (s_1^2 + mu s_i^2)",
    guarantee="equal singular values: np with the same mu; the style's strength and dead ranks change nothing",
)
def np_spectral(grams: Grams, *, mu: float = 0.5) -> Result:
    """``dW_c (I - V diag(a) V^T)`` with ``a_i = mu s_i^2 / (s_1^2 + mu s_i^2)``: graded where np cuts all alike.

    In Gram form ``C = mu' K (I + mu' G_s H_s)^-1 G_s`` with ``mu' = mu / s_1^2``. mu = inf is np's hard projection.

    Args:
        grams: of one module or a batch.
        mu: how strongly the style's first direction is protected.

    Returns:
        As of np: the coefficients, the energy inside all of the style's directions, and their number.
    """
    xp, g = namespace(grams.K), attenuation(mu)
    root = _root(grams.G_s)
    energy, Z = xp.linalg.eigh(transpose(root) @ grams.H_s @ root)  # s_i^2, ascending
    taken = g / ((1 - g) * energy[..., -1:] + g * energy)  # a_i / s_i^2
    RZ = root @ Z
    whole = np_projection.function(grams, mu=0.0)
    return Result(grams.K @ (RZ * taken[..., None, :]) @ transpose(RZ), whole.inside, whole.protected)


def _root(G: Array) -> Array:
    """``R`` with ``G = R R^T``."""
    xp = namespace(G)
    w, W = xp.linalg.eigh(G)
    return W * xp.sqrt(xp.where(w > 0, w, xp.zeros_like(w)))[..., None, :]
