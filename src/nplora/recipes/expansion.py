"""From a recipe with lists to single fusions, each with a name of its own."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NploraError, UsageError
from ..fusion.overrides import Override, checked
from ..parameters import OVERRIDES, Parameter
from .reading import Marks, Path_, at
from .value import Input, Recipe

MAX_FUSIONS = 100_000  # five axes of ten
_BESIDE = "They are a field of their own, a list beside parameters: overrides: [{where: up, mu: 2}]."


@dataclass(frozen=True)
class Single:
    """One fusion of a recipe: nothing in it is a list any more.

    Attributes:
        inputs: role -> adapter, with one strength.
        method: its name. parameters: those that this method has, checked; overrides as rules.
        output: file or folder to write. format, dtype: as in `nplora.fuse`.
        place: the fields of the recipe that it was made from, for messages.
    """

    inputs: Mapping[str, Input]
    method: str
    parameters: Mapping[str, object]
    output: Path
    format: str
    dtype: str
    place: Mapping[str, Path_]


@dataclass(frozen=True)
class _Choice:
    """One value of one axis: which field of the recipe it comes from, the value, and its name in a file name."""

    field: str
    value: Any
    path: Path_
    name: str
    varies: bool
    where: str | None = None  # the part of the model that it is for

    @property
    def parameter(self) -> str:
        return self.field.partition("@")[0]


def expand(
    recipe: Recipe, parameters: Mapping[str, Sequence[Parameter]], folder: Path, marks: Marks | None = None
) -> list[Single]:
    """Every fusion that a recipe stands for.

    Args:
        recipe: from `read_recipe_file`.
        parameters: method -> the parameters that a fusion by it understands.
        folder: where relative paths start.
        marks: where the recipe's fields stand, for messages.

    Returns:
        The fusions; those that share their most protected adapter follow each other.

    Raises:
        UsageError, InputError: an unknown method or parameter, a value out of range, two outputs of one name.
    """
    axes = list(_axes(recipe, parameters, marks))
    if math.prod(len(axis) for axis in axes) > MAX_FUSIONS:
        raise at(marks, (), UsageError("the recipe has too many combinations", expected=f"at most {MAX_FUSIONS}"))
    singles: dict[Path, Single] = {}
    for choices in itertools.product(*axes):
        single = _single(recipe, choices, parameters, folder, marks)
        if single is None:
            continue
        other = singles.setdefault(single.output, single)
        if other is not single and (other.inputs, other.method, other.parameters) != (
            single.inputs, single.method, single.parameters,
        ):  # fmt: skip
            missing = [c.field for c in choices if c.varies and f"{{{c.field}}}" not in str(recipe.output.name)]
            raise at(
                marks, ("output",),
                UsageError(f"two results would be called {single.output.name}",
                           hint=f"Name what varies: {' '.join(f'{{{field}}}' for field in missing)}."),
            )  # fmt: skip
    return list(singles.values())


def _axes(
    recipe: Recipe, parameters: Mapping[str, Sequence[Parameter]], marks: Marks | None
) -> Iterator[list[_Choice]]:
    """The most protected adapter varies slowest: what is known of it is then used again."""
    for role in reversed(recipe.inputs):
        yield _adapters(role, recipe.inputs[role])
    methods = _listed(recipe.method)
    for index, name in enumerate(methods):
        if name not in parameters:
            raise at(marks, _path("method", recipe.method, index), _unknown("method", name, parameters))
    yield [
        _Choice("method", name, _path("method", recipe.method, index), name, len(methods) > 1)
        for index, name in enumerate(methods)
    ]
    known = {parameter.name: parameter for method in methods for parameter in parameters[method]}
    for name, given in recipe.parameters.items():
        if name == OVERRIDES.name:
            raise at(marks, ("parameters", name), UsageError("overrides are no parameter", hint=_BESIDE))
        if name not in known:
            raise at(marks, ("parameters", name), _unknown("parameter", name, known))
        yield list(_values(known[name], given, marks, ("parameters", name)))
    for index, table in enumerate(recipe.overrides):
        where = str(table["where"]).strip()
        for name, given in table.items():
            if name == "where":
                continue
            path = ("overrides", index, name)
            if name not in known:
                raise at(marks, path, _unknown("parameter", name, {n: p for n, p in known.items() if not p.whole}))
            yield list(_values(known[name], given, marks, path, where))


def _adapters(role: str, given: object) -> list[_Choice]:
    choices = []
    items = given if isinstance(given, list) else [given]
    for index, item in enumerate(items):
        path: Path_ = ("inputs", role, index) if isinstance(given, list) else ("inputs", role)
        adapter = Input(item) if isinstance(item, str) else item
        strengths = adapter.strength if isinstance(adapter.strength, list) else [adapter.strength]
        for strength in strengths:
            name = Path(adapter.path).stem + (f"@{strength:g}" if len(strengths) > 1 else "")
            one = Input(adapter.path, adapter.sha256, adapter.config_sha256, strength)
            choices.append(_Choice(role, one, path, name, len(items) * len(strengths) > 1))
    return choices


def _values(
    parameter: Parameter, given: object, marks: Marks | None, path: Path_, where: str | None = None
) -> Iterator[_Choice]:
    swept = isinstance(given, list) and parameter.kind not in ("names", "strengths")
    items: list[Any] = given if swept and isinstance(given, list) else [given]
    for index, item in enumerate(items):
        place: Path_ = (*path, index) if swept else path
        try:
            value = parameter.check(item) if where is None else checked(parameter, item)
        except UsageError as error:
            raise at(marks, place, error) from None
        field = parameter.name if where is None else f"{parameter.name}@{where}"
        name = f"{value:g}" if isinstance(value, float) else str(value)
        yield _Choice(field, value, place, name, len(items) > 1, where)


def _single(
    recipe: Recipe,
    choices: Sequence[_Choice],
    parameters: Mapping[str, Sequence[Parameter]],
    folder: Path,
    marks: Marks | None,
) -> Single | None:
    """One combination; parameters that only another of the methods has are no part of it."""
    by_field = {choice.field: choice for choice in choices}
    method = str(by_field["method"].value)
    own = {parameter.name for parameter in parameters[method]}
    used = [c for c in choices if c.field in recipe.inputs or c.field == "method" or c.parameter in own]
    rules = tuple(Override(c.parameter, c.where, c.value).text for c in used if c.where is not None)
    inputs = {role: by_field[role].value for role in recipe.inputs}
    return Single(
        {role: _placed(adapter, folder) for role, adapter in inputs.items()},
        method,
        {c.field: c.value for c in used if c.field in own} | ({OVERRIDES.name: rules} if rules else {}),
        _output(recipe, used, folder, marks),
        recipe.output.format,
        recipe.output.dtype,
        {c.field: c.path for c in used},
    )


def _placed(adapter: Input, folder: Path) -> Input:
    """The adapter with its path made to start at the recipe's folder."""
    return Input(str(folder / adapter.path), adapter.sha256, adapter.config_sha256, adapter.strength)


