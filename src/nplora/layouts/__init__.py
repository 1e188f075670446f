"""Base models as tables: which modules one has, and what each is called by diffusers and by the original checkpoint.

The tables are JSON files beside this one, one a base model, written by `tools/derive_layouts.py`, which also describes
their form. A file put into the folder is found; no second list exists. `text/` holds the text encoders that several
base models share. Nothing is read before it is asked for.

*Canonical* is the module path of diffusers' (transformers') model, *native* that of the original checkpoint. Where
the native model fuses projections (qkv), the canonical modules are its parts, from top to bottom of its rows.

>>> load("flux1").find("transformer", "single_blocks_7_linear1")[1:3]
(Part(name='single_transformer_blocks.7.attn.to_k', rows=(3072, 6144), swap=False),
 Part(name='single_transformer_blocks.7.attn.to_v', rows=(6144, 9216), swap=False))
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import UsageError
from .tables import Part, Piece, Spelling, Table

__all__ = ["Layout", "Part", "Recognition", "load", "names", "recognise"]

_FOLDER = Path(__file__).parent
_MARK = 12  # characters at a name's beginning that are compared before a table is expanded


@dataclass(frozen=True, eq=False)
class Layout:
    """The modules of one base model; immutable.

    Args:
        name: "sdxl".
        title: "Stable Diffusion XL".
        modelspec: architecture id of the modelspec standard without "/lora": "stable-diffusion-xl-v1-base".
        slots: where the prefixes of a file point: "denoiser", "te", "te1", "te2", "te3" -> component.
        components: "unet" or "transformer", "text_encoder", ...; some may have no known modules.
        kohya: per component, which names kohya files use: "canonical" or "native".
        tables: per component, where its modules are looked up.
        marks: how a module's name can begin; names that begin otherwise are no modules of the model.
        sizes: all (out, flattened in) that its weights have, fused ones too.
        order: place among the base models by how common they are, from 1.
    """

    name: str
    title: str
    modelspec: str | None
    slots: Mapping[str, str]
    components: tuple[str, ...]
    kohya: Mapping[str, str]
    tables: Mapping[str, tuple[Table, ...]] = field(repr=False)
    marks: tuple[str, ...] = field(repr=False)
    sizes: frozenset[tuple[int, int]] = field(repr=False)
    order: int = field(repr=False)

    def find(self, component: str, body: str) -> tuple[Part, ...] | None:
        """Find what a module of a file stands for; None if the component has no such module.

        Args:
            component: "transformer".
            body: dotted or flattened with "_", canonical or native; CLIP's with or without "text_model.".

        >>> load("sdxl").find("unet", "input_blocks_4_1_proj_in")
        (Part(name='down_blocks.1.attentions.0.proj_in', rows=None, swap=False),)
        """
        spelling, step = self.look_up(component, body.replace(".", "_")) or (None, 0)
        return spelling.parts(step) if spelling else None

    def shape(self, component: str, name: str) -> tuple[int, ...] | None:
        """Return the shape of a canonical module's weight.

        (out, in[, kh, kw]); (dim,) of a norm; (n, dim) of an embedding.

        >>> load("sd15").shape("unet", "conv_in")
        (320, 4, 3, 3)
        """
        found = self._canonical(component, name)
        return found[1].shape if found else None

    def native(self, component: str, name: str) -> tuple[str, tuple[Part, ...]]:
        """Return the native module that holds a canonical one, dotted, and all its parts from top to bottom.

        One part with rows None where it is not fused; the name itself where no other is known.

        >>> load("wan-14b").native("transformer", "blocks.2.ffn.net.2")
        ('blocks.2.ffn.2', (Part(name='blocks.2.ffn.net.2', rows=None, swap=False),))
        """
        found = self._canonical(component, name)
        if found is None:
            return name, (Part(name),)
        spelling, _, step = found
        return spelling.native.at(step), spelling.whole(step)

    def modules(self, component: str) -> Iterator[str]:
        """Yield the canonical names of all modules of a component that have a weight."""
        for table in self.tables.get(component, ()):
            yield from table.names()

    def _canonical(self, component: str, name: str) -> tuple[Spelling, Piece, int] | None:
        spelling, step = self.look_up(component, name.replace(".", "_")) or (None, 0)
        if spelling is None or spelling.piece is None or spelling.piece.name.at(step) != name:
            return None
        return spelling, spelling.piece, step

    def look_up(self, component: str, flat: str) -> tuple[Spelling, int] | None:
        """Find what a flattened name stands for in a component, and its place in a run of numbered modules."""
        for table in self.tables.get(component, ()):
            found = table.look_up(flat)
            if found:
                return found
        return None


@cache
def names() -> tuple[str, ...]:
    """Return the names of all base models that have a table."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.json")))


