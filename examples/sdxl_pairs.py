"""Make a subject and two styles, fuse both pairs, compare them and verify the results.

The three adapters have the names and shapes of SDXL LoRAs (722 modules, rank 4; the subject in kohya's naming, the
styles in diffusers'), and numbers like trained ones, but nobody trained them. One style begins where the subject
began, as two trainings by one script with one seed do; the other begins elsewhere. Everything lands in `sdxl-pairs/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nplora.formats import all_formats
from nplora.layouts import load

FOLDER = Path("sdxl-pairs")
RANK = 4
ARMS = {"shared seed": "style-shared-seed", "different seeds": "style-other-seed"}


def adapter(name: str, format_name: str, start: int, training: int) -> None:
    """Write an SDXL-shaped LoRA: the down factors start from one seed, the rest comes from another.

    Training leaves the down factor A near the random numbers that it began with; the up factor B begins at zero, so
    all of it was learned. Here B is random, its columns falling off as the spectra of trained files do.
    """
    layout, naming = load("sdxl"), all_formats()[format_name]
    first, learned = np.random.default_rng(start), np.random.default_rng(training)
    tensors = {}
    for module in layout.modules("unet"):
        shape = layout.shape("unet", module)
        if ".attentions." not in module or len(shape) != 2:  # norms, and what trainers leave out by default
            continue
        out, width = shape
        begun = first.uniform(-1, 1, (RANK, width)).astype(np.float32) / np.sqrt(width)
        drift = 0.03 * begun.std() * learned.standard_normal((RANK, width), np.float32)
        up = learned.standard_normal((out, RANK), np.float32) * 0.8 ** np.arange(RANK, dtype=np.float32)
        stem = naming.spell("unet", module, layout).module
        tensors[stem + naming.suffixes["down"]] = (begun + drift).astype(np.float16)
        tensors[stem + naming.suffixes["up"]] = (up / np.linalg.norm(up)).astype(np.float16)
        if naming.scale == "alpha":
            tensors[stem + naming.suffixes["alpha"]] = np.array(RANK, np.float32)
    save_file(tensors, FOLDER / f"{name}.safetensors", {"modelspec.trigger_phrase": name.partition("-")[0]})


def nplora(*words: str) -> float:
    """Run one command as a person would, show it, and say how long it took."""
    print("\n$ nplora", *words, flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "nplora", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return time.perf_counter() - start


def fuse_and_prove(style: str) -> dict[str, str]:
    """One arm: compare, fuse, verify; the row of the last table."""
    subject, other = str(FOLDER / "subject.safetensors"), str(FOLDER / f"{style}.safetensors")
    fused, report = str(FOLDER / f"fused-{style}.safetensors"), FOLDER / f"fused-{style}.json"
    nplora("compare", subject, other)
    seconds = nplora("fuse", subject, other, "-o", fused, "--mu", "0.5", "--report", str(report), "--overwrite")
    nplora("verify", fused)
    found = json.loads(report.read_text(encoding="utf-8"))
    return {
        "overlap": f"{found['rho']:.1%}",
        "by chance": f"{found['chance']:.1%}",
        "mu = 0.5 moves the subject by": f"{found['subject_change']:.1%}",
        "its norm is that of strength": f"{found['matched_addition_strength']:.2f}",
        "regime": found["regime"],
        "fused in": f"{seconds:.1f} s",
    }


def show(rows: dict[str, dict[str, str]]) -> None:
    """The last table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "pair", *next(iter(rows.values())), title=f"Two pairs of SDXL-shaped LoRAs, rank {RANK}", title_justify="left"
    )
    for name, cells in rows.items():
        table.add_row(name, *cells.values())
    print()
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"Both fused files are verified. They lie in {FOLDER}/, with a report of every module.")


def main() -> None:
    """Three files, two fusions, one table."""
    FOLDER.mkdir(exist_ok=True)
    print(f"Making three adapters in {FOLDER}/ ...", flush=True)
    adapter("subject", "kohya", start=1, training=11)
    adapter(ARMS["shared seed"], "diffusers", start=1, training=12)
    adapter(ARMS["different seeds"], "diffusers", start=2, training=13)
    show({name: fuse_and_prove(style) for name, style in ARMS.items()})


if __name__ == "__main__":
    main()
