"""Time and memory of nplora against things that everybody knows: `make bench`. README.md says how to read the table.

python benchmarks/run.py [--rounds 5] [--only sdxl-8] [--folder FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from measuring import IDLE, Timing, load_average, peak_anonymous, times
from pairs import MAKER, PAIRS, Pair
from rich.console import Console
from rich.table import Table

PYTHON = sys.executable
NPLORA = shutil.which("nplora", path=str(Path(PYTHON).parent)) or "nplora"
MB = 1_000_000
MEMORY_GOAL = 200  # MB above the bare interpreter
HELP, TORCH, CAT, CAT_SYNC = "bare Python", "import torch", "cat a b > c", "cat a b > c; sync c"
COMPARE = "nplora compare"


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, against what, and the goal, if there is one."""

    what: str
    measured: str
    against: str
    found: float
    goal: float | None = None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "[green]met[/green]" if self.found <= self.goal else "[red]not met[/red]"

    def cells(self) -> tuple[str, ...]:
        number = f"{self.found:.2f} x" if self.unit == "x" else f"{self.found:.0f} {self.unit}"
        goal = "" if self.goal is None else f"at most {self.goal:g} {self.unit}"
        return self.what, self.measured, self.against, number, goal, self.verdict


def ratio(what: str, timings: dict[str, Timing], baseline: str, goal: float | None) -> Row:
    """nplora's median time over a baseline's, both from the same turns."""
    ours, theirs = timings["nplora"], timings[baseline]
    return Row(what, str(ours), f"{baseline}: {theirs}", ours.median / theirs.median, goal)


def start(rounds: int) -> Row:
    """What it costs to ask for help."""
    timings = times({"nplora": [NPLORA, "--help"], HELP: [PYTHON, "-c", "pass"]}, rounds)
    return ratio("nplora --help", timings, HELP, 2.0)


def fusion(pair: Pair, folder: Path, rounds: int) -> list[Row]:
    """Two files to one: against `import torch` at rank 8, against copying both files elsewhere; and the memory."""
    subject, style = map(str, pair.files(folder))
    output = folder / f"out-{pair.name}.safetensors"
    commands = {"nplora": [NPLORA, "fuse", subject, style, "-o", str(output), "--quiet"]}
    if pair.name == "sdxl-32":
        commands[COMPARE] = [NPLORA, "compare", subject, style]
    if pair.name == "sdxl-8" and find_spec("torch"):
        commands[TORCH] = [PYTHON, "-c", "import torch"]
    for name, flush in ((CAT, ""), (CAT_SYNC, ' && sync "$2"')):
        commands[name] = ["sh", "-c", f'cat "$0" "$1" > "$2"{flush}', subject, style, str(output)]
    timings = times(commands, rounds, before=lambda: output.unlink(missing_ok=True))
    rows = []
    if TORCH in timings:
        rows.append(ratio(pair.title, timings, TORCH, 0.25))
    if COMPARE in timings:
        compared, fused = timings[COMPARE], timings["nplora"]
        rows.append(Row(f"{pair.title}: compare", str(compared), f"fuse: {fused}", compared.median / fused.median, 1.5))
    rows.append(ratio(pair.title, timings, CAT, None if pair.name == "sdxl-8" else 3.0))
    rows.append(ratio(pair.title, timings, CAT_SYNC, None))
    peak, idle = peak_anonymous(commands["nplora"]), peak_anonymous(IDLE)
    if peak and idle:
        above = (peak - idle) / MB
        measured, against = f"peak {peak / MB:.0f} MB", f"idle Python: {idle / MB:.0f} MB"
        rows.append(Row(pair.title, measured, against, above, MEMORY_GOAL, "MB"))
    output.unlink(missing_ok=True)
    return rows


def show(rows: list[Row], busy: tuple[str, str]) -> None:
    """The table, and what it was measured on."""
    table = Table(title="Whole processes taking turns: median (fastest to slowest)", title_justify="left")
    for column in ("what", "nplora", "against", "found", "goal", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "found" else "left")
    for row in rows:
        table.add_row(*row.cells())
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"
    console.print(
        f"{machine}, Python {platform.python_version()}, NumPy {version('numpy')}; load average {busy[0]} before and "
        f"{busy[1]} after. A busy machine makes every number worse, and not equally."
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each command runs (default 5)")
    names = ["help", *(pair.name for pair in PAIRS)]
    parser.add_argument("--only", choices=names, action="append", help="measure only this (may be given several times)")
    kept = Path(tempfile.gettempdir()) / "nplora-bench"
    parser.add_argument("--folder", type=Path, default=kept, help="where the files are kept")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    before, rows = load_average(), []
    if not options.only or "help" in options.only:
        rows.append(start(4 * options.rounds))
    for pair in PAIRS:
        if options.only and pair.name not in options.only:
            continue
        if not MAKER.exists():
            print(f"{pair.title}: skipped, there is no ../shared/loras/make_true_shaped.py to make the files with.")
        elif shutil.disk_usage(options.folder).free < 1e9 * pair.room:
            print(f"{pair.title}: skipped, {options.folder} has less than {pair.room} GB free.")
        else:
            print(f"{pair.title} ...", flush=True)
            rows += fusion(pair, options.folder, options.rounds)
    show(rows, (before, load_average()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
