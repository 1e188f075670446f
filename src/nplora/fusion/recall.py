"""What an earlier fusion learned of the same files: Gram matrices of factors, r x r, kept with the file.

Of a recipe's many pairs each adapter is in several, and of the five Gram matrices of a module four belong to one
adapter. Where they are known, the up factors need not be looked at. The numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Factor, Matrix
from ..algebra import Grams
from ..storage import TensorFile

Known = tuple[
    NDArray[np.float64], NDArray[np.float64], bool
]  # H = A A^T, G = B^T B, and of a style: full rank for certain

KEPT_BYTES = 1 << 24  # with one file; a rank of 32 in all of SDXL takes 12 MB, larger ones are kept in part


def recall(pairs: Sequence[tuple[tuple[Matrix, Matrix], tuple[Matrix, Matrix]]], dtype: np.dtype[Any]) -> Grams | None:
    """The Gram matrices of subjects and styles, all but K (empty); None unless all are known and may be inverted.

    Args:
        pairs: up and down of a subject, and of a style, for each module of a batch.
        dtype: what their products are computed in.
    """
    found = []
    for subject, style in pairs:
        one, other = _known(subject, "subject", dtype), _known(style, "style", dtype)
        if one is None or other is None or not other[2]:
            return None
        found.append((one, other))
    H_c, G_c, H_s, G_s = (np.stack([pair[role][side] for pair in found]) for role in (0, 1) for side in (0, 1))
    return Grams(np.empty(0), H_s, G_s, H_c, G_c, np.ones(len(found), bool))


def remember(
    pairs: Sequence[tuple[tuple[Matrix, Matrix], tuple[Matrix, Matrix]]], dtype: np.dtype[Any], seen: Grams
) -> None:
    """Keep what was computed, as far as there is room."""
    for index, (subject, style) in enumerate(pairs):
        _keep(subject, "subject", dtype, (seen.H_c[index], seen.G_c[index], False))
        _keep(style, "style", dtype, (seen.H_s[index], seen.G_s[index], bool(seen.full_rank[index])))


def _known(pair: tuple[Matrix, Matrix], role: str, dtype: np.dtype[Any]) -> Known | None:
    file, place = _place(pair)
    found: Known | None = None if file is None else file.learned.get((place, role, dtype.char))  # type: ignore[assignment]
    return found


def _keep(pair: tuple[Matrix, Matrix], role: str, dtype: np.dtype[Any], known: Known) -> None:
    file, place = _place(pair)
    if file is not None and (len(file.learned) + 1) * (known[0].nbytes + known[1].nbytes) <= KEPT_BYTES:
        file.learned[place, role, dtype.char] = known


def _place(pair: tuple[Matrix, Matrix]) -> tuple[TensorFile | None, Hashable]:
    """The file that both factors are stored in, and where; no file where they are computed or in memory."""
    up, down = pair
    if not (isinstance(up, Factor) and isinstance(down, Factor)):
        return None, ()
    file = up.tensor.source
    if not isinstance(file, TensorFile) or down.tensor.source is not file:
        return None, ()
    return file, tuple((factor.tensor.key, *factor[1:]) for factor in (up, down))
