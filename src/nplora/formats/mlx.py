"""Apple MLX: factors stored transposed, the scale in the config beside them."""

from __future__ import annotations

import json

from ..layouts import Layout, Part
from . import Description, Format, Place, Spelling, Written


def locate(module: str, suffix: str) -> Place | None:
    return Place(None, module) if suffix in (".lora_a", ".lora_b") else None


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    return Spelling(name, (Part(name),))


def describe(written: Written) -> Description:
    """MLX's config: one rank and one scale (1, the factors carry it) for all modules."""
    config = dict(next(iter(written.configs), {}))
    rank = max(written.ranks.values(), default=0)
    config["lora_parameters"] = {"rank": rank, "alpha": rank, "dropout": 0.0, "scale": 1.0}
    return Description(beside={"adapter_config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"})


FORMAT = Format(
    name="mlx",
    title="Apple MLX",
    example="model.layers.14.self_attn.q_proj.lora_a",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_a", "up": ".lora_b"},
    folder="adapters.safetensors",
    describe=describe,
    one_rank=True,
    transposed=True,
    weight=1.5,
)
