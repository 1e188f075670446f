"""From what a user asks for to a grid: which axis goes where when little is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from .axes import Along, Grid, axes, parse_axis, span
from .cells import Cell, default_adapters

FROM_OPTIONS = ("prompt", "seed")  # axes whose values may be given apart: `--prompt A --prompt B --columns prompt`


@dataclass(frozen=True)
class Asked:
    """What a grid shall show.

    Attributes:
        prompts, seeds: one or more of each; several become rows unless an axis says otherwise.
        rows, columns: axes as text, ``NAME=VALUE,VALUE``; or ``prompt`` and ``seed`` alone.
        parameters: of `nplora.fuse`, those that were set.
        strength, steps, guidance: of every picture.
        alone: "subject" or "style" -> the prompt for pictures that show that file alone.
    """

    prompts: Sequence[str]
    seeds: Sequence[int] = (0,)
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    strength: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    alone: Mapping[str, str] = field(default_factory=dict)


def arrange(asked: Asked, files: Sequence[Path]) -> Grid:
    """The grid for some files: what was asked for, with the usual columns where nothing was.

    Two files are a subject and a style, and the usual columns show both alone, their plain sum, the sum at strength
    1/(1+mu), and the soft and the hard projection. One file is shown beside the bare base; of several each has a
    column, and their fusion the last. Another method than np has a column of its own.

    Raises:
        UsageError: no file, no prompt, an unknown axis or a value out of range.

    >>> arrange(Asked(["a cat"]), [Path("ink.safetensors")]).columns
    ('no adapter', 'ink')
    """
    if not files:
        raise UsageError("no adapter file was given", hint="Name one or more, or a subject and a style.")
    if not asked.prompts:
        raise UsageError("no prompt was given", hint='Add --prompt "...".')
    values: dict[str, tuple[object, ...]] = {"prompt": tuple(asked.prompts), "seed": tuple(asked.seeds)}
    for name, chosen in values.items():
        if len(set(chosen)) != len(chosen):
            raise UsageError(f"one {name} is given twice", got=", ".join(map(str, chosen)))
    rows, columns = ([_along(text, values) for text in side] for side in (asked.rows, asked.columns))
    given = {along.axis.name for along in (*rows, *columns)}
    rows += [Along(axes()[name], values[name]) for name in FROM_OPTIONS if len(values[name]) > 1 and name not in given]
    start = Cell(
        _usual(len(files)), asked.prompts[0], asked.seeds[0], asked.strength, asked.steps, asked.guidance,
        tuple(sorted(asked.parameters.items())),
    )  # fmt: skip
    if "adapter" not in given and not columns:
        columns.append(Along(axes()["adapter"], default_adapters(len(files), asked.parameters.get("method"))))
    return span(rows, columns, start, files, asked.alone)


def _along(text: str, values: Mapping[str, tuple[object, ...]]) -> Along:
    name = text.strip()
    return Along(axes()[name], values[name]) if name in FROM_OPTIONS else parse_axis(text)


def _usual(files: int) -> str:
    return "1" if files == 1 else "fused"
