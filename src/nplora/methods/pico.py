"""Pico: output directions that adapters share are damped before the merge (Tang and Yang 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from ..algebra import Array, namespace, transpose
from ..algebra.bases import basis, energy, spectrum, stacked, truncated
from ..parameters import DENSITY, RANK, SCALING, Parameter
from . import Merge, Part, Product, merge, weighted
from .ties import ties
from .tsv import tsv

_INNER: dict[str, Merge] = {"ties": ties, "tsv": tsv}
INNER = Parameter("inner", "choice", "linear", "The merge that runs inside.", choices=("linear", *_INNER))
LEAST = 1e-6  # of the adapters' norms; updates that cancel leave rounding, which is not scaled up
RESCALE = Parameter(
    "rescale", "choice", "each",
    "What gets its norm back: each adapter its own, or the merged update the mean of the adapters' norms.",
    choices=("each", "merged", "nothing"),
)  # fmt: skip


@merge(
    "pico",
    title="Pico, shared output directions damped",
    reference="arXiv 2604.16826 and its authors' code",
    formula="sum_i dW_i dW_i^T = U diag(e) U^T; dW_i' = U diag(1 / (1 + (K - 1) e / sum e)) U^T dW_i; D = inner(dW_i')",
    guarantee="one adapter, or a flat spectrum e, is the plain sum; the same for any order and any factors",
    parameters=(INNER, RESCALE, replace(DENSITY, default=0.2), SCALING, RANK),
)
def pico(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    inner: str = "linear",
    rescale: str = "each",
    density: float = 0.2,
    scaling: float = 1.0,
    rank: int | None = None,
) -> Product:
    """Damp each output direction by its share of the energy of all K updates together, rescale, and merge.

    >>> import numpy as np
    >>> one = Part(np.diag([3.0, 1.0]), np.eye(2))
    >>> found = pico([one, one], rescale="nothing")
    >>> (found.up @ found.down).round(6)  # shares .9 and .1
    array([[3.157895, 0.      ],
           [0.      , 1.818182]])
    """
    spectra = [spectrum(up, down) for up, down in weighted(parts)]
    spectra = [one for one in spectra if float(one.s[0]) > 0] or spectra[:1]
    ups = [one.U * one.s[None, :] for one in spectra]  # V^T has orthonormal rows: the norms of ups are the updates'
    norms = [_norm(up) for up in ups]
    calm = _damped(ups)
    if rescale == "each":
        calm = [up * (norm / _norm(up)) if norm else up for up, norm in zip(calm, norms, strict=True)]
    factors = [(up, transpose(one.V)) for up, one in zip(calm, spectra, strict=True)]
    if inner == "linear":
        up, down = stacked(factors)
        error = 0.0
        if rank is not None:
            up, down, error = truncated(up, down, rank)
    else:
        options: dict[str, object] = {"density": density} if inner == "ties" else {}
        found = _INNER[inner]([Part(*pair) for pair in factors], seed=seed, rank=rank, **options)
        up, down, error = found.up, found.down, found.error
    size = sqrt(energy(up, down) + error**2)  # before the truncation
    live = rescale == "merged" and size > LEAST * sum(norms)
    gain = scaling * (sum(norms) / len(norms) / size if live else 1.0)
    return Product(gain * up, down, abs(gain) * error)


def _damped(ups: Sequence[Array]) -> list[Array]:
    """``U diag(1 / (1 + (K - 1) c)) U^T B_i`` with the shares c of the energies in ``[B_1 .. B_K] = U diag(s) ..``."""
    xp = namespace(ups[0])
    whole = basis(xp.concat(list(ups), axis=1))
    x, s, _ = xp.linalg.svd(whole.R, full_matrices=False)
    total = float(xp.sum(s * s))
    shared = (len(ups) - 1) * s * s / (total or 1.0)
    U, taken = whole.lift(x), shared / (1 + shared)
    return [up - U @ (taken[:, None] * (transpose(U) @ up)) for up in ups]


def _norm(matrix: Array) -> float:
    return sqrt(float(namespace(matrix).sum(matrix * matrix)))
