"""``nplora run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import FILE, Command
from .progress import Progress
from .targets import after_writing, require_free
from .text import as_json, count, facts, paragraph, say, write_json

if TYPE_CHECKING:
    from ..recipes import Outcome

EXAMPLES = (
    "run cat-ink.yaml",
    "run sweep.yaml --report sweep.json",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Make everything that a recipe says, none of it twice.")
@click.argument("recipe", type=FILE)
@click.option("--overwrite", is_flag=True, help="Replace outputs that were made by another recipe.")
@click.option("--report", type=FILE, metavar="FILE.json", help="Write the reports of all fusions there.")
@click.option("--json", "json_", is_flag=True, help="Print the reports of all fusions as JSON instead of sentences.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(recipe: str, overwrite: bool, report: str | None, json_: bool, quiet: bool) -> None:
    """Run RECIPE, a YAML file: one fusion, or every combination of its lists.

    Relative paths start at the recipe's folder. An output that the same recipe made from the same bytes is kept, so an
    interrupted run goes on where it stopped.
    """
    from ..recipes import read_recipe_file, run_recipe

    if report is not None:
        require_free(report, (recipe,), overwrite)
    value, marks = read_recipe_file(recipe)
    with Progress("fusing", quiet=quiet) as progress:
        outcomes = run_recipe(value, Path(recipe).parent, marks=marks, overwrite=overwrite, progress=progress)
        found = sorted(outcomes, key=lambda outcome: outcome.number)
    if report is not None:
        with after_writing(count(len(found), "output")):
            write_json(report, [_data(outcome) for outcome in found])
    if json_:
        click.echo(as_json([_data(outcome) for outcome in found]))
    elif not quiet:
        _show(found)


def _data(outcome: Outcome) -> dict[str, Any]:
    single = outcome.single
    return {
        "output": str(single.output), "made": outcome.made, "method": single.method,
        "inputs": {role: given.path for role, given in single.inputs.items()},
        "parameters": single.parameters, "report": outcome.report,
    }  # fmt: skip


def _show(found: Sequence[Outcome]) -> None:
    made = sum(outcome.made for outcome in found)
    kept = len(found) - made
    text = f"{count(made, 'file')} written" + (f", {kept} kept: the same recipe made them" if kept else "")
    if len(found) == 1:
        outcome = found[0]
        say(
            paragraph(str(outcome.report.get("sentence") or f"{text}.")),
            facts([("written" if outcome.made else "kept", str(outcome.single.output))]),
        )
        return
    from .tables import console, table

    say(paragraph(f"{text}."))
    click.echo()
    rows = [(o.single.output.name, o.single.method, _share(o.report), "written" if o.made else "kept") for o in found]
    console().print(table(("output", "method", "overlap", ""), rows, 2))


def _share(report: Any) -> str:
    return f"{report['rho']:.1%}" if isinstance(report.get("rho"), float) else ""
