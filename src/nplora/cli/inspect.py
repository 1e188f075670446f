"""``nplora inspect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import NploraError
from .command import FILE, Command, choice
from .drawing import HTML, OVERWRITE, PLOT, require_targets, write
from .files import expand, load_all
from .progress import Progress
from .text import LABEL, as_json, drawable, facts, paragraph, printable, say, size, spread, three

if TYPE_CHECKING:
    from ..reading.adapter import Adapter
    from ..reading.base import BaseModel

KNOWN_FROM = {
    "alpha": "alpha keys", "config": "the config beside it", "metadata": "the header", "scale key": "scale keys",
    "assumed 1": "assumed: no alpha", "none needed": "stored in full",
}  # fmt: skip
NORM = (
    "norm: how large the change is at strength 1 (Frobenius). scale: the factor in front of B A. effective: how many "
    "of the ranks share the work (entropy). spectrum: the singular values, the largest first."
)
GROUPS = ("component", "kind", "scale known from", "modules", "rank", "scale", "norm")
BLOCKS = ("block", "spectrum", "modules", "rank", "effective", "stable", "dead", "norm")
PROGRAMS = ("diffusers", "peft", "comfyui", "kohya")
SPARK, PLAIN_SPARK = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
WIDTH = 16  # characters of a spectrum

EXAMPLES = (
    "inspect cat.safetensors",
    "inspect loras --html loras.html",
    "inspect cat.safetensors --for diffusers --for comfyui",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Say what an adapter is: base, format, ranks, scales, norms.")
@click.argument("adapters", type=FILE, nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--json", "json_", is_flag=True, help="Print plain data as JSON (a list, for several adapters).")
@click.option(
    "--for", "programs", multiple=True, **choice(*PROGRAMS),
    help="Say how many keys this program will take, which it will drop, and why (may be given several times).",
)  # fmt: skip
@click.option(
    "--base", type=FILE, metavar="MODEL",
    help="The base model, a checkpoint or a diffusers folder: count intruder dimensions against it, and tell DoRA and "
    "other kinds that depend on it exactly.",
)  # fmt: skip
@PLOT
@HTML
@OVERWRITE
@click.pass_context
def command(
    context: click.Context, /, adapters: tuple[str, ...], json_: bool, programs: tuple[str, ...], base: str | None,
    plot: str | None, html: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Say what each ADAPTER (a file, a PEFT folder, or a folder full of them) is and how that is known.

    Base model, format, components, kinds, ranks and how many of them work, effective scales, number types, norms,
    spectra, trigger words, training settings, and what is odd.
    """
    from ..analysis.inspection import describe, sentence

    paths = expand(adapters)
    if plot is not None and len(paths) != 1:
        raise click.UsageError("--plot draws one adapter; --html shows several side by side.")
    require_targets(plot, html, tuple(paths), overwrite)
    loaded, status = load_all(paths)
    found: list[dict[str, Any]] = []
    model = None if base is None else base_model(base)
    for adapter, compared in zip(loaded.values(), against_base(list(loaded.values()), model, json_), strict=True):
        try:
            if isinstance(compared, NploraError):
                raise compared
            with Progress("looking", quiet=json_) as progress:
                progress(len(found), len(loaded), name_of({"file": adapter.path}))
                found.append(describe(adapter, model) | foretell(adapter, programs) | compared)
        except NploraError as error:
            if len(paths) == 1:
                raise
            click.echo(f"nplora: {printable(str(error))}", err=True)
            status = error.exit_code
    if json_:
        click.echo(as_json(found if len(paths) > 1 else found[0]))
    elif len(found) > 1:
        _show_many(found)
    else:
        for description in found:
            _show(description, sentence(description))
    if found:
        draw(found, plot, html, quiet=json_)
    context.exit(status)


def draw(found: Sequence[dict[str, Any]], plot: str | None, html: str | None, *, quiet: bool = False) -> None:
    """The plot and the page, where they were asked for."""
    if plot is None and html is None:
        return
    from ..pages.adapters import inspect_page
    from ..plots.figures import of_adapter

    write(plot, html, lambda: of_adapter(found[0]), lambda: inspect_page(found), quiet=quiet)


def foretell(adapter: Adapter, programs: Sequence[str]) -> dict[str, Any]:
    """What each program will do with the file, under "for"; nothing where none was asked for."""
    if not programs:
        return {}
    from ..consumers import forecast

    return {"for": [forecast(adapter, program).as_data() for program in programs]}


def base_model(path: str) -> BaseModel:
    from ..reading.base import BaseModel

    return BaseModel(path)


