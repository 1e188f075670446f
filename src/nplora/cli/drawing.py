"""The options --plot and --html of the commands that look at adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from .command import FILE
from .targets import require_drawing, require_free
from .text import facts, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..pages import Page

PLOT = click.option("--plot", type=FILE, metavar="FILE.png", help="Draw it there.")
HTML = click.option(
    "--html", type=FILE, metavar="FILE.html", help="Write a page there that stands alone, for desk and phone."
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace a plot or page that exists already.")


def require_targets(plot: str | None, html: str | None, inputs: tuple[str, ...], overwrite: bool) -> None:
    """Make sure before the work begins that the plot and the page may be written.

    Raises:
        UsageError: one would replace an adapter, or a library is missing; OutputError: there is a file already.
    """
    for path, what in ((plot, "plot"), (html, "page")):
        if path is not None:
            require_free(path, inputs, overwrite, what)
    require_drawing(plot, html)


def write(
    plot: str | None, html: str | None, figure: Callable[[], Figure], page: Callable[[], Page], *, quiet: bool = False
) -> None:
    """Write what was asked for, and say so unless stdout is for data."""
    rows: list[tuple[str, str]] = []
    if plot is not None:
        from ..plots import save

        save(figure(), plot)
        rows.append(("plot", plot))
    if html is not None:
        from ..pages import write as write_page

        write_page(page(), html)
        rows.append(("page", html))
    if rows and not quiet:
        click.echo()
        say(facts(rows))


__all__ = ["HTML", "OVERWRITE", "PLOT", "require_targets", "write"]
