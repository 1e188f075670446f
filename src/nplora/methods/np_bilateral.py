"""NP-LoRA on both sides: only what maps the style's inputs to the style's outputs is taken away."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra import transpose
from ..algebra.bases import energy, orthonormal_rows, spectrum, stacked, truncated
from ..parameters import MU, attenuation
from . import Part, Product, merge, weighted


@merge(
    "np-bilateral",
    title="Null-space projection on both sides",
    reference="the least change with U^T X V attenuated; after arXiv 2511.11051",
    formula="X = dW_c - g U (U^T dW_c V) V^T = argmin ||X - dW_c||^2 + mu ||U^T X V||^2,  g = mu / (1 + mu)",
    guarantee="hard: U_s^T dW_m V_s is the style's own diag(s); rank at most sum r_i; no smaller change does it",
    parameters=(MU,),
    cores=True,
)
def np_bilateral(parts: Sequence[Part], *, seed: int = 0, mu: float = 0.5) -> Product:
    """Each adapter loses what it does between the input and the output directions of all later ones.

    Args:
        parts: the last is the most protected.
        seed: of no use here.
        mu: 0 is the exact sum, infinity takes all of it away.

    >>> import numpy as np
    >>> style = Part(np.eye(2)[:, :1], np.eye(2)[:1])
    >>> found = np_bilateral([Part(np.ones((2, 1)), np.ones((1, 2))), style], mu=float("inf"))
    >>> (found.up @ found.down).round(6)
    array([[1., 1.],
           [1., 1.]])
    """
    factors, g = weighted(parts), attenuation(mu)
    if len(factors) == 2 and min(energy(*pair) for pair in factors) > 0:  # dW = B_c A_c + U (diag(s) - g M) V^T
        (up, down), style = factors[0], spectrum(*factors[1])
        U, Vt = style.U, transpose(style.V)
        M = (transpose(U) @ up) @ (down @ transpose(Vt))
        return Product(*stacked([(up, down), (U, style.s[:, None] * Vt - g * M @ Vt)]))
    done = list(factors)
    for index, (up, down) in enumerate(factors):
        later = [pair for pair in factors[index + 1 :] if energy(*pair) > 0]
        if later and g > 0 and energy(up, down) > 0:
            U = transpose(orthonormal_rows([(transpose(down), transpose(up)) for up, down in later]))
            Vt = orthonormal_rows(later)
            done.append((-g * U, (transpose(U) @ up) @ (down @ transpose(Vt)) @ Vt))
    return Product(*stacked(done)) if len(done) == len(factors) else Product(*truncated(*stacked(done)))
