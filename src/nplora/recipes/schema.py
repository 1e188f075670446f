"""The recipe's JSON schema, made from the value's types and the declared parameters."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..parameters import Parameter
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
    parameters = {parameter.name: parameter for own in methods.values() for parameter in own}
    _, components = msgspec.json.schema_components([Recipe], ref_template="#/$defs/{name}")
    for table in components.values():
        table["description"] = table["description"].partition("\n")[0]
    top = components.pop("Recipe")
    top["properties"]["method"] = _or_list({"enum": sorted(methods)}) | {"default": "np"}
    top["properties"]["parameters"] = {
        "type": "object", "additionalProperties": False,
        "properties": {
            name: _swept(parameter) | {"description": f"{parameter.sentence} Default: {parameter.default}."}
            for name, parameter in sorted(parameters.items())
        },
    }  # fmt: skip
    return {"$schema": ADDRESS, **top, "title": "nplora recipe", "$defs": components}


def _swept(parameter: Parameter) -> dict[str, Any]:
    one = _value(parameter)
    return one if parameter.kind in ("names", "strengths") else _or_list(one)


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
