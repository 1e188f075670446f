"""`python -m world.adapters`: train the world's series of LoRAs on held-out subjects and styles (see `series.py`).

What is there already is kept, so the command may be cut off and given again; what was trained in another way than it
would be now is trained again. `--ship` copies the shipped part of what is trained into the repository.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from nplora.training import captioned, content_seed, train_lora
from world import dataset
from world.places import LORAS, MODEL, digest, painter, runs
from world.series import Job, series

SUBJECT_TOKEN, STYLE_TOKEN = "sks", "stl"
SUBJECT_STYLES = (
    "flat",
    "glossy",
    "sketch",
    "watercolor",
)  # what a subject's few pictures show: two styles alone stick to it
SUBJECT_PLACEMENTS = 2  # of each
STYLE_SUBJECTS = (
    *("cat", "dolphin", "tulip", "apple", "hammer", "crown", "car", "house"),
    *("rabbit", "shark", "palm", "cake", "scissors", "lamp", "train", "mountain"),
    *("lion", "snake", "butterfly", "donut", "shirt", "drum", "bicycle", "star"),
)  # one picture each: eight left the style on the subjects they showed; none of `gates.UNSEEN_SUBJECTS` is here
SHARED_SEED = 0
BATCH = 4
STEPS, RATE = {"subject": 200, "style": 250}, {"subject": 2e-3, "style": 4e-3}


def prompt(job: Job) -> str:
    """Return the caption pattern a LoRA is trained with; `{name}` is filled from each picture's file name."""
    if job.kind == "style":
        return f"a {{name}} in {STYLE_TOKEN} style"
    # the rare word stands in the subject's own place: the base saw one word there and misreads a longer prompt
    return f"a {SUBJECT_TOKEN} in {{name}} style"


def training_pictures(job: Job, folder: Path) -> Path:
    """Write the LoRA's training pictures into a folder of their own, and nothing else there, and return it."""
    data, target = dataset.load(), folder / f"{job.kind}-{job.name}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    subjects, styles = [s.name for s in data.subjects], [s.name for s in data.styles]
    if job.kind == "subject":
        shown = {
            f"{style}-{place}": (job.name, style, place)
            for style in SUBJECT_STYLES
            for place in range(SUBJECT_PLACEMENTS)
        }
    else:
        shown = {f"{subject}-0": (subject, job.name, 0) for subject in STYLE_SUBJECTS}
    for stem, (subject, style, place) in shown.items():
        Image.fromarray(data.pictures[subjects.index(subject), styles.index(style), place]).save(target / f"{stem}.png")
    return target


def recipe(job: Job, images: Path, pipeline: Path, steps: int | None) -> dict[str, object]:
    """Return everything that decides what a LoRA's training comes to."""
    seed = SHARED_SEED if job.arm == "shared" else content_seed(captioned(images, prompt(job)), job.kind)
    return asdict(job) | {
        "prompt": prompt(job),
        "pictures": len(captioned(images, prompt(job))),
        "seed": seed + job.repeat,
        "steps": steps or STEPS[job.kind],
        "batch": BATCH,
        "rate": RATE[job.kind],
        "base": digest(painter(pipeline)),
    }


def run(job: Job, images: Path, pipeline: Path, folder: Path, steps: int | None) -> str:
    """Train one LoRA unless it is there already, in the forms it ships in; return one line about it."""
    torch.set_num_threads(1)
    output = folder / job.file
    wanted, notes = recipe(job, images, pipeline, steps), output.with_suffix(".json")
    if notes.exists() and wanted.items() <= json.loads(notes.read_text()).items():  # written last: the LoRA is whole
        return f"{job.file}: kept"
    trained = train_lora(
        pipeline,
        images,
        prompt(job),
        job.kind,
        output,
        rank=job.rank,
        overwrite=True,
        forms=job.shipped_forms,
        **{key: wanted[key] for key in ("seed", "steps", "batch", "rate")},
    )
    last = trained.losses[-max(len(trained.losses) // 10, 1) :]
    final = round(sum(last) / len(last), 5)
    notes.write_text(json.dumps(wanted | {"final_loss": final}, indent=1) + "\n")
    return f"{job.file}: loss {final:.4f}"


def run_all(jobs: list[Job], pipeline: Path, folder: Path, steps: int | None, workers: int) -> None:
    """Train several LoRAs, one thread and process each."""
    shown = {(job.kind, job.name): job for job in jobs}
    images = {key: training_pictures(job, folder / "pictures") for key, job in shown.items()}
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        folders = [images[job.kind, job.name] for job in jobs]
        for line in pool.map(run, jobs, folders, *([value] * len(jobs) for value in (pipeline, folder, steps))):
            print(line, flush=True)


def ship(folder: Path, target: Path) -> list[Path]:
    """Replace the LoRAs in `target` by the shipped ones among those in `folder`; return the copies."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    copies = []
    for job in series():
        source = folder / job.file
        if not (job.shipped and source.with_suffix(".json").exists()):
            continue
        copies.append(Path(shutil.copy(source, target)))
        shutil.copy(source.with_suffix(".json"), target)
        if "kohya" in job.shipped_forms:
            shutil.copy(source.with_suffix(".kohya.safetensors"), target)
        if "peft" in job.shipped_forms:
            shutil.copytree(source.with_suffix(".peft"), target / source.with_suffix(".peft").name)
    return copies


def main() -> None:
    """Train what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=["subject", "style"], help="only these (default: all)")
    parser.add_argument("--arms", nargs="+", choices=["shared", "own"], help="only these")
    parser.add_argument("--ranks", nargs="+", type=int, help="only these")
    parser.add_argument("--repeats", nargs="+", type=int, help="only these training seeds: 0, 1, 2")
    parser.add_argument("--names", nargs="+", help="only these subjects and styles")
    parser.add_argument("--shipped", action="store_true", help="only what the repository ships")
    parser.add_argument("--ship", action="store_true", help="train nothing; copy what is shipped into the repository")
    parser.add_argument("--pipeline", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=runs() / "loras")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.ship:
        print(f"{len(ship(options.out, LORAS))} LoRAs in {LORAS}")
        return
    wanted = {
        "kind": options.kinds,
        "arm": options.arms,
        "rank": options.ranks,
        "repeat": options.repeats,
        "name": options.names,
    }
    todo = [
        job
        for job in series()
        if all(not allowed or getattr(job, field) in allowed for field, allowed in wanted.items())
        and (job.shipped or not options.shipped)
    ]
    run_all(todo, options.pipeline, options.out, options.steps, options.workers)


if __name__ == "__main__":
    main()
