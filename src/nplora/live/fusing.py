"""Fuse adapters of one or several live models and turn mu afterwards; what the front ends share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..fusion.overlap import Summary, advice, sentence, summarise
from ..fusion.projection import Overlap
from ..fusion.protection import priorities
from ..fusion.roles import roles
from ..methods import Merge, Method, find_method
from ..parameters import ALLOW_NONFINITE, MU, PAIR_ONLY, Parameter, check_all
from .injection import inject, inner_model, remove
from .layers import (
    adapters_of,
    factors_of,
    lora_layers,
    places_of,
    require_adapters,
    require_in_memory,
    require_unmerged,
)
from .stacking import fuse_places
from .turning import is_as_left, kept_of, remember, turn


@dataclass(frozen=True, slots=True)
class LiveFusion:
    """What a fusion in a live model did.

    ``fused`` counts layers that several adapters change, ``passed`` those of one adapter alone; ``parameters`` are the
    values with which it was made.
    """

    name: str
    adapters: tuple[str, ...]
    method: str
    parameters: Mapping[str, object]
    fused: int
    passed: int
    overlaps: tuple[Overlap, ...]

    @property
    def summary(self) -> Summary:
        """The overlap of the adapters that give way with what they give way to; empty for a merge."""
        return summarise(self.overlaps)

    @property
    def sentence(self) -> str:
        """What it did, in a sentence for each adapter that gives way."""
        mu = float(str(self.parameters.get("mu", 0.0)))
        by_role: dict[str, list[Overlap]] = {}
        for overlap in self.overlaps:
            by_role.setdefault(overlap.role, []).append(overlap)
        if not by_role:
            names = " and ".join(self.adapters)
            return f"{names} by {self.method}: {self.fused} layers fused, {self.passed} of one adapter alone."
        limit = float(str(self.parameters.get("calibrate", 1.0)))
        said = {role: sentence(summarise(met), mu, met, role, limit) for role, met in by_role.items()}
        return " ".join(text if len(self.adapters) == 2 else f"{role}: {text}" for role, text in said.items())

    @property
    def advice(self) -> str:
        """What to do with mu, given the overlap."""
        return advice(self.summary) if "mu" in self.parameters else ""


def options_of(method: Method | Merge, count: int) -> tuple[Parameter, ...]:
    """What a live fusion of so many adapters by a method understands."""
    return (*method.options, *(PAIR_ONLY if count == 2 else ()), ALLOW_NONFINITE)


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
        given: options of the method, the two strengths, allow_nonfinite.

    Raises:
        UsageError: an adapter is unknown, the name is taken, an option is out of range, or nothing is left.
        InputError: an adapter is of a kind that cannot be fused in a model, or holds NaN or infinity.
    """
    chosen = find_method(method)
    values = check_all(options_of(chosen, len(adapters)), given)
    require_adapters(models, adapters, name)
    called = roles(2) if len(adapters) == 2 else adapters
    levels = priorities(values.get("protect"), dict(zip(called, adapters, strict=True)))
    strengths = tuple(float(str(values.get(f"{role}_strength", 1.0))) for role in called)
    overlaps: dict[str, Overlap] = {}
    with _arithmetic():
        found = {label: places_of(inner_model(model), label, adapters, strengths) for label, model in models.items()}
        places = [place for there in found.values() for place in there]
        if not places:
            raise UsageError("nothing is left to fuse", hint="Check the strengths and the adapters' own scales.")
        # All numbers first: whatever is wrong with them, no model has been touched.
        made = {label: fuse_places(there, called, levels, chosen, values) for label, there in found.items() if there}
        done: list[Any] = []
        try:
            for label, (layers, moving, seen) in made.items():
                done.append(models[label])
                inject(models[label], name, layers, adapters)
                for path, layer in lora_layers(inner_model(models[label])):
                    if path in moving:
                        remember(layer, name, moving[path])
                overlaps |= seen
        except BaseException:
            for model in done:
                remove(model, name)
            raise
    passed = sum(len(place.shares) - place.shares.count(None) == 1 for place in places)
    return LiveFusion(name, adapters, method, values, len(places) - passed, passed, tuple(overlaps.values()))


def set_mu_models(models: Mapping[str, Any], mu: float | str, name: str) -> None:
    """Turn mu of a fused adapter in place; see `moving`.

    Raises:
        UsageError: mu is out of range, or there is no such adapter, or its method has no mu, or it cannot be written at
            the moment: merged into the base weights, offloaded, swapped for another.
    """
    value = float(str(MU.check(mu)))
    layers = [
        (f"{label}.{path}" if label else path, layer)
        for label, model in models.items()
        if name in adapters_of(model)
        for path, layer in lora_layers(inner_model(model))
        if kept_of(layer, name)
    ]
    if not layers:
        raise UsageError(
            f"no adapter {name!r} with a mu is in the model", hint="Make one first: fuse_adapters(...) with method np."
        )
    for path, layer in layers:
        require_unmerged(layer, path, [one for one in layer.merged_adapters if one == name])
        require_in_memory(*factors_of(layer, name), path)
    with _arithmetic():
        if not is_as_left(layers[0][1], name):
            raise UsageError(
                f"the adapter {name!r} has been changed since it was fused", hint="Fuse again, under another name."
            )
        for path, layer in layers:
            turn(path, layer, name, value)


@contextmanager
def _arithmetic() -> Iterator[None]:
    """No gradients, and tensors that may be written later although the caller is in inference mode."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield
