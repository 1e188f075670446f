"""What cannot be fused in a model, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, UsageError

# What makes an adapter more than low-rank updates of weights, by its field of the config, in words.
REFUSED = {
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "bare parameters instead of layers",
}


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


def require_plain_layer(layer: Any, adapter: str, name: str) -> None:
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


def require_adapters(models: Mapping[str, Any], asked: tuple[str, ...], new: str) -> None:
    """Every adapter asked for is there, and the new name is free.

    Raises:
        UsageError: an unknown adapter, one adapter twice, or a name that is taken.
    """
    known = list(dict.fromkeys(name for model in models.values() for name in getattr(model, "peft_config", None) or ()))
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
