"""Run a recipe: every fusion that it stands for, each whole or not at all, none twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..checking.recipe import Source, require_source
from ..errors import NploraError
from ..fusion.options import options_of
from ..methods import known_methods
from ..parameters import (
    BASE,
    COMPONENTS,
    DORA,
    DTYPE,
    ENERGY,
    ERROR,
    FORMAT,
    KEEP_STYLE,
    OVERRIDES,
    PAIR_ONLY,
    RANK,
    WRITING,
    Parameter,
)  # fmt: skip
from ..reading.adapter import Adapter
from ..reading.loading import load
from ..threads import run_threads
from .expansion import Single, expand
from .making import FailedError, Outcome, make
from .processes import run_in, started, workers_for
from .reading import Marks, at
from .value import Recipe

Progress = Callable[[int, int], None]


def method_parameters(count: int = 2) -> dict[str, tuple[Parameter, ...]]:
    """Method -> the parameters that a recipe of so many inputs may give it.

    Format, dtype, a pair's strengths and overrides have fields of their own.
    """
    elsewhere = {FORMAT, DTYPE, OVERRIDES, *PAIR_ONLY}
    options = {name: options_of(method, count) for name, method in known_methods().items()}
    options["convert"] = (COMPONENTS, BASE, DORA, RANK, ENERGY, ERROR, KEEP_STYLE, *WRITING)
    return {name: tuple(parameter for parameter in own if parameter not in elsewhere) for name, own in options.items()}


def run_recipe(
    recipe: Recipe,
    folder: str | os.PathLike[str] = ".",
    *,
    marks: Marks | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Make every output of a recipe, a few at a time.

    An output that stands there already and was made by the same recipe from the same bytes is left as it is, so that an
    interrupted run goes on where it stopped.

    Args:
        recipe: from `read_recipe_file`.
        folder: where relative paths start: the recipe's own folder.
        marks: where the recipe's fields stand, for messages.
        overwrite: replace outputs that were made otherwise.
        progress: called with (fusions done, fusions in all).

    Yields:
        One outcome for each fusion, when it is on disk; `Outcome.number` is its place in the recipe.

    Raises:
        UsageError, InputError, OutputError: as `fuse` and `Fusion.save`; what was finished before stays.
    """
    singles = expand(recipe, method_parameters(len(recipe.inputs)), Path(folder), marks)
    adapters: dict[str, Adapter] = {}
    for single in singles:  # all inputs first: a wrong one is found before hours of work
        for role, given in single.inputs.items():
            if given.path not in adapters:
                try:
                    adapters[given.path] = load(given.path)
                    require_source(
                        role, Source(Path(given.path).name, given.sha256, given.config_sha256), adapters[given.path]
                    )
                except NploraError as error:
                    raise at(marks, single.place[role], error) from None
    try:
        with closing(_finished(singles, adapters, overwrite)) as finished:
            for done, (number, outcome) in enumerate(finished, 1):
                yield replace(outcome, single=singles[number], number=number)
                if progress:
                    progress(done, len(singles))
    except FailedError as failed:
        raise _placed(failed.error, singles[failed.number], marks) from None


def _finished(
    singles: Sequence[Single], adapters: Mapping[str, Adapter], overwrite: bool
) -> Generator[tuple[int, Outcome], None, None]:
    """The fusions as they are done, in worker processes where that pays and can be, else on threads.

    Raises:
        FailedError: the first that went wrong.
    """
    count = workers_for(singles, adapters, overwrite)
    if count:
        with started(count) as workers:
            if workers:
                yield from run_in(workers, singles, adapters, overwrite)
                return

    def one(number: int) -> Outcome:
        try:
            return make(singles[number], adapters, overwrite)
        except NploraError as error:
            raise FailedError(number, error) from None

    cores = os.cpu_count() or 1  # one fusion alone leaves cores idle while it plans and while the disk writes
    yield from run_threads(one, range(len(singles)), min(cores, len(singles)))


def _placed(error: NploraError, single: Single, marks: Marks | None) -> NploraError:
    """The error of an override, told at its line; any other as it is."""
    place = single.place.get(error.key or "")
    if place is None or place[0] != "overrides":
        return error
    plain = type(error)(error.problem, expected=error.expected, got=error.got, hint=error.hint)
    return at(marks, place, plain)
