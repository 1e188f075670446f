"""Pages: one self-contained HTML file each, for a browser on a desk or a phone; no network, no other file.

A page is plain data (`Page`, made of sections with sentences, facts, a figure or a table); one template draws it.
jinja2 is imported when a page is written, and escapes every text: names in a file are a stranger's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..extras import lacking

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value that it is sorted by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table that a reader sorts by a click on its head; a column stands to the right where its cells are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it holds numbers (or nothing at all)."""
        return tuple(not any(isinstance(row[i].value, str) for row in self.rows) for i in range(len(self.columns)))


@dataclass(frozen=True)
class Section:
    """A part of a page: sentences that say what it means, labelled facts, a figure (SVG), a table."""

    title: str
    words: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    figure: str = ""
    figure_says: str = ""  # what the figure shows, for those who cannot see it
    table: Table | None = None
    folded: bool = False  # shut at first: long lists


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def number(value: float | None, digits: int = 3) -> Cell:
    """A number with the digits that matter; a dash where there is none.

    >>> number(12.3456), number(None)
    (Cell(text='12.3', value=12.3456), Cell(text='-', value=None))
    """
    if value is None:
        return Cell("-")
    return Cell(f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.{digits}g}".rstrip("."), value)


def share(value: float | None) -> Cell:
    """A share as a percentage.

    >>> share(0.0213)
    Cell(text='2.1 %', value=0.0213)
    """
    from ..fusion.overlap import percent

    return Cell("-") if value is None else Cell(percent(value), value)


def whole(value: int | None) -> Cell:
    """A count."""
    return Cell("-" if value is None else str(value), value)


def words(text: str) -> Cell:
    """A text, sorted by itself."""
    return Cell(text, text)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> Table:
    """A table of cells; the first of each row says what the row is about."""
    return Table(tuple(columns), tuple(tuple(row) for row in rows), caption)


def file_name(path: str) -> str:
    """A file's name without its folders: a page is passed on, and folders are nobody's business."""
    return path.rstrip("/").rpartition("/")[2] or path


def render(page: Page) -> str:
    """The page as HTML.

    Raises:
        UsageError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise lacking("pages need", "plots", ["jinja2"]) from None
    from ..version import __version__

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    html: str = environment.get_template("page.html.j2").render(page=page, version=__version__)
    return html


def write(page: Page, path: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        UsageError: jinja2 is not installed. OutputError: it cannot be written.
    """
    from ..storage import write_folder_file

    write_folder_file(Path(path), render(page))


def figure(drawn: Any) -> str:
    """A matplotlib figure as SVG for a section."""
    from ..plots import as_svg

    return as_svg(drawn)
