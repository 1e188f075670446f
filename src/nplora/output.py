"""Write fusions and converted adapters: name the modules, lay the file out, compute and write band by band."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import metadata as words
from .adapter import Adapter, Module
from .adapters import LowRank
from .errors import InputError, OutputError, UsageError
from .formats import Format, Spelling, all_formats
from .layouts import Layout
from .loose import Loose, loose_tensors
from .peft_config import adapter_metadata, mlx_config, peft_config
from .plan import Band, OutputModule, Piece, Plan, plan_modules, strand_of
from .projection import BATCH_ELEMENTS, Job, Overlap, check_finite, one_blas_thread, run_threads, stream
from .storage import WRITABLE, TensorWriter, cast, compute_dtype, numpy_dtype

if TYPE_CHECKING:
    from .fusion import FusedModule, Fusion


@dataclass
class Naming:
    """How the output names its modules: a format, the base's table, and whether names are kept as they were read."""

    format: Format
    layout: Layout | None
    keep: bool
    dtype: str | None

    def output_module(self, name: str, members: Sequence[tuple[str, Module, float]], job: Job | None) -> OutputModule:
        """The strands of a module and its name in the file."""
        strands = []
        for source, module, strength in members:
            update = module.update
            assert isinstance(update, LowRank)
            strands.append(strand_of(source, update, strength, job.key if job and source == "subject" else None))
        kernel = self._kernel(name, [module.update.kernel for _, module, _ in members])
        origin = next((m.origin for _, m, _ in members if self.keep and m.origin.format == self.format.name), None)
        if origin is None:
            return OutputModule(name, tuple(strands), kernel)
        return OutputModule(name, tuple(strands), kernel, Spelling(origin.module, origin.parts), origin.factor_suffixes)

    def _kernel(self, name: str, kernels: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """A 1x1 convolution may be stored as a matrix: the base's own dimensions decide, else the first file's."""
        component, _, path = name.partition(".")
        shape = self.layout.shape(component, path) if self.layout else None
        if shape is not None and len(shape) >= 2 and _size(shape[2:]) == _size(kernels[0]):
            return tuple(shape[2:])
        return kernels[0]


def _size(kernel: Sequence[int]) -> int:
    return int(np.prod(kernel, dtype=np.int64))


def resolve_naming(adapters: Sequence[Adapter], format: str, dtype: str) -> Naming:
    """The output's format: the one asked for, else the inputs' common one, else the first adapter's.

    Raises:
        UsageError: the format is unknown.
    """
    layout = next((adapter.layout for adapter in adapters if adapter.layout), None)
    kind = WRITABLE.get(dtype)
    if format in ("auto", "same"):
        return Naming(adapters[0].format, layout, True, kind)
    if format not in all_formats():
        raise UsageError(f"unknown format {format!r}", expected=" or ".join(("same", "kohya", "diffusers", "peft")))
    return Naming(all_formats()[format], layout, layout is None, kind)


@dataclass
class Target:
    """An output about to be written."""

    path: Path
    naming: Naming
    plan: Plan
    loose: Loose
    metadata: dict[str, str]
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return self.plan.specs + [(tensor.key, tensor.dtype, tensor.shape) for tensor in self.loose.tensors]


def target_path(path: str | os.PathLike[str], format: Format, inputs: Sequence[Adapter]) -> Path:
    """The safetensors file behind an output path (inside a folder for peft and mlx).

    Raises:
        UsageError: the output would replace an input; OutputError: the path is of the wrong sort.
    """
    given = Path(path)
    if format.config and given.suffix != ".safetensors":
        given = given / ("adapter_model.safetensors" if format.config == "peft" else "adapters.safetensors")
    elif given.suffix != ".safetensors":
        raise OutputError(
            "the output's name does not end in .safetensors", file=path,
            hint="Name a file like fused.safetensors; a folder is written with --format peft.",
        )  # fmt: skip
    for adapter in inputs:
        source = adapter.file.path if adapter.file else adapter.path
        if given.exists() and os.path.exists(source) and os.path.samefile(given, source):
            raise UsageError("the output would replace an input", key=str(path), hint="Choose another name for the output.")
    return given


def save_fusion(fusion: Fusion, path: str | os.PathLike[str], format: str, dtype: str, overwrite: bool) -> dict[str, Any]:
    """Write a fusion; see `Fusion.save`."""
    inputs = fusion.inputs
    naming = resolve_naming(tuple(inputs.values()), format, dtype)
    file = target_path(path, naming.format, tuple(inputs.values()))
    low_rank = [
        naming.output_module(module.name, _members(module), module.job)
        for module in fusion.modules.values()
        if all(isinstance(member.update, LowRank) for member in module.modules)
    ]
    plan = plan_modules(low_rank, naming.format, naming.layout, naming.dtype)
    loose = loose_tensors(fusion, naming, plan)
    left_out = {**fusion.left_out, **loose.left_out}
    if fusion.parameters["strict"] and loose.left_out:
        key, why = next(iter(loose.left_out.items()))
        raise InputError(
            f"{len(loose.left_out)} keys would be left out ({why})", key=key, hint="Go on without --strict to allow it."
        )
    table, dropped = words.merged({role: adapter.metadata for role, adapter in inputs.items()})
    target = Target(file, naming, plan, loose, table)
    _describe(target, file.stem if file.stem != "adapter_model" else Path(path).name, inputs)
    report = _write(target, fusion, inputs, overwrite)
    report.update(left_out=left_out, dropped_metadata=dropped, output=os.fspath(path), format=naming.format.name)
    report["keys"]["left out"] = len(left_out)
    return report


def save_adapter(adapter: Adapter, path: str | os.PathLike[str], format: str, dtype: str, overwrite: bool) -> dict[str, Any]:
    """Write one adapter in another format; see `Adapter.save`."""
    from .fusion import alone

    return save_fusion(alone(adapter), path, format, dtype, overwrite)


def _members(module: FusedModule) -> list[tuple[str, Module, float]]:
    sides = (("subject", module.subject), ("style", module.style))
    return [(role, member, w) for (role, member), w in zip(sides, module.strengths, strict=True) if member is not None]


def _describe(target: Target, title: str, inputs: Mapping[str, Adapter]) -> None:
    """Metadata that is known before the numbers are, and the config of a folder."""
    naming, plan = target.naming, target.plan
    names = [Path(adapter.path).stem for adapter in inputs.values()]
    target.metadata.update(
        words.modelspec(naming.layout, title, [adapter.metadata for adapter in inputs.values()], names)
    )
    target.metadata["format"] = "pt"
    if naming.format.name == "kohya":
        target.metadata["ss_network_module"] = "networks.lora"
        target.metadata["ss_output_name"] = title
        ranks, alphas = set(plan.ranks.values()), set(plan.scalars.values())
        if len(ranks) == 1 and len(alphas) == 1:
            target.metadata.update(ss_network_dim=str(ranks.pop()), ss_network_alpha=repr(alphas.pop()))
    elif naming.format.name == "diffusers":
        target.metadata.update(adapter_metadata(plan))
    elif naming.format.config == "peft":
        target.beside["adapter_config.json"] = peft_config(plan, [adapter.config for adapter in inputs.values()])
    elif naming.format.config == "mlx":
        target.beside["adapter_config.json"] = mlx_config(plan, [adapter.config for adapter in inputs.values()])


def _write(target: Target, fusion: Fusion, inputs: Mapping[str, Adapter], overwrite: bool) -> dict[str, Any]:
    from .report import fusion_report, recipe

    hashes = _Hashes(inputs)
    provisional = {**target.metadata, **recipe(fusion, target, hashes.placeholder(), None)}
    with (
        hashes,
        TensorWriter(target.path, target.specs, provisional, overwrite=overwrite, beside=target.beside) as writer,
        one_blas_thread() if fusion.jobs else nullcontext(),
    ):
        overlaps = _compute(target, fusion, writer)
        fusion.__dict__["overlaps"] = overlaps  # the cached property: saving is the one pass over the factors
        writer.finish({**target.metadata, **recipe(fusion, target, hashes.result(), overlaps)})
    return fusion_report(fusion, target)


class _Hashes:
    """SHA-256 of every input, computed beside the projections."""

    def __init__(self, inputs: Mapping[str, Adapter]) -> None:
        self._inputs = {role: adapter.file for role, adapter in inputs.items() if adapter.file is not None}
        self._found: dict[str, str] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Hashes:
        for role in self._inputs:
            thread = threading.Thread(target=self._hash, args=(role,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def _hash(self, role: str) -> None:
        self._found[role] = self._inputs[role].sha256()

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join()

    def placeholder(self) -> dict[str, str]:
        return {role: "0" * 64 for role in self._inputs}

    def result(self) -> dict[str, str]:
        self.__exit__()
        return self._found


def _compute(target: Target, fusion: Fusion, writer: TensorWriter) -> dict[str, Overlap]:
    """Run the projections and write every tensor."""
    waiting: dict[str, list[Band]] = {}
    still: list[Band] = []
    for band in target.plan.bands:
        job = band.job
        if job is not None:
            waiting.setdefault(job, []).append(band)
        else:
            still.append(band)
    companions = _companions(still, target.plan, fusion)

    def emit(job: Job, projected: NDArray[np.generic] | None) -> None:
        for band in (*waiting.get(job.key, ()), *companions.get(job.key, ())):
            writer.write(band.key, assemble(band, projected), band.row)

    overlaps = stream(
        fusion.jobs, fusion.method, fusion.method_values, device=fusion.parameters["device"],
        allow_nonfinite=fusion.parameters["allow_nonfinite"], emit=emit, progress=fusion.progress,
    )  # fmt: skip
    handled = {id(band) for bands in companions.values() for band in bands}
    rest = [band for band in still if id(band) not in handled]

    def copy(bands: Sequence[Band]) -> None:
        for band in bands:
            if not fusion.parameters["allow_nonfinite"]:
                for piece in band.pieces:
                    check_finite(piece.matrix, band.key)
            writer.write(band.key, assemble(band, None), band.row)

    for _ in run_threads(copy, _in_batches(rest), os.cpu_count() or 1):
        pass
    for key, alpha in target.plan.scalars.items():
        writer.write(key, np.array(alpha, np.float32))
    for tensor in target.loose.tensors:
        writer.write(tensor.key, tensor.read())
    return overlaps


def _companions(still: Sequence[Band], plan: Plan, fusion: Fusion) -> dict[str, list[Band]]:
    """Bands without a projection that are written together with one: their factors are being read then anyway."""
    job_of = {plan.modules[module.name]: module.job.key for module in fusion.modules.values() if module.job}
    companions: dict[str, list[Band]] = {}
    for band in still:
        key = job_of.get(band.module)
        if key is not None:
            companions.setdefault(key, []).append(band)
    return companions


def _in_batches(bands: Sequence[Band]) -> list[list[Band]]:
    batches: list[list[Band]] = [[]]
    size = 0
    for band in bands:
        batches[-1].append(band)
        size += band.shape[0] * band.shape[1]
        if size > BATCH_ELEMENTS:
            batches.append([])
            size = 0
    return batches


def assemble(band: Band, projected: NDArray[np.generic] | None) -> NDArray[np.generic]:
    """The numbers of a band: copies where the factor is 1 and the type stays, else products rounded once.

    Raises:
        OutputError: a product does not fit the output's number type.
    """
    dtype = numpy_dtype(band.dtype)
    if len(band.pieces) == 1:
        numbers = _numbers(band.pieces[0], dtype, projected, band)
        if numbers.shape == band.shape:
            return numbers.T if band.transposed else numbers
    out = (np.empty if band.covered else np.zeros)(band.shape, dtype)
    for piece in band.pieces:
        numbers = _numbers(piece, dtype, projected, band)
        rows, columns = numbers.shape
        out[piece.row : piece.row + rows, piece.column : piece.column + columns] = numbers
    return out.T if band.transposed else out


def _numbers(
    piece: Piece, dtype: np.dtype[Any], projected: NDArray[np.generic] | None, band: Band
) -> NDArray[np.generic]:
    if piece.job is not None:
        assert projected is not None
        numbers: NDArray[np.generic] = projected
    else:
        numbers = piece.matrix.read()
    if piece.swap:
        half = numbers.shape[0] // 2
        numbers = np.concatenate([numbers[half:], numbers[:half]])
    if piece.job is None and piece.factor == 1.0 and numbers.dtype == dtype:
        return numbers
    if piece.factor != 1.0:
        wide = numbers if numbers.dtype.itemsize >= 4 else cast(np.ascontiguousarray(numbers), compute_dtype([band.dtype]))
        numbers = wide * wide.dtype.type(piece.factor)
    if dtype == np.float16 and numbers.size and not fits_half(numbers):
        raise OutputError(
            "a fused number does not fit fp16", key=band.key, expected="at most 65504", hint="Use --dtype bf16 or fp32."
        )
    return cast(np.ascontiguousarray(numbers), dtype)


def fits_half(numbers: NDArray[np.generic]) -> bool:
    """Whether every number is NaN, infinite, or small enough for float16 (checked by the extremes: no extra array)."""
    extreme = max(float(np.max(numbers)), -float(np.min(numbers)))
    return not 65519.99 < extreme < float("inf")