def against_base(
    adapters: Sequence[Adapter], base: BaseModel | None, quiet: bool
) -> Sequence[dict[str, Any] | NploraError]:
    """Intruder dimensions of each, under "intruders", or why they cannot be told; nothing where no base was named."""
    if base is None:
        return [{} for _ in adapters]
    from ..analysis.intruders import compare_with_base

    with Progress("comparing with the base", quiet=quiet) as progress:
        found = compare_with_base(adapters, base, progress=progress)
    return [told if isinstance(told, NploraError) else {"intruders": told} for told in found]


def _show_many(descriptions: Sequence[dict[str, Any]]) -> None:
    """One line for each of several adapters."""
    from ..analysis.telling import because
    from .tables import console, table

    columns = ("file", "base", "kind", "trigger words", "modules", "rank", "effective", "scale", "norm", "odd")
    console().print(table(columns, [_line(description) for description in descriptions], 4))
    click.echo()
    say(click.style(paragraph(f"{NORM} One adapter alone is shown in full."), dim=True))
    counted = [(name_of(each), each["intruders"]) for each in descriptions if "intruders" in each]
    if counted:
        click.echo()
        counts = [
            (name, str(found["intruders"]), str(found["of"]), f"{found['energy']:.1%}") for name, found in counted
        ]
        console().print(table(("intruder dimensions", "found", "of", "energy"), counts))
    rows = [
        (found["program"], name_of(description), found["sentence"], because(found))
        for description in descriptions
        for found in description.get("for", ())
    ]
    if rows:
        click.echo()
        console().print(table(("for", "file", "what it does", "because"), rows, 4))


def _line(description: dict[str, Any]) -> list[str]:
    from ..analysis.inspection import overview

    row = overview(description)
    effective = "-" if row["effective_rank"] is None else f"{row['effective_rank']:.1f}"
    scales = {scale["scale"]: scale["modules"] for group in description["groups"] for scale in group["scales"]}
    return [
        row["name"], row["base"], row["kind"], ", ".join(row["trigger_words"]) or "-", str(row["modules"]),
        spread(description["ranks"]) or "-", effective, spread(scales) or "-",
        "unknown" if row["norm"] is None else three(row["norm"]), "; ".join(row["odd"]) or "-",
    ]  # fmt: skip


def _show(description: dict[str, Any], sentence: str) -> None:
    from ..analysis import telling
    from .tables import console, table

    name = printable(name_of(description))
    say(click.style(name, bold=True) + click.style(f"  {size(description['bytes'])}", dim=True), paragraph(sentence))
    click.echo()
    console().print(table(GROUPS, _rows(description), 3))
    click.echo()
    console().print(table(BLOCKS, [_block(block) for block in description["blocks"]], 2))
    click.echo()
    say(
        click.style(paragraph(NORM), dim=True), facts(telling.facts(description)),
        facts((label[: LABEL - 1], text) for label, text in telling.settings(description["metadata"])),
        facts(telling.fates(description.get("for", ()))),
        facts(telling.intruders(description["intruders"]) if "intruders" in description else ()),
    )  # fmt: skip


def name_of(description: Mapping[str, Any]) -> str:
    """The file's name without its folders."""
    path: str = description["file"]
    return path.rstrip("/").rpartition("/")[2] or path


def _block(block: Mapping[str, Any]) -> list[str]:
    numbers = (block["effective_rank"], block["stable_rank"])
    return [
        block["block"], spark(block["spectrum"]), str(block["modules"]), spread(block["ranks"]) or "-",
        *("-" if number is None else f"{number:.1f}" for number in numbers), str(block["dead_ranks"] or "-"),
        "unknown" if block["norm"] is None else three(block["norm"]),
    ]  # fmt: skip


def spark(values: Sequence[float]) -> str:
    """A descending spectrum, 1 at the front, as blocks of eight heights; long ones are thinned out.

    >>> len(spark([1.0, 0.5, 0.01]))  # "█▄▁", or signs of ASCII where the screen has no blocks
    3
    """
    step = max(1, -(-len(values) // WIDTH))
    thinned = [max(values[start : start + step]) for start in range(0, len(values), step)]
    marks = SPARK if drawable(SPARK) else PLAIN_SPARK
    return "".join(marks[max(min(round(8 * value), 8), 1 if value > 0 else 0)] for value in thinned).rstrip()


def _rows(description: dict[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    for group in description["groups"]:
        sources = dict.fromkeys(KNOWN_FROM.get(scale["known_from"], scale["known_from"]) for scale in group["scales"])
        repeated = rows and any(row[0] == group["component"] for row in rows)
        rows.append([
            "" if repeated else group["component"], group["kind"], ", ".join(sources) or "unknown",
            str(group["modules"]),
            spread(group["ranks"]) or "-",
            spread({scale["scale"]: scale["modules"] for scale in group["scales"]}) or "-",
            "unknown" if group["norm"] is None else three(group["norm"]),
        ])  # fmt: skip
    return rows
