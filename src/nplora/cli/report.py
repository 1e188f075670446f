"""``nplora report``."""

from __future__ import annotations

import click

from .command import FILE, Command
from .drawing import HTML, OVERWRITE
from .progress import Progress
from .targets import require_drawing, require_free
from .text import facts, paragraph, say

EXAMPLES = (
    "report cat-ink.safetensors",
    "report cat-ink.safetensors cat.safetensors ink.safetensors --html why.html",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Write a page on a fused file: what the fusion did, and why.")
@click.argument("output", type=FILE)
@click.argument("adapters", type=FILE, nargs=-1, metavar="[SUBJECT STYLE ...]")
@click.option(
    "--base", type=FILE, metavar="MODEL",
    help="Count intruder dimensions of the inputs and of the result against this base model: a checkpoint or a "
    "diffusers folder.",
)  # fmt: skip
@HTML
@OVERWRITE
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(
    output: str, adapters: tuple[str, ...], base: str | None, html: str | None, overwrite: bool, quiet: bool
) -> None:
    """Write a page on OUTPUT, a file that nplora has fused; by default OUTPUT.html beside it.

    The recipe in its header says how it was made; its inputs are looked for beside it and in the current folder, or
    named as SUBJECT and STYLE.
    """
    path = html or f"{output.rstrip('/')}.html"
    require_free(path, (output, *adapters), overwrite, "page")
    require_drawing(None, path)
    from ..pages import write
    from ..pages.fusions import fusion_page
    from ..pages.retelling import retell

    with Progress("looking", quiet=quiet) as progress:
        told = retell(output, *adapters, base=base, progress=progress)
    write(fusion_page(told.report, told.outcome, told.pair, told.counted), path)
    if not quiet:
        say(paragraph(f"{told.report['sentence']} {told.report['advice']}".strip()), facts([("page", path)]))
