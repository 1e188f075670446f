"""``nplora fuse``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .. import hashing
from ..parameters import FUSE
from .command import FILE
from .fuse_options import METHOD, MethodCommand
from .options import given, with_parameters
from .progress import Progress
from .targets import after_writing, fused_name, require_drawing, require_free
from .text import as_json, count, facts, paragraph, say, size, some, spread, write_json

if TYPE_CHECKING:
    from ..fusing import Fusion

EXAMPLES = (
    "fuse cat.safetensors ink.safetensors",
    "fuse cat.safetensors ink.safetensors -o fused.safetensors --mu 1 --style-strength 0.8 --format kohya",
    'fuse cat.safetensors ink.safetensors fog.safetensors -o all.safetensors --protect "ink > fog = cat"',
    "fuse cat.safetensors ink.safetensors --method ties --density 0.3 --dtype fp16 -o ties.safetensors",
)


@click.command(cls=MethodCommand, examples=EXAMPLES, short_help="Fuse a subject and a style into one file.")
@click.argument("adapters", type=FILE, nargs=-1, required=True, metavar="SUBJECT STYLE ...")
@click.option(
    "-o", "--output", type=FILE, metavar="FILE",
    help="The file to write (a folder with --format peft).  [default: SUBJECT-STYLE.safetensors]",
)  # fmt: skip
@METHOD
@with_parameters(FUSE)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists already.")
@click.option(
    "--report", type=FILE, metavar="FILE.json", help="Write the whole report there: every module, every key left out."
)
@click.option(
    "--html", type=FILE, metavar="FILE.html", help="Write a page on the fusion there: plots, tables, reasons."
)
@click.option("--json", "json_", is_flag=True, help="Print the whole report as JSON instead of sentences.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(
    adapters: tuple[str, ...],
    output: str | None,
    overwrite: bool,
    report: str | None,
    html: str | None,
    json_: bool,
    quiet: bool,
    method: str | None,
    **values: Any,
) -> None:
    """Fuse SUBJECT and STYLE (files, or PEFT folders) into one adapter.

    In every module the style's directions are kept from the subject: dW = style + subject (I - g V V^T) with
    g = mu/(1+mu) and V the style's input directions. Nothing is approximated; modules that only one of the two
    changes pass through. Another --method fuses in another way, and most of them more than two adapters.
    """
    for path in adapters:
        hashing.begin(path)
    from .. import fuse, load

    output = output or fused_name(adapters, values.get("format"))
    for beside, what in ((report, "report"), (html, "page")):
        if beside is not None:
            require_free(beside, (*adapters, output), overwrite, what)
    require_drawing(None, html)
    with Progress("fusing", quiet=quiet) as progress:
        fusion = fuse(*map(load, adapters), method=method or "np", progress=progress, **given(values))
        done = fusion.save(output, overwrite=overwrite)
    with after_writing(output):
        if report is not None:
            write_json(report, done)
        if html is not None:
            _write_page(html, fusion, done, quiet)
    if json_:
        click.echo(as_json(done))
    elif not quiet:
        rows = [*_facts(fusion, done, report), *([("page", html)] if html else [])]
        say(paragraph(f"{done['sentence']} {done['advice']}".strip()), facts(rows))


def _write_page(path: str, fusion: Fusion, done: dict[str, Any], quiet: bool) -> None:
    from .. import load
    from ..pages import write
    from ..pages.fusions import fusion_page
    from ..pages.retelling import tell

    with Progress("looking", quiet=quiet) as progress:
        told = tell(fusion, done, load(done["output"]), progress)
    write(fusion_page(told.report, told.outcome, told.pair), path)


def _facts(fusion: Fusion, done: dict[str, Any], report: str | None) -> list[tuple[str, str]]:
    rows = [("written", f"{done['output']}: {_made_of(fusion, done)}"), ("modules", _modules(done["modules"]))]
    if len(fusion.inputs) > 2:  # the letters that the sentences speak of
        rows[:0] = [(role, adapter.path) for role, adapter in fusion.inputs.items()]
    if done["biases_and_norms_added"]:
        rows.append(("added", f"{count(len(done['biases_and_norms_added']), 'bias or norm delta')}, by strength"))
    rows += [("in parts", in_parts(done))] if "overrides" in done else []
    rows += compressed(done) + left_out(done, report)
    rows += [(f"{role} words", ", ".join(words)) for role, words in done["trigger_words"].items() if words]
    return rows + [("note", note) for note in done["notes"]]


def _made_of(fusion: Fusion, done: dict[str, Any]) -> str:
    from ..adapters import LowRank
    from ..output.computed import made
    from ..storage import TensorFile

    written = (module.written for module in made(fusion).values())
    stacks = ([m.update.rank for m in members if isinstance(m.update, LowRank)] for members in written)
    ranks = sorted(sum(stack) for stack in stacks if stack)
    shown = spread({rank: ranks.count(rank) for rank in dict.fromkeys(ranks)})
    return ", ".join((done["format"], *([f"rank {shown}"] if shown else []), size(TensorFile(done["output"]).size)))


def _modules(counts: dict[str, Any]) -> str:
    text = f"{counts['fused']} fused"
    roles = counts["passed_through"].items()
    named = ((f"the {role}" if role in ("subject", "style") else role, number) for role, number in roles)
    passed = [f"{number} of {name} alone" for name, number in named if number]
    return f"{text}; {' and '.join(passed)} passed through" if passed else text


def in_parts(done: dict[str, Any]) -> str:
    """Parameters that are others in parts of the model, and in how many modules."""
    return ", ".join(
        f"{rule['parameter']} {rule['value']} in {count(rule['modules'], 'module')} of {rule['where']}"
        for rule in done["overrides"]
    )


def compressed(done: dict[str, Any]) -> list[tuple[str, str]]:
    """What compressing cost."""
    found = done.get("compression")
    if found is None:
        return []
    text = f"{found['ranks_before']} ranks in all to {found['ranks']}, relative error {found['relative_error']:.2e}"
    if found["relative_error"]:
        text += f" (worst module {found['worst_module']}: {found['worst_relative_error']:.2e})"
    return [("compressed", text)]


def left_out(done: dict[str, Any], report: str | None = None) -> list[tuple[str, str]]:
    """Keys of the inputs that are not in the output, the first few by name, and what was kept under old names."""
    rows = []
    keys: dict[str, str] = done["left_out"]
    for why in dict.fromkeys(keys.values()):
        names = [key for key, reason in keys.items() if reason == why]
        rows.append(("left out", f"{count(len(names), 'key')}, {why}: {some(names)}"))
    if len(keys) > 3:
        rows.append(("", f"all of them are named in {report}" if report else "--report FILE.json names all of them"))
    kept = done["kept_under_their_own_names"]
    if kept:
        rows.append(("old names", f"{count(len(kept), 'module')} that {done['format']} has no name for: {some(kept)}"))
    return rows


__all__ = ["command", "compressed", "left_out"]
