"""Who gives way to whom: priorities of adapters, and the projections that follow from them.

An adapter is projected away from the union of the row spaces of all adapters of higher priority, and of the others of
its own priority (each leaves the rest alone). All projections read the adapters as they are in their files, so their
order plays no part. For two adapters this is NP-LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..adapters import LowRank
from ..errors import UsageError
from ..reading.stacks import Update, together
from .fused import Member
from .jobs import Job, Values
from .roles import number_of, role_of


def priorities(text: object, paths: Mapping[str, str]) -> dict[str, int]:
    """Role -> priority; the highest is the most protected.

    Args:
        text: "c > b = a", or None for the adapters' order, of which the last is the most protected.
        paths: role -> file.

    Raises:
        UsageError: it does not name every adapter once.

    >>> priorities("c > b = a", {"a": "one", "b": "two", "c": "three"})
    {'c': 1, 'b': 0, 'a': 0}
    >>> priorities(None, {"subject": "cat", "style": "ink"})
    {'subject': 0, 'style': 1}
    """
    if text is None:
        return {role: index for index, role in enumerate(paths)}
    groups = [[role_of(word, paths) for word in group.split("=")] for group in str(text).split(">")]
    named = [role for group in groups for role in group]
    if sorted(named) != sorted(paths):
        raise UsageError(
            "protect must name every adapter once", expected=" > ".join(reversed(list(paths))), got=str(text),
            hint="The first is the most protected; = gives two the same priority.",
        )  # fmt: skip
    return {role: len(groups) - 1 - index for index, group in enumerate(groups) for role in group}


def numbered(levels: Mapping[str, int], paths: Mapping[str, str]) -> str:
    """Priorities as a text that means the same whatever the files are called.

    >>> numbered({"a": 0, "b": 0, "c": 1}, {"a": "one", "b": "two", "c": "three"})
    '3 > 1 = 2'
    """
    groups: dict[int, list[str]] = {}
    for role, level in levels.items():
        groups.setdefault(level, []).append(number_of(role, paths))
    return " > ".join(" = ".join(groups[level]) for level in sorted(groups, reverse=True))


def jobs_of(
    name: str, members: Sequence[Member], levels: Mapping[str, int], side: str, values: Values = ()
) -> dict[str, Job]:
    """The projections of one module: role -> job, for the members that give way to others.

    None where a full matrix takes part: such a module is fused densely.

    Args:
        values: the parameters that are others here than in the rest of the fusion.
    """
    if not all(isinstance(member.update, LowRank) for member in members):
        return {}
    jobs, by_role = {}, {member.role: member for member in members}
    for role, above in gives_way(members, levels).items():
        up, down, factor = together([_update(by_role[other]) for other in above], side)
        own = _update(by_role[role])
        jobs[role] = Job(
            f"{side}:{role}:{name}", name, own[:2], (up, down), (own[2], factor), side, role, above, values
        )
    return jobs


def gives_way(members: Sequence[Member], levels: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Role -> the roles that a member of the module gives way to."""
    found = {}
    for member in members:
        above = [other.role for other in members if other is not member and levels[other.role] >= levels[member.role]]
        if above:
            found[member.role] = tuple(above)
    return found


def _update(member: Member) -> Update:
    update = member.update
    assert isinstance(update, LowRank)
    return update.up, update.down, member.strength * update.scale
