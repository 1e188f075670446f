"""One component's table: from any spelling of a module to the canonical modules that it stands for, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Part:
    """One canonical module that a module of a file stands for.

    Args:
        name: canonical path inside its component: "transformer_blocks.0.attn.to_q".
        rows: row range of the file's up factor (fused qkv); None: all rows.
        swap: the two halves of the rows are stored in the opposite order.
    """

    name: str
    rows: tuple[int, int] | None = None
    swap: bool = False


class Run(NamedTuple):
    """Names that differ in one number: "blocks.{1..3}.norm2" is ("blocks.", 1, 3, ".norm2").

    A single name is (name, 0, 1, None).
    """

    head: str
    first: int
    length: int
    tail: str | None

    @classmethod
    def read(cls, text: str) -> Run:
        """Read a name of a JSON file.

        >>> Run.read("blocks.{1..3}.norm2").at(2)
        'blocks.3.norm2'
        """
        head, brace, rest = text.partition("{")
        if not brace:
            return cls(text, 0, 1, None)
        numbers, _, tail = rest.partition("}")
        first, _, last = numbers.partition("..")
        return cls(head, int(first), int(last) - int(first) + 1, tail)

    def at(self, step: int) -> str:
        """Return the name at a place of the run, counted from 0."""
        return self.head if self.tail is None else f"{self.head}{self.first + step}{self.tail}"

    def flattened(self) -> list[str]:
        """Return the names of the run, "_" for each dot."""
        head = self.head.replace(".", "_")
        if self.tail is None:
            return [head]
        tail = self.tail.replace(".", "_")
        return [f"{head}{number}{tail}" for number in range(self.first, self.first + self.length)]


class Piece(NamedTuple):
    """A run of canonical modules, and where each lies in its native module."""

    name: Run
    shape: tuple[int, ...]
    rows: tuple[int, int] | None
    swap: bool


class Spelling(NamedTuple):
    """What a run of spellings stands for: one piece where `piece` is given, else all pieces of the native module."""

    native: Run
    pieces: tuple[Piece, ...]
    piece: Piece | None
    out: int
    inputs: int  # flattened: in * kh * kw

    def parts(self, step: int) -> tuple[Part, ...]:
        """Return the canonical modules of the spelling at this place of the run."""
        return (Part(self.piece.name.at(step)),) if self.piece else self.whole(step)

    def whole(self, step: int) -> tuple[Part, ...]:
        """Return all canonical modules of the native module, from top to bottom of its rows."""
        return tuple(Part(piece.name.at(step), piece.rows, piece.swap) for piece in self.pieces)


class Table:
    """The modules of a component; expanded at the first question.

    Args:
        content: {"rows": [[native, [canonical, *shape], ...], ...], "also": [...], "optional": "text_model."}.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self._index: dict[str, tuple[Spelling, int]] = {}

    def look_up(self, flat: str) -> tuple[Spelling, int] | None:
        """Find what a flattened name stands for, and its place in the run."""
        if not self._index:
            for run, spelling in self.spellings():
                for step, name in enumerate(run.flattened()):
                    self._index[name] = (spelling, step)
        return self._index.get(flat)

    def names(self) -> Iterator[str]:
        """Yield every canonical name."""
        for run, spelling in self._rows():
            if spelling.piece:
                yield from map(run.at, range(run.length))

    def spellings(self) -> Iterator[tuple[Run, Spelling]]:
        """Yield every run of names and what it stands for."""
        optional = self._content.get("optional")
        for run, spelling in self._rows():
            yield run, spelling
            if optional:
                shorter = run.head.removeprefix(optional)
                yield run._replace(head=optional + shorter if shorter == run.head else shorter), spelling

    def _rows(self) -> Iterator[tuple[Run, Spelling]]:
        for row in self._content.get("rows", ()):
            native, pieces = _read(row)
            for piece in pieces:
                yield piece.name, Spelling(native, pieces, piece, piece.shape[0], prod(piece.shape[1:]))
            if native is not pieces[0].name:
                yield _whole(native, pieces)
        for row in self._content.get("also", ()):
            yield _whole(*_read(row))


def _read(row: list[Any]) -> tuple[Run, tuple[Piece, ...]]:
    """Read a row: the native name and the pieces, with row ranges where there are several."""
    pieces: list[Piece] = []
    start = 0
    for name, *shape in row[1:]:
        swap = shape[-1] == "swap"
        sizes = tuple(shape[:-1] if swap else shape)
        rows = (start, start + sizes[0]) if len(row) > 2 else None
        pieces.append(Piece(Run.read(name), sizes, rows, swap))
        start += sizes[0]
    return Run.read(row[0]) if row[0] else pieces[0].name, tuple(pieces)


def _whole(native: Run, pieces: tuple[Piece, ...]) -> tuple[Run, Spelling]:
    out = sum(piece.shape[0] for piece in pieces)
    return native, Spelling(native, pieces, None, out, prod(pieces[0].shape[1:]))
