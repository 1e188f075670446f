"""`python -m world.gates`: measure the world with both judges and draw what was measured.

LoRAs already scored are not scored again, so the command may be given while the series is still training.
Every figure is a mean over pictures of one seed each; every trained judge speaks to every picture, and no picture is
chosen by what a judge says.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image

from world import dataset, judge
from world.adapters import STYLE_TOKEN, SUBJECT_TOKEN
from world.networks import open_pipeline
from world.places import MODEL, digest, painter, runs
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
OTHER_WORDINGS = (
    f"a {SUBJECT_TOKEN} {{subject}} in {{style}} style",
    "{style} style, a {subject}",
    "a picture of a {subject}, {style} style",
)
UNTRAINED_STYLES = ("comic", "blueprint")  # for subject LoRAs


def _names() -> tuple[list[str], list[str]]:
    data = dataset.load()
    return [s.name for s in data.subjects], [s.name for s in data.styles]


def _scores(pictures: np.ndarray, subjects: np.ndarray, styles: np.ndarray) -> dict[str, dict]:
    """Return per judge: top-1 and mean probability of the wanted subject and style."""
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


def base(pipeline: Path, every: int = 1) -> dict:
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


def wordings(pipeline: Path, count: int = 36) -> dict[str, dict]:
    """Score other prompts than "a X in Y style", one with a word that means nothing, on pairs that go round all styles."""
    data, pipe = dataset.load(), open_pipeline(pipeline)
    subjects, styles = np.arange(count) * 10 % data.base_subjects, np.arange(count) % data.base_styles
    names = [(data.subjects[s].name, data.styles[t].name) for s, t in zip(subjects, styles, strict=True)]
    result = {}
    for wording in OTHER_WORDINGS:
        shots = [Shot(wording.format(subject=s, style=t), 3000 + i) for i, (s, t) in enumerate(names)]
        result[wording.format(subject="X", style="Y")] = _scores(render_all(pipe, shots), subjects, styles)
    return result


def spread(pictures: np.ndarray) -> float:
    """Return how much pictures of one prompt differ: deviation between them, mean over pixels, of 255."""
    return float(pictures.astype(np.float32).std(0).mean())


def spreads(pipeline: Path, count: int = 8) -> dict[str, float]:
    """Return the spread of the true pictures over their placements, and of the base's over the noise, in flat."""
    data, pipe = dataset.load(), open_pipeline(pipeline)
    flat = [s.name for s in data.styles].index("flat")
    chosen = [i for i, s in enumerate(data.subjects) if s.name in UNSEEN_SUBJECTS]
    shots = [Shot(caption(data.subjects[i].name, "flat"), seed) for i in chosen for seed in range(count)]
    painted = render_all(pipe, shots).reshape(len(chosen), count, dataset.SIZE, dataset.SIZE, 3)
    return {
        "true": float(np.mean([spread(data.pictures[i, flat]) for i in chosen])),
        "base": float(np.mean([spread(p) for p in painted])),
    }


def base_sheet(pipeline: Path, out: Path) -> None:
    """Draw some subjects in all base styles, each with a seed of its own: what a person should look at first."""
    styles = [s.name for s in dataset.load().styles if not s.held_out]
    shots = [Shot(caption(subject, style), 7000 + i) for style in styles for i, subject in enumerate(SHEET_SUBJECTS)]
    pictures = render_all(open_pipeline(pipeline), shots)
    dataset.sheet(pictures.reshape(len(styles), len(SHEET_SUBJECTS), *pictures.shape[1:]), out / "base.png")


def subject_lora(pipe: StableDiffusionPipeline, name: str, count: int = 8) -> tuple[dict, np.ndarray]:
    """Score a loaded subject LoRA in a style it was trained in and in base styles its pictures never showed."""
    subjects, styles = _names()
    shown = ("flat", *UNTRAINED_STYLES)
    shots = [Shot(f"a {SUBJECT_TOKEN} in {style} style", seed) for style in shown for seed in range(count)]
    pictures = render_all(pipe, shots).reshape(len(shown), count, dataset.SIZE, dataset.SIZE, 3)
    wanted = np.full(count, subjects.index(name))
    scores = {s: _scores(p, wanted, np.full(count, styles.index(s))) for s, p in zip(shown, pictures, strict=True)}
    scores["spread"] = spread(pictures[0])
    return scores, pictures[:, :4].reshape(-1, *pictures.shape[2:])


