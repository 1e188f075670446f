"""diffusers 0.22 to 0.27 and its scripts: ``.lora.down``, and ``.lora_linear_layer.down`` in text encoders."""

from __future__ import annotations

from ..layouts import Layout, Part
from . import Format, Place, Spelling, strip_prefix
from .diffusers import PREFIXES

SUFFIXES = (".lora.", ".lora_linear_layer.")


def locate(module: str, suffix: str) -> Place | None:
    if not suffix.startswith(SUFFIXES):
        return None
    return strip_prefix(module, PREFIXES) or Place(None, module)


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    # Text encoders had a suffix of their own, which is kept but never invented.
    known = component != "unknown" and not component.startswith("text_encoder")
    return Spelling(f"{component}.{name}", (Part(name),)) if known else None


FORMAT = Format(
    name="diffusers-linear",
    title="diffusers (2023 linear layers)",
    example="unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora.down.weight", "up": ".lora.up.weight"},
    keeps_others=False,
)
