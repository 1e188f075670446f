"""The figures that commands write and pages show: which plots stand together, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ABSENT, SEQUENCE, bars, draw, lines, modules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Mapping[str, Any]


def of_adapter(description: Data) -> Figure:
    """One adapter: norm and effective rank of every module, and the spectra (from `describe`)."""
    details = description["details"]
    tall = modules.height(details)

    def paint(figure: Figure) -> None:
        top, middle, low = figure.subplots(3, 1, height_ratios=[tall, tall, 2.4])
        modules.heat(top, details, lambda row: row["norm"], "Size of the change", "norm at strength 1")
        modules.heat(middle, details, lambda row: row["effective_rank"], "Ranks that work", "effective rank")
        lines.spectra(low, description["blocks"])

    return draw(paint, 7.6, 2 * tall + 2.4)


def of_modules(details: Sequence[Data]) -> Figure:
    """The heat maps of one adapter alone: norm and effective rank of every module."""

    def paint(figure: Figure) -> None:
        top, low = figure.subplots(2, 1)
        modules.heat(top, details, lambda row: row["norm"], "Size of the change", "norm at strength 1")
        modules.heat(low, details, lambda row: row["effective_rank"], "Ranks that work", "effective rank")

    return draw(paint, 7.2, 2 * modules.height(details))


def of_overlaps(rows: Sequence[Data]) -> Figure:
    """The heat maps of a pair alone: overlap of what both read, likeness of what both write."""
    return draw(lambda figure: _overlaps(figure.subplots(2, 1), rows), 7.2, 2 * modules.height(rows))


def _overlaps(axes: Any, rows: Sequence[Data]) -> None:
    top, low = axes
    modules.heat(top, rows, lambda row: row["rho"], "Overlap: how much of the subject lies in the style's directions",
                 "share", share=True)  # fmt: skip
    modules.heat(low, rows, lambda row: row["column_alike"], "How much alike they write", "share", share=True)


def of_spectra(blocks: Sequence[Data]) -> Figure:
    """Spectra alone."""
    return draw(lambda figure: lines.spectra(figure.subplots(), blocks), 6.4, 2.9)


def of_pair(found: Data) -> Figure:
    """Two adapters: the overlap of every module, the angles, and what mu does (from `compare`)."""
    rows = found["overlaps"]
    tall = modules.height(rows)

    def paint(figure: Figure) -> None:
        top, second, third, low = figure.subplots(4, 1, height_ratios=[tall, tall, 2.2, 2.4])
        _overlaps((top, second), rows)
        lines.angles(third, found)
        lines.mu_curve(low, rows, inf if found["mu"] == "inf" else found["mu"])

    return draw(paint, 7.6, 2 * tall + 4.8)


def of_angles(found: Data) -> Figure:
    """The angles alone."""
    return draw(lambda figure: lines.angles(figure.subplots(), found), 6.4, 2.9)


def of_mu(rows: Sequence[Data], mu: float | None) -> Figure:
    """The curve of mu alone."""
    return draw(lambda figure: lines.mu_curve(figure.subplots(), rows, mu), 6.4, 2.9)


def of_outcome(found: Data) -> Figure:
    """A fusion before and after (from `nplora.analysis.outcome`)."""

    def paint(figure: Figure) -> None:
        top, low = figure.subplots(2, 1)
        bars.norms(top, found)
        bars.kept(low, found)

    return draw(paint, 7.2, 5.4)


def of_family(found: Data) -> Figure:
    """Many adapters: who shares a seed, and who writes alike, relatives side by side (from `relate`)."""
    from matplotlib.ticker import PercentFormatter

    order = found["order"]
    names = [_fitting(found["files"][i]["name"].removesuffix(".safetensors")) for i in order]
    side = max(2.4, 0.14 * len(order))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, 1)
        titles = (
            ("down_cosine", "One seed: cosine of the down factors", None),
            ("column_alike", "One subject: how much alike they write", PercentFormatter(1.0, decimals=0)),
        )
        for axes, (key, title, written) in zip(panels, titles, strict=True):
            table = np.array([[np.nan if found[key][i][j] is None else found[key][i][j] for j in order] for i in order])
            np.fill_diagonal(table, np.nan)
            image = axes.imshow(table, cmap=SEQUENCE, vmin=0, vmax=1, interpolation="nearest")
            axes.set_facecolor(ABSENT)
            axes.set_title(title)
            axes.set_xticks(range(len(order)), range(1, len(order) + 1), fontsize=7, rotation=90)
            axes.set_yticks(range(len(order)), [f"{name}  {k}" for k, name in enumerate(names, 1)], fontsize=7)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.025, 1.0)), format=written)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7, length=2)

    return draw(paint, 3.6 + side, 2 * side + 1.0)


def _fitting(name: str, most: int = 38) -> str:
    """A name that fits beside a matrix: the middle of a long one is left out, its ends tell it apart.

    >>> _fitting("a" * 30 + "-style", 20)
    'aaaaaaaaa…aaaa-style'
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-(most - 1 - half) :]}"
