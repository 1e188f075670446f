"""What kohya's `merge_lora.py` computes without `--concat`: sums of factors, strengths squared."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, sqrt

from ..algebra import Array
from ..algebra.bases import Factors
from ..errors import InputError
from . import Part, Product, merge
from .peft_linear import require_equal_ranks, stored


@merge(
    "kohya-add",
    title="kohya's merge (compatibility)",
    reference="sd-scripts 2026-02, networks/sdxl_merge_lora.py",
    formula="f_i = sqrt(alpha_i / alpha_0); D = alpha_0 / r (sum f_i |w_i| B_i) (sum f_i w_i A_i)",
    guarantee="the incumbent's numbers, not the weighted sum: strength counts as w|w|, with cross terms; equal ranks",
)
def kohya_add(parts: Sequence[Part], *, seed: int = 0) -> Product:
    """Factors are added, each multiplied by its ratio, and the first file's alpha is kept.

    >>> import numpy as np
    >>> found = kohya_add([Part(np.eye(2)[:, :1], np.eye(2)[:1], 0.5)])
    >>> float((found.up @ found.down)[0, 0])
    0.25
    """
    require_equal_ranks(parts, "kohya-add")
    pairs = [kohya_scaled(part, parts[0]) for part in parts]
    return Product(parts[0].scale * _total([up for up, _ in pairs]), _total([down for _, down in pairs]))


def kohya_scaled(part: Part, first: Part) -> Factors:
    """Both stored factors times ``sqrt(alpha_i / alpha_0)`` and the ratio, whose sign goes to the down factor."""
    up, down = stored(part)
    alpha, alpha_0 = (one.scale * one.up.shape[1] for one in (part, first))
    if alpha * alpha_0 <= 0:
        raise InputError(
            "kohya's merge takes the square root of alphas", expected="alphas of one sign",
            got=f"{alpha_0:g}, {alpha:g}",
            hint="Use linear: it gives the exact sum at any scale.",
        )  # fmt: skip
    f = sqrt(alpha / alpha_0)
    return f * abs(part.weight) * up, copysign(f * part.weight, part.weight) * down


def _total(factors: Sequence[Array]) -> Array:
    total = factors[0]
    for factor in factors[1:]:
        total = total + factor
    return total
