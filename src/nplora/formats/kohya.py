"""kohya-ss sd-scripts, LyCORIS, OneTrainer and everything that copied them: flattened module names."""

from __future__ import annotations

from ..layouts import Layout, Part
from . import Description, Format, Place, Spelling, Written, strip_prefix

# Longest first where one begins another. ``lora_unet__`` is Wan-Fun's, ``lora_unet_unet_`` a home-made one.
PREFIXES = (
    ("lora_unet_unet_", "denoiser"), ("lora_unet__", "denoiser"), ("lora_unet_", "denoiser"),
    ("lora_transformer_", "denoiser"), ("lycoris_", "denoiser"), ("oft_unet_", "denoiser"),
    ("lora_prior_unet_", "denoiser"),
    ("lora_te1_", "te1"), ("lora_te2_", "te2"), ("lora_te3_", "te3"), ("lora_te_", "te"), ("lora_prior_te_", "te"),
)  # fmt: skip

# SD/SDXL files with several alphas are misread by diffusers: attention gets the component's most common one.
ONE_ALPHA = {"sd15", "sd2", "sdxl"}


def locate(module: str, suffix: str) -> Place | None:
    return strip_prefix(module, PREFIXES) if "." not in module else None


def spell(component: str, name: str, layout: Layout | None) -> Spelling | None:
    prefix = _prefix(component, layout)
    if prefix is None:
        return None
    native, parts = name, (Part(name),)  # type: tuple[str, tuple[Part, ...]]
    if layout is not None and layout.kohya.get(component) == "native":
        native, parts = layout.native(component, name)
    return Spelling(prefix + native.replace(".", "_"), parts)


def _prefix(component: str, layout: Layout | None) -> str | None:
    if not component.startswith("text_encoder"):
        return "lora_unet_"
    if layout is None:
        return {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}.get(
            component
        )
    slots = [slot for slot, target in layout.slots.items() if target == component]
    if not slots:
        return None
    # A model with one text encoder calls it te; T5 of FLUX is te3 in sd-scripts, te2 in OneTrainer.
    slot = "te" if "te" in slots else "te3" if "te3" in slots else slots[0]
    return f"lora_{slot}_"


def describe(written: Written) -> Description:
    """The ``ss_`` entries that are true of the written file; dim and alpha only where one value holds for all."""
    table = {"ss_network_module": "networks.lora", "ss_output_name": written.title}
    ranks = set(written.ranks.values())
    alphas = {scale * written.ranks[name] for name, scale in written.scales.items()}
    if len(ranks) == 1 and len(alphas) == 1:
        table.update(ss_network_dim=str(ranks.pop()), ss_network_alpha=repr(alphas.pop()))
    return Description(table)


FORMAT = Format(
    name="kohya",
    title="kohya / sd-scripts",
    example="lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    locate=locate,
    spell=spell,
    suffixes={"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha"},
    scale="alpha",
    carries_kinds=True,
    uniform_alpha=lambda layout: layout is None or layout.name in ONE_ALPHA,
    common_rank=frozenset({"text_projection"}),  # diffusers looks at the ranks of attention and mlp only
    keeps_others=False,
    describe=describe,
)
