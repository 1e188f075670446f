"""``nplora methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .text import as_json, facts, say

if TYPE_CHECKING:
    from ..methods import Merge, Method


@click.command(short_help="List the fusion methods with their parameters.")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
def command(json_: bool) -> None:
    """List the fusion methods: what each computes and promises, where it was published, which options it has."""
    from ..methods import known_methods

    methods = known_methods().values()
    if json_:
        click.echo(as_json([_data(method) for method in methods]))
        return
    for method in methods:
        rows = [("computes", method.formula), ("promises", method.guarantee), ("published", method.reference)]
        rows = [row for row in rows if row[1]]
        rows += [(p.option, f"{p.sentence} (default {p.default})") for p in method.options]
        say(click.style(method.name, bold=True) + f"  {method.title}", facts(rows))


def _data(method: Method | Merge) -> dict[str, Any]:
    return {
        "name": method.name, "title": method.title, "reference": method.reference, "formula": method.formula,
        "guarantee": method.guarantee, "parameters": [
            {"name": p.name, "default": p.default, "range": p.range, "sentence": p.sentence} for p in method.options
        ],
    }  # fmt: skip
