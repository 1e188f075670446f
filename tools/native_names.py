"""Native names: how the original checkpoints call diffusers' modules, by the rules of their converters.

Sources: the design notes (lora-formats.md, section 1), diffusers' `single_file_utils`, sd-scripts, musubi-tuner.
`derive_layouts.py --check` holds every rule against diffusers' own checkpoint converters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

NativeOf = Callable[[str], tuple[str, int]]  # canonical name -> native name, place among the parts of a fused module
Section = tuple[str, str, Mapping[str, str]]  # (canonical beginning, native beginning, {canonical rest: native rest})


def by_sections(*sections: Section) -> NativeOf:
    """Make a renaming from tables; `#` stands for a block's number. Parts of a fused module are listed top to bottom.

    >>> by_sections(("blocks.#.", "layers.#.", {"to_q": "qkv", "to_k": "qkv"}))("blocks.7.to_k")
    ('layers.7.qkv', 1)
    """

    def native_of(name: str) -> tuple[str, int]:
        for head, native_head, table in sections:
            match = re.match(re.escape(head).replace(r"\#", r"(\d+)"), name)
            if match and name[match.end() :] in table:
                number = match[1] if match.groups() else ""
                rest = name[match.end() :]
                return native_head.replace("#", number) + table[rest], list(table).index(rest)
        raise KeyError(f"no rule for {name}")

    return native_of


def same(*names: str) -> dict[str, str]:
    """Names that are equal in both spellings."""
    return {name: name for name in names}


def fused(native: str, *parts: str) -> dict[str, str]:
    """Canonical parts, top to bottom, of one native module."""
    return dict.fromkeys(parts, native)


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_GLOBAL = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def ldm(name: str) -> tuple[str, int]:
    """Rename diffusers' UNet modules to those of the original (LDM, sgm) UNet; two layers in every block.

    >>> ldm("up_blocks.1.attentions.2.proj_in"), ldm("down_blocks.0.downsamplers.0.conv")
    (('output_blocks.5.1.proj_in', 0), ('input_blocks.3.0.op', 0))
    """
    if name in UNET_GLOBAL:
        return UNET_GLOBAL[name], 0
    match = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d)\.)?([a-z]+)\.(\d)\.(.+)", name)
    if match is None:
        raise KeyError(f"no rule for {name}")
    side, kind, rest = match[1], match[3], match[5]
    block, layer = int(match[2] or 0), int(match[4])
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op", 0
    if kind == "upsamplers":  # after the attention, which stands second
        return f"output_blocks.{3 * block + 2}.2.conv", 0
    inside = f"0.{RESNET[rest]}" if kind == "resnets" else f"1.{rest}"
    if side == "down":
        return f"input_blocks.{3 * block + layer + 1}.{inside}", 0
    if side == "up":
        return f"output_blocks.{3 * block + layer}.{inside}", 0
    return f"middle_block.{2 * layer}.{RESNET[rest]}" if kind == "resnets" else f"middle_block.1.{rest}", 0


def ldm_sd(name: str) -> tuple[str, int]:
    """Rename for SD1 and SD2, whose first up block has no attention: its upsampler stands second."""
    return ("output_blocks.2.1.conv", 0) if name == "up_blocks.0.upsamplers.0.conv" else ldm(name)


SD3 = by_sections(
    ("transformer_blocks.#.", "joint_blocks.#.", {
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
        **fused("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
        **fused("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        **fused("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    }),
    ("", "", {
        "pos_embed.proj": "x_embedder.proj", **same("context_embedder"),
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    }),
)  # fmt: skip

BFL_DOUBLE_ATTENTION = {
    **fused("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **fused("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
}  # fmt: skip
SINGLE_LINEAR1 = fused("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")

FLUX = by_sections(
    ("transformer_blocks.#.", "double_blocks.#.", {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", **BFL_DOUBLE_ATTENTION,
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    }),
    ("single_transformer_blocks.#.", "single_blocks.#.", {
        "norm.linear": "modulation.lin", **SINGLE_LINEAR1, "proj_out": "linear2",
        "attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm",
    }),
    ("distilled_guidance_layer.layers.#.", "distilled_guidance_layer.layers.#.", {  # Chroma
        "linear_1": "in_layer", "linear_2": "out_layer",
    }),
    ("distilled_guidance_layer.norms.#", "distilled_guidance_layer.norms.#", same("")),
    ("distilled_guidance_layer.", "distilled_guidance_layer.", same("in_proj", "out_proj")),
    ("", "", {
        "x_embedder": "img_in", "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    }),
)  # fmt: skip

FLUX2_DOUBLE = {
    **BFL_DOUBLE_ATTENTION,
    "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
}  # fmt: skip
FLUX2 = by_sections(
    ("transformer_blocks.#.", "double_blocks.#.", FLUX2_DOUBLE),
    ("single_transformer_blocks.#.", "single_blocks.#.", {
        "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2",
        "attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm",
    }),
    ("", "", {
        "x_embedder": "img_in", "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    }),
)  # fmt: skip

HUNYUAN = by_sections(
    ("transformer_blocks.#.", "double_blocks.#.", {
        "norm1.linear": "img_mod.linear", "norm1_context.linear": "txt_mod.linear",
        **fused("img_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
        **fused("txt_attn_qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.norm_q": "img_attn_q_norm", "attn.norm_k": "img_attn_k_norm",
        "attn.norm_added_q": "txt_attn_q_norm", "attn.norm_added_k": "txt_attn_k_norm",
        "attn.to_out.0": "img_attn_proj", "attn.to_add_out": "txt_attn_proj",
        "ff.net.0.proj": "img_mlp.fc1", "ff.net.2": "img_mlp.fc2",
        "ff_context.net.0.proj": "txt_mlp.fc1", "ff_context.net.2": "txt_mlp.fc2",
    }),
    ("single_transformer_blocks.#.", "single_blocks.#.", {
        "norm.linear": "modulation.linear", **SINGLE_LINEAR1, "proj_out": "linear2",
        "attn.norm_q": "q_norm", "attn.norm_k": "k_norm",
    }),
    ("context_embedder.token_refiner.refiner_blocks.#.", "txt_in.individual_token_refiner.blocks.#.", {
        **same("norm1", "norm2"), **fused("self_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.to_out.0": "self_attn_proj", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
        "norm_out.linear": "adaLN_modulation.1",
    }),
    ("context_embedder.", "txt_in.", {
        "proj_in": "input_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "c_embedder.linear_1",
        "time_text_embed.text_embedder.linear_2": "c_embedder.linear_2",
    }),
    ("", "", {
        "x_embedder.proj": "img_in.proj",
        "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    }),
)  # fmt: skip

WAN = by_sections(
    ("blocks.#.", "blocks.#.", {
        "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q", "attn1.norm_k": "self_attn.norm_k",
        "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q", "attn2.norm_k": "cross_attn.norm_k",
        "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
        "attn2.norm_added_k": "cross_attn.norm_k_img",
        "norm2": "norm3",  # both spellings number the norms, but not in the same order
        "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
    }),
    ("condition_embedder.", "", {
        "time_embedder.linear_1": "time_embedding.0", "time_embedder.linear_2": "time_embedding.2",
        "text_embedder.linear_1": "text_embedding.0", "text_embedder.linear_2": "text_embedding.2",
        "time_proj": "time_projection.1",
        "image_embedder.norm1": "img_emb.proj.0", "image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "image_embedder.ff.net.2": "img_emb.proj.3", "image_embedder.norm2": "img_emb.proj.4",
    }),
    ("", "", {"proj_out": "head.head", **same("patch_embedding")}),
)  # fmt: skip

ZIMAGE_BLOCK = {
    **fused("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm", "attention.norm_k": "attention.k_norm",
    **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
    **same("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
}  # fmt: skip
ZIMAGE = by_sections(
    ("layers.#.", "layers.#.", ZIMAGE_BLOCK),
    ("noise_refiner.#.", "noise_refiner.#.", ZIMAGE_BLOCK),
    ("context_refiner.#.", "context_refiner.#.", ZIMAGE_BLOCK),
    ("", "", {
        "all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        **same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1"),
    }),
)  # fmt: skip

LUMINA_BLOCK = {
    **fused("attention.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.to_out.0": "attention.out", "attn.norm_q": "attention.q_norm", "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1", "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3", "norm1.linear": "adaLN_modulation.1",
    "norm1.norm": "attention_norm1", "norm1": "attention_norm1", "norm2": "attention_norm2",
    **same("ffn_norm1", "ffn_norm2"),
}  # fmt: skip
LUMINA2 = by_sections(
    ("layers.#.", "layers.#.", LUMINA_BLOCK),
    ("noise_refiner.#.", "noise_refiner.#.", LUMINA_BLOCK),
    ("context_refiner.#.", "context_refiner.#.", LUMINA_BLOCK),
    ("", "", {
        **same("x_embedder"),
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_caption_embed.caption_embedder.0": "cap_embedder.0",
        "time_caption_embed.caption_embedder.1": "cap_embedder.1",
        "norm_out.linear_1": "final_layer.adaLN_modulation.1", "norm_out.linear_2": "final_layer.linear",
    }),
)  # fmt: skip
