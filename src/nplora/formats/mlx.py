"""Apple MLX: factors stored transposed, the scale in the config beside them."""

from __future__ import annotations

from ..layouts import Layout, Part
from . import Format, Place, Spelling


def locate(module: str, suffix: str) -> Place | None:
    return Place(None, module) if suffix in (".lora_a", ".lora_b") else None


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    return Spelling(name, (Part(name),))


FORMAT = Format(
    name="mlx",
    title="Apple MLX",
    example="model.layers.14.self_attn.q_proj.lora_a",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_a", "up": ".lora_b"},
    scale="config",
    config="mlx",
    transposed=True,
    weight=1.5,
)
