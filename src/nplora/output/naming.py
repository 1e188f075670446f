"""Decide how an output names its modules, and where it goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ..adapters import LowRank
from ..errors import OutputError, UsageError
from ..formats import Format, Spelling, all_formats
from ..fusion.fused import FusedModule
from ..layouts import Layout
from ..reading.adapter import Adapter
from ..storage import WRITABLE
from .plan import OutputModule, strand_of

DIFFUSERS_COMPONENTS = ("unet.", "transformer.", "prior.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")


@dataclass
class Naming:
    """How the output names its modules: a format, the base's table, and whether names are kept as they were read.

    ``bare``: CLIP's paths are written without ``text_model.``, which transformers 5 dropped.
    """

    format: Format
    layout: Layout | None
    keep: bool
    dtype: str | None
    bare: bool = False

    def output_module(self, fused: FusedModule) -> OutputModule:
        """The strands of a module and its name in the file."""
        strands, name = [], fused.name
        for member in fused.written:
            assert isinstance(member.update, LowRank)
            job = fused.projections.get(member.role)
            strands.append(strand_of(member.role, member.update, member.strength, job.key if job else None))
        kernel = self._kernel(name, [module.update.kernel for module in fused.modules])
        origin = next((m.origin for m in fused.modules if self.keep and m.origin.format == self.format.name), None)
        if origin is None:
            return OutputModule(name, tuple(strands), kernel, self._bare_spelling(name) if self.bare else None)
        return OutputModule(name, tuple(strands), kernel, Spelling(origin.module, origin.parts), origin.factor_suffixes)

    def _bare_spelling(self, name: str) -> Spelling | None:
        component, _, path = name.partition(".")
        spelling = self.format.spell(component, path, self.layout)
        return spelling and replace(spelling, module=spelling.module.replace(".text_model.", ".", 1))

    def _kernel(self, name: str, kernels: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """A 1x1 convolution may be stored as a matrix: the base's own dimensions decide, else the first file's."""
        component, _, path = name.partition(".")
        shape = self.layout.shape(component, path) if self.layout else None
        if shape is not None and len(shape) >= 2 and prod(shape[2:]) == prod(kernels[0]):
            return tuple(shape[2:])
        return kernels[0]


def resolve_naming(adapters: Sequence[Adapter], format: str, dtype: str) -> Naming:
    """The output's format: the one asked for, else the inputs' common one, else the first adapter's.

    Raises:
        UsageError: the format is unknown.
    """
    layout = next((adapter.layout for adapter in adapters if adapter.layout), None)
    kind = WRITABLE.get(dtype)
    if format in ("auto", "same"):
        naming = _kept_naming(adapters, layout, kind)
    elif format in all_formats():
        naming = Naming(all_formats()[format], layout, layout is None, kind)
    else:
        raise UsageError(f"unknown format {format!r}", expected="same or kohya or diffusers or peft")
    paths = [name.partition(".")[2] for adapter in adapters for name in adapter if name.startswith("unknown.")]
    if format == "diffusers" and any(path.startswith(DIFFUSERS_COMPONENTS) for path in paths):
        raise UsageError(
            "a module's own name would be taken for a component of a diffusers pipeline", key=paths[0],
            hint="The base model is not known: use --format same or --format peft.",
        )  # fmt: skip
    if naming.format.name != "peft":
        return naming
    # A PEFT folder's paths must be those of the user's model, whatever the table says.
    full = {
        "text_model." in module.origin.module
        for adapter in adapters
        for name, module in adapter.items()
        if ".text_model." in name and module.origin.format == "peft"
    }
    return replace(naming, bare=False in full, keep=naming.keep and len(full) < 2)


def _kept_naming(adapters: Sequence[Adapter], layout: Layout | None, dtype: str | None) -> Naming:
    """The first adapter's names for the output, unless readers would not understand all of them together.

    Two dialects of one format (SDXL's original and its diffusers names in kohya files, the prefixes of several
    trainers) are a mixture of which diffusers drops a part in silence: then all modules get the table's names. A
    module that the format has no word for (attention processors name nothing else) turns the output to diffusers.
    """
    naming = Naming(adapters[0].format, layout, True, dtype)
    if layout is None:
        return naming
    prefixes: dict[str, set[str]] = {}
    paths: dict[str, set[str]] = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        origins = [adapter[name].origin for adapter in adapters if name in adapter]
        component, _, path = name.partition(".")
        written = next((origin.module for origin in origins if origin.format == naming.format.name), None)
        if written is None:
            spelling = naming.format.spell(component, path, layout)
            if spelling is None:
                return Naming(all_formats()["diffusers"], layout, False, dtype)
            written = spelling.module
        written, own, native = (word.replace(".", "_") for word in (written, path, layout.native(component, path)[0]))
        for dialect, body in (("canonical", own), ("native", native)):
            if written.endswith(body):
                prefixes.setdefault(component, set()).add(written.removesuffix(body))
                if own != native:
                    paths.setdefault(component, set()).add(dialect)
                break
    mixed = any(len(found) > 1 for found in (*prefixes.values(), *paths.values()))
    return replace(naming, keep=not mixed or len(adapters) == 1)


def _same_folder(given: Path, source: Path) -> bool:
    """Whether writing a folder's config would replace the config that an input was read with."""
    return given.parent.exists() and source.parent.exists() and given.parent.samefile(source.parent)


def target_path(path: str | os.PathLike[str], format: Format, inputs: Sequence[Adapter]) -> Path:
    """The safetensors file behind an output path (inside a folder for peft and mlx).

    Raises:
        UsageError: the output would replace an input; OutputError: the path is of the wrong sort.
    """
    given = Path(path)
    if format.folder and given.suffix != ".safetensors":
        given = given / format.folder
    elif format.folder and given.name != format.folder:  # no reader looks for the config, which holds the scales, there
        raise UsageError(f"{format.title} is a folder, not one file", key=str(path), hint=_as_folder(given, inputs))
    elif given.suffix != ".safetensors":
        raise OutputError(
            "the output's name does not end in .safetensors", file=path,
            hint=f"Name it {_as_file(given)}; a folder is written with --format peft.",
        )  # fmt: skip
    for adapter in inputs:
        source = adapter.file.path if adapter.file else adapter.path
        beside = adapter.config is not None and format.folder is not None and _same_folder(given, Path(source))
        if beside or (given.exists() and Path(source).exists() and given.samefile(source)):
            raise UsageError(
                "the output would replace an input", key=str(path), hint="Choose another name for the output."
            )
    return given


def _as_folder(path: Path, inputs: Sequence[Adapter]) -> str:
    """What to name instead; only of a known base can a file be written in another format."""
    hint = f"Name a folder, such as {path.with_suffix('')}"
    return f"{hint}, or add --format diffusers." if any(adapter.layout for adapter in inputs) else f"{hint}."


def _as_file(path: Path) -> str:
    """The name with the suffix of what is written."""
    if not path.name:
        return "fused.safetensors"
    strange = path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin", ".json", ".safetensor", ".st")
    return f"{path.with_suffix('') if strange else path}.safetensors"
