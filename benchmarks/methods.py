"""Methods beside the programs that people merge with now, on the same modules in one run: README.md.

OPENBLAS_NUM_THREADS=1 python benchmarks/methods.py [--rounds 3] [--quick] [--folder FOLDER] [--json FILE]

One module of each shape of an SDXL adapter (rank 16) is merged with its partner, and the time is multiplied by the
number of modules of that shape. Times are CPU seconds of this process on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measuring import load_average
from pairs import Pair
from rich.console import Console
from rich.table import Table

import nplora
from nplora.cli.running import keep_memory
from nplora.fusion.projection import project
from nplora.methods import Part, all_methods, find_method

PAIR = Pair("sdxl-16", "SDXL, rank 16", "sdxl-kohya --rank 16", "sdxl-kohya --rank 16", 0.3)
RANK = 32  # of every truncated result
DENSITY = 0.2
OURS: dict[str, dict[str, object]] = {
    "svd": {"rank": RANK}, "tsv": {}, "iso-c": {}, "core-space": {}, "knots": {}, "np-adaptive": {}, "np-bilateral": {},
    "ties": {"rank": RANK, "density": DENSITY}, "dare": {"rank": RANK}, "magnitude": {"rank": RANK, "density": DENSITY},
}  # fmt: skip
Merge = Callable[[list[Part]], object]


@dataclass(frozen=True)
class Row:
    """One way to merge: seconds for all modules, and how far its result is from the rank's best, if that is known."""

    who: str
    what: str
    seconds: float
    excess: float | None = None


def modules(folder: Path) -> tuple[dict[tuple[int, int], list[Part]], Counter[tuple[int, int]]]:
    """One pair of updates for each shape, and how many modules have it."""
    subject, style = (nplora.load(path) for path in PAIR.files(folder))
    found: dict[tuple[int, int], list[Part]] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for name in subject:
        updates = [adapter[name].update for adapter in (subject, style)]
        shape = (updates[0].up.shape[0], updates[0].down.shape[1])
        counts[shape] += 1
        if shape not in found:
            found[shape] = [Part(u.scale * u.up.read().astype(float), u.down.read().astype(float)) for u in updates]
    return found, counts


def timed(merge: Merge, shapes: dict, counts: Counter, rounds: int) -> float:
    """CPU seconds for all modules: the best of the rounds for each shape, times its count."""
    total = 0.0
    for shape, parts in shapes.items():
        best = float("inf")
        for _ in range(rounds):
            start = time.process_time()
            merge(parts)
            best = min(best, time.process_time() - start)
        total += best * counts[shape]
    return total


def np_lora(parts: list[Part]) -> object:
    """np on one module, in float64 as the others get it (in batches it is faster)."""
    subject, style = parts
    arrays = (array[None] for array in (subject.up, subject.down, style.up, style.down))
    return project(*arrays, all_methods()["np"], {"mu": 0.5})


def through_peft(kind: str, shapes: dict, **values: object) -> Merge:
    """PEFT's own `add_weighted_adapter` on a layer that holds both adapters; only that call is to be timed."""
    import peft
    import torch

    def model_of(parts: list[Part]) -> object:
        model = torch.nn.Sequential(torch.nn.Linear(parts[0].down.shape[1], parts[0].up.shape[0], bias=False))
        wrapped = None
        for name, part in zip("ab", parts, strict=True):
            rank = part.up.shape[1]
            config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
            if wrapped is None:
                wrapped = peft.get_peft_model(model, config, name)
            else:
                wrapped.add_adapter(name, config)
            layer = wrapped.base_model.model[0]
            layer.lora_A[name].weight.data = torch.from_numpy(part.down).float()
            layer.lora_B[name].weight.data = torch.from_numpy(part.up).float()
        return wrapped

    prepared = {id(parts): model_of(parts) for parts in shapes.values()}  # not a part of what is timed

    def merge(parts: list[Part]) -> object:
        wrapped = prepared[id(parts)]
        if "merged" in wrapped.peft_config:
            wrapped.delete_adapter("merged")
        wrapped.add_weighted_adapter(["a", "b"], [1.0, 1.0], "merged", kind, **values)
        return wrapped

    return merge


