"""One more PEFT adapter in a model: its config, its layers, its numbers."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layers import adapters_of, lora_layers, uncompiled


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The factors of a new adapter in one layer: up (out, r), down (r, n), of which the product is the whole update."""

    up: Any
    down: Any

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def inject(model: Any, name: str, layers: Mapping[str, Factors], like: Sequence[str]) -> None:
    """Add an adapter to a model. After an error, `remove` takes out what came to be.

    Args:
        model: a `peft.PeftModel`, or any module into which PEFT has injected adapters (as diffusers does).
        name: of the new adapter.
        layers: path -> factors. Paths are those of the model that PEFT wraps.
        like: adapters whose base model, task and layout the config repeats.
    """
    from peft import PeftModel, inject_adapter_in_model

    inner = inner_model(model)
    config = config_for(inner, {path: factors.rank for path, factors in layers.items()}, _shared(model, like))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # that is what is meant here
        if isinstance(model, PeftModel):
            model.add_adapter(name, config, low_cpu_mem_usage=True)
        else:
            inject_adapter_in_model(config, inner, name, low_cpu_mem_usage=True)
    found = dict(lora_layers(inner))
    for path, factors in layers.items():
        _write(found[path], name, factors)


def inner_model(model: Any) -> Any:
    """The model whose layers PEFT replaced: what a PeftModel wraps, else the model itself; never a compiled one."""
    from peft import PeftModel

    model = uncompiled(model)
    return model.base_model.model if isinstance(model, PeftModel) else model


def config_for(model: Any, ranks: Mapping[str, int], shared: Mapping[str, Any]) -> Any:
    """A `peft.LoraConfig` that names exactly these layers, with scaling 1 in each: ``alpha = r``.

    The rank that most layers have is ``r``; the others stand in rank_pattern and alpha_pattern, anchored, because PEFT
    matches a pattern's key against the end of a path.
    """
    from peft import LoraConfig

    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common, lora_alpha=common, rank_pattern=dict(others), alpha_pattern=dict(others),
        target_modules=_targets(model, list(ranks)), lora_dropout=0.0, bias="none", inference_mode=True, **shared,
    )  # fmt: skip


def _targets(model: Any, paths: Sequence[str]) -> list[str] | str:
    """The paths as a list where PEFT, which matches ends of paths, cannot take another layer for one of them."""
    asked = set(paths)
    suffixes = tuple(f".{path}" for path in paths)
    internal = (".base_layer", ".lora_", ".modules_to_save", ".original_module")
    for path, _ in model.named_modules():
        if path not in asked and path.endswith(suffixes) and not any(part in path for part in internal):
            return f"(?:{'|'.join(re.escape(path) for path in paths)})"
    return list(paths)


def _shared(model: Any, adapters: Sequence[str]) -> dict[str, Any]:
    configs = adapters_of(model)
    fields = ("base_model_name_or_path", "task_type", "revision", "fan_in_fan_out")
    values = {f: [getattr(configs[a], f, None) for a in adapters if a in configs] for f in fields}
    return {field: next((value for value in found if value), None) for field, found in values.items()} | {
        "fan_in_fan_out": any(values["fan_in_fan_out"])
    }


def _write(layer: Any, name: str, factors: Factors) -> None:
    from torch.nn import Parameter

    def parameter(matrix: Any, like: Any) -> Any:
        return Parameter(matrix.reshape(like.shape), requires_grad=False)

    if name in layer.lora_embedding_A:
        layer.lora_embedding_A[name] = parameter(factors.down, layer.lora_embedding_A[name])
        layer.lora_embedding_B[name] = parameter(factors.up, layer.lora_embedding_B[name])
    else:
        down, up = layer.lora_A[name], layer.lora_B[name]
        down.weight, up.weight = parameter(factors.down, down.weight), parameter(factors.up, up.weight)


def remove(model: Any, name: str) -> None:
    """Take an adapter out of a model, wherever it has come to be; nothing where it is unknown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")  # the caller hears the error
        for _, layer in lora_layers(inner_model(model)):
            if name in layer.scaling:
                layer.delete_adapter(name)
    configs = getattr(model, "peft_config", None)
    if configs is not None:
        configs.pop(name, None)
