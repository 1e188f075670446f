"""`python -m world.gates`: measure the world with both judges and draw what was measured.

Every figure is a mean over pictures of one seed each; every trained judge speaks to every picture, and no picture is
chosen by what a judge says.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from world import dataset, judge
from world.adapters import STYLE_TOKEN, SUBJECT_TOKEN
from world.networks import open_pipeline
from world.places import MODEL, runs
from world.sampling import Shot, render_all
from world.words import caption

SHEET_SUBJECTS = (
    "bicycle",
    "bus",
    "cow",
    "cat",
    "beer",
    "moon",
    "octopus",
    "rose",
    "wrench",
    "carrot",
    "monkey",
    "mountain",
    "axe",
    "sun",
    "rainbow",
    "camel",
)
UNSEEN_SUBJECTS = ("dog", "horse", "sunflower", "pineapple", "bell", "teapot", "tractor", "castle")  # for style LoRAs
UNTRAINED_STYLES = ("comic", "blueprint")  # for subject LoRAs


def _names() -> tuple[list[str], list[str]]:
    data = dataset.load()
    return [s.name for s in data.subjects], [s.name for s in data.styles]


def _scores(pictures: np.ndarray, subjects: np.ndarray, styles: np.ndarray) -> dict[str, dict]:
    """Return per judge: top-1 and mean probability of the wanted subject and style (NaN free: all are wanted)."""
    rows, result = np.arange(len(pictures)), {}
    for seed in judge.trained():
        verdict = judge.judge(judge.load(seed), pictures)
        result[f"judge-{seed}"] = {
            "subject_top1": float((verdict.subject.argmax(1) == subjects).mean()),
            "style_top1": float((verdict.style.argmax(1) == styles).mean()),
            "subject_p": float(verdict.subject[rows, subjects].mean()),
            "style_p": float(verdict.style[rows, styles].mean()),
        }
    return result


def base(pipeline: Path, out: Path, every: int = 1) -> dict:
    """Paint every base subject in every base style once (or in each `every`-th, by turns); scores in all and by style."""
    data = dataset.load()
    n_styles = data.base_styles
    subjects, styles = np.indices((data.base_subjects, n_styles)).reshape(2, -1)
    taken = (subjects + styles) % every == 0
    subjects, styles = subjects[taken], styles[taken]
    shots = [
        Shot(caption(data.subjects[s].name, data.styles[t].name), 1000 + i)
        for i, (s, t) in enumerate(zip(subjects, styles, strict=True))
    ]
    pictures = render_all(open_pipeline(pipeline), shots)
    by_style = {
        data.styles[t].name: _scores(pictures[styles == t], subjects[styles == t], styles[styles == t])
        for t in range(n_styles)
    }
    return {"pictures": len(pictures), "all": _scores(pictures, subjects, styles), "by_style": by_style}


def base_sheet(pipeline: Path, out: Path) -> None:
    """Draw some subjects in all base styles, each with a seed of its own: what a person should look at first."""
    styles = [s.name for s in dataset.load().styles if not s.held_out]
    shots = [Shot(caption(subject, style), 7000 + i) for style in styles for i, subject in enumerate(SHEET_SUBJECTS)]
    pictures = render_all(open_pipeline(pipeline), shots)
    dataset.sheet(pictures.reshape(len(styles), len(SHEET_SUBJECTS), *pictures.shape[1:]), out / "base.png")


def subject_lora(pipeline: Path, file: Path, count: int = 8) -> tuple[dict, np.ndarray]:
    """Score one subject LoRA in its trained styles and in base styles its pictures never showed."""
    subjects, styles = _names()
    name = file.stem.split("-")[1]
    pipe = open_pipeline(pipeline)
    pipe.load_lora_weights(file)
    shown = ("flat", *UNTRAINED_STYLES)
    shots = [Shot(f"a {SUBJECT_TOKEN} in {style} style", seed) for style in shown for seed in range(count)]
    pictures = render_all(pipe, shots).reshape(len(shown), count, dataset.SIZE, dataset.SIZE, 3)
    wanted = np.full(count, subjects.index(name))
    scores = {s: _scores(p, wanted, np.full(count, styles.index(s))) for s, p in zip(shown, pictures, strict=True)}
    scores["spread"] = _spread(pictures[0])
    return scores, pictures


def style_lora(pipeline: Path, file: Path, count: int = 2) -> tuple[dict, np.ndarray]:
    """Score one style LoRA on subjects that its pictures never showed."""
    subjects, styles = _names()
    name = file.stem.split("-")[1]
    pipe = open_pipeline(pipeline)
    pipe.load_lora_weights(file)
    shots = [Shot(f"{caption(s, STYLE_TOKEN)}", seed) for s in UNSEEN_SUBJECTS for seed in range(count)]
    pictures = render_all(pipe, shots)
    wanted = np.repeat([subjects.index(s) for s in UNSEEN_SUBJECTS], count)
    scores = _scores(pictures, wanted, np.full(len(shots), styles.index(name)))
    return scores, pictures[::count]


def _spread(pictures: np.ndarray) -> float:
    """How much pictures of one prompt differ: mean over pixels of the deviation between seeds, 0..255."""
    return float(pictures.astype(np.float32).std(0).mean())


def loras(pipeline: Path, folder: Path, out: Path) -> dict:
    """Score every LoRA of a folder; one sheet for subjects (flat, untrained styles), one for styles."""
    result, sheets = {}, {"subject": [], "style": []}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name.endswith(".kohya.safetensors"):
            continue
        kind = file.stem.split("-")[0]
        scores, pictures = (subject_lora if kind == "subject" else style_lora)(pipeline, file)
        result[file.stem] = scores
        sheets[kind].append(pictures[:, :4].reshape(-1, *pictures.shape[2:]) if kind == "subject" else pictures)
        print(file.stem, json.dumps(_short(scores)), flush=True)
    for kind, rows in sheets.items():
        if rows:
            dataset.sheet(np.stack(rows), out / f"loras-{kind}.png")
    return result


def _short(scores: dict) -> dict:
    """Keep the first judge's probabilities for the line on the screen."""
    first = f"judge-{judge.trained()[0]}"
    if first in scores:
        return {k: round(v, 2) for k, v in scores[first].items()}
    return {
        style: [round(s[first][k], 2) for k in ("subject_p", "style_p")]
        for style, s in scores.items()
        if style != "spread"
    }


def main() -> None:
    """Measure and write `gates.json` and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=MODEL)
    parser.add_argument("--loras", type=Path, help="folder of LoRA files to score as well")
    parser.add_argument("--skip-base", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="paint each subject in every n-th style only: quicker")
    parser.add_argument("--out", type=Path, default=runs() / "gates")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gates.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    figures["judges"] = {
        f"judge-{seed}": json.loads((runs() / "judges" / f"judge-{seed}.json").read_text()) for seed in judge.trained()
    }
    if not options.skip_base:
        base_sheet(options.pipeline, options.out)
        figures["base"] = base(options.pipeline, options.out, options.every)
        print(json.dumps(figures["base"]["all"]), flush=True)
    if options.loras:
        figures["loras"] = loras(options.pipeline, options.loras, options.out)
    file.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
