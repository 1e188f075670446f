"""Run many methods on the same adapters and measure what each makes of them; nothing is written.

All measures are of updates, never of factors, and of the whole file: numerators and denominators are summed over
modules. What a method makes is compared with the exact sum and with what the others make.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import LowRank
from ..algebra import numerical_rank, thin_svd
from ..errors import NploraError, UsageError
from ..fusing import Fusion, fuse
from ..fusion.fused import FusedModule, Measure
from ..fusion.measures import Total, gram, total
from ..fusion.merging import module_seed
from ..fusion.options import options_of
from ..fusion.overlap import Summary, percent, summarise
from ..fusion.overrides import fitting
from ..methods import find_method, known_methods
from ..output.computed import made
from ..parameters import OVERRIDES
from ..reading.adapter import Adapter
from ..storage import ITEM_BITS, wider
from ..threads import run_threads

Array = NDArray[np.float64]
PROBES = 4  # random inputs a module that results are told apart by: distances between results to a few per cent
SAME = 0.05  # results nearer than this share of the sum's norm count as one


@dataclass(frozen=True)
class Made:
    """What one method made: plain numbers, and a sketch that tells it from what others made."""

    row: dict[str, Any]
    sketch: Array


@dataclass(frozen=True, slots=True)
class _Module:
    """One module of a result: its measure, its size, and the style's disturbance."""

    measure: Measure
    numbers: int
    bits: int
    leakage: float  # ||(dW - w_s dW_s) V_s||^2
    style: float  # ||w_s dW_s||^2
    sketch: Array


