"""The networks that paint: text encoder, UNet and noise schedule, and how they become a diffusers pipeline."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from world import words
from world.dataset import SIZE
from world.fastcpu import fast_upsampling, plain_attention

WIDTH = 192


def text_encoder() -> CLIPTextModel:
    """Return the untrained text encoder: 1.2 M parameters."""
    tok = words.tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tok),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=6,
            max_position_embeddings=words.LENGTH,
            attn_implementation="eager",
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        )
    )


def unet() -> UNet2DConditionModel:
    """Return the untrained UNet: 7.1 M parameters on 16 x 16 latents."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(2, 4, 4),  # diffusers reads this as the number of heads: 32 channels each
        norm_num_groups=16,
        use_linear_projection=True,
    )


def noise_schedule() -> DDIMScheduler:
    """Return Stable Diffusion's schedule, rescaled to zero terminal signal, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


class Painter(torch.nn.Module):
    """Text encoder and UNet in one forward, for data-parallel training."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.unet = text_encoder(), plain_attention(fast_upsampling(unet()))

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the predicted velocity of noisy latents under token ids."""
        return self.unet(noisy, times, self.text(ids).last_hidden_state).sample.float()


def pipeline(painter: Painter, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """Put the trained parts together as an ordinary pipeline (clean modules, without the training tricks)."""
    plain, encoder = unet(), text_encoder()
    plain.load_state_dict(painter.unet.state_dict())
    encoder.load_state_dict(painter.text.state_dict())
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=words.tokenizer(),
        unet=plain.eval(),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load a pipeline folder in float32 with plain attention, silently; raises when it is missing."""
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(f"no diffusers pipeline in {folder}; `python -m world.build` trains the world")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.text_encoder.float()  # the only part that would stay in the file's fp16
    pipe.set_progress_bar_config(disable=True)
    plain_attention(pipe.unet)
    return pipe
