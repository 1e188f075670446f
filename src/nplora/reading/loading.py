"""Open an adapter file: detect its format and base, and read every module as a canonical one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..adapters import Factor, Full, Group, LowRank, Matrix, Opaque, Update, kind_of, rows_of, take_rows
from ..errors import InputError
from ..formats import Detection, detect
from ..formats.keys import Key, split
from ..layouts import Part, Recognition, recognise
from ..storage import FLOATS, Tensor, TensorFile
from .adapter import VECTOR_ROLES, Adapter, Module, Origin, Vector, with_kernel
from .scales import Scales

SCALE_ROLES = {"alpha", "scale"}
OF_MODELS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.", "conv_in.")
EMBEDDING_WIDTHS = (768, 1024, 1280, 2048)  # of CLIP's and T5's text encoders


def load(path: str | os.PathLike[str]) -> Adapter:
    """Open an adapter: a safetensors file of any known format, or a PEFT or MLX folder.

    Only the header is read; factors are read when they are used.

    Args:
        path: file or folder.

    Returns:
        The adapter with canonical module names.

    Raises:
        InputError: not an adapter, several adapters in one file, or a damaged one.

    >>> adapter = load("tests/fixtures/subject-kohya.safetensors")  # doctest: +SKIP
    >>> adapter["unet.mid_block.attentions.0.proj_in"].delta().shape  # doctest: +SKIP
    (1280, 1280)
    """
    file = TensorFile(path)
    groups, others = _group(file)
    if not groups:
        raise _not_an_adapter(file)
    detection = detect({module: next(iter(group.suffixes.values())) for module, group in groups.items()}, file.path)
    sizes = {module: _size(group) for module, group in groups.items()}
    recognition = recognise(
        [(detection.places[module].slot, detection.places[module].body, *sizes[module]) for module in groups]
    )
    reader = _Reader(file, detection, recognition, Scales(file.config, file.header.metadata, file.path))
    for module, group in groups.items():
        reader.add(module, group)
    return Adapter(
        path=os.fspath(path), format=detection.format, layout=recognition.layout, recognition=recognition,
        evidence=detection.evidence, modules=reader.modules, vectors=reader.vectors, others=others,
        unread=reader.unread, metadata=file.header.metadata, config=file.config, file=file, notes=reader.scales.notes(),
    )  # fmt: skip


def _group(file: TensorFile) -> tuple[dict[str, Group], dict[str, Tensor]]:
    """Tensors by module and role, and the tensors that belong to no module."""
    tensors: dict[str, dict[str, Tensor]] = {}
    suffixes: dict[str, dict[str, str]] = {}
    others: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # adapter name -> an example key
    for key, tensor in file.tensors.items():
        found = split(key)
        if found is None:
            others[key] = tensor
            continue
        if found.adapter is not None:
            names.setdefault(found.adapter, key)
            if len(names) > 1:
                continue  # refused below, whatever else is wrong
        _put(tensors.setdefault(found.module, {}), found, tensor, file.path)
        suffixes.setdefault(found.module, {})[found.role] = found.suffix
    for key in [key for key in others if key.endswith(".weight")]:
        module = key.removesuffix(".weight")
        if "ia3_on_input" in tensors.get(module, {}):  # only beside that key is a plain weight IA3's
            tensors[module]["ia3_weight"] = others.pop(key)
            suffixes[module]["ia3_weight"] = ".weight"
    if len(names) > 1:
        raise InputError(
            "the file holds several adapters", file=file.path, expected="one adapter", got=", ".join(sorted(names)),
            hint="Save each one to a file of its own.",
        )  # fmt: skip
    for module in [module for module, roles in tensors.items() if roles.keys() <= SCALE_ROLES]:
        for tensor in tensors.pop(module).values():  # an alpha without factors says nothing
            others[tensor.key] = tensor
    groups = {
        module: Group(file.path, module, roles, suffixes[module], file.config) for module, roles in tensors.items()
    }
    return groups, others


def _put(roles: dict[str, Tensor], found: Key, tensor: Tensor, path: str) -> None:
    if found.role in roles:
        raise InputError(
            "one module holds the same role under two names", file=path, key=tensor.key, expected="one tensor",
            got=f"also {roles[found.role].key}", hint="The file was badly converted: get the original.",
        )  # fmt: skip
    roles[found.role] = tensor


def _size(group: Group) -> tuple[int | None, int | None]:
    kind = kind_of(group)
    size = kind.size(group) if kind else None
    return size or (None, None)


def _not_an_adapter(file: TensorFile) -> InputError:
    keys = list(file.tensors)
    kind = (file.config or {}).get("peft_type")
    got = f"tensors such as {keys[0]} ({len(keys)} in all)" if keys else "no tensors"
    if kind and kind != "LORA":
        return InputError(
            f"adapters of the kind {kind} are not made of low-rank factors", file=file.given, got=got,
            hint="nplora reads LoRA and its relatives.",
        )  # fmt: skip
    return InputError(
        "this is not a LoRA", file=file.given,
        expected="pairs of low-rank factors (lora_up/lora_down, lora_A/lora_B, ...)",
        got=got if keys else "no tensors at all", hint=_what_it_may_be(file),
    )  # fmt: skip


def _what_it_may_be(file: TensorFile) -> str:
    """The next step with a file that is no adapter: people take models and embeddings for one."""
    shapes = [tensor.shape for tensor in file.tensors.values()]
    if any(key.startswith(OF_MODELS) for key in file.tensors) or len(shapes) > 100:
        return "It looks like a whole model: name the LoRA here, and the model with --base where a kind needs it."
    if 0 < len(shapes) <= 4 and all(len(shape) in (1, 2) and shape[-1] in EMBEDDING_WIDTHS for shape in shapes):
        return "It looks like an embedding (textual inversion), which programs load beside a LoRA."
    return "Check that this is the adapter, not a model or an embedding."


def _is_stored(update: Update) -> bool:
    """Whether the update's matrices are those of the file (and not products of them)."""
    matrices = (update.up, update.down) if isinstance(update, LowRank) else (getattr(update, "diff", None),)
    return all(matrix is None or isinstance(matrix, Factor) for matrix in matrices)


