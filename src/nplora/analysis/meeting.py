"""Where two adapters meet in one weight: principal angles, inner product, signs, and a common start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ..algebra import Grams, well_conditioned
from ..fusion.jobs import Job, Overlap, batches_of, read_stack
from ..fusion.projection import energies
from ..methods import Method
from ..storage import compute_dtype
from ..threads import run_threads
from .signs import count_signs, expected_share, sampled_rows
from .spectra import FLOAT64, WEAK, Array, form, grams_of


@dataclass(frozen=True, slots=True)
class Meeting:
    """What two updates of one weight have to do with each other; energies are squared norms at strength 1.

    ``row_cosines`` and ``column_cosines`` are the cosines of the principal angles between the row spaces (what the
    updates read from) and the column spaces (what they write to), descending; one for each direction of the side
    that has fewer. ``down_cosine`` is the cosine between the stored down factors, as far as the shorter of the two
    goes (a seed fills rows in order); None where it is not known. ``differ`` of ``entries`` sampled entries have
    opposite signs. ``overlap`` is the one that a fusion by the method asked for would find, where Gram matrices are
    certified to suffice for it.
    """

    name: str
    subject: float
    style: float
    inner: float
    row_cosines: Array
    column_cosines: Array
    down_cosine: float | None
    differ: int
    entries: int
    overlap: Overlap | None = None

    @property
    def cosine(self) -> float:
        """The cosine between the two updates as vectors."""
        size = sqrt(max(self.subject, 0.0) * max(self.style, 0.0))
        return min(max(self.inner / size, -1.0), 1.0) if size > 0 else 0.0

    @property
    def together(self) -> float:
        """The energy of the sum."""
        return max(self.subject + self.style + 2 * self.inner, 0.0)

    @property
    def sign_share(self) -> float:
        """Share of the sampled entries with opposite signs."""
        return self.differ / self.entries if self.entries else 0.0

    @property
    def sign_excess(self) -> float:
        """The share beyond `expected_share`, never negative."""
        return max(self.sign_share - expected_share(self.cosine), 0.0) if self.entries else 0.0


def meet(
    jobs: Iterable[Job],
    projection: tuple[Method, Mapping[str, object]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Meeting]:
    """Job key -> meeting, for low-rank updates; factors are read once, batches of equal shapes together.

    Cosines are exact to about 1e-6: Gram matrices and everything r x r are float64.

    Args:
        jobs: pairs of updates, as a fusion makes them.
        projection: a method and its parameters, whose overlap is told with each meeting.
        progress: called with (jobs done, jobs in all).
    """
    listed = list(jobs)
    found: dict[str, Meeting] = {}
    batches = list(batches_of(listed))
    for batch, part in run_threads(lambda batch: _meet(batch, projection), batches, os.cpu_count() or 1):
        found.update((job.key, meeting) for job, meeting in zip(batch, part, strict=True))
        if progress:
            progress(len(found), len(listed))
    return {job.key: found[job.key] for job in listed}


def _meet(batch: Sequence[Job], projection: tuple[Method, Mapping[str, object]] | None) -> list[Meeting]:
    dtype = compute_dtype(batch[0].dtypes)
    stacks = zip(*((*job.subject, *job.style) for job in batch), strict=True)
    narrow = [read_stack(matrices, dtype) for matrices in stacks]
    with np.errstate(all="ignore"):
        counts = _signs(batch, *narrow)
        B_c, A_c, B_s, A_s = (stack.astype(FLOAT64, copy=False) for stack in narrow)
        (G_c, H_c), (G_s, H_s) = grams_of(B_c, A_c), grams_of(B_s, A_s)
        K, M = A_c @ np.swapaxes(A_s, -1, -2), np.swapaxes(B_c, -1, -2) @ B_s
        one, two = form(G_c, H_c), form(G_s, H_s)
        finite: Array = np.isfinite(np.sum(K, axis=(-2, -1)) + np.sum(M, axis=(-2, -1)))
        K, M = (np.where(finite[:, None, None], X, 0.0) for X in (K, M))
        rows = _cosines(np.swapaxes(one.right, -1, -2) @ K @ two.right)
        columns = _cosines(np.swapaxes(one.left, -1, -2) @ M @ two.left)
        subject, style, inner = (np.sum(X, axis=(-2, -1)) for X in (G_c * H_c, G_s * H_s, M * K))
        starts = _common_start(K, H_c, H_s)
        overlaps: list[Overlap | None] = [None] * len(batch)
        if projection is not None:
            certified = well_conditioned(H_s, G_s, B_s) & finite & np.isfinite(subject + style)
            overlaps = _overlaps(batch, Grams(K, H_s, G_s, H_c, G_c, certified), *projection)
    return [
        Meeting(
            job.name, job.factors[0] ** 2 * float(subject[i]), job.factors[1] ** 2 * float(style[i]),
            job.factors[0] * job.factors[1] * float(inner[i]),
            rows[i, : _directions(one.s[i], two.s[i])], columns[i, : _directions(one.s[i], two.s[i])],
            float(starts[i]) if np.isfinite(starts[i]) else None, *counts[i], overlaps[i],
        )
        for i, job in enumerate(batch)
    ]  # fmt: skip


def _overlaps(batch: Sequence[Job], grams: Grams, method: Method, values: Mapping[str, object]) -> list[Overlap | None]:
    """The overlap of each module, as the fusion finds it; None where its Gram matrices do not suffice."""
    good = np.flatnonzero(grams.full_rank).tolist()
    found: list[Overlap | None] = [None] * len(batch)
    if good:
        seen = Grams(*(getattr(grams, name)[good] for name in ("K", "H_s", "G_s", "H_c", "G_c", "full_rank")))
        own = {parameter.name: values[parameter.name] for parameter in method.parameters}
        overlaps = energies((seen, method(seen, **own)), [batch[index] for index in good])
        for index, overlap in zip(good, overlaps, strict=True):
            found[index] = overlap
    return found


def _directions(one: Array, two: Array) -> int:
    """How many principal angles there are: the directions that count on the side that has fewer."""
    return min(int(np.sum(s > WEAK * s[0])) for s in (one, two)) if one[0] > 0 and two[0] > 0 else 0


def _cosines(M: Array) -> Array:
    """Singular values of (k, r, r') matrices, descending, at most 1; exact to 1e-8, which suffices for angles."""
    square = M @ np.swapaxes(M, -1, -2) if M.shape[-2] <= M.shape[-1] else np.swapaxes(M, -1, -2) @ M
    found: Array = np.sqrt(np.clip(np.linalg.eigvalsh(square)[:, ::-1], 0.0, 1.0))
    return found


def _common_start(K: Array, H_c: Array, H_s: Array) -> Array:
    """Cosines between the first rows of both down factors, as many as the shorter one has."""
    r = min(K.shape[1:])
    inner, one, two = (np.sum(np.diagonal(X, axis1=-2, axis2=-1)[:, :r], axis=-1) for X in (K, H_c, H_s))
    found: Array = inner / np.sqrt(one * two)
    return found


def _signs(batch: Sequence[Job], B_c: Array, A_c: Array, B_s: Array, A_s: Array) -> list[tuple[int, int]]:
    """Signs that differ, and entries looked at: whole rows of both products, in the arithmetic of the fusion."""
    rows = sampled_rows(B_c.shape[1], A_c.shape[2])
    flips = [job.factors[0] * job.factors[1] < 0 for job in batch]
    counts = [count_signs(x, y) for x, y in zip(B_c[:, rows] @ A_c, B_s[:, rows] @ A_s, strict=True)]
    return [(total - differ if flip else differ, total) for (differ, total), flip in zip(counts, flips, strict=True)]
