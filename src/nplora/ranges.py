"""What a parameter is: a name, a kind of values with their range, a default and a sentence; the check of a value."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import UsageError

Value = object


@dataclass(frozen=True)
class Parameter:
    """One parameter: what it may be, what it is by default, and what it does in a sentence.

    ``kind`` is "number", "count" (a whole number, never below 0), "choice", "flag", "names", "order", "strengths",
    "overrides", "path" (a file or a folder) or "directions". ``low`` and ``high`` bound a number (both inclusive;
    ``high`` may be infinite, and then "inf" is a value). ``whole`` says that it holds for the whole file: it cannot be
    another in a part of the model.
    """

    name: str
    kind: str
    default: Value
    sentence: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    spelling: str = ""  # on the command line, where it is not the name's
    whole: bool = False

    @property
    def option(self) -> str:
        """The command-line spelling.

        >>> Parameter("subject_strength", "number", 1.0, "").option
        '--subject-strength'
        """
        return self.spelling or "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.kind == "choice":
            return ", ".join(self.choices)
        if self.kind == "number":
            return f"a number {_interval(self.low, self.high)}"
        if self.kind == "count":
            least = f"a whole number from {max(self.low, 0):g}"
            return least if math.isinf(self.high) else f"{least} to {self.high:g}"
        return _KINDS[self.kind][1]

    def check(self, value: Value) -> Value:
        """The value in its proper type.

        Raises:
            UsageError: out of range or of another kind; the message names the range.

        >>> mu = Parameter("mu", "number", 0.5, "", low=0.0)
        >>> mu.check("inf"), mu.check(1)
        (inf, 1.0)
        """
        try:
            checked = (
                _number(self, value) if self.kind == "number" else _KINDS.get(self.kind, (_choice, ""))[0](self, value)
            )
        except (TypeError, ValueError, OverflowError):
            raise self._refusal(value) from None
        return checked

    def _refusal(self, value: Value) -> UsageError:
        """What is wrong with a value, and what to write instead where that can be guessed."""
        one = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        hint = self.sentence
        if self.kind == "number" and isinstance(one, str) and one.replace(",", "", 1).isdecimal():
            hint = f"Write a point: {one.replace(',', '.')}."
        elif self.kind == "choice":
            import difflib

            near = difflib.get_close_matches(str(one).lower(), self.choices, 1)
            hint = f"Did you mean {near[0]}?" if near else hint
        elif self.kind == "strengths" and isinstance(one, str) and not set("=@") & set(one):
            hint = "Of a whole adapter: style=0.5, or --style-strength 0.5."
        return UsageError(f"{self.name} is out of range", expected=self.range, got=repr(one), hint=hint)


def _interval(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "(any finite one)"
    return f"from {low:g} to {'inf' if math.isinf(high) else format(high, 'g')}"


def _number(parameter: Parameter, value: Value) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)  # type: ignore[arg-type]
    unbounded = math.isinf(parameter.low)
    if math.isnan(number) or not parameter.low <= number <= parameter.high or (unbounded and math.isinf(number)):
        raise ValueError
    return number


def _choice(parameter: Parameter, value: Value) -> str:
    if value not in parameter.choices:
        raise ValueError
    return str(value)


def _flag(parameter: Parameter, value: Value) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _names(parameter: Parameter, value: Value) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    names = tuple(item.strip() for item in items)
    if not all(names):
        raise ValueError
    return names


def _count(parameter: Parameter, value: Value) -> int:
    number = int(value) if isinstance(value, (int, str)) else float(value)  # type: ignore[arg-type]
    if isinstance(value, bool) or number != int(number) or not max(parameter.low, 0) <= number <= parameter.high:
        raise ValueError
    return int(number)


def _directions(parameter: Parameter, value: Value) -> Value:
    if value == "all":
        return "all"
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        value = float(value) if any(mark in value for mark in ".eE") else int(value)
    if isinstance(value, int) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise ValueError


def _order(parameter: Parameter, value: Value) -> str:
    groups = value.split(">") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    words = [group.split("=") if isinstance(group, str) else list(group) for group in groups]
    if not all(word.strip() for group in words for word in group) or not all(words):
        raise ValueError
    return " > ".join(" = ".join(word.strip() for word in group) for group in words)


def _path(parameter: Parameter, value: Value) -> str:
    path = os.fspath(value)  # type: ignore[call-overload]
    if not isinstance(path, str) or not path:
        raise TypeError
    return path


def _rules(parameter: Parameter, value: Value) -> tuple[str, ...]:
    """Rules ``WHO@WHERE=NUMBER`` (strengths) or ``PARAMETER@WHERE=VALUE`` (overrides) as texts."""
    strengths, rules = parameter.kind == "strengths", []
    for place, given in _places(value):
        what, mark, where = (word.strip() for word in place.partition("@"))
        if not what or (mark and not where) or "," in place:
            raise ValueError
        what = what if strengths else what.replace("-", "_")
        rules.append(f"{what}@{where or '*'}={repr(_number(parameter, given)) if strengths else word_of(given)}")
    if not rules:
        raise ValueError
    return tuple(rules)


def _places(value: Value) -> list[tuple[str, Value]]:
    """(what@where, value) from a text, from a mapping (nested, or a table with ``where``), or from several of them."""
    if isinstance(value, Mapping) and "where" in value:
        if not isinstance(value["where"], str) or not value["where"].strip():
            raise TypeError
        return [(f"{what}@{value['where']}", given) for what, given in value.items() if what != "where"]
    if isinstance(value, Mapping):
        found = []
        for what, inner in value.items():
            nested = inner.items() if isinstance(inner, Mapping) else ((None, inner),)
            found += [(str(what) if where is None else f"{what}@{where}", given) for where, given in nested]
        return found
    if isinstance(value, str):
        split = [text.rpartition("=") for text in value.split(",")]
        return [(place, given) for place, _, given in split]
    return [rule for item in value for rule in _places(item)]  # type: ignore[attr-defined]


def word_of(value: Value) -> str:
    """A value as a rule's text says it.

    >>> [word_of(value) for value in (2, 0.5, math.inf, True, "all")]
    ['2', '0.5', 'inf', 'yes', 'all']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        word = str(value).strip()
        if not word:
            raise ValueError
        return word
    return repr(float(value))  # type: ignore[arg-type]


_KINDS: Mapping[str, tuple[Callable[[Parameter, Value], Value], str]] = {
    "count": (_count, "a whole number"),
    "path": (_path, "a file or a folder"),
    "flag": (_flag, "yes or no"),
    "strengths": (_rules, "WHO@WHERE=NUMBER, or several with commas between them, such as style@up=1,style@*=0"),
    "overrides": (_rules, "PARAMETER@WHERE=VALUE, or several with commas between them, such as mu@up=2,rank@down=8"),
    "order": (_order, 'names with > between them, the most protected first, and = between equals, such as "c > b = a"'),
    "names": (_names, "names separated by commas"),
    "directions": (_directions, '"all", a count such as 4, or a share of the energy such as 0.95'),
}
