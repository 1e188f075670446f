"""Describe an adapter as plain data: what it is for, what it is made of, and how each of that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, sqrt
from statistics import median
from typing import Any

import numpy as np

from .. import wording
from ..adapters import Full, LowRank, Opaque, Update
from ..formats import all_formats
from ..output import metadata as words
from ..reading.adapter import Adapter, Module
from ..reading.base import BaseModel
from ..reading.expansion import expand
from .blocks import coarse_blocks, model_order
from .spectra import Spectrum, spectra

SHOWN = 128  # singular values that are told; a full matrix has as many as it is wide

# Metadata that a person asks for, in the order of interest.
USEFUL = (
    "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.usage_hint", "modelspec.license",
    "modelspec.architecture", "modelspec.merged_from", "modelspec.date", "ss_output_name", "ss_sd_model_name",
    "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_num_train_images",
    "ss_num_epochs", "ss_epoch", "ss_steps", "ss_resolution", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr",
    "ss_optimizer", "ss_seed", "ss_training_comment", "software",
)  # fmt: skip


def describe(adapter: Adapter, base: BaseModel | None = None) -> dict[str, Any]:
    """What an adapter is, as plain data ready for JSON.

    Norms are Frobenius norms of the updates at strength 1, singular values those of the updates at strength 1, from
    r x r Gram matrices in float64; factors are read a few modules at a time.

    Args:
        adapter: from `load`.
        base: the base model, for kinds whose update depends on it; without it a DoRA module is told by its direction.

    Returns:
        file, bytes, format and base with evidence, components, groups of modules of one component and kind (ranks,
        norm, effective scales and how each is known), blocks of the model and ``details`` of every module (effective
        rank by entropy, stable rank, ranks that do nothing, singular values), dtypes, zero modules, values that are
        not finite, trigger words, keys that belong to no module, notes, and the metadata that says most. Text is
        as it stands in the file: make it printable before a terminal sees it.

    >>> describe(load("cat.safetensors"))["base"]["title"]  # doctest: +SKIP
    'Stable Diffusion XL'
    """
    adapter = _as_far_as_known(adapter, base)
    found = spectra(adapter.modules.values())
    norms = {name: None if spectrum is None else spectrum.norm for name, spectrum in found.items()}
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
        "blocks": _blocks(adapter, found),
        "details": [_detail(adapter.modules[name], found[name]) for name in sorted(found, key=model_order)],
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


def _as_far_as_known(adapter: Adapter, base: BaseModel | None) -> Adapter:
    """Exact updates beside the base; without one the direction of DoRA modules, and a note that says so."""
    if base is not None:
        return expand(adapter, base, keep=False)
    found = expand(adapter, None, "ignore", keep=False)
    ignored = len(found.unread) - len(adapter.unread)
    if not ignored:
        return found
    note = (
        f"the numbers of {wording.count(ignored, 'DoRA module')} are those of the direction, without the magnitude: "
        "--base MODEL.safetensors tells the exact ones"
    )
    return replace(found, notes=(*adapter.notes, note))


def low_rank(update: Update) -> LowRank | None:
    """The factors that an update is made of: its own, or those that a kind stores which also rescales the base."""
    return update if isinstance(update, LowRank) else update.around if isinstance(update, Full) else None


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
    spectrum = spectra([module])[module.name]
    return None if spectrum is None else spectrum.norm


def _detail(module: Module, spectrum: Spectrum | None) -> dict[str, Any]:
    """One module: what it is, its scale, and its spectrum at strength 1."""
    update = module.update
    stored = low_rank(update) or update
    detail: dict[str, Any] = {
        "module": module.name, "kind": kind(module), "size": list(update.size) if update.size else None,
        "rank": stored.rank if isinstance(stored, LowRank) else None,
        "scale": None if isinstance(stored, Opaque) else stored.scale, "known_from": stored.scale_from,
    }  # fmt: skip
    if spectrum is None or not isfinite(spectrum.norm):
        return {**detail, "norm": None, "effective_rank": None, "stable_rank": None, "dead_ranks": None,
                "singular_values": []}  # fmt: skip
    return {
        **detail, "norm": spectrum.norm, "effective_rank": round(spectrum.effective_rank, 3),
        "stable_rank": round(spectrum.stable_rank, 3),
        "dead_ranks": spectrum.dead if isinstance(update, LowRank) else None,
        "singular_values": [float(f"{value:.5g}") for value in spectrum.values[:SHOWN]],
    }  # fmt: skip


def _blocks(adapter: Adapter, found: Mapping[str, Spectrum | None]) -> list[dict[str, Any]]:
    """Modules of one block of the model, in its order: norms add up by energy, ranks are medians."""
    homes = coarse_blocks(adapter.modules)
    blocks: dict[str, list[str]] = {}
    for name, home in homes.items():
        blocks.setdefault(home, []).append(name)
    return [_block(home, [adapter.modules[name] for name in names], found) for home, names in blocks.items()]


def _block(home: str, modules: Sequence[Module], found: Mapping[str, Spectrum | None]) -> dict[str, Any]:
    known = [s for module in modules if (s := found[module.name]) is not None and isfinite(s.norm)]
    low = [found[module.name] for module in modules if isinstance(module.update, LowRank)]
    return {
        "block": home, "modules": len(modules), "ranks": _ranks(modules),
        "effective_rank": round(median(s.effective_rank for s in known), 3) if known else None,
        "stable_rank": round(median(s.stable_rank for s in known), 3) if known else None,
        "norm": sqrt(sum(s.norm**2 for s in known)) if len(known) == len(modules) else None,
        "dead_ranks": sum(s.dead for s in low if s is not None and isfinite(s.norm)),
        "spectrum": _mean_spectrum(known),
    }  # fmt: skip


def _mean_spectrum(spectra: Sequence[Spectrum]) -> list[float]:
    """The mean of ``s_i / s_1`` over modules, as far as the longest goes (at most `SHOWN`)."""
    live = [s.values[:SHOWN] / s.values[0] for s in spectra if len(s.values) and s.values[0] > 0]
    if not live:
        return []
    total = np.zeros(max(map(len, live)))
    for values in live:
        total[: len(values)] += values
    return [round(float(value), 4) for value in total / len(live)]


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
    stored = (low_rank(module.update) for module in modules)
    return dict(sorted(Counter(update.rank for update in stored if update is not None).items()))


def _scales(modules: Iterable[Module]) -> list[dict[str, Any]]:
    """Effective scales, the most frequent first, and how each is known."""
    stored = (low_rank(module.update) or module.update for module in modules)
    updates = [update for update in stored if not isinstance(update, Opaque)]
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
    kinds = list(dict.fromkeys(name.partition(" (")[0].removesuffix(" direction") for name in description["kinds"]))
    title = description["base"]["title"]
    base = "an unknown base" if title == "unknown base" else title
    modules = wording.count(description["modules"], "module")
    text = f"{' and '.join(kinds) or 'Adapter'} for {base}: {modules}"
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


def overview(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description in one line of a table of many.

    Args:
        description: from `describe`.

    Returns:
        name, base, kind, trigger_words, modules, rank (the most common), effective_rank (median over modules), norm,
        and what is odd, in words.
    """
    details = [detail for detail in description["details"] if detail["norm"]]
    ranks = Counter(detail["rank"] for detail in details if detail["rank"])
    norms = [component["norm"] for component in description["components"].values()]
    dead = sum(detail["dead_ranks"] or 0 for detail in details)
    odd = [
        f"{wording.count(number, noun)}{rest}"
        for number, noun, rest in (
            (len(description["zero_modules"]), "module", " zero"), (dead, "dead rank", ""),
            (sum(broken["values"] for broken in description["not_finite"]), "value", " NaN or infinite"),
            (len(description["foreign_keys"]), "key", " in no module"),
        )
        if number
    ]  # fmt: skip
    return {
        "name": description["file"].rstrip("/").rpartition("/")[2] or description["file"],
        "base": description["base"]["title"],
        "kind": ", ".join(
            dict.fromkeys(name.partition(" (")[0].removesuffix(" direction") for name in description["kinds"])
        ),
        "trigger_words": description["trigger_words"],
        "modules": description["modules"],
        "rank": ranks.most_common(1)[0][0] if ranks else None,
        "effective_rank": round(median(detail["effective_rank"] for detail in details), 2) if details else None,
        "norm": None if None in norms else sqrt(sum(norm**2 for norm in norms)),
        "odd": odd,
    }
