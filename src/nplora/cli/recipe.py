"""``nplora recipe``."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .command import FILE, Command
from .text import as_json

EXAMPLES = (
    "recipe cat-ink.safetensors > again.yaml",
    "recipe --schema > recipe.schema.json",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Print the recipe that a fused file carries.")
@click.argument("output", type=FILE, required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes instead, for editors.")
def command(output: str | None, schema: bool) -> None:
    """Print the recipe in the header of OUTPUT as YAML: nplora run makes the same bytes from it."""
    from ..recipes import recipe_of, recipe_schema, recipe_yaml
    from ..recipes.written import HEAD

    if schema:
        click.echo(as_json(recipe_schema()))
        return
    if output is None:
        raise UsageError("no file is named", hint="nplora recipe FILE, or nplora recipe --schema.")

    click.echo(HEAD.format(name=Path(output).name) + recipe_yaml(recipe_of(output)), nl=False)
