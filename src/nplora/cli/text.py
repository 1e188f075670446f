"""Text for a terminal: nothing in it that a file could play tricks with, sentences wrapped, numbers readable."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..wording import count, size, some, spread, three

LABEL = 16  # width of the labels before facts
NARROW = 34  # columns that a fact wants beside its label


def printable(text: str) -> str:
    r"""The text with everything that steers a terminal or turns the direction of writing made visible.

    >>> print(printable("sks\x1b[2J cat\u202e"))
    sks\x1b[2J cat\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def width() -> int:
    """Columns to write in: the terminal's, at most 100; unlimited into a file or a pipe."""
    import shutil  # it brings three kinds of compression with it

    return min(shutil.get_terminal_size((80, 24)).columns, 100) if sys.stdout.isatty() else 10**6


def drawable(text: str) -> bool:
    """Whether stdout can write these characters; not every terminal or file speaks UTF-8."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def paragraph(text: str) -> str:
    """A sentence, wrapped for the terminal."""
    return textwrap.fill(printable(text), width(), break_long_words=False, break_on_hyphens=False)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Labels with what belongs to them, one fact a line, wrapped beside the label, below it on a narrow terminal."""
    beside = width() >= LABEL + 2 + NARROW
    indent = LABEL + 2 if beside else 4
    lines = []
    for label, text in rows:
        body = textwrap.wrap(printable(text), width() - indent, break_long_words=False, break_on_hyphens=False) or [""]
        if beside:
            lines.append(f"  {click.style(f'{label:{LABEL}}', dim=True)}{body.pop(0)}")
        elif label:
            lines.append(f"  {click.style(label, dim=True)}")
        lines += [" " * indent + line for line in body]
    return "\n".join(lines)


def say(*blocks: str) -> None:
    """Write blocks of text, with an empty line between them; colours only on a terminal that wants them."""
    plain = "NO_COLOR" in os.environ or not sys.stdout.isatty()
    click.echo("\n\n".join(block for block in blocks if block), color=False if plain else None)


def as_json(data: Any) -> str:
    """Data as JSON text that is safe on a terminal: what JSON cannot say is null, control characters are escaped."""
    text = json.dumps(_sayable(data), indent=2, ensure_ascii=not drawable("█"), allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1]


def _sayable(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _sayable(value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_sayable(value) for value in data]
    return data


def write_json(path: str, data: Any) -> None:
    """Write data to a JSON file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    from ..storage import write_folder_file

    write_folder_file(Path(path), as_json(data) + "\n")


__all__ = [
    "LABEL", "as_json", "count", "drawable", "facts", "paragraph", "printable", "say", "size", "some", "spread",
    "three", "width", "write_json",
]  # fmt: skip
