"""``nplora compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..parameters import BASE, MU
from .command import FILE, Command
from .drawing import HTML, OVERWRITE, PLOT, require_targets, write
from .options import take, with_parameters
from .progress import Progress
from .text import as_json, count, facts, paragraph, printable, say, three

if TYPE_CHECKING:
    from ..reading.adapter import Adapter

SHOWN = 12  # adapters up to which a matrix fits a terminal
SCALE = (
    "overlap: share of the subject in the style's directions. chance: the share of unrelated adapters. angle: the "
    "smallest between what both read from (rows) and write to (columns), in degrees; 90 is unrelated. subject, style: "
    "norms at strength 1. sum: the norm of plain addition over the larger of the two."
)
MATRIX = "seed: cosine of the down factors, 1.00 is one seed. written: how much alike the outputs are, 0 is chance."

EXAMPLES = (
    "compare cat.safetensors ink.safetensors",
    "compare cat.safetensors ink.safetensors --mu inf --plot pair.png",
    "compare loras",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Say how much adapters overlap and what mu will do.")
@click.argument("adapters", type=FILE, nargs=-1, required=True, metavar="SUBJECT STYLE [MORE...]")
@with_parameters([MU, BASE])
@click.option("--modules", is_flag=True, help="Show every module, the largest overlap first, not blocks.")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
@PLOT
@HTML
@OVERWRITE
def command(
    adapters: tuple[str, ...], modules: bool, json_: bool, plot: str | None, html: str | None, overwrite: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Say how much SUBJECT and STYLE overlap, block by block, and what mu will do to the pair. Nothing is written.

    Of three adapters or more, or a folder of them, say which share a seed, a trainer, a subject.
    """
    from .files import expand, load_all

    paths = expand(adapters)
    if len(paths) < 2:
        raise click.UsageError("Two adapters are needed, or a folder that holds them.")
    require_targets(plot, html, tuple(paths), overwrite)
    if len(paths) == 2:
        found = _pair(paths, modules, json_, take(values, [MU, BASE]))
        if plot or html:
            from ..pages.pairs import compare_page
            from ..plots.figures import of_pair

            write(plot, html, lambda: of_pair(found), lambda: compare_page(found), quiet=json_)
        return
    loaded, status = load_all(paths)
    found = _family(list(loaded.values()), json_)
    if plot or html:
        from ..pages.pairs import family_page
        from ..plots.figures import of_family

        write(plot, html, lambda: of_family(found), lambda: family_page(found), quiet=json_)
    click.get_current_context().exit(status)


