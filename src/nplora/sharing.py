"""Fused projections (q, k, v in one tensor) keep one down factor where nothing forces them apart.

The finest split decides what is protected: part j is protected from the row space of its own ``B_j A``. If every
``B_j`` has full column rank these spaces are all the row space of A, the projected subject factor is the same
for all parts, and one projection serves them; otherwise each part keeps its own.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .adapters import Factor, LowRank, Matrix
from .algebra import well_conditioned
from .fused import FusedModule
from .projection import Job


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices one below the other."""

    parts: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def keys(self) -> tuple[str, ...]:
        return self.parts[0].keys

    def read(self) -> NDArray[np.generic]:
        return np.concatenate([part.read() for part in self.parts])


def share_jobs(modules: MutableMapping[str, FusedModule]) -> None:
    """Give the parts of one fused projection one job, where both files share the down factor and the spaces agree."""
    groups: dict[tuple[str, str], list[FusedModule]] = {}
    for module in modules.values():
        if module.job is not None and module.subject is not None and module.style is not None:
            origins = module.subject.origin, module.style.origin
            if all(len(origin.parts) > 1 for origin in origins):
                groups.setdefault((origins[0].module, origins[1].module), []).append(module)
    for group in groups.values():
        jobs = [module.job for module in group if module.job is not None]
        if len(group) > 1 and _one_down(jobs) and all(_spans_rows(job) for job in jobs):
            ups = tuple(Stacked(tuple(getattr(job, side)[0] for job in jobs)) for side in ("subject", "style"))
            name = group[0].style.origin.module  # type: ignore[union-attr]
            shared = Job(
                f"input:{name}",
                name,
                (ups[0], jobs[0].subject[1]),
                (ups[1], jobs[0].style[1]),
                jobs[0].factors,
                "input",
            )
            for module in group:
                modules[module.name] = replace(module, jobs=dict.fromkeys(module.jobs, shared))


def _one_down(jobs: list[Job]) -> bool:
    first = jobs[0]
    return all(
        job.factors == first.factors and _same(job.subject[1], first.subject[1]) and _same(job.style[1], first.style[1])
        for job in jobs
    )


def _same(one: Matrix, other: Matrix) -> bool:
    return (
        isinstance(one, Factor)
        and isinstance(other, Factor)
        and one.tensor is other.tensor
        and (one.rows == other.rows and one.columns == other.columns)
    )


def _spans_rows(job: Job) -> bool:
    """Whether the style's part uses the whole row space of its down factor."""
    up, down = (matrix.read().astype(np.float64) for matrix in job.style)
    return bool(well_conditioned(down @ down.T, up.T @ up, up))


__all__ = ["LowRank", "Stacked", "share_jobs"]
