"""The base model's weights: mapped checkpoints of which only the tensors that are asked for are read.

A checkpoint names its weights as diffusers does or as the original authors did, with or without a prefix. The layout
knows both names of a module, so one look-up finds the weight whatever the file; where no base is known, the module's
own path has to be the checkpoint's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import InputError
from ..layouts import Layout, Part
from ..storage import FLOATS, Tensor, TensorFile
from ..storage.matrices import Factor, Matrix, take_rows
from .stacks import Stacked

SUFFIX = ".weight"
DENOISERS = ("unet", "transformer", "transformer_2", "prior")
# Prefixes of whole checkpoints, per component; a component's own file has none.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "denoiser": ("model.diffusion_model.", "diffusion_model.", "net.", ""),
    "text_encoder": (
        "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "cond_stage_model.model.",
        "text_encoders.clip_l.transformer.", "text_encoder.", "te1.", "",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.", "text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer.",
        "text_encoder_2.", "",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.", "text_encoder_3.", ""),
}  # fmt: skip
# OpenCLIP's names for CLIP's text layers; q, k and v are thirds of one tensor.
OPEN_CLIP = {
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj": "attn.in_proj", "self_attn.k_proj": "attn.in_proj", "self_attn.v_proj": "attn.in_proj",
}  # fmt: skip
_CLIP_LAYER = re.compile(r"^(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)$")
_QUANTISED = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".weight.absmax")


@dataclass(frozen=True, slots=True)
class Weight:
    """A module's weight as a matrix (out, in*kernel), and its kernel."""

    matrix: Matrix
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Spelling:
    """A name (without ``.weight``) that a checkpoint may give a module; of a fused one, which of its ``out`` rows."""

    name: str
    rows: tuple[int, int] | None = None
    swap: bool = False
    out: int | None = None


