"""Fuse adapters of one or several live models and turn mu afterwards; what the front ends share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError
from ..methods import Merge, Method, Part, all_merges, all_methods
from ..overlap import Summary, advice, sentence, summarise
from ..parameters import ALLOW_NONFINITE, MU, SIDE, STYLE_STRENGTH, SUBJECT_STRENGTH, Parameter, check_all
from ..projection import Job, Overlap, check_finite
from .injection import Factors, inject, inner_model, remove
from .layers import Held, Place, adapters_of, lora_layers, places_of, require_adapters
from .moving import Moving, compute, wide

# What every live fusion understands, before the method's own parameters.
SHARED = (SUBJECT_STRENGTH, STYLE_STRENGTH, ALLOW_NONFINITE)


@dataclass(frozen=True, slots=True)
class LiveFusion:
    """What a fusion in a live model did.

    ``fused`` counts layers that both adapters change, ``passed`` those of one adapter alone.
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
        """The overlap of the pair; empty for a merge, which projects nothing."""
        return summarise(self.overlaps)

    @property
    def sentence(self) -> str:
        """What it did, in one sentence (the overlap does not change when mu is turned)."""
        if "mu" not in self.parameters:
            return (
                f"{self.method} of {', '.join(self.adapters)}: {self.fused} layers fused, {self.passed} of one alone."
            )
        return sentence(self.summary, float(str(self.parameters["mu"])), self.overlaps)

    @property
    def advice(self) -> str:
        """What to do with mu, given the overlap."""
        return advice(self.summary)


def parameters_of(method: Method | Merge) -> tuple[Parameter, ...]:
    """What a live fusion by a method understands."""
    own = (*method.parameters, SIDE) if isinstance(method, Method) else method.parameters
    return (*own, *SHARED)


def find_method(name: str) -> Method | Merge:
    """A projection or a merge, by name.

    Raises:
        UsageError: there is none; the message lists those that are.
    """
    known: dict[str, Method | Merge] = {**all_methods(), **all_merges()}
    if name not in known:
        raise UsageError(f"no method is called {name!r}", expected=" or ".join(known), hint="See `nplora methods`.")
    return known[name]


def fuse_models(
    models: Mapping[str, Any], subject: str, style: str, method: str, name: str, given: Mapping[str, object]
) -> LiveFusion:
    """Fuse two adapters in every model that has one of them, as a new adapter of each; nothing where one fails.

    Args:
        models: component name (or "") -> model with PEFT layers.
        subject, style: names of loaded adapters.
        method: of `nplora methods`.
        name: of the new adapter.
        given: parameters of the method, strengths, allow_nonfinite.

    Raises:
        UsageError: an adapter is unknown, the name is taken, a parameter is out of range, or nothing is left.
        InputError: an adapter is of a kind that cannot be fused in a model, or holds NaN or infinity.
    """
    chosen = find_method(method)
    values = check_all(parameters_of(chosen), given)
    require_adapters(models, (subject, style), name)
    strengths = (float(str(values["subject_strength"])), float(str(values["style_strength"])))
    overlaps: dict[str, Overlap] = {}
    with _arithmetic():
        found = {
            label: places_of(inner_model(model), label, (subject, style), strengths) for label, model in models.items()
        }
        places = [place for there in found.values() for place in there]
        if not places:
            raise UsageError("nothing is left to fuse", hint="Check the two strengths and the adapters' own scales.")
        # All numbers first: whatever is wrong with them, no model has been touched.
        made = {label: _compute(there, chosen, values) for label, there in found.items() if there}
        done: list[Any] = []
        try:
            for label, (layers, moving, seen) in made.items():
                done.append(models[label])
                inject(models[label], name, layers, (subject, style))
                _remember(models[label], name, moving)
                overlaps |= seen
        except BaseException:
            for model in done:
                remove(model, name)
            raise
    passed = sum(None in place.shares for place in places)
    counts = (len(places) - passed, passed)
    return LiveFusion(name, (subject, style), method, values, *counts, tuple(overlaps.values()))


def set_mu_models(models: Mapping[str, Any], mu: float | str, name: str) -> None:
    """Turn mu of a fused adapter in place; see `moving`.

    Raises:
        UsageError: mu is out of range, or there is no such adapter, or its method has no mu.
    """
    value = float(str(MU.check(mu)))
    known = [label for label, model in models.items() if name in adapters_of(model)]
    layers = [
        (path, layer)
        for label in known
        for path, layer in lora_layers(inner_model(models[label]))
        if _kept(layer, name) is not None
    ]
    if not layers:
        raise UsageError(
            f"no adapter {name!r} with a mu is in the model", hint="Make one first: fuse_adapters(...) with method np."
        )
    with _arithmetic():
        for path, layer in layers:
            moving = _turned(path, layer, name, _kept(layer, name), value)
            layer.lora_dropout[name].nplora = moving
            _put(layer, name, moving)


def _kept(layer: Any, name: str) -> Any:
    return getattr(layer.lora_dropout[name], "nplora", None) if name in layer.lora_dropout else None


def _turned(path: str, layer: Any, name: str, moving: Moving, mu: float) -> Moving:
    up, down = _factors(layer, name)
    moving = moving.on(down.device)
    values = {**moving.values, "mu": mu}
    if moving.method.linear:
        return replace(moving, values=values)
    r = moving.rank
    held = [Held(matrix, (path,)) for matrix in (up[:, :r], down[:r], up[:, r:], down[r:])]
    own = Held(moving.base if moving.side == "input" else moving.base.T, (path,))
    pair = (held[0], own) if moving.side == "input" else (own, held[1])
    job = Job(path, path, pair, (held[2], held[3]), (moving.factor, 1.0), moving.side)
    return compute([job], moving.method, values, allow_nonfinite=True)[0][path]


