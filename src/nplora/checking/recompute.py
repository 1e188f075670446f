"""Recompute one module of a fusion from its sources, by another route than `projection`, and measure an output by it.

What it should be comes from `expectation`, which shares nothing but the matching of the modules with the code that
writes.

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

**Compressed results.** The error may also be that of the nearest update of so many ranks, which its singular values
say exactly; where the style's response was to be kept, ``D V`` may only be what rounding explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank, Opaque, Update
from ..algebra import product_norm, thin_svd
from ..algebra.compression import SLACK, recompress
from ..fusion.dense import calibrated, spanning
from ..fusion.fused import FusedModule
from ..fusion.recompression import style_basis
from ..parameters import attenuation
from ..reading.adapter import Module
from ..storage import cast, numpy_dtype
from .expectation import ARITHMETIC, Strand, counts, directions_error, expected, read

Array = NDArray[np.float64]


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
            if module.goal is not None:
                return _check_compressed(module, found.update)
            if any(isinstance(update, Full) for update in updates):
                return _check_dense(module, found.update)
            assert isinstance(found.update, LowRank)
            checks = [_check_strands(module.name, strands, found.update) for strands in expected(module)]
    except (np.linalg.LinAlgError, AssertionError):
        return Check(module.name, float("inf"), 0.0)
    return min(checks, key=lambda check: check.severity)


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


def _check_compressed(module: FusedModule, found: Update) -> Check:
    """A module that was compressed: as near to the exact one as its ranks allow, and the style's response untouched."""
    if isinstance(found, Full):
        return _check_dense(module, found)
    assert isinstance(found, LowRank)
    if module.is_dense:
        return _check_nearest_dense(module, found)
    answers = expected(module)
    plain = min((_check_strands(module.name, strands, found) for strands in answers), key=lambda check: check.severity)
    if plain.passed:  # it had no more ranks than were asked for
        return plain
    return min((_check_nearest(module, strands, found) for strands in answers), key=lambda check: check.severity)


def _check_nearest_dense(module: FusedModule, found: LowRank) -> Check:
    total, size, arithmetic = _expected_dense(module)
    assert module.goal is not None
    V = style_basis(module)
    nearest = recompress(total, None, module.goal.loosened(), V)
    rounded = 2 * _rounding(Strand(nearest.up, nearest.down, 1.0, size), found)
    allowed = rounded + (arithmetic + ARITHMETIC["scale"]) * size
    difference = found.delta() - total
    checks = [(float(np.linalg.norm(difference)), nearest.error * (1 + SLACK) + allowed)]
    if V is not None:
        checks.append((float(np.linalg.norm(difference @ V)), allowed))
    return _worst(module.name, checks, size)


def _check_nearest(module: FusedModule, strands: list[Strand], found: LowRank) -> Check:
    B, A = np.concatenate([s.factor * s.B for s in strands], axis=1), np.concatenate([s.A for s in strands])
    assert module.goal is not None
    V = style_basis(module)
    nearest = recompress(B, A, module.goal.loosened(), V)
    size, scale = sum(strand.size for strand in strands), found.scale
    rounded = 2 * _rounding(Strand(nearest.up, nearest.down, 1.0, size), found)
    arithmetic = sum(s.arithmetic * s.size for s in strands) + (ARITHMETIC["check"] + ARITHMETIC["scale"]) * size
    error = product_norm(np.hstack([read(found.up), B]), np.vstack([scale * read(found.down), -A]))
    checks = [(error, nearest.error * (1 + SLACK) + rounded + arithmetic)]
    if V is not None:
        response = np.vstack([scale * read(found.down) @ V, -(A @ V)])
        checks.append((product_norm(np.hstack([read(found.up), B]), response), rounded + arithmetic))
    return _worst(module.name, checks, size)


def _worst(name: str, checks: list[tuple[float, float]], size: float) -> Check:
    """The (error, bound) nearest to its bound, relative to a size."""
    if not all(isfinite(error) for error, _ in checks):
        return Check(name, float("inf"), 0.0)
    return max((Check(name, _share(e, size), _share(b, size)) for e, b in checks), key=lambda check: check.severity)


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
    total, size, arithmetic = _expected_dense(module)
    error = float(np.linalg.norm(found.delta() - total))
    lost = float(np.linalg.norm(_loss(total, found.diff.dtype))) if isinstance(found, Full) else 0.0
    if not isfinite(error):
        return Check(module.name, float("inf"), 0.0)
    return Check(module.name, _share(error, size), _share(2 * lost, size) + arithmetic)


def _expected_dense(module: FusedModule) -> tuple[Array, float, float]:
    """The dense result, the size of what is added up, and the relative error of computing it."""
    parts = {member.role: member.strength * member.update.delta() for member in module.members}
    size = sum(float(np.linalg.norm(part)) for part in parts.values())
    arithmetic, total = ARITHMETIC["check"], np.zeros_like(next(iter(parts.values())))
    for role, part in parts.items():
        kept, error = _given_way(module, role, part)
        total += kept
        arithmetic += error
    return total, size, arithmetic


def _given_way(module: FusedModule, role: str, part: Array) -> tuple[Array, float]:
    """One adapter's dense share without what it gives way to, and how far the directions of that may turn."""
    g, directions = attenuation(float(module.values.get("mu", 0.0))), module.values.get("directions", "all")  # type: ignore[arg-type]
    above = [member for member in module.members if member.role in module.gives_way.get(role, ())]
    if not above or not g:
        return part, 0.0
    meant = [spanning(member.update, directions) for member in above]
    if len(meant) == 1 and isinstance(meant[0], LowRank):
        pair = read(meant[0].up), read(meant[0].down)
        pair = pair if module.side == "input" else (pair[1].T, pair[0].T)
    else:
        deltas = [member.strength * update.delta() for member, update in zip(above, meant, strict=True)]
        joined = np.concatenate(deltas) if module.side == "input" else np.concatenate(deltas, axis=1).T
        pair = (
            (np.eye(joined.shape[0]), joined)
            if joined.shape[0] <= joined.shape[1]
            else (joined, np.eye(joined.shape[1]))
        )
    _, s, V = thin_svd(*pair)
    count = counts(s, directions, (pair[0].shape[0], pair[1].shape[1]))[0]
    V = V[:, :count]
    error = directions_error(s, count, pair, "input", g)
    left = part - g * (part @ V) @ V.T if module.side == "input" else part - g * V @ (V.T @ part)
    return calibrated(left, float(np.linalg.norm(part)), module.calibrate), error


def _check_carried(module: FusedModule, source: Update, found: Update) -> Check:
    """A kind that is carried along: every tensor must be the same bytes."""
    if not (isinstance(source, Opaque) and isinstance(found, Opaque)):
        return Check(module.name, float("inf"), 0.0)
    same = sorted(_bytes(source)) == sorted(_bytes(found))
    return Check(module.name, 0.0 if same else float("inf"), 0.0)


def _bytes(update: Opaque) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(suffix, t.dtype, t.shape, t.read().tobytes()) for suffix, t in update.parts.items()]
