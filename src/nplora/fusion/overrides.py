"""Parameters in parts of the model: rules beside the value that holds everywhere else.

A rule is ``PARAMETER@WHERE=VALUE``, such as ``mu@up=2``; without a place it holds everywhere. Of the rules about one
parameter the first that means a module decides, so the general ones come last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..parameters import OVERRIDES
from ..ranges import Parameter, word_of
from .selectors import selects, words_for

SHOWN = 3  # rules that a sentence names
FLAGS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass(frozen=True, slots=True)
class Override:
    """One rule: a parameter's value in a part of the model."""

    parameter: str
    where: str
    value: object

    @property
    def field(self) -> str:
        """What it sets, and where."""
        return f"{self.parameter}@{self.where}"

    @property
    def text(self) -> str:
        """The rule as it is written.

        >>> Override("mu", "up", 2.0).text
        'mu@up=2.0'
        """
        return f"{self.field}={word_of(self.value)}"


@dataclass(frozen=True)
class Overrides:
    """Rules for parts of the model, in their order."""

    rules: tuple[Override, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(rule.text for rule in self.rules)

    def deciding(self, name: str) -> list[Override]:
        """The rules that decide about a module: for each parameter the first that means it."""
        found: dict[str, Override] = {}
        for rule in self.rules:
            if rule.parameter not in found and selects(rule.where, name):
                found[rule.parameter] = rule
        return list(found.values())

    def at(self, name: str) -> dict[str, object]:
        """The parameters that are others in a module, with their values there."""
        return {rule.parameter: rule.value for rule in self.deciding(name)}

    def of(self, parameter: str) -> list[Override]:
        """The rules about one parameter."""
        return [rule for rule in self.rules if rule.parameter == parameter]

    def told(self, parameter: str, value: object) -> str:
        """A parameter's value everywhere and in parts, in words.

        >>> Overrides((Override("mu", "up", 2.0), Override("mu", "mid", 1.0))).told("mu", 0.5)
        '0.5, 2 in up, 1 in mid'
        >>> Overrides((Override("mu", "up", 2.0), Override("mu", "*", 1.0))).told("mu", 0.5)
        '2 in up, 1 elsewhere'
        """
        rules = self.of(parameter)
        parts = [f"{_shown(rule.value)} in {rule.where}" for rule in rules if rule.where != "*"]
        rest = next((rule.value for rule in rules if rule.where == "*"), None)
        if len(parts) > SHOWN:
            parts = [*parts[: SHOWN - 1], f"others in {len(parts) - SHOWN + 1} more places"]
        if rest is None:
            return ", ".join([*([_shown(value)] if value is not None else []), *parts])
        return ", ".join([*parts, f"{_shown(rest)} elsewhere"]) if parts else _shown(rest)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else word_of(value)


def read_overrides(texts: object, options: Sequence[Parameter]) -> Overrides:
    """Rules from their checked texts.

    Args:
        texts: each ``PARAMETER@WHERE=VALUE``; or None.
        options: those that a fusion has, from `fusion.options.options_of`.

    Raises:
        UsageError: a parameter that the fusion has not, that holds for the whole file, or a value out of range.

    >>> from nplora.parameters import MU
    >>> read_overrides(["mu@up=inf"], [MU])
    Overrides(rules=(Override(parameter='mu', where='up', value=inf),))
    """
    known = {parameter.name: parameter for parameter in options}
    rules = []
    for text in texts or ():  # type: ignore[attr-defined]
        place, _, value = text.rpartition("=")
        name, _, where = place.partition("@")
        if name not in known:
            raise _unknown(name, known, place)
        rules.append(Override(name, where, checked(known[name], value, place)))
    return Overrides(tuple(rules))


def _unknown(name: str, known: Mapping[str, Parameter], place: str) -> UsageError:
    import difflib

    fitting = [parameter.name for parameter in known.values() if not parameter.whole]
    near = difflib.get_close_matches(name, fitting, 1)
    hint = f"Did you mean {near[0]}?" if near else None
    expected = f"one of {', '.join(fitting)}"
    return UsageError(f"this fusion has no parameter {name}", key=place, expected=expected, hint=hint)


def fitting(given: object, names: Collection[str]) -> tuple[str, ...] | None:
    """The rules that set one of these parameters; None where none does.

    Args:
        given: rules as `nplora.fuse` takes them, or None.

    >>> fitting("mu@up=2, density@up=0.5", {"mu"})
    ('mu@up=2',)
    """
    rules: Any = OVERRIDES.check(given) if given else ()
    return tuple(rule for rule in rules if rule.partition("@")[0] in names) or None


def checked(parameter: Parameter, value: object, place: str | None = None) -> object:
    """The value of a parameter in a part of the model.

    Args:
        value: as it was given; a text may say a number or yes and no.
        place: what it sets and where, for messages.

    Raises:
        UsageError: it holds for the whole file, or the value is out of range.
    """
    if parameter.whole:
        raise _whole(parameter, place)
    if parameter.kind == "flag" and isinstance(value, str):
        value = FLAGS.get(value.lower(), value)
    try:
        return parameter.check(value)
    except UsageError as error:
        raise UsageError(
            error.problem, key=place, expected=error.expected, got=error.got, hint=error.hint
        ) from None  # fmt: skip


def _whole(parameter: Parameter, place: str | None) -> UsageError:
    hint = f"Give it without a place: {parameter.option}."
    if "strength" in parameter.name:
        hint = "Strengths in parts of the model have rules of their own: --strength style@up=0."
    return UsageError(f"{parameter.name} holds for the whole file", key=place, hint=hint)


def require_reached(overrides: Overrides, names: Collection[str]) -> None:
    """Make sure that every rule decides about a module.

    Args:
        names: of the modules that are fused or pass through.

    Raises:
        UsageError: a rule means nothing, or all that it means is decided by earlier rules.
    """
    if not overrides.rules:
        return
    used = {id(rule) for name in names for rule in overrides.deciding(name)}
    for rule in overrides.rules:
        if id(rule) in used:
            continue
        if any(selects(rule.where, name) for name in names):
            raise UsageError(
                "this is never reached: earlier ones decide about all that it means", key=rule.field,
                got=word_of(rule.value), hint="The first that means a module counts: put the general ones last.",
            )  # fmt: skip
        raise UsageError(
            f"no module is called {rule.where}", key=rule.field, expected=f"one of {', '.join(words_for(names))}",
            hint='A module\'s name, its beginning, or a glob such as "*.attn1.*" will do as well.',
        )  # fmt: skip
