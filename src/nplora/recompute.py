"""Recompute one module of a fusion from its sources, by another route than `projection`, and measure an output by it.

The projection there goes through Gram matrices and a linear solve, in batches and often in float32. Here every
module goes alone, in float64, through QR and an SVD of the style's update (`algebra.thin_svd`); nothing but the
pairing of the modules is shared with the code that writes.

**Error.** The output's product less the expected one, ``D = sigma B' A' - sum_i f_i B_i A_i``, is one product of
stacks, ``[B' B_1 ..] [sigma A'; -f_1 A_1; ..]``. Equal columns of the left stack are merged first, so that what was
copied cancels exactly; then ``||D||_F`` follows from QR of both stacks. It is given relative to
``S = sum_i |f_i| || |B_i| |A_i| ||_F``, the size of what was added up (``A_c`` as it was before the projection).

**Bound.** A number x of a factor may be stored as ``round(y)`` with ``|y - x| <= e |x|`` for the arithmetic before
it. If no rounding boundary lies between x and y, it is ``round(x)``; otherwise the error is at most
``|round(x) - x| + 2 |y - x|``. So one correct rounding of each factor,

    R = sum_i |sigma| (|| B_i (round(x_i) - x_i) ||_F + || (round(B_i) - B_i) x_i ||_F),   x_i = (f_i / sigma) A_i',

says what the number type of each tensor costs, subnormal halves included; it is 0 where the type holds the numbers.
The bound is ``2 R + e S``: twice R, because of the few numbers that fall to the other side of a boundary, and e of
`ARITHMETIC` for the rest. R is far below the worst case of ``u || |B| |A| ||_F`` a factor (u the unit roundoff),
since roundings do not conspire; with the worst case a factor that is wrong by 1 % would pass unseen in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from .adapter import Module
from .adapters import Full, LowRank, Matrix, Opaque, Update
from .algebra import MAX_DOWN_CONDITION, numerical_rank, product_norm, thin_svd
from .fused import FusedModule
from .merging import balanced
from .parameters import attenuation
from .projection import Job
from .storage import cast, compute_dtype, numpy_dtype

Array = NDArray[np.float64]

ARITHMETIC = {
    "check": 64 * 2.0**-53,  # this check's own
    "scale": 3 * 2.0**-24,  # a scale stored as a float32 alpha, one taken for 1, the multiplication in float32
    "projection": 1.0,  # unit roundoffs of the type that was computed in, see `_projection_error`
    "directions": 64 * 2.0**-53,  # singular vectors: divided by the relative gap beside the last one
}
TIE = 1e-12  # shares of the energy nearer than this to the asked one may be cut on either side


@dataclass(frozen=True, slots=True)
class Check:
    """One module (or bias) of an output: its relative error, and how large it may be."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return isfinite(self.error) and self.error <= self.bound

    @property
    def severity(self) -> float:
        """The error in units of the bound."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if isfinite(self.error) and self.bound > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Strand:
    """One expected summand ``factor * B @ A``; ``size`` is ``|factor| || |B| |A| ||_F`` before any projection."""

    B: Array
    A: Array
    factor: float
    size: float
    arithmetic: float = 0.0  # error of the projection's own arithmetic, relative to size


def check_module(module: FusedModule, found: Module) -> Check:
    """Compare a module of an output with what the fusion should have made of it.

    Args:
        module: its members with their strengths. found: the output's module.

    Returns:
        The relative error and its bound; the error is infinite where shapes or kinds differ or a number is not finite.
    """
    updates = [member.update for member in module.modules]
    if any(isinstance(update, Opaque) for update in updates):
        return _check_carried(module, updates[0], found.update)
    if found.update.size != updates[0].size:
        return Check(module.name, float("inf"), 0.0)
    try:
        with np.errstate(all="ignore"):  # NaN and infinity make the error infinite
            if any(isinstance(update, Full) for update in updates):
                return _check_dense(module, found.update)
            assert isinstance(found.update, LowRank)
            checks = [_check_strands(module.name, strands, found.update) for strands in _expected(module)]
    except (np.linalg.LinAlgError, AssertionError):
        return Check(module.name, float("inf"), 0.0)
    return min(checks, key=lambda check: check.severity)


def read(matrix: Matrix) -> Array:
    """A stored matrix in float64."""
    return cast(np.ascontiguousarray(matrix.read()), np.dtype(np.float64))


def _expected(module: FusedModule) -> list[list[Strand]]:
    """The strands of a low-rank module; several answers only where the asked share of the energy is a tie."""
    strands = []
    if module.merges:
        product = module.product_of([member.part() for member in module.members])
        B, A = balanced(product.up, product.down)
        return [[Strand(B, A, 1.0, _absolute_norm(B, A))]]
    for member in module.members:
        if isinstance(member.update, LowRank):
            B, A, factor = read(member.update.up), read(member.update.down), member.strength * member.update.scale
            strands.append(Strand(B, A, factor, abs(factor) * _absolute_norm(B, A)))
    g = attenuation(float(module.values.get("mu", 0.0)))  # type: ignore[arg-type]
    if module.job is None or g == 0:
        return [strands]
    side = module.side
    subject, style = strands
    U, s, V = thin_svd(style.B, style.A)
    answers = []
    for count in _counts(s, module.values["directions"], (style.B.shape[0], style.A.shape[1])):
        arithmetic = _projection_error(style, module.job, g) + _directions_error(s, count, (style.B, style.A), side, g)
        if side == "input":
            V_k = V[:, :count]
            changed = Strand(
                subject.B, subject.A - g * (subject.A @ V_k) @ V_k.T, subject.factor, subject.size, arithmetic
            )
        else:
            U_k = U[:, :count]
            changed = Strand(
                subject.B - g * U_k @ (U_k.T @ subject.B), subject.A, subject.factor, subject.size, arithmetic
            )
        answers.append([changed, style])
    return answers


def _counts(s: Array, directions: object, size: tuple[int, int]) -> list[int]:
    """How many directions are protected; more than one answer where a share of the energy is met within `TIE`."""
    rank = numerical_rank(s, size)
    if directions == "all" or rank == 0:
        return [rank]
    if isinstance(directions, int):
        return [min(rank, directions)]
    held = np.cumsum(s[:rank] ** 2) / np.sum(s[:rank] ** 2)
    least, most = (int(np.sum(held < float(directions) + tie)) + 1 for tie in (-TIE, TIE))  # type: ignore[arg-type]
    return list(range(min(least, rank), min(most, rank) + 1))


def _projection_error(style: Strand, job: Job, g: float) -> float:
    """Error of ``A_c - g K H^-1 A_s`` in floating point, relative to ``|A_c|``: about ``u (1 + g sqrt(n r) / s_min)``.

    A dot product of n numbers errs by about ``sqrt(n) u`` of the norms (Higham and Mary, 2019); r of them make a row
    of K, and H^-1 A_s magnifies it by 1 / s_min, the smallest singular value of A_s with its rows scaled to norm 1.
    """
    u = 2.0**-24 if compute_dtype(job.dtypes) == np.float32 else 2.0**-53
    rows = style.A if job.side == "input" else style.B.T
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1.0)
    least = float(np.linalg.eigvalsh(rows @ rows.T)[0])
    smallest = sqrt(max(least, 1 / MAX_DOWN_CONDITION))  # below it, the projection goes by SVD
    return ARITHMETIC["projection"] * u * (1.0 + g * sqrt(prod(rows.shape)) / smallest)


def _directions_error(s: Array, count: int, style: tuple[Array, Array], side: str, g: float) -> float:
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


def _check_strands(name: str, strands: list[Strand], found: LowRank) -> Check:
    size = sum(strand.size for strand in strands)
    scale = found.scale
    error = product_norm(*_merged([read(found.up), *(s.B for s in strands)],
                                  [scale * read(found.down), *(-s.factor * s.A for s in strands)]))  # fmt: skip
    allowed = ARITHMETIC["check"] * size
    for strand in strands:
        rounded = _rounding(strand, found) if scale else float("inf")
        arithmetic = strand.arithmetic + (ARITHMETIC["scale"] if strand.factor != scale or strand.arithmetic else 0.0)
        allowed += 2 * rounded + arithmetic * strand.size
    if not isfinite(error):
        return Check(name, float("inf"), 0.0)
    return Check(name, _share(error, size), _share(allowed, size))


def _share(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else float("inf")


def _rounding(strand: Strand, found: LowRank) -> float:
    """What one correct rounding of both factors to the output's types changes, as a norm of the product."""
    target = (strand.factor / found.scale) * strand.A
    lost_A = _loss(target, found.down.dtype)
    lost_B = _loss(strand.B, found.up.dtype)
    return abs(found.scale) * (_gram_norm(strand.B, lost_A) + _gram_norm(lost_B, target))


