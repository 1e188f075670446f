"""``nplora verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..parameters import FUSE, WRITING
from .command import FILE
from .fuse_options import METHOD, MethodCommand
from .options import given, with_parameters
from .progress import Progress
from .text import as_json, count, facts, paragraph, say, some

if TYPE_CHECKING:
    from ..checking.verify import Verification

NUMERIC = tuple(parameter for parameter in FUSE if parameter not in WRITING)
SHOWN = 5  # modules over their bound that are named

EXAMPLES = (
    "verify cat-ink.safetensors",
    "verify cat-ink.safetensors loras/cat.safetensors loras/ink.safetensors",
)


@click.command(
    cls=MethodCommand,
    examples=EXAMPLES,
    recipe_decides=True,
    short_help="Recompute an output from its sources and prove it right.",
)
@click.argument("output", type=FILE)
@click.argument("adapters", type=FILE, nargs=-1, metavar="[SUBJECT STYLE ...]")
@METHOD
@with_parameters(NUMERIC)
@click.option("--json", "json_", is_flag=True, help="Print the error of every module as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
@click.pass_context
def command(
    context: click.Context,
    /,
    output: str,
    adapters: tuple[str, ...],
    method: str | None,
    json_: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Recompute OUTPUT from its sources in float64 by QR and SVD, and compare.

    The recipe in the output's header says how it was made; its inputs are looked for beside the output and in the
    current folder, and must have the recipe's SHA-256. SUBJECT and STYLE name them elsewhere; options replace what
    the recipe says. Exit status 1 where a module differs by more than correct rounding explains.
    """
    from ..checking.verify import verify

    with Progress("verifying", quiet=quiet) as progress:
        result = verify(output, *adapters, method=method, progress=progress, **given(values))
    if json_:
        click.echo(as_json(_data(result)))
    elif not (quiet and result.passed):
        replaced = bool(given(values) or method)
        say(paragraph(result.sentence), facts(_facts(result) + _next(result, replaced)))
    context.exit(0 if result.passed else 1)


def _facts(result: Verification) -> list[tuple[str, str]]:
    over = sorted((check for check in result.checks if not check.passed), key=lambda check: -check.severity)
    rows = [("over the bound", f"{check.name}: {check.error:.1e}, bound {check.bound:.1e}") for check in over[:SHOWN]]
    if len(over) > SHOWN:
        rows.append(("", f"and {len(over) - SHOWN} more: --json names all of them"))
    if result.left_out:
        rows.append(
            (
                "left out",
                f"{count(len(result.left_out), 'module')} that the format has no place for: {some(result.left_out)}",
            )
        )
    return rows


def _next(result: Verification, replaced: bool) -> list[tuple[str, str]]:
    """What to do about a failure."""
    if result.passed:
        return []
    if replaced:
        return [("next", "the options here replace the recipe's: leave them out to compare with the recipe alone")]
    return [("next", "the file was changed after it was written, or damaged: fuse it again")]


def _data(result: Verification) -> dict[str, Any]:
    return {
        "output": result.output, "passed": result.passed, "sentence": result.sentence, "worst_error": result.error,
        "bound": result.bound, "missing": result.missing, "extra": result.extra, "left_out": result.left_out,
        "modules": [{"module": c.name, "error": c.error, "bound": c.bound, "passed": c.passed} for c in result.checks],
    }  # fmt: skip
