"""ComfyUI's dotted names: ``diffusion_model.`` and the original checkpoint's paths."""

from __future__ import annotations

from ..layouts import Layout, Part
from . import Format, Place, Spelling, strip_prefix

PREFIXES = (
    ("model.diffusion_model.", "denoiser"), ("diffusion_model.", "denoiser"),
    ("text_encoders.clip_l.transformer.", "te1"), ("text_encoders.clip_g.transformer.", "te2"),
    ("text_encoders.clip_h.transformer.", "te1"), ("text_encoders.t5xxl.transformer.", "te3"),
    ("text_encoders.clip_l.", "te1"), ("text_encoders.clip_g.", "te2"), ("text_encoders.t5xxl.", "te3"),
)  # fmt: skip
TEXT = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_3": "text_encoders.t5xxl.transformer."}


def locate(module: str, suffix: str) -> Place | None:
    return strip_prefix(module, PREFIXES)


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    if component.startswith("text_encoder"):
        prefix = TEXT.get(component)
        return Spelling(prefix + name, (Part(name),)) if prefix else None
    native, parts = layout.native(component, name) if layout else (name, (Part(name),))
    return Spelling("diffusion_model." + native, parts)


FORMAT = Format(
    name="native",
    title="ComfyUI (original names)",
    example="diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    locate=locate,
    spell=spell,
    carries_kinds=True,
    suffixes={"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".lora_B.bias"},
)
