"""Prove an output: recompute every module from the sources by another route and compare (see `recompute`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import LowRank
from ..errors import InputError, UsageError
from ..fusing import Fusion, alone, fuse
from ..fusion.fused import FusedModule
from ..fusion.options import numeric_options
from ..fusion.pairing import match_key
from ..fusion.roles import roles
from ..methods import find_method
from ..parameters import WRITING, Parameter
from ..reading.adapter import Adapter, Vector
from ..reading.loading import load
from ..storage import cast, numpy_dtype
from ..threads import run_threads
from .expectation import ARITHMETIC
from .recipe import CONVERTING, Recipe, find_base, find_input, read_recipe, require_base, require_source
from .recompute import Check, check_module

WORKERS = 4  # each holds one module in float64: about 100 MB for the largest of FLUX.1 at rank 128


@dataclass(frozen=True)
class Verification:
    """Whether an output is what its recipe says.

    Attributes:
        output: the file.
        checks: one for each module and for each bias or norm delta.
        missing: modules that the recipe gives but the output lacks. extra: those that only the output has.
        left_out: modules and deltas that the output's format has no place for; they are no fault.
    """

    output: str
    checks: tuple[Check, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not (self.missing or self.extra) and all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        """The module nearest to its bound, or furthest over it."""
        return max(self.checks, key=lambda check: (check.severity, check.bound), default=Check("", 0.0, 0.0))

    @property
    def error(self) -> float:
        """The relative error of the worst module."""
        return self.worst.error

    @property
    def bound(self) -> float:
        """The bound of the worst module."""
        return self.worst.bound

    @property
    def sentence(self) -> str:
        """The result in words."""
        name, over = Path(self.output).name, [check for check in self.checks if not check.passed]
        if self.passed:
            return (
                f"{name} is what its recipe says: {_count(len(self.checks), 'module')} recomputed, "
                f"worst relative error {self.error:.1e}, bound {self.bound:.1e}."
            )
        faults = []
        if over:
            worst = self.worst
            error = (
                "values that cannot be compared"
                if np.isinf(worst.error)
                else f"{worst.error:.1e}, bound {worst.bound:.1e}"
            )
            faults.append(
                f"{len(over)} of {_count(len(self.checks), 'module')} over the bound (worst {worst.name}: {error})"
            )
        for word, names in (("missing", self.missing), ("not in the recipe", self.extra)):
            if names:
                faults.append(f"{_count(len(names), 'module')} {word} ({_some(names)})")
        return f"{name} is not what its recipe says: {'; '.join(faults)}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: tuple[str, ...], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def verify(
    output: str | os.PathLike[str],
    *paths: str | os.PathLike[str] | None,
    method: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> Verification:
    """Recompute a fused or converted adapter from its sources by another route, and compare.

    Args:
        output: the file or folder to check.
        paths: the inputs in their order. Left out, those that the recipe in the output's header names, looked for
            beside the output and in the current folder; their SHA-256 must be the recipe's either way.
        method: how they were fused, where there is no recipe (np is the default) or another one than the recipe's.
        progress: called with (modules done, modules in all).
        **parameters: the method's options, strengths and components, where they are not to be the recipe's (or,
            without a recipe, the defaults).

    Returns:
        The error and the bound of each module, what is missing and what is too much.

    Raises:
        InputError: no recipe and no inputs; an input is not found or is not the one that was fused.

    >>> verify("cat-ink.safetensors").passed  # doctest: +SKIP
    True
    """
    made = load(output)
    recipe = read_recipe(made.metadata, made.path)
    given = {name: value for name, value in parameters.items() if value is not None}
    fusion = remake(made, recipe, [path for path in paths if path is not None], method, given)
    found = {match_key(name): module for name, module in made.modules.items()}
    pairs, missing, left_out = [], [], []
    for name, module in fusion.modules.items():
        other = found.pop(match_key(name), None)
        if other is not None:
            pairs.append((module, other))
        elif _may_lack(module, made):
            left_out.append(name)
        else:
            missing.append(name)
    checks = []
    threads = run_threads(lambda pair: check_module(*pair), pairs, min(WORKERS, os.cpu_count() or 1))
    for _, check in threads:
        checks.append(check)
        if progress:
            progress(len(checks), len(pairs))
    vectors = _check_vectors(fusion, made)
    order = {name: index for index, name in enumerate(fusion.modules)}
    return Verification(
        os.fspath(output), (*sorted(checks, key=lambda check: order[check.name]), *vectors.checks),
        (*missing, *vectors.missing), (*(module.name for module in found.values()), *vectors.extra),
        (*left_out, *vectors.left_out),
    )  # fmt: skip


def remake(
    made: Adapter,
    recipe: Recipe | None,
    paths: Sequence[str | os.PathLike[str]],
    method: str | None,
    parameters: Mapping[str, Any],
) -> Fusion:
    """The fusion that an output should be, from its recipe or from what is said here.

    Args:
        made: the output. recipe: the one in its header, if any.
        paths: its inputs in their order; left out, they are looked for as the recipe names them.
        method, parameters: what replaces the recipe's.

    Raises:
        InputError: no recipe and no inputs; an input is not found or is not the one that was fused.
    """
    if recipe is None and not paths:
        raise InputError(
            "the header holds no recipe", file=made.path, key="nplora.recipe",
            hint="Name the inputs, and the options that they were fused with: nplora verify OUTPUT SUBJECT STYLE.",
        )  # fmt: skip
    inputs = _inputs(made, recipe, paths)
    given = dict(parameters)
    if recipe is not None and recipe.base is not None and "base" not in given:
        given["base"] = find_base(recipe.base, made)
    fusion = _rerun(made, recipe, inputs, method, given)
    if recipe is not None and recipe.base is not None and "base" not in parameters:
        require_base(recipe.base, fusion.base, made)
    return fusion


def _rerun(
    made: Adapter,
    recipe: Recipe | None,
    inputs: Sequence[Adapter],
    method: str | None,
    parameters: Mapping[str, Any],
) -> Fusion:
    if method is None and (recipe is None or recipe.method == "convert") and len(inputs) == 1:
        _require_numeric(CONVERTING, parameters)
        return alone(inputs[0], **{**(recipe.parameters if recipe is not None else {}), **parameters})
    same = recipe is not None and method in (None, recipe.method)
    name = method or (recipe.method if recipe is not None else "np")
    _require_numeric(numeric_options(find_method(name), len(inputs)), parameters)
    return fuse(*inputs, method=name, **{**(recipe.parameters if recipe is not None and same else {}), **parameters})


def _inputs(made: Adapter, recipe: Recipe | None, paths: Sequence[str | os.PathLike[str]]) -> list[Adapter]:
    """The adapters that were fused: those that are named, the rest as the recipe names them."""
    sources = dict(recipe.inputs) if recipe is not None else {}
    inputs = []
    for role, path in zip_longest(roles(max(len(sources), len(paths))), paths):
        source = sources.get(role)
        if path is None:
            assert source is not None
            inputs.append(find_input(role, source, made))
        else:
            inputs.append(load(path) if source is None else require_source(role, source, load(path)))
    return inputs


def _require_numeric(options: Sequence[Parameter], parameters: Mapping[str, Any]) -> None:
    unknown = set(parameters) & {parameter.name for parameter in WRITING}
    if unknown:
        raise UsageError(
            f"{min(unknown)} changes no number, so there is nothing to verify with it",
            expected=", ".join(parameter.name for parameter in options),
        )


def _may_lack(module: FusedModule, made: Adapter) -> bool:
    """Whether the output's format may have had no place for a module (full matrices, kinds that are carried)."""
    low_rank = all(isinstance(member.update, LowRank) for member in module.modules)
    return not low_rank and _poor(made, module.modules[0].origin.format)


