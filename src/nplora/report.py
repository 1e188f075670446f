"""Say what a fusion did: the overlap and its meaning, what became of every key, what was written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import metadata as words
from .fused import Fused
from .overlap import Summary, advice, change, matched_strength, sentence, summarise
from .projection import Overlap
from .target import Target
from .version import __version__


def _overlap(overlap: Overlap) -> dict[str, Any]:
    return {
        "module": overlap.name,
        "rho": round(overlap.rho, 6),
        "chance": round(overlap.chance, 6),
        "protected": overlap.protected,
        "subject_norm": _round(math.sqrt(max(overlap.subject, 0.0))),
        "style_norm": _round(math.sqrt(max(overlap.style, 0.0))),
    }


def _round(number: float) -> float:
    return float(f"{number:.6g}")


def results(summary: Summary, mu: float) -> dict[str, Any]:
    """The pair's overlap and what mu makes of it."""
    return {
        "rho": round(summary.rho, 6),
        "chance": round(summary.chance, 6),
        "regime": summary.regime,
        "modules_projected": summary.modules,
        "subject_change": round(change(summary.rho, mu), 6),
        "matched_addition_strength": round(matched_strength(summary.rho, mu), 6),
    }


def recipe(
    fusion: Fused, target: Target, hashes: Mapping[str, str], overlaps: Mapping[str, Overlap] | None
) -> dict[str, str]:
    """Header entries that let `verify` and a rerun do without anything else."""
    inputs = {
        role: {"name": _name(adapter.path), "sha256": hashes.get(role), **_config_hash(adapter.config)}
        for role, adapter in fusion.inputs.items()
    }
    if fusion.style is None:
        written = {"format": target.naming.format.name}
        return {words.RECIPE: words.recipe_text(inputs, "convert", _written(fusion, target), written)}
    mu = float(fusion.parameters["mu"])
    if overlaps is None:  # reserve room: numbers of full length
        found: dict[str, Any] = {**results(Summary(0.123456, 0.123456, 1.0, 1.0, 10**6), mu), "sentence": "x" * 400}
    else:
        summary = summarise(overlaps.values())
        found = {**results(summary, mu), "sentence": sentence(summary, mu, list(overlaps.values()))}
    found["format"] = target.naming.format.name
    return {words.RECIPE: words.recipe_text(inputs, fusion.method.name, _written(fusion, target), found)}


def _written(fusion: Fused, target: Target) -> dict[str, object]:
    skipped = ("strict", "allow_nonfinite")  # they change no number
    values = {name: value for name, value in fusion.parameters.items() if name not in skipped}
    return {**values, **target.asked}


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _config_hash(config: Mapping[str, object] | None) -> dict[str, str]:
    if config is None:
        return {}
    import hashlib
    import json

    return {"config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}


def fusion_report(fusion: Fused, target: Target | None = None) -> dict[str, Any]:
    """The report of a fusion as plain data, ready for JSON.

    Keys of both inputs end as used, copied or left out; `left_out` names each with the reason.
    """
    overlaps = list(fusion.overlaps.values())
    summary = summarise(overlaps)
    mu = float(fusion.parameters["mu"])
    report: dict[str, Any] = {
        "nplora": __version__,
        "inputs": {role: _input(adapter) for role, adapter in fusion.inputs.items()},
        "method": fusion.method.name if fusion.style is not None else "convert",
        "parameters": {name: words.jsonable(value) for name, value in fusion.parameters.items()},
        **results(summary, mu),
        "sentence": sentence(summary, mu, overlaps) if fusion.style is not None else "",
        "advice": advice(summary) if fusion.style is not None else "",
        "modules": _module_counts(fusion),
        "overlaps": [_overlap(overlap) for overlap in overlaps],
        "notes": list(fusion.notes),
        "left_out": dict(fusion.left_out),
        "trigger_words": {role: words.trigger_words(adapter.metadata) for role, adapter in fusion.inputs.items()},
    }
    if target is not None:
        report["keys"] = _key_counts(fusion, target)
        report["biases_and_norms_added"] = target.loose.added
        report["kept_under_their_own_names"] = target.plan.unnamed
        report["tensors_written"] = len(target.specs)
        report["bytes_copied_tensors"] = len(target.specs) - len(target.plan.rewritten) - len(target.plan.scalars)
    return report


def _input(adapter: Any) -> dict[str, Any]:
    return {"file": adapter.path, "format": adapter.format.name, "base": adapter.base, "modules": len(adapter.modules)}


def _module_counts(fusion: Fused) -> dict[str, Any]:
    both = [m.name for m in fusion.modules.values() if m.subject is not None and m.style is not None]
    only: dict[str, Sequence[str]] = {
        "subject": [m.name for m in fusion.modules.values() if m.style is None],
        "style": [m.name for m in fusion.modules.values() if m.subject is None],
    }
    return {
        "fused": len(both),
        "passed_through": {role: len(names) for role, names in only.items()},
        "passed_through_names": {role: list(names) for role, names in only.items()},
    }


def _key_counts(fusion: Fused, target: Target) -> dict[str, int]:
    total = sum(len(adapter.file.tensors) for adapter in fusion.inputs.values() if adapter.file is not None)
    left, copied = len(target.loose.left_out), len(target.loose.copied)
    return {"read": total, "used": total - left - copied, "copied": copied, "left out": left}
