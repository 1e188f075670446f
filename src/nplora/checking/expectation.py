"""What a module of an output should be: recomputed from the sources, in float64, by another route than `projection`.

The code that writes goes through Gram matrices and a linear solve, in batches and often in float32. Here every module
goes alone, through QR and an SVD of what is protected (`algebra.thin_svd`). Of a projection other than np the function
is the same, but on orthonormal rows; of a merge the function is the same, and what is checked is everything around it:
which modules met at which strengths and seeds, rounding, scales, writing, naming.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product as combinations
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from ..adapters import LowRank, Matrix
from ..algebra import MAX_DOWN_CONDITION, grams, numerical_rank, orthonormal_form, product_norm, thin_svd
from ..fusion.fused import FusedModule, Member
from ..fusion.jobs import Job
from ..fusion.merging import balanced
from ..fusion.projection import LEAST
from ..methods import Method
from ..parameters import attenuation
from ..storage import cast, compute_dtype

Array = NDArray[np.float64]

ARITHMETIC = {
    "check": 64 * 2.0**-53,  # this check's own
    "scale": 3 * 2.0**-24,  # a scale stored as a float32 alpha, one taken for 1, the multiplication in float32
    "projection": 1.0,  # unit roundoffs of the type that was computed in, see `_projection_error`
    "directions": 64 * 2.0**-53,  # singular vectors: divided by the relative gap beside the last one
}
TIE = 1e-12  # shares of the energy nearer than this to the asked one may be cut on either side


@dataclass(frozen=True, slots=True)
class Strand:
    """One expected summand ``factor * B @ A``; ``size`` is ``|factor| || |B| |A| ||_F`` before any projection."""

    B: Array
    A: Array
    factor: float
    size: float
    arithmetic: float = 0.0  # error of the projection's own arithmetic, relative to size


def read(matrix: Matrix) -> Array:
    """A stored matrix in float64."""
    return cast(np.ascontiguousarray(matrix.read()), np.dtype(np.float64))


def expected(module: FusedModule) -> list[list[Strand]]:
    """The strands of a low-rank module; several answers only where the asked share of the energy is a tie."""
    if module.merges:
        product = module.product_of([member.part() for member in module.members])
        B, A = balanced(product.up, product.down)
        return [[Strand(B, A, 1.0, _absolute_norm(B, A))]]
    choices = [_strands(member, module) for member in module.members if isinstance(member.update, LowRank)]
    return [list(answer) for answer in combinations(*choices)]


def _plain(member: Member) -> Strand:
    update = member.update
    assert isinstance(update, LowRank)
    B, A, factor = read(update.up), read(update.down), member.strength * update.scale
    return Strand(B, A, factor, abs(factor) * _absolute_norm(B, A))


def _strands(member: Member, module: FusedModule) -> list[Strand]:
    """One adapter's strand, projected where it gives way to others."""
    own, job = _plain(member), module.projections.get(member.role)
    if job is None or module.values.get("mu") == 0:
        return [own]
    return [_calibrated(changed, own, module.calibrate) for changed in _projected(own, job, module)]


def _calibrated(changed: Strand, own: Strand, limit: float) -> Strand:
    """What is left, scaled up towards the norm that it had; its error grows with it."""
    left, whole = product_norm(changed.B, changed.A), product_norm(own.B, own.A)
    if limit <= 1 or left >= whole or left <= LEAST * whole:
        return changed
    gain = min(limit, whole / left)
    return replace(changed, A=gain * changed.A, arithmetic=3 * gain * changed.arithmetic)


def _projected(own: Strand, job: Job, module: FusedModule) -> list[Strand]:
    B, A = _protected([_plain(other) for other in module.members if other.role in job.above], module.side)
    if module.method.name != "np":
        return [_by_function(own, B, A, module, job)]
    g, answers = attenuation(float(module.values["mu"])), []  # type: ignore[arg-type]
    U, s, V = thin_svd(B, A)
    for count in counts(s, module.values["directions"], (B.shape[0], A.shape[1])):
        arithmetic = _projection_error(B, A, job, g) + directions_error(s, count, (B, A), module.side, g)
        if module.side == "input":
            V_k = V[:, :count]
            answers.append(replace(own, A=own.A - g * (own.A @ V_k) @ V_k.T, arithmetic=arithmetic))
        else:
            U_k = U[:, :count]
            answers.append(replace(own, B=own.B - g * U_k @ (U_k.T @ own.B), arithmetic=arithmetic))
    return answers