def _loss(numbers: Array, dtype: str) -> Array:
    return cast(np.ascontiguousarray(numbers), numpy_dtype(dtype)).astype(np.float64) - numbers


def _gram_norm(B: Array, A: Array) -> float:
    """``||B A||_F`` where a few digits are enough; infinite where a number overflowed."""
    if not B.any() or not A.any():
        return 0.0
    square = float(np.sum((B.T @ B) * (A @ A.T)))
    return sqrt(max(square, 0.0)) if isfinite(square) else float("inf")


def _merged(lefts: list[Array], rights: list[Array]) -> tuple[Array, Array]:
    """Stacks with the same product: equal columns on the left become one, their rows on the right are added up."""
    columns, sums = np.concatenate([left.T for left in lefts]), np.concatenate(rights)
    signs = columns.view(np.int64).sum(axis=1).tolist()  # equal columns have equal sums of bits
    kept: dict[int, list[int]] = {}
    for index, sign in enumerate(signs):
        alike = kept.setdefault(sign, [])
        twin = next((other for other in alike if np.array_equal(columns[other], columns[index])), None)
        if twin is None:
            alike.append(index)
        else:
            sums[twin] += sums[index]
            sums[index] = 0.0
    live = sums.any(axis=1)
    return columns[live].T, sums[live]


