"""What has to be computed before an output can be laid out: it waits in a spool and is written as if it had been read.

Merges need it because only they know their ranks; projections of more than one adapter of a module because their
results come at different times and one tensor of the output holds them all. A pair's single projection needs no spool.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..adapters import LowRank
from ..fusion.fused import Fused, FusedModule, Member
from ..fusion.jobs import Batch
from ..fusion.merging import merge_all
from ..fusion.projection import stream
from ..fusion.recompression import compress_all
from ..methods import Merge
from ..storage import Spool, Spooled
from .naming import resolve_naming

NO_FULL = ("diffusers", "peft")  # formats with no place for a full matrix

Some = TypeVar("Some", bound=Fused)


def made(fusion: Some, path: str | os.PathLike[str] | None = None, *, everything: bool = False) -> Some:
    """The fusion with everything computed that its output's layout needs; once, on the output's disk if there is one.

    Args:
        fusion: from `fuse`.
        path: of the output.
        everything: compute all projections, those too that could be written as they come.

    Raises:
        InputError: a number is not finite. OutputError: there is no room for the results.
    """
    merges = isinstance(fusion.method, Merge)
    compresses = any(module.goal is not None for module in fusion.modules.values())
    most = max((len(module.projections) for module in fusion.modules.values()), default=0)
    if not (merges or compresses) and most < (1 if everything else 2):
        return fusion
    if "made" not in fusion.__dict__:
        folder, done = _folder(path), fusion
        if merges:
            done = merge_all(fusion, Spool(folder))
        elif most:
            done = _project_all(fusion, Spool(folder))
        if compresses:
            naming = resolve_naming(tuple(fusion.inputs.values()), fusion.parameters["format"], "same")
            done = compress_all(done, Spool(folder), full=naming.format.name not in NO_FULL)
        fusion.__dict__["made"] = done
    found: Some = fusion.__dict__["made"]
    return found


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    """The nearest folder on the way to the output that is there already."""
    if path is None:
        return None
    return next((folder for folder in Path(path).absolute().parents if folder.is_dir()), None)


def _project_all(fusion: Some, spool: Spool) -> Some:
    """Run every projection; each rewritten factor takes the place of the adapter's own, the others stay as they are."""
    found: dict[str, Spooled] = {}
    lock = threading.Lock()

    def emit(batch: Batch, projected: NDArray[Any]) -> None:
        stack = projected if projected.dtype.itemsize > 2 else projected.astype(np.float32)
        for job, numbers in zip(batch.jobs, stack, strict=True):
            own = job.subject[1 if job.side == "input" else 0]
            with lock:
                found[job.key] = spool.add(numbers, own.dtype, own.keys[0])

    method, values = fusion.projection
    overlaps = stream(
        fusion.jobs, method, values, device=fusion.parameters["device"],
        allow_nonfinite=fusion.parameters["allow_nonfinite"], emit=emit, progress=fusion.progress,
    )  # fmt: skip
    modules = {name: _rewritten(module, found) for name, module in fusion.modules.items()}
    done = replace(fusion, modules=modules, progress=None)
    done.__dict__["overlaps"] = overlaps
    return done


def _rewritten(module: FusedModule, found: dict[str, Spooled]) -> FusedModule:
    members = []
    for member in module.members:
        job = module.jobs.get(member.role)
        if job is None:
            members.append(member)
            continue
        assert isinstance(member.update, LowRank)
        factor, update = found[job.key], member.update
        update = replace(update, down=factor) if job.side == "input" else replace(update, up=factor)
        members.append(Member(member.role, replace(member.module, update=update, stored={}), member.strength))
    return replace(module, jobs={}, made=tuple(members))
