"""``nplora train-lora``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .command import FILE, Command, choice
from .progress import Progress
from .text import count, facts, paragraph, say

EXAMPLES = (
    'train-lora --base world --images turtle --prompt "a sks in {name} style" --kind subject -o turtle.safetensors',
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Train a subject or a style LoRA of your own.")
@click.option(
    "--base", type=FILE, required=True, metavar="world|PATH", help="The world, or a local SD or SDXL pipeline folder."
)
@click.option(
    "--images", type=FILE, required=True, metavar="FOLDER", help="The pictures; metadata.jsonl there may caption them."
)
@click.option("--prompt", required=True, metavar="TEXT",
              help="Caption of each picture, with a rare word for what is new; {name} is the file's name.")  # fmt: skip
@click.option(
    "--kind",
    required=True,
    **choice("subject", "style"),
    help="What the pictures have in common.",
)
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The file to write (a folder with --format peft)."
)
@click.option("--rank", type=click.IntRange(1, 1024), default=4, metavar="NUMBER", help="[default: 4]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="NUMBER",
              help="By default it follows from the pictures and captions, and is never a constant: two LoRAs of one "
    "seed start from the same random down factors and stay near them, so each lies in the other's directions, and "
    "protecting the style deletes the subject.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), metavar="NUMBER", help="By default by the kind and the base's size.")
@click.option(
    "--batch", type=click.IntRange(1), metavar="NUMBER", help="Pictures a step; by default by the base's size."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="NUMBER",
              help="Learning rate, falling to 0; by default by the base's size.")  # fmt: skip
@click.option("--trigger", metavar="WORDS", help="What calls it up; by default the rare words of the prompt.")
@click.option("--format", "form", **choice("diffusers", "kohya", "peft"), default="diffusers",
              help="[default: diffusers]")  # fmt: skip
@click.option(
    "--dtype",
    **choice("fp32", "fp16", "bf16"),
    default="fp16",
    help="[default: fp16]",
)
@click.option(
    "--device",
    **choice("auto", "cpu", "cuda", "mps"),
    default="auto",
    help="[default: auto]",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists already.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(base: str, images: str, prompt: str, kind: str, output: str, form: str, quiet: bool, **values: Any) -> None:
    """Train a LoRA on a few pictures: a thin front to diffusers, PEFT and accelerate.

    On the world it takes about a minute on a laptop's CPU; on Stable Diffusion and SDXL it wants a GPU. The UNet's
    attention and feed-forward layers are trained, nothing else.
    """
    from ..pictures import prepare_process
    from ..training import train_lora

    prepare_process()
    with Progress("training", quiet=quiet) as progress:
        trained = train_lora(
            base, Path(images), prompt, kind, Path(output), forms=(form,), **values,
            report=lambda step, steps, loss: progress(step, steps, f"loss {loss:.4f}"),
        )  # fmt: skip
    if quiet:
        return
    tenth = max(len(trained.losses) // 10, 1)
    first, last = (sum(part) / tenth for part in (trained.losses[:tenth], trained.losses[-tenth:]))
    whence = "of the pictures and captions" if values["seed"] is None else "as given"
    say(
        paragraph(f"A {kind} LoRA of rank {values['rank']}, trained for {count(len(trained.losses), 'step')}."),
        facts([("written", output), ("seed", f"{trained.seed}, {whence}"),
               ("loss", f"{first:.4f} in the first tenth, {last:.4f} in the last")]),
    )  # fmt: skip
