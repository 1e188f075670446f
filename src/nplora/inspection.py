"""Describe an adapter as plain data: what it is for, what it is made of, and how each of that is known."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from . import metadata as words
from .adapter import Adapter, Module
from .adapters import Full, LowRank, Matrix, Opaque
from .formats import all_formats
from .storage import cast
from .threads import run_threads

# Metadata that a person asks for, in the order of interest.
USEFUL = (
    "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.usage_hint", "modelspec.license",
    "modelspec.architecture", "modelspec.merged_from", "modelspec.date", "ss_output_name", "ss_sd_model_name",
    "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_num_train_images",
    "ss_num_epochs", "ss_epoch", "ss_steps", "ss_resolution", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr",
    "ss_optimizer", "ss_seed", "ss_training_comment", "software",
)  # fmt: skip


def describe(adapter: Adapter) -> dict[str, Any]:
    """What an adapter is, as plain data ready for JSON.

    Norms are Frobenius norms of the updates at strength 1, from r x r Gram matrices in float64; factors are read
    module by module.

    Args:
        adapter: from `load`.

    Returns:
        file, bytes, format and base with evidence, components, groups of modules of one component and kind (ranks,
        norm, effective scales and how each is known), dtypes, zero modules, values that are not finite, trigger
        words, keys that belong to no module, notes, and the metadata that says most. Text is as it stands in the
        file: make it printable before a terminal sees it.

    >>> describe(load("cat.safetensors"))["base"]["title"]  # doctest: +SKIP
    'Stable Diffusion XL'
    """
    norms = {
        module.name: norm for module, norm in run_threads(module_norm, adapter.modules.values(), os.cpu_count() or 1)
    }
    return {
        "file": adapter.path,
        "bytes": adapter.file.size if adapter.file else None,
        "format": _format(adapter),
        "base": {
            "name": adapter.layout.name if adapter.layout else None, "title": adapter.base,
            "evidence": adapter.recognition.evidence, "rivals": list(adapter.recognition.rivals),
        },
        "modules": len(adapter.modules),
        "modules_in_file": len({module.origin.module for module in adapter.modules.values()}),
        "components": {name: _size(adapter, name, norms) for name in adapter.components},
        "groups": _groups(adapter, norms),
        "kinds": dict(Counter(map(kind, adapter.modules.values()))),
        "ranks": _ranks(adapter.modules.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in adapter.file.tensors.values())) if adapter.file else {},
        "biases_and_norms": len(adapter.vectors),
        "zero_modules": [name for name, norm in norms.items() if norm == 0],
        "not_finite": _not_finite(adapter, norms),
        "trigger_words": words.trigger_words(adapter.metadata),
        "foreign_keys": list(adapter.others),
        "notes": list(adapter.notes),
        "metadata": {name: value for name in USEFUL if (value := adapter.metadata.get(name, "")) not in ("", "None")},
        "metadata_entries": len(adapter.metadata),
    }  # fmt: skip


def kind(module: Module) -> str:
    """The module's kind in words, with its kernel: "LoRA", "LoRA (3x3 convolution)", "LoKr"."""
    kernel = module.update.kernel
    return f"{module.update.kind} ({'x'.join(map(str, kernel))} convolution)" if kernel else module.update.kind


def module_norm(module: Module) -> float | None:
    """``|scale| ||B A||_F``; None for a kind whose update is not known, NaN or infinite where its numbers are.

    >>> from nplora.adapters import Factor, LowRank
    >>> from nplora.storage import Tensor
    >>> B, A = (Factor(Tensor.of(key, np.ones(shape))) for key, shape in (("B", (3, 2)), ("A", (2, 4))))
    >>> round(module_norm(Module("unet.x", LowRank(B, A, 0.5, "alpha"), None)) ** 2, 9)  # twelve numbers, each 0.5 * 2
    12.0
    """
    update = module.update
    with np.errstate(all="ignore"):
        if isinstance(update, LowRank):
            B, A = _read(update.up), _read(update.down)
            square = float(np.sum((B.T @ B) * (A @ A.T)))
            return abs(update.scale) * (sqrt(max(square, 0.0)) if isfinite(square) else inf)
        if isinstance(update, Full):
            norm = float(np.linalg.norm(_read(update.diff)))
            return norm if isfinite(norm) else inf
    return None