def dense_ties(parts: list[Part]) -> tuple[object, object]:
    """TIES as mergekit does it, whole matrices in float32 torch, and a thin SVD back to the rank."""
    import torch

    def sparse(x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x).flatten()
        mask[torch.topk(x.abs().flatten(), int(DENSITY * x.numel())).indices] = 1
        return x * mask.reshape(x.shape)

    with torch.no_grad():
        updates = [torch.from_numpy(part.up).float() @ torch.from_numpy(part.down).float() for part in parts]
        stack = torch.stack([sparse(update) for update in updates])
        sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
        agree = (stack.sign() == sign).float()
        merged = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
        U, s, Vt = torch.linalg.svd(merged, full_matrices=False)
        return merged, (U[:, :RANK] * s[:RANK]) @ Vt[:RANK]


def excess_of_ties(shapes: dict) -> float:
    """The largest ratio of our truncation error to the least possible, over the shapes up to 2^21 entries; less one."""
    worst = 0.0
    for (out, width), parts in shapes.items():
        if out * width <= 1 << 21:
            merged, best = (array.numpy() for array in dense_ties(parts))
            found = find_method("ties")(parts, seed=0, **OURS["ties"])
            distances = [np.linalg.norm(merged - result) for result in (found.up @ found.down, best)]
            worst = max(worst, distances[0] / distances[1] - 1)
    return worst


def show(rows: list[Row], count: int, busy: tuple[str, str]) -> None:
    base = {row.what: row.seconds for row in rows}
    console = Console(width=130)
    table = Table(title=f"{PAIR.title}: {count} modules, CPU seconds on one thread", title_justify="left")
    for column in ("who", "what", "seconds", "of np", "of dense TIES"):
        table.add_column(column, justify="left" if column in {"who", "what"} else "right")
    for row in rows:
        ratios = [f"{row.seconds / base[name]:.2f} x" if name in base else "" for name in ("np", DENSE)]
        table.add_row(row.who, row.what, f"{row.seconds:.2f}", *ratios)
    console.print(table)
    for row in rows:
        if row.excess is not None:
            console.print(
                f"Truncation error of {row.what} (nplora) over the least possible: {row.excess:+.2%} at most."
            )
    console.print(f"Load average {busy[0]} before and {busy[1]} after; CPU time suffers less from it than wall time.")


DENSE = "TIES on whole matrices + thin SVD"


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="for the quick methods; slow ones run once")
    parser.add_argument("--quick", action="store_true", help="leave out shapes of more than 2^21 entries")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nplora-bench")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
    keep_memory()  # as the command line does, for all programs here alike
    warnings.simplefilter("ignore")
    before = load_average()
    shapes, counts = modules(options.folder)
    if options.quick:
        shapes = {shape: parts for shape, parts in shapes.items() if shape[0] * shape[1] <= 1 << 21}
    rows = [Row("nplora", "np", timed(np_lora, shapes, counts, options.rounds))]
    for name, values in OURS.items():
        method = find_method(name)
        slow = name in {"ties", "dare", "magnitude"}
        seconds = timed(
            lambda parts, method=method, values=values: method(parts, seed=0, **values), shapes, counts,
            1 if slow else options.rounds,
        )  # fmt: skip
        rows.append(Row("nplora", name, seconds, excess_of_ties(shapes) if name == "ties" else None))
    for kind, values in (
        ("cat", {}), ("linear", {}), ("ties", {"density": DENSITY}),
        ("svd", {"svd_rank": RANK, "svd_full_matrices": False}),
        ("ties_svd", {"density": DENSITY, "svd_rank": RANK, "svd_full_matrices": False}),
    ):  # fmt: skip
        merge = through_peft(kind, shapes, **values)
        rows.append(Row("PEFT", kind, timed(merge, shapes, counts, 1)))
    rows.append(Row("torch", DENSE, timed(dense_ties, shapes, counts, 1)))
    show(rows, sum(counts[shape] for shape in shapes), (before, load_average()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
