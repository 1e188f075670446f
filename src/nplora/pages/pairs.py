"""The page of ``nplora compare``: a pair in full, or many adapters and who belongs to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from ..analysis.family import relatives
from ..fusion.overlap import percent
from ..plots import figures
from . import Page, Section, figure, file_name, number, share, table, whole, words

Data = Mapping[str, Any]
SEED = {
    "shared": "both trainings started from the same numbers",
    "different": "the trainings started from different numbers",
    "mixed": "some modules started from the same numbers", "unknown": "not known",
}  # fmt: skip
MEETING = (
    "Above: the share of the subject that lies in the style's directions; unrelated adapters would have {chance}. "
    "Bright modules are where mu acts. Below: how much alike both write (mean squared cosine of the column angles); "
    "bright modules paint the same things. Grey: one of the two does not change that module."
)
CURVE = (
    "The full line is how much of the subject's norm is kept, the dashed one how much of it still lies in the style's "
    "way. Where the full line is flat, mu changes next to nothing."
)
ANGLES = (
    "Two directions at 0 degrees are the same, at 90 degrees they have nothing in common. Rows are what an adapter "
    "reads from, columns what it writes to; small column angles mean that both paint the same things."
)
MATRICES = (
    "Above: the cosine of the down factors; bright pairs started from one seed, between them mu acts as a strength. "
    "Below: how much alike they write, beyond chance; bright pairs learned one thing, and their sum is louder than "
    "either. Relatives stand side by side. Grey: the two have no module in common."
)
COLUMNS = (
    "module", "overlap", "chance", "smallest row angle (degrees)", "smallest column angle (degrees)", "write alike",
    "opposite signs beyond chance", "seed cosine", "subject norm", "style norm", "sum over the larger",
)  # fmt: skip


def compare_page(found: Data) -> Page:
    """The page of a pair.

    Args:
        found: from `nplora.analysis.comparison.compare`.
    """
    names = [file_name(found[role]) for role in ("subject", "style")]
    return Page(f"{names[0]} and {names[1]}", (f"{found['sentence']} {found['advice']}",), tuple(of_pair(found)))


def of_pair(found: Data) -> list[Section]:
    """The sections of a pair, for this page and for that of a fusion."""
    suggestion, rows = found["suggestion"], found["overlaps"]
    facts = (
        ("start with", f"{suggestion['options']}: {suggestion['reason']}"), ("base", found["base"]),
        ("modules", _counts(found["modules"])), ("seed", SEED[found["initialisation"]]),
        *(("note", note) for note in found["notes"]),
    )  # fmt: skip
    sections = [Section("What the numbers say", tuple(found["findings"]), facts)]
    if not rows:
        return sections
    mu = inf if found["mu"] == "inf" else found["mu"]
    signs = (f"Signs: {found['signs']['from']}.",) if found["signs"]["from"] else ()
    return [
        *sections,
        Section("Where they meet", (MEETING.format(chance=percent(found["chance"])),),
                figure=figure(figures.of_overlaps(rows)),
                figure_says="heat maps of every module: the overlap, and how much alike both write"),
        Section("What mu does", (CURVE,), figure=figure(figures.of_mu(rows, mu)),
                figure_says="kept norm of the subject against mu"),
        Section("Angles", (ANGLES,), figure=figure(figures.of_angles(found)),
                figure_says="histogram of principal angles"),
        Section("Every module", signs, table=table(COLUMNS, [_row(row) for row in rows]), folded=len(rows) > 40),
    ]  # fmt: skip


def _counts(counts: Data) -> str:
    alone = f"{counts['only_subject']} only in the subject, {counts['only_style']} only in the style"
    return f"{counts['common']} in common, {alone}"


def _row(row: Data) -> list[Any]:
    angles = [row[side][0] if row[side] else None for side in ("row_angles", "column_angles")]
    larger = max(row["subject_norm"], row["style_norm"])
    return [
        words(row["module"]), share(row["rho"]), share(row["chance"]), *(number(angle) for angle in angles),
        share(row["column_alike"]), share(row["sign_excess"]), number(row["down_cosine"]), number(row["subject_norm"]),
        number(row["style_norm"]), number(row["sum_norm"] / larger if larger > 0 else None),
    ]  # fmt: skip


def family_page(found: Data) -> Page:
    """The page of many adapters.

    Args:
        found: from `nplora.analysis.family.relate`.
    """
    order: Sequence[int] = found["order"]
    files = [found["files"][i] for i in order]
    rows = [
        [words(file["name"]), whole(place), words(file["trainer"]), words(file["seed"] or "-"), words(file["base"]),
         whole(file["modules"]), whole(file["rank"])]
        for place, file in enumerate(files, 1)
    ]  # fmt: skip
    pairs = [
        [words(found["files"][i]["name"]), words(found["files"][j]["name"]), number(found["down_cosine"][i][j]),
         number(found["row_alike"][i][j]), number(found["column_alike"][i][j]), number(found["cosine"][i][j])]
        for a, i in enumerate(order) for j in order[a + 1 :] if found["down_cosine"][i][j] is not None
    ]  # fmt: skip
    heads = ("file", "no.", "trainer", "its seed", "base", "modules", "rank")
    columns = ("one", "other", "seed", "read alike", "write alike", "cosine")
    return Page(f"{len(files)} adapters", tuple(found["sentences"]), (
        Section("Groups", facts=tuple(relatives(found))),
        Section("Who belongs to whom", (MATRICES,), figure=figure(figures.of_family(found)),
                figure_says="two matrices of all adapters against each other"),
        Section("The adapters", table=table(heads, rows)),
        Section("Every pair", (f"From {len(found['modules'])} modules of the model.",), table=table(columns, pairs),
                folded=len(pairs) > 40),
    ))  # fmt: skip
