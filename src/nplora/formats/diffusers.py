"""diffusers' present naming: component, canonical path, lora_A and lora_B."""

from __future__ import annotations

import json
from dataclasses import replace

from ..layouts import Layout, Part
from . import Description, Format, Place, Spelling, Written, strip_prefix
from .patterns import ranks_and_alphas

PREFIXES = (
    ("unet.", "denoiser"), ("transformer.", "denoiser"), ("prior.", "denoiser"),
    ("text_encoder.", "te1"), ("text_encoder_2.", "te2"), ("text_encoder_3.", "te3"),
)  # fmt: skip
SUFFIXES = (".lora_A", ".lora_B", ".lora_magnitude_vector", ".alpha", ".diff")


def locate(module: str, suffix: str) -> Place | None:
    return strip_prefix(module, PREFIXES) if suffix.startswith(SUFFIXES) and ".processor." not in module else None


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    return Spelling(f"{component}.{name}", (Part(name),)) if component != "unknown" else None


def describe(written: Written) -> Description:
    """``lora_adapter_metadata``, where ranks differ: diffusers before 0.40 would apply the first rank to all.

    It speaks of every component then: diffusers takes PEFT's defaults for one that it says nothing of. Components are
    called as the file's keys call them, which for a model that is not recognised is all there is.
    """
    names = {name: written.modules.get(name, name) for name in written.ranks}
    if any(f"{name.partition('.')[0]}." not in dict(PREFIXES) for name in names.values()):
        return Description()
    ranks = {names[name]: rank for name, rank in written.ranks.items()}
    written = replace(written, ranks=ranks, scales={names[name]: scale for name, scale in written.scales.items()})
    configs = {component: ranks_and_alphas(written, component) for component in written.components}
    table: dict[str, object] = {}
    if any(config["rank_pattern"] for config in configs.values()):
        for component, config in configs.items():
            biased = any(key.startswith(f"{component}.") and key.endswith(".lora_B.bias") for key in written.keys)
            fields = config | ({"lora_bias": True} if biased else {})
            table.update({f"{component}.{name}": value for name, value in fields.items()})
    return Description({"lora_adapter_metadata": json.dumps(table, sort_keys=True)} if table else {})


FORMAT = Format(
    name="diffusers",
    title="diffusers",
    example="unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".lora_B.bias"},
    scale="folded",
    keeps_others=False,
    describe=describe,
)
