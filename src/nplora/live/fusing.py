"""Fuse adapters of one or several live models and turn mu afterwards; what the front ends share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UsageError
from ..fusion.fused import Squeezed
from ..fusion.jobs import Overlap
from ..fusion.measures import squeezed_total
from ..fusion.options import goal_of, require_goal
from ..fusion.overlap import Summary, advice, overlap_sentence, sentence, summarise
from ..fusion.overrides import Overrides, read_overrides, require_reached
from ..fusion.protection import priorities
from ..fusion.roles import roles
from ..fusion.selectors import selects, words_for
from ..fusion.strengths import Strengths, read_rules, require_used
from ..methods import Merge, Method, find_method
from ..parameters import (
    ALLOW_NONFINITE,
    ENERGY,
    ERROR,
    KEEP_STYLE,
    MU,
    OVERRIDES,
    PAIR_ONLY,
    RANK,
    STRENGTHS,
    Parameter,
    check_all,
)
from .injection import inject, inner_model, remove
from .layers import Place, adapters_of, canonical, factors_of, lora_layers, places_of
from .refusals import require_adapters, require_in_memory, require_unmerged
from .stacking import fuse_places
from .turning import is_as_left, kept_of, remember, turn


@dataclass(frozen=True, slots=True)
class LiveFusion:
    """What a fusion in a live model did.

    ``fused`` counts layers that several adapters change, ``passed`` those of one adapter alone; ``parameters`` are the
    values with which it was made, ``overrides`` those of parts of the model. ``squeezed`` says what compressing did to
    each layer.
    """

    name: str
    adapters: tuple[str, ...]
    method: str
    parameters: Mapping[str, object]
    fused: int
    passed: int
    overlaps: tuple[Overlap, ...]
    squeezed: tuple[Squeezed, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)

    @property
    def summary(self) -> Summary:
        """The overlap of the adapters that give way with what they give way to; empty for a merge."""
        return summarise(self.overlaps)

    @property
    def sentence(self) -> str:
        """What it did, in a sentence for each adapter that gives way, and what compressing cost."""
        return self._met + self._compressed

    @property
    def _met(self) -> str:
        by_role: dict[str, list[Overlap]] = {}
        for overlap in self.overlaps:
            by_role.setdefault(overlap.role, []).append(overlap)
        if not by_role:
            names = " and ".join(self.adapters)
            return f"{names} by {self.method}: {self.fused} layers fused, {self.passed} of one adapter alone."
        said = {role: self._meeting(met, role) for role, met in by_role.items()}
        text = " ".join(text if len(self.adapters) == 2 else f"{role}: {text}" for role, text in said.items())
        return text if self.method == "np" else f"{find_method(self.method).title}. {text}"

    def _meeting(self, met: list[Overlap], role: str) -> str:
        if self.method != "np":
            return overlap_sentence(summarise(met), met, role)
        mu, limit = (float(str(self.parameters[name])) for name in ("mu", "calibrate"))
        return sentence(summarise(met), mu, met, role, limit, self.overrides.told("mu", mu))

    @property
    def _compressed(self) -> str:
        if not self.squeezed:
            return ""
        found = squeezed_total(self.squeezed)
        return (
            f" Compressed from {found['ranks_before']} ranks in all to {found['ranks']}, relative error "
            f"{found['relative_error']:.2e}."
        )

    @property
    def advice(self) -> str:
        """What to do with mu, given the overlap."""
        if "mu" not in self.parameters:
            return ""
        return advice(self.summary).replace("--subject-strength", "subject_strength").replace("--style", "style")


def options_of(method: Method | Merge, count: int) -> tuple[Parameter, ...]:
    """What a live fusion of so many adapters by a method understands."""
    own = {parameter.name for parameter in method.options}  # a merge's rank is also what its result is compressed to
    common = (
        *(PAIR_ONLY if count == 2 else ()),
        STRENGTHS,
        OVERRIDES,
        RANK,
        ENERGY,
        ERROR,
        KEEP_STYLE,
        ALLOW_NONFINITE,
    )
    return (*method.options, *(parameter for parameter in common if parameter.name not in own))


def chosen_adapters(adapters: tuple[str, ...], subject: str | None, style: str | None) -> tuple[str, ...]:
    """The adapters that a call names, in one of its two ways.

    Raises:
        UsageError: in neither, in both, or fewer than two.
    """
    pair = tuple(name for name in (subject, style) if name is not None)
    if (adapters and pair) or len(adapters or pair) < 2:
        raise UsageError(
            "name the adapters to fuse", expected="subject=... and style=..., or two names and more in order",
            got=", ".join((*adapters, *pair)) or "none",
        )  # fmt: skip
    return adapters or pair


def fuse_models(
    models: Mapping[str, Any], adapters: tuple[str, ...], method: str, name: str, given: Mapping[str, object]
) -> LiveFusion:
    """Fuse adapters in every model that has one of them, as a new adapter of each; nothing where one fails.

    Args:
        models: component name (or "") -> model with PEFT layers.
        adapters: names of loaded adapters; of two the first is the subject, the second the style.
        method: of `nplora methods`.
        name: of the new adapter.
        given: options of the method, strengths, how far to compress, allow_nonfinite.

    Raises:
        UsageError: an adapter is unknown, the name is taken, an option is out of range, or nothing is left.
        InputError: an adapter is of a kind that cannot be fused in a model, or holds NaN or infinity.
    """
    chosen = find_method(method)
    options = options_of(chosen, len(adapters))
    values = check_all(options, given)
    overrides = read_overrides(values["overrides"], options)
    values["overrides"] = overrides.texts or None
    require_adapters(models, adapters, name)
    called = dict(zip(roles(2) if len(adapters) == 2 else adapters, adapters, strict=True))
    levels = priorities(values.get("protect"), called)
    goal_of(values, len(adapters))  # what contradicts itself everywhere is said first
    with _arithmetic():
        places = _places(models, called, chosen, values, overrides)
        goals = (goal_of(place.values, len(adapters), place.name) for there in places.values() for place in there)
        require_goal(values, overrides, goals)
        # All numbers first: whatever is wrong with them, no model has been touched.
        made = {label: fuse_places(there, levels, chosen) for label, there in places.items() if there}
        done: list[Any] = []
        try:
            for label, (layers, _) in made.items():
                done.append(models[label])
                inject(models[label], name, {path: layer.factors for path, layer in layers.items()}, adapters)
                for path, layer in lora_layers(inner_model(models[label])):
                    if path in layers and layers[path].kept:
                        remember(layer, name, layers[path].kept)
        except BaseException:
            for model in done:
                remove(model, name)
            raise
    shares = [len(place.shares) for there in places.values() for place in there]
    overlaps = tuple(overlap for _, seen in made.values() for overlap in seen.values())
    told = tuple(one.squeezed for layers, _ in made.values() for one in layers.values() if one.squeezed is not None)
    passed = shares.count(1)
    return LiveFusion(name, adapters, method, values, len(shares) - passed, passed, overlaps, told, overrides)


def _places(
    models: Mapping[str, Any], called: Mapping[str, str], method: Method | Merge, values: Mapping[str, Any],
    overrides: Overrides,
) -> dict[str, list[Place]]:  # fmt: skip
    """The layers of each model in which an adapter is heard, with the options that hold there.

    Raises:
        UsageError: a rule decides nothing, or nothing is left.
    """
    everywhere = {role: float(values.get(f"{role}_strength", 1.0)) for role in called}
    strengths = Strengths(everywhere, read_rules(values["strengths"] or (), called))
    found = {label: places_of(inner_model(model), label, called, strengths) for label, model in models.items()}
    every = [place for there in found.values() for place in there]
    require_used(strengths, {role: [p.canonical for p in every if role in p.owners] for role in called})
    require_reached(overrides, [place.canonical for place in every])
    projects = {*(parameter.name for parameter in method.parameters), "calibrate"}

    def here(place: Place) -> Place:
        others = overrides.at(place.canonical)
        own = tuple(sorted((name, value) for name, value in others.items() if name in projects))
        return replace(place, values={**values, **others}, own=own)

    heard = {label: [here(place) for place in there if place.shares] for label, there in found.items()}
    if not any(heard.values()):
        raise UsageError("nothing is left to fuse", hint="Check the strengths and the adapters' own scales.")
    return heard


def set_mu_models(models: Mapping[str, Any], mu: float | str, name: str, where: str | None = None) -> None:
    """Turn mu of a fused adapter in place; see `moving`.

    Args:
        where: only in this part of the model: a block, a component, the beginning of a module's name, or a glob.

    Raises:
        UsageError: mu is out of range, or there is no such adapter or part, or its method has no mu, or it cannot be
            written at the moment: merged into the base weights, offloaded, swapped for another.
    """
    value = float(str(MU.check(mu)))
    layers = [
        (canonical(label, path), f"{label}.{path}" if label else path, layer)
        for label, model in models.items()
        if name in adapters_of(model)
        for path, layer in lora_layers(inner_model(model))
        if kept_of(layer, name)
    ]
    if not layers:
        raise UsageError(
            f"no adapter {name!r} with a mu is in the model", hint="Make one first: fuse_adapters(...) with method np."
        )
    chosen = [one for one in layers if where is None or selects(where, one[0])]
    if not chosen:
        raise UsageError(
            f"mu turns nowhere in {where}", expected=f"one of {', '.join(words_for(known for known, _, _ in layers))}",
            hint='A module\'s name, its beginning, or a glob such as "*.attn1.*" will do as well.',
        )  # fmt: skip
    for _, path, layer in chosen:
        require_unmerged(layer, path, [one for one in layer.merged_adapters if one == name])
        require_in_memory(*factors_of(layer, name), path)
    with _arithmetic():
        if not is_as_left(layers[0][2], name):
            raise UsageError(
                f"the adapter {name!r} has been changed since it was fused", hint="Fuse again, under another name."
            )
        for _, path, layer in chosen:
            turn(path, layer, name, value)


@contextmanager
def _arithmetic() -> Iterator[None]:
    """No gradients, and tensors that may be written later although the caller is in inference mode."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield
