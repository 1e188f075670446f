"""Say what a fusion did: the overlap and its meaning, what became of every key, what was written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..fusion.fused import Fused, Measure, Squeezed
from ..fusion.jobs import Overlap
from ..fusion.measures import merged_sentence, squeezed_total, total
from ..fusion.overlap import (
    Summary,
    advice,
    advice_of_many,
    change,
    matched_strength,
    mu_at,
    overlap_sentence,
    sentence,
    summarise,
    total_change,
    total_kept,
)
from ..methods import Merge
from ..version import __version__
from . import metadata as words
from .target import Target

LOPSIDED = 10.0  # of two norms; real pairs of one base lie below 5


def _overlap(overlap: Overlap, count: int) -> dict[str, Any]:
    return {
        "module": overlap.name,
        **({"adapter": overlap.role} if count > 2 else {}),
        "rho": round(overlap.rho, 6),
        "chance": round(overlap.chance, 6),
        "protected": overlap.protected,
        "subject_norm": _round(math.sqrt(max(overlap.subject, 0.0))),
        "style_norm": _round(math.sqrt(max(overlap.style, 0.0))),
    }


def _round(number: float) -> float:
    return float(f"{number:.6g}")


def results(summary: Summary, mu: float | None, overlaps: Sequence[Overlap] = ()) -> dict[str, Any]:
    """The pair's overlap and what mu makes of it; no mu for methods of which the overlap does not say what they do.

    Args:
        overlaps: module by module, where some have a mu of their own.
    """
    found: dict[str, Any] = {
        "rho": round(summary.rho, 6),
        "chance": round(summary.chance, 6),
        "regime": summary.regime,
        "modules_projected": summary.modules,
    }
    if mu is None:
        return found
    effect = change(summary.rho, mu), matched_strength(summary.rho, mu)
    if any(overlap.values for overlap in overlaps):
        effect = total_change(overlaps, mu), total_kept(overlaps, mu)
    return {**found, "subject_change": round(effect[0], 6), "matched_addition_strength": round(effect[1], 6)}


def recipe(
    fusion: Fused, target: Target, hashes: Mapping[str, str], overlaps: Mapping[str, Overlap] | None
) -> dict[str, str]:
    """Header entries that let `verify` and a rerun do without anything else."""
    inputs = {
        role: {"name": _name(adapter.path), "sha256": hashes.get(role), **_config_hash(adapter.config)}
        for role, adapter in fusion.inputs.items()
    }
    found = {**_found(fusion, overlaps), "format": target.naming.format.name}
    method = fusion.method.name if fusion.method else "convert"
    values = written_values(fusion, target.asked, hashes.get("base"))
    return {words.RECIPE: words.recipe_text(inputs, method, values, found)}


def _found(fusion: Fused, overlaps: Mapping[str, Overlap] | None) -> dict[str, Any]:
    """What came out; without overlaps, numbers of full length that reserve the room."""
    if fusion.method is None:
        return _compressed(fusion)
    found: dict[str, Any] = {}
    if "style" in fusion.inputs:
        mu = _mu(fusion)
        if overlaps is None:
            found = {**results(Summary(0.123456, 0.123456, 1.0, 1.0, 10**6), mu), "sentence": _room(fusion)}
        else:
            met = _of_pair(overlaps)
            found = {**results(summarise(met), mu, met), "sentence": _sentence(fusion, overlaps)}
    else:
        found = {"sentence": _sentence(fusion, overlaps) if overlaps is not None else _room(fusion)}
    return {**found, **_merged(fusion), **_compressed(fusion)}


def _room(fusion: Fused) -> str:
    """As long as any sentence on a fusion."""
    return "x" * (800 + 2 * sum(len(text) for text in fusion.overrides.texts)) * len(fusion.inputs)


def _compressed(fusion: Fused) -> dict[str, Any]:
    """What compressing cost, in numbers."""
    if not fusion.squeezed:
        return {}
    found = squeezed_total(fusion.squeezed.values())
    return {"compression": {name: _round(x) if isinstance(x, float) else x for name, x in found.items()}}


def _mu(fusion: Fused) -> float | None:
    """The mu that the overlap explains the result with; None for other methods."""
    if fusion.method is None or fusion.method.name == "linear":
        return 0.0
    return float(fusion.parameters["mu"]) if fusion.method.name == "np" else None


def _sentence(fusion: Fused, overlaps: Mapping[str, Overlap]) -> str:
    """What the fusion did in words: what the method made of the file, and the overlap of what met."""
    method = fusion.method
    if method is None:
        return ""
    said = []
    if isinstance(method, Merge):
        said.append(merged_sentence(_title(fusion), total(fusion.measures.values(), list(fusion.inputs))))
    elif method.name != "np":
        said.append(f"{_title(fusion)}.")
    by_role = _by_role(overlaps)
    if len(by_role) > 1 or (len(fusion.inputs) > 2 and by_role):
        said += [f"{role}: {_meeting(fusion, met, role)}" for role, met in by_role.items()]
    elif "style" in fusion.inputs:
        said.append(_meeting(fusion, list(overlaps.values()), next(iter(by_role), "subject")))
    elif not said:
        said.append("The adapters have no module in common: the result is plain addition.")
    return " ".join(said)


def _title(fusion: Fused) -> str:
    """The method, with those of its parameters that are others in parts of the model."""
    assert fusion.method is not None
    own = [p.name for p in fusion.method.parameters if fusion.overrides.of(p.name)]
    told = [f"{name} = {fusion.overrides.told(name, fusion.parameters[name])}" for name in own]
    return f"{fusion.method.title} ({'; '.join(told)})" if told else fusion.method.title


def _advice(fusion: Fused, pair: Summary) -> str:
    """What to do with mu, of a pair or of more."""
    if fusion.method is None or fusion.method.name != "np":
        return ""
    if len(fusion.inputs) <= 2:
        return advice(pair)
    return advice_of_many({summarise(met).regime for met in _by_role(fusion.overlaps).values()})


def _meeting(fusion: Fused, met: list[Overlap], role: str) -> str:
    assert fusion.method is not None
    if fusion.method.name != "np":
        return overlap_sentence(summarise(met), met, role)
    mu, calibrate = float(fusion.parameters["mu"]), float(fusion.parameters["calibrate"])
    return sentence(summarise(met), mu, met, role, calibrate, fusion.overrides.told("mu", mu))


def _by_role(overlaps: Mapping[str, Overlap]) -> dict[str, list[Overlap]]:
    """Role of the adapter that gives way -> its overlaps."""
    found: dict[str, list[Overlap]] = {}
    for overlap in overlaps.values():
        found.setdefault(overlap.role, []).append(overlap)
    order = sorted(found, key=lambda role: (role == "style", len(role), role))
    return {role: found[role] for role in order}


def _of_pair(overlaps: Mapping[str, Overlap]) -> list[Overlap]:
    """A pair's overlaps: those of the subject, unless the style alone gives way."""
    by_role = _by_role(overlaps)
    return by_role.get("subject") or by_role.get("style") or []