class Source:
    """One checkpoint, in one file or in shards that are opened when a tensor of theirs is asked for."""

    def __init__(self, path: Path, component: str | None = None) -> None:
        self.path, self.component = path, component
        self._files: dict[str, TensorFile] = {}
        self._used: set[str] = set()

    @cached_property
    def _where(self) -> Mapping[str, str]:
        """Key -> the name of the file that holds it."""
        if self.path.name.endswith(".json"):
            return _weight_map(self.path)
        return dict.fromkeys(self._open(self.path.name).tensors, self.path.name)

    def _open(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(self.path.with_name(name))
        return self._files[name]

    @cached_property
    def index(self) -> Mapping[str, str]:
        """Flattened name without ``.weight`` -> key."""
        keys = [key for key in self._where if key.endswith((SUFFIX, "in_proj_weight"))]
        return {key.removesuffix(SUFFIX).removesuffix("_weight").replace(".", "_"): key for key in keys}

    @property
    def used(self) -> tuple[TensorFile, ...]:
        """The files of which a tensor was asked for, in the order of their names."""
        return tuple(self._files[name] for name in sorted(self._used))

    def tensor(self, key: str) -> Tensor:
        """A tensor that `index` names.

        Raises:
            InputError: its numbers are quantised, or the shard that the index names lacks it.
        """
        self._used.add(self._where[key])
        file = self._open(self._where[key])
        if key not in file.tensors:
            raise InputError("the shard lacks a tensor that the index names", file=file.path, key=key)
        tensor = file.tensors[key]
        stem = key.removesuffix(SUFFIX)
        if tensor.dtype not in FLOATS or any(stem + mark in self._where for mark in _QUANTISED):
            raise InputError(
                "the base model's weight is quantised", file=file.path, key=key, expected="fp32, fp16 or bf16 numbers",
                got=tensor.dtype, hint="Use the checkpoint that was not quantised.",
            )  # fmt: skip
        return tensor


class BaseModel:
    """A base model: a checkpoint file, an index of shards, or a diffusers folder.

    Args:
        path: ``model.safetensors``, ``model.safetensors.index.json``, a folder that holds one of them, or a diffusers
            folder with ``unet``, ``text_encoder``, ... below it.

    Raises:
        InputError: nothing of the kind is there, or a file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.sources = _sources(Path(path))

    @property
    def used(self) -> bool:
        """Whether a weight was taken from it."""
        return any(source.used for source in self.sources)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2] or self.path

    def begin_sha256(self) -> None:
        """Begin hashing the files that weights were taken from, beside other work."""
        for source in self.sources:
            for file in source.used:
                file.begin_sha256()

    def sha256(self) -> str:
        """SHA-256 of the files that weights were taken from: of the file where it is one, else of their hashes."""
        found = [file.sha256() for source in self.sources for file in source.used]
        if len(found) == 1:
            return found[0]
        import hashlib

        return hashlib.sha256("".join(found).encode()).hexdigest()

    def weight(self, component: str, part: Part, layout: Layout | None, transposed: bool = False) -> Weight | None:
        """The weight of a canonical module; None where the checkpoint does not hold it.

        Args:
            component, part: the module, and whether its halves are to be exchanged (as a fused file has them).
            layout: the base's table; None: the module's path is looked up as it is.
            transposed: the checkpoint stores (in, out), as GPT-2 does.
        """
        for source in self.sources:
            if source.component in (None, component) or (source.component in DENOISERS and component == "unknown"):
                for spelling in _spellings(component, part.name, layout, source.component is None):
                    key = source.index.get(spelling.name.replace(".", "_"))
                    if key is not None:
                        return self._taken(source.tensor(key), spelling, part, layout, transposed)
        return None

    def _taken(
        self, tensor: Tensor, spelling: _Spelling, part: Part, layout: Layout | None, transposed: bool
    ) -> Weight:
        if spelling.out is not None and tensor.shape[:1] != (spelling.out,):
            raise InputError(
                f"the base model's weight is not {layout.title if layout else 'this model'}'s", file=self.path,
                key=tensor.key, expected=f"{spelling.out} rows", got=tensor.shape[0],
                hint="Use the base model that the adapter was trained on.",
            )  # fmt: skip
        factor, swap = Factor(tensor, transposed=transposed), spelling.swap != part.swap
        matrix = take_rows(factor, spelling.rows, swap) if spelling.rows or swap else factor
        return Weight(matrix, () if transposed else tensor.shape[2:])

    def fused(
        self, component: str, parts: tuple[Part, ...], layout: Layout | None, transposed: bool = False
    ) -> Weight | None:
        """The weight of a module as a file names it: its canonical parts one below the other."""
        found = [self.weight(component, part, layout, transposed) for part in parts]
        if any(weight is None for weight in found):
            return None
        weights = [weight for weight in found if weight is not None]
        if len(weights) == 1:
            return weights[0]
        return Weight(Stacked(tuple(weight.matrix for weight in weights)), weights[0].kernel)


def _spellings(component: str, path: str, layout: Layout | None, whole: bool) -> Iterator[_Spelling]:
    """What a checkpoint may call a module."""
    names: list[_Spelling] = []
    if layout is not None:
        native, parts = layout.native(component, path)
        out = parts[-1].rows[1] if parts[-1].rows else None
        names += [_Spelling(native, part.rows, part.swap, out) for part in parts if part.name == path]
    names.append(_Spelling(path))
    for known in tuple(names):  # transformers 5 dropped this word of CLIP's
        bare = known.name.removeprefix("text_model.")
        names.append(replace(known, name=bare if bare != known.name else f"text_model.{known.name}"))
    names += _open_clip(path, layout.shape(component, path) if layout else None)
    kind = component if component.startswith("text_encoder") else "denoiser"
    for prefix in (*PREFIXES.get(kind, ("",)), f"{component}.") if whole else ("",):
        for known in names:
            yield replace(known, name=prefix + known.name)


def _open_clip(path: str, shape: tuple[int, ...] | None) -> list[_Spelling]:
    match = _CLIP_LAYER.match(path)
    theirs = OPEN_CLIP.get(match[2]) if match else None
    if match is None or theirs is None:
        return []
    name = f"transformer.resblocks.{match[1]}.{theirs}"
    if theirs != "attn.in_proj":
        return [_Spelling(name)]
    if shape is None:
        return []
    third = "qkv".index(match[2].removeprefix("self_attn.")[0])
    return [_Spelling(name, (third * shape[0], (third + 1) * shape[0]), out=3 * shape[0])]


def _sources(path: Path) -> tuple[Source, ...]:
    if path.is_file() or not path.exists():
        if not path.exists():
            raise InputError("no such base model", file=path, hint="Check the path after --base.")
        return (Source(path),)
    own = _checkpoint(path)
    if own is not None:
        return (Source(own),)
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    found = [(folder.name, checkpoint) for folder in below if (checkpoint := _checkpoint(folder)) is not None]
    if not found:
        raise InputError(
            "the folder holds no base model", file=path, expected="a .safetensors checkpoint, or a diffusers folder",
            hint="Name the checkpoint itself after --base.",
        )  # fmt: skip
    return tuple(Source(checkpoint, name) for name, checkpoint in found)


def _checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a folder: the one without a variant in its name (``.fp16.``) where there are several."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if indexes:
        return min(indexes, key=lambda path: path.name.count("."))
    whole = [file for file in files if not re.search(r"-\d{5}-of-\d{5}", file.name)]
    return min(whole, key=lambda path: path.name.count("."), default=None)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        raw = json.loads(path.read_bytes())["weight_map"]
        found = {str(key): str(name) for key, name in raw.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            "the index of shards cannot be read", file=path, expected='a JSON object with "weight_map"',
            hint="Download it again.",
        ) from None  # fmt: skip
    strange = next((name for name in found.values() if Path(name).name != name), None)
    if strange is not None:  # a name in somebody's file is no reason to read elsewhere
        raise InputError(
            "the index names a shard outside its folder", file=path, got=strange, hint="Download it again."
        )
    return found
