"""What PEFT's `add_weighted_adapter(combination_type="linear")` computes: sums of factors, with cross terms."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, sqrt

from ..algebra.bases import Factors
from ..errors import InputError
from . import Part, Product, merge


@merge(
    "peft-linear",
    title="PEFT's linear (compatibility)",
    reference="peft 0.21.2, LoraModel.add_weighted_adapter",
    formula="z_i = w_i scale_i; B = sum sqrt|z_i| B_i, A = sum sgn(z_i) sqrt|z_i| A_i, D = B A",
    guarantee="the incumbent's numbers, not the weighted sum: cross terms sqrt(z_i z_j) B_i A_j; equal ranks only",
)
def peft_linear(parts: Sequence[Part], *, seed: int = 0) -> Product:
    """Factors are added, not updates: two equal adapters at strength 1/2 give twice the adapter.

    >>> import numpy as np
    >>> half = Part(np.eye(2)[:, :1], np.eye(2)[:1], 0.5)
    >>> found = peft_linear([half, half])
    >>> float((found.up @ found.down)[0, 0].round(6))
    2.0
    """
    require_equal_ranks(parts, "peft-linear")
    ups, downs = zip(*map(stored, parts), strict=True)
    roots = [split(part) for part in parts]
    up, down = (
        sum(pair[side] * factor for pair, factor in zip(roots, factors, strict=True))
        for side, factors in enumerate((ups, downs))
    )
    return Product(up, down)


def stored(part: Part) -> Factors:
    """The factors as the file has them."""
    return part.up / (part.scale or 1.0), part.down


def split(part: Part) -> tuple[float, float]:
    """What PEFT multiplies B and A by."""
    z = part.weight * part.scale
    return sqrt(abs(z)), copysign(sqrt(abs(z)), z)


def require_equal_ranks(parts: Sequence[Part], method: str) -> None:
    """As the incumbent does.

    Raises:
        InputError: the ranks differ.
    """
    ranks = sorted({part.up.shape[1] for part in parts})
    if len(ranks) > 1:
        raise InputError(
            f"{method} adds factors, which must have one rank", expected="equal ranks",
            got=" and ".join(map(str, ranks)), hint="Use linear or svd: they take any ranks and give the exact sum.",
        )  # fmt: skip
