"""Which options a method has, and their checked values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..algebra.compression import Goal
from ..errors import UsageError
from ..methods import Merge, Method, known_methods
from ..parameters import COMMON, PAIR_ONLY, WRITING, Parameter, check_all
from .overrides import Overrides


def options_of(method: Method | Merge, count: int = 2) -> tuple[Parameter, ...]:
    """Every option of a fusion by this method of so many adapters: the method's first, then the common ones."""
    common = COMMON if count <= 2 else tuple(parameter for parameter in COMMON if parameter not in PAIR_ONLY)
    own = {parameter.name for parameter in method.options}  # a merge's rank is also what its result is compressed to
    return (*method.options, *(parameter for parameter in common if parameter.name not in own))


def numeric_options(method: Method | Merge, count: int = 2) -> tuple[Parameter, ...]:
    """Those on which a result's numbers depend; the rest says how to write or where to compute."""
    return tuple(parameter for parameter in options_of(method, count) if parameter not in WRITING)


def check_options(method: Method | Merge, values: Mapping[str, object], count: int = 2) -> dict[str, object]:
    """Every option's value: checked where given, its default elsewhere.

    Raises:
        UsageError: an option that this method has not, or a value out of range.

    >>> from nplora.methods import find_method
    >>> check_options(find_method("np"), {"mu": 1})["mu"]
    1.0
    """
    given = {name: value for name, value in values.items() if value is not None}
    known = {parameter.name for parameter in options_of(method, count)}
    strangers = [name for name in given if name not in known]
    elsewhere = {p.name: p for one in known_methods().values() for p in one.options} if strangers else {}
    for name in strangers:
        if count > 2 and name in {parameter.name for parameter in PAIR_ONLY}:
            raise UsageError(
                f"--{name.replace('_', '-')} is for a subject and a style", got=f"{count} adapters",
                hint="Of more, name one by its letter or its file: --strength a=0.5.",
            )  # fmt: skip
        if name in elsewhere:
            own = ", ".join(parameter.option for parameter in method.options) or "none of its own"
            option = elsewhere[name].option
            having = [one.name for one in known_methods().values() if name in {p.name for p in one.options}]
            raise UsageError(
                f"the method {method.name} has no option {option}", expected=own,
                hint=f"{option} belongs to {', '.join(having)}.",
            )  # fmt: skip
    return check_all(options_of(method, count), given)


def goal_of(values: Mapping[str, Any], count: int, module: str | None = None) -> Goal | None:
    """How far a result is to be compressed; None: not at all.

    Args:
        values: checked options. count: how many adapters there are. module: for messages, where its options are others.

    Raises:
        UsageError: energy and error together, or a style to be kept that is not there.
    """
    rank, energy, error, keep = (values[name] for name in ("rank", "energy", "error", "keep_style"))
    if energy is not None and error is not None:
        raise UsageError("--energy and --error say the same in two ways", key=module, hint="Give one of them.")
    if keep and count != 2:
        raise UsageError("--keep-style needs a subject and a style", key=module, got=f"{count} adapters")
    return None if rank is energy is error is None else Goal(rank, energy, error, bool(keep))


def require_goal(values: Mapping[str, Any], overrides: Overrides, goals: Iterable[Goal | None]) -> None:
    """Make sure that something is compressed where a style is to be kept.

    Raises:
        UsageError: no module is.
    """
    keeps = values["keep_style"] or any(rule.value for rule in overrides.of("keep_style"))
    if keeps and not any(goals):
        raise UsageError("--keep-style says how to compress, but not how far", hint="Add --rank, --energy or --error.")
