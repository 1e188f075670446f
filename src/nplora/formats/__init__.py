"""Formats: how files name their modules. Each is one small file, found by scanning this folder.

A format is a score with evidence (how many of a file's modules it understands) and a conversion both ways:
`locate` turns a module's name in the file into a slot of the model and a path; `spell` turns a canonical
module into that format's name. To add one, write one file with a ``FORMAT = Format(...)``; nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from ..layouts import Layout, Part


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module's name points: a slot of the model and a path (dotted or flattened) inside it.

    ``slot`` is "denoiser", "te", "te1", "te2", "te3", or None where the name does not say.
    """

    slot: str | None
    body: str


@dataclass(frozen=True, slots=True)
class Spelling:
    """A module's name in a file, and the canonical parts it holds in row order (several: a fused projection)."""

    module: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Written:
    """What a format needs to know of a file about to be written, to describe it in its metadata or config.

    ``ranks`` and ``scales`` go by canonical module, ``modules`` says each one's name in the file, ``configs`` are
    the configs that stood beside the inputs.
    """

    title: str
    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    modules: Mapping[str, str]
    keys: tuple[str, ...]
    configs: tuple[Mapping[str, object], ...]

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.ranks))


@dataclass(frozen=True)
class Description:
    """Header metadata, and text files that stand beside the tensors (name -> text)."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One way to name the tensors of an adapter.

    Args:
        name: what the user types; title: what the user reads; example: a real key.
        locate: (module, suffix of its factors) -> Place, or None where the name is not of this format.
        spell: (component, canonical name, layout) -> Spelling, or None where this format has no name for it.
        suffixes: role -> suffix when written.
        scale: "alpha" (an ``.alpha`` tensor per module), "folded" (scale 1, factors carry it) or "config".
        uniform_alpha: whether a reader takes one alpha for a whole component (layout name -> bool).
        keeps_others: whether foreign keys may stand in such a file without a reader choking on them.
        carries_kinds: whether readers know LoHa, LoKr and Tucker tensors under this naming.
        folder: the tensors' file name, for a format whose scale stands in a config beside them.
        describe: what goes into the metadata and the config of a file about to be written.
        one_rank: whether readers take one rank for all modules, so that smaller ones are padded with zeros.
        common_rank: paths of modules to which a reader gives the most common rank of their component.
        transposed: whether factors are stored (in, r) and (r, out).
        weight: how much one understood module counts in the score (below 1 for catch-all formats).
    """

    name: str
    title: str
    example: str
    locate: Callable[[str, str], Place | None]
    spell: Callable[[str, str, Layout | None], Spelling | None]
    suffixes: Mapping[str, str] = field(default_factory=dict)
    scale: Literal["alpha", "folded", "config"] = "folded"
    uniform_alpha: Callable[[Layout | None], bool] = lambda _: False
    keeps_others: bool = True
    carries_kinds: bool = False
    folder: str | None = None
    describe: Callable[[Written], Description] = lambda _: Description()
    one_rank: bool = False
    common_rank: frozenset[str] = frozenset()
    transposed: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Detection:
    """The format of a file and the evidence for it."""

    format: Format
    places: Mapping[str, Place]  # module -> where it points
    formats: Mapping[str, str]  # module -> name of the format that understood it
    evidence: str


@lru_cache(maxsize=1)
def all_formats() -> dict[str, Format]:
    """Every format by name, the catch-all ones last."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "FORMAT"):
            found.append(module.FORMAT)
    return {format.name: format for format in sorted(found, key=lambda format: -format.weight)}


def detect(modules: Mapping[str, str], file: str) -> Detection:
    """The format that understands most of a file's modules.

    Args:
        modules: module name -> suffix of its first factor.
        file: the file's name, for messages.

    Returns:
        The winner. A module that the winner does not know but another format does keeps that other
        format's place: files with a denoiser and a text encoder in two namings are common.
    """
    places: dict[str, Place] = {}
    formats: dict[str, str] = {}
    counts: dict[str, float] = {}
    for module, suffix in modules.items():
        for format in all_formats().values():
            place = format.locate(module, suffix)
            if place is not None:
                places[module], formats[module] = place, format.name
                # The denoiser decides: text encoders often come in another naming.
                counts[format.name] = counts.get(format.name, 0.0) + (
                    0.5 if (place.slot or "").startswith("te") else 1.0
                )
                break
    best = max(counts, key=lambda name: (counts[name], all_formats()[name].weight))
    format = all_formats()[best]
    known = sum(name == best for name in formats.values())
    return Detection(format, places, formats, f"{known} of {len(modules)} modules are named as in {format.example!r}")


def unspelled(component: str, name: str, layout: Layout | None) -> Spelling | None:
    """The `spell` of a format that can only repeat names it has read."""
    return None


def strip_prefix(module: str, prefixes: Sequence[tuple[str, str | None]]) -> Place | None:
    """The place behind the first matching (prefix, slot)."""
    for prefix, slot in prefixes:
        if module.startswith(prefix) and len(module) > len(prefix):
            return Place(slot, module[len(prefix) :])
    return None
