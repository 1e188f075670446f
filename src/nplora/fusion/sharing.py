"""Fused projections (q, k, v in one tensor) keep one down factor where nothing forces them apart.

The finest split decides what is protected: part j is protected from the row space of its own ``B_j A``. If every
``B_j`` has full column rank these spaces are all the row space of A, the projected subject factor is the same
for all parts, and one projection serves them; otherwise each part keeps its own.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from ..adapters import Factor, Matrix
from ..algebra import well_conditioned
from ..reading.stacks import Stacked
from .fused import FusedModule
from .jobs import Job


def share_jobs(modules: MutableMapping[str, FusedModule]) -> None:
    """Give the parts of one fused projection one job, where all files share the down factor and the spaces agree.

    Only for the input side and all directions, and where all parts have the same parameters.
    """
    groups: dict[tuple[str, ...], list[tuple[FusedModule, Job]]] = {}
    for module in modules.values():
        for role, job in module.jobs.items():
            origins = [member.module.origin for member in module.members]
            if all(len(origin.parts) > 1 for origin in origins):
                groups.setdefault((role, *(origin.module for origin in origins)), []).append((module, job))
    for (role, *names), group in groups.items():
        jobs = [job for _, job in group]
        if len(group) > 1 and _one_setting(group) and _one_down(jobs) and all(_spans_rows(job) for job in jobs):
            ups = [Stacked(tuple(getattr(job, side)[0] for job in jobs)) for side in ("subject", "style")]
            first, name = jobs[0], names[-1]
            shared = replace(
                first, key=f"input:{role}:{name}", name=name,
                subject=(ups[0], first.subject[1]), style=(ups[1], first.style[1]),
            )  # fmt: skip
            for module, _ in group:
                modules[module.name] = replace(modules[module.name], jobs={**modules[module.name].jobs, role: shared})


def _one_setting(group: list[tuple[FusedModule, Job]]) -> bool:
    module, first = group[0]
    protects_all = module.side == "input" and module.values.get("directions", "all") == "all"
    return protects_all and all(job.setting == first.setting for _, job in group)


def _one_down(jobs: list[Job]) -> bool:
    first = jobs[0]
    return all(
        job.factors == first.factors and _same(job.subject[1], first.subject[1]) and _same(job.style[1], first.style[1])
        for job in jobs
    )


def _same(one: Matrix, other: Matrix) -> bool:
    if isinstance(one, Stacked) and isinstance(other, Stacked):
        return len(one.parts) == len(other.parts) and all(map(_same, one.parts, other.parts))
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
