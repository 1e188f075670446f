"""Make one fusion of a recipe, unless its output stands there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import NploraError, OutputError
from ..fusing import Fusion, alone, fuse
from ..fusion.roles import roles
from ..output.metadata import RECIPE, jsonable
from ..output.report import written_values
from ..reading.adapter import Adapter
from ..storage import TensorFile
from .expansion import Single


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


class FailedError(Exception):
    """A fusion of a recipe that went wrong: its number, and the error that says how."""

    def __init__(self, number: int, error: NploraError) -> None:
        super().__init__(number, error)
        self.number, self.error = number, error


def make(single: Single, adapters: Mapping[str, Adapter], overwrite: bool) -> Outcome:
    """The output of one fusion, written or found.

    Args:
        adapters: path -> adapter, for every input.
        overwrite: replace an output that was made otherwise.

    Raises:
        UsageError, InputError, OutputError: as `fuse` and `Fusion.save`, or an output that something else made.
    """
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