def compare_methods(
    *adapters: Adapter,
    methods: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What every method makes of the same adapters, as plain data ready for JSON.

    Args:
        adapters: two or more of one base model; the last is the style, or the most protected.
        methods: their names; all of them by default.
        progress: called with (method, methods done, methods in all).
        **options: of `fuse`; each goes to the methods that have it.

    Returns:
        For each method: rank of the result (median over modules) and its numbers' size in bytes at the inputs' type;
        seconds of computing; ``distance``, how far the result is from the exact sum; ``kept``, how strongly each
        adapter is in it, and ``energies``, what each one's part has of its energy; ``foreign``, the share of its norm
        that no adapter explains; ``leakage``, how far it changes the style's response to the style's own inputs,
        ``||(dW - dW_s) V_s|| / ||dW_s||``; ``error``, the distance from the method's definition. And which methods came
        to the same, with the reason.

    Raises:
        UsageError: fewer than two adapters, an unknown method, an option that none of the methods has.

    >>> table = compare_methods(load("cat.safetensors"), load("ink.safetensors"))  # doctest: +SKIP
    >>> min(table["methods"], key=lambda row: row["leakage"])["method"]  # doctest: +SKIP
    'np'
    """
    if len(adapters) < 2:
        raise UsageError("there is nothing to compare", expected="two adapters or more", got=len(adapters))
    names = list(dict.fromkeys(methods or known_methods()))
    shared = _shared_options(names, options, len(adapters))
    found: dict[str, Made] = {}
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        if progress:
            progress(name, index, len(names))
        try:
            found[name] = _run(adapters, name, shared[name])
            rows.append(found[name].row)
        except NploraError as error:
            rows.append({"method": name, "not_possible": str(error)})
    if progress:
        progress("", len(names), len(names))
    if not found:
        raise UsageError("none of the methods can fuse these adapters", got=rows[0]["not_possible"])
    overlaps, size = _overlaps(adapters, options), _sum_size(found)
    summary = next(iter(overlaps.values()))
    groups = _groups({name: one.sketch for name, one in found.items()}, size)
    return {
        "adapters": [adapter.path for adapter in adapters],
        "base": next((adapter.base for adapter in adapters if adapter.layout), adapters[0].base),
        "rho": summary.rho,
        "chance": summary.chance,
        "regime": summary.regime,
        "methods": rows,
        "same": groups,
        "sentences": _sentences(groups, found, overlaps),
    }


def _shared_options(names: Sequence[str], options: Mapping[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """Method -> those of the options that it has; of the overrides, those that set one of them."""
    having = {name: {p.name for p in options_of(find_method(name), count)} for name in names}
    rules = OVERRIDES.check(options[OVERRIDES.name]) if options.get(OVERRIDES.name) else ()
    for option in [*options, *(rule.partition("@")[0] for rule in rules)]:  # type: ignore[attr-defined]
        if not any(option in known for known in having.values()):
            raise UsageError(f"none of the methods has an option {option}", got=", ".join(names))
    return {name: _own(options, known) for name, known in having.items()}


def _own(options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name in known}
    if OVERRIDES.name in found:
        found[OVERRIDES.name] = fitting(found[OVERRIDES.name], known)
    return found


def _run(adapters: Sequence[Adapter], name: str, options: Mapping[str, Any]) -> Made:
    start = time.perf_counter()
    fusion = fuse(*adapters, method=name, **options)
    done = made(fusion, everything=True)
    seconds = time.perf_counter() - start
    todo = [module for module in done.values() if all(isinstance(m.update, LowRank) for m in module.members)]
    if not todo:
        raise UsageError("no module is made of low-rank factors", hint="There is nothing that methods differ in.")
    style, modules = list(fusion.inputs)[-1], {}
    for module, one in run_threads(lambda module: _measure(module, style), todo, os.cpu_count() or 1):
        modules[module.name] = one
    ordered = [modules[module.name] for module in todo]
    measures = [_with_error(one.measure, done) for one in ordered]
    whole = total(measures, list(fusion.inputs))
    leakage, of_style = (sum(getattr(one, what) for one in ordered) for what in ("leakage", "style"))
    row = {
        "method": name,
        "rank": median(one.measure.rank for one in ordered),
        "bytes": sum(one.numbers * one.bits // 8 for one in ordered),
        "seconds": seconds,
        "distance": whole.distance,
        "leakage": sqrt(leakage / of_style) if of_style > 0 else 0.0,
        "kept": whole.kept,
        "energies": whole.energies,
        "foreign": whole.foreign,
        "error": whole.error,
        "norm": sqrt(max(float(whole.gram[-1, -1]), 0.0)),
        "sum_norm": _sum_norm(whole),
    }
    return Made(row, np.concatenate([one.sketch.ravel() for one in ordered]))


def _with_error(measure: Measure, done: Fusion) -> Measure:
    merged = done.measures.get(measure.name)
    error = merged.error if merged is not None else 0.0
    return Measure(measure.name, measure.rank, error, measure.roles, measure.gram)


def _sum_norm(whole: Total) -> float:
    return sqrt(max(float(whole.gram[:-1, :-1].sum()), 0.0))


def _measure(module: FusedModule, style: str) -> _Module:
    """One module of a result, from the factors that would be written."""
    parts = [member.part() for member in module.members]
    stack = [member.part() for member in module.written]
    up = np.concatenate([part.weight * part.up for part in stack], axis=1)
    down = np.concatenate([part.down for part in stack])
    roles = tuple(member.role for member in module.members)
    measure = Measure(module.name, up.shape[1], 0.0, roles, gram(parts, up, down))
    leakage = of_style = 0.0
    if style in roles:
        own = parts[roles.index(style)]
        _, s, V = thin_svd(own.up, own.down)
        V = V[:, : numerical_rank(s, (own.up.shape[0], own.down.shape[1]))]
        leakage = float(np.linalg.norm(up @ (down @ V) - own.weight * own.up @ (own.down @ V)) ** 2)
        of_style = float(own.weight**2 * np.sum(s**2))
    rng = np.random.default_rng(module_seed(0, module.name))
    sketch = up @ (down @ rng.standard_normal((down.shape[1], PROBES))) / sqrt(PROBES)
    stored = [m.dtype for one in module.members for m in (one.update.up, one.update.down)]  # type: ignore[union-attr]
    return _Module(measure, prod(up.shape) + prod(down.shape), ITEM_BITS[wider(stored)], leakage, of_style, sketch)


def _overlaps(adapters: Sequence[Adapter], options: Mapping[str, Any]) -> dict[str, Summary]:
    """Role -> its overlap with all that are named after it, at the strengths asked for."""
    own = {p.name for p in options_of(find_method("linear"), len(adapters))}
    found = fuse(*adapters, method="linear", **_own(options, own)).overlaps.values()
    roles = list(dict.fromkeys(overlap.role for overlap in found)) or [""]
    return {role: summarise(overlap for overlap in found if overlap.role == role) for role in roles}


def _sum_size(found: Mapping[str, Made]) -> float:
    return max(float(one.row["sum_norm"]) for one in found.values())


def _groups(sketches: Mapping[str, Array], size: float) -> list[list[str]]:
    """Methods whose results are the same within `SAME` of the sum's norm, each with at least one other."""
    groups: list[list[str]] = []
    for name, sketch in sketches.items():
        for group in groups:
            if float(np.linalg.norm(sketch - sketches[group[0]])) <= SAME * size:
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def _sentences(
    groups: Sequence[Sequence[str]], found: Mapping[str, Made], overlaps: Mapping[str, Summary]
) -> list[str]:
    """Which methods came to the same on these adapters, and why."""
    said = [_why(overlaps)]
    for group in groups:
        rows = [found[name].row for name in group]
        names = ", ".join(group[:-1]) + f" and {group[-1]}"
        if min(row["distance"] for row in rows) <= SAME:
            said.append(f"{names} give the plain sum here, within {percent(SAME)}.")
        else:
            shares = ", ".join(f"{role} at {share:.2f}" for role, share in rows[0]["kept"].items())
            said.append(f"{names} give the same here, within {percent(SAME)}: {shares}.")
    told = [name for name, one in found.items() if one.row["foreign"] > 0.1]
    if told:
        words = ", ".join(f"{name} ({percent(found[name].row['foreign'])})" for name in told)
        said.append(f"A large part of the result is in none of the adapters with {words}.")
    return said


def _why(overlaps: Mapping[str, Summary]) -> str:
    """What the overlaps mean for the methods; of several adapters in different positions each is named."""
    summary = next(iter(overlaps.values()))
    if len({one.regime for one in overlaps.values()}) > 1:
        each = ", ".join(f"{role} {percent(one.rho)}" for role, one in overlaps.items())
        return f"Of each adapter in the input directions of those after it: {each}. Methods differ where that is much."
    overlap = f"{percent(summary.rho)} overlap"
    if summary.regime == "unrelated":
        return (
            f"Unrelated runs ({overlap}, chance is {percent(summary.chance)}): methods that act on what overlaps have "
            "nothing to act on, and come to the plain sum."
        )
    if summary.regime == "shared":
        return (
            f"Shared initialisation ({overlap}): all lie in the same input directions; what protects them all alike is "
            "only a strength."
        )
    if summary.regime == "none":
        return "The adapters have no module in common: every sum is the plain one."
    return f"Mixed ({overlap}, chance is {percent(summary.chance)}): methods that act on what overlaps differ there."
