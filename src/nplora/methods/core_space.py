"""Core Space: any merge, run on the small cores of the updates in bases that they share (Panariello et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra import Array, namespace
from ..algebra.bases import cores, truncated
from ..parameters import AGREEING, DENSITY, ELECTION, RANK, SCALING, Parameter
from . import Merge, Part, Product, merge, weighted
from .dare import dare
from .iso_c import iso_c
from .svd import svd
from .ties import ties
from .tsv import tsv

_INNER: dict[str, Merge] = {"ties": ties, "dare": dare, "linear": svd, "tsv": tsv, "iso": iso_c}
INNER = Parameter("inner", "choice", "ties", "The merge that runs inside.", choices=tuple(_INNER))


@merge(
    "core-space",
    title="Core Space",
    reference="arXiv 2509.17786, Section 4",
    formula="dW_i = U_B M_i V_A; M = inner(M_1, .., M_K); D = U_B M V_A",
    guarantee="no loss on the way in and out; linear, tsv and iso are the same as outside; rank at most sum r_i",
    parameters=(INNER, replace(DENSITY, default=0.2), ELECTION, AGREEING, SCALING, RANK),
)
def core_space(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    inner: str = "ties",
    density: float = 0.2,
    election: str = "total",
    agreeing: str = "mean",
    scaling: float = 1.0,
    rank: int | None = None,
) -> Product:
    """Merge the cores ``M_i`` (R, R) of the updates by any merge of this folder, and lift the result."""
    shared = cores(weighted(parts))
    if inner in {"ties", "dare"}:  # these look at entries
        values: dict[str, object] = {"density": density, "election": election, "agreeing": agreeing}
        small = [Part(M, _eye(M)) for M in shared.matrices]
    else:
        values, small = {}, [Part(up, down) for up, down in shared.factors]
    found = _INNER[inner](small, seed=seed, **values)
    up, down = shared.lift(scaling * (found.up @ found.down))
    return Product(up, down) if rank is None else Product(*truncated(up, down, rank))


def _eye(M: Array) -> Array:
    return namespace(M).eye(M.shape[1], dtype=M.dtype, device=M.device)
