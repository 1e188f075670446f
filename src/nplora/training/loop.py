"""The training itself, in the hands of diffusers, PEFT and accelerate: encode once, then steps on the adapter alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NploraError, UsageError
from ..pictures import Opened
from .captions import Captioned

# Attention and feed-forward: what most trainers change.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: steps, pictures a step, learning rate (falls linearly to zero)."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Encoded:
    """Pictures and captions as the denoiser sees them, computed once.

    ``latents`` (n, channels, height, width), ``states`` (n, tokens, width), ``added`` SDXL's further conditions.
    """

    latents: Any
    states: Any
    added: dict[str, Any]


def encode(opened: Opened, pairs: Captioned) -> Encoded:
    """Pictures through the VAE and captions through the text encoders.

    Raises:
        UsageError: the pipeline is not one that is trained here.
    """
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pipe, plain = opened.pipe, isinstance(opened.pipe, StableDiffusionPipeline)
    if not (plain or isinstance(pipe, StableDiffusionXLPipeline)):
        raise UsageError(
            f"train-lora does not train a {type(pipe).__name__}", expected="Stable Diffusion, SDXL or the world",
            hint="diffusers' examples, ai-toolkit and sd-scripts train others.",
        )  # fmt: skip
    with torch.no_grad():
        pixels = pipe.image_processor.preprocess([_picture(file, opened) for file, _ in pairs])
        latents = torch.cat([_latent(pipe, one) for one in pixels.split(1)])
        texts = [text for _, text in pairs]
        asked = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if plain:
            return Encoded(latents, pipe.encode_prompt(texts, **asked)[0], {})
        states, _, pooled, _ = pipe.encode_prompt(texts, **asked)
        sides = [opened.height, opened.width, 0, 0, opened.height, opened.width]
        ids = torch.tensor([sides] * len(texts), dtype=states.dtype, device=states.device)
        return Encoded(latents, states, {"text_embeds": pooled, "time_ids": ids})


def _picture(file: Any, opened: Opened) -> Any:
    """The middle of a picture at the pipeline's size."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    from ..errors import InputError

    try:
        with Image.open(file) as image:
            return ImageOps.fit(image.convert("RGB"), (opened.width, opened.height), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"is no picture ({error})", file=file, hint="Remove it, or save it again.") from None


def _latent(pipe: Any, pixels: Any) -> Any:
    vae = pipe.vae
    mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def fit(
    opened: Opened,
    encoded: Encoded,
    rank: int,
    alpha: float,
    schedule: Schedule,
    seed: int,
    mixed_precision: str,
    report: Callable[[int, int, float], None] | None,
) -> list[float]:
    """Add a fresh adapter to the UNet and train it; the loss of every step.

    Raises:
        NploraError: the loss stopped being a number, or the memory is too small.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    pipe = opened.pipe
    acc = Accelerator(cpu=opened.device == "cpu", mixed_precision=mixed_precision)
    pipe.unet.requires_grad_(False)
    if opened.device == "cpu":
        pipe.unet.set_attn_processor(AttnProcessor())  # the CPU's fused attention is slow on its way back
    elif sum(p.numel() for p in pipe.unet.parameters()) > 1e9:
        pipe.unet.enable_gradient_checkpointing()
    set_seed(seed)  # here, so that the initial A follows from the seed and from nothing that came before
    pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS))  # type: ignore[arg-type]
    cast_training_params(pipe.unet, torch.float32)
    try:
        return _steps(acc, pipe, encoded, schedule, np.random.default_rng(seed), report)
    except torch.OutOfMemoryError:
        raise NploraError(
            f"training does not fit the memory of {opened.device}", hint="Use --batch 1 or --device cpu."
        ) from None


def _steps(
    acc: Any, pipe: Any, encoded: Encoded, schedule: Schedule, rng: np.random.Generator,
    report: Callable[[int, int, float], None] | None,
) -> list[float]:  # fmt: skip
    import torch
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    noising = DDPMScheduler.from_config(pipe.scheduler.config)  # type: ignore[no-untyped-call]
    velocity = noising.config.prediction_type == "v_prediction"
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, schedule.rate, weight_decay=0.0)
    falling = get_scheduler("linear", optimiser, num_warmup_steps=0, num_training_steps=schedule.steps)
    unet, optimiser = acc.prepare(pipe.unet.train(), optimiser)
    losses: list[float] = []
    for step in range(schedule.steps):
        chosen = torch.from_numpy(np.resize(rng.permutation(len(encoded.latents)), schedule.batch)).to(acc.device)
        # one time from each of `batch` equal parts of the noise schedule
        spread = (np.arange(schedule.batch) + rng.random(schedule.batch)) / schedule.batch
        times = torch.from_numpy((spread * len(noising.betas)).astype(np.int64)).to(acc.device)
        clean = encoded.latents[chosen]
        noise = torch.randn_like(clean)
        wanted = noising.get_velocity(clean, noise, times) if velocity else noise
        added = {name: values[chosen] for name, values in encoded.added.items()}
        with acc.autocast():
            noisy = noising.add_noise(clean, noise, times)
            found = unet(noisy, times, encoded.states[chosen], added_cond_kwargs=added or None).sample
        loss = torch.nn.functional.mse_loss(found.float(), wanted.float())
        acc.backward(loss)
        acc.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        falling.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise NploraError(
                f"the loss is no number any more at step {step + 1}", hint="Lower the learning rate: --rate."
            )
        if report is not None:
            report(step + 1, schedule.steps, losses[-1])
    pipe.unet.eval()
    return losses
