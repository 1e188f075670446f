"""Compare two adapters without writing anything: how much they overlap, and what that means for mu."""

from __future__ import annotations

import os
from collections import Counter
from math import sqrt
from statistics import median
from typing import Any

import numpy as np

from .adapter import Adapter
from .adapters import LowRank
from .fused import FusedModule
from .fusion import fuse
from .overlap import advice, sentence, summarise
from .parameters import MU
from .projection import Overlap
from .report import results
from .storage import cast
from .threads import run_threads

ONE_RUN = 0.9  # down factors at this cosine started from the same numbers; unrelated ones lie near 0


def compare(subject: Adapter, style: Adapter, mu: float | str = 0.5) -> dict[str, Any]:
    """How much of the subject lies in the style's directions, module by module, as plain data ready for JSON.

    Args:
        subject, style: adapters of one base model.
        mu: the protection that the sentence speaks about; the overlap does not depend on it.

    Returns:
        rho (share of the subject's energy in the style's row space) against chance, the regime in a sentence,
        advice; the median cosine of the down factors; norms of both over the common modules and their ratio;
        counts of modules; and the same for each common module.

    Raises:
        InputError: the adapters are for different bases, or both change a module of a kind that cannot be fused.

    >>> compare(load("cat.safetensors"), load("ink.safetensors"))["regime"]  # doctest: +SKIP
    'unrelated'
    """
    strength = float(MU.check(mu))  # type: ignore[arg-type]
    fusion = fuse(subject, style, mu=0.0)  # mu = 0: full matrices may meet too, they only take no part
    overlaps, summary = list(fusion.overlaps.values()), summarise(fusion.overlaps.values())
    common = [module for module in fusion.modules.values() if module.subject is not None and module.style is not None]
    cosines = dict(_cosines(common))
    norms = {"subject": sqrt(summary.subject), "style": sqrt(summary.style)}
    return {
        "subject": subject.path,
        "style": style.path,
        "base": subject.base if subject.layout else style.base,
        **results(summary, strength),
        "mu": "inf" if np.isinf(strength) else strength,
        "sentence": sentence(summary, strength, overlaps),
        "advice": advice(summary),
        "median_down_cosine": round(median(cosines.values()), 4) + 0.0 if cosines else None,
        "initialisation": _initialisation(list(cosines.values())),
        "norms": norms,
        "norm_ratio": norms["subject"] / norms["style"] if norms["style"] else None,
        "modules": {
            "common": len(common),
            "only_subject": sum(module.style is None for module in fusion.modules.values()),
            "only_style": sum(module.subject is None for module in fusion.modules.values()),
            "not_projected": sum(module.job is None for module in common),
        },
        "overlaps": [_row(overlap, cosines) for overlap in overlaps],
        "notes": list(fusion.notes),
    }


def _row(overlap: Overlap, cosines: dict[str, float]) -> dict[str, Any]:
    cosine = cosines.get(overlap.name)
    return {
        "module": overlap.name, "rho": overlap.rho, "chance": overlap.chance, "directions": overlap.protected,
        "subject_norm": sqrt(max(overlap.subject, 0.0)), "style_norm": sqrt(max(overlap.style, 0.0)),
        "down_cosine": None if cosine is None else round(cosine, 4),
    }  # fmt: skip


def _initialisation(cosines: list[float]) -> str:
    """What the down factors say about where training began: "shared", "different", "mixed" or "unknown"."""
    if not cosines:
        return "unknown"
    shared = Counter(cosine >= ONE_RUN for cosine in cosines)
    return "shared" if not shared[False] else "different" if not shared[True] else "mixed"


def _cosines(common: list[FusedModule]) -> list[tuple[str, float]]:
    """Cosine between the down factors of both sides, as long as the shorter of the two (a seed fills rows in order)."""
    pairs: dict[str, FusedModule] = {}
    for module in common:
        if module.job is not None:
            pairs.setdefault(module.job.name, module)
    found = {}
    for module, cosine in run_threads(_cosine, pairs.values(), os.cpu_count() or 1):
        if cosine is not None and module.job is not None:
            found[module.job.name] = cosine
    return [(name, found[name]) for name in pairs if name in found]


def _cosine(module: FusedModule) -> float | None:
    one, two = (member.update for member in module.modules)
    if not (isinstance(one, LowRank) and isinstance(two, LowRank)):
        return None
    rows = min(one.rank, two.rank)
    with np.errstate(all="ignore"):
        a, b = (cast(np.ascontiguousarray(u.down.read()[:rows]), np.dtype(np.float64)).ravel() for u in (one, two))
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(a @ b) / size if size > 0 else float("nan")
    return cosine if np.isfinite(cosine) else None
