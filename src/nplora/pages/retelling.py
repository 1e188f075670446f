"""Everything that a page tells about a fusion: its report, its parts before and after, and the pair itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..analysis.comparison import compare
from ..analysis.intruders import compare_with_base
from ..analysis.outcome import outcome
from ..checking.recipe import read_recipe
from ..checking.verify import remake
from ..errors import InputError
from ..fusing import Fusion
from ..reading.adapter import Adapter
from ..reading.base import BaseModel
from ..reading.loading import load

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Told:
    """What there is to tell: the fusion's report, the result against its parts, and the pair if there are two.

    ``counted``: the file of each input and of the result, with its intruder dimensions, where a base model is at hand.
    """

    report: Mapping[str, Any]
    outcome: Mapping[str, Any]
    pair: Mapping[str, Any] | None
    counted: Sequence[tuple[str, Mapping[str, Any]]] = ()


def retell(
    output: str | os.PathLike[str],
    *paths: str | os.PathLike[str],
    base: str | None = None,
    progress: Progress | None = None,
) -> Told:
    """Tell of a file that was fused, from the recipe in its header.

    Args:
        output: the file or folder.
        paths: its inputs, where they do not stand beside it or in the current folder.
        base: the base model, to count intruder dimensions (and where the fusion needed it).
        progress: called with (modules done, modules in all).

    Raises:
        InputError: no recipe and no inputs; an input is not found or is not the one that was fused.
    """
    made = load(output)
    recipe = read_recipe(made.metadata, made.path)
    needed = base is not None and recipe is not None and recipe.base is not None
    fusion = remake(made, recipe, list(paths), None, {"base": base} if needed else {})
    report = {**fusion.report(), "output": os.fspath(output), "format": made.format.title}
    told = tell(fusion, report, made, progress)
    if base is None:
        return told
    files = [*fusion.inputs.values(), made]
    found = compare_with_base(files, BaseModel(base), progress=progress)
    for each in found:
        if isinstance(each, InputError):
            raise each
    counted = [(file.path, each) for file, each in zip(files, found, strict=True) if not isinstance(each, InputError)]
    return replace(told, counted=counted)


def tell(fusion: Fusion, report: Mapping[str, Any], made: Adapter, progress: Progress | None = None) -> Told:
    """Tell of a fusion that has just been written.

    Args:
        fusion: what was asked for. report: what `Fusion.save` returned. made: the file, loaded.
        progress: called with (modules done, modules in all).
    """
    strengths = {role: float(fusion.parameters.get(f"{role}_strength", 1.0)) for role in fusion.inputs}
    pair = None
    if len(fusion.inputs) == 2:
        subject, style = fusion.inputs.values()
        pair = compare(subject, style, fusion.parameters.get("mu", 0.0), progress=progress)
    return Told(report, outcome(made, fusion.inputs, strengths), pair)
