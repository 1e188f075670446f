"""What the adapters in a live model add to its layers, as PEFT's own layers hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError

# What makes an adapter more than low-rank updates of weights, by its field of the config, in words.
REFUSED = {
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "bare parameters instead of layers",
}


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A factor of a PEFT layer as a matrix: the model's own numbers, on their device."""

    numbers: Any  # (rows, columns)
    keys: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.numbers.shape
        return int(rows), int(columns)

    @property
    def dtype(self) -> str:
        """What must be equal for matrices to be stacked: number type and device."""
        return f"{self.numbers.dtype} on {self.numbers.device}"

    def read(self) -> NDArray[np.generic]:
        """The numbers on the host, in float32 or float64."""
        wide = self.numbers.detach().cpu()
        return np.asarray((wide if wide.element_size() == 8 else wide.float()).numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one adapter adds to a layer's weight: ``strength * scale * up @ down``, up (out, r), down (r, n)."""

    up: Held
    down: Held
    strength: float
    scale: float  # PEFT's scaling at the moment

    @property
    def factor(self) -> float:
        return self.strength * self.scale

    @property
    def rank(self) -> int:
        return self.up.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A layer that some of the adapters change, with each adapter's share of it (None where it has none)."""

    name: str  # for people: component and path
    path: str  # inside the model
    layer: Any
    shares: tuple[Share | None, ...]


def adapters_of(model: Any) -> dict[str, Any]:
    """Adapter name -> PEFT config."""
    return dict(getattr(model, "peft_config", None) or {})


def uncompiled(model: Any) -> Any:
    """The model that `torch.compile(model)` wraps, which shares its weights; else the model itself."""
    return getattr(model, "_orig_mod", model)


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that PEFT has given a LoRA."""
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def places_of(model: Any, label: str, adapters: tuple[str, ...], strengths: tuple[float, ...]) -> list[Place]:
    """The layers of a model that the named adapters change.

    Args:
        model: a module with PEFT layers in it.
        label: the component's name, for messages; may be empty.
        adapters, strengths: names, and what multiplies each product.

    Raises:
        InputError: an adapter is of a kind that has no plain factors; the message names adapter and layer.
        UsageError: adapters are merged into the base weights at the moment.
    """
    configs = adapters_of(model)
    for adapter in adapters:
        if adapter in configs:
            require_plain_config(configs[adapter], adapter, label)
    places = []
    for path, layer in lora_layers(model):
        name = f"{label}.{path}" if label else path
        shares = tuple(_share(layer, a, name, strength) for a, strength in zip(adapters, strengths, strict=True))
        if any(share is not None for share in shares):
            require_unmerged(layer, name, layer.merged_adapters)
            places.append(Place(name, path, layer, shares))
    return places


def require_plain_config(config: Any, adapter: str, label: str) -> None:
    """Refuse adapters that do more than add low-rank updates to weights.

    Raises:
        InputError: with the adapter's name and what it holds.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    where = f"adapter {adapter}" + (f" in {label}" if label else "")
    if kind != "LORA":
        raise InputError(
            "only LoRA adapters can be fused in a model", key=where, expected="LORA", got=kind,
            hint="Fuse its file with nplora.fuse, which reads more kinds, and load the result.",
        )  # fmt: skip
    found = [words for field, words in REFUSED.items() if getattr(config, field, None)]
    if getattr(config, "bias", "none") != "none":
        found.append("trained biases of the base model")
    if found:
        raise InputError(
            f"the adapter has {' and '.join(found)}, of which a fusion can keep only one adapter's", key=where,
            hint="Fuse adapters that hold LoRA factors alone.",
        )  # fmt: skip


def _share(layer: Any, adapter: str, name: str, strength: float) -> Share | None:
    """The adapter's share of a layer; None where it has none, or none that can be seen."""
    if adapter not in layer.lora_embedding_A and adapter not in layer.lora_A:
        return None
    _require_plain_layer(layer, adapter, name)
    up, down = factors_of(layer, adapter)
    require_in_memory(up, down, name)
    scale = float(layer.scaling[adapter])
    if strength * scale == 0:
        return None
    up, down = _without_padding(up.detach().flatten(1), down.detach().flatten(1), int(layer.r[adapter]))
    held = (Held(matrix, (f"{name} ({adapter}, {side})",)) for side, matrix in (("up", up), ("down", down)))
    return Share(next(held), next(held), strength, scale)


def factors_of(layer: Any, adapter: str) -> tuple[Any, Any]:
    """The parameters up and down of an adapter that the layer has, in the layer's own shapes."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
    return layer.lora_B[adapter].weight, layer.lora_A[adapter].weight


def require_unmerged(layer: Any, name: str, merged: Sequence[str]) -> None:
    """Refuse a layer whose base weight holds adapters at the moment: it is not the base's, and would be left so.

    Raises:
        UsageError: with the layer and the adapters.
    """
    if merged:
        raise UsageError(
            "adapters are merged into the base weights", key=name, got=", ".join(merged),
            hint="Take them out first: pipe.unfuse_lora() in diffusers, model.unmerge_adapter() in PEFT.",
        )  # fmt: skip


def require_in_memory(up: Any, down: Any, name: str) -> None:
    """Refuse factors that offloading keeps elsewhere.

    Raises:
        UsageError: with the layer.
    """
    if "meta" in {up.device.type, down.device.type}:
        raise UsageError(
            "the adapter's numbers are not in memory", key=name, got="device meta",
            hint="Take the offloading off, and put it on again afterwards.",
        )  # fmt: skip


def _without_padding(up: Any, down: Any, rank: int) -> tuple[Any, Any]:
    """The factors without the ranks of zeros that `enable_lora_hotswap` adds."""
    if down.shape[0] > rank and not (bool(up[:, rank:].any()) or bool(down[rank:].any())):
        return up[:, :rank], down[:rank]
    return up, down


def _require_plain_layer(layer: Any, adapter: str, name: str) -> None:
    base = layer.get_base_layer()
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    reason = None
    if variant is not None or layer.use_dora.get(adapter):
        kind = "DoRA" if layer.use_dora.get(adapter) else type(variant).__name__.removesuffix("Variant")
        reason = f"{kind} is more than two factors"
    elif layer.lora_bias.get(adapter):
        reason = "its LoRA has a bias (lora_bias=True)"
    elif getattr(base, "groups", 1) > 1:
        reason = "grouped convolutions have no plain factors"
    elif type(layer).__name__ in {"MultiheadAttention", "ParamWrapper"}:
        reason = f"PEFT's {type(layer).__name__} layers are not supported"
    if reason:
        raise InputError(
            f"this layer cannot be fused in a model: {reason}", key=name, got=f"adapter {adapter}",
            hint="Fuse the files with nplora.fuse, or train without it.",
        )  # fmt: skip


def require_adapters(models: Mapping[str, Any], asked: tuple[str, ...], new: str) -> None:
    """Every adapter asked for is there, and the new name is free.

    Raises:
        UsageError: an unknown adapter, one adapter twice, or a name that is taken.
    """
    known = list(dict.fromkeys(name for model in models.values() for name in adapters_of(model)))
    for name in asked:
        if name not in known:
            raise UsageError(
                f"no adapter is called {name!r}", expected=" or ".join(known) or "a model with adapters in it",
                hint="Load it first: pipe.load_lora_weights(..., adapter_name=...), model.load_adapter(..., "
                "adapter_name=...).",
            )  # fmt: skip
    if len(set(asked)) < len(asked):
        raise UsageError(
            "an adapter cannot be fused with itself", got=", ".join(asked), hint="Name different adapters."
        )
    if new in known:
        raise UsageError(
            f"an adapter is called {new!r} already", hint="Choose another name, or delete that adapter first."
        )
