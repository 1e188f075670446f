"""How strongly each adapter takes part: one number for each, and rules for parts of the model.

A rule is ``WHO@WHERE=NUMBER``, such as ``style@up=0``; without a place it holds everywhere. The first rule that means a
module decides, so the general ones come last: ``style@up=1, style@*=0`` is the style in the up blocks alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .roles import number_of, role_of
from .selectors import selects, words_for


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``role`` is None where it holds for every adapter."""

    role: str | None
    where: str
    strength: float
    text: str

    def means(self, role: str, name: str) -> bool:
        return self.role in (None, role) and selects(self.where, name)


@dataclass(frozen=True)
class Strengths:
    """Strengths by adapter, and rules that come before them."""

    everywhere: Mapping[str, float]
    rules: tuple[Rule, ...] = ()

    def of(self, role: str, name: str) -> float:
        """The strength of an adapter in a module."""
        rule = self.rule(role, name)
        return self.everywhere[role] if rule is None else rule.strength

    def rule(self, role: str, name: str) -> Rule | None:
        """The rule that decides about an adapter in a module, if there is one."""
        return next((rule for rule in self.rules if rule.means(role, name)), None)


def read_rules(texts: Sequence[str], paths: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules from their checked texts.

    Args:
        texts: each ``WHO@WHERE=NUMBER``; WHO is a role, a letter, a number, a file's name, or ``*`` for every adapter.
        paths: role -> file.

    Raises:
        UsageError: nobody is called so.

    >>> read_rules(["ink@up=0.5"], {"subject": "cat", "style": "ink"})
    (Rule(role='style', where='up', strength=0.5, text='2@up=0.5'),)
    """
    rules = []
    for text in texts:
        place, _, number = text.rpartition("=")
        who, _, where = place.partition("@")
        role = None if who == "*" else role_of(who, paths)
        shown = "*" if role is None else number_of(role, paths)
        rules.append(Rule(role, where, float(number), f"{shown}@{where}={float(number)!r}"))
    return tuple(rules)


def require_used(strengths: Strengths, names: Mapping[str, Collection[str]]) -> None:
    """Make sure that every rule decides something.

    Args:
        names: role -> what the adapter changes.

    Raises:
        UsageError: a rule means nothing, or all that it means is decided by earlier rules.
    """
    if not strengths.rules:
        return
    deciding = {strengths.rule(role, name) for role, own in names.items() for name in own}
    for rule in strengths.rules:
        if rule in deciding:
            continue
        own = {role: names[role] for role in names if rule.role in (None, role)}
        if any(selects(rule.where, name) for known in own.values() for name in known):
            raise UsageError(
                f"the strength {rule.text} is never reached: earlier ones decide about all that it means",
                hint="The first that means a module counts: put the general ones last.",
            )
        every = [name for known in own.values() for name in known]
        who = f"the {rule.role}" if rule.role in ("subject", "style") else f"adapter {rule.role}"
        who = "no adapter" if rule.role is None else who
        verb = "changes" if rule.role is None else "does not change"
        raise UsageError(
            f"{who} {verb} anything that is called {rule.where}", expected=f"one of {', '.join(words_for(every))}",
            hint='A module\'s name, its beginning, or a glob such as "*.attn1.*" will do as well.',
        )  # fmt: skip
