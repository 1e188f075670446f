"""Run a merge over all modules, so that its results can be written as if they had been read from any adapter.

Modules go together on their small cores where the method and the numbers allow it (`cores`), else alone; then results
go to a spool. Either way the memory holds a few modules however large the files are. What a merge makes is balanced by
powers of two (column k of up and row k of down get norms within a factor 2 of each other), which rounds nothing and
suits half precision.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..adapters import LowRank, Matrix
from ..algebra.bases import balancing
from ..errors import InputError
from ..methods import Part, Product
from ..storage import Spool, wider
from ..threads import run_threads
from .cores import batches_of_modules, merge_cores
from .fused import Fused, FusedModule, Measure, Member
from .jobs import ELEMENTS_IN_WORK, Overlap, check_finite
from .measures import gram
from .pairing import match_key
from .projection import stream

Array = NDArray[np.float64]
Some = TypeVar("Some", bound=Fused)
NOT_FINITE = "values are not finite, so the method cannot work and the updates are added"


@dataclass(frozen=True, slots=True)
class Merged:
    """A module after its merge: factors ready to be written (None: its one member passes as it is), and what it is."""

    factors: tuple[Array, Array] | tuple[Matrix, Matrix] | None
    measure: Measure
    overlap: Overlap | None = None  # of a pair, where the merge has learned it


def module_seed(seed: int, name: str) -> int:
    """A module's own seed: the same whatever stands beside the module, and whatever its file calls it.

    >>> module_seed(0, "transformer.blocks.0.q") == module_seed(0, "unknown.blocks_0_q")
    True
    """
    text = f"{seed}:{':'.join(match_key(name))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def merge_all(fusion: Some, spool: Spool) -> Some:
    """The fusion with every module merged; one that holds NaN, if that is allowed, is added as it is and noted.

    Raises:
        InputError: a number is not finite. OutputError: there is no room for the results.
    """
    modules, found = dict(fusion.modules), {}
    todo = [module for module in fusion.modules.values() if module.merges]
    allow_nonfinite = bool(fusion.parameters["allow_nonfinite"])
    workers, done = os.cpu_count() or 1, 0

    def merge(batch: Sequence[FusedModule]) -> list[Merged]:
        return merge_batch(batch, allow_nonfinite=allow_nonfinite)

    for batch, results in run_threads(merge, batches_of_modules(todo, ELEMENTS_IN_WORK // workers), workers):
        for module, merged in zip(batch, results, strict=True):
            found[module.name] = merged
            modules[module.name] = replace(module, made=_kept(module, merged, spool), jobs={})
        done += len(batch)
        if fusion.progress:
            fusion.progress(done, len(todo))
    measures = {name: found[name].measure for name in modules if name in found}
    notes = (*fusion.notes, *_notes(measures.values()))
    finished = replace(fusion, modules=modules, measures=measures, notes=notes, progress=None)
    finished.__dict__["overlaps"] = _overlaps(fusion, {n: one.overlap for n, one in found.items() if one.overlap})
    return finished


def _overlaps(fusion: Fused, known: Mapping[str, Overlap]) -> dict[str, Overlap]:
    """Job key -> overlap of all jobs; those that no merge has learned are measured."""
    jobs = {job.key: job for job in fusion.jobs}
    learned = {job.key: known[job.name] for job in jobs.values() if job.name in known}
    method, values = fusion.projection
    rest = stream(
        [job for job in jobs.values() if job.key not in learned], method, values,
        device=fusion.parameters["device"], allow_nonfinite=fusion.parameters["allow_nonfinite"],
    )  # fmt: skip
    return {key: learned[key] if key in learned else rest[key] for key in jobs}


def merge_batch(modules: Sequence[FusedModule], *, allow_nonfinite: bool = False) -> list[Merged]:
    """Merge modules that are alike, on their cores if that is exact.

    Raises:
        InputError: as `merge_module`.
    """
    cores = merge_cores(modules)
    if cores is None:
        return [merge_module(module, allow_nonfinite=allow_nonfinite) for module in modules]
    return [Merged(core.factors, core.measure, core.overlap) for core in cores]


def _notes(measures: Iterable[Measure]) -> Iterator[str]:
    """What the merges could not do, each reason once with its modules."""
    found: dict[str, list[str]] = {}
    for measure in measures:
        found.setdefault(measure.note, []).append(measure.name)
    for note, names in found.items():
        rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
        if note:
            yield f"{note}: {', '.join(names[:2])}{rest}"


def merge_module(module: FusedModule, *, allow_nonfinite: bool = False) -> Merged:
    """Merge one module and measure the result.

    Raises:
        InputError: a number of an input is not finite (unless allowed), or the merge of finite ones is not.
    """
    for member in module.members if not allow_nonfinite else ():
        for matrix in (member.update.up, member.update.down):  # type: ignore[union-attr]
            check_finite(matrix, module.name)
    parts = [member.part() for member in module.members]
    product = module.product_of(parts)
    roles = tuple(member.role for member in module.members)
    if not _is_finite(product):
        if not all(map(_is_finite, parts)):
            size = len(parts) + 1
            nothing = np.full((size, size), np.nan)
            return Merged(None, Measure(module.name, product.up.shape[1], 0.0, roles, nothing, note=NOT_FINITE))
        raise InputError(
            f"the method {module.method.name} gives values that are not finite", key=module.name,
            hint="Please report this pair of files.",
        )  # fmt: skip
    passes = len(parts) == 1 and _is_part(product, parts[0])
    up, down = (product.up, product.down) if passes else balanced(product.up, product.down)
    inner = gram(parts, up, down)
    measure = Measure(module.name, up.shape[1], float(product.error), roles, inner, product.facts, product.note)
    return Merged(None if passes else (up, down), measure)


def _is_finite(pair: Part | Product) -> bool:
    return bool(np.isfinite(pair.up).all() and np.isfinite(pair.down).all())


def _is_part(product: Product, part: Part) -> bool:
    """Whether a merge gave an adapter's factors back as they are, so that its bytes can be copied."""
    return np.array_equal(product.down, part.down) and np.array_equal(product.up, part.weight * part.up)


def balanced(up: Array, down: Array) -> tuple[Array, Array]:
    """The same product with live ranks only, each column of up about as long as its row of down."""
    factor, live = balancing(np.sqrt(np.einsum("ij,ij->j", up, up)), np.sqrt(np.einsum("ij,ij->i", down, down)))
    if not live.any():  # a file holds no factor of rank 0
        return np.zeros((up.shape[0], 1)), np.zeros((1, down.shape[1]))
    if not live.all():
        up, down, factor = up[:, live], down[live], factor[live]
    return up * factor, down / factor[:, None]


def _kept(module: FusedModule, merged: Merged, spool: Spool) -> tuple[Member, ...]:
    """What is written: the one member as it is, or the merged factors; they count as the inputs' widest type."""
    if merged.factors is None:
        return module.members
    stored = [m.dtype for one in module.members for m in (one.update.up, one.update.down)]  # type: ignore[union-attr]
    dtype = wider(stored)
    number = np.float64 if dtype == "F64" else np.float32
    up, down = (
        spool.add(factor.astype(number), dtype, module.name) if isinstance(factor, np.ndarray) else factor
        for factor in merged.factors
    )
    first = module.members[0].module
    update = LowRank(up, down, 1.0, "computed", first.update.kernel)
    return (Member("merged", replace(first, name=module.name, update=update, stored={}), 1.0),)
