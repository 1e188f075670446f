"""ComfyUI sockets from nplora's declared parameters, and values back from them.

Nothing is declared here twice: names, ranges, defaults and tooltips are the parameters' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, isinf
from typing import Any

from comfy_api.latest import io

from nplora.parameters import Parameter

LARGEST = 100.0  # a widget needs an end where a parameter has none; ComfyUI's own strengths end here
UNBOUNDED = "_unbounded"  # the switch beside a number that may be infinite
LAST = 0x7FFFFFFF


def sockets(parameters: Iterable[Parameter]) -> list[Any]:
    """The sockets of some parameters, in their order."""
    return [socket for parameter in parameters for socket in _sockets(parameter)]


def _sockets(parameter: Parameter) -> list[Any]:
    name, tip = parameter.name, parameter.sentence
    if parameter.kind == "number":
        low, high = max(parameter.low, -LARGEST), min(parameter.high, LARGEST)
        start = low if parameter.default is None else float(parameter.default)
        tip = f"{tip} {low:g} leaves it out." if parameter.default is None else tip
        number = io.Float.Input(name, default=start, min=low, max=high, step=0.05, tooltip=tip)
        return [number, *_switch(parameter)]
    if parameter.kind == "count":
        low = 0 if parameter.default is None else int(max(parameter.low, 0))
        tip = f"{tip} 0 is the default." if parameter.default is None else tip
        return [io.Int.Input(name, default=int(parameter.default or 0), min=low, max=LAST, tooltip=tip)]
    if parameter.kind == "choice":
        return [io.Combo.Input(name, options=list(parameter.choices), default=parameter.default, tooltip=tip)]
    if parameter.kind == "flag":
        return [io.Boolean.Input(name, default=bool(parameter.default), tooltip=tip)]
    shown = "" if parameter.default is None else str(parameter.default)
    return [io.String.Input(name, default=shown, tooltip=f"{tip} ({parameter.range})")]


def _switch(parameter: Parameter) -> list[Any]:
    """A number that may be infinite has a switch for it: a widget cannot hold infinity."""
    if not isinf(parameter.high) or isinf(parameter.low):
        return []
    return [
        io.Boolean.Input(
            parameter.name + UNBOUNDED, default=False, tooltip=f"{parameter.name} = infinity: {parameter.sentence}"
        )
    ]


def values(parameters: Iterable[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the sockets say, as the library takes it; what is left empty is left to the library.

    >>> from nplora.parameters import MU, RANK
    >>> values((MU, RANK), {"mu": 0.5, "mu_unbounded": True, "rank": 0})
    {'mu': inf}
    """
    found: dict[str, Any] = {}
    for parameter in parameters:
        value = given.get(parameter.name)
        if given.get(parameter.name + UNBOUNDED):
            value = inf
        if value is None or value == "" or (parameter.default is None and value == 0):
            continue
        found[parameter.name] = value
    return found
