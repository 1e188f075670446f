"""PEFT folders: ``base_model.model.<path>`` beside an adapter_config.json."""

from __future__ import annotations

import json

from ..errors import UsageError
from ..layouts import Layout, Part
from . import Description, Format, Place, Spelling, Written, strip_prefix
from .diffusers import PREFIXES as COMPONENTS
from .patterns import ranks_and_alphas

WRAPPERS = ("unet.base_model.model.", "transformer.base_model.model.", "base_model.model.")


def locate(module: str, suffix: str) -> Place | None:
    for wrapper in WRAPPERS:
        if module.startswith(wrapper):
            body = module[len(wrapper) :]
            # What was wrapped may be a pipeline whose parts keep their names, or one bare model.
            return strip_prefix(body, [pair for pair in COMPONENTS if pair[0] != "transformer."]) or Place(None, body)
    return None


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    return Spelling(f"base_model.model.{name}", (Part(name),))


KEPT = ("base_model_name_or_path", "task_type", "fan_in_fan_out", "bias", "revision")
DEFAULTS: dict[str, object] = {
    "peft_type": "LORA", "base_model_name_or_path": None, "task_type": None, "fan_in_fan_out": False, "bias": "none",
    "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0, "use_dora": False, "use_rslora": False,
    "modules_to_save": None,
}  # fmt: skip


def describe(written: Written) -> Description:
    """The adapter_config.json of a folder that holds one component.

    Raises:
        UsageError: the adapter changes several components, which one PEFT folder cannot hold.
    """
    components = written.components
    if len(components) > 1:
        raise UsageError(
            "a PEFT folder holds one component", expected="one", got=", ".join(components),
            hint=f"Write one folder for each: --components {components[0]}.",
        )  # fmt: skip
    earlier = next((config for config in written.configs if "peft_type" in config or "r" in config), {})
    config = {**DEFAULTS, **{name: earlier[name] for name in KEPT if name in earlier}}
    if components:
        config.update(ranks_and_alphas(written, components[0]))
    if any(key.endswith(".lora_B.bias") for key in written.keys):
        config["lora_bias"] = True
    config["modules_to_save"] = _saved(written) or None
    return Description(beside={"adapter_config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"})


def _saved(written: Written) -> list[str]:
    """The whole modules (heads, embeddings) beside the factors, of all inputs."""
    names = (name for config in written.configs for name in _names(config.get("modules_to_save")))
    return [name for name in dict.fromkeys(names) if any(f".{name}." in key for key in written.keys)]


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


FORMAT = Format(
    name="peft",
    title="PEFT",
    example="base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".lora_B.bias"},
    scale="config",
    folder="adapter_model.safetensors",
    describe=describe,
)
