"""PEFT folders: ``base_model.model.<path>`` beside an adapter_config.json."""

from __future__ import annotations

from ..layouts import Layout, Part
from . import Format, Place, Spelling, strip_prefix
from .diffusers import PREFIXES as COMPONENTS

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


FORMAT = Format(
    name="peft",
    title="PEFT",
    example="base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".lora_B.bias"},
    scale="config",
    config="peft",
)
