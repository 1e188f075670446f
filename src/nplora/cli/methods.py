"""``nplora methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .text import as_json, facts, say

if TYPE_CHECKING:
    from ..methods import Method


@click.command(short_help="List the fusion methods with their parameters.")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON.")
def command(json_: bool) -> None:
    """List the fusion methods: what each computes, where it was published, which parameters it has."""
    from ..methods import all_methods

    methods = all_methods()
    if json_:
        click.echo(as_json([_data(method) for method in methods.values()]))
        return
    for method in methods.values():
        rows = [("computes", _formula(method.function)), ("published", method.reference)]
        rows += [(p.option, f"{p.sentence} (default {p.default})") for p in method.parameters]
        say(click.style(method.name, bold=True) + f"  {method.title}", facts(rows))


def _data(method: Method) -> dict[str, Any]:
    return {
        "name": method.name, "title": method.title, "reference": method.reference, "formula": _formula(method.function),
        "parameters": [
            {"name": p.name, "default": p.default, "range": p.range, "sentence": p.sentence} for p in method.parameters
        ],
    }  # fmt: skip


def _formula(function: object) -> str:
    """The first sentence of the method's docstring."""
    return (function.__doc__ or "").strip().splitlines()[0].replace("``", "")