def _compute(
    places: Sequence[Place], method: Method | Merge, values: Mapping[str, object]
) -> tuple[dict[str, Factors], dict[str, Moving], dict[str, Overlap]]:
    """By path: the new adapter's factors, and what moves with mu; the overlaps."""
    own = {parameter.name: values[parameter.name] for parameter in method.parameters}
    allowed = bool(values["allow_nonfinite"])
    moving: dict[str, Moving] = {}
    overlaps: dict[str, Overlap] = {}
    if isinstance(method, Method):
        moving, overlaps = compute(_jobs(places, str(values["side"])), method, own, allowed)
    layers = {}
    for place in places:
        factors = _merged(place, method, own) if isinstance(method, Merge) else _stacked(place, moving.get(place.name))
        if not allowed:
            _require_finite(place, factors)
        layers[place.path] = factors
    turnable = {place.path: moving[place.name] for place in places if place.name in moving and "mu" in own}
    return layers, turnable, overlaps


def _remember(model: Any, name: str, moving: Mapping[str, Moving]) -> None:
    """Keep what moves beside the adapter, in its dropout module: it goes when the adapter goes, and is never saved."""
    for path, layer in lora_layers(inner_model(model)):
        if path in moving:
            layer.lora_dropout[name].nplora = moving[path]


def _jobs(places: Sequence[Place], side: str) -> Iterator[Job]:
    for place in places:
        subject, style = place.shares
        if subject is not None and style is not None:
            factors = (subject.factor, style.factor)
            pairs = (subject.up, subject.down), (style.up, style.down)
            yield Job(place.name, place.name, *pairs, factors, side)


def _stacked(place: Place, moving: Moving | None) -> Factors:
    """``[w_c B_c, w_s B_s] [A_c'; A_s]``, each number rounded once to the adapters' own type."""
    import torch

    shares = [share for share in place.shares if share is not None]
    ups = [_scaled(share.up.numbers, share.factor) for share in shares]
    downs = [share.down.numbers for share in shares]
    if moving is not None and moving.side == "input":
        downs[0] = moving.now()
    elif moving is not None:
        ups[0] = moving.now().T * moving.factor
    up_type, down_type = (_common([getattr(share, side).numbers for share in shares]) for side in ("up", "down"))
    return Factors(
        torch.cat([up.to(up_type) for up in ups], dim=1), torch.cat([down.to(down_type) for down in downs], dim=0)
    )


def _scaled(tensor: Any, factor: float) -> Any:
    return tensor if factor == 1.0 else wide(tensor) * factor


def _merged(place: Place, method: Merge, values: Mapping[str, object]) -> Factors:
    shares = [share for share in place.shares if share is not None]
    parts = [Part(wide(share.up.numbers), wide(share.down.numbers), share.factor) for share in shares]
    product = method(parts, seed=_seed(place.name), **values)
    up_type, down_type = (_common([getattr(share, side).numbers for share in shares]) for side in ("up", "down"))
    up, down = product.up.to(up_type), product.down.to(down_type)
    if down.shape[0] == 0:  # PEFT has no layer of rank 0
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    return Factors(up, down)


def _seed(name: str) -> int:
    import zlib

    return zlib.crc32(name.encode())


def _common(tensors: Sequence[Any]) -> Any:
    """The type that holds all of them; 8-bit ones count as bfloat16, which is what they are computed in."""
    import torch

    types = [torch.bfloat16 if tensor.element_size() == 1 else tensor.dtype for tensor in tensors]
    found = types[0]
    for other in types[1:]:
        found = torch.promote_types(found, other)
    return found


def _require_finite(place: Place, factors: Factors) -> None:
    import torch

    if bool(torch.isfinite(factors.up).all()) and bool(torch.isfinite(factors.down).all()):
        return
    for share in place.shares:
        if share is not None:
            check_finite(share.up, place.name)
            check_finite(share.down, place.name)
    raise UsageError(
        "a fused number does not fit the adapters' number type", key=place.name, got=str(factors.up.dtype),
        hint="Load the adapters in bfloat16 or float32, or lower the strengths.",
    )  # fmt: skip


def _factors(layer: Any, name: str) -> tuple[Any, Any]:
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_B[name].detach(), layer.lora_embedding_A[name].detach()
    return layer.lora_B[name].weight.detach().flatten(1), layer.lora_A[name].weight.detach().flatten(1)


def _put(layer: Any, name: str, moving: Moving) -> None:
    """Write what moved into the adapter's own tensor, which keeps its place in memory."""
    embedded = name in layer.lora_embedding_A
    if moving.side == "input":
        target = (layer.lora_embedding_A[name] if embedded else layer.lora_A[name].weight)[: moving.rank]
        value = moving.now()
    else:
        target = (layer.lora_embedding_B[name] if embedded else layer.lora_B[name].weight)[:, : moving.rank]
        value = moving.now().T * moving.factor
    target.copy_(value.reshape(target.shape))


@contextmanager
def _arithmetic() -> Iterator[None]:
    """No gradients, and tensors that may be written later although the caller is in inference mode."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield
