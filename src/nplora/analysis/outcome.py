"""What a fused adapter holds of its parts: sizes before and after, and how much of each input is in the result.

Every method is judged by its file: inner products of low-rank updates, from factors. How much of an input is held is
its coefficient in the least-squares fit ``F ~ sum_i a_i X_i`` of the fused update by the inputs'; plain addition at
strengths w gives back w, and what no input explains is the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from ..adapters import Full, LowRank, Update
from ..fusion.jobs import read_stack
from ..reading.adapter import Adapter
from ..threads import run_threads
from .blocks import coarse_blocks, model_order
from .spectra import FLOAT64, Array


def outcome(fused: Adapter, inputs: Mapping[str, Adapter], strengths: Mapping[str, float]) -> dict[str, Any]:
    """A fused adapter against its inputs, as plain data ready for JSON.

    Args:
        fused: the result, as it was written.
        inputs: role -> adapter ("subject", "style", ...).
        strengths: role -> strength of the fusion; for the plain sum that the result is compared with.

    Returns:
        ``roles``; ``blocks`` of the model with the norms of each input at its strength, of their plain ``sum`` and of
        the ``fused`` update, the share of each input that is kept (``<role>_kept``, None where it is zero) and the
        ``rest`` (norm of what no input explains, against the fused norm); ``modules`` likewise; and ``total``.
        Modules of a kind whose update is not known are left out.
    """
    roles = list(inputs)
    names = sorted(fused, key=model_order)
    work = run_threads(lambda name: _gram(name, fused, inputs), names, os.cpu_count() or 1)
    grams = {name: gram for name, gram in work if gram is not None}
    homes = coarse_blocks(grams)
    blocks: dict[str, Array] = {}
    for name in (name for name in names if name in grams):
        blocks[homes[name]] = blocks.get(homes[name], 0.0) + grams[name]
    weights = np.array([strengths.get(role, 1.0) for role in roles])
    return {
        "roles": roles,
        "blocks": [{"block": name, **_numbers(gram, roles, weights)} for name, gram in blocks.items()],
        "modules": [{"module": n, **_numbers(grams[n], roles, weights)} for n in names if n in grams],
        "total": _numbers(_sum(grams.values(), len(roles)), roles, weights),
    }


def _sum(grams: Iterable[Array], count: int) -> Array:
    total = np.zeros((count + 1, count + 1))
    for gram in grams:
        total += gram
    return total


def _gram(name: str, fused: Adapter, inputs: Mapping[str, Adapter]) -> Array | None:
    """Inner products of (fused, inputs...) in one module; a side that lacks the module is zero."""
    updates: list[Update | None] = [fused[name].update]
    updates += [adapter.modules[name].update if name in adapter.modules else None for adapter in inputs.values()]
    sides = [None if update is None else _factors(update) for update in updates]
    if any(update is not None and side is None for update, side in zip(updates, sides, strict=True)):
        return None
    gram = np.zeros((len(sides), len(sides)))
    with np.errstate(all="ignore"):
        for i, one in enumerate(sides):
            for j, two in enumerate(sides[: i + 1]):
                if one is not None and two is not None and one[0].shape[0] == two[0].shape[0]:
                    gram[i, j] = gram[j, i] = float(np.sum((one[0].T @ two[0]) * (one[1] @ two[1].T)))
    return gram if np.isfinite(gram).all() else None


def _factors(update: Update) -> tuple[Array, Array] | None:
    """Up (with the scale) and down in float64; a full matrix stands for itself times one."""
    if isinstance(update, LowRank):
        up, down = (read_stack([matrix], FLOAT64)[0] for matrix in (update.up, update.down))
        return update.scale * up, down
    if isinstance(update, Full):
        dense = read_stack([update.diff], FLOAT64)[0]
        return dense, np.eye(dense.shape[1])
    return None


def _numbers(gram: Array, roles: Sequence[str], weights: Array) -> dict[str, Any]:
    """Norms, what is kept, and the rest, from the inner products of one block."""
    fused, right, inner = float(gram[0, 0]), gram[1:, 0], gram[1:, 1:]
    energies = np.diag(inner)
    live = energies > 0
    kept = np.zeros(len(roles))
    if live.any():
        kept[live] = np.linalg.lstsq(inner[np.ix_(live, live)], right[live], rcond=1e-10)[0]
    rest = max(fused - 2 * float(kept @ right) + float(kept @ inner @ kept), 0.0)
    return {
        **{role: abs(float(w)) * sqrt(max(float(e), 0.0)) for role, w, e in zip(roles, weights, energies, strict=True)},
        "sum": sqrt(max(float(weights @ inner @ weights), 0.0)),
        "fused": sqrt(max(fused, 0.0)),
        **{
            f"{role}_kept": round(float(k), 4) + 0.0 if alive else None
            for role, k, alive in zip(roles, kept, live, strict=True)
        },
        "rest": round(sqrt(rest / fused), 4) + 0.0 if fused > 0 else None,
    }
