"""``nplora compare``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..parameters import MU
from .options import take, with_parameters
from .text import as_json, count, facts, paragraph, say, three

GROUPS = 16  # rows up to which blocks are shown one by one
SCALE = "overlap: share of the subject in the style's directions. chance: the share of unrelated adapters."


@click.command(short_help="Say how much two adapters overlap and what mu will do.")
@click.argument("subject")
@click.argument("style")
@with_parameters([MU])
@click.option("--modules", is_flag=True, help="Show every module, the largest overlap first, not blocks.")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
def command(subject: str, style: str, modules: bool, json_: bool, **values: Any) -> None:
    """Say how much SUBJECT and STYLE overlap, block by block, and what mu will do to the pair. Nothing is written."""
    from .. import load
    from ..comparison import compare

    found = compare(load(subject), load(style), **take(values, [MU]))
    if json_:
        click.echo(as_json(found))
        return
    from .tables import bar, console, table

    say(paragraph(f"{found['sentence']} {found['advice']}"))
    rows = _by_module(found["overlaps"]) if modules else _by_block(found["overlaps"])
    if rows:
        click.echo()
        title = "module" if modules else "block"
        columns = (title, "", "overlap", "chance", "modules", "subject norm", "style norm")
        console().print(table(columns, [(row.name, bar(row.rho), *row.numbers) for row in rows], 2))
        click.echo()
        say(click.style(paragraph(SCALE), dim=True), facts(_facts(found)))
    else:
        say("", facts(_facts(found)))


class Row(NamedTuple):
    """A line of the table: energies of its modules added up."""

    name: str
    modules: int
    rho: float
    chance: float
    subject: float
    style: float

    @property
    def numbers(self) -> tuple[str, ...]:
        shares = f"{self.rho:.1%}", f"{self.chance:.1%}"
        return *shares, str(self.modules), three(self.subject), three(self.style)


def _by_module(overlaps: Sequence[Mapping[str, Any]]) -> list[Row]:
    ranked = sorted(overlaps, key=lambda row: -row["rho"] * row["subject_norm"] ** 2)
    return [_sum(row["module"], [row]) for row in ranked]


def _by_block(overlaps: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Overlaps summed over blocks: energies are added, shares never averaged."""
    for pattern in (r"^[^.]+\.[^.]+(?:\.\d+)?", r"^[^.]+\.[^.]+", r"^[^.]+"):
        blocks: dict[str, list[Mapping[str, Any]]] = {}
        for row in overlaps:
            match = re.match(pattern, row["module"])
            blocks.setdefault(match[0] if match else row["module"], []).append(row)
        if len(blocks) <= GROUPS:
            break
    return [_sum(name, rows) for name, rows in blocks.items()] if overlaps else []


def _sum(name: str, rows: Sequence[Mapping[str, Any]]) -> Row:
    energies = [row["subject_norm"] ** 2 for row in rows]
    total = sum(energies)
    rho, chance = (
        sum(row[what] * energy for row, energy in zip(rows, energies, strict=True)) / (total or 1.0)
        for what in ("rho", "chance")
    )
    return Row(name, len(rows), rho, chance, total**0.5, sum(row["style_norm"] ** 2 for row in rows) ** 0.5)


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
