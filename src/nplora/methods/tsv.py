"""TSV-Merge: singular vectors of all tasks made orthogonal to each other (Gargiulo et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra import namespace, transpose
from ..algebra.bases import spectrum, truncated
from ..algebra.polar import polar
from ..parameters import RANK, SCALING
from . import Part, Product, merge, weighted


@merge(
    "tsv",
    title="TSV-Merge",
    reference="arXiv 2412.00081, Algorithm 1",
    formula="D = scaling * polar([U_1 .. U_K]) diag(S_1 .. S_K) polar([V_1 .. V_K])^T",
    guarantee="the plain sum where the updates are orthogonal; dW itself for K equal ones; any order gives the same",
    parameters=(SCALING, RANK),
    cores=True,
    batches=True,
)
def tsv(parts: Sequence[Part], *, seed: int = 0, scaling: float = 1.0, rank: int | None = None) -> Product:
    """The singular vectors of all updates replaced by the nearest orthonormal ones, on the updates' numerical ranks.

    >>> import numpy as np
    >>> one = Part(np.eye(3)[:, :1], np.eye(4)[:1], 3.0)
    >>> found = tsv([one, one])
    >>> float((found.up @ found.down).sum().round(6))
    3.0
    """
    found = [spectrum(up, down) for up, down in weighted(parts)]
    xp = namespace(found[0].s)
    spectra = [one for one in found if bool(xp.any(one.s > 0))] or found[:1]  # a zero update has no directions to turn
    U, V = (polar(xp.concat(vectors, axis=-1)) for vectors in ([x.U for x in spectra], [x.V for x in spectra]))
    s = xp.concat([x.s for x in spectra], axis=-1)
    up, down = U * (scaling * s)[..., None, :], transpose(V)
    sizes = [xp.sum(X * X, axis=(-2, -1)) for X in (U, V)]
    if rank is None and all(bool(xp.all(size > s.shape[-1] - 0.5)) for size in sizes):  # no direction was dropped
        return Product(up, down)
    return Product(*truncated(up, down, rank))
