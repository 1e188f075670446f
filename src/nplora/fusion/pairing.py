"""Match the modules of adapters, whatever their files call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..reading.adapter import Adapter, Module
from .leftovers import LeftOut


@dataclass(frozen=True, slots=True)
class Match:
    """The modules that change one weight: role -> module, in the order of the adapters."""

    name: str
    members: Mapping[str, Module]


def match_key(name: str) -> tuple[str, str]:
    """What makes two modules the same: the class of the component, and the path with dots flattened.

    >>> match_key("transformer.blocks.0.attn.q") == match_key("unknown.blocks_0_attn_q")
    True
    """
    component, _, path = name.partition(".")
    return component if component.startswith("text_encoder") else "denoiser", path.replace(".", "_")


def partners(known: Collection[str], other: Collection[str]) -> dict[str, str]:
    """The other adapter's name for each known name that it has too: equal names first, then equal match keys.

    Where several names of one file share a match key, only equal names are one module.

    >>> partners(["unknown.a.b_c", "unknown.a_b.c"], ["unknown.a_b.c", "unknown.a.b_c"])
    {'unknown.a.b_c': 'unknown.a.b_c', 'unknown.a_b.c': 'unknown.a_b.c'}
    """
    theirs = frozenset(other)
    found = {name: name for name in known if name in theirs}
    counts = Counter(map(match_key, known)) | Counter(map(match_key, other))
    free = {match_key(name): name for name in other if name not in found and counts[match_key(name)] == 1}
    for name in known:
        if name not in found and match_key(name) in free and counts[match_key(name)] == 1:
            found[name] = free[match_key(name)]
    return found


def match_modules(inputs: Mapping[str, Adapter], components: frozenset[str] | None, left_out: LeftOut) -> list[Match]:
    """All modules of all adapters, matched; the first adapter's order first.

    Args:
        inputs: role -> adapter.
        components: keep only these parts of the model; keys of the others are entered in `left_out`.

    Raises:
        InputError: a common module differs in size: the adapters are for different base models.
    """
    matches: list[Match] = []
    for role, adapter in inputs.items():
        matches = _joined(matches, role, adapter.modules, inputs)
    if components is None:
        return matches
    kept = []
    for match in matches:
        if match.name.partition(".")[0] in components:
            kept.append(match)
        else:
            for role, module in match.members.items():
                left_out.add(role, module.keys, "not among --components")
    return kept


def _joined(
    matches: Sequence[Match], role: str, modules: Mapping[str, Module], inputs: Mapping[str, Adapter]
) -> list[Match]:
    """The matches so far with one more adapter's modules."""
    theirs = dict(modules)
    names_there = partners([match.name for match in matches], theirs)
    joined = []
    for match in matches:
        other = theirs.pop(names_there.get(match.name, ""), None)
        if other is None:
            joined.append(match)
            continue
        first, module = next(iter(match.members.items()))
        _require_same_size(module, other, inputs[first], inputs[role])
        # The dotted name of the two is the better known one.
        name = max((match.name, other.name), key=lambda text: (not text.startswith("unknown."), text.count(".")))
        joined.append(Match(name, {**match.members, role: other}))
    return joined + [Match(module.name, {role: module}) for module in theirs.values()]


def _require_same_size(module: Module, other: Module, subject: Adapter, style: Adapter) -> None:
    one, two = module.update.size, other.update.size
    if one is None or two is None or tuple(one) == tuple(two):
        return
    raise InputError(
        f"the two adapters are for different base models: {module.name} is {one[0]}x{one[1]} in {subject.path} "
        f"({subject.base}) and {two[0]}x{two[1]} in {style.path} ({style.base})",
        hint="Use two adapters of one base model.",
    )
