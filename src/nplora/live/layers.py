"""What the adapters in a live model add to its layers, as PEFT's own layers hold it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fusion.jobs import Values
from ..fusion.strengths import Strengths
from .refusals import require_in_memory, require_plain_config, require_plain_layer, require_unmerged

# A CLIP text encoder has no part `text_model` any more; files go on naming it.
CLIP = re.compile(r"(encoder\.layers|embeddings|final_layer_norm)\.")


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
    """A layer that some of the adapters change, with each one's share of it, by what the adapters are called.

    ``silent`` are those whose strength is 0 here. ``values`` are the options that hold here, ``own`` those of a
    projection that are others than elsewhere.
    """

    name: str  # for people: component and path
    canonical: str  # what files call it
    path: str  # inside the model
    shares: Mapping[str, Share]
    silent: frozenset[str] = frozenset()
    values: Mapping[str, Any] = field(default_factory=dict)
    own: Values = ()

    @property
    def owners(self) -> frozenset[str]:
        """All adapters that change the layer."""
        return self.silent.union(self.shares)


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


def canonical(label: str, path: str) -> str:
    """What files call a layer: by this name rules find it, and merges with randomness take their seed from it.

    >>> canonical("text_encoder", "encoder.layers.0.mlp.fc1"), canonical("", "model.layers.0.mlp.up_proj")
    ('text_encoder.text_model.encoder.layers.0.mlp.fc1', 'unknown.model.layers.0.mlp.up_proj')
    """
    clip = label.startswith("text_encoder") and CLIP.match(path)
    return f"{label or 'unknown'}.{'text_model.' if clip else ''}{path}"


def places_of(model: Any, label: str, adapters: Mapping[str, str], strengths: Strengths) -> list[Place]:
    """The layers of a model that the named adapters change, with those in which none is to be heard.

    Args:
        model: a module with PEFT layers in it.
        label: the component's name; may be empty.
        adapters: what they are called in rules -> name in the model, in their order.
        strengths: what multiplies each product, by what the adapters are called and the layer's canonical name.

    Raises:
        InputError: an adapter is of a kind that has no plain factors; the message names adapter and layer.
        UsageError: adapters are merged into the base weights at the moment.
    """
    configs = adapters_of(model)
    for adapter in adapters.values():
        if adapter in configs:
            require_plain_config(configs[adapter], adapter, label)
    places = []
    for path, layer in lora_layers(model):
        name, known = f"{label}.{path}" if label else path, canonical(label, path)
        present = {role: a for role, a in adapters.items() if a in layer.lora_A or a in layer.lora_embedding_A}
        found = {role: _share(layer, a, name, strengths.of(role, known)) for role, a in present.items()}
        shares = {role: share for role, share in found.items() if share.factor}
        if shares:
            require_unmerged(layer, name, layer.merged_adapters)
        if found:
            places.append(Place(name, known, path, shares, frozenset(found.keys() - shares.keys())))
    return places


def _share(layer: Any, adapter: str, name: str, strength: float) -> Share:
    """The adapter's share of a layer."""
    require_plain_layer(layer, adapter, name)
    up, down = factors_of(layer, adapter)
    require_in_memory(up, down, name)
    scale = float(layer.scaling[adapter])
    up, down = _without_padding(up.detach().flatten(1), down.detach().flatten(1), int(layer.r[adapter]))
    held = (Held(matrix, (f"{name} ({adapter}, {side})",)) for side, matrix in (("up", up), ("down", down)))
    return Share(next(held), next(held), strength, scale)


def factors_of(layer: Any, adapter: str) -> tuple[Any, Any]:
    """The parameters up and down of an adapter that the layer has, in the layer's own shapes."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
    return layer.lora_B[adapter].weight, layer.lora_A[adapter].weight


def _without_padding(up: Any, down: Any, rank: int) -> tuple[Any, Any]:
    """The factors without the ranks of zeros that `enable_lora_hotswap` adds."""
    if down.shape[0] > rank and not (bool(up[:, rank:].any()) or bool(down[rank:].any())):
        return up[:, :rank], down[:rank]
    return up, down