def _by_suffix(group: Group) -> dict[str, Tensor]:
    return {group.suffixes[role]: tensor for role, tensor in group.tensors.items()}


class _Reader:
    """Collects the canonical modules of one file."""

    def __init__(self, file: TensorFile, detection: Detection, recognition: Recognition, scales: Scales) -> None:
        self.file, self.detection, self.layout, self.scales = file, detection, recognition.layout, scales
        self.modules: dict[str, Module] = {}
        self.vectors: dict[tuple[str, str], Vector] = {}
        self.unread: dict[str, str] = {}

    def add(self, module: str, group: Group) -> None:
        component, parts = self._resolve(module)
        body = self.detection.places[module].body  # what a config's patterns are about
        scale_keys = tuple(tensor.key for role, tensor in group.tensors.items() if role in SCALE_ROLES)
        origin = Origin(module, parts, self.detection.formats[module], group.suffixes, scale_keys)
        kind = kind_of(group)
        vectors = {role: t for role, t in group.tensors.items() if role in VECTOR_ROLES and role != "diff"}
        if kind is not None:
            weights = group
            if vectors:
                weights = replace(group, tensors={r: t for r, t in group.tensors.items() if r not in vectors})
            scale, scale_from = self.scales.of(weights, component, body)
            update = kind.read(weights, scale, scale_from)
            for role, tensor in weights.tensors.items():
                if role not in SCALE_ROLES and tensor.key not in update.keys:
                    self.unread[tensor.key] = f"no part of a {update.kind} module"
            stored = {} if len(parts) > 1 or _is_stored(update) else _by_suffix(weights)
            if isinstance(update, Full) and "diff" in group.tensors and len(group.tensors["diff"].shape) == 1:
                vectors["diff"] = group.tensors["diff"]  # a norm's or bias-like weight: no input side to project
            else:
                pieces = [
                    Module(f"{component}.{part.name}", self._with_kernel(piece, component, part), origin, stored)
                    for part, piece in _split_update(update, parts)
                ]
                kept = [self._keep(piece) for piece in pieces]
                if not any(kept):
                    self.unread.update((key, "it repeats another module exactly") for key in pieces[0].keys)
        for role, tensor in vectors.items():
            if len(tensor.shape) != 1 or tensor.dtype not in FLOATS:
                raise group.error(
                    "a bias or norm delta must be a vector of floats", role, expected="one axis of floats",
                    got=f"{tensor.dtype} {list(tensor.shape)}",
                )  # fmt: skip
            own_scale = self.scales.of(group, component, body)[0] if role == "bias" and kind else 1.0
            for part in parts:
                vector = Vector(f"{component}.{part.name}", role, _take_vector(tensor, part), own_scale, origin)
                self._keep_vector(vector)

    def _resolve(self, module: str) -> tuple[str, tuple[Part, ...]]:
        """The component and the canonical parts behind a module's name."""
        place = self.detection.places[module]
        if self.layout is not None:
            known = self.layout.slots.get(place.slot or "")
            components = [known] if known else list(self.layout.components)
            for component in components:
                parts = self.layout.find(component, place.body)
                if parts is not None:
                    return component, parts
            if known:
                return known, (Part(place.body),)
        component = {"te1": "text_encoder", "te": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}.get(
            place.slot or "", "unknown"
        )
        return component, (Part(place.body),)

    def _with_kernel(self, update: Update, component: str, part: Part) -> Update:
        return with_kernel(update, self.layout.shape(component, part.name)) if self.layout else update

    def _keep(self, module: Module) -> bool:
        name = module.name
        earlier = self.modules.get(name)
        if earlier is not None and not _equal(earlier.update, module.update):
            raise InputError(
                "two modules of the file change the same weight differently", file=self.file.path,
                key=module.update.keys[0],
                expected="one of them", got=f"also {earlier.update.keys[0]} for {name}",
                hint="The file mixes two namings: keep one.",
            )  # fmt: skip
        if earlier is None:
            self.modules[name] = module
        else:
            self.scales.note(f"{module.origin.module} repeats {earlier.origin.module} exactly and is read once")
        return earlier is None

    def _keep_vector(self, vector: Vector) -> None:
        earlier = self.vectors.setdefault(vector.target, vector)
        if earlier is vector:
            return
        if earlier.scale != vector.scale or not np.array_equal(earlier.tensor.read(), vector.tensor.read()):
            raise InputError(
                "two biases of the file change the same weight differently", file=self.file.path, key=vector.tensor.key,
                expected="one of them", got=f"also {earlier.tensor.key} for {vector.name}",
                hint="The file mixes two namings: keep one.",
            )  # fmt: skip
        self.unread[vector.tensor.key] = "it repeats another bias exactly"


