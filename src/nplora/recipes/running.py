"""Run a recipe: every fusion that it stands for, each whole or not at all, none twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checking.recipe import Source, require_source
from ..errors import NploraError, OutputError
from ..fusing import Fusion, alone, fuse
from ..fusion.options import options_of
from ..fusion.roles import roles
from ..methods import known_methods
from ..output.metadata import RECIPE, jsonable
from ..output.report import written_values
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
from ..storage import TensorFile
from ..threads import run_threads
from .expansion import Single, expand
from .reading import Marks, at
from .value import Recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one fusion of a recipe.

    Attributes:
        single: the fusion. number: its place among the recipe's fusions.
        made: False where an output of the same recipe stood there already.
        report: as of `Fusion.save`; of an output that stood there already, what its header says came out.
    """

    single: Single
    made: bool
    report: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


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
    workers = os.cpu_count() or 1  # one fusion alone leaves cores idle while it plans and while the disk writes
    numbered = list(enumerate(singles))

    def make(item: tuple[int, Single]) -> Outcome:
        try:
            return _made(item[1], adapters, overwrite)
        except NploraError as error:
            raise _placed(error, item[1], marks) from None

    finished = run_threads(make, numbered, min(workers, len(singles)))
    for done, ((number, _), outcome) in enumerate(finished):
        yield replace(outcome, number=number)
        if progress:
            progress(done + 1, len(singles))


def _placed(error: NploraError, single: Single, marks: Marks | None) -> NploraError:
    """The error of an override, told at its line; any other as it is."""
    place = single.place.get(error.key or "")
    if place is None or place[0] != "overrides":
        return error
    plain = type(error)(error.problem, expected=error.expected, got=error.got, hint=error.hint)
    return at(marks, place, plain)


def _made(single: Single, adapters: Mapping[str, Adapter], overwrite: bool) -> Outcome:
    fusion = _fusion(single, {role: adapters[given.path] for role, given in single.inputs.items()})
    if single.output.exists():
        results = _results(single, fusion)
        if results is not None:
            return Outcome(single, made=False, report=results)
        if not overwrite:
            raise OutputError(
                "there is an output already, and this recipe would not give it", file=single.output,
                hint="Choose another name or folder, or add --overwrite.",
            )  # fmt: skip
    single.output.parent.mkdir(parents=True, exist_ok=True)
    report = fusion.save(single.output, format=single.format, dtype=single.dtype, overwrite=overwrite)
    return Outcome(single, made=True, report=report)


def _fusion(single: Single, inputs: Mapping[str, Adapter]) -> Fusion:
    if single.method == "convert":
        return alone(next(iter(inputs.values())), None, **single.parameters)
    # By place, not by the role's name in the recipe: the order is what says who is protected.
    options: dict[str, Any] = dict(single.parameters)
    given = [one.strength for one in single.inputs.values()]
    if len(inputs) <= 2:
        options |= {f"{role}_strength": strength for role, strength in zip(roles(len(inputs)), given, strict=True)}
    elif any(strength != 1.0 for strength in given):  # rules for parts of the model come first
        everywhere = tuple(f"{index}@*={strength!r}" for index, strength in enumerate(given, 1) if strength != 1.0)
        options["strengths"] = (*(options.get("strengths") or ()), *everywhere)
    return fuse(*inputs.values(), method=single.method, **options)


def _results(single: Single, fusion: Fusion) -> dict[str, Any] | None:
    """What the header of an existing output says came out, if this fusion made it from the same bytes."""
    try:
        found = json.loads(TensorFile(single.output).header.metadata[RECIPE])
        same = found["method"] == single.method and found["parameters"] == _expected(single, fusion)
        hashes = [source.get("sha256") for source in found["inputs"].values()]
        if same and hashes == [adapter.file.sha256() for adapter in fusion.inputs.values() if adapter.file]:
            return dict(found["results"])
    except (NploraError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return None


def _expected(single: Single, fusion: Fusion) -> dict[str, object]:
    base = fusion.base.sha256() if fusion.base is not None and fusion.base.used else None
    values = written_values(fusion, {"format": single.format, "dtype": single.dtype}, base)
    return {name: jsonable(value) for name, value in values.items()}
