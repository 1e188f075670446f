"""Arrays and nothing else: no files, no names. Everything from factors; nothing of shape out x in is kept.

The functions run on NumPy, torch and any other library of the array API standard.
"""

from __future__ import annotations

from .factors import (
    MAX_DOWN_CONDITION,
    MAX_SPECTRUM_CONDITION,
    MAX_UP_CONDITION,
    Array,
    Grams,
    condition,
    double,
    frobenius,
    grams,
    inner,
    inner_products,
    namespace,
    numerical_rank,
    orthonormal_form,
    product_norm,
    thin_svd,
    transpose,
    well_conditioned,
)  # fmt: skip

__all__ = [
    "MAX_DOWN_CONDITION", "MAX_SPECTRUM_CONDITION", "MAX_UP_CONDITION", "Array", "Grams", "condition", "double",
    "frobenius", "grams", "inner", "inner_products", "namespace", "numerical_rank", "orthonormal_form", "product_norm",
    "thin_svd", "transpose", "well_conditioned",
]  # fmt: skip
