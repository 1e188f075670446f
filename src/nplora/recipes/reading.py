"""From YAML text to a recipe; every error names file, line, field and what belongs there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from ..errors import InputError, NploraError
from .value import Input, Output, Recipe

MAX_TEXT = 1_000_000  # characters; a recipe of a thousand inputs has a hundred thousand
MAX_NODES = 100_000  # aliases can make a short text mean a very long one
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]")

Path_ = tuple[str | int, ...]
T = TypeVar("T")
WHERE = "a block such as up, a component, the beginning of a module's name, or a glob"


class Marks:
    """Where each field of a YAML text stands: field path -> line, counted from 1."""

    def __init__(self, file: str, node: yaml.Node | None) -> None:
        self.file = file
        self.lines: dict[Path_, int] = {(): 1}
        if node is not None:
            for count, (path, line) in enumerate(_walk(file, node, (), frozenset())):
                self.lines[path] = line
                if count > MAX_NODES:
                    hint = "Write it without aliases."
                    raise InputError("the recipe repeats itself without end", file=file, hint=hint)

    def error(self, path: Path_, problem: str, **facts: Any) -> InputError:
        """An error that says where it is; a field that is missing is reported at its parent's line."""
        known = path
        while known not in self.lines:
            known = known[:-1]
        return InputError(problem, file=f"{self.file}, line {self.lines[known]}", key=spelled(path) or None, **facts)


