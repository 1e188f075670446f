"""Small random pipelines of every kind that diffusers loads a LoRA into.

Two sorts. The tiny ones run: true block structure, names and outside widths (text, time, latent), hidden widths as
small as they go. The wide ones have the true widths, by which a base model is recognised and its fused projections
are split; they cannot run, because all rows of a weight share one stored row, but a file loads into them as it does
into the real model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers
from diffusers.models.transformers.transformer_flux import FluxAttention


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer over single letters, made in memory."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def _clip(width: int, projection: bool = False, inner: int = 48) -> torch.nn.Module:
    """CLIP text model of the true width, two layers, a narrow MLP."""
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=width, projection_dim=width, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def _t5() -> torch.nn.Module:
    """T5 encoder of the true width 4096, one layer, narrow inside."""
    config = transformers.T5Config(vocab_size=64, d_model=4096, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def _vae(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8,), norm_num_groups=4, sample_size=8, shift_factor=0.0
    )


def _sd15(channels: tuple[int, ...] = (16, 32, 64, 64), inner: int = 48) -> diffusers.DiffusionPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=channels, cross_attention_dim=768, attention_head_dim=2,
        norm_num_groups=8,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_clip(768, inner=inner), tokenizer=_clip_tokenizer(), unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sd15_small() -> diffusers.DiffusionPipeline:
    """Two blocks down and two up instead of four: quick to render."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), cross_attention_dim=768, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )  # fmt: skip
    pipe = _sd15()
    pipe.register_modules(unet=unet)
    return pipe


def _sdxl(
    channels: tuple[int, ...] = (16, 32, 64), depths: tuple[int, ...] = (1, 2, 10), inner: tuple[int, int] = (48, 48)
) -> diffusers.DiffusionPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=channels, cross_attention_dim=2048, attention_head_dim=(2, 4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depths, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816, norm_num_groups=8,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_clip(768, inner=inner[0]), text_encoder_2=_clip(1280, True, inner[1]), unet=unet,
        tokenizer=_clip_tokenizer(), tokenizer_2=_clip_tokenizer(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip


def _flux1() -> diffusers.DiffusionPipeline:
    """Hidden width 128, but the single blocks' q, k, v and MLP have FLUX.1's true 3072 and 12288 rows.

    diffusers splits kohya's `linear1` at these fixed rows. The model still runs: 24 heads of 128 read 128 inputs.
    """
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=128, guidance_embeds=True
    )
    for block in transformer.single_transformer_blocks:
        block.attn = FluxAttention(query_dim=128, heads=24, dim_head=128, bias=True, pre_only=True, eps=1e-6)
        block.proj_mlp = torch.nn.Linear(128, 12288)
        block.proj_out = torch.nn.Linear(3072 + 12288, 128)
    return _flux_pipeline(transformer)


def _flux_pipeline(transformer: torch.nn.Module, inner: int = 48) -> diffusers.DiffusionPipeline:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16), transformer=transformer,
        text_encoder=_clip(768, inner=inner), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(),
        tokenizer_2=transformers.T5Tokenizer(extra_ids=10, model_max_length=16),
    )  # fmt: skip


def _sd3(heads: int = 2, width: int = 16, inner: tuple[int, int] = (48, 48)) -> diffusers.DiffusionPipeline:
    """SD3.5-medium: the first block has the second attention. Without T5."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=3, attention_head_dim=width, num_attention_heads=heads,
        caption_projection_dim=heads * width,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16), transformer=transformer,
        text_encoder=_clip(768, True, inner[0]), tokenizer=_clip_tokenizer(), text_encoder_3=None, tokenizer_3=None,
        text_encoder_2=_clip(1280, True, inner[1]), tokenizer_2=_clip_tokenizer(),
    )  # fmt: skip


def _qwen_image(heads: int = 2, width: int = 16) -> diffusers.DiffusionPipeline:
    """The transformer alone: diffusers loads LoRA into nothing else."""
    transformer = diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=width, num_attention_heads=heads, axes_dims_rope=(4, 6, 6)
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.QwenImagePipeline(scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)


def _wan(heads: int = 2, width: int = 16, inner: int = 64) -> diffusers.DiffusionPipeline:
    """Both experts of Wan 2.2; `load_into_transformer_2=True` loads a file into the second."""
    experts = [
        diffusers.WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=width, ffn_dim=inner, num_layers=2
        )
        for _ in range(2)
    ]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.WanPipeline(None, None, None, scheduler, transformer=experts[0], transformer_2=experts[1])


# The wide ones.


def _widened(build: Callable[..., diffusers.DiffusionPipeline], *args: object) -> diffusers.DiffusionPipeline:
    """The pipeline with weights of full shape and next to no memory: every row is a view of one random row."""
    with torch.device("meta"):
        pipe = build(*args)
    models = [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
    for module in (module for model in models for module in model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            row = torch.randn(weight.shape[-1]) / weight.shape[-1] ** 0.5
            setattr(module, name, torch.nn.Parameter(row.expand(weight.shape), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return pipe


def _flux1_transformer() -> torch.nn.Module:
    """FLUX.1's own widths, one double and one single block."""
    return diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


_BUILDERS: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "sd15": _sd15,
    "sdxl": _sdxl,
    "flux1": _flux1,
    "flux1-wide": lambda: _widened(lambda: _flux_pipeline(_flux1_transformer(), 3072)),
    "sd3": _sd3,
    "qwen-image": _qwen_image,
    "wan": _wan,
    "sd15-wide": lambda: _widened(_sd15, (320, 640, 1280, 1280), 3072),
    "sdxl-wide": lambda: _widened(_sdxl, (320, 640, 1280), (1, 1, 2), (3072, 5120)),
    "sd35-wide": lambda: _widened(_sd3, 24, 64, (3072, 5120)),
    "qwen-image-wide": lambda: _widened(_qwen_image, 24, 128),
    "wan-wide": lambda: _widened(_wan, 12, 128, 8960),
    "sd15-small": _sd15_small,
    "sdxl-small": lambda: _sdxl((8, 16, 16), (1, 1, 1)),
}
KINDS = tuple(_BUILDERS)  # the seed is the place in this list: append only


@cache
def tiny_pipeline(kind: str) -> diffusers.DiffusionPipeline:
    """The random float32 pipeline of one of `KINDS`, seeded, built once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(KINDS.index(kind))
        return _BUILDERS[kind]()


def models_of(pipe: diffusers.DiffusionPipeline) -> Iterator[tuple[torch.nn.Module, str]]:
    """(model, prefix that makes its module paths canonical) of every component that can carry a LoRA."""
    for component, model in pipe.components.items():
        if isinstance(model, torch.nn.Module) and component != "vae":
            flat_clip = isinstance(model, transformers.CLIPTextModel) and not hasattr(model, "text_model")
            yield model, f"{component}.text_model." if flat_clip else f"{component}."


def modules_of(pipe: diffusers.DiffusionPipeline) -> dict[str, tuple[int, ...]]:
    """Canonical name -> weight shape of every Linear and Conv2d (Wan's Conv3d patch embedding is left out)."""
    return {
        prefix + path: tuple(module.weight.shape)
        for model, prefix in models_of(pipe)
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
