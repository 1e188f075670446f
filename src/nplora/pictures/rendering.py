"""Paint a grid: each adapter made, loaded and taken off once, with all of its pictures in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..fusing import convert, fuse
from ..reading.adapter import Adapter
from ..reading.loading import load
from .axes import Grid, file_title
from .cells import Cell, Source
from .mounting import adapter_on
from .pipelines import Opened, Shot, paint, steps_of
from .scores import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

DIRECT = ("diffusers", "kohya")  # what diffusers reads by itself


@dataclass(frozen=True)
class Picture:
    """A picture of a grid.

    Attributes:
        image: as painted.
        scores: name -> number, empty without a scorer.
        text: what stands below it instead of scores.
    """

    image: Image
    scores: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    @property
    def caption(self) -> str:
        """The scores (or the text) in a line."""
        return "  ".join(f"{name} {number:.2f}" for name, number in self.scores.items()) or self.text


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows, with the labels of both sides.

    Attributes:
        rows, columns: labels.
        pictures: one tuple for each row; None leaves a place empty.
        notes: what a user should know about how they came to be.
        seconds: how long the painting took.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    pictures: tuple[tuple[Picture | None, ...], ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def with_column(self, label: str, pictures: Sequence[Picture | None]) -> Sheet:
        """The sheet with one more column at its left."""
        rows = tuple((one, *row) for one, row in zip(pictures, self.pictures, strict=True))
        return Sheet(self.rows, (label, *self.columns), rows, self.notes, self.seconds)

    def above(self, other: Sheet) -> Sheet:
        """This sheet with another one of the same columns below it."""
        if self.columns != other.columns:
            raise ValueError("the columns of the two sheets differ")
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        seconds = self.seconds + other.seconds
        return Sheet((*self.rows, *other.rows), self.columns, (*self.pictures, *other.pictures), notes, seconds)


def render(
    grid: Grid,
    files: Sequence[Path],
    opened: Opened,
    *,
    negative: str | None = None,
    batch: int | None = None,
    scorer: Scorer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sheet:
    """Paint every cell of a grid with one pipeline.

    A fused adapter is written to a temporary file, loaded as any program would load it, and removed: what is painted
    is what `nplora fuse` writes. Cells that agree in everything are painted once.

    Args:
        grid: from `nplora.pictures.axes.span`.
        files: the adapter files that the grid speaks of; of two the first is the subject.
        opened: from `open_pipeline`.
        negative, batch: as in `paint`.
        scorer: says numbers about the pictures.
        progress: called with (sampler steps done, steps in all).

    Raises:
        InputError: a file does not fit the base; UsageError: an axis asks for what the fusion does not know.
    """
    start = time.perf_counter()
    loaded = [load(file) for file in files]
    groups = _groups(grid, len(files))
    total = sum(steps_of(opened, cell.steps) for cells in groups.values() for cell in cells)
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done = min(done + steps, total)
        if progress is not None:
            progress(done, total)

    images: dict[Cell, Image] = {}
    notes: dict[str, None] = {}
    for source, cells in groups.items():
        with (
            _adapter_file(source, loaded) as (file, name, modules),
            adapter_on(opened, file, source.strength, name, modules) as said,
        ):
            notes.update(dict.fromkeys(said))
            for alike in _alike(cells):
                shots = [Shot(cell.prompt, cell.seed) for cell in alike]
                asked = {"steps": alike[0].steps, "guidance": alike[0].guidance, "negative": negative, "batch": batch}
                images.update(zip(alike, paint(opened, shots, progress=advance, **asked), strict=True))  # type: ignore[arg-type]
    cells = list(images)
    scores = scorer(list(images.values()), cells) if scorer else [{}] * len(cells)
    found = {cell: Picture(images[cell], dict(score)) for cell, score in zip(cells, scores, strict=True)}
    rows = tuple(tuple(found[cell] for cell in row) for row in grid.cells)
    return Sheet(grid.rows, grid.columns, rows, tuple(notes), time.perf_counter() - start)


def _groups(grid: Grid, files: int) -> dict[Source, list[Cell]]:
    """Adapter -> the different cells that need it."""
    groups: dict[Source, list[Cell]] = {}
    for cell in dict.fromkeys(cell for row in grid.cells for cell in row):
        groups.setdefault(cell.source(files), []).append(cell)
    return groups


def _alike(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that one call of the pipeline can paint together."""
    groups: dict[tuple[object, object], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.steps, cell.guidance), []).append(cell)
    return list(groups.values())


@contextmanager
def _adapter_file(source: Source, loaded: Sequence[Adapter]) -> Iterator[tuple[Path | None, str, int]]:
    """A file that diffusers loads, what messages call it, and how many modules it changes."""
    if not source.files:
        yield None, "no adapter", 0
        return
    chosen = [loaded[place] for place in source.files]
    names = [file_title(Path(adapter.path)) for adapter in chosen]
    name = " + ".join(names) if len(names) > 1 else chosen[0].path
    direct = _direct(chosen)
    if direct is not None:
        yield direct, chosen[0].path, len(chosen[0])
        return
    with TemporaryDirectory(prefix="nplora-") as folder:
        file = Path(folder) / "adapter.safetensors"
        if len(chosen) > 1:
            parameters: dict[str, Any] = dict(source.parameters)
            fusion = fuse(*chosen, **parameters)
            fusion.save(file, format=_format(chosen))
            yield file, name, len(fusion)
        else:
            convert(chosen[0], file, format=_format(chosen))
            yield file, name, len(chosen[0])


def _direct(chosen: Sequence[Adapter]) -> Path | None:
    """The file itself, where diffusers reads it as it is."""
    (adapter, *more) = chosen
    if more or adapter.format.name not in DIRECT or adapter.file is None:
        return None
    if adapter.layout is not None and adapter.format.name != "diffusers":
        return None  # diffusers misreads some kohya files; through nplora every file is read by the same rules
    return Path(adapter.file.path)


def _format(chosen: Sequence[Adapter]) -> str:
    """The naming that diffusers reads best; for a base that nplora has no table of, one that needs no table."""
    if any(adapter.layout is not None for adapter in chosen):
        return "diffusers"
    return "same" if chosen[0].format.name in DIRECT else "kohya"