def _protected(above: list[Strand], side: str) -> tuple[Array, Array]:
    """One update with the row space (column space) of all that is protected: blocks on a diagonal beside a stack."""
    if len(above) == 1:
        return above[0].B, above[0].A
    if side == "input":
        return _diagonal([one.factor * one.B for one in above]), np.concatenate([one.A for one in above])
    return np.concatenate([one.B for one in above], axis=1), _diagonal([one.factor * one.A for one in above])


def _diagonal(blocks: list[Array]) -> Array:
    out = np.zeros((sum(b.shape[0] for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out


def _by_function(own: Strand, B: Array, A: Array, module: FusedModule, job: Job) -> Strand:
    """A projection other than np: its own function, but in float64 on orthonormal rows instead of Gram matrices."""
    subject, style = ((own.B, own.A), (B, A)) if module.side == "input" else ((own.A.T, own.B.T), (A.T, B.T))
    B_o, A_o, s = orthonormal_form(*style)
    if not len(s):
        return own
    B_c, A_c = subject
    seen = replace(grams(B_c[None], A_c[None], B_o[None], A_o[None]), s=s[None])
    assert isinstance(module.method, Method)
    result = module.method(seen, **module.values)
    gain = 1.0 if result.gain is None else float(result.gain[0])
    changed = gain * (subject[1] - result.C[0] @ A_o)
    arithmetic = _projection_error(B, A, job, 1.0)
    if module.side == "input":
        return replace(own, A=changed, arithmetic=arithmetic)
    return replace(own, B=changed.T, arithmetic=arithmetic)


def counts(s: Array, directions: object, size: tuple[int, int]) -> list[int]:
    """How many directions are protected; more than one answer where a share of the energy is met within `TIE`."""
    rank = numerical_rank(s, size)
    if directions == "all" or rank == 0:
        return [rank]
    if isinstance(directions, int):
        return [min(rank, directions)]
    held = np.cumsum(s[:rank] ** 2) / np.sum(s[:rank] ** 2)
    least, most = (int(np.sum(held < float(directions) + tie)) + 1 for tie in (-TIE, TIE))  # type: ignore[arg-type]
    return list(range(min(least, rank), min(most, rank) + 1))


def _projection_error(B: Array, A: Array, job: Job, g: float) -> float:
    """Error of ``A_c - g K H^-1 A_s`` in floating point, relative to ``|A_c|``: about ``u (1 + g sqrt(n r) / s_min)``.

    A dot product of n numbers errs by about ``sqrt(n) u`` of the norms (Higham and Mary, 2019); r of them make a row
    of K, and H^-1 A_s magnifies it by 1 / s_min, the smallest singular value of A_s with its rows scaled to norm 1.
    """
    u = 2.0**-24 if compute_dtype(job.dtypes) == np.float32 else 2.0**-53
    rows = A if job.side == "input" else B.T
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1.0)
    least = float(np.linalg.eigvalsh(rows @ rows.T)[0])
    smallest = sqrt(max(least, 1 / MAX_DOWN_CONDITION))  # below it, the projection goes by SVD
    return ARITHMETIC["projection"] * u * (1.0 + g * sqrt(prod(rows.shape)) / smallest)


def directions_error(s: Array, count: int, style: tuple[Array, Array], side: str, g: float) -> float:
    """How far the protected space itself may turn: rounding over the gap to the next singular value (Wedin)."""
    B, A = style
    if count in (0, A.shape[0], A.shape[1] if side == "input" else B.shape[0]):
        return 0.0  # nothing, the factor's whole space, or the whole space: none depends on a gap
    gap = float(s[count - 1] - (s[count] if count < len(s) else 0.0)) / float(s[0])
    return 2 * g * min(1.0, ARITHMETIC["directions"] / gap) if gap > 0 else 2 * g


def _absolute_norm(B: Array, A: Array) -> float:
    """``|| |B| |A| ||_F`` from r x r Gram matrices (nothing cancels, all numbers are positive)."""
    B, A = np.abs(B), np.abs(A)
    return sqrt(float(np.sum((B.T @ B) * (A @ A.T))))
