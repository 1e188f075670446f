"""LoRA-LEGO: rank-one units of all updates, clustered; each cluster becomes one unit (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from ..algebra import Array, namespace, transpose
from ..algebra.bases import fixed_signs, spectrum
from ..parameters import RANK
from . import Part, Product, merge, weighted

ROUNDS = 100  # of Lloyd's algorithm at most; a few are enough for the tens of units that a module has


@merge(
    "lego",
    title="LoRA-LEGO",
    reference="arXiv 2409.16167 as we read it, on SVD units",
    formula="units (sqrt(s) u, sqrt(s) v) of all w_i dW_i; k-means, signs aligned; D = R/k sum of the k centroids",
    guarantee="k = R, or K equal adapters at k = r, is the exact sum; the same for any factors of the same updates",
    parameters=(replace(RANK, sentence="Number of clusters; by default the largest rank of one adapter."),),
)
def lego(parts: Sequence[Part], *, seed: int = 0, rank: int | None = None) -> Product:
    """Cluster the SVD units of all updates into `rank` ones.

    A centroid is scaled to the mean length of its members, and both sides by ``sqrt(R / k)``: the sum of R units keeps
    its size. Without a rank, k is the largest rank of one update.

    >>> import numpy as np
    >>> one = Part(np.eye(3)[:, :2], np.diag([2.0, 1.0, 0.0])[:2])
    >>> found = lego([one, one], rank=2)
    >>> (found.up @ found.down).round(6)
    array([[4., 0., 0.],
           [0., 2., 0.],
           [0., 0., 0.]])
    """
    spectra = [spectrum(up, down) for up, down in weighted(parts)]
    spectra = [one for one in spectra if float(one.s[0]) > 0] or spectra[:1]
    xp = namespace(spectra[0].s)
    U = xp.concat([one.U * xp.sqrt(one.s)[None, :] for one in spectra], axis=1)  # (out, R)
    V = xp.concat([one.V * xp.sqrt(one.s)[None, :] for one in spectra], axis=1)  # (n, R)
    U, Vt = fixed_signs(U, transpose(V))
    R = U.shape[1]
    k = min(rank or max(one.s.shape[0] for one in spectra), R)
    G = transpose(U) @ U + Vt @ transpose(Vt)  # inner products of the units
    M = _centroids(G, k)
    lengths, members = xp.sqrt(xp.linalg.diagonal(G)), xp.astype(M != 0, G.dtype)
    mean = xp.sum(members * lengths[:, None], axis=0) / xp.sum(members, axis=0)
    own = xp.sqrt(xp.sum(M * (G @ M), axis=0))
    M = M * (sqrt(R / k) * mean / xp.where(own > 0, own, xp.ones_like(own)))[None, :]
    return Product(U @ M, transpose(M) @ Vt)


def _centroids(G: Array, k: int) -> Array:
    """Lloyd's k-means on inner products alone: centroids as combinations (R, k) of the units, signs aligned.

    A unit and its negative are the same rank-one update. It starts from the longest unit and then, one by one, from
    those farthest from the ones chosen.
    """
    xp, R = namespace(G), G.shape[0]
    square = xp.linalg.diagonal(G)
    chosen = [int(xp.argmax(square))]
    far = xp.full_like(square, xp.inf)
    for _ in range(k - 1):
        j = chosen[-1]
        far = xp.minimum(far, square + square[j] - 2 * abs(G[:, j]))
        far = xp.where(xp.arange(R, device=G.device) == j, xp.full_like(far, -xp.inf), far)
        chosen.append(int(xp.argmax(far)))
    M = xp.stack([xp.eye(R, dtype=G.dtype, device=G.device)[:, j] for j in chosen], axis=1)
    for _ in range(ROUNDS):
        found = _assigned(G, M)
        if bool(xp.all(found == M)):
            break
        M = found
    return M


def _assigned(G: Array, M: Array) -> Array:
    """The mean of the units that are nearest to each centroid up to sign."""
    xp, products = namespace(G), G @ M
    square = xp.linalg.diagonal(G)
    distances = square[:, None] + xp.sum(M * products, axis=0)[None, :] - 2 * abs(products)
    nearest = _all_used(xp.argmin(distances, axis=1), xp.min(distances, axis=1), M.shape[1])
    one = xp.astype(nearest[:, None] == xp.arange(M.shape[1], device=G.device)[None, :], G.dtype)
    tiny = 1e-9 * xp.sum(square)  # units of one update are orthogonal: rounding must not turn them
    signs = xp.where(products < -tiny, -xp.ones_like(products), xp.ones_like(products))
    return one * signs / xp.sum(one, axis=0)[None, :]


def _all_used(nearest: Array, distances: Array, k: int) -> Array:
    """The clusters (R,) of the units; one without any takes the unit that is farthest from its own centroid."""
    xp, clusters = namespace(nearest), [int(cluster) for cluster in nearest]
    farthest = [int(unit) for unit in xp.argsort(-distances)]
    for empty in set(range(k)) - set(clusters):
        taken = next(unit for unit in farthest if clusters.count(clusters[unit]) > 1)
        clusters[taken] = empty
    return xp.asarray(clusters, device=nearest.device)
