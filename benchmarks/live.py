"""How long fusing in a live model and a turn of mu take, on adapters of SDXL's size: docs/diffusers.md.

OPENBLAS_NUM_THREADS=1 python benchmarks/live.py [--rank 32] [--rounds 5] [--share 1.0]

The adapters have the layers that kohya's trainer gives a LoRA of SDXL, 722 of the UNet and 264 of the text encoders,
with random numbers; the base is an empty shell (its weights are one number each), since it is never read. Times are
medians, wall and CPU; `--share` takes only so much of the layers, for a small machine.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measuring import load_average
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.table import Table

from nplora.layouts import load
from nplora.peft import fuse_adapters, set_mu

UNET = re.compile(
    r"attentions\.\d+\.(proj_(in|out)|transformer_blocks\..*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"
)
PART = "unet.up_blocks.1"
TEXT = re.compile(r".*(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


def shapes() -> Iterator[tuple[str, int, int]]:
    """(path, out, in) of every layer that a LoRA of SDXL has, from the package's own table."""
    layout = load("sdxl")
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for name in layout.modules(component):
            shape = layout.shape(component, name)
            wanted = UNET.search(name) if component == "unet" else TEXT.fullmatch(name)
            if wanted and shape is not None:
                yield f"{component}.{name}", shape[0], shape[1]


def model(share: float, rank: int, dtype: torch.dtype) -> torch.nn.Module:
    """A shell with two adapters, "cat" and "ink", in its layers."""
    shell = torch.nn.Module()
    chosen = list(shapes())
    chosen = chosen[:: max(1, round(1 / share))]
    for path, out, width in chosen:
        here = shell
        *parents, last = path.split(".")
        for name in parents:
            if name not in dict(here.named_children()):
                here.add_module(name, torch.nn.Module())
            here = here.get_submodule(name)
        layer = torch.nn.Linear(width, out, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(torch.zeros((), dtype=dtype).expand(out, width), requires_grad=False)
        here.add_module(last, layer)
    for name in ("cat", "ink"):
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=[path for path, _, _ in chosen], init_lora_weights=False
        )
        inject_adapter_in_model(config, shell, name)
    for layer in shell.modules():
        if isinstance(layer, LoraLayer):
            layer.to(dtype)
    return shell


def clock(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    start, work = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # PEFT's, about two adapters in one model
    torch.set_num_threads(1)  # the factors are small: threads wait for each other
    before = load_average()
    shell = model(asked.share, asked.rank, getattr(torch, asked.dtype))
    layers = sum(isinstance(layer, LoraLayer) for layer in shell.modules())
    table = Table("", "wall, s", "CPU, s", title=f"{layers} layers, rank {asked.rank}, {asked.dtype}")

    def row(name: str, found: list[tuple[float, float]]) -> None:
        table.add_row(name, *(f"{statistics.median(times):.3f}" for times in zip(*found, strict=True)))

    with torch.no_grad():
        for rank in (None, asked.rank):
            name = "all-ranks" if rank is None else f"rank-{rank}"
            fused = partial(fuse_adapters, shell, "cat", "ink", name=name, rank=rank)
            row(f"fuse, {name}", [clock(fused)])
            turns = [0.1 * step for step in range(1, (asked.rounds if rank is None else 1) + 1)]
            for where in (None, PART):
                turned = [clock(partial(set_mu, shell, mu, name, where=where)) for mu in turns]
                row(f"set_mu, {name}" + (f", where={where!r}" if where else ""), turned)
        whole = [one for path, one in shell.named_parameters() if ".cat." in path]
        moved = [clock(lambda: [torch.add(one, one) for one in whole]) for _ in range(asked.rounds)]
        row("one pass over an adapter (torch.add)", moved)
    Console(width=100).print(table)
    print(f"{torch.get_num_threads()} threads; load average {before} before, {load_average()} after")


if __name__ == "__main__":
    main()
