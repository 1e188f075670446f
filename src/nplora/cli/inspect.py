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
from .text import LABEL, as_json, count, drawable, facts, paragraph, printable, say, size, some, spread, three

if TYPE_CHECKING:
    from ..reading.adapter import Adapter

KNOWN_FROM = {
    "alpha": "alpha keys", "config": "the config beside it", "metadata": "the header", "scale key": "scale keys",
    "assumed 1": "assumed: no alpha", "none needed": "stored in full",
}  # fmt: skip
LABELS = {
    "ss_output_name": "saved as", "ss_sd_model_name": "trained on", "ss_base_model_version": "base by trainer",
    "ss_network_module": "trainer module", "ss_num_train_images": "images", "ss_num_epochs": "epochs",
    "ss_text_encoder_lr": "text encoder lr", "ss_training_comment": "comment", "modelspec.merged_from": "merged from",
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
    help="Count intruder dimensions against this base model: a checkpoint or a diffusers folder.",
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
    found = []
    for adapter in loaded.values():
        try:
            found.append(describe(adapter) | foretell(adapter, programs) | against_base(adapter, base, json_))
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


def against_base(adapter: Adapter, base: str | None, quiet: bool) -> dict[str, Any]:
    """Intruder dimensions, under "intruders"; nothing where no base was named."""
    if base is None:
        return {}
    from ..analysis.intruders import find_intruders
    from ..reading.base import BaseModel

    with Progress("comparing with the base", quiet=quiet) as progress:
        return {"intruders": find_intruders(adapter, BaseModel(base), progress=progress)}


def _intruders(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the intruders are, the worst modules first."""
    rows = [("intruders", found["sentence"])]
    worst = sorted((row for row in found["modules"] if row["intruders"]), key=lambda row: -row["intruders"])
    if worst:
        rows.append(("", "most in " + ", ".join(f"{row['module']} ({row['intruders']})" for row in worst[:3])))
    if found["missing"]:
        missing = found["missing"]
        rows.append(("not compared", f"{count(len(missing), 'module')} that the base does not hold: {some(missing)}"))
    return rows


def _fates(forecasts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A program's forecast, with a line for each reason."""
    rows = []
    for found in forecasts:
        rows.append((f"for {found['program']}", found["sentence"]))
        if not found["refused"]:
            for what in ("dropped", "changed"):
                rows += [(what, f"{count(len(keys), 'key')}, {why}: {some(keys)}") for why, keys in found[what].items()]
        rows.append(("", f"known from: {found['checked']}"))
    return rows


def _show_many(descriptions: Sequence[dict[str, Any]]) -> None:
    """One line for each of several adapters."""
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
    asked = [(description, description["for"]) for description in descriptions if description.get("for")]
    if asked:
        click.echo()
        rows = [
            (found["program"], name_of(description), found["sentence"])
            for description, every in asked
            for found in every
        ]
        console().print(table(("for", "file", "what it does"), rows, 3))


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
    from .tables import console, table

    name = printable(name_of(description))
    say(click.style(name, bold=True) + click.style(f"  {size(description['bytes'])}", dim=True), paragraph(sentence))
    click.echo()
    console().print(table(GROUPS, _rows(description), 3))
    click.echo()
    console().print(table(BLOCKS, [_block(block) for block in description["blocks"]], 2))
    click.echo()
    say(
        click.style(paragraph(NORM), dim=True), facts(_facts(description)), facts(_metadata(description["metadata"])),
        facts(_fates(description.get("for", ()))),
        facts(_intruders(description["intruders"]) if "intruders" in description else ()),
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

    >>> spark([1.0, 0.5, 0.01])
    '█▄▁'
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


def _facts(description: dict[str, Any]) -> list[tuple[str, str]]:
    base, form = description["base"], description["format"]
    rows = [("base", f"{base['title']}: {base['evidence']}"), ("format", f"{form['title']}: {form['evidence']}")]
    rows += [("", f"{count(number, 'module')} in the naming of {title}") for title, number in form["also"].items()]
    rows.append(
        ("numbers", ", ".join(f"{name} ({count(number, 'tensor')})" for name, number in description["dtypes"].items()))
    )
    if description["trigger_words"]:
        rows.append(("trigger words", ", ".join(description["trigger_words"])))
    if description["modules_in_file"] != description["modules"]:
        rows.append(
            ("in the file", f"{count(description['modules_in_file'], 'module')}, some of them fused projections")
        )
    if description["biases_and_norms"]:
        rows.append(("biases, norms", f"{count(description['biases_and_norms'], 'delta')} besides"))
    if description["zero_modules"]:
        zero = description["zero_modules"]
        rows.append(("zero", f"{count(len(zero), 'module')} that change nothing: {some(zero)}"))
    dead = [detail["module"] for detail in description["details"] if detail["dead_ranks"] and detail["norm"]]
    if dead:
        ranks = sum(
            detail["dead_ranks"] for detail in description["details"] if detail["norm"] and detail["dead_ranks"]
        )
        rows.append(("dead ranks", f"{ranks} in {count(len(dead), 'module')} are stored and do nothing: {some(dead)}"))
    for broken in description["not_finite"][:3]:
        rows.append(("not finite", f"{count(broken['values'], 'value')} in {broken['key']} (NaN or infinite)"))
    if len(description["not_finite"]) > 3:
        rows.append(("", f"and {len(description['not_finite']) - 3} more tensors"))
    if description["foreign_keys"]:
        foreign = description["foreign_keys"]
        rows.append(("other keys", f"{count(len(foreign), 'key')} in no module: {some(foreign)}"))
    rows += [("note", note) for note in description["notes"]]
    return rows


def _metadata(entries: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the header says, under names that fit beside it."""
    rows: dict[str, str] = {}
    for name, value in entries.items():
        label = name.removeprefix("ss_").removeprefix("modelspec.").replace("_", " ")
        rows.setdefault(LABELS.get(name, label)[: LABEL - 1], _short(value))
    return list(rows.items())


def _short(value: str, limit: int = 160) -> str:
    text = " ".join(value.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
