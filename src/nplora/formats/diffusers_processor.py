"""diffusers' first naming: attention processors, ``attn1.processor.to_q_lora.down.weight``."""

from __future__ import annotations

import re

from ..layouts import Layout, Part
from . import Format, Place, Spelling, strip_prefix
from .diffusers import PREFIXES

# In old text-encoder files ``self_attn.to_q_lora`` means q_proj.
TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def locate(module: str, suffix: str) -> Place | None:
    if not suffix.startswith("_lora."):
        return None
    place = strip_prefix(module, PREFIXES) or Place(None, module)
    path, _, leaf = place.body.replace(".processor.", ".").rpartition(".")
    if path.endswith("self_attn"):
        return Place(place.slot or "te1", f"{path}.{TEXT.get(leaf, leaf)}")
    return Place(place.slot or "denoiser", f"{path}.to_out.0" if leaf == "to_out" else f"{path}.{leaf}")


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    match = re.fullmatch(r"(.*attn\d)\.(to_q|to_k|to_v|to_out)(?:\.0)?", name)
    if match is None:  # the naming has no word for anything but attention
        return None
    return Spelling(f"{component}.{match[1]}.processor.{match[2]}", (Part(name),))


FORMAT = Format(
    name="diffusers-processor",
    title="diffusers (attention processors, early 2023)",
    example="down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": "_lora.down.weight", "up": "_lora.up.weight"},
    keeps_others=False,
)
