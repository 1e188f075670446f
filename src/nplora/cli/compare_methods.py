"""``nplora compare-methods``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..parameters import FUSE, WRITING
from .command import FILE
from .fuse_options import MethodCommand
from .options import given, with_parameters
from .progress import Progress
from .text import as_json, count, facts, paragraph, say, size

ABOUT = (
    "from sum: distance from the exact weighted sum. leakage: how far the style's response to its own inputs is "
    "changed. kept: how strongly each adapter is in the result, and its part's share of the energy. foreign: what of "
    "the result is in none of them."
)

EXAMPLES = (
    "compare-methods cat.safetensors ink.safetensors",
    "compare-methods cat.safetensors ink.safetensors --methods np,linear,ties --density 0.3",
)


@click.command(cls=MethodCommand, examples=EXAMPLES, short_help="Fuse by every method and compare what comes out.")
@click.argument("adapters", type=FILE, nargs=-1, required=True, metavar="SUBJECT STYLE ...")
@click.option("--methods", metavar="NAMES", help="Only these methods, with commas between them.")
@with_parameters([parameter for parameter in FUSE if parameter not in WRITING])
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(adapters: tuple[str, ...], methods: str | None, json_: bool, quiet: bool, **values: Any) -> None:
    """Fuse SUBJECT and STYLE (or more adapters) by every method, and show what each makes of them. Nothing is written.

    Options of a method (--mu, --density, --rank ...) go to the methods that have them.
    """
    from .. import load
    from ..analysis.method_table import compare_methods

    names = [name.strip() for name in methods.split(",")] if methods else None
    with Progress("comparing", quiet=quiet or json_) as progress:
        found = compare_methods(
            *map(load, adapters), methods=names, progress=lambda _, done, all_: progress(done, all_), **given(values)
        )
    if json_:
        click.echo(as_json(found))
        return
    from .tables import console, table

    rows = [row for row in found["methods"] if "not_possible" not in row]
    roles = list(rows[0]["kept"])
    columns = ("method", "rank", "size", "time", "from sum", "leakage", *(f"kept {role}" for role in roles), "foreign")
    say(paragraph(" ".join(found["sentences"])), "")
    console().print(table(columns, [_cells(row) for row in rows]))
    click.echo()
    refused = [(row["method"], f"not possible: {row['not_possible']}") for row in found["methods"] if row not in rows]
    say(click.style(paragraph(ABOUT), dim=True), facts([("adapters", count(len(adapters), "file")), *refused]))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    pairs = zip(row["kept"].values(), row["energies"].values(), strict=True)
    kept = (f"{share:.2f} ({100 * energy:.0f} %)" for share, energy in pairs)
    return (
        row["method"], f"{row['rank']:g}", size(row["bytes"]), f"{row['seconds']:.2f} s", _share(row["distance"]),
        _share(row["leakage"]), *kept, _share(row["foreign"]),
    )  # fmt: skip


def _share(share: float) -> str:
    return "0" if share < 5e-5 else f"{share:.4f}" if share < 0.01 else f"{share:.3f}"
