"""Drawings: nothing lies on top of anything else, and bars stand beside their maps."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nplora
from making import CONVOLUTIONS, SD15, TEXT, make
from nplora.analysis.family import relate
from nplora.analysis.inspection import describe
from nplora.plots import as_svg, figures


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, modules = tmp_path_factory.mktemp("pair"), {**SD15, **CONVOLUTIONS, **TEXT}
    paths = [make(folder / f"{seed}.safetensors", modules=modules, seed=seed) for seed in (1, 2)]
    return nplora.compare(*map(nplora.load, paths))


def boxes(texts: Any) -> list[Any]:
    return [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]


def overlapping(found: list[Any]) -> int:
    return sum(one.overlaps(two) for one, two in combinations(found, 2))


def test_a_bar_stands_beside_its_map(pair: dict[str, Any]) -> None:
    figure = figures.of_pair(pair)
    for axes in figure.axes[:2]:
        (bar,) = axes.child_axes
        gap = bar.get_window_extent().x0 - axes.get_window_extent().x1
        assert 0 < gap < 0.03 * figure.bbox.width
        assert bar.get_window_extent().height == pytest.approx(axes.get_window_extent().height)


def test_the_overlap_is_drawn_against_the_whole(pair: dict[str, Any]) -> None:
    """Unrelated adapters make a dark map: no module looks bright because it is the least dark one."""
    for axes in figures.of_overlaps(pair["overlaps"]).axes[:2]:
        assert axes.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "flux1", "wan-14b"])
def test_labels_of_a_map_do_not_meet(base: str) -> None:
    from nplora import layouts

    layout = layouts.load(base)
    components = [name for name in layout.components if "_2" not in name or base == "sdxl"]
    names = [f"{component}.{name}" for component in components for name in layout.modules(component)
             if "attn" in name or ".ff." in name or "resnets" in name]  # fmt: skip
    rows = [{"module": name, "norm": 1.0, "effective_rank": 2.0} for name in names]
    figure = figures.of_modules(rows)
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        assert overlapping(boxes(axes.get_yticklabels())) <= len(axes.get_yticklabels())  # neighbours may touch
        labels = axes.get_xticklabels()
        if labels[0].get_rotation() == 0:
            assert overlapping(boxes(labels)) == 0


def test_forty_adapters_with_long_names(tmp_path: Path) -> None:
    modules = dict(list(SD15.items())[:1])
    names = [f"a-very-long-name-of-an-adapter-that-somebody-downloaded-from-somewhere-v{index}" for index in range(40)]
    for index, name in enumerate(names):
        make(tmp_path / f"{name}.safetensors", modules=modules, seed=index, down_seed=index // 2, rank=2)
    found = relate([nplora.load(path) for path in sorted(tmp_path.iterdir())])
    assert len(found["groups"]["seed"]) == 20
    figure = figures.of_family(found)
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        shown = [label.get_text() for label in axes.get_yticklabels()]
        assert all(len(text) < 45 and "…" in text for text in shown)
        assert len({text.split()[0] for text in shown}) == 40  # the ends still tell them apart
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert overlapping(boxes(labels)) == 0
        assert min(box.x0 for box in boxes(axes.get_yticklabels())) >= 0


def test_nothing_but_zeros_is_said_to_be_zero(tmp_path: Path) -> None:
    zero = describe(nplora.load(make(tmp_path / "zero.safetensors", seed=1, size=0.0)))
    figure = figures.of_adapter(zero)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "Size of the change (zero everywhere)", "Ranks that work (zero everywhere)"
    ]  # fmt: skip
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert "every change is zero or not known" in as_svg(figure)


def test_modules_without_numbers_are_holes(tmp_path: Path) -> None:
    path = make(tmp_path / "nan.safetensors", seed=1, size=np.nan)
    described = describe(nplora.load(path))
    assert figures.of_modules(described["details"]).axes[0].get_title(loc="left") == "Size of the change (not known)"


def test_ink_follows_the_page(pair: dict[str, Any]) -> None:
    text = as_svg(figures.of_mu(pair["overlaps"], 0.5))
    assert "var(--ink, #1d1f21)" in text
    assert text.startswith('<svg style="min-width: ')
