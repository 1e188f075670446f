"""The figures that commands write and pages show: which plots stand together, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.blocks import split_block
from . import SEQUENCE, bars, draw, lines, modules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Mapping[str, Any]


def of_adapter(description: Data) -> Figure:
    """One adapter: norm and effective rank of every module, and the spectra (from `describe`)."""

    def paint(figure: Figure) -> None:
        top, middle, low = figure.subplots(3, 1, height_ratios=[_rows(description["details"])] * 2 + [2.2])
        modules.heat(top, description["details"], lambda row: row["norm"], "Size of the change", "norm")
        modules.heat(middle, description["details"], lambda row: row["effective_rank"], "Ranks that work",
                     "effective rank")  # fmt: skip
        lines.spectra(low, description["blocks"])

    return draw(paint, 7.6, 2 * _rows(description["details"]) + 3.0)


def heat_map(rows: Sequence[Data], key: str, title: str, unit: str) -> Figure:
    """A heat map of one number of every module; rows with "module" and the number under `key`."""
    return draw(
        lambda figure: modules.heat(figure.subplots(), rows, lambda row: row[key], title, unit), 7.2, _rows(rows)
    )


def of_spectra(blocks: Sequence[Data]) -> Figure:
    """Spectra alone."""
    return draw(lambda figure: lines.spectra(figure.subplots(), blocks), 6.4, 2.9)


def of_pair(found: Data) -> Figure:
    """Two adapters: the overlap of every module, the angles, and what mu does (from `compare`)."""

    def paint(figure: Figure) -> None:
        top, middle, low = figure.subplots(3, 1, height_ratios=[_rows(found["overlaps"]), 2.2, 2.4])
        modules.heat(top, found["overlaps"], lambda row: row["rho"], "Overlap: the subject in the style's directions",
                     "share")  # fmt: skip
        lines.angles(middle, found)
        lines.mu_curve(low, found["overlaps"], inf if found["mu"] == "inf" else found["mu"])

    return draw(paint, 7.6, _rows(found["overlaps"]) + 5.6)


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
    order = found["order"]
    names = [found["files"][i]["name"].removesuffix(".safetensors")[-34:] for i in order]

    side = max(2.2, 0.13 * len(order))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, 1)
        titles = (("down_cosine", "One seed"), ("column_alike", "Alike in what they write"))
        for axes, (key, title) in zip(panels, titles, strict=True):
            table = np.array([[np.nan if found[key][i][j] is None else found[key][i][j] for j in order] for i in order])
            np.fill_diagonal(table, np.nan)
            image = axes.imshow(table, cmap=SEQUENCE, vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(title)
            axes.set_xticks(range(len(order)), range(1, len(order) + 1), fontsize=7)
            axes.set_yticks(range(len(order)), [f"{name}  {k}" for k, name in enumerate(names, 1)], fontsize=7)
            axes.tick_params(length=0)
            figure.colorbar(image, ax=axes, pad=0.02, fraction=0.046).ax.tick_params(labelsize=7)

    return draw(paint, 3.6 + side, 2 * side + 1.0)


def _rows(rows: Sequence[Data]) -> float:
    """Inches that a heat map of these modules needs."""
    return 1.2 + 0.13 * len({split_block(row["module"])[1] for row in rows})
