"""`python -m world.judge`: two recognisers (one seed each) that say which subject and which style a picture shows.

They know all subjects and all styles, held-out ones included, and are tested on a placement no training has seen.
Half of what they learn from has been through the autoencoder, so that its blur is no surprise to them. Label smoothing
makes them say too little (0.9 where they are right 99 times in 100), so all logits are divided by one temperature
(Guo et al. 2017, "On Calibration of Modern Neural Networks"), fitted to the subject's answers on half of the test
placement (the style's hold no error to fit to); which answer comes first does not depend on it.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from world import dataset
from world.autoencoder import to_pictures, to_tensor
from world.places import JUDGES, MODEL, runs
from world.styles import all_styles
from world.subjects import all_subjects
from world.training import Plan, in_parallel, train

SEEDS = (1, 2)
RECODED = (0, -1)  # placements that are also shown after the autoencoder; the last is the test


class _Block(nn.Module):
    """A pre-activation residual block; halves the picture when it widens."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.skip = nn.Conv2d(inside, outside, 1, stride) if stride > 1 or inside != outside else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(nn.functional.silu(self.norm1(hidden)))
        return self.skip(hidden) + self.conv2(nn.functional.silu(self.norm2(inner)))


class Recogniser(nn.Module):
    """A small residual network with two heads: subject and style."""

    def __init__(self, subjects: int, styles: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 2, 1)
        self.body = nn.Sequential(_Block(32, 64, 2), _Block(64, 128, 2), _Block(128, 128, 1), _Block(128, 256, 2))
        self.norm, self.dropout = nn.BatchNorm2d(256), nn.Dropout(0.1)
        self.subject, self.style = nn.Linear(256, subjects), nn.Linear(256, styles)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of subject and style for images in -1..1."""
        hidden = nn.functional.silu(self.norm(self.body(self.stem(images))))
        pooled = self.dropout(hidden.mean((2, 3)))
        return self.subject(pooled).float(), self.style(pooled).float()


@dataclass(frozen=True)
class Judge:
    """A trained recogniser and what its logits are divided by."""

    network: Recogniser
    temperature: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What a judge says of pictures.

    Attributes
    ----------
    subject, style : numpy.ndarray
        Probabilities [n, subjects] and [n, styles].
    """

    subject: np.ndarray
    style: np.ndarray


def judge(who: Judge, pictures: np.ndarray) -> Verdict:
    """Judge uint8 pictures [n, 64, 64, 3]."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pictures), 64):
            heads = who.network(to_tensor(pictures[start : start + 64]))
            parts.append([(head / who.temperature).softmax(-1) for head in heads])
    return Verdict(*(torch.cat(head).numpy() for head in zip(*parts, strict=True)))


def _through_codec(vae: AutoencoderKL, data: dataset.Dataset, file: Path) -> np.ndarray:
    """Return uint8 [subjects, styles, len(RECODED), 64, 64, 3] after the autoencoder, from `file` if it is there."""
    if not file.exists():
        chosen = data.pictures[:, :, RECODED]
        out = np.empty_like(chosen)
        for index, block in enumerate(chosen):
            flat = block.reshape(-1, *block.shape[-3:])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                decoded = vae.decode(vae.encode(to_tensor(flat)).latent_dist.mode()).sample.float()
            out[index] = to_pictures(decoded).reshape(block.shape)
        part = file.with_suffix(".part.npy")  # what was cut off is not taken for the whole
        np.save(part, out)
        part.replace(file)
    return np.load(file, mmap_mode="r")


def _roughened(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to 3 pixels and add a little noise, so that exact pixels do not matter."""
    down, right = rng.integers(-3, 4, 2)
    padded = nn.functional.pad(images, (3, 3, 3, 3), mode="replicate")[
        ..., 3 + down : 67 + down, 3 + right : 67 + right
    ]
    return padded + torch.randn_like(padded) * float(rng.uniform(0, 0.08))


def fit(seed: int, steps: int, batch: int, folder: Path) -> None:
    """Train one judge and save its weights."""
    torch.manual_seed(seed)
    data = dataset.load()
    codec = np.load(folder / "codec.npy", mmap_mode="r")
    n_subjects, n_styles, places = data.pictures.shape[:3]
    network = Recogniser(n_subjects, n_styles)

    def loss_of(model: nn.Module, rng: np.random.Generator) -> torch.Tensor:
        subject, style, place = (rng.integers(n, size=batch) for n in (n_subjects, n_styles, places - 1))
        half = batch // 2
        images = np.concatenate(
            [
                data.pictures[subject[:half], style[:half], place[:half]],
                codec[subject[half:], style[half:], 0],
            ]
        )
        heads = model(_roughened(to_tensor(images), rng))
        targets = torch.from_numpy(subject), torch.from_numpy(style)
        return sum(nn.functional.cross_entropy(h, t, label_smoothing=0.05) for h, t in zip(heads, targets, strict=True))

    plan = Plan(steps, 2e-3, 0.1, folder / f"judge-{seed}", seed=seed, average=0.995)
    network = train(network, loss_of, plan)
    save_file(network.state_dict(), folder / f"judge-{seed}.safetensors")


