"""Iso-CTS: directions common to all updates and each one's own, all equally strong (Marczak et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra import namespace, transpose
from ..algebra.bases import energy, spectrum, stacked, truncated
from ..algebra.polar import polar
from ..parameters import RANK, SCALING, Parameter
from . import Part, Product, merge, weighted

COMMON = Parameter(
    "common", "number", 0.8, "Share of the sum's directions that form the common space.", low=0.0, high=1.0
)


@merge(
    "iso-cts",
    title="Iso-CTS, on the support of the sum",
    reference="arXiv 2502.04959, Algorithm 2",
    formula="U = polar([U_common, U_1 .. U_K]), V likewise, s = mean of their singular values; D = scaling * s U V^T",
    guarantee="common = 1 is Iso-C; ranks are counted against the rank of the sum, not the size of the weight",
    parameters=(COMMON, SCALING, RANK),
)
def iso_cts(
    parts: Sequence[Part], *, seed: int = 0, common: float = 0.8, scaling: float = 1.0, rank: int | None = None
) -> Product:
    """The sum's leading directions, and each update's own in what they leave of it, orthogonal and equally strong.

    Of the sum's R directions each of the K updates gets ``(R - floor(common R)) / K``, rounded as in the authors' code
    (to even), and the common space the rest.

    >>> import numpy as np
    >>> found = iso_cts([Part(np.diag([1.0, 3.0]), np.eye(2))])
    >>> (found.up @ found.down).round(6)
    array([[2., 0.],
           [0., 2.]])
    """
    factors = [pair for pair in weighted(parts) if energy(*pair) > 0]
    if not factors:  # no direction at all
        return Product(*truncated(*weighted(parts)[0], rank))
    whole = spectrum(*stacked(factors))
    xp, R = namespace(whole.s), whole.s.shape[0]
    own = own_directions(R, len(factors), common)
    kept = R - own * len(factors)
    left, right, s = whole.U[:, :kept], whole.V[:, :kept], [whole.s[:kept]]
    us, vs = [left], [right]
    for up, down in factors if own else ():
        rest = spectrum(up - left @ (transpose(left) @ up), down)
        count = min(own, rest.s.shape[0]) if float(rest.s[0]) > 1e-9 * float(whole.s[0]) else 0
        us.append(rest.U[:, :count])
        vs.append(rest.V[:, :count])
        s.append(rest.s[:count])
    U, V = (polar(xp.concat(columns, axis=1)) for columns in (us, vs))
    return Product(*truncated(scaling * xp.mean(xp.concat(s)) * U, transpose(V), rank))


def own_directions(R: int, count: int, common: float) -> int:
    """How many directions each of `count` updates gets of R.

    >>> own_directions(8, 2, 0.8), own_directions(8, 3, 0.8), own_directions(8, 2, 1.0), own_directions(5, 2, 0.0)
    (1, 1, 0, 2)
    """
    return min(round((R - int(common * R + 1e-9)) / count), R // count)
