"""The page of ``nplora inspect``: one adapter in full, or many in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis import telling
from ..analysis.inspection import overview, sentence
from ..analysis.intruders import against_parts
from ..plots import figures
from ..wording import size
from . import Page, Section, figure, number, share, table, whole, words

Data = Mapping[str, Any]
RANKS = (
    "The effective rank says how many of the stored ranks share the work; far below the rank, the file could be "
    "smaller. A dead rank is stored and does nothing."
)
NORM = (
    "The norm says how large the change is at strength 1. It has no unit: compare blocks with each other, and adapters "
    "of one base."
)
MAP = (
    "Data flows from left to right, and in each block from top to bottom. The brighter, the larger the change of a "
    "module, or the more of its ranks work. Grey: there is no such module, or its numbers are not known."
)


def inspect_page(descriptions: Sequence[Data]) -> Page:
    """The page of one adapter, or of several side by side.

    Args:
        descriptions: from `nplora.analysis.inspection.describe`; one that was asked for programs holds their forecasts.
    """
    if len(descriptions) == 1:
        return _one(descriptions[0])
    rows = [_line(description) for description in descriptions]
    columns = ("file", "base", "kind", "modules", "rank", "effective rank", "norm", "trigger words", "what is odd")
    sections = [Section(f"{len(rows)} adapters", (RANKS, NORM), table=table(columns, rows))]
    asked = [(overview(d)["name"], found) for d in descriptions for found in d.get("for", ())]
    if asked:
        lines = [(words(name), words(found["program"]), words(found["sentence"]), words(telling.because(found)),
                  whole(found["taken"]), whole(found["keys"])) for name, found in asked]  # fmt: skip
        heads = ("file", "program", "what it does", "because", "keys taken", "keys in the file")
        checked = dict.fromkeys(f"{found['program']}: known from {found['checked']}." for _, found in asked)
        sections.append(Section("What programs will take", tuple(checked), table=table(heads, lines)))
    counted = [(overview(d)["name"], d["intruders"]) for d in descriptions if "intruders" in d]
    sections += [intruders(counted)] if counted else []
    return Page("Adapters side by side", (), tuple(sections))


def intruders(counted: Sequence[tuple[str, Data]]) -> Section:
    """Intruder dimensions of one adapter module by module, or of several side by side."""
    first = counted[0][1]
    said = (
        f"A leading direction of the tuned weight (of {first['leading']} in each module) is an intruder where it "
        f"resembles none of the base's: its largest cosine with them is below {first['threshold']:g}. More of them "
        "goes with more forgetting (arXiv 2410.21228)."
    )
    if len(counted) == 1:
        rows = [[words(row["module"]), whole(row["intruders"]), number(min(row["cosines"], default=None)),
                 share(row["energy"]), words(row["side"])] for row in first["modules"]]  # fmt: skip
        columns = ("module", "intruders", "smallest cosine", "their energy", "side")
        listed = table(columns, rows)
        lead = (first["sentence"], f"{telling.thresholds(first)[0].upper()}{telling.thresholds(first)[1:]}.", said)
        return Section("Intruder dimensions", lead, table=listed, folded=len(rows) > 40)
    names = [name for name, _ in counted]
    rows = [[words("all"), *(whole(found["intruders"]) for _, found in counted)]]
    rows += [[words(row["module"]), *map(whole, row["intruders"])] for row in against_parts([f for _, f in counted])]
    lines = tuple((name, f"{found['sentence']} {telling.thresholds(found)}") for name, found in counted)
    return Section("Intruder dimensions", (said,), lines, table=table(("module", *names), rows))


def _line(description: Data) -> list[Any]:
    row = overview(description)
    return [
        words(row["name"]), words(row["base"]), words(row["kind"]), whole(row["modules"]), whole(row["rank"]),
        number(row["effective_rank"]), number(row["norm"]), words(", ".join(row["trigger_words"]) or "-"),
        words("; ".join(row["odd"]) or "-"),
    ]  # fmt: skip


def _one(description: Data) -> Page:
    details = description["details"]
    sections = [
        Section("What it is", facts=(("size", size(description["bytes"] or 0)), *telling.facts(description))),
    ]  # fmt: skip
    settings = telling.settings(description["metadata"], 400)
    sections += [Section("What the header says", facts=tuple(settings))] if settings else []
    sections += [programs(description["for"])] if description.get("for") else []
    if any(detail["norm"] is not None for detail in details):
        sections += [
            Section("Where it acts", (MAP,), figure=figure(figures.of_modules(details)),
                    figure_says="heat maps of the norm and of the effective rank of every module, block by block"),
            Section("Ranks and spectra", (RANKS, NORM),
                    figure=figure(figures.of_spectra(description["blocks"])),
                    figure_says="singular values of each block against the largest",
                    table=table(("block", "modules", "effective rank", "stable rank", "dead ranks", "norm"),
                                [_block(block) for block in description["blocks"]])),
        ]  # fmt: skip
    sections += [intruders([("", description["intruders"])])] if "intruders" in description else []
    columns = ("module", "kind", "scale known from", "rank", "scale", "effective rank", "stable rank", "dead", "norm")
    rows = [_detail(detail) for detail in details]
    sections.append(Section("Every module", table=table(columns, rows), folded=len(rows) > 40))
    return Page(overview(description)["name"], (sentence(description),), tuple(sections))


def programs(forecasts: Sequence[Data]) -> Section:
    """What programs will take of a file, and why they leave the rest."""
    return Section("What programs will take", facts=tuple(telling.fates(forecasts)))


def _block(block: Data) -> list[Any]:
    return [words(block["block"]), whole(block["modules"]), number(block["effective_rank"]),
            number(block["stable_rank"]), whole(block["dead_ranks"]), number(block["norm"])]  # fmt: skip


def _detail(detail: Data) -> list[Any]:
    return [
        words(detail["module"]), words(detail["kind"]), words(detail["known_from"]), whole(detail["rank"]),
        number(detail["scale"]), number(detail["effective_rank"]), number(detail["stable_rank"]),
        whole(detail["dead_ranks"]), number(detail["norm"]),
    ]  # fmt: skip
