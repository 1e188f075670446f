"""What small random pipelines paint: two steps, always the same noise and words."""

from __future__ import annotations

from typing import NamedTuple

import diffusers
import numpy as np
import torch

from consumers.roundtrip import Input

TEXT = r"text_encoder(_2)?\.text_model\.encoder\.layers\.0\.self_attn\.(q|out)_proj"
UNET = r"unet\..*(attn[12]\.to_[{}]|resnets\.0\.conv1|proj_in)"
JOINT = r"transformer\..*attn\.(to_[{}]|add_q_proj|to_out\.0)"


class Pair(NamedTuple):
    """The files of a case. Their updates are about as large as the weights: alpha is small for numbers up to 8."""

    kind: str  # of tiny.KINDS
    subject: Input
    style: Input
    size: int = 16


PAIRS = {
    "SD1.5": Pair(
        "sd15-small", Input("kohya", f"{UNET.format('qv')}|{TEXT}", alpha=0.02),
        Input("kohya", f"{UNET.format('qk')}|{TEXT}", (2, 8), alpha=0.02), 8),
    "SDXL": Pair(
        "sdxl-small", Input("diffusers", f"{UNET.format('qv')}|{TEXT}", alpha=0.02),
        Input("diffusers", f"{UNET.format('qk')}|{TEXT}", (2, 8), alpha=0.02), 8),
    "SD3": Pair(
        "sd3", Input("diffusers", f"{JOINT.format('qv')}|{TEXT}", alpha=0.02),
        Input("diffusers", JOINT.format("qk"), (2, 8), alpha=0.02)),
    "FLUX.1": Pair(
        "flux1", Input("diffusers", f"{JOINT.format('qv')}", alpha=0.02),
        Input("diffusers", JOINT.format("qk"), (2, 8), alpha=0.02)),
    "Qwen-Image": Pair(
        "qwen-image", Input("diffusers", JOINT.format("qv"), alpha=0.02),
        Input("diffusers", JOINT.format("qk"), (2, 8), alpha=0.02), 32),
    "Wan": Pair(
        "wan", Input("diffusers", r"transformer\..*attn[12]\.(to_[qv]|to_out\.0)", alpha=0.02),
        Input("diffusers", r"transformer\..*attn[12]\.to_[qk]", (2, 8), alpha=0.02)),
}  # fmt: skip


def paint(pipe: diffusers.DiffusionPipeline, size: int) -> np.ndarray:
    """A picture (latents where the pipeline has no decoder), float64."""

    def words(width: int) -> torch.Tensor:
        return torch.randn(1, 5, width, generator=torch.Generator().manual_seed(1)).to(pipe.dtype)

    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()  # T5 has dropout
    asked: dict[str, object] = {"prompt": "a b c", "output_type": "np"}
    if isinstance(pipe, diffusers.WanPipeline):
        asked = {"prompt_embeds": words(4096), "negative_prompt_embeds": words(4096), "num_frames": 1}
    elif isinstance(pipe, diffusers.QwenImagePipeline):
        mask = torch.ones(1, 5, dtype=torch.long)
        asked = {"prompt_embeds": words(3584), "prompt_embeds_mask": mask, "true_cfg_scale": 1.0}
    elif isinstance(pipe, diffusers.FluxPipeline):
        asked["max_sequence_length"] = 16
    asked.setdefault("output_type", "latent")
    noise = torch.Generator().manual_seed(0)
    made = pipe(height=size, width=size, num_inference_steps=2, generator=noise, **asked)[0]
    return np.asarray(made.float() if isinstance(made, torch.Tensor) else made, np.float64)