def _output(recipe: Recipe, choices: Sequence[_Choice], folder: Path, marks: Marks | None) -> Path:
    output = recipe.output
    if output.path is not None:
        if output.folder is not None or output.name is not None:
            raise at(marks, ("output",), UsageError("path stands beside folder or name",
                     hint="path is for one result; folder and name are for many."))  # fmt: skip
        if any(choice.varies for choice in choices):
            raise at(marks, ("output", "path"), UsageError("one path for many results",
                     hint="Give output.folder, and output.name if you like: {subject}-{style}."))  # fmt: skip
        return folder / output.path
    if output.folder is None:
        raise at(marks, ("output",), UsageError("no place for the result", expected="path, or folder for many results"))
    inputs = [c for c in choices if c.field in recipe.inputs]
    names = {c.field: c.name for c in choices}
    if output.name is not None:
        name = _filled(output.name, names, marks)
    else:
        others = [c for c in choices if c.varies and c not in inputs]
        varying = [c.name if c.field == "method" else f"{_in_name(c.field)}{c.name}" for c in others]
        name = "-".join([*(names[role] for role in recipe.inputs), *varying])
    folder_form = output.format == "peft"
    if not folder_form and not name.endswith(".safetensors"):
        name += ".safetensors"
    return folder / output.folder / name


def _in_name(field: str) -> str:
    """A field as a file's name can hold it.

    >>> _in_name("mu@*.attn1.*")
    'mu@attn1'
    """
    parameter, mark, where = field.partition("@")
    return parameter + mark + (re.sub(r"[^\w.-]+", "", where).strip(".") or "all" if mark else "")


def _filled(template: str, names: Mapping[str, str], marks: Marks | None) -> str:
    path = ("output", "name")
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise at(marks, path, UsageError(f"the name cannot be read ({error})")) from None
    text = ""
    for literal, field, spec, conversion in pieces:
        text += literal
        if field is None:
            continue
        if field not in names or spec or conversion:
            raise at(marks, path, _unknown("field", field, names))
        text += names[field]
    if "/" in text or "\\" in text or text in ("", ".", ".."):
        raise at(marks, path, UsageError("this is no file name", got=text, hint="Folders go into output.folder."))
    return text


def _unknown(what: str, name: str, known: Mapping[str, object]) -> NploraError:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
    return UsageError(f"there is no {what} {name!r}", hint=hint)


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _path(field: str, value: object, index: int) -> Path_:
    return (field, index) if isinstance(value, list) else (field,)