def _poor(made: Adapter, origin: str) -> bool:
    return made.format.name in ("diffusers", "peft") or made.format.name != origin


def _check_vectors(fusion: Fusion, made: Adapter) -> Verification:
    """Biases and norms: added by strength, rounded once."""
    expected: dict[tuple[tuple[str, str], str], list[tuple[float, Vector]]] = {}
    for role, adapter in fusion.inputs.items():
        asked = fusion.parameters["components"]
        for vector in adapter.vectors.values():
            strength = fusion.strengths.of(role, vector.name)
            if strength and (asked is None or vector.name.partition(".")[0] in asked):
                key = match_key(vector.name), vector.target[1]
                expected.setdefault(key, []).append((strength * vector.scale, vector))
    found = {(match_key(vector.name), vector.target[1]): vector for vector in made.vectors.values()}
    checks = []
    missing: list[str] = []
    left_out: list[str] = []
    for key, parts in expected.items():
        other = found.pop(key, None)
        if other is not None:
            checks.append(_check_vector(parts, other))
        else:
            (left_out if _poor(made, parts[0][1].origin.format) else missing).append(_title(parts[0][1]))
    return Verification("", tuple(checks), tuple(missing), tuple(map(_title, found.values())), tuple(left_out))


def _title(vector: Vector) -> str:
    return f"{vector.name} ({vector.target[1]})"


def _check_vector(parts: list[tuple[float, Vector]], found: Vector) -> Check:
    terms = [weight * vector.tensor.read().astype(np.float64) for weight, vector in parts]
    if any(term.shape != found.tensor.shape for term in terms) or not found.scale:
        return Check(_title(found), float("inf"), 0.0)
    stored = sum(terms[1:], terms[0]) / found.scale
    size = sum(float(np.linalg.norm(term)) for term in terms) / abs(found.scale)
    error = float(np.linalg.norm(found.tensor.read().astype(np.float64) - stored))
    lost = float(np.linalg.norm(cast(stored, numpy_dtype(found.tensor.dtype)).astype(np.float64) - stored))
    if not np.isfinite(error):
        return Check(_title(found), float("inf"), 0.0)
    return Check(
        _title(found), error / size if size else error, (2 * lost / size if size else 0.0) + ARITHMETIC["scale"]
    )
