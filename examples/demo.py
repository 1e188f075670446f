"""Fuse a subject with a style in both arms and look at it: `make demo`, on the CPU, with nothing downloaded.

The world (a miniature Stable Diffusion that lies in this repository) and LoRAs trained on it, once with one seed for
subject and style and once with different seeds. Everything lands in `demo/`; the page to open is `demo/demo.html`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.progress import Progress

from nplora.errors import UsageError
from nplora.pictures import (
    Asked,
    Opened,
    Picture,
    Section,
    Sheet,
    arrange,
    draw,
    facts,
    find_base,
    find_world,
    open_pipeline,
    prepare_process,
    render,
    save_page,
    save_png,
    world_scorer,
)  # fmt: skip

FOLDER = Path("demo")
PAIRS = (("turtle", "gold"), ("guitar", "thermal"))
ARMS = {"shared": "one seed", "own": "different seeds"}
SEED, MU = 1, 0.5
HOW = (
    "A row is a pair of LoRAs and how it was trained: subject and style from one seed, or from different seeds. Its "
    "first picture is the true one, painted by the program that painted the training pictures too; neither the base "
    "model nor a LoRA has seen it. All pictures start from the same noise."
)
BOTH, ALONE = "a sks in stl style", {"subject": "a sks in flat style", "style": "a cat in stl style"}


def nplora(*words: str) -> None:
    """Run one command as a person would, and show it."""
    print("\n$ nplora", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "nplora", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def files(subject: str, style: str, arm: str) -> list[Path]:
    """The two LoRAs of an arm: both from seed 0, or each from a seed of its own."""
    shipped = find_world() / "loras"
    style_file = f"style-{style}-r4-{arm}.safetensors"
    if not (shipped / style_file).exists():  # a subject from its own seed shares nothing with a style from seed 0
        style_file = f"style-{style}-r4-shared.safetensors"
    names = f"subject-{subject}-r4-{arm}.safetensors", style_file
    for name in names:
        shutil.copy(shipped / name, FOLDER)
    return [FOLDER / name for name in names]


def fuse(subject: str, style: str, arm: str) -> str:
    """Fuse, report and verify; what the report says of the pair."""
    fused, report = (FOLDER / f"{subject}-{style}-{arm}.{kind}" for kind in ("safetensors", "json"))
    nplora(
        "fuse",
        *map(str, files(subject, style, arm)),
        "-o",
        str(fused),
        "--mu",
        str(MU),
        "--report",
        str(report),
        "--overwrite",
    )
    nplora("verify", str(fused))
    found = json.loads(report.read_text(encoding="utf-8"))
    return f"{found['sentence']} {found['advice']}"


def paint(opened: Opened, subject: str, style: str, arm: str, steps: int | None, bar: Progress) -> Sheet:
    """One row: the true picture, then each adapter's."""
    pair = files(subject, style, arm)
    grid = arrange(Asked([BOTH], [SEED], parameters={"mu": MU}, alone=ALONE, steps=steps), pair)
    try:
        scorer = world_scorer(opened.base, {"subject": subject, "style": style})
    except UsageError:  # no judge has been trained here
        scorer = None
    label = f"{subject} + {style}, {ARMS[arm]}"
    task = bar.add_task(label)
    sheet = render(grid, pair, opened, scorer=scorer, progress=lambda n, of: bar.update(task, completed=n, total=of))
    true = find_world() / "pictures" / "true" / f"{subject}-{style}.png"
    sheet = sheet.with_column("true picture", [Picture(Image.open(true)) if true.exists() else None])
    return replace(sheet, rows=(label,))


def main() -> None:
    """Four fusions, one grid, one page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, help="of the sampler; fewer are faster and rougher")
    steps = options.parse_args().steps
    prepare_process()
    FOLDER.mkdir(exist_ok=True)
    rows = [(subject, style, arm) for subject, style in PAIRS for arm in ARMS]
    said = tuple((f"{subject} + {style}, {ARMS[arm]}", fuse(subject, style, arm)) for subject, style, arm in rows)
    print("\nOpening the world and painting ...", flush=True)
    opened = open_pipeline(find_base("world"))
    with Progress(transient=True) as bar:
        first, *more = (paint(opened, *row, steps, bar) for row in rows)
    for sheet in more:
        first = first.above(sheet)
    save_png(draw(first, side=128), FOLDER / "demo.png", overwrite=True)
    loras = dict.fromkeys(file for row in rows for file in files(*row))
    settings = {
        "mu": MU,
        "seed": SEED,
        "prompt": BOTH,
        "subject alone": ALONE["subject"],
        "style alone": ALONE["style"],
    }
    sections = [
        Section("", (HOW,), first),
        Section("What the reports say", facts=said),
        Section("How it was made", facts=facts(opened, list(loras), first, settings)),
    ]
    page = save_page(FOLDER / "demo.html", "A subject in a style", sections, overwrite=True)
    print(f"{len(rows) * 6} pictures in {first.seconds:.0f} s. Open {page}, or {FOLDER / 'demo.png'}.")


if __name__ == "__main__":
    main()
