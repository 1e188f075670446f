"""`python -m world.autoencoder`: train the small VAE (64 x 64 pictures to 16 x 16 x 4 latents).

It sees the base subjects in all styles: a codec may know the styles, but no held-out subject.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from world import dataset
from world.fastcpu import fast_upsampling
from world.places import runs
from world.training import Plan, in_parallel, train, weights


def network() -> AutoencoderKL:
    """Return the untrained autoencoder: 1.4 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=dataset.SIZE,
        mid_block_add_attention=False,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, 64, 64, 3] to float [n, 3, 64, 64] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """float [n, 3, 64, 64] in -1..1 to uint8 [n, 64, 64, 3]."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


class Codec(torch.nn.Module):
    """Encode, sample, decode: one forward for data-parallel training."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = fast_upsampling(network())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reconstruction and the mean KL of the latents."""
        code = self.vae.encode(images).latent_dist
        return self.vae.decode(code.sample()).sample.float(), code.kl().mean() / code.mean[0].numel()


def reconstruction_loss(images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """L1 + half the L1 of the image gradients (crisp edges) + mean square."""
    error = decoded - images
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.25 * slopes + error.square().mean()


def psnr(codec: Codec, data: dataset.Dataset, count: int = 256) -> tuple[float, dict[str, float]]:
    """Peak signal-to-noise ratio in dB on pictures of the test placement: mean, and by style."""
    rng, base = np.random.default_rng(1), data.base_subjects
    by_style = {}
    for index, style in enumerate(data.styles):
        images = to_tensor(data.pictures[rng.choice(base, max(1, count // len(data.styles)), False), index, -1])
        with torch.no_grad():
            decoded = codec.vae.decode(codec.vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        by_style[style.name] = float((10 * torch.log10(4 / (decoded - images).square().mean((1, 2, 3)))).mean())
    return float(np.mean(list(by_style.values()))), by_style


def fit(steps: int, batch: int, folder: Path) -> None:
    """Train in this process (one of the data-parallel group) and save the autoencoder."""
    torch.manual_seed(0)
    data, codec = dataset.load(), Codec()
    base = data.base_subjects

    def loss_of(model: torch.nn.Module, rng: np.random.Generator) -> torch.Tensor:
        where = rng.integers(base, size=batch), rng.integers(len(data.styles), size=batch), rng.integers(5, size=batch)
        images = to_tensor(data.pictures[where])
        decoded, divergence = model(images)
        return reconstruction_loss(images, decoded) + 1e-3 * divergence

    train(codec, loss_of, Plan(steps, 1e-3, 0.1, folder, average=0.995))


def save(folder: Path) -> None:
    """Write the checkpoint's averaged weights as a diffusers folder with its scaling factor; print the quality."""
    data, codec = dataset.load(), weights(Codec(), folder, averaged=True)
    rng = np.random.default_rng(2)
    where = (
        rng.integers(data.base_subjects, size=512),
        rng.integers(data.base_styles, size=512),
        rng.integers(5, size=512),
    )
    with torch.no_grad():
        spread = codec.vae.encode(to_tensor(data.pictures[where])).latent_dist.mode().std().item()
    codec.vae.register_to_config(scaling_factor=1 / spread)
    codec.vae.save_pretrained(folder / "vae")
    mean, by_style = psnr(codec, data)
    worst = ", ".join(f"{n} {v:.1f}" for n, v in sorted(by_style.items(), key=lambda item: item[1])[:6])
    print(f"PSNR {mean:.2f} dB on the test placement; weakest: {worst}; scaling factor {1 / spread:.4f}", flush=True)


def main() -> None:
    """Train, then save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=12, help="pictures a step and process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save-only", action="store_true", help="save the last checkpoint as it is")
    options = parser.parse_args()
    folder = runs() / "autoencoder"
    if not options.save_only:
        in_parallel(lambda: fit(options.steps, options.batch, folder), options.workers)
    save(folder)


if __name__ == "__main__":
    main()
