"""The exact weighted sum: factors side by side, nothing projected, nothing truncated."""

from __future__ import annotations

from ..algebra import Grams
from . import Result, method
from .np import np_projection


@method(
    "linear",
    title="Exact weighted sum",
    reference="task arithmetic, arXiv 2212.04089; `cat` of PEFT",
    parameters=(),
    formula="dW = sum_i w_i dW_i",
    guarantee="Exact at rank sum r_i; factors are copied byte for byte where number types and scales allow.",
    rewrites=False,
    aliases=("cat",),
)
def linear(grams: Grams) -> Result:
    """``sum_i w_i dW_i``; the coefficients are zero, what is measured is the overlap that addition leaves alone."""
    return np_projection.function(grams, mu=0.0)
