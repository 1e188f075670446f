"""Tables for the read-only commands; the one place that imports rich for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .text import drawable, printable

BAR = 16  # characters of a full bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
FILE_WIDTH = 200  # columns into a file or a pipe
NAME, WORDS = 14, 10  # columns below which the first column, and other words, are not broken


def console() -> Console:
    """A console as wide as the terminal; wide enough for every name into a file or a pipe."""
    import shutil

    columns = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else FILE_WIDTH
    return Console(width=columns, highlight=False, no_color="NO_COLOR" in os.environ)


class Sheet:
    """A quiet table that fits where it is printed, and never cuts a number.

    Where there is too little room the columns move together, then bars are left out, then names are broken into
    lines; where even that does not fit, each row becomes a few lines of its own.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Text]], left: int) -> None:
        self.columns, self.rows, self.left = columns, rows, left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._fitting(options.max_width) or self._cards()

    def _fitting(self, room: int) -> Table | None:
        """The table in its widest form that fits; None where none does."""
        everything = range(len(self.columns))
        plain = [index for index in everything if index == 0 or not self._drawn(index)]
        for gap, shown in ((3, everything), (2, everything), (2, plain), (1, plain)):
            space = room - gap * (len(shown) - 1)
            natural = [self._natural(index) for index in shown]
            if sum(natural) <= space:
                return self._table(shown, natural, gap)
        least = [self._least(index, width) for index, width in zip(plain, natural, strict=True)]
        if sum(least) > space:
            return None
        while sum(natural) > space:  # a column of the widest word there is to break
            widest = max(
                (index for index in range(len(plain)) if natural[index] > least[index]), key=natural.__getitem__
            )
            natural[widest] -= 1
        return self._table(plain, natural, 1)

    def _drawn(self, index: int) -> bool:
        """Whether a column is a picture of another one's numbers."""
        return not self.columns[index] and all(row[index].style for row in self.rows)

    def _natural(self, index: int) -> int:
        return max(cell_len(text) for text in (self.columns[index], *(row[index].plain for row in self.rows)))

    def _least(self, index: int, natural: int) -> int:
        return natural if index >= self.left else min(natural, WORDS if index else NAME)

    def _table(self, shown: Sequence[int], widths: Sequence[int], gap: int) -> Table:
        found = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", show_edge=False)
        for index, width in zip(shown, widths, strict=True):
            justify = "left" if index < self.left else "right"
            found.add_column(self.columns[index], justify=justify, overflow="fold", width=width)  # type: ignore[arg-type]
        for row in self.rows:
            found.add_row(*(row[index] for index in shown))
        return found

    def _cards(self) -> Table:
        """Each row under its name: what the columns say, one after the other; empty cells say nothing."""
        found = Table.grid()
        found.add_row(Text(self.columns[0], style="dim"))
        for row in self.rows:
            told = [
                f"{title} {cell.plain.strip()}".strip()
                for index, (title, cell) in enumerate(zip(self.columns, row, strict=True))
                if index and cell.plain.strip() not in ("", "-") and not self._drawn(index)
            ]
            found.add_row(Text(row[0].plain, overflow="fold"))
            found.add_row(Padding(Text(", ".join(told), style="dim"), (0, 0, 0, 2)))
        return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], left: int = 1) -> Sheet:
    """A table: the first `left` columns to the left, numbers to the right."""
    cells = [[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row] for row in rows]
    return Sheet(columns, cells, left)


def bar(share: float) -> Text:
    """A share from 0 to 1 as a bar.

    >>> bar(0.5).plain.count(" ")  # blocks, or # where the screen has none
    8
    """
    eighths = round(min(max(share, 0.0), 1.0) * BAR * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (EIGHTHS[rest] if rest else "")
    if not drawable(EIGHTHS):
        text = "#" * round(eighths / 8)
    return Text(text.ljust(BAR), style="cyan")
