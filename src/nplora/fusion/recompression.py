"""Compress what is about to be written: every module alone, its factors kept in a spool until the file is laid out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank, Matrix, Opaque, wide
from ..algebra.compression import Compressed, Goal, TooFewError, recompress
from ..errors import InputError, UsageError
from ..storage import Spool, wider
from ..threads import run_threads
from .dense import protected
from .fused import Fused, FusedModule, Member, Squeezed
from .jobs import check_finite

Array = NDArray[np.float64]
Some = TypeVar("Some", bound=Fused)


@dataclass(frozen=True, slots=True)
class Result:
    """What compressing gave: factors to be written, or None where the module is better left as it is."""

    factors: tuple[Array, Array] | None
    squeezed: Squeezed


def compress_all(fusion: Some, spool: Spool, *, full: bool) -> Some:
    """The fusion with every module compressed as its goal says.

    Args:
        fusion: computed: what its modules write is there.
        spool: where the factors go.
        full: whether the output can hold full matrices; then one stays where it takes less room than factors.

    Raises:
        UsageError: fewer ranks are asked for than the style's, which is to be kept. InputError: a number is not finite.
    """
    modules, found = dict(fusion.modules), {}
    todo = [module for module in fusion.modules.values() if module.goal is not None and _is_known(module)]

    too_few: dict[int, FusedModule] = {}  # ranks of a style that are to be kept -> a module

    def compress(module: FusedModule) -> Result | TooFewError:
        try:
            return compress_module(module, full=full, allow_nonfinite=bool(fusion.parameters["allow_nonfinite"]))
        except TooFewError as error:
            return error

    for done, (module, result) in enumerate(run_threads(compress, todo, os.cpu_count() or 1), 1):
        if isinstance(result, TooFewError):
            too_few[result.kept] = module
            continue
        found[module.name] = result.squeezed
        if result.factors is not None:
            modules[module.name] = replace(module, made=(_kept(module, result.factors, spool),))
        if fusion.progress:
            fusion.progress(done, len(todo))
    if too_few:
        worst = too_few[max(too_few)]
        assert worst.goal is not None
        raise too_few_error(max(too_few), worst.name, worst.goal)
    ordered = {name: found[name] for name in modules if name in found}
    finished = replace(fusion, modules=modules, squeezed=ordered, progress=None)
    if "overlaps" in fusion.__dict__:
        finished.__dict__["overlaps"] = fusion.overlaps
    return finished


def _is_known(module: FusedModule) -> bool:
    return not any(isinstance(member.update, Opaque) for member in module.members)


def compress_module(module: FusedModule, *, full: bool = True, allow_nonfinite: bool = False) -> Result:
    """Compress one module.

    Raises:
        TooFewError: fewer ranks are asked for than the style's. InputError: a number is not finite.
    """
    assert module.goal is not None
    B, A = stack_of(module)
    before = min(B.shape) if A is None else A.shape[0]
    if not (np.isfinite(B).all() and (A is None or np.isfinite(A).all())):
        if allow_nonfinite:  # such a module has no singular values
            return Result(None, Squeezed(module.name, before, before, 0.0, 0.0))
        raise _not_finite(module)
    result = recompress(B, A, module.goal, style_basis(module))
    if _is_better_left(result, B, A, full):
        return Result(None, Squeezed(module.name, before, before, 0.0, result.norm))
    return Result(
        (result.up, np.ascontiguousarray(result.down)),
        Squeezed(module.name, before, result.rank, result.error, result.norm),
    )


def too_few_error(kept: int, name: str, goal: Goal) -> UsageError:
    """What is said where fewer ranks are asked for than the style's."""
    return UsageError(
        f"the style alone has rank {kept} in {name}, and its response is to be kept",
        expected=f"--rank {kept} or more", got=goal.rank, hint="Ask for more ranks, or leave --keep-style away.",
    )  # fmt: skip


def _not_finite(module: FusedModule) -> InputError:
    for member in module.members:
        for matrix in _matrices(member):
            check_finite(matrix, module.name)
    return InputError("values of the fused module are NaN or infinite", key=module.name)


def _matrices(member: Member) -> tuple[Matrix, ...]:
    update = member.update
    if isinstance(update, LowRank):
        return update.up, update.down
    return (update.diff,) if isinstance(update, Full) else ()


def stack_of(module: FusedModule) -> tuple[Array, Array | None]:
    """What a module writes as one product B A in float64; a dense matrix and None where a full matrix takes part."""
    if module.is_dense:
        return module.dense(), None
    updates = [(member, member.update) for member in module.written]
    ups = [m.strength * u.scale * wide(u.up) for m, u in updates if isinstance(u, LowRank)]
    downs = [wide(u.down) for _, u in updates if isinstance(u, LowRank)]
    return np.concatenate(ups, axis=1), np.concatenate(downs)


def style_basis(module: FusedModule) -> Array | None:
    """The style's input directions, where its response is to be kept."""
    style = next((member for member in module.members if member.role == "style"), None)
    if module.goal is None or not module.goal.keep_style or style is None:
        return None
    return protected([style], module.values.get("directions", "all"), "input")  # type: ignore[arg-type]


def _is_better_left(result: Compressed, B: Array, A: Array | None, full: bool) -> bool:
    """Whether a module stays as it is: nothing is gained, and stored factors keep their bytes."""
    if A is not None:
        return bool(result.rank >= A.shape[0])
    out, width = B.shape
    return bool(full and result.rank * (out + width) >= out * width)


def _kept(module: FusedModule, factors: tuple[Array, Array], spool: Spool) -> Member:
    dtype = wider(matrix.dtype for member in module.members for matrix in _matrices(member))
    number = np.float64 if dtype == "F64" else np.float32
    up, down = (spool.add(factor.astype(number), dtype, module.name) for factor in factors)
    first = module.members[0].module
    update = LowRank(up, down, 1.0, "computed", first.update.kernel)
    return Member("compressed", replace(first, name=module.name, update=update, stored={}), 1.0)
