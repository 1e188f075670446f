"""The base models that have a layout: configuration of the model class, native names, slots of the files' prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from native_names import FLUX, FLUX2, FLUX2_DOUBLE, HUNYUAN, LUMINA2, SD3, WAN, ZIMAGE, NativeOf, ldm, ldm_sd

Shapes = dict[str, tuple[int, ...]]  # canonical name -> shape of its weight, in the model's order

SD_UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SD15_UNET = {**SD_UNET, "cross_attention_dim": 768, "attention_head_dim": 8}
SD2_UNET = {
    **SD_UNET, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
SDXL_UNET = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
FLUX_DIT = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
CHROMA_DIT = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120, "approximator_layers": 5,
}  # fmt: skip
KLEIN4B_DIT = {  # Klein4BParams of musubi-tuner's flux2_models.py
    "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 7680, "mlp_ratio": 3.0, "guidance_embeds": False,
}  # fmt: skip
HUNYUAN_DIT = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 20,
    "num_single_layers": 40, "num_refiner_layers": 2, "mlp_ratio": 4.0, "patch_size": 2, "patch_size_t": 1,
    "guidance_embeds": True, "text_embed_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
ZIMAGE_DIT = {
    "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30,
    "cap_feat_dim": 2560,
}  # fmt: skip
LUMINA2_DIT = {  # NextDiT_2B_GQA_patch2_Adaln_Refiner of sd-scripts' lumina_models.py
    "patch_size": 2, "in_channels": 16, "hidden_size": 2304, "num_layers": 26, "num_refiner_layers": 2,
    "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "cap_feat_dim": 2304,
}  # fmt: skip
QWEN_DIT = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 3584, "guidance_embeds": False,
}  # fmt: skip


def clip(width: int, layers: int) -> dict[str, Any]:
    """Every CLIP text encoder: heads of 64, a four times wider middle."""
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "vocab_size": 49408, "max_position_embeddings": 77,
        "projection_dim": width,
    }  # fmt: skip


T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
}  # fmt: skip


@dataclass(frozen=True)
class Denoiser:
    """The model class that a layout's denoiser is built from, and how its native names come about."""

    cls: str  # in diffusers
    config: Mapping[str, Any]
    kohya: str
    native_of: NativeOf | None = None  # None: native names are the canonical ones
    swap: tuple[str, ...] = ()  # modules whose halves the native file holds in the opposite order
    also: tuple[tuple[str, str], ...] = ()  # (pattern over native names, replacement): more spellings to read
    read_as: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (one more spelling, canonical parts); "#": every block
    converter: str | None = None  # in diffusers.loaders.single_file_utils, for --check


@dataclass(frozen=True)
class Base:
    """A base model as it goes into one file; files in order of how common the model is."""

    title: str
    modelspec: str | None
    denoiser: Denoiser
    slots: Mapping[str, str]
    text: Mapping[str, str | None]  # component -> table of text/; None: known by name only
    same_as: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Shapes] = field(default_factory=dict)  # component -> modules beside its table


def sd3(depth: int, *, dual: int = 0, norm: bool = True) -> Denoiser:
    """Every SD3: width 64 * depth, the first `dual` blocks with a second attention."""
    config = {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": depth,
        "attention_head_dim": 64, "num_attention_heads": depth, "joint_attention_dim": 4096,
        "caption_projection_dim": 64 * depth, "pooled_projection_dim": 2048,
        "qk_norm": "rms_norm" if norm else None, "dual_attention_layers": tuple(range(dual)),
    }  # fmt: skip
    swap = ("norm_out.linear", f"transformer_blocks.{depth - 1}.norm1_context.linear")
    return Denoiser(
        "SD3Transformer2DModel", config, "native", SD3, swap,
        converter="convert_sd3_transformer_checkpoint_to_diffusers",
    )  # fmt: skip


def wan(heads: int, ffn: int, layers: int, *, channels: int = 16, image: bool = True) -> Denoiser:
    """Every Wan; with `image`, the modules that the image-to-video models add are in."""
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": heads, "attention_head_dim": 128, "in_channels": channels,
        "out_channels": channels, "text_dim": 4096, "freq_dim": 256, "ffn_dim": ffn, "num_layers": layers,
        **({"image_dim": 1280, "added_kv_proj_dim": heads * 128} if image else {}),
    }  # fmt: skip
    return Denoiser(
        "WanTransformer3DModel", config, "native", WAN, converter="convert_wan_transformer_to_diffusers",
    )  # fmt: skip


UPSAMPLER = (r"(output_blocks\.\d+)\.1\.conv", r"\1.2.conv"), (r"(output_blocks\.\d+)\.2\.conv", r"\1.1.conv")
LINEAR1_QKV = (("single_blocks.#.linear1_qkv", tuple(f"single_transformer_blocks.#.attn.to_{p}" for p in "qkv")),)
SFORMER = tuple((f"sformer_blocks.#.{rest}", (f"transformer_blocks.#.{rest}",)) for rest in FLUX2_DOUBLE)
FINAL = ("norm_out.linear",)
ONE_TEXT = {"te": "text_encoder", "te1": "text_encoder"}
SD_SLOTS = {"denoiser": "unet", **ONE_TEXT}
SD3_SLOTS = {
    "denoiser": "transformer", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
}  # fmt: skip
SD3_TEXT = {"text_encoder": "clip-l", "text_encoder_2": "clip-g", "text_encoder_3": "t5-xxl"}
SD3_EXTRA: dict[str, Shapes] = {"text_encoder": {"text_projection": (768, 768)}}
DIT_SLOTS = {"denoiser": "transformer", **ONE_TEXT}

