"""The axes of a grid, declared as data: what a row or a column may vary, and the grid that they span."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ..errors import UsageError
from ..methods import known_methods
from ..parameters import Parameter
from .cells import VARIANTS, Cell, adapters, fuse_parameters, mu_of


@dataclass(frozen=True)
class Axis:
    """Something that varies over a grid.

    Attributes:
        name: what a user types.
        sentence: what it is.
        parse: text of one value -> value (raises UsageError).
        apply: (cell, value) -> the cell with that value.
        choices: all values, where they can be listed.
    """

    name: str
    sentence: str
    parse: Callable[[str], object]
    apply: Callable[[Cell, object], Cell]
    choices: tuple[str, ...] = ()

    def label(self, value: object) -> str:
        """The value as a row or a column is called.

        >>> axes()["mu"].label(math.inf), axes()["prompt"].label("a cat")
        ('mu = inf', 'a cat')
        """
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return shown if self.name in ("prompt", "adapter", "method") else f"{self.name.replace('_', ' ')} = {shown}"


def _whole(name: str, low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number < 2**63:
            raise UsageError(f"{name} is out of range", expected=f"a whole number from {low} on", got=repr(text))
        return number

    return parse


def _number(name: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{name} is out of range", expected="a finite number", got=repr(text))
        return number

    return parse


def _own(name: str, sentence: str, parse: Callable[[str], object], choices: tuple[str, ...] = ()) -> Axis:
    def apply(cell: Cell, value: object) -> Cell:
        return replace(cell, **{name: value})  # type: ignore[arg-type]  # the parser gives each field its own type

    return Axis(name, sentence, parse, apply, choices)


def _of_fuse(parameter: Parameter) -> Axis:
    return Axis(
        parameter.name, parameter.sentence, parameter.check,
        lambda cell, value: cell.fused_with(parameter.name, value), parameter.choices,
    )  # fmt: skip


_KINDS = ("number", "count", "choice", "directions")


def axes() -> dict[str, Axis]:
    """Every axis by name: a picture's own, and one for each parameter of `nplora.fuse` and its methods.

    >>> [name for name in ("adapter", "seed", "mu", "method") if name in axes()]
    ['adapter', 'seed', 'mu', 'method']
    """
    own = (
        _own("adapter", "Which adapter: " + ", ".join(VARIANTS) + "; or the number of a file.", str),
        _own("prompt", "The prompt.", str),
        _own("seed", "Seed of the noise.", _whole("seed", 0)),
        _own("strength", "Strength of the whole adapter.", _number("strength")),
        _own("steps", "Steps of the sampler.", _whole("steps", 1)),
        _own("guidance", "Guidance scale.", _number("guidance")),
    )
    method = Axis(
        "method",
        "The fusion method.",
        str,
        lambda cell, value: cell.fused_with("method", value),
        tuple(known_methods()),
    )
    of_fuse = (_of_fuse(p) for p in fuse_parameters().values() if p.kind in _KINDS)
    return {axis.name: axis for axis in (*own, method, *of_fuse)}


@dataclass(frozen=True)
class Along:
    """An axis with its values."""

    axis: Axis
    values: tuple[object, ...]


def parse_axis(text: str) -> Along:
    """``NAME=VALUE,VALUE``, or ``NAME=all`` for an axis that has a list.

    Raises:
        UsageError: an unknown axis, or a value out of range.

    >>> parse_axis("mu=0,0.5,inf").values
    (0.0, 0.5, inf)
    """
    name, _, listed = text.partition("=")
    name, known = name.strip().replace("-", "_"), axes()
    if name not in known:
        raise UsageError(f"unknown axis {name!r}", expected=", ".join(known), hint="Write NAME=VALUE,VALUE.")
    axis, items = known[name], [item.strip() for item in listed.split(",")]
    if not all(items):
        problem = "has an empty value" if listed.strip() else "has no values"
        raise UsageError(f"the axis {name} {problem}", got=repr(text), hint="Write NAME=VALUE,VALUE.")
    if items == ["all"] and axis.choices:
        items = list(axis.choices)
    if len(set(items)) != len(items):
        raise UsageError(f"the axis {name} has one value twice", got=repr(text))
    return Along(axis, tuple(axis.parse(item) for item in items))


@dataclass(frozen=True)
class Grid:
    """Cells in rows, with the labels of both sides.

    Attributes:
        rows, columns: labels, from the top and from the left.
        cells: one tuple for each row.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def span(
    rows: Sequence[Along],
    columns: Sequence[Along],
    start: Cell,
    files: Sequence[Path],
    alone: Mapping[str, str] | None = None,
) -> Grid:
    """The grid of all combinations: several axes on one side are multiplied.

    Args:
        rows, columns: the axes of each side; a side without one has one line.
        start: what every cell has unless an axis changes it.
        files: the adapter files, for the names of columns.
        alone: variant -> prompt, for pictures that show the subject or the style alone.

    Raises:
        UsageError: an axis stands on both sides, or an adapter is unknown.

    >>> cat = Cell("1", "a cat")
    >>> span([parse_axis("seed=1,2")], [parse_axis("adapter=none,1")], cat, [Path("ink.safetensors")]).columns
    ('no adapter', 'ink')
    """
    names = [along.axis.name for along in (*rows, *columns)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"the axis {twice[0]} is given twice", hint="Each axis stands on one side, once.")
    settled = {"mu": mu_of(dict(start.parameters)), **dict(start.parameters)}
    settled = {name: value for name, value in settled.items() if name not in names}
    down, across = _lines(rows, files, settled), _lines(columns, files, settled)

    def cell(*lines: tuple[tuple[Axis, object], ...]) -> Cell:
        found = start
        for axis, value in (change for line in lines for change in line):
            found = axis.apply(found, value)
        found.source(len(files))  # raises where there is no such adapter
        return replace(found, prompt=(alone or {}).get(found.adapter, found.prompt))

    cells = tuple(tuple(cell(row, column) for column in across.values()) for row in down.values())
    return Grid(tuple(down), tuple(across), cells)


def _lines(
    axes_: Sequence[Along], files: Sequence[Path], settled: Mapping[str, object]
) -> dict[str, tuple[tuple[Axis, object], ...]]:
    """Label -> changes, for every combination of the values."""
    found: dict[str, tuple[tuple[Axis, object], ...]] = {}
    for values in product(*(along.values for along in axes_)):
        changes = tuple((along.axis, value) for along, value in zip(axes_, values, strict=True))
        label = ", ".join(_label(axis, value, files, settled) for axis, value in changes)
        found[label if label not in found else f"{label} ({len(found) + 1})"] = changes
    return found


def _label(axis: Axis, value: object, files: Sequence[Path], settled: Mapping[str, object]) -> str:
    if axis.name != "adapter" or value not in adapters(len(files)):
        return axis.label(value)
    name = str(value)
    if name.isdecimal():
        return file_title(files[int(name) - 1])
    if name == "fused" and "method" in settled:
        return f"fused by {settled['method']}"
    return VARIANTS[name].title(mu_of(settled) if "mu" in settled else None)


def file_title(file: Path) -> str:
    """What a file is called in a grid.

    >>> file_title(Path("loras/ink.safetensors")), file_title(Path("ink.peft"))
    ('ink', 'ink.peft')
    """
    return file.stem if file.suffix == ".safetensors" else file.name