def _filled(fusion: Fused) -> list[str]:
    """Notes about modules in which the protected directions are all there are."""
    notes, mu = [], _mu(fusion)
    if mu is None:
        return []
    for role, met in _by_role(fusion.overlaps).items():
        names = [overlap.name for overlap in met if overlap.protected >= overlap.width and mu_at(overlap, mu)]
        if names:
            rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
            notes.append(
                f"{role} gives way to directions that fill {', '.join(names[:2])}{rest}: mu is only a strength there, "
                "and mu = inf deletes it"
            )
    return notes


def _lopsided(summary: Summary) -> list[str]:
    """A note where one of a pair drowns the other."""
    if summary.subject <= 0 or summary.style <= 0:
        return []
    ratio = math.sqrt(summary.subject / summary.style)
    strong, weak, times = ("subject", "style", ratio) if ratio > 1 else ("style", "subject", 1 / ratio)
    if times < LOPSIDED:
        return []
    found = f"the {strong} is {times:.3g} times as strong as the {weak} in the common modules and will drown it"
    return [f"{found}: lower --{strong}-strength, or look at its scale with nplora inspect"]


def _merged(fusion: Fused) -> dict[str, Any]:
    """What a merge made of the file, in numbers."""
    if not isinstance(fusion.method, Merge):
        return {}
    found = total(fusion.measures.values(), list(fusion.inputs))
    return {
        "kept": {role: _round(share) for role, share in found.kept.items()},
        "foreign": _round(found.foreign),
        "distance_to_sum": _round(found.distance),
        "error": _round(found.error),
    }


