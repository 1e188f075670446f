"""Compare two adapters without writing anything: how much they overlap, and what that means for mu."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import acos, degrees, sqrt
from statistics import median
from typing import Any

import numpy as np

from ..fusing import fuse
from ..fusion.jobs import Job, Overlap
from ..fusion.overlap import advice, percent, sentence, summarise
from ..fusion.projection import stream
from ..output.report import results
from ..parameters import MU
from ..reading.adapter import Adapter
from ..reading.expansion import expand
from .family import ALIKE, ONE_RUN, beyond_chance
from .meeting import Meeting, meet
from .signs import SAMPLE, expected_share
from .spectra import Array
from .suggestion import suggest

LOUD = 1.15  # a sum this many times as large as the stronger adapter may look burned
PULLING = 0.05  # sign conflict beyond chance that is worth a word
BINS = 18  # of 5 degrees each, in the histogram of angles


def compare(
    subject: Adapter,
    style: Adapter,
    mu: float | str = 0.5,
    *,
    base: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What two adapters have to do with each other, module by module, as plain data ready for JSON.

    Args:
        subject, style: adapters of one base model.
        mu: the protection that the sentence speaks about; the overlap does not depend on it.
        base: the base model, for OFT and other kinds whose update depends on it. Of DoRA the directions are compared.
        progress: called with (modules done, modules in all).

    Returns:
        rho (share of the subject's energy in the style's row space) against chance, the regime in a sentence, advice
        and a suggestion; ``findings`` in sentences; ``angles`` (degrees) between row spaces and between column
        spaces; ``signs`` (conflict beyond chance, from sampled rows); ``energy`` of the sum against the stronger
        one; the median cosine of the down factors; norms of both over the common modules and their ratio; counts of
        modules; and the same for each common module in ``overlaps``.

    Raises:
        InputError: the adapters are for different bases, or both change a module of a kind that cannot be fused.

    >>> compare(load("cat.safetensors"), load("ink.safetensors"))["regime"]  # doctest: +SKIP
    'unrelated'
    """
    strength = float(MU.check(mu))  # type: ignore[arg-type]
    (subject, one), (style, two) = _directions(subject, "subject"), _directions(style, "style")
    fusion = fuse(subject, style, mu=0.0, base=base)  # mu = 0: full matrices may meet too, they only take no part
    method, values = fusion.projection
    meetings = meet(fusion.jobs, (method, values), progress)
    rest = [job for job in fusion.jobs if meetings[job.key].overlap is None]  # by QR and SVD, or with a reason why not
    exact = stream(rest, method, values)
    overlaps = {job.key: meetings[job.key].overlap or exact[job.key] for job in fusion.jobs}
    summary = summarise(overlaps.values())
    common = [module for module in fusion.modules.values() if module.subject is not None and module.style is not None]
    starts = _starts(meetings.values())
    together = sum(meeting.together for meeting in meetings.values())
    found = {
        "subject": subject.path,
        "style": style.path,
        "base": subject.base if subject.layout else style.base,
        **results(summary, strength),
        "mu": "inf" if np.isinf(strength) else strength,
        "sentence": sentence(summary, strength, list(overlaps.values())),
        "advice": advice(summary),
        "suggestion": suggest(summary, together).as_data(),
        "median_down_cosine": round(median(starts), 4) + 0.0 if starts else None,
        "initialisation": _initialisation(starts),
        "angles": {side: _angles(meetings, fusion.jobs, side) for side in ("row", "column")},
        "signs": _sign_summary(meetings.values()),
        "energy": _energy(summary.subject, summary.style, together),
        "norms": {"subject": sqrt(summary.subject), "style": sqrt(summary.style)},
        "norm_ratio": sqrt(summary.subject / summary.style) if summary.style else None,
        "modules": {
            "common": len(common),
            "only_subject": sum(module.style is None for module in fusion.modules.values()),
            "only_style": sum(module.subject is None for module in fusion.modules.values()),
            "not_projected": sum(module.job is None for module in common),
        },
        "overlaps": [_row(overlap, meetings[key]) for key, overlap in overlaps.items()],
        "notes": [*fusion.notes, *one, *two],
    }
    return {**found, "findings": _findings(found)}


def _directions(adapter: Adapter, role: str) -> tuple[Adapter, list[str]]:
    """The adapter with the directions of DoRA modules in the place of their exact updates, and a note that says so."""
    found = expand(adapter, None, "ignore")
    count = len(found.unread) - len(adapter.unread)
    if not count:
        return adapter, []
    modules = f"{count} DoRA module{'' if count == 1 else 's'}"
    return replace(found, notes=adapter.notes), [f"{role}: of {modules} the direction is compared, not the magnitude"]


def _starts(meetings: Iterable[Meeting]) -> list[float]:
    """Cosines of the down factors, where they are known."""
    return [meeting.down_cosine for meeting in meetings if meeting.down_cosine is not None]


