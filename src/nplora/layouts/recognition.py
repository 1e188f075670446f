"""Which base model a file was made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .layout import MARK, Layout, load, names
from .tables import Spelling


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
    beginnings = {module.flat[:MARK] for module in asked}
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