def spelled(path: Path_) -> str:
    """A field's path as people write it.

    >>> spelled(("inputs", "subject", 0, "path"))
    'inputs.subject[0].path'
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _walk(file: str, node: yaml.Node, path: Path_, above: frozenset[int]) -> Iterator[tuple[Path_, int]]:
    if id(node) in above:
        raise InputError("the recipe contains itself", file=file, hint="Write it without aliases.")
    above |= {id(node)}
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise InputError(
                    f"the field is given twice, on line {seen[name]} too", file=f"{file}, line {line}",
                    key=spelled((*path, name)), hint="Keep one of them.",
                )  # fmt: skip
            seen[name] = line
            yield from _walk(file, value, (*path, name), above)
            yield (*path, name), line  # a field is where its name stands, not where its value begins
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(file, value, (*path, index), above)


def read_recipe_file(path: str | os.PathLike[str]) -> tuple[Recipe, Marks]:
    """Read a recipe.

    Args:
        path: a YAML (or JSON) file.

    Returns:
        The recipe, and where its fields stand (for errors that show later).

    Raises:
        InputError: it cannot be read, is no YAML, or a field is unknown, missing or of the wrong sort.
    """
    file = os.fspath(path)
    try:
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise InputError("no such file", file=file, hint="Check the path.") from None
    except OSError as error:
        raise InputError("cannot be read", file=file, got=error.strerror, hint="Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(
            "this is no text", file=file, expected="a recipe in YAML",
            hint="The recipe of a fused file is printed by nplora recipe.",
        ) from None  # fmt: skip
    return read_recipe_text(text, file)


def read_recipe_text(text: str, file: str = "recipe") -> tuple[Recipe, Marks]:
    """The same from text; ``file`` is its name in messages.

    >>> recipe, _ = read_recipe_text("{inputs: {subject: cat.safetensors}, output: {path: out.safetensors}}")
    >>> recipe.method
    'np'
    """
    if len(text) > MAX_TEXT:
        raise InputError("too long for a recipe", file=file, expected=f"at most {MAX_TEXT} characters", got=len(text))
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        marks = Marks(file, node)
        raw = yaml.SafeLoader("").construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise _no_yaml(error, file) from None
    except (ValueError, RecursionError) as error:  # dates and numbers that cannot be; lists in lists in lists
        raise InputError(f"this is no YAML ({type(error).__name__})", file=file, hint="See docs/recipes.md.") from None
    if not isinstance(raw, dict):
        raise marks.error((), "this is no recipe", expected="fields such as inputs, method and output",
                          got=_sort(raw), hint="See docs/recipes.md.")  # fmt: skip
    return _recipe(raw, marks), marks


def _no_yaml(error: yaml.YAMLError, file: str) -> InputError:
    mark = getattr(error, "problem_mark", None)
    where = file if mark is None else f"{file}, line {mark.line + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    return InputError(f"this is no YAML: {problem}", file=where)


def _recipe(raw: dict[Any, Any], marks: Marks) -> Recipe:
    inputs = raw.get("inputs")
    if isinstance(inputs, dict):  # one by one, so that an error can name the role
        read = {str(role): _inputs(value, marks, ("inputs", str(role))) for role, value in inputs.items()}
        raw = {**raw, "inputs": read}
    overrides = raw.get("overrides")
    for index, table in enumerate(overrides if isinstance(overrides, list) else ()):
        _require_override(table, marks, ("overrides", index))
    return _convert(raw, Recipe, marks, ())


def _inputs(value: object, marks: Marks, path: Path_) -> str | Input | list[str | Input]:
    if isinstance(value, list):
        found = [_inputs(item, marks, (*path, index)) for index, item in enumerate(value)]
        if not found:
            raise marks.error(path, "the list is empty", expected="at least one adapter")
        return [item for item in found if isinstance(item, str | Input)]
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _convert(value, Input, marks, path)
    expected = "a path, or fields such as path and strength"
    raise marks.error(path, "this is no adapter", expected=expected, got=_sort(value))


def _require_override(table: object, marks: Marks, path: Path_) -> None:
    """A table of ``where`` and parameters; which parameters there are depends on the method."""
    if not isinstance(table, dict):
        raise marks.error(path, "this is no override", expected="fields such as where and mu", got=_sort(table))
    if "where" not in table:
        raise marks.error(path, "the field where is missing", expected=WHERE, hint="See docs/recipes.md.")
    where = table["where"]
    if not isinstance(where, str) or not where.strip() or "," in where:
        got = repr(where) if isinstance(where, str) else _sort(where)
        raise marks.error((*path, "where"), "this is no part of a model", expected=WHERE, got=got)
    if len(table) == 1:
        raise marks.error(path, "nothing is set here", expected="a parameter beside where, such as mu: 2")


def _convert(raw: Any, sort: type[T], marks: Marks, path: Path_) -> T:
    """msgspec does the checking; what it says is put into the words and places of the file."""
    try:
        return msgspec.convert(raw, sort, str_keys=True)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        where = (*path, *(name or int(index) for name, index in _STEP.findall(place)))
        unknown = re.search(r"unknown field `(.*)`", problem)
        if unknown:
            raise _unknown(unknown[1], sort if where == path else Output, marks, (*where, unknown[1])) from None
        missing = re.search(r"missing required field `(.*)`", problem)
        if missing:
            raise marks.error(where, f"the field {missing[1]} is missing", hint="See docs/recipes.md.") from None
        expected, got = re.findall(r"`([^`]*)`", problem)[:2] if problem.startswith("Expected") else ("", problem)
        raise marks.error(where, "wrong sort of value", expected=_words(expected), got=_words(got)) from None


def _unknown(name: str, sort: Any, marks: Marks, path: Path_) -> InputError:
    fields = [field.name for field in msgspec.structs.fields(sort)]
    near = difflib.get_close_matches(name, fields, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(fields)}."
    return marks.error(path, "there is no such field", hint=hint)


_SORTS: Mapping[str, str] = {
    "str": "text", "int": "a number", "float": "a number", "bool": "yes or no", "array": "a list", "object": "fields",
    "null": "nothing",
}  # fmt: skip


def _words(sorts: str) -> str:
    """msgspec's type names in the words of people.

    >>> _words("str | array")
    'text or a list'
    """
    return " or ".join(dict.fromkeys(_SORTS.get(sort, sort) for sort in sorts.split(" | ") if sort != "null"))


def _sort(value: object) -> str:
    names = {str: "text", dict: "fields", list: "a list", type(None): "nothing", bool: "yes or no"}
    return names.get(type(value), "a number")


def at(marks: Marks | None, path: Path_, error: NploraError) -> NploraError:
    """The error of a parameter or a file, told at the recipe's line that asked for it."""
    if marks is None:
        return error
    problem = ": ".join(part for part in (error.file, error.key, error.problem) if part)
    return marks.error(path, problem, expected=error.expected, got=error.got, hint=error.hint)


__all__ = ["Marks", "at", "read_recipe_file", "read_recipe_text", "spelled"]