def _row(overlap: Overlap, meeting: Meeting) -> dict[str, Any]:
    return {
        "module": overlap.name, "rho": overlap.rho, "chance": overlap.chance, "directions": overlap.protected,
        "subject_norm": sqrt(max(overlap.subject, 0.0)), "style_norm": sqrt(max(overlap.style, 0.0)),
        "down_cosine": None if meeting.down_cosine is None else round(meeting.down_cosine, 4),
        "cosine": round(meeting.cosine, 4),
        "column_alike": _alike(meeting.column_cosines),
        "row_angles": _degrees(meeting.row_cosines), "column_angles": _degrees(meeting.column_cosines),
        "sign_conflict": round(meeting.sign_share, 4), "sign_excess": round(meeting.sign_excess, 4),
        "sum_norm": sqrt(meeting.together),
    }  # fmt: skip


def _alike(cosines: Array) -> float | None:
    """The mean squared cosine of principal angles: 1 where the spaces are one."""
    return round(float(np.mean(cosines**2)), 6) if len(cosines) else None


def _degrees(cosines: Iterable[float]) -> list[float]:
    """Angles in degrees, the smallest first."""
    return [round(degrees(acos(min(float(cosine), 1.0))), 1) for cosine in cosines]


def _angles(meetings: dict[str, Meeting], jobs: Iterable[Job], side: str) -> dict[str, Any]:
    """The principal angles of all modules: how alike the spaces are against chance, and a histogram."""
    expected = 0.0
    smallest, every = [], [np.zeros(0)]
    for job in jobs:
        meeting = meetings[job.key]
        cosines = meeting.row_cosines if side == "row" else meeting.column_cosines
        if not len(cosines):
            continue
        (out, r_c), (_, n), (_, r_s), _ = job.shapes
        width = n if side == "row" else out
        expected += len(cosines) * min(max(r_c, r_s) / width, 1.0)
        every.append(cosines)
        smallest.append(degrees(acos(min(float(cosines[0]), 1.0))))
    cosines = np.clip(np.concatenate(every), 0.0, 1.0)
    count = len(cosines)
    return {
        "alike": round(float(np.mean(cosines**2)), 6) if count else None,  # mean squared cosine
        "chance": round(expected / count, 6) if count else None,
        "median_smallest": round(median(smallest), 1) if smallest else None,
        "histogram": np.histogram(np.degrees(np.arccos(cosines)), BINS, (0.0, 90.0))[0].tolist(),
    }


def _sign_summary(meetings: Iterable[Meeting]) -> dict[str, Any]:
    """Sign conflict of all modules together; shares are over entries, so a large module counts for more."""
    listed = [meeting for meeting in meetings if meeting.entries]
    entries = sum(meeting.entries for meeting in listed)
    if not entries:
        return {"share": None, "expected": None, "excess": None, "entries": 0, "from": ""}
    share = sum(meeting.differ for meeting in listed) / entries
    expected = sum(expected_share(meeting.cosine) * meeting.entries for meeting in listed) / entries
    return {
        "share": round(share, 4), "expected": round(expected, 4), "excess": round(max(share - expected, 0.0), 4),
        "entries": entries, "from": f"whole rows, evenly spaced, about {SAMPLE} entries of each module",
    }  # fmt: skip


def _energy(subject: float, style: float, together: float) -> dict[str, Any]:
    strongest = max(subject, style)
    return {"sum_norm": sqrt(together), "of_stronger": sqrt(together / strongest) if strongest > 0 else None}


def _initialisation(cosines: list[float]) -> str:
    """What the down factors say about where training began: "shared", "different", "mixed" or "unknown"."""
    if not cosines:
        return "unknown"
    shared = Counter(cosine >= ONE_RUN for cosine in cosines)
    return "shared" if not shared[False] else "different" if not shared[True] else "mixed"


def _findings(found: dict[str, Any]) -> list[str]:
    """What the numbers say, a sentence each."""
    said = []
    columns, signs, energy = found["angles"]["column"], found["signs"], found["energy"]["of_stronger"]
    if columns["alike"] is not None:
        numbers = f"{percent(columns['alike'])} alike, chance is {percent(columns['chance'])}"
        if beyond_chance(columns["alike"], columns["chance"]) >= ALIKE:
            said.append(f"They write to the same outputs ({numbers}), as two trainings of one subject do: they add up.")
        else:
            said.append(f"They write to different outputs ({numbers}).")
    if signs["share"] is not None:
        numbers = (
            f"{percent(signs['share'])} of the entries have opposite signs, chance is {percent(signs['expected'])}"
        )
        pulling = signs["excess"] >= PULLING
        said.append(f"{'Entries pull against each other' if pulling else 'No sign conflict'}: {numbers}.")
    if energy is not None:
        text = f"The sum is {energy:.2f} times as large as the stronger one alone"
        loud = f"{text}: pictures may look burned; {1 / energy:.2f} of both would keep its size." if energy > 0 else ""
        said.append(loud if energy >= LOUD else f"{text}.")
    return said