def _read(matrix: Matrix) -> Any:
    return cast(np.ascontiguousarray(matrix.read()), np.dtype(np.float64))


def _format(adapter: Adapter) -> dict[str, Any]:
    used = Counter(module.origin.format for module in adapter.modules.values())
    formats = all_formats()
    others = {formats[name].title: count for name, count in used.items() if name != adapter.format.name}
    return {
        "name": adapter.format.name, "title": adapter.format.title, "evidence": adapter.evidence, "also": others,
    }  # fmt: skip


def _size(adapter: Adapter, component: str, norms: Mapping[str, float | None]) -> dict[str, Any]:
    modules = [module for module in adapter.modules.values() if module.component == component]
    return {"modules": len(modules), "norm": _norm(modules, norms)}


def _norm(modules: Sequence[Module], norms: Mapping[str, float | None]) -> float | None:
    """The norm of several modules together; None where one is not known or not finite."""
    parts = [norms[module.name] for module in modules]
    known = [part for part in parts if part is not None and isfinite(part)]
    return sqrt(sum(part * part for part in known)) if len(known) == len(parts) else None


def _groups(adapter: Adapter, norms: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Modules of one component and kind: how many, ranks, norm, and effective scales with how each is known."""
    groups: dict[tuple[str, str], list[Module]] = {}
    for module in adapter.modules.values():
        groups.setdefault((module.component, kind(module)), []).append(module)
    return [
        {
            "component": component, "kind": name, "modules": len(modules), "ranks": _ranks(modules),
            "scales": _scales(modules), "norm": _norm(modules, norms),
            "zero_modules": sum(norms[module.name] == 0 for module in modules),
        }
        for (component, name), modules in sorted(groups.items(), key=lambda item: item[0])
    ]  # fmt: skip


def _ranks(modules: Iterable[Module]) -> dict[int, int]:
    """Rank -> number of modules, for those that are made of factors."""
    ranks = Counter(module.update.rank for module in modules if isinstance(module.update, LowRank))
    return dict(sorted(ranks.items()))


def _scales(modules: Iterable[Module]) -> list[dict[str, Any]]:
    """Effective scales, the most frequent first, and how each is known."""
    updates = [module.update for module in modules if not isinstance(module.update, Opaque)]
    found = Counter((update.scale, update.scale_from) for update in updates)
    return [{"scale": scale, "known_from": why, "modules": count} for (scale, why), count in found.most_common()]


def _not_finite(adapter: Adapter, norms: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Which tensors hold NaN or infinity, and how many; only the modules whose norm gives it away are looked at."""
    suspects = []
    for name, norm in norms.items():
        if norm is not None and not isfinite(norm):
            update = adapter.modules[name].update
            matrices = [getattr(update, side) for side in ("up", "down", "diff") if hasattr(update, side)]
            suspects += [(name, matrix.keys[0], matrix.read()) for matrix in matrices]
    suspects += [(vector.name, vector.tensor.key, vector.tensor.read()) for vector in adapter.vectors.values()]
    counts = [(name, key, int((~np.isfinite(array.astype(np.float64))).sum())) for name, key, array in suspects]
    return [{"module": name, "key": key, "values": count} for name, key, count in counts if count]


def sentence(description: Mapping[str, Any]) -> str:
    """A description in one sentence.

    Args:
        description: from `describe`.
    """
    ranks = description["ranks"]
    scales = {scale["scale"] for group in description["groups"] for scale in group["scales"]}
    kinds = list(dict.fromkeys(name.partition(" (")[0] for name in description["kinds"]))
    base = description["base"]["title"] if description["base"]["name"] else "an unknown base"
    count = description["modules"]
    text = f"{' and '.join(kinds) or 'Adapter'} for {base}: {count} module{'' if count == 1 else 's'}"
    if len(ranks) == 1:
        text += f" of rank {next(iter(ranks))}"
    elif ranks:
        text += f" of ranks {min(ranks)} to {max(ranks)}"
    if len(scales) == 1:
        text += f" at scale {next(iter(scales)):.4g}"
    zero = len(description["zero_modules"])
    if zero:
        text += ", all of them zero: it changes nothing" if zero == description["modules"] else f", {zero} of them zero"
    if description["not_finite"]:
        text += "; it holds values that are NaN or infinite"
    return text + "."
