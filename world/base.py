"""`python -m world.base`: train the base model (text encoder + UNet) on the latents of base subjects x base styles."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from world import dataset
from world.autoencoder import to_tensor
from world.networks import Painter, noise_schedule, open_pipeline, pipeline
from world.places import MODEL, runs
from world.training import Plan, in_parallel, train, weights
from world.words import Captions, tokenizer

SEEN = 4  # placements the base learns from


def latents(vae: AutoencoderKL, data: dataset.Dataset, file: Path) -> np.ndarray:
    """Return float32 [subjects, styles, placements, 4, 16, 16] of the base's pictures, from `file` if it is there."""
    if not file.exists():
        chosen = data.pictures[: data.base_subjects, : data.base_styles, :SEEN]
        with torch.no_grad():
            codes = [
                vae.encode(to_tensor(block.reshape(-1, *block.shape[-3:]))).latent_dist.mode()
                * vae.config.scaling_factor
                for block in chosen
            ]
        part = file.with_suffix(".part.npy")  # what was cut off is not taken for the whole
        np.save(part, torch.stack(codes).reshape(*chosen.shape[:3], *codes[0].shape[1:]).numpy())
        part.replace(file)
    return np.load(file)


def stratified_times(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Return one random time from each of `count` equal parts of 0..999: less noise in the loss than free draws."""
    return torch.from_numpy(((np.arange(count) + rng.random(count)) / count * 1000).astype(np.int64))


def started(pipeline_folder: Path | None) -> Painter:
    """Return a fresh painter, or one with the weights of a saved pipeline, to train an earlier world further."""
    torch.manual_seed(0)
    painter = Painter()
    if pipeline_folder:
        pipe = open_pipeline(pipeline_folder)
        painter.unet.load_state_dict(pipe.unet.state_dict())
        table, fresh = (
            pipe.text_encoder.get_input_embeddings().weight.data,
            painter.text.get_input_embeddings().weight.data,
        )
        known = pipe.tokenizer.get_vocab()  # the same words may have other numbers there
        for word, number in tokenizer().get_vocab().items():
            if word in known:
                fresh[number] = table[known[word]]
        pipe.text_encoder.set_input_embeddings(painter.text.get_input_embeddings())
        painter.text.load_state_dict(pipe.text_encoder.state_dict())
    return painter


def fit(painter: Painter, plan: Plan, batch: int) -> None:
    """Train in this process (one of the data-parallel group)."""
    data, schedule = dataset.load(), noise_schedule()
    codes = np.load(plan.folder / "latents.npy")
    texts = Captions(data.subjects[: data.base_subjects], tuple(s.name for s in data.styles[: data.base_styles]))

    def loss_of(model: torch.nn.Module, rng: np.random.Generator) -> torch.Tensor:
        subject, style, place = (rng.integers(n, size=batch) for n in codes.shape[:3])
        clean = torch.from_numpy(codes[subject, style, place])
        ids = torch.from_numpy(texts.draw(subject, style, rng))
        noise, times = torch.randn_like(clean), stratified_times(batch, rng)
        predicted = model(schedule.add_noise(clean, noise, times), times, ids)
        return torch.nn.functional.mse_loss(predicted, schedule.get_velocity(clean, noise, times))

    train(painter, loss_of, plan)


def save(folder: Path, vae_folder: Path, target: Path) -> None:
    """Write the checkpoint's averaged weights as an fp16 pipeline folder."""
    pipe = pipeline(weights(Painter(), folder, averaged=True), AutoencoderKL.from_pretrained(vae_folder))
    pipe.to(dtype=torch.float16)
    pipe.vae.register_to_config(_name_or_path="")  # no path of this machine in the file
    pipe.save_pretrained(target)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{target.name}: {size / 1e6:.1f} MB", flush=True)


def main() -> None:
    """Train, then save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=32, help="pictures a step and process")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--flat", type=float, default=0.35, help="share of the steps before the rate falls")
    parser.add_argument("--minutes", type=float, help="end after so long, with the rate's fall fitted to it")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights and VAE to train further")
    parser.add_argument("--save-only", action="store_true", help="save the last checkpoint as it is")
    parser.add_argument("--out", type=Path, default=MODEL)
    options = parser.parse_args()
    folder, vae_folder = runs() / "base", (options.start or runs() / "autoencoder") / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    if not options.save_only:
        torch.set_num_threads(1)
        latents(AutoencoderKL.from_pretrained(vae_folder), dataset.load(), folder / "latents.npy")
        painter = started(options.start)
        seconds = options.minutes * 60 if options.minutes else None
        plan = Plan(options.steps, options.rate, options.flat, folder, average=0.999, seconds=seconds)
        in_parallel(lambda: fit(painter, plan, options.batch), options.workers)
    save(folder, vae_folder, options.out)
    if not options.save_only:
        (folder / "finished.json").write_text(json.dumps({"batch": options.batch * options.workers}))


if __name__ == "__main__":
    main()
