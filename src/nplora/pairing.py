"""Match the modules of two adapters, whatever their files call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from .adapter import Adapter, Module
from .errors import InputError
from .leftovers import LeftOut


@dataclass(frozen=True, slots=True)
class Pair:
    """The modules of subject and style that change one weight; one of them may be missing."""

    name: str
    subject: Module | None
    style: Module | None


def match_key(name: str) -> tuple[str, str]:
    """What makes two modules the same: the class of the component, and the path with dots flattened.

    >>> match_key("transformer.blocks.0.attn.q") == match_key("unknown.blocks_0_attn_q")
    True
    """
    component, _, path = name.partition(".")
    return component if component.startswith("text_encoder") else "denoiser", path.replace(".", "_")


def partners(subject: Collection[str], style: Collection[str]) -> dict[str, str]:
    """The style's name for each name of the subject that it has too: equal names first, then equal match keys.

    Where several names of one file share a match key, only equal names are one module.

    >>> partners(["unknown.a.b_c", "unknown.a_b.c"], ["unknown.a_b.c", "unknown.a.b_c"])
    {'unknown.a.b_c': 'unknown.a.b_c', 'unknown.a_b.c': 'unknown.a_b.c'}
    """
    known = frozenset(style)
    found = {name: name for name in subject if name in known}
    counts = Counter(map(match_key, subject)) | Counter(map(match_key, style))
    theirs = {match_key(name): name for name in style if name not in found and counts[match_key(name)] == 1}
    for name in subject:
        if name not in found and match_key(name) in theirs and counts[match_key(name)] == 1:
            found[name] = theirs[match_key(name)]
    return found


def pair_modules(subject: Adapter, style: Adapter, components: frozenset[str] | None, left_out: LeftOut) -> list[Pair]:
    """All modules of both adapters, matched; the subject's order first.

    Args:
        subject, style: the adapters.
        components: keep only these parts of the model; keys of the others are entered in `left_out`.

    Raises:
        InputError: a common module differs in size: the adapters are for different base models.
    """
    theirs = dict(style.modules)
    names_there = partners(subject.modules, theirs)
    pairs = []
    for module in subject.modules.values():
        other = theirs.pop(names_there.get(module.name, ""), None)
        names = [module.name]
        if other is not None:
            _require_same_size(module, other, subject, style)
            names.append(other.name)
        # The dotted name of the two is the better known one.
        name = max(names, key=lambda text: (not text.startswith("unknown."), text.count(".")))
        pairs.append(Pair(name, module, other))
    pairs += [Pair(module.name, None, module) for module in theirs.values()]
    if components is None:
        return pairs
    kept = []
    for pair in pairs:
        if pair.name.partition(".")[0] in components:
            kept.append(pair)
        else:
            for role, member in (("subject", pair.subject), ("style", pair.style)):
                if member is not None:
                    left_out.add(role, member.keys, "not among --components")
    return kept


def _require_same_size(module: Module, other: Module, subject: Adapter, style: Adapter) -> None:
    one, two = module.update.size, other.update.size
    if one is None or two is None or tuple(one) == tuple(two):
        return
    raise InputError(
        f"the two adapters are for different base models: {module.name} is {one[0]}x{one[1]} in {subject.path} "
        f"({subject.base}) and {two[0]}x{two[1]} in {style.path} ({style.base})",
        hint="Use two adapters of one base model.",
    )


def renamed(module: Module, name: str) -> Module:
    """The module under the pair's name."""
    return module if module.name == name else replace(module, name=name)
