"""Write fusions and converted adapters: name the modules, lay the file out, compute and write band by band."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Combined, LowRank, Matrix
from ..errors import InputError, OutputError
from ..formats import Written
from ..fusion.fused import Fused
from ..fusion.jobs import ELEMENTS_IN_WORK, Batch, Overlap, check_finite
from ..fusion.projection import stream
from ..reading.adapter import Adapter
from ..storage import TensorWriter
from ..threads import one_blas_thread, run_threads
from . import metadata as words
from .assembly import assemble, scaled
from .loose import carried_whole, loose_tensors
from .naming import resolve_naming, target_path
from .plan import Band, Plan, plan_modules
from .report import fusion_report, recipe
from .target import Target


def save_fusion(
    fusion: Fused, path: str | os.PathLike[str], format: str, dtype: str, overwrite: bool
) -> dict[str, Any]:
    """Write a fusion; see `Fusion.save`."""
    inputs = fusion.inputs
    naming = resolve_naming(tuple(inputs.values()), format, dtype)
    file = target_path(path, naming.format, tuple(inputs.values()))
    low_rank = [
        naming.output_module(module)
        for module in fusion.modules.values()
        if all(isinstance(member.update, LowRank) for member in module.written) and not carried_whole(module, naming)
    ]
    plan = plan_modules(low_rank, naming.format, naming.layout, naming.dtype)
    loose = loose_tensors(fusion, naming, plan)
    left_out = loose.left_out
    if fusion.parameters["strict"] and left_out:
        key, why = next(iter(left_out.items()))
        raise InputError(
            f"keys would be left out ({len(left_out)} in all; {why})",
            key=key,
            hint="Go on without --strict to allow it.",
        )
    table, dropped = words.merged({role: adapter.metadata for role, adapter in inputs.items()})
    target = Target(file, naming, plan, loose, table, {"format": format, "dtype": dtype})
    _describe(target, file.stem if file.stem != "adapter_model" else Path(path).name, inputs)
    report = _write(target, fusion, inputs, overwrite)
    report.update(left_out=dict(left_out), dropped_metadata=dropped, output=os.fspath(path), format=naming.format.name)
    return report


def _describe(target: Target, title: str, inputs: Mapping[str, Adapter]) -> None:
    """Metadata that is known before the numbers are, and the config of a folder."""
    naming, plan = target.naming, target.plan
    names = [Path(adapter.path).stem for adapter in inputs.values()]
    target.metadata.update(
        words.modelspec(naming.layout, title, [adapter.metadata for adapter in inputs.values()], names)
    )
    target.metadata["format"] = "pt"
    configs = tuple(adapter.config for adapter in inputs.values() if adapter.config)
    keys = tuple(key for key, _, _ in target.specs)
    written = naming.format.describe(Written(title, plan.ranks, plan.scales, plan.modules, keys, configs))
    target.metadata.update(written.metadata)
    target.beside.update(written.beside)


def _write(target: Target, fusion: Fused, inputs: Mapping[str, Adapter], overwrite: bool) -> dict[str, Any]:
    files = {role: adapter.file for role, adapter in inputs.items() if adapter.file is not None}
    for file in files.values():
        file.begin_sha256()
    used = fusion.base if fusion.base is not None and fusion.base.used else None
    if used is not None:
        used.begin_sha256()
    provisional = {**target.metadata, **recipe(fusion, target, dict.fromkeys((*files, "base"), "0" * 64), None)}
    with (
        TensorWriter(target.path, target.specs, provisional, overwrite=overwrite, beside=target.beside) as writer,
        one_blas_thread() if fusion.jobs else nullcontext(),
    ):
        overlaps = _compute(target, fusion, writer)
        if fusion.jobs:  # else what there is to know was learned before
            fusion.__dict__["overlaps"] = overlaps  # the cached property: saving is the one pass over the factors
        hashes = {role: file.sha256() for role, file in files.items()}
        if used is not None:
            hashes["base"] = used.sha256()
        writer.finish({**target.metadata, **recipe(fusion, target, hashes, fusion.overlaps)})
    return fusion_report(fusion, target)


def _compute(target: Target, fusion: Fused, writer: TensorWriter) -> dict[str, Overlap]:
    """Run the projections and write every tensor."""
    waiting, still = _by_job(target.plan.bands)
    companions = _companions(still, target.plan, fusion)
    _check_lone_parts(target.plan, fusion)

    def emit(batch: Batch, projected: NDArray[np.generic]) -> None:
        bands = [[*waiting.get(job.key, ()), *companions.get(job.key, ())] for job in batch.jobs]
        ready = _finished(bands, projected)
        writer.write_all(
            (band.key, assemble(band, one, finished=ready is not None, read=batch.read), band.row)
            for group, one in zip(bands, projected if ready is None else ready, strict=True)
            for band in group
        )

    method, values = fusion.projection
    overlaps = stream(
        fusion.jobs, method, values, device=fusion.parameters["device"],
        allow_nonfinite=fusion.parameters["allow_nonfinite"], emit=emit, progress=fusion.progress,
    )  # fmt: skip
    handled = {id(band) for bands in companions.values() for band in bands}
    rest = [band for band in still if id(band) not in handled]

    def copy(bands: Sequence[Band]) -> None:
        writer.write_all((band.key, assembled(band), band.row) for band in bands)

    def assembled(band: Band) -> NDArray[np.generic]:
        numbers = {id(piece.matrix): _read(piece.matrix, band) for piece in band.pieces}
        if not fusion.parameters["allow_nonfinite"]:
            for piece in band.pieces:
                check_finite(piece.matrix, band.key, numbers[id(piece.matrix)])
        return assemble(band, read=lambda matrix: numbers[id(matrix)])

    workers = os.cpu_count() or 1
    for _ in run_threads(copy, _in_batches(rest, ELEMENTS_IN_WORK // workers), workers):
        pass
    writer.write_all((key, np.array(alpha, np.float32), 0) for key, alpha in target.plan.scalars.items())
    for tensor in target.loose.tensors:
        writer.write(tensor.key, tensor.read())
    return overlaps


def _read(matrix: Matrix, band: Band) -> NDArray[np.generic]:
    return matrix.read_for(band.dtype) if isinstance(matrix, Combined) else matrix.read()


def _finished(bands: Sequence[Sequence[Band]], projected: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """All projected factors of a batch with their factor, in their type; None where bands want different ones."""
    wanted = {(piece.factor, band.dtype) for group in bands for band in group for piece in band.pieces if piece.job}
    if len(wanted) != 1:
        return None
    ((factor, dtype),) = wanted
    try:
        return scaled(projected, factor, dtype, "")
    except OutputError:  # said again by the band that it is about
        return None


def _by_job(bands: Sequence[Band]) -> tuple[dict[str, list[Band]], list[Band]]:
    """Bands by the projection that they wait for, and those that wait for none."""
    waiting: dict[str, list[Band]] = {}
    still: list[Band] = []
    for band in bands:
        (still if band.job is None else waiting.setdefault(band.job, [])).append(band)
    return waiting, still


def _check_lone_parts(plan: Plan, fusion: Fused) -> None:
    """Parts of a fused projection that no projection reads, beside parts that one does: nothing else looks at them."""
    if fusion.parameters["allow_nonfinite"]:
        return
    joined = {plan.modules[module.name] for module in fusion.modules.values() if module.jobs}
    for module in fusion.modules.values():
        if not module.jobs and plan.modules.get(module.name) in joined:
            for update in (member.update for member in module.modules):
                if isinstance(update, LowRank):
                    check_finite(update.up, module.name)
                    check_finite(update.down, module.name)


def _companions(still: Sequence[Band], plan: Plan, fusion: Fused) -> dict[str, list[Band]]:
    """Bands without a projection that are written together with one: their factors are being read then anyway."""
    job_of = {plan.modules[module.name]: module.job.key for module in fusion.modules.values() if module.job}
    companions: dict[str, list[Band]] = {}
    for band in still:
        key = job_of.get(band.module)
        if key is not None:
            companions.setdefault(key, []).append(band)
    return companions


def _in_batches(bands: Sequence[Band], elements: int) -> list[list[Band]]:
    batches: list[list[Band]] = [[]]
    size = 0
    for band in bands:
        batches[-1].append(band)
        size += band.shape[0] * band.shape[1]
        if size > elements:
            batches.append([])
            size = 0
    return batches
