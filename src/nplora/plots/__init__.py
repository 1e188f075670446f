"""Plots: one style, safe for the colour-blind, drawn by matplotlib without a window. They read plain data only.

matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import lacking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by everybody, and in print.
COLOURS = {
    "subject": "#0072B2", "style": "#D55E00", "fused": "#009E73", "sum": "#8C8C8C", "chance": "#8C8C8C",
    "rows": "#0072B2", "columns": "#D55E00",
}  # fmt: skip
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SEQUENCE = "cividis"  # even steps for every kind of sight
INK, QUIET, LINE, ABSENT, PAPER = "#1d1f21", "#5f6368", "#d9dce0", "#e6e8eb", "#ffffff"
READABLE = 0.8  # of its size: below it, the text of a figure is too small
# What these are called in pages/templates/page.css, where a dark screen has others.
VARIABLES = {INK: "ink", QUIET: "quiet", LINE: "line", ABSENT: "absent", PAPER: "paper", "#000000": "ink"}
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": QUIET, "axes.labelcolor": INK,
    "text.color": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": False,
    "grid.color": LINE, "figure.facecolor": "white", "axes.facecolor": "none", "legend.frameon": False,
    "lines.linewidth": 1.8, "svg.fonttype": "none", "svg.hashsalt": "nplora", "savefig.dpi": 150,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a dollar in a file's name is a dollar
}  # fmt: skip


def draw(paint: Callable[[Figure], None], width: float = 7.2, height: float = 3.4) -> Figure:
    """A figure in the house's style, painted by a function.

    Args:
        paint: receives the empty figure.
        width, height: in inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise lacking("plots need", "plots", ["matplotlib"]) from None
    with mpl.rc_context(STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        paint(figure)
        figure.draw_without_rendering()  # ticks take the style that holds now
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    import matplotlib as mpl

    stream = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="png")
    return stream.getvalue()


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element for a page: text stays text, the size and the colours of the ink follow the page."""
    import matplotlib as mpl

    stream = StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    least = f'<svg style="min-width: {READABLE * 96 * figure.get_figwidth():.0f}px"'  # a phone scrolls sideways instead
    text = least + stream.getvalue().partition("<svg")[2]
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text


def save(figure: Figure, path: str) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    from ..storage import write_folder_file

    write_folder_file(Path(path), as_png(figure))
