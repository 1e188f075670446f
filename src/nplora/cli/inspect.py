"""``nplora inspect``."""

from __future__ import annotations

from typing import Any

import click

from ..errors import NploraError
from .text import as_json, count, facts, paragraph, printable, say, size, some, spread

KNOWN_FROM = {
    "alpha": "alpha keys", "config": "the config beside it", "metadata": "the header", "scale key": "scale keys",
    "assumed 1": "assumed: no alpha", "none needed": "stored in full",
}  # fmt: skip
NORM = "norm: size of the change at strength 1, all modules together (Frobenius). scale: what B A is multiplied by."


@click.command(short_help="Say what an adapter is: base, format, ranks, scales, norms, words.")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON (a list, for several adapters).")
@click.pass_context
def command(context: click.Context, adapters: tuple[str, ...], json_: bool) -> None:
    """Say what each ADAPTER (a file or a PEFT folder) is and how that is known.

    Base model, format, components, kinds, ranks, effective scales, number types, norms, trigger words, and what is odd.
    """
    from .. import load
    from ..inspection import describe, sentence

    found, status = [], 0
    for index, path in enumerate(adapters):
        try:
            description = describe(load(path))
        except NploraError as error:
            if len(adapters) == 1:
                raise
            click.echo(f"nplora: {printable(str(error))}", err=True)
            status = error.exit_code
            continue
        if json_:
            found.append(description)
        else:
            _show(description, sentence(description), first=index == 0)
    if json_:
        click.echo(as_json(found if len(adapters) > 1 else found[0]))
    context.exit(status)


def _show(description: dict[str, Any], sentence: str, first: bool) -> None:
    from .tables import console, table

    name = printable(description["file"].rstrip("/").rpartition("/")[2] or description["file"])
    if not first:
        click.echo()
    say(click.style(name, bold=True) + click.style(f"  {size(description['bytes'])}", dim=True), paragraph(sentence))
    click.echo()
    console().print(table(("component", "kind", "known from", "modules", "rank", "scale", "norm"), _rows(description), 3))
    say("", click.style(paragraph(NORM), dim=True))
    say("", facts(_facts(description)))


def _rows(description: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, component in description["components"].items():
        scales = [scale for scale in description["scales"] if scale["component"] == name]
        sources = dict.fromkeys(KNOWN_FROM.get(scale["known_from"], scale["known_from"]) for scale in scales)
        kinds = component["kinds"]
        rows.append([
            name,
            ", ".join(kinds) if len(kinds) == 1 else ", ".join(f"{number} {kind}" for kind, number in kinds.items()),
            ", ".join(sources) or "unknown",
            str(component["modules"]),
            spread(component["ranks"]) or "-",
            spread({scale["scale"]: scale["modules"] for scale in scales}) or "-",
            "not finite" if component["norm"] is None else f"{component['norm']:.4g}",
        ])  # fmt: skip
    return rows


def _facts(description: dict[str, Any]) -> list[tuple[str, str]]:
    base, form = description["base"], description["format"]
    rows = [("base", f"{base['title']}: {base['evidence']}"), ("format", f"{form['title']}: {form['evidence']}")]
    rows += [("", f"{count(number, 'module')} in the naming of {title}") for title, number in form["also"].items()]
    rows.append(("numbers", ", ".join(f"{name} ({count(number, 'tensor')})" for name, number in description["dtypes"].items())))
    if description["trigger_words"]:
        rows.append(("trigger words", ", ".join(description["trigger_words"])))
    if description["modules_in_file"] != description["modules"]:
        rows.append(("in the file", f"{count(description['modules_in_file'], 'module')}, some of them fused projections"))
    if description["biases_and_norms"]:
        rows.append(("biases, norms", f"{count(description['biases_and_norms'], 'delta')} besides"))
    if description["zero_modules"]:
        zero = description["zero_modules"]
        rows.append(("zero", f"{count(len(zero), 'module')} that change nothing: {some(zero)}"))
    for broken in description["not_finite"][:3]:
        rows.append(("not finite", f"{count(broken['values'], 'value')} in {broken['key']} (NaN or infinite)"))
    if len(description["not_finite"]) > 3:
        rows.append(("", f"and {len(description['not_finite']) - 3} more tensors"))
    if description["foreign_keys"]:
        foreign = description["foreign_keys"]
        rows.append(("other keys", f"{count(len(foreign), 'key')} that belong to no module: {some(foreign)}"))
    rows += [("note", note) for note in description["notes"]]
    return rows + [(name.removeprefix("ss_").removeprefix("modelspec.").replace("_", " ")[:15], _short(value))
                   for name, value in description["metadata"].items()]  # fmt: skip


def _short(value: str, limit: int = 160) -> str:
    text = " ".join(value.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