@cache
def load(name: str) -> Layout:
    """Read the layout of a base model.

    Raises:
        UsageError: when no table has this name.
    """
    if name not in names():
        raise UsageError("no base model of this name is known", got=name, expected=f"one of {', '.join(names())}")
    content = _read(f"{name}.json")
    components: dict[str, Any] = content["components"]
    tables: dict[str, tuple[Table, ...]] = {}
    for component, table in components.items():
        own = tables[table["as"]] if "as" in table else (Table(table),)
        tables[component] = (*own, _text(table["table"])) if "table" in table else own
    return Layout(
        name=name,
        title=content["title"],
        modelspec=content["modelspec"],
        slots=MappingProxyType(content["slots"]),
        components=tuple(components),
        kohya=MappingProxyType({component: table["kohya"] for component, table in components.items()}),
        tables=MappingProxyType(tables),
        marks=tuple(mark[:_MARK] for mark in content["marks"]),
        sizes=frozenset((out, inputs) for out, inputs in content["sizes"]),
        order=content["order"],
    )


@cache
def _text(name: str) -> Table:
    return Table(_read(f"text/{name}.json"))


def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_FOLDER / file).read_bytes())
    return content


@dataclass(frozen=True)
class Recognition:
    """Which base model a file was made for, as far as its names and sizes tell.

    Args:
        layout: the best fitting one; None if too little is recognised.
        matched: modules whose name and flattened sizes agree with it.
        total: modules asked about.
        evidence: one sentence: "722 of 722 modules are Stable Diffusion XL's".
        rivals: titles of other base models that fit equally well.
    """

    layout: Layout | None
    matched: int
    total: int
    evidence: str
    rivals: tuple[str, ...]


class _Asked(NamedTuple):
    slot: str | None
    flat: str
    size: tuple[int | None, int | None]  # out, flattened in


class _Score(NamedTuple):
    layout: Layout
    matched: int
    complete: bool  # of every run of blocks that the file touches, it has all blocks

    @property
    def merit(self) -> tuple[int, bool]:
        return self.matched, self.complete


def recognise(modules: Iterable[tuple[str | None, str, int | None, int | None]]) -> Recognition:
    """Name the base model of a file from its modules' names and sizes.

    A layout's score is the number of modules that it has under that name with those sizes. Of equal scores the one
    whose blocks the file covers without a gap wins (FLUX.1 with 19 blocks against HunyuanVideo with 20), then the more
    common model, and the others are its rivals. Below half of the modules nothing is recognised.

    Args:
        modules: (slot, body, out, flattened in): slot "denoiser", "te", "te1", "te2", "te3", or None for any
            component; body as in `Layout.find`; sizes of the (fused) weight, in = in * kh * kw, None if unknown.

    >>> recognise([("denoiser", "mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 1024)]).evidence
    "1 of 1 modules is Stable Diffusion 2.x's"
    """
    asked = [_Asked(slot, body.replace(".", "_"), (out, inputs)) for slot, body, out, inputs in modules]
    scores = _best_scores(asked)
    if not scores or scores[0].matched * 2 < len(asked):
        matched = scores[0].matched if scores else 0
        return Recognition(None, matched, len(asked), _too_little(scores, len(asked)), ())
    best = scores[0]
    rivals = tuple(score.layout.title for score in scores[1:])
    return Recognition(best.layout, best.matched, len(asked), _sentence(best, len(asked), rivals), rivals)


def _best_scores(asked: list[_Asked]) -> list[_Score]:
    """The layouts of the highest merit, the most common first; only those are expanded that can be among them."""
    beginnings = {module.flat[:_MARK] for module in asked}
    sizes = Counter(module.size for module in asked)
    bounds = {
        layout: sum(count for size, count in sizes.items() if None in size or size in layout.sizes)
        for layout in map(load, names())
        if any(beginning.startswith(layout.marks) for beginning in beginnings)
    }  # the most that a layout can score
    scores: list[_Score] = []
    for layout, bound in sorted(bounds.items(), key=lambda item: -item[1]):
        if bound == 0 or (scores and bound < max(score.matched for score in scores)):
            break
        scores.append(_score(layout, asked))
    merit = max((score.merit for score in scores), default=(0, False))
    best = [score for score in scores if score.matched and score.merit == merit]
    return sorted(best, key=lambda score: score.layout.order)


def _score(layout: Layout, asked: list[_Asked]) -> _Score:
    matched = 0
    touched: dict[int, int] = {}  # run -> its length
    for module in asked:
        spelling = _fitting(layout, module)
        if spelling is not None:
            matched += 1
            touched[id(spelling)] = spelling.native.length
    return _Score(layout, matched, matched >= sum(touched.values()))


def _fitting(layout: Layout, module: _Asked) -> Spelling | None:
    """The spelling of the layout that has the module's name and sizes."""
    slot, flat, (out, inputs) = module
    components = layout.components if slot is None else (layout.slots.get(slot, ""),)
    for component in components:
        found = layout.look_up(component, flat)
        if found and out in (None, found[0].out) and inputs in (None, found[0].inputs):
            return found[0]
    return None


def _sentence(best: _Score, total: int, rivals: tuple[str, ...]) -> str:
    text = f"{best.matched} of {total} modules {'is' if best.matched == 1 else 'are'} {best.layout.title}'s"
    return f"{text}, and equally {' or '.join(rivals)}'s: same shapes, base not proven" if rivals else text


def _too_little(scores: list[_Score], total: int) -> str:
    if not scores:
        return f"none of {total} modules has the name and the sizes of a known base model's"
    return f"only {scores[0].matched} of {total} modules could be {scores[0].layout.title}'s"
