"""The page of a fusion: what it did to its parts, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..methods import find_method
from ..parameters import COMMON, STYLE_STRENGTH, SUBJECT_STRENGTH
from ..plots import figures
from . import Page, Section, figure, file_name, number, table, words
from .adapters import intruders
from .pairs import of_pair

Data = Mapping[str, Any]


def fusion_page(
    report: Data, outcome: Data, pair: Data | None = None, counted: Sequence[tuple[str, Data]] = ()
) -> Page:
    """The page of a fusion.

    Args:
        report: from `Fusion.save` or `Fusion.report`.
        outcome: from `nplora.analysis.outcome.outcome`.
        pair: from `nplora.analysis.comparison.compare`, for two inputs.
        counted: names of the inputs and of the result with their intruder dimensions, where a base model was at hand.
    """
    name = file_name(str(report.get("output", "A fusion")))
    lead = tuple(text for text in (f"{report['sentence']} {report['advice']}".strip(), _summary(outcome)) if text)
    sections = [Section("How it was made", facts=_recipe(report))]
    if outcome["blocks"]:
        text = (
            "Grey is plain addition at the same strengths. Where green stands below it, the fusion gave something up; "
            "the lower bars say of what: 1 is all of an adapter, 0 is nothing."
        )
        sections.append(Section("Before and after", (text,), figure=figure(figures.of_outcome(outcome)),
                                figure_says="norms of the parts, their sum and the result, block by block",
                                table=_blocks(outcome)))  # fmt: skip
    if pair is not None:
        sections += of_pair(pair)
    sections += [intruders([(file_name(name), found) for name, found in counted])] if counted else []
    lost = report["left_out"]
    rows = [[words(key), words(why)] for key, why in lost.items()]
    said = (
        f"{len(lost)} keys of the inputs are not in the result."
        if lost
        else "Every key of the inputs is in the result."
    )
    listed = table(("key", "why"), rows) if rows else None
    sections.append(Section("Keys", (said,), table=listed, folded=len(rows) > 20))
    return Page(name, lead, tuple(sections))


def _summary(outcome: Data) -> str:
    """The whole file in a sentence."""
    total = outcome["total"]
    kept = {role: total[f"{role}_kept"] for role in outcome["roles"] if total[f"{role}_kept"] is not None}
    parts = [f"{share:.2f} of {'the ' if role in ('subject', 'style') else ''}{role}" for role, share in kept.items()]
    if not parts or not total["sum"]:
        return ""
    size = total["fused"] / total["sum"]
    return f"The result holds {' and '.join(parts)}, and is {size:.2f} times as large as their plain sum."


def _recipe(report: Data) -> tuple[tuple[str, str], ...]:
    rows = [
        (role, f"{file_name(entry['file'])} ({entry['base']}, {entry['modules']} modules)")
        for role, entry in report["inputs"].items()
    ]
    rows += [("method", str(report["method"])), ("parameters", ", ".join(_given(report)))]
    rows += [(f"{role} words", ", ".join(found)) for role, found in report["trigger_words"].items() if found]
    if "format" in report:
        rows.append(("written as", str(report["format"])))
    return (*rows, *(("note", note) for note in report["notes"]))


def _given(report: Data) -> list[str]:
    """The strengths, the method's own parameters, and whatever is not as it is by default."""
    found = find_method(report["method"])
    defaults = {parameter.name: parameter.default for parameter in (*COMMON, *found.parameters)}
    shown = {parameter.name for parameter in (SUBJECT_STRENGTH, STYLE_STRENGTH, *found.parameters)}
    return [
        f"{name.replace('_', ' ')} {file_name(value) if name == 'base' else _said(value)}"
        for name, value in report["parameters"].items()
        if value not in (None, False) and (name in shown or value != defaults.get(name))
    ]


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _blocks(outcome: Data) -> Any:
    roles = outcome["roles"]
    columns = ("block", *roles, "plain sum", "fused", *(f"{role} kept" for role in roles), "rest")
    rows = [
        [words(block["block"]), *(number(block[kind]) for kind in (*roles, "sum", "fused")),
         *(number(block[f"{role}_kept"]) for role in roles), number(block["rest"], 2)]
        for block in outcome["blocks"]
    ]  # fmt: skip
    return table(columns, rows, caption="kept: the coefficient in the least-squares fit of the result by its parts. "
                                        "rest: what no part explains, against the result.")  # fmt: skip