BASES: dict[str, Base] = {
    "sd15": Base(
        "Stable Diffusion 1.x", "stable-diffusion-v1",
        Denoiser("UNet2DConditionModel", SD15_UNET, "canonical", ldm_sd, also=UPSAMPLER,
                 converter="convert_ldm_unet_checkpoint"),
        SD_SLOTS, {"text_encoder": "clip-l"},
    ),
    "sdxl": Base(
        "Stable Diffusion XL", "stable-diffusion-xl-v1-base",
        Denoiser("UNet2DConditionModel", SDXL_UNET, "native", ldm, also=UPSAMPLER,
                 converter="convert_ldm_unet_checkpoint"),
        {"denoiser": "unet", "te1": "text_encoder", "te2": "text_encoder_2"},
        {"text_encoder": "clip-l", "text_encoder_2": "clip-g"},
    ),
    "flux1": Base(
        "FLUX.1", "flux-1-dev",
        Denoiser("FluxTransformer2DModel", FLUX_DIT, "native", FLUX, FINAL, read_as=LINEAR1_QKV,
                 converter="convert_flux_transformer_checkpoint_to_diffusers"),
        {"denoiser": "transformer", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_2"},
        {"text_encoder": "clip-l", "text_encoder_2": "t5-xxl"},
    ),
    "qwen-image": Base(
        "Qwen-Image", "Qwen-Image", Denoiser("QwenImageTransformer2DModel", QWEN_DIT, "canonical"),
        DIT_SLOTS, {"text_encoder": None},
    ),
    "wan-14b": Base(
        "Wan 14B", "wan2.1", wan(heads=40, ffn=13824, layers=40),
        DIT_SLOTS, {"text_encoder": None}, {"transformer_2": "transformer"},
    ),
    "z-image": Base(
        "Z-Image", "Z-Image",
        Denoiser("ZImageTransformer2DModel", ZIMAGE_DIT, "canonical", ZIMAGE,
                 converter="convert_z_image_transformer_checkpoint_to_diffusers"),
        DIT_SLOTS, {"text_encoder": None},
    ),
    "sd35-large": Base(
        "Stable Diffusion 3.5 Large", "stable-diffusion-3-5-large", sd3(38), SD3_SLOTS, SD3_TEXT, extra=SD3_EXTRA,
    ),
    "sd35-medium": Base(
        "Stable Diffusion 3.5 Medium", "stable-diffusion-3-5-medium", sd3(24, dual=13),
        SD3_SLOTS, SD3_TEXT, extra=SD3_EXTRA,
    ),
    "sd2": Base(
        "Stable Diffusion 2.x", "stable-diffusion-v2-768-v",
        Denoiser("UNet2DConditionModel", SD2_UNET, "canonical", ldm_sd, also=UPSAMPLER,
                 converter="convert_ldm_unet_checkpoint"),
        SD_SLOTS, {"text_encoder": "clip-h"},
    ),
    "wan-1.3b": Base(
        "Wan 1.3B", "wan2.1", wan(heads=12, ffn=8960, layers=30), DIT_SLOTS, {"text_encoder": None},
    ),
    "wan-5b": Base(
        "Wan 5B", "wan2.1", wan(heads=24, ffn=14336, layers=30, channels=48, image=False),
        DIT_SLOTS, {"text_encoder": None},
    ),
    "flux2-klein-4b": Base(
        "FLUX.2 Klein 4B", "Flux.2-klein-4b",
        Denoiser("Flux2Transformer2DModel", KLEIN4B_DIT, "native", FLUX2, FINAL, read_as=SFORMER,
                 converter="convert_flux2_transformer_checkpoint_to_diffusers"),
        DIT_SLOTS, {"text_encoder": None},
    ),
    "chroma": Base(
        "Chroma", "chroma",
        Denoiser("ChromaTransformer2DModel", CHROMA_DIT, "native", FLUX, read_as=LINEAR1_QKV,
                 converter="convert_chroma_transformer_checkpoint_to_diffusers"),
        {"denoiser": "transformer", "te1": "text_encoder", "te2": "text_encoder", "te3": "text_encoder"},
        {"text_encoder": "t5-xxl"},
    ),
    "hunyuan-video": Base(
        "HunyuanVideo", "hunyuan-video",
        Denoiser("HunyuanVideoTransformer3DModel", HUNYUAN_DIT, "native", HUNYUAN, FINAL,
                 also=((r"(_mod|modulation)\.linear", r"\1.lin"), (r"\.fc1", ".0"), (r"\.fc2", ".2")),
                 read_as=LINEAR1_QKV, converter="convert_hunyuan_video_transformer_to_diffusers"),
        {"denoiser": "transformer", **ONE_TEXT, "te2": "text_encoder_2"},
        {"text_encoder": None, "text_encoder_2": "clip-l"},
    ),
    "sd3-medium": Base(
        "Stable Diffusion 3 Medium", "stable-diffusion-3-medium", sd3(24, norm=False),
        SD3_SLOTS, SD3_TEXT, extra=SD3_EXTRA,
    ),
    "lumina2": Base(
        "Lumina 2", "lumina-2",
        Denoiser("Lumina2Transformer2DModel", LUMINA2_DIT, "native", LUMINA2,
                 converter="convert_lumina2_to_diffusers"),
        DIT_SLOTS, {"text_encoder": None},
    ),
}  # fmt: skip

TEXT_TITLES = {
    "clip-l": "CLIP ViT-L/14 text encoder",
    "clip-h": "OpenCLIP ViT-H/14 text encoder without its last layer",
    "clip-g": "OpenCLIP ViT-bigG/14 text encoder",
    "t5-xxl": "T5 1.1 XXL encoder",
}
