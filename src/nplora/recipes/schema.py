"""The recipe's JSON schema, made from the value's types and the declared parameters."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..parameters import OVERRIDES, Parameter
from .reading import WHERE
from .running import method_parameters
from .value import Recipe

ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """A JSON schema that editors check and complete recipes with.

    Returns:
        The schema as plain data (draft 2020-12): every method, and every parameter with its range and sentence; each
        may also be a list, to sweep it.

    >>> recipe_schema()["required"]
    ['inputs', 'output']
    """
    methods = method_parameters()
    parameters: dict[str, list[Parameter]] = {}  # several where methods declare one name in their own words
    for parameter in dict.fromkeys(parameter for own in methods.values() for parameter in own):
        parameters.setdefault(parameter.name, []).append(parameter)
    _, components = msgspec.json.schema_components([Recipe], ref_template="#/$defs/{name}")
    for table in components.values():
        table["description"] = table["description"].partition("\n")[0]
    top = components.pop("Recipe")
    top["properties"]["method"] = _or_list({"enum": sorted(methods)}) | {"default": "np"}
    described = {
        name: _swept(declared) | {"description": " Or: ".join(f"{p.sentence} Default: {p.default}." for p in declared)}
        for name, declared in sorted(parameters.items())
    }
    top["properties"]["parameters"] = {"type": "object", "additionalProperties": False, "properties": described}
    place = "#/properties/parameters/properties/"
    in_parts = {name: {"$ref": place + name} for name, own in sorted(parameters.items()) if not own[0].whole}
    top["properties"]["overrides"] = {
        "type": "array", "description": OVERRIDES.sentence,
        "items": {
            "type": "object", "additionalProperties": False, "required": ["where"], "minProperties": 2,
            "properties": {"where": {"type": "string", "minLength": 1, "description": WHERE}, **in_parts},
        },
    }  # fmt: skip
    return {"$schema": ADDRESS, **top, "title": "nplora recipe", "$defs": components}


def _swept(declared: list[Parameter]) -> dict[str, Any]:
    values: list[dict[str, Any]] = []
    for parameter in declared:
        value = _value(parameter)
        if value not in values:
            values.append(value)
    one = values[0] if len(values) == 1 else {"anyOf": values}
    return one if declared[0].kind in ("names", "strengths") else _or_list(one)


def _or_list(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _value(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "number":
        limits = {"minimum": parameter.low, "maximum": parameter.high}
        number = {"type": "number", **{name: limit for name, limit in limits.items() if not math.isinf(limit)}}
        endless = math.isinf(parameter.high) and not math.isinf(parameter.low)
        return {"anyOf": [number, {"const": "inf"}]} if endless else number
    if parameter.kind == "count":
        return {"type": "integer", "minimum": int(parameter.low)}
    if parameter.kind == "choice":
        return {"enum": list(parameter.choices)}
    if parameter.kind == "flag":
        return {"type": "boolean"}
    if parameter.kind == "names":
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    if parameter.kind == "strengths":
        number = {"type": "number"}
        nested = {
            "type": "object",
            "additionalProperties": {"anyOf": [number, {"type": "object", "additionalProperties": number}]},
        }
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, nested]}
    return {}
