"""Command-line options made from parameters: one declaration, no second list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from ..parameters import Parameter

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

RULES = {"strengths": "WHO@WHERE=NUMBER", "overrides": "PARAMETER@WHERE=VALUE"}  # options that may be repeated


class Kind(click.ParamType[Any] if TYPE_CHECKING else click.ParamType):  # type: ignore[misc]  # generic from 8.4 on
    """A value that its parameter checks; a wrong one raises the parameter's own error."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        self.name = "|".join(parameter.choices) if parameter.kind == "choice" else parameter.kind

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """The choices, or names of files."""
        from click.shell_completion import CompletionItem

        if self.parameter.kind == "path":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(word) for word in self.parameter.choices if word.startswith(incomplete)]

    def convert(self, value: Any, *_: object) -> Any:  # click also hands over its parameter and context
        return self.parameter.check(value)


def with_parameters(parameters: Iterable[Parameter]) -> Callable[[Any], Any]:
    """A decorator that gives a command one option for each parameter.

    >>> from nplora.parameters import MU
    >>> click.command()(with_parameters([MU])(lambda mu: None)).params[0].opts
    ['--mu']
    """
    chosen = list(parameters)

    def decorate(function: Any) -> Any:
        for parameter in reversed(chosen):
            function = _option(parameter)(function)
        return function

    return decorate


def _option(parameter: Parameter) -> Callable[[Any], Any]:
    if parameter.kind == "flag":
        return click.option(parameter.option, parameter.name, is_flag=True, default=False, help=parameter.sentence)
    if parameter.kind in RULES:
        return click.option(
            parameter.option, parameter.name, multiple=True, metavar=RULES[parameter.kind], help=parameter.sentence
        )  # fmt: skip
    return click.option(
        parameter.option, parameter.name, type=Kind(parameter), default=None, metavar=metavar(parameter),
        help=f"{parameter.sentence}{facts_of(parameter)}",
    )  # fmt: skip


def metavar(parameter: Parameter) -> str:
    """What help shows in the place of the value.

    >>> from nplora.parameters import DTYPE, MU
    >>> metavar(MU), metavar(DTYPE)
    ('NUMBER', 'same|fp32|fp16|bf16')
    """
    return {
        "number": "NUMBER",
        "count": "COUNT",
        "names": "NAMES",
        "path": "PATH",
        "order": "ORDER",
        "directions": "all|COUNT|SHARE",
    }.get(parameter.kind, "|".join(parameter.choices))


def facts_of(parameter: Parameter) -> str:
    """Range and default, as help shows them."""
    found = []
    if parameter.kind == "number" and not math.isinf(parameter.low):
        found.append(f"range: {parameter.low:g} to {parameter.high:g}")
    if parameter.default is not None:
        shown = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
        found.append(f"default: {shown}")
    return f"  [{'; '.join(found)}]" if found else ""


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given (a flag that was not is False, an option that may be repeated is empty)."""
    return {name: value for name, value in values.items() if value is not None and value is not False and value != ()}


def take(values: dict[str, Any], parameters: Iterable[Parameter]) -> dict[str, Any]:
    """The values of these parameters that were given, taken out of a command's arguments."""
    found = {parameter.name: values.pop(parameter.name) for parameter in parameters}
    return {name: value for name, value in found.items() if value is not None and value != ()}