def _pair(paths: Sequence[str], modules: bool, json_: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    from .. import load
    from ..analysis.comparison import compare

    with Progress("comparing", quiet=json_) as progress:
        found = compare(load(paths[0]), load(paths[1]), progress=progress, **values)
    if json_:
        click.echo(as_json(found))
        return found
    from .tables import bar, console, table

    say(paragraph(f"{found['sentence']} {found['advice']}"), paragraph(" ".join(found["findings"])))
    rows = _by_module(found["overlaps"]) if modules else _by_block(found["overlaps"])
    if rows:
        click.echo()
        columns = ("module" if modules else "block", "", "overlap", "chance", "rows", "columns", "modules", "subject",
                   "style", "sum")  # fmt: skip
        console().print(table(columns, [(row.name, bar(row.rho), *row.numbers) for row in rows], 2))
        click.echo()
        say(click.style(paragraph(SCALE), dim=True), facts(_facts(found)))
    else:
        say("", facts(_facts(found)))
    return found


class Row(NamedTuple):
    """A line of the table: energies of its modules added up, angles their median."""

    name: str
    modules: int
    rho: float
    chance: float
    rows: float | None
    columns: float | None
    subject: float
    style: float
    together: float | None  # the norm of the sum over the larger one

    @property
    def numbers(self) -> tuple[str, ...]:
        angles = ("-" if angle is None else f"{angle:.0f}" for angle in (self.rows, self.columns))
        together = "-" if self.together is None else f"{self.together:.2f} x"
        return (f"{self.rho:.1%}", f"{self.chance:.1%}", *angles, str(self.modules), three(self.subject),
                three(self.style), together)  # fmt: skip


def _by_module(overlaps: Sequence[Mapping[str, Any]]) -> list[Row]:
    ranked = sorted(overlaps, key=lambda row: -row["rho"] * row["subject_norm"] ** 2)
    return [_sum(row["module"], [row]) for row in ranked]


def _by_block(overlaps: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Overlaps summed over blocks: energies are added, shares never averaged."""
    from ..analysis.blocks import coarse_blocks

    named = {row["module"]: row for row in overlaps}
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for module, block in coarse_blocks(named).items():
        blocks.setdefault(block, []).append(named[module])
    return [_sum(name, rows) for name, rows in blocks.items()]


def _sum(name: str, rows: Sequence[Mapping[str, Any]]) -> Row:
    from statistics import median

    energies = [row["subject_norm"] ** 2 for row in rows]
    total = sum(energies)
    rho, chance = (
        sum(row[what] * energy for row, energy in zip(rows, energies, strict=True)) / (total or 1.0)
        for what in ("rho", "chance")
    )
    smallest = [[row[side][0] for row in rows if row[side]] for side in ("row_angles", "column_angles")]
    reads, writes = (median(found) if found else None for found in smallest)
    style = sum(row["style_norm"] ** 2 for row in rows) ** 0.5
    together, larger = sum(row["sum_norm"] ** 2 for row in rows) ** 0.5, max(total**0.5, style)
    return Row(
        name, len(rows), rho, chance, reads, writes, total**0.5, style, together / larger if larger > 0 else None
    )


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, norms, ratio = found["modules"], found["norms"], found["norm_ratio"]
    rows = [("base", found["base"]), ("modules", _counts(counts))]
    if ratio:
        sizes = f"subject {three(norms['subject'])}, style {three(norms['style'])} in common modules"
        rows.append(("norms", f"{sizes}: {_balance(ratio)}"))
    if found["median_down_cosine"] is not None:
        rows.append(
            (
                "down factors",
                f"median cosine {round(found['median_down_cosine'], 2) + 0.0:.2f}: {_STARTS[found['initialisation']]}",
            )
        )
    suggestion = found["suggestion"]
    rows.append(("start with", f"{suggestion['options']}: {suggestion['reason']}"))
    return rows + [("note", note) for note in found["notes"]]


_STARTS = {
    "shared": "both trainings started from the same numbers (one trainer, one seed)",
    "different": "the trainings started from different numbers",
    "mixed": "some modules started from the same numbers, others did not",
    "unknown": "nothing to compare",
}


def _counts(counts: Mapping[str, int]) -> str:
    text = f"{counts['common']} in common"
    alone = [
        f"{counts[key]} only in the {role}"
        for key, role in (("only_subject", "subject"), ("only_style", "style"))
        if counts[key]
    ]
    text = ", ".join([text, *alone])
    if counts["not_projected"]:
        text += f"; {count(counts['not_projected'], 'full matrix')} among the common ones not compared"
    return text


def _balance(ratio: float) -> str:
    if 2 / 3 <= ratio <= 1.5:
        return "about equally strong"
    stronger, times = ("subject", ratio) if ratio > 1 else ("style", 1 / ratio)
    return f"the {stronger} is {times:.1f} times as strong"


def _family(adapters: Sequence[Adapter], json_: bool) -> dict[str, Any]:
    from ..analysis.family import relate, relatives

    with Progress("comparing", quiet=json_) as progress:
        found = relate(adapters, progress)
    if json_:
        click.echo(as_json(found))
        return found
    from .tables import console, table

    say("\n".join(paragraph(sentence) for sentence in found["sentences"]), facts(relatives(found)))
    click.echo()
    listed = [found["files"][i] for i in found["order"]]
    rows = [
        (str(k), f["name"], f["trainer"], f["seed"] or "-", f["base"], str(f["rank"] or "-"))
        for k, f in enumerate(listed, 1)
    ]
    console().print(table(("", "file", "trainer", "its seed", "base", "rank"), rows, 5))
    for title, name in (("seed", "down_cosine"), ("written", "column_alike")):
        if len(listed) <= SHOWN:
            click.echo()
            console().print(table((title, *map(str, range(1, len(listed) + 1))), _matrix(found, name)))
    click.echo()
    looked = f"from {count(len(found['modules']), 'module')} of the model."
    say(click.style(paragraph(f"{MATRIX} {looked}"), dim=True))
    return found


def _matrix(found: Mapping[str, Any], name: str) -> list[list[str]]:
    """The matrix in the readable order; a number names its row."""
    order, matrix = found["order"], found[name]
    rows = []
    for k, i in enumerate(order, 1):
        cells = [
            "" if i == j else "-" if matrix[i][j] is None else f"{round(matrix[i][j], 2) + 0.0:.2f}" for j in order
        ]
        rows.append([f"{k} {printable(found['files'][i]['name'])}", *cells])
    return rows
