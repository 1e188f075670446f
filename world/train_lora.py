"""Train a subject or a style LoRA on any local Stable Diffusion pipeline with diffusers, PEFT and accelerate.

On the world a LoRA takes about a minute on one core. The default seed is derived from the pictures and the prompt and
is never a constant: two LoRAs that start from the same random A stay near it, their row spaces overlap, and a
projection that removes the one then deletes the other as well.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image

from world import lora_files
from world.networks import open_pipeline

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
STEPS = {"subject": 200, "style": 300}
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes
    ----------
    files : list of pathlib.Path
        What was written.
    seed : int
        The seed that was used.
    losses : list of float
        Loss of every step.
    """

    files: list[Path]
    seed: int
    losses: list[float]


def captioned(images: Path, prompt: str) -> list[tuple[Path, str]]:
    """Pair every picture of a folder with its caption.

    `metadata.jsonl` (diffusers' custom: `file_name`, `text`) wins; else `{name}` in the prompt stands for the file's
    name without a trailing number, so `cat-2.png` under "a {name} in stl style" reads "a cat in stl style".
    """
    table = images / "metadata.jsonl"
    if table.exists():
        rows = [json.loads(line) for line in table.read_text().splitlines() if line.strip()]
        return [(images / row["file_name"], row["text"]) for row in rows]
    files = sorted(f for f in images.iterdir() if f.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(f"no pictures ({', '.join(sorted(PICTURES))}) in {images}")
    return [(f, prompt.replace("{name}", re.sub(r"[-_ ]?\d+$", "", f.stem))) for f in files]


def content_seed(pairs: list[tuple[Path, str]], kind: str) -> int:
    """Derive a seed from the pictures' bytes and captions."""
    digest = hashlib.sha256(kind.encode())
    for file, text in pairs:
        digest.update(file.read_bytes() + text.encode())
    return int.from_bytes(digest.digest()[:4], "big")


def train_lora(
    pipeline: Path,
    images: Path,
    prompt: str,
    kind: str,
    output: Path,
    *,
    rank: int = 4,
    alpha: float | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int = 8,
    rate: float = 2e-3,
    forms: tuple[str, ...] = ("diffusers",),
    mixed_precision: str = "bf16",
    report: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train one LoRA on the UNet's attention and feed-forward layers.

    Parameters
    ----------
    pipeline : pathlib.Path
        Folder of a Stable Diffusion pipeline.
    images : pathlib.Path
        Folder of pictures; see `captioned` for how each gets its caption.
    prompt : str
        Caption, with a rare word for what is new ("a sks in flat style", "a {name} in stl style").
    kind : str
        "subject" or "style": chooses the default number of steps and is noted in the file.
    output : pathlib.Path
        The `.safetensors` file to write (diffusers form); further `forms` go beside it.
    rank, alpha : int, float
        Of the LoRA; alpha defaults to the rank.
    seed : int, optional
        Of the initial A, the noise and the order; defaults to one derived from the content.
    steps, batch, rate
        Length, pictures a step, learning rate (falls linearly to zero).
    forms : tuple of str
        Any of diffusers, kohya, peft.
    mixed_precision : str
        accelerate's: "no", "bf16" or "fp16".
    report : callable, optional
        Called as report(step, steps, loss) after every step.

    Returns
    -------
    Trained
    """
    if kind not in STEPS:
        raise ValueError(f"kind must be one of {', '.join(STEPS)}, not {kind!r}")
    pairs, steps = captioned(images, prompt), steps or STEPS[kind]
    seed = content_seed(pairs, kind) if seed is None else seed
    set_seed(seed)
    acc = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed_precision)
    pipe = open_pipeline(pipeline).to(acc.device)
    codes, states = _encoded(pipe, pairs)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=TARGETS))
    losses = _fit(acc, pipe, codes, states, steps, batch, rate, seed, report)
    notes = {
        "kind": kind,
        "prompt": prompt,
        "seed": seed,
        "network_dim": rank,
        "network_alpha": alpha or rank,
        "steps": steps,
        "learning_rate": rate,
        "batch": batch,
    }
    return Trained(lora_files.save(pipe.unet, output, notes, forms), seed, losses)


def _encoded(pipe: StableDiffusionPipeline, pairs: list[tuple[Path, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures' latents and the captions' text states, computed once."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pictures = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for file, _ in pairs]
    pixels = pipe.image_processor.preprocess(pictures).to(pipe.device)
    with torch.no_grad():
        codes = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        states, _ = pipe.encode_prompt([text for _, text in pairs], pipe.device, 1, False)
    return codes, states


def _fit(acc, pipe, codes, states, steps, batch, rate, seed, report) -> list[float]:
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    wanted = {"epsilon": lambda clean, noise, times: noise, "v_prediction": schedule.get_velocity}[
        schedule.config.prediction_type
    ]
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    falling = get_scheduler("linear", optimiser, num_warmup_steps=0, num_training_steps=steps)
    unet, optimiser = acc.prepare(pipe.unet.train(), optimiser)
    rng, losses = np.random.default_rng(seed), []
    for step in range(steps):
        chosen = torch.from_numpy(np.resize(rng.permutation(len(codes)), batch)).to(acc.device)
        # one time from each of `batch` equal parts of the schedule
        times = torch.from_numpy(
            ((np.arange(batch) + rng.random(batch)) / batch * len(schedule.betas)).astype(np.int64)
        )
        times, clean = times.to(acc.device), codes[chosen]
        noise = torch.randn_like(clean)
        with acc.autocast():
            predicted = unet(schedule.add_noise(clean, noise, times), times, states[chosen]).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), wanted(clean, noise, times))
        acc.backward(loss)
        acc.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        falling.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if report:
            report(step + 1, steps, losses[-1])
    pipe.unet.eval()
    return losses
