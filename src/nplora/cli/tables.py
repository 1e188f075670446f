"""Tables for the read-only commands; the one place that imports rich for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import printable, width

BAR = 16  # characters of a full bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


def console() -> Console:
    """A console as wide as the terminal, at most 100 columns; wide enough for every name into a file or a pipe."""
    return Console(width=width() if sys.stdout.isatty() else 200, highlight=False, no_color="NO_COLOR" in os.environ)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], left: int = 1) -> Table:
    """A quiet table: the first `left` columns to the left, numbers to the right."""
    found = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", show_edge=False)
    for index, title in enumerate(columns):
        found.add_column(title, justify="left" if index < left else "right", overflow="fold", no_wrap=index >= left)
    for row in rows:
        found.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return found


def bar(share: float) -> Text:
    """A share from 0 to 1 as a bar.

    >>> bar(0.5).plain
    '████████        '
    """
    eighths = round(min(max(share, 0.0), 1.0) * BAR * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (EIGHTHS[rest] if rest else "")
    return Text(text.ljust(BAR), style="cyan")
