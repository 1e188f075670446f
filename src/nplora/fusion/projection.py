"""Run the projections of a fusion: batches of equal shapes, one thread per core, memory bounded by a few batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Matrix
from ..algebra import (
    MAX_SPECTRUM_CONDITION,
    Grams,
    double,
    grams,
    inner,
    inner_products,
    namespace,
    orthonormal_form,
    transpose,
)  # fmt: skip
from ..algebra.devices import to_device, to_host
from ..methods import Method, Result
from ..storage import cast, compute_dtype, numpy_dtype
from ..threads import run_threads
from .jobs import ELEMENTS_IN_WORK, Batch, Emit, Job, Overlap, batches_of, require_finite
from .recall import recall, remember

LEAST = 1e-3  # of a norm that was taken away down to this share, nothing is given back: rounding would come with it


def stream(
    jobs: Sequence[Job],
    method: Method,
    values: Mapping[str, object],
    *,
    device: str = "cpu",
    allow_nonfinite: bool = False,
    emit: Emit | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Overlap]:
    """Run projections and hand each result on as soon as it is there.

    Args:
        jobs: what to project.
        method: the fusion method; values: its parameters, where a job has no others.
        device: "cpu" runs NumPy; "cuda" and "mps" run the same code on torch tensors.
        emit: called from worker threads with a batch of jobs and the stack of their projected factors (float32 or
            float64, unscaled): down factors (k, r_c, n) for the input side, up factors (k, out, r_c) for the output's.
        progress: called with (jobs done, jobs in all).

    Returns:
        Job key -> overlap.

    Raises:
        InputError: a factor holds NaN or infinity (unless allowed).
    """
    overlaps: dict[str, Overlap] = {}
    done = 0
    workers = os.cpu_count() or 1 if device == "cpu" else 1
    batches = batches_of(jobs, ELEMENTS_IN_WORK // workers)

    def run(batch: Sequence[Job]) -> list[Overlap]:
        return _run_batch(batch, method, {**values, **dict(batch[0].values)}, device, allow_nonfinite, emit)

    for batch, found in run_threads(run, batches, workers):
        overlaps.update((job.key, overlap) for job, overlap in zip(batch, found, strict=True))
        done += len(batch)
        if progress:
            progress(done, len(jobs))
    return {job.key: overlaps[job.key] for job in jobs}


def _stored_stack(matrices: Sequence[Matrix]) -> NDArray[np.generic]:
    """Matrices of one shape and dtype as a stack (k, rows, columns), as stored."""
    if len(matrices) == 1:
        return matrices[0].read()[None]
    stack = np.empty((len(matrices), *matrices[0].shape), numpy_dtype(matrices[0].dtype))
    for index, matrix in enumerate(matrices):
        stack[index] = matrix.read()
    return stack


def _run_batch(
    jobs: Sequence[Job],
    method: Method,
    values: Mapping[str, object],
    device: str,
    allow_nonfinite: bool,
    emit: Emit | None,
) -> list[Overlap]:
    pairs, dtype = [(job.subject, job.style) for job in jobs], compute_dtype(jobs[0].dtypes)
    plain = device == "cpu" and jobs[0].side == "input" and values.get("directions", "all") == "all"
    known = recall(pairs, dtype) if plain else None
    columns = [[pair[who][part] for pair in pairs] for who in (0, 1) for part in ((0, 1) if known is None else (1,))]
    stacks = [_stored_stack(matrices) for matrices in columns]
    projected, found = _project_batch(jobs, stacks, dtype, method, values, device, known)
    learned = energies(found, jobs)
    if not all(isfinite(overlap.subject) and isfinite(overlap.style) for overlap in learned):
        if not allow_nonfinite:
            for job in jobs:
                require_finite(job)
        if dtype == np.float32:  # finite factors whose squares overflow float32
            projected, found = _project_batch(jobs, stacks, np.dtype(np.float64), method, values, device)
            learned = energies(found, jobs)
    elif plain and known is None:
        remember(pairs, dtype, found[0])
    if emit is not None:
        held = {
            id(matrix): numbers
            for matrices, stack in zip(columns, stacks, strict=True)
            for matrix, numbers in zip(matrices, stack, strict=True)
        }
        emit(Batch(jobs, held), np.swapaxes(projected, -1, -2) if jobs[0].side == "output" else projected)
    return learned


def _project_batch(
    jobs: Sequence[Job],
    stacks: Sequence[NDArray[np.generic]],
    dtype: np.dtype[Any],
    method: Method,
    values: Mapping[str, object],
    device: str,
    known: Grams | None = None,
) -> tuple[NDArray[np.generic], tuple[Grams, Result]]:
    numbers = [cast(stack, dtype) for stack in stacks]
    with to_device(device) as place, np.errstate(all="ignore"):
        if known is not None:
            A_c, A_s = map(place, numbers)
            projected, found = project(None, A_c, None, A_s, method, values, known)
        else:
            B_c, A_c, B_s, A_s = numbers
            if jobs[0].side == "output":  # the same on transposed updates: dW^T = A^T B^T
                B_c, A_c, B_s, A_s = (np.ascontiguousarray(np.swapaxes(x, -1, -2)) for x in (A_c, B_c, A_s, B_s))
            projected, found = project(place(B_c), place(A_c), place(B_s), place(A_s), method, values)
        return to_host(projected), found


def project(
    B_c: Any, A_c: Any, B_s: Any, A_s: Any, method: Method, values: Mapping[str, object], known: Grams | None = None
) -> tuple[Any, tuple[Grams, Result]]:
    """The projected down factors of a batch: ``gain (A_c - C A_s)`` with the method's coefficients C.

    Args:
        B_c, A_c, B_s, A_s: stacks (k, out, r) and (k, r, n) of one dtype, NumPy, torch or any array API arrays.
        method: the fusion method; values: its parameters, and "calibrate": see `_left`.
        known: the Gram matrices but for K, certified, from an earlier time (then B_c and B_s are not looked at).

    Returns:
        The projected stack (k, r_c, n) in the inputs' dtype, and what the method saw and returned.
        Relative error: at most about ``1e3 * r * u`` of ``|A_c|`` with u the dtype's unit roundoff; modules for
        which the Gram route cannot keep that are recomputed in float64 by QR and SVD.
    """
    xp = namespace(A_c)
    dtype = A_c.dtype
    limit, values = float(values.get("calibrate", 1.0)), {n: v for n, v in values.items() if n != "calibrate"}  # type: ignore[arg-type]
    if known is not None:
        seen = replace(known, K=inner_products(A_c, A_s))
    elif values.get("directions", "all") == "all":
        seen = grams(B_c, A_c, B_s, A_s)
    else:  # single directions need the spectrum, which Gram matrices square
        B_c, A_c, B_s, A_s = (double(x) for x in (B_c, A_c, B_s, A_s))
        seen = grams(B_c, A_c, B_s, A_s, MAX_SPECTRUM_CONDITION)
    good = seen.full_rank
    if bool(xp.all(good)):
        result = method(seen, **values)
        return xp.astype(_left(A_c, A_s, seen, result, limit), dtype), (seen, result)
    pieces = []
    for index in range(A_c.shape[0]):
        one = (slice(index, index + 1), ...)
        if bool(good[index]):
            mine = seen.take(index)
            result = method(mine, **values)
            pieces.append((_left(A_c[one], A_s[one], mine, result, limit), result))
        else:
            pieces.append(_project_by_svd(B_c[one], A_c[one], B_s[one], A_s[one], method, values, limit))
    inside = xp.concat([result.inside for _, result in pieces])
    protected = xp.concat([result.protected for _, result in pieces])
    return xp.astype(xp.concat([array for array, _ in pieces]), dtype), (seen, Result(seen.K, inside, protected))


def _project_by_svd(
    B_c: Any, A_c: Any, B_s: Any, A_s: Any, method: Method, values: Mapping[str, object], limit: float
) -> tuple[Any, Result]:
    """The same for one ill-conditioned or rank-deficient style: its orthonormal form, in float64."""
    xp = namespace(A_c)
    wide = xp.float64
    if not _is_finite(B_s, A_s):
        return A_c, _nothing(A_c)
    B_o, A_o, s = (array[None, ...] for array in orthonormal_form(B_s[0, ...], A_s[0, ...]))
    if A_o.shape[1] == 0:  # a style without a single direction protects nothing
        return A_c, _nothing(A_c)
    subject = xp.astype(A_c, wide)
    seen = replace(grams(xp.astype(B_c, wide), subject, B_o, A_o), s=s)
    result = method(seen, **values)
    return xp.astype(_left(subject, A_o, seen, result, limit), A_c.dtype), result


def _left(A_c: Any, A_s: Any, seen: Grams, result: Result, limit: float) -> Any:
    """What is left of the subject: ``gain (A_c - C A_s)``, the gain being the method's own times the calibration.

    Calibration gives the norm of the update back as far as the limit allows: ``min(limit, ||dW_c|| / ||X||)``; it is
    1 where nothing is left but rounding.
    """
    xp = namespace(A_c)
    X = A_c - xp.astype(result.C, A_c.dtype) @ A_s
    if result.gain is not None:
        X = xp.astype(result.gain, X.dtype)[..., None, None] * X
    if limit <= 1:
        return X
    left, whole = inner(seen.G_c, double(X @ transpose(X))), inner(seen.G_c, seen.H_c)
    live = left > LEAST**2 * whole
    ratio = xp.sqrt(xp.where(live, whole, xp.ones_like(whole)) / xp.where(live, left, xp.ones_like(left)))
    gain = xp.where(ratio > 1, xp.where(ratio > limit, xp.full_like(ratio, limit), ratio), xp.ones_like(ratio))
    return xp.astype(gain, X.dtype)[..., None, None] * X


def _nothing(A_c: Any) -> Result:
    zero = namespace(A_c).zeros((1,), dtype=namespace(A_c).float64, device=A_c.device)
    return Result(zero, zero, zero)


def _is_finite(*arrays: Any) -> bool:
    return all(bool(namespace(array).all(namespace(array).isfinite(array))) for array in arrays)


def energies(found: tuple[Grams, Result], batch: Sequence[Job]) -> list[Overlap]:
    """What a projection of a batch learned, module by module, from what `project` returned."""
    seen, result = found
    with np.errstate(invalid="ignore", over="ignore"):  # infinite factors are told of by the caller
        subject, style = inner(seen.G_c, seen.H_c), inner(seen.G_s, seen.H_s)
    overlaps = []
    for index, job in enumerate(batch):
        w_c, w_s = (factor**2 for factor in job.factors)
        width = job.shapes[1][1] if job.side == "input" else job.shapes[0][0]
        overlaps.append(
            Overlap(
                job.name, w_c * float(subject[index]), w_s * float(style[index]), w_c * float(result.inside[index]),
                int(result.protected[index]), width, job.role, job.values,
            )
        )  # fmt: skip
    return overlaps
