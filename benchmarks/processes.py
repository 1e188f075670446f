"""Whole `nplora` runs in CPU seconds: exact methods beside np, and a recipe's pairs beside single runs: README.md.

OPENBLAS_NUM_THREADS=1 python benchmarks/processes.py [--rounds 5] [--side 8] [--folder FOLDER] [--json FILE]

CPU seconds (user and system) of one run from start to end with all its processes, the commands in turns; of a recipe's
pairs the seconds on the wall as well, which mean something on a quiet machine only. Adapters are SDXL, rank 16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from measuring import load_average
from pairs import Pair
from rich.console import Console
from rich.table import Table

METHODS = ("np", "linear", "np-spectral", "svd", "tsv", "iso-c")
RANK = 16
NPLORA = (sys.executable, "-m", "nplora")


@dataclass(frozen=True)
class Row:
    """One command: seconds (of a batch: for each pair), and the ratio to what it is compared with."""

    what: str
    seconds: float
    against: str
    found: float
    goal: float | None = None


@dataclass(frozen=True)
class Taken:
    """Seconds that a command took: of all cores together, and on the wall."""

    cpu: float
    wall: float


def taken(command: Sequence[str]) -> Taken:
    """Run a command and see what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return Taken(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, end - start)


def in_turns(commands: Mapping[str, Sequence[str]], rounds: int, out: Path) -> dict[str, float]:
    """The median of each command's CPU seconds, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            out.unlink(missing_ok=True)
            seconds = taken(command).cpu
            if number:
                found[name].append(seconds)
    out.unlink(missing_ok=True)
    return {name: median(seconds) for name, seconds in found.items()}


def methods(folder: Path, rounds: int) -> list[Row]:
    """Exact methods on one pair, beside np."""
    shape = f"sdxl-kohya --rank {RANK}"
    subject, style = Pair(f"sdxl-{RANK}", "", shape, shape, 0.3).files(folder)
    out = folder / "process-out.safetensors"
    commands = {name: [*NPLORA, "fuse", str(subject), str(style), "--method", name, "-o", str(out)] for name in METHODS}
    found = in_turns(commands, rounds, out)
    return [
        Row(name, seconds, "np", seconds / found["np"], None if name == "np" else 1.5)
        for name, seconds in found.items()
    ]


def batch(folder: Path, side: int) -> list[Row]:
    """A recipe of side x side pairs in one process, beside as many single runs as there are adapters on a side."""
    files = [_numbered(index).files(folder) for index in range(side)]
    work = folder / "batch"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    subjects, styles = ([os.fspath(two[part]) for two in files] for part in (0, 1))
    recipe = {"inputs": {"subject": subjects, "style": styles}, "method": "np", "output": {"folder": "out"}}
    (work / "pairs.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    singles = [
        taken([*NPLORA, "fuse", one, two, "-o", str(work / f"{index}.safetensors")])
        for index, (one, two) in enumerate(zip(subjects, styles, strict=True))
    ]
    together = taken([*NPLORA, "run", str(work / "pairs.yaml")])
    shutil.rmtree(work)
    return [
        _beside(side**2, "CPU", together.cpu, [one.cpu for one in singles]),
        _beside(side**2, "wall", together.wall, [one.wall for one in singles]),
    ]


def _beside(pairs: int, clock: str, seconds: float, singles: Sequence[float]) -> Row:
    single = median(singles)
    against = f"a single run ({single:.2f})"
    return Row(f"{pairs} pairs, for each, {clock}", seconds / pairs, against, seconds / pairs / single, 1 / 3)


def _numbered(index: int) -> Pair:
    """A pair of its own: the maker's seeds are a subject's and a style's, so numbers differ by their strength."""
    subject, style = (f"sdxl-kohya --rank {RANK} --strength {base + index / 10}" for base in (1, 2))
    return Pair(f"sdxl-{RANK}-{index}", "", subject, style, 0.3)


def show(rows: list[Row], busy: tuple[str, str]) -> None:
    """Print the rows and how busy the machine was."""
    table = Table(title=f"SDXL, rank {RANK}: seconds of whole runs, CPU where nothing is said", title_justify="left")
    for column in ("what", "seconds", "against", "found", "goal", ""):
        table.add_column(column, justify="left" if column in {"what", "against", ""} else "right")
    for row in rows:
        goal = f"{row.goal:.2f} x" if row.goal else ""
        met = "" if row.goal is None else "met" if row.found <= row.goal else "not met"
        table.add_row(row.what, f"{row.seconds:.2f}", row.against, f"{row.found:.2f} x", goal, met)
    console = Console(width=110)
    console.print(table)
    console.print(f"Load average {busy[0]} before and {busy[1]} after; CPU time suffers less from it than wall time.")


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the methods; 0 leaves them out")
    parser.add_argument("--side", type=int, default=8, help="subjects and styles of the batch; 0 leaves it out")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nplora-bench")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    before = load_average()
    rows = methods(options.folder, options.rounds) if options.rounds else []
    if options.side:
        rows += batch(options.folder, options.side)
    show(rows, (before, load_average()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
