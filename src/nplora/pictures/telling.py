"""What a page says beside its pictures: the pair's regime in words, and everything needed to make them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..analysis.comparison import compare
from ..parameters import MU
from ..reading.loading import load
from .pipelines import Opened, steps_of
from .rendering import Sheet


def pair_words(files: Sequence[Path], mu: float) -> tuple[str, ...]:
    """The regime of a subject and a style and what to do about it; nothing for another number of files."""
    if len(files) != 2:
        return ()
    found = compare(load(files[0]), load(files[1]), mu)
    return (f"{found['sentence']} {found['advice']}",)


def facts(
    opened: Opened, files: Sequence[Path], sheet: Sheet, shared: dict[str, object], command: str = ""
) -> tuple[tuple[str, str], ...]:
    """How the pictures came to be, as (label, text).

    Args:
        opened: the pipeline; files: the adapters; sheet: the result.
        shared: what all pictures have in common (prompt, seed, mu ...), as far as it is worth saying.
        command: the command line that makes them again.
    """
    asked: dict[str, Any] = {
        "steps": steps_of(opened, None),
        "guidance": opened.base.guidance or opened.default("guidance_scale"),
        **({"mu": MU.default} if len(files) == 2 else {}),
        **{name: value for name, value in shared.items() if value is not None},
    }
    rows = [
        ("base", f"{opened.base.name}: {type(opened.pipe).__name__}, {opened.width} x {opened.height}"),
        *(("adapter", _file(file)) for file in files),
        *((name.replace("_", " "), _shown(value)) for name, value in asked.items()),
        ("computed", f"on {opened.device} in {opened.dtype}, {sheet.seconds:.0f} s"),
        *(("note", note) for note in sheet.notes),
        *([("command", command)] if command else []),
    ]
    return tuple(rows)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _file(file: Path) -> str:
    adapter = load(file)
    sha = f", SHA-256 {adapter.file.sha256()[:16]}..." if adapter.file is not None else ""
    return f"{file.name}: {len(adapter)} modules, {adapter.base}{sha}"
