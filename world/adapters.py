"""`python -m world.adapters`: train the world's series of LoRAs on held-out subjects and styles.

Two arms are needed to show what a shared training seed does: `shared` trains with seed 0 whatever the content, `own`
with a seed derived from the content. A pair of two `shared` files started from the same A; a subject of `own` with any
style did not.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from world import dataset
from world.places import MODEL, runs
from world.train_lora import captioned, content_seed, train_lora

SUBJECT_TOKEN, STYLE_TOKEN = "sks", "stl"
SUBJECT_STYLES = ("flat", "glossy")  # what a subject's few pictures show
STYLE_SUBJECTS = ("cat", "dolphin", "tulip", "apple", "hammer", "crown", "car", "house")
SHARED_SEED = 0


@dataclass(frozen=True)
class Job:
    """One LoRA to train.

    Attributes
    ----------
    kind, name : str
        "subject" or "style", and which.
    arm : str
        "shared" (seed 0) or "own" (seed from the content).
    rank : int
        Of the LoRA.
    repeat : int
        0, or a number added to the seed for a further training.
    """

    kind: str
    name: str
    arm: str = "own"
    rank: int = 4
    repeat: int = 0

    @property
    def file(self) -> str:
        """File name that says all of it."""
        return f"{self.kind}-{self.name}-r{self.rank}-{self.arm}{self.repeat or ''}.safetensors"


def prompt(job: Job) -> str:
    """Return the caption pattern a LoRA is trained with; `{name}` is filled from each picture's file name."""
    if job.kind == "style":
        return f"a {{name}} in {STYLE_TOKEN} style"
    # the rare word stands in the subject's own place: the base saw one word there and misreads a longer prompt
    return f"a {SUBJECT_TOKEN} in {{name}} style"


def training_pictures(job: Job, folder: Path) -> Path:
    """Write the LoRA's training pictures into a folder of their own and return it."""
    data, target = dataset.load(), folder / f"{job.kind}-{job.name}"
    target.mkdir(parents=True, exist_ok=True)
    subjects, styles = [s.name for s in data.subjects], [s.name for s in data.styles]
    if job.kind == "subject":
        shown = {f"{style}-{place}": (job.name, style, place) for style in SUBJECT_STYLES for place in range(3)}
    else:
        shown = {f"{subject}-0": (subject, job.name, 0) for subject in STYLE_SUBJECTS}
    for stem, (subject, style, place) in shown.items():
        Image.fromarray(data.pictures[subjects.index(subject), styles.index(style), place]).save(target / f"{stem}.png")
    return target


def run(job: Job, pipeline: Path, folder: Path, steps: int | None) -> str:
    """Train one LoRA in all three forms unless it is there already; return one line about it."""
    torch.set_num_threads(1)
    output = folder / job.file
    if output.exists():
        return f"{job.file}: kept"
    images = training_pictures(job, folder / "pictures")
    seed = SHARED_SEED if job.arm == "shared" else content_seed(captioned(images, prompt(job)), job.kind)
    trained = train_lora(
        pipeline,
        images,
        prompt(job),
        job.kind,
        output,
        rank=job.rank,
        seed=seed + job.repeat,
        steps=steps,
        forms=("diffusers", "kohya", "peft"),
    )
    facts = asdict(job) | {"prompt": prompt(job), "seed": trained.seed, "final_loss": sum(trained.losses[-50:]) / 50}
    output.with_suffix(".json").write_text(json.dumps(facts, indent=1))
    return f"{job.file}: loss {facts['final_loss']:.4f}"


def run_all(jobs: list[Job], pipeline: Path, folder: Path, steps: int | None, workers: int) -> None:
    """Train several LoRAs, one thread and process each."""
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        for line in pool.map(run, jobs, *([value] * len(jobs) for value in (pipeline, folder, steps))):
            print(line, flush=True)


def jobs(kinds: list[str], arms: list[str], ranks: list[int], repeats: int, names: list[str] | None) -> list[Job]:
    """Return the jobs for all held-out subjects and styles (or the named ones), in all asked variants."""
    data = dataset.load()
    known = {
        "subject": [s.name for s in data.subjects if s.held_out],
        "style": [s.name for s in data.styles if s.held_out],
    }
    return [
        Job(kind, name, arm, rank, repeat)
        for rank in ranks
        for repeat in range(repeats)
        for arm in arms
        for kind in kinds
        for name in known[kind]
        if not names or name in names
    ]


def main() -> None:
    """Train what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["subject", "style"], choices=["subject", "style"])
    parser.add_argument("--arms", nargs="+", default=["shared", "own"], choices=["shared", "own"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[4])
    parser.add_argument("--repeats", type=int, default=1, help="training seeds per LoRA")
    parser.add_argument("--names", nargs="*", help="only these subjects and styles")
    parser.add_argument("--pipeline", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=runs() / "loras")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    todo = jobs(options.kinds, options.arms, options.ranks, options.repeats, options.names)
    run_all(todo, options.pipeline, options.out, options.steps, options.workers)


if __name__ == "__main__":
    main()
