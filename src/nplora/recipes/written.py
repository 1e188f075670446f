"""The recipe that a fused file carries, as a recipe that can be run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ..checking.recipe import read_recipe
from ..errors import InputError
from ..fusion.options import options_of
from ..fusion.overrides import read_overrides
from ..methods import find_method
from ..output.metadata import RECIPE, jsonable
from ..parameters import COMMON, DEVICE, OVERRIDES, PAIR_ONLY
from ..storage import TensorFile
from .value import Input, Output, Recipe

HEAD = "# How {name} was made. `nplora run` reproduces it byte for byte, beside the same inputs.\n"


def recipe_of(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in the header of a file that nplora wrote.

    Args:
        path: a fused or converted file, or a PEFT folder.

    Returns:
        A recipe whose run gives the same bytes: inputs by name and SHA-256, every parameter, the output's name.

    Raises:
        InputError: the file cannot be read, or holds no recipe.
    """
    file = TensorFile(path)
    text = file.header.metadata.get(RECIPE)
    if text is None or read_recipe(file.header.metadata, os.fspath(path)) is None:
        raise InputError(
            "the header holds no recipe",
            file=path,
            key=RECIPE,
            hint="Only files that nplora 0.1 or later wrote have one.",
        )
    raw: dict[str, Any] = json.loads(text)
    parameters = dict(raw["parameters"])
    inputs: dict[str, str | Input | list[str | Input]] = {
        role: Input(
            str(source["name"]), source.get("sha256"), source.get("config_sha256"),
            float(parameters.pop(f"{role}_strength", 1.0)),
        )
        for role, source in raw["inputs"].items()
    }  # fmt: skip
    output = Output(Path(path).name, format=str(parameters.pop("format")), dtype=str(parameters.pop("dtype")))
    elsewhere = {DEVICE.name, *(parameter.name for parameter in PAIR_ONLY)}  # where it ran changes nothing
    overrides = _overrides(parameters.pop(OVERRIDES.name, None), str(raw["method"]), len(inputs))
    kept = {name: value for name, value in parameters.items() if value is not None and name not in elsewhere}
    return Recipe(inputs, output, str(raw["method"]), kept, overrides, str(raw["nplora"]))


def _overrides(texts: object, method: str, count: int) -> list[dict[str, Any]]:
    """Rules as a recipe's tables; neighbours of one place share a table."""
    options = COMMON if method == "convert" else options_of(find_method(method), count)
    tables: list[dict[str, Any]] = []
    for rule in read_overrides(texts, options).rules:
        if not tables or tables[-1]["where"] != rule.where or rule.parameter in tables[-1]:
            tables.append({"where": rule.where})
        tables[-1][rule.parameter] = jsonable(rule.value)
    return tables


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as YAML text that `read_recipe_text` understands.

    >>> print(recipe_yaml(Recipe({"subject": "cat.safetensors"}, Output("cat-peft", format="peft"), "convert")), end="")
    inputs:
      subject: cat.safetensors
    output:
      path: cat-peft
      format: peft
    method: convert
    """
    raw: Mapping[str, Any] = msgspec.to_builtins(recipe)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)
