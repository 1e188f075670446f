"""Two changes that make diffusers' networks train faster on CPU; neither changes what they compute."""

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.upsampling import Upsample2D


def _doubled(module: torch.nn.Module, inputs: tuple) -> tuple:
    """Nearest doubling by expand and reshape: its backward is a plain sum, F.interpolate's is slow in eager mode."""
    hidden, *_ = inputs
    batch, channels, height, width = hidden.shape
    wide = hidden[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return (wide.reshape(batch, channels, 2 * height, 2 * width),)


def fast_upsampling(model: torch.nn.Module) -> torch.nn.Module:
    """Replace nearest upsampling in every Upsample2D of `model` (sizes must be even); returns the model."""
    for module in model.modules():
        if isinstance(module, Upsample2D) and module.interpolate:
            module.interpolate = False
            module.register_forward_pre_hook(_doubled)
    return model


def plain_attention(unet: torch.nn.Module) -> torch.nn.Module:
    """Use matmul-softmax attention: at 16 x 16 the fused kernel's backward costs a third of a step on CPU."""
    unet.set_attn_processor(AttnProcessor())
    return unet
