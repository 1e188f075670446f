"""Fuse adapters: match their modules, say what happens to each key, and write the result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from .algebra.compression import Goal
from .errors import InputError, UsageError
from .fusion.fusable import require_count, require_fusable
from .fusion.fused import Fused, FusedModule, Member, Progress
from .fusion.jobs import Job
from .fusion.leftovers import LeftOut
from .fusion.merging import module_seed
from .fusion.options import check_options, goal_of, options_of, require_goal
from .fusion.overrides import Overrides, read_overrides, require_reached
from .fusion.pairing import Match, match_modules
from .fusion.protection import gives_way, jobs_of, numbered, priorities
from .fusion.roles import roles
from .fusion.sharing import share_jobs
from .fusion.strengths import Strengths, read_rules, require_used
from .methods import Merge, Method, find_method
from .output.computed import made
from .output.report import fusion_report
from .output.writing import save_fusion
from .parameters import COMMON, FORMAT, Parameter, check_all
from .reading.adapter import Adapter
from .reading.base import BaseModel
from .reading.expansion import expand


class Fusion(Fused):
    """The fusion of adapters: a mapping from canonical module names to `FusedModule`.

    `save` writes it, `report` says what it did.
    """

    def report(self) -> dict[str, Any]:
        """What the fusion did, as plain data: overlap, regime in words, every key's fate."""
        return fusion_report(made(self))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write the fused adapter, whole or not at all, and return the report.

        Args:
            path: a ``.safetensors`` file, or a folder for the peft format.
            format, dtype: as in `fuse`; the values given there are the default.
            overwrite: replace an existing output.

        Raises:
            OutputError: it cannot be written; nothing is changed then.
        """
        return save_fusion(
            made(self, path), path, format or self.parameters["format"], dtype or self.parameters["dtype"], overwrite
        )


def fuse(*adapters: Adapter, method: str = "np", progress: Progress | None = None, **parameters: Any) -> Fusion:
    """Fuse adapters of one base model, by default so that the style keeps its directions (NP-LoRA, arXiv 2511.11051).

    Per module ``dW = w_s dW_s + w_c dW_c (I - g V V^T)`` with ``g = mu/(1+mu)`` and V the style's right singular
    vectors. Modules that only one adapter has pass through. Of more adapters each gives way to all that follow it (or
    as ``protect`` says): V then spans the row spaces of all of them.

    Args:
        adapters: from `load`; of two the first is the subject, the second the style.
        method: one of those that ``nplora methods`` lists.
        progress: called with (modules done, modules in all).
        **parameters: the method's own (for np: mu, directions, side) and those of every method: subject_strength,
            style_strength, components, base, dora, rank, energy, error, keep_style, format, dtype, device, strict,
            allow_nonfinite. In parts of the model: ``strengths="style@up=0"``, ``overrides="mu@up=2"``.

    Returns:
        The fusion; nothing is computed before it is saved, reported or looked at.

    Raises:
        UsageError: a parameter is out of range, or the method has none of that name.
        InputError: the adapters are for different bases, or several change a module that cannot be fused.

    >>> fused = fuse(load("cat.safetensors"), load("ink.safetensors"), mu=0.5)  # doctest: +SKIP
    >>> fused.save("cat-ink.safetensors", format="kohya")  # doctest: +SKIP
    """
    chosen = find_method(method)
    inputs = dict(zip(roles(len(adapters)), adapters, strict=True))
    require_count(chosen, len(inputs))
    values = check_options(chosen, parameters, len(inputs))
    overrides = _overrides(values, options_of(chosen, len(inputs)))
    goal = goal_of(values, len(inputs))
    base = BaseModel(str(values["base"])) if values["base"] else None
    inputs = {role: expand(adapter, base, str(values["dora"])) for role, adapter in inputs.items()}
    left_out = _unread(inputs)
    matches = match_modules(inputs, component_filter(inputs, values["components"]), left_out)
    paths = {role: adapter.path for role, adapter in inputs.items()}
    strengths = _strengths(values, paths)
    require_used(strengths, _changed(matches, inputs))
    require_reached(overrides, [match.name for match in matches])
    levels = priorities(values.get("protect"), paths)
    values["protect"] = numbered(levels, paths) if values.get("protect") else None
    modules: dict[str, FusedModule] = {}
    for match in matches:
        members = _heard(match, strengths, left_out)
        if members:
            there = overrides.at(match.name)
            here = {**values, **there}
            require_fusable(members, chosen, here, inputs, levels)
            far = goal_of(here, len(inputs), match.name) if there else goal
            modules[match.name] = _module(match.name, members, chosen, levels, here, there, far)
    if not modules:
        raise UsageError(
            "nothing is left to write", expected="a module with a strength other than 0",
            hint="Check --components and the strengths.",
        )  # fmt: skip
    require_goal(values, overrides, (module.goal for module in modules.values()))
    share_jobs(modules)
    if values["strict"] and left_out:
        key, why = next(iter(left_out.items()))
        raise InputError(
            f"keys would be left out ({len(left_out)} in all; {why})",
            key=key,
            hint="Go on without --strict to allow it.",
        )
    notes = (*_twice(paths), *(f"{role}: {note}" for role, adapter in inputs.items() for note in adapter.notes))
    return Fusion(
        inputs, chosen, values, strengths, modules, left_out, (*notes, *_unused(base)), progress, base=base,
        overrides=overrides,
    )  # fmt: skip


def _twice(paths: Mapping[str, str]) -> list[str]:
    """A note for each file that stands there twice."""
    notes = []
    for (one, first), (two, second) in combinations(paths.items(), 2):
        if os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second):  # noqa: PTH110, PTH121
            notes.append(f"{one} and {two} are the same file, which is fused with itself")
    return notes


def _module(
    name: str,
    members: tuple[Member, ...],
    method: Method | Merge,
    levels: Mapping[str, int],
    values: Mapping[str, Any],
    others: Mapping[str, object],
    goal: Goal | None,
) -> FusedModule:
    """One module of a fusion.

    Args:
        values: the options that hold in it; others: those of them that are not what they are elsewhere.
    """
    own, side = {p.name: values[p.name] for p in method.parameters}, str(values.get("side", "input"))
    calibrate, seed = float(values.get("calibrate", 1.0)), int(values.get("seed", 0))
    rewrites = isinstance(method, Method) and method.rewrites
    jobs: Mapping[str, Job] = {}
    if isinstance(method, Method) or len(levels) == 2:
        different = {n: value for n, value in others.items() if n in own or n == "calibrate"} if rewrites else {}
        jobs = jobs_of(name, members, levels, side, tuple(sorted(different.items())))
    return FusedModule(
        name, members, jobs, method, own, side, calibrate, module_seed(seed, name),
        gives_way=gives_way(members, levels) if rewrites else {}, goal=goal,
    )  # fmt: skip


def _unused(base: BaseModel | None) -> tuple[str, ...]:
    unused = base is not None and not base.used
    return ("the base model was not needed: no module's update depends on it",) if unused else ()


def component_filter(inputs: Mapping[str, Adapter], asked: object) -> frozenset[str] | None:
    """The parts of the model that are kept; None for all.

    Raises:
        UsageError: no adapter has a part of that name.
    """
    if asked is None:
        return None
    names: frozenset[str] = frozenset(asked)  # type: ignore[call-overload]
    known = {component for adapter in inputs.values() for component in adapter.components}
    unknown = names - known
    if unknown:
        raise UsageError(
            f"no component is called {', '.join(sorted(unknown))}",
            expected=" or ".join(sorted(known)),
            hint="Check --components.",
        )
    return names


def _unread(inputs: Mapping[str, Adapter]) -> LeftOut:
    left_out = LeftOut()
    for role, adapter in inputs.items():
        for key, why in adapter.unread.items():
            left_out.add(role, [key], why)
    return left_out


def _strengths(values: dict[str, object], paths: Mapping[str, str]) -> Strengths:
    """The strengths that the options ask for; the rules' texts in `values` become independent of the files' names."""
    everywhere = {role: float(values.get(f"{role}_strength", 1.0)) for role in paths}  # type: ignore[arg-type]
    texts: tuple[str, ...] = values["strengths"] or ()  # type: ignore[assignment]
    rules = read_rules(texts, paths)
    values["strengths"] = tuple(rule.text for rule in rules) or None
    return Strengths(everywhere, rules)


def _overrides(values: dict[str, object], options: Sequence[Parameter]) -> Overrides:
    """The rules for parts of the model; their texts in `values` become those of checked values."""
    overrides = read_overrides(values["overrides"], options)
    values["overrides"] = overrides.texts or None
    return overrides


def _changed(matches: list[Match], inputs: Mapping[str, Adapter]) -> dict[str, list[str]]:
    """Role -> the names of what the adapter changes, norms and biases too."""
    changed = {role: [name for name, _ in adapter.vectors] for role, adapter in inputs.items()}
    for match in matches:
        for role in match.members:
            changed[role].append(match.name)
    return changed


def _heard(match: Match, strengths: Strengths, left_out: LeftOut) -> tuple[Member, ...]:
    """The members without those whose strength is 0 (no style, rather than a projector that is not seen)."""
    members = []
    for role, module in match.members.items():
        strength = strengths.of(role, match.name)
        if strength == 0:
            rule = strengths.rule(role, match.name)
            why = f"{role} strength is 0" + (f" here ({rule.text})" if rule is not None else "")
            left_out.add(role, module.keys, why)
        else:
            members.append(Member(role, module, strength))
    return tuple(members)


def alone(adapter: Adapter, progress: Progress | None = None, /, **options: object) -> Fusion:
    """One adapter (or some components of it) at strength 1 as a fusion: what it takes to write it in another format.

    With a base model, kinds that depend on it are written out as what they add.
    """
    values, method = check_all(COMMON, options), find_method("linear")
    overrides = _overrides(values, COMMON)
    goal = goal_of(values, 1)
    base = BaseModel(str(values["base"])) if values["base"] else None
    adapter = expand(adapter, base, str(values["dora"]), keep=base is None)
    inputs = {"subject": adapter}
    kept = component_filter(inputs, values["components"])
    modules: dict[str, FusedModule] = {}
    left_out = _unread(inputs)
    for name, module in adapter.items():
        if kept is None or module.component in kept:
            there = overrides.at(name)
            far = goal_of({**values, **there}, 1, name) if there else goal
            modules[name] = FusedModule(name, (Member("subject", module, 1.0),), {}, method, {}, goal=far)
        else:
            left_out.add("subject", module.keys, "not among --components")
    require_reached(overrides, modules)
    notes = (*adapter.notes, *_unused(base))
    return Fusion(
        inputs, None, values, Strengths({"subject": 1.0}), modules, left_out, notes, progress, base=base,
        overrides=overrides,
    )  # fmt: skip


def convert(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    format: str = "same",
    dtype: str = "same",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: object,
) -> dict[str, Any]:
    """Write an adapter in another format; its product B A is the same in every module.

    Args:
        adapter: from `load`.
        path: a ``.safetensors`` file, or a folder for the peft format.
        format, dtype: as in `fuse`.
        overwrite: replace an existing output.
        progress: called with (modules done, modules in all) where something is computed.
        **options: components, base, dora, rank, energy, error, overrides, as in `fuse`.

    Returns:
        The report, as of `Fusion.save`.

    Raises:
        OutputError: it cannot be written; nothing is changed then.
    """
    fusion = alone(adapter, progress, format=_known(format), **options)
    return save_fusion(made(fusion, path), path, format, dtype, overwrite)


def _known(format: str) -> str | None:
    """The format, if it is one that `fuse` offers; others are told about when the output is named."""
    return format if format in FORMAT.choices else None
