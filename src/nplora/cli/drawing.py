"""The options --plot and --html of the commands that look at adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from .fuse import require_free
from .text import facts, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..pages import Page

PLOT = click.option("--plot", metavar="FILE.png", help="Draw it there.")
HTML = click.option("--html", metavar="FILE.html", help="Write a page there that stands alone, for desk and phone.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace a plot or page that exists already.")


def require_targets(plot: str | None, html: str | None, inputs: tuple[str, ...], overwrite: bool) -> None:
    """Make sure before the work begins that the plot and the page may be written.

    Raises:
        UsageError: one would replace an adapter; OutputError: there is a file already.
    """
    for path in (plot, html):
        if path is not None:
            require_free(path, inputs, overwrite)


def write(plot: str | None, html: str | None, figure: Callable[[], Figure], page: Callable[[], Page]) -> None:
    """Write what was asked for, and say so."""
    rows: list[tuple[str, str]] = []
    if plot is not None:
        from ..plots import save

        save(figure(), plot)
        rows.append(("plot", plot))
    if html is not None:
        from ..pages import write as write_page

        write_page(page(), html)
        rows.append(("page", html))
    if rows:
        click.echo()
        say(facts(rows))


__all__ = ["HTML", "OVERWRITE", "PLOT", "require_targets", "write"]