def home(seed: int) -> Path | None:
    """Return the folder that holds a judge trained and tested: of the runs, else the shipped one; None without any."""
    folders = (runs() / "judges", JUDGES)
    return next((folder for folder in folders if (folder / f"judge-{seed}.json").exists()), None)


def trained() -> list[int]:
    """Return the seeds of the judges that have been trained and tested."""
    return [seed for seed in SEEDS if home(seed)]


def weights(seed: int) -> Path:
    """Return the file of a trained judge."""
    return home(seed) / f"judge-{seed}.safetensors"


def stated(seed: int) -> dict[str, float]:
    """Return the `figures` of a judge that were written when it was trained."""
    return json.loads(weights(seed).with_suffix(".json").read_text())


def load(seed: int) -> Judge:
    """Return a trained and calibrated judge."""
    return Judge(_network(weights(seed)), stated(seed)["temperature"])


def _network(file: Path) -> Recogniser:
    network = Recogniser(len(all_subjects()), len(all_styles()))
    network.load_state_dict(load_file(file))
    return network.eval()


def _temperature(p: np.ndarray, wanted: np.ndarray) -> float:
    """Return the temperature with the least negative log likelihood, for probabilities of temperature 1."""
    from scipy.optimize import minimize_scalar  # whoever only asks a judge needs no scipy
    from scipy.special import logsumexp

    logits = np.log(np.maximum(p.astype(np.float64), 1e-30))
    rows = np.arange(len(p))

    def surprise(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float((logsumexp(scaled, axis=1) - scaled[rows, wanted]).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(-2.5, 1.5), method="bounded").x))


def figures(seed: int) -> dict[str, float]:
    """Return the judge's temperature and its own top-1 and mean probability of the truth on the test placement.

    Accuracy is on all of it, on true pictures and after the autoencoder; the temperature is fitted on every second
    picture after the autoencoder, and the mean probability is of the other half.
    """
    data, network = dataset.load(), _network(runs() / "judges" / f"judge-{seed}.safetensors")
    codec = np.load(runs() / "judges" / "codec.npy", mmap_mode="r")
    wanted = dict(zip(("subject", "style"), np.indices(data.pictures.shape[:2]).reshape(2, -1), strict=True))
    half, temperature, result = sum(wanted.values()) % 2 == 0, 1.0, {}
    for source, pictures in (("true", data.pictures), ("codec", codec)):
        verdict = judge(Judge(network), pictures[:, :, -1].reshape(-1, *pictures.shape[-3:]))
        for head, answer in wanted.items():
            result[f"{head}, {source}"] = float((getattr(verdict, head).argmax(1) == answer).mean())
        if source == "codec":
            temperature = _temperature(verdict.subject[half], wanted["subject"][half])
            for head, answer in wanted.items():
                sharp = getattr(verdict, head)[~half].astype(np.float64) ** (1 / temperature)
                truth = sharp[np.arange(len(sharp)), answer[~half]] / sharp.sum(1)
                result[f"{head}, mean p"] = float(truth.mean())
    return result | {"temperature": temperature}


def main() -> None:
    """Train the judges side by side and state their accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, choices=SEEDS, default=SEEDS[0])
    parser.add_argument("--codec", action="store_true", help="train nothing; put the pictures through the autoencoder")
    parser.add_argument("--ship", action="store_true", help="train nothing; put the judge into the repository, in fp16")
    options = parser.parse_args()
    folder = runs() / "judges"
    if options.ship:
        JUDGES.mkdir(exist_ok=True)
        name = f"judge-{options.seed}.safetensors"
        save_file(_network(folder / name).half().state_dict(), JUDGES / name)
        shutil.copy(folder / f"judge-{options.seed}.json", JUDGES)
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    own = runs() / "autoencoder" / "vae"
    vae = AutoencoderKL.from_pretrained(own if own.exists() else MODEL / "vae")
    _through_codec(vae, dataset.load(), folder / "codec.npy")
    if options.codec:
        return
    in_parallel(lambda: fit(options.seed, options.steps, options.batch, folder), 1)
    facts = figures(options.seed)
    (folder / f"judge-{options.seed}.json").write_text(json.dumps(facts, indent=1))
    print(facts, flush=True)


if __name__ == "__main__":
    main()
