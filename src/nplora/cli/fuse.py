"""``nplora fuse``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from .. import hashing
from ..errors import OutputError, UsageError
from ..parameters import FUSE
from .fuse_options import METHOD, MethodCommand
from .options import given, with_parameters
from .progress import Progress
from .text import count, facts, paragraph, say, size, some, spread, write_json

if TYPE_CHECKING:
    from ..fusing import Fusion


@click.command(cls=MethodCommand, short_help="Fuse a subject and a style into one file.")
@click.argument("adapters", nargs=-1, required=True, metavar="SUBJECT STYLE ...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write (a folder with --format peft).")
@METHOD
@with_parameters(FUSE)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists already.")
@click.option("--report", metavar="FILE.json", help="Write the whole report there: every module, every key left out.")
@click.option("--html", metavar="FILE.html", help="Write a page on the fusion there: plots, tables, reasons.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(
    adapters: tuple[str, ...],
    output: str,
    overwrite: bool,
    report: str | None,
    html: str | None,
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

    for beside in (report, html):
        if beside is not None:
            require_free(beside, (*adapters, output), overwrite)
    with Progress("fusing", quiet=quiet) as progress:
        fusion = fuse(*map(load, adapters), method=method or "np", progress=progress, **given(values))
        done = fusion.save(output, overwrite=overwrite)
    if report is not None:
        write_json(report, done)
    if html is not None:
        _write_page(html, fusion, done, quiet)
    if not quiet:
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


def require_free(report: str, others: tuple[str, ...], overwrite: bool) -> None:
    """Make sure before the work begins that a report may be written there.

    Raises:
        UsageError: it would replace an adapter; OutputError: there is a file already.
    """
    if any(os.path.abspath(report) == os.path.abspath(other) for other in others):  # noqa: PTH100 - paths as given
        raise UsageError("the report would replace an adapter", key=report, hint="Choose another name for the report.")
    if os.path.exists(report) and not overwrite:  # noqa: PTH110 - False for a name too long
        raise OutputError("the report exists already", file=report, hint="Choose another name, or add --overwrite.")


def _facts(fusion: Fusion, done: dict[str, Any], report: str | None) -> list[tuple[str, str]]:
    rows = [("written", f"{done['output']}: {_made_of(fusion, done)}"), ("modules", _modules(done["modules"]))]
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


__all__ = ["command", "compressed", "left_out", "require_free"]
