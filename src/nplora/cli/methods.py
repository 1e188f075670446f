"""``nplora methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .command import Command
from .text import as_json, facts, paragraph, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..methods import Merge, Method
    from ..parameters import Parameter

MORE = "nplora methods NAME shows formula, promise and options; nplora compare-methods what each makes of a pair."

EXAMPLES = (
    "methods",
    "methods ties dare",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="List the fusion methods with their parameters.")
@click.argument("names", nargs=-1, metavar="[METHOD]...")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
def command(names: tuple[str, ...], json_: bool) -> None:
    """List the fusion methods; of those named, what each computes and promises, and which options it has."""
    from ..methods import find_method, known_methods

    methods = [find_method(name) for name in names] or list(known_methods().values())
    if json_:
        click.echo(as_json([_data(method) for method in methods]))
    elif names:
        for method in methods:
            say(click.style(method.name, bold=True) + f"  {method.title}", facts(_rows(method)))
    else:
        _overview(methods)


def _overview(methods: Sequence[Method | Merge]) -> None:
    from .tables import console, table

    ranked = sorted(methods, key=lambda method: (not method.name.startswith("np"), method.name))
    console().print(table(("method", "", "published"), [(m.name, m.title, m.reference) for m in ranked], 3))
    click.echo()
    say(paragraph(MORE))


def _rows(method: Method | Merge) -> list[tuple[str, str]]:
    rows = [("computes", method.formula), ("promises", method.guarantee), ("published", method.reference)]
    rows += [(p.option, f"{p.sentence}{_default(p)}") for p in method.options]
    return [row for row in rows if row[1]]


def _default(parameter: Parameter) -> str:
    return "" if parameter.default is None else f" (default {parameter.default})"


def _data(method: Method | Merge) -> dict[str, Any]:
    return {
        "name": method.name, "title": method.title, "reference": method.reference, "formula": method.formula,
        "guarantee": method.guarantee, "parameters": [
            {"name": p.name, "default": p.default, "range": p.range, "sentence": p.sentence} for p in method.options
        ],
    }  # fmt: skip