def _equal(one: Update, other: Update) -> bool:
    if (
        not (isinstance(one, LowRank) and isinstance(other, LowRank))
        or one.size != other.size
        or one.scale != other.scale
    ):
        return False
    return one.rank == other.rank and all(
        np.array_equal(getattr(one, side).read(), getattr(other, side).read()) for side in ("up", "down")
    )


def _take_vector(tensor: Tensor, part: Part) -> Tensor:
    """The numbers of a bias that belong to one part of a fused projection, in canonical order."""
    if part.rows is None and not part.swap:
        return tensor
    return Tensor.of(tensor.key, take_rows(Factor(tensor), part.rows, part.swap).read().reshape(-1))


def _split_update(update: Update, parts: tuple[Part, ...]) -> Iterator[tuple[Part, Update]]:
    """The update of each canonical part: rows of the up factor; the down factor is shared."""
    if len(parts) == 1 and not parts[0].swap and parts[0].rows is None:
        yield parts[0], update
        return
    if isinstance(update, Opaque):  # split when it is expanded; carried along as one
        for part in parts:
            size = None if update.size is None or part.rows is None else (part.rows[1] - part.rows[0], update.size[1])
            yield part, replace(update, rows=part.rows, swap=part.swap, size=size)
        return
    if isinstance(update, Full):
        for part in parts:
            yield part, rows_of(update, part.rows, part.swap)
        return
    blocks = _block_diagonal(update.up, parts)
    for index, part in enumerate(parts):
        if blocks:
            width = update.rank // len(parts)
            columns = (index * width, (index + 1) * width)
            assert isinstance(update.up, Factor)
            assert isinstance(update.down, Factor)
            yield part, replace(update, up=update.up.take(part.rows, columns), down=update.down.take(rows=columns))
        else:
            yield part, replace(update, up=take_rows(update.up, part.rows, part.swap))


def _block_diagonal(up: Matrix, parts: tuple[Part, ...]) -> bool:
    """Whether each part uses its own share of the ranks only (a joined file): exact zeros elsewhere."""
    count, rank = len(parts), up.shape[1]
    if count < 2 or rank % count or not isinstance(up, Factor) or up.transposed:
        return False
    matrix, width = up.read(), rank // count
    for index, part in enumerate(parts):
        assert part.rows is not None
        rows = matrix[part.rows[0] : part.rows[1]]
        # The first row alone settles nearly every file.
        for block in (rows[:1], rows):
            if np.any(block[:, : index * width]) or np.any(block[:, (index + 1) * width :]):
                return False
    return True
