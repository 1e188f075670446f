"""Match the modules of two adapters, whatever their files call them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .adapter import Adapter, Module
from .errors import InputError


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


def pair_modules(
    subject: Adapter, style: Adapter, components: frozenset[str] | None, left_out: dict[str, str]
) -> list[Pair]:
    """All modules of both adapters, matched; the subject's order first.

    Args:
        subject, style: the adapters.
        components: keep only these parts of the model; keys of the others are entered in `left_out`.

    Raises:
        InputError: a common module differs in size: the adapters are for different base models.
    """
    theirs = {match_key(name): module for name, module in style.modules.items()}
    pairs = []
    for module in subject.modules.values():
        other = theirs.pop(match_key(module.name), None)
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
            for member in (pair.subject, pair.style):
                if member is not None:
                    left_out.update((key, "not among --components") for key in member.update.keys)
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
