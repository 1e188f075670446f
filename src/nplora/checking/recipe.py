"""Read the recipe in an output's header and find the inputs that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UsageError
from ..fusion.options import numeric_options
from ..fusion.roles import roles
from ..methods import Merge, Method, find_method
from ..output.metadata import RECIPE
from ..parameters import COMMON, WRITING, check_all
from ..reading.adapter import Adapter
from ..reading.base import BaseModel
from ..reading.loading import load

CONVERTING = tuple(parameter for parameter in COMMON if parameter not in WRITING)
_NAME_THEM = "Name the inputs: nplora verify OUTPUT SUBJECT STYLE."


@dataclass(frozen=True, slots=True)
class Source:
    """An input as a recipe names it; a hash is None where the input was no file."""

    name: str
    sha256: str | None
    config_sha256: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How an output was made: role -> source, the method ("convert" for none), the options that move numbers."""

    inputs: Mapping[str, Source]
    method: str
    parameters: Mapping[str, object]
    base: Source | None = None  # the base model, where a number depends on it


def read_recipe(metadata: Mapping[str, str], file: str) -> Recipe | None:
    """The recipe in a file's metadata; None where there is none.

    Args:
        metadata: the header's strings. file: the file's name, for messages.

    Raises:
        InputError: there is one, but it makes no sense.

    >>> read_recipe({}, "cat.safetensors") is None
    True
    """
    text = metadata.get(RECIPE)
    if text is None:
        return None
    try:
        raw = json.loads(text)
        inputs = {role: _source(source) for role, source in raw["inputs"].items()}
        method = str(raw["method"])
        chosen = None if method == "convert" else _method(method, file)
        options = numeric_options(chosen, len(inputs)) if chosen else CONVERTING
        known = {parameter.name for parameter in options}
        values = {name: value for name, value in raw["parameters"].items() if name in known}
        name = values.pop("base", None)
        base = None if name is None else _source({"name": name, "sha256": raw["parameters"].get("base_sha256")})
        recipe = Recipe(inputs, method, check_all(options, values), base)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, UsageError) as error:
        why = {"got": str(error.got), "expected": error.expected} if isinstance(error, UsageError) else {}
        raise InputError(
            "the recipe in the header cannot be read", file=file, key=RECIPE, **why, hint=_NAME_THEM
        ) from None
    fits = len(inputs) == 1 if chosen is None else len(inputs) >= chosen.least
    if not fits or tuple(inputs) != roles(len(inputs)):
        raise InputError("the recipe in the header does not name its inputs", file=file, key=RECIPE, hint=_NAME_THEM)
    return recipe


def _method(name: str, file: str) -> Method | Merge:
    try:
        return find_method(name)
    except UsageError:
        raise InputError(f"the method {name!r} of the recipe is not known", file=file, hint="Update nplora.") from None


def _source(raw: Mapping[str, object]) -> Source:
    # Only a name: a path in somebody's header is no reason to read that path.
    name = Path(str(raw["name"]).replace("\\", "/")).name
    hashes = [str(raw[field]) if raw.get(field) else None for field in ("sha256", "config_sha256")]
    return Source(name, *hashes)


def find_input(role: str, source: Source, output: Adapter) -> Adapter:
    """The input that a recipe names: beside the output or in the current folder, with the recipe's SHA-256.

    Raises:
        InputError: no file of this name is there, or only another one.
    """
    other: InputError | None = None
    for path in _candidates(source.name, output):
        try:
            return require_source(role, source, load(path))
        except InputError as error:
            other = other or error
    if other is not None:
        raise other
    raise InputError(
        f"the {role} that the recipe names is not found", file=output.path,
        expected=f"{source.name} beside the output or in the current folder", hint=_NAME_THEM,
    )  # fmt: skip


def _candidates(name: str, output: Adapter) -> Iterator[Path]:
    file = Path(output.file.path if output.file else output.path)
    if not name:
        return
    for folder in dict.fromkeys((file.parent, file.parent.parent, Path.cwd())):
        path = folder / name
        if path.exists() and not any(path.samefile(own) for own in (file, output.path)):
            yield path


def find_base(source: Source, output: Adapter) -> Path:
    """The base model that a recipe names: beside the output or in the current folder.

    Raises:
        InputError: it is not there.
    """
    found = next(_candidates(source.name, output), None)
    if found is None:
        raise InputError(
            "the base model that the recipe names is not found", file=output.path,
            expected=f"{source.name} beside the output or in the current folder", hint="Name it with --base.",
        )  # fmt: skip
    return found


def require_base(source: Source, base: BaseModel | None, output: Adapter) -> None:
    """Make sure that a base model is the one that the recipe was made with.

    Raises:
        InputError: it is not.
    """
    found = base.sha256() if base is not None else None
    if source.sha256 is not None and found != source.sha256:
        raise InputError(
            f"this is not the base model that the recipe names ({source.name}): the bytes differ",
            file=base.path if base else output.path, expected=f"sha256 {source.sha256[:12]}…",
            got=f"{str(found)[:12]}…", hint="Name the one that was used with --base.",
        )  # fmt: skip


def require_source(role: str, source: Source, adapter: Adapter) -> Adapter:
    """The adapter, if it holds the bytes that the recipe was made with.

    Raises:
        InputError: it does not.
    """
    found = adapter.file.sha256() if adapter.file else None
    config = hashlib.sha256(json.dumps(adapter.config, sort_keys=True).encode()).hexdigest()
    for what, expected, got in (("bytes", source.sha256, found), ("adapter_config.json", source.config_sha256, config)):
        if expected is not None and got != expected:
            raise InputError(
                f"this is not the {role} that the recipe names ({source.name}): the {what} differ"
                + ("s" if what != "bytes" else ""),
                file=adapter.path, expected=f"sha256 {expected[:12]}…", got=f"{str(got)[:12]}…",
                hint="Use the file that was fused; name it if it lies elsewhere: nplora verify OUTPUT SUBJECT STYLE.",
            )  # fmt: skip
    return adapter
