"""What kohya's `merge_lora.py --concat` computes: the right stack at the wrong scale."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.bases import stacked
from . import Part, Product, merge
from .kohya_add import kohya_scaled


@merge(
    "kohya-concat",
    title="kohya's merge with --concat (compatibility)",
    reference="sd-scripts 2026-02, networks/sdxl_merge_lora.py",
    formula="D = alpha_0 / (sum r_i) [f_i |w_i| B_i] [f_i w_i A_i] = sum_i w_i |w_i| r_i / (sum r) dW_i",
    guarantee="the incumbent's numbers: no cross terms, but each adapter |w_i| r_i / sum r too weak",
)
def kohya_concat(parts: Sequence[Part], *, seed: int = 0) -> Product:
    """Factors side by side, each multiplied by its ratio; alpha stays the first file's while the rank grows.

    >>> import numpy as np
    >>> half = Part(np.eye(2)[:, :1], np.eye(2)[:1], 0.5)
    >>> found = kohya_concat([half, half])
    >>> float((found.up @ found.down)[0, 0])
    0.25
    """
    up, down = stacked([kohya_scaled(part, parts[0]) for part in parts])
    first = parts[0]
    return Product(first.scale * first.up.shape[1] / up.shape[1] * up, down)