def _check_dense(module: FusedModule, found: Update) -> Check:
    """A module that a full matrix takes part in: it is dense in the files already."""
    if isinstance(found, Opaque):
        return Check(module.name, float("inf"), 0.0)
    parts = [member.strength * member.update.delta() for member in module.members]
    size = sum(float(np.linalg.norm(part)) for part in parts)
    arithmetic = ARITHMETIC["check"]
    g = attenuation(float(module.values.get("mu", 0.0)))  # type: ignore[arg-type]
    if len(parts) == 2 and g:
        side = module.side
        style = module.style.update  # type: ignore[union-attr]
        pair = (
            (read(style.up), read(style.down))
            if isinstance(style, LowRank)
            else (np.eye(parts[1].shape[0]), style.delta())
        )
        U, s, V = thin_svd(*pair)
        count = _counts(s, module.values["directions"], style.size or (0, 0))[0]
        arithmetic += _directions_error(s, count, pair, side, g)
        parts[0] = (
            parts[0] - g * (parts[0] @ V[:, :count]) @ V[:, :count].T
            if side == "input"
            else (parts[0] - g * U[:, :count] @ (U[:, :count].T @ parts[0]))
        )
    expected = sum(parts[1:], parts[0])
    error = float(np.linalg.norm(found.delta() - expected))
    lost = float(np.linalg.norm(_loss(expected, found.diff.dtype))) if isinstance(found, Full) else 0.0
    if not isfinite(error):
        return Check(module.name, float("inf"), 0.0)
    return Check(module.name, _share(error, size), _share(2 * lost, size) + arithmetic)


def _check_carried(module: FusedModule, source: Update, found: Update) -> Check:
    """A kind that is carried along: every tensor must be the same bytes."""
    if not (isinstance(source, Opaque) and isinstance(found, Opaque)):
        return Check(module.name, float("inf"), 0.0)
    same = sorted(_bytes(source)) == sorted(_bytes(found))
    return Check(module.name, 0.0 if same else float("inf"), 0.0)


def _bytes(update: Opaque) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(suffix, t.dtype, t.shape, t.read().tobytes()) for suffix, t in update.parts.items()]
