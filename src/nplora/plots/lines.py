"""Spectra, angles and the curve of mu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.blocks import model_order
from ..fusion.overlap import kept_strength, matched_strength
from . import COLOURS, CYCLE, QUIET, SEQUENCE
from .modules import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MUS = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0, inf)


def spectra(axes: Axes, blocks: Sequence[Mapping[str, Any]], title: str = "Spectrum of each block") -> None:
    """Mean singular values of each block against the largest one; a flat line uses all of its ranks alike.

    Args:
        axes: where to draw.
        blocks: with "block" and "spectrum", as `describe` gives them.
    """
    from matplotlib import colormaps

    shown = [block for block in blocks if block["spectrum"]]
    colours = colormaps[SEQUENCE](np.linspace(0, 0.92, max(len(shown), 1)))
    for block, colour in zip(shown, colours, strict=False):
        values = block["spectrum"]
        places = range(1, len(values) + 1)
        axes.plot(places, values, color=colour, label=short(block["block"]), marker=".", markersize=4)
    axes.set_title(title)
    axes.set_xlabel("singular value, the largest first")
    axes.set_ylabel("share of the largest")
    axes.set_ylim(0, 1.05)
    _as_percent(axes)
    axes.grid(axis="y")
    if not shown:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "every change is zero or not known", ha="center", transform=axes.transAxes)
        return
    axes.set_xlim(left=0.8)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.0)


def _as_percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def angles(axes: Axes, found: Mapping[str, Any]) -> None:
    """How many principal angles there are of each size, between what both read and what both write.

    Args:
        axes: where to draw.
        found: from `compare`, with "angles".
    """
    for side, label in (("row", "what they read (rows)"), ("column", "what they write (columns)")):
        counts = np.array(found["angles"][side]["histogram"], float)
        share = counts / max(counts.sum(), 1)
        edges = np.linspace(0, 90, len(counts) + 1)
        axes.stairs(share, edges, fill=True, alpha=0.35, color=COLOURS[f"{side}s"], label=label)
        axes.stairs(share, edges, color=COLOURS[f"{side}s"], linewidth=1.5)
    axes.set_title("Principal angles")
    axes.set_xlabel("degrees: at 0 the directions are the same, at 90 they have nothing in common")
    axes.set_ylabel("share of the directions")
    _as_percent(axes)
    axes.set_xlim(0, 90)
    axes.set_xticks(range(0, 91, 15))
    axes.legend(fontsize=8, loc="upper center")


def mu_curve(axes: Axes, rows: Sequence[Mapping[str, Any]], chosen: float | None = None) -> None:
    """How much of the subject is kept at each mu, and how much of it still lies in the style's directions.

    Args:
        axes: where to draw.
        rows: with "module", "rho" and "subject_norm", as `compare` gives them.
        chosen: a mu to be marked.
    """
    shares = np.linspace(0, 1, 101)  # mu/(1+mu): from plain addition to the hard projection
    mus = [inf if g == 1 else g / (1 - g) for g in shares]
    found = rho_by_component(rows)
    for colour, (component, rho) in zip(CYCLE, found.items(), strict=False):
        name = f"{component.replace('_', ' ')}: " if len(found) > 1 else ""
        axes.plot(shares, [matched_strength(rho, mu) for mu in mus], color=colour, label=f"{name}kept of the subject")
        left = [rho**0.5 * kept_strength(mu) for mu in mus]
        axes.plot(shares, left, color=colour, linestyle="--", label=f"{name}still in the style's way")
    axes.set_title("What mu does")
    axes.set_xticks([1.0 if mu == inf else mu / (1 + mu) for mu in MUS], [f"{mu:g}" for mu in MUS])
    axes.set_xlabel("mu: at 0 plain addition, at inf nothing is left in the style's directions")
    axes.set_ylabel("of the subject's norm")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    _as_percent(axes)
    axes.grid(axis="y")
    if chosen is not None:
        place = 1.0 if chosen == inf else chosen / (1 + chosen)
        axes.axvline(place, color=QUIET, linewidth=1, linestyle=":")
        axes.text(min(place + 0.01, 0.9), 1.06, f"mu = {chosen:g}", fontsize=7, color=QUIET)
    axes.legend(fontsize=7, loc="best")


def rho_by_component(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Component -> share of the subject inside the style's directions, energies summed over modules."""
    energies: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: model_order(row["module"])):
        whole = row["subject_norm"] ** 2
        found = energies.setdefault(row["module"].partition(".")[0], [0.0, 0.0])
        found[0] += row["rho"] * whole
        found[1] += whole
    return {component: inside / whole if whole else 0.0 for component, (inside, whole) in energies.items()}