def style_lora(pipe: StableDiffusionPipeline, name: str, count: int = 2) -> tuple[dict, np.ndarray]:
    """Score a loaded style LoRA on subjects that its pictures never showed."""
    subjects, styles = _names()
    shots = [Shot(caption(s, STYLE_TOKEN), seed) for s in UNSEEN_SUBJECTS for seed in range(count)]
    pictures = render_all(pipe, shots)
    wanted = np.repeat([subjects.index(s) for s in UNSEEN_SUBJECTS], count)
    return {"unseen": _scores(pictures, wanted, np.full(len(shots), styles.index(name)))}, pictures[::count]


def _measure(pipeline: Path) -> list[Path]:
    """Return the files that decide a score: the painter and the judges."""
    return [painter(pipeline), *(judge.weights(seed) for seed in judge.trained())]


def loras(pipeline: Path, folder: Path, out: Path, known: dict) -> Iterator[dict]:
    """Score every LoRA of a folder that is not in `known` yet (by all that decides it); yields the growing table."""
    (out / "rows").mkdir(exist_ok=True)
    for file in sorted(folder.glob("*.safetensors")):
        known_as = digest(*_measure(pipeline), file)
        if file.name.endswith(".kohya.safetensors") or known.get(file.stem, {}).get("sha256") == known_as:
            continue
        kind, name = file.stem.split("-")[:2]
        pipe = open_pipeline(pipeline)
        pipe.load_lora_weights(file)
        scores, pictures = (subject_lora if kind == "subject" else style_lora)(pipe, name)
        known[file.stem] = scores | {"sha256": known_as}
        dataset.sheet(pictures[None], out / "rows" / f"{file.stem}.png")
        print(file.stem, _short(scores), flush=True)
        yield known


def lora_sheet(names: list[str], out: Path) -> None:
    """Put the pictures of the named LoRAs on one sheet, a row each, above what they were asked for."""
    rows = [Image.open(out / "rows" / f"{name}.png") for name in names]
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for index, row in enumerate(rows):
        page.paste(row, (0, sum(above.height for above in rows[:index])))
    page.save(out / "loras.png")


def _short(scores: dict) -> str:
    """Say content p / style p by each judge, for the line on the screen."""
    parts = []
    for where, by_judge in scores.items():
        if where not in ("spread", "sha256"):
            p = " ".join(f"{s['subject_p']:.2f}/{s['style_p']:.2f}" for s in by_judge.values())
            parts.append(f"{where} {p}")
    return ", ".join(parts)


def main() -> None:
    """Measure and write `gates.json` and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=MODEL)
    parser.add_argument("--loras", type=Path, help="folder of LoRA files to score as well")
    parser.add_argument("--skip-base", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="paint each subject in every n-th style only: quicker")
    parser.add_argument("--sheet", nargs="+", help="names of scored LoRAs to put on one sheet")
    parser.add_argument("--out", type=Path, default=runs() / "gates")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gates.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    figures["judges"] = {f"judge-{seed}": judge.stated(seed) for seed in judge.trained()}
    who = digest(*_measure(options.pipeline))
    if not options.skip_base and figures.get("base", {}).get("sha256") != who:
        base_sheet(options.pipeline, options.out)
        figures["base"] = base(options.pipeline, options.every) | {"sha256": who}
        figures["wordings"] = wordings(options.pipeline)
        figures["spread"] = spreads(options.pipeline)
        print(json.dumps(figures["base"]["all"]), flush=True)
        file.write_text(json.dumps(figures, indent=1))
    if options.loras:
        for table in loras(options.pipeline, options.loras, options.out, figures.get("loras", {})):
            file.write_text(json.dumps(figures | {"loras": table}, indent=1))
    if options.sheet:
        lora_sheet(options.sheet, options.out)


if __name__ == "__main__":
    main()