def written_values(fusion: Fused, asked: Mapping[str, object], base_sha256: str | None) -> dict[str, object]:
    """The parameters as a recipe in a header holds them: a base model by its name and hash, as inputs are."""
    skipped = ("strict", "allow_nonfinite")  # they change no number
    values = {name: value for name, value in fusion.parameters.items() if name not in skipped}
    values["base"] = None
    if fusion.base is not None and fusion.base.used:
        values |= {"base": fusion.base.name, "base_sha256": base_sha256}
    return {**values, **asked}


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
    met = _of_pair(fusion.overlaps)
    summary = summarise(met)
    report: dict[str, Any] = {
        "nplora": __version__,
        "inputs": {role: _input(adapter) for role, adapter in fusion.inputs.items()},
        "method": fusion.method.name if fusion.method else "convert",
        "parameters": {name: words.jsonable(value) for name, value in fusion.parameters.items()},
        **({"overrides": _overrides(fusion)} if fusion.overrides.rules else {}),
        **(results(summary, _mu(fusion), met) if len(fusion.inputs) <= 2 else _each(fusion)),
        **_merged(fusion),
        **_compressed(fusion),
        "sentence": _sentence(fusion, fusion.overlaps),
        "advice": _advice(fusion, summary),
        "modules": _module_counts(fusion),
        "overlaps": [_overlap(overlap, len(fusion.inputs)) for overlap in fusion.overlaps.values()],
        **({"merges": [_measure(measure) for measure in fusion.measures.values()]} if fusion.measures else {}),
        **({"compressed": [_squeezed(module) for module in fusion.squeezed.values()]} if fusion.squeezed else {}),
        "notes": [*fusion.notes, *_filled(fusion), *(_lopsided(summary) if "style" in fusion.inputs else ())],
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


def _squeezed(module: Squeezed) -> dict[str, Any]:
    return {
        "module": module.name, "ranks_before": module.before, "rank": module.rank,
        "relative_error": _round(module.relative),
    }  # fmt: skip


def _overrides(fusion: Fused) -> list[dict[str, Any]]:
    """Every rule for a part of the model, and about how many modules it decides."""
    counts: dict[str, int] = {}
    for name in fusion.modules:
        for rule in fusion.overrides.deciding(name):
            counts[rule.text] = counts.get(rule.text, 0) + 1
    return [
        {"parameter": rule.parameter, "where": rule.where, "value": words.jsonable(rule.value),
         "modules": counts.get(rule.text, 0)} for rule in fusion.overrides.rules
    ]  # fmt: skip


def _each(fusion: Fused) -> dict[str, Any]:
    """The overlap of each adapter with what it gives way to."""
    found = {role: results(summarise(met), _mu(fusion), met) for role, met in _by_role(fusion.overlaps).items()}
    return {"giving_way": found}


def _measure(measure: Measure) -> dict[str, Any]:
    found = total([measure], measure.roles)
    return {
        "module": measure.name, "rank": measure.rank, "error": _round(found.error),
        "kept": {role: _round(share) for role, share in found.kept.items()},
        "distance_to_sum": _round(found.distance),
        **{name: words.jsonable(_round(number)) for name, number in measure.facts.items()},
    }  # fmt: skip


def _input(adapter: Any) -> dict[str, Any]:
    return {"file": adapter.path, "format": adapter.format.name, "base": adapter.base, "modules": len(adapter.modules)}


def _module_counts(fusion: Fused) -> dict[str, Any]:
    shared = [m.name for m in fusion.modules.values() if len(m.members) > 1]
    only = {
        role: [m.name for m in fusion.modules.values() if [member.role for member in m.members] == [role]]
        for role in (fusion.inputs if len(fusion.inputs) > 1 else ("subject", "style"))
    }
    return {
        "fused": len(shared),
        "passed_through": {role: len(names) for role, names in only.items()},
        "passed_through_names": {role: list(names) for role, names in only.items()},
    }


def _key_counts(fusion: Fused, target: Target) -> dict[str, int]:
    total = sum(len(adapter.file.tensors) for adapter in fusion.inputs.values() if adapter.file is not None)
    left, copied = len(target.loose.left_out), len(target.loose.copied)
    return {"read": total, "used": total - left - copied, "copied": copied, "left out": left}
