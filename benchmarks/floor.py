"""What a fusion cannot go below on this machine, part by part: `make floor`. README.md says how to read the table.

python benchmarks/floor.py [--only sdxl-32] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from measuring import load_average, run
from pairs import PAIRS, Pair
from rich.console import Console
from rich.table import Table

import nplora
from nplora.adapters import LowRank
from nplora.storage import cast_into

MB = 1 << 20
START = [sys.executable, "-c", "import click, numpy"]


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """The shortest of a few times, in seconds: a floor, not an average."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def multiplications(path: Path) -> float:
    """Multiplications of the products that both files' modules need, if both are of this file's shapes.

    Per module ``A A^T`` three times (subject, style, both), ``B^T B`` twice and ``C A`` once.
    """
    updates = [module.update for module in nplora.load(path).values()]
    return sum(u.rank**2 * (4 * u.size[1] + 2 * u.size[0]) for u in updates if isinstance(u, LowRank))


def multiplications_per_second() -> float:
    """The rate of one core at large products in float32, the best that BLAS reaches."""
    one, two = (np.ones((1024, 1024), np.float32) for _ in range(2))
    return 1024**3 / best(lambda: one @ two)


def casts_per_second() -> float:
    """Halves that one core turns into float32 in a second, in the cache."""
    half, single = np.ones(MB // 8, np.float16), np.empty(MB // 8, np.float32)
    return half.size / best(lambda: cast_into(half, single), 50)


def write(path: Path, size: int) -> None:
    """Write so many bytes and flush them, as a crash-safe writer must."""
    block = memoryview(bytes(8 * MB))
    with path.open("wb") as stream:
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
        os.fsync(stream.fileno())


def parts(pair: Pair, folder: Path) -> dict[str, float]:
    """Part of the work -> seconds of one core; the start comes first and cannot be shared between cores."""
    subject, style = pair.files(folder)
    size = subject.stat().st_size + style.stat().st_size
    blobs, output = [path.read_bytes() for path in (subject, style)], folder / "floor.bin"
    found = {
        "start of Python, click and NumPy": min(run(START) for _ in range(5)),
        "SHA-256 of both inputs": best(lambda: [hashlib.sha256(blob) for blob in blobs], 3),
        "products at BLAS's best rate": multiplications(subject) / multiplications_per_second(),
        "casts from half precision": size / 2 / casts_per_second(),
        "write and flush": best(lambda: write(output, size), 3),
    }
    copy = ["sh", "-c", 'cat "$0" "$1" > "$2"', str(subject), str(style), str(output)]
    found["cat a b > c"] = min(run(copy) for _ in range(5) if output.unlink(missing_ok=True) is None)
    output.unlink()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[pair.name for pair in PAIRS], action="append")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nplora-bench")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    cores, before = os.cpu_count() or 1, load_average()
    columns = {
        pair.title: parts(pair, options.folder) for pair in PAIRS if not options.only or pair.name in options.only
    }
    table = Table(title="Seconds of one core, the best of a few", title_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name in next(iter(columns.values())):
        table.add_row(name, *(f"{found[name]:.3f}" for found in columns.values()), end_section=name.startswith("write"))
    floors = [_floor(found, cores) for found in columns.values()]
    table.add_row(f"start + the rest on {cores} cores", *(f"{floor:.3f}" for floor in floors))
    shares = (floor / found["cat a b > c"] for floor, found in zip(floors, columns.values(), strict=True))
    table.add_row("the same over cat", *(f"{share:.1f} x" for share in shares))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(f"load average {before} before and {load_average()} after")


def _floor(found: dict[str, float], cores: int) -> float:
    start, *shared = (seconds for name, seconds in found.items() if not name.startswith("cat"))
    return start + sum(shared) / cores


if __name__ == "__main__":
    main()
