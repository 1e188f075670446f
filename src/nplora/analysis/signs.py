"""Sign conflict of two updates: how often their entries disagree in sign, beyond what their angle explains.

Two vectors at the angle ``t`` disagree in ``t / pi`` of their entries when they have no preferred axes; orthogonal
ones in half of them. Raw conflict is therefore noise, and only the excess ``max(share - arccos(cos) / pi, 0)`` says
something: entries that pull against each other although the updates as a whole do not.

The share counts entries, it does not weight them: weighted by size it would not compare with that baseline. Entries
are those of whole rows of the update, evenly spaced; all rows where the module is small.
"""

from __future__ import annotations

from math import acos, pi

import numpy as np
from numpy.typing import NDArray

SAMPLE = 1 << 13  # entries looked at in each module, where it has more


def sampled_rows(out: int, n: int) -> NDArray[np.intp]:
    """Evenly spaced rows of an (out, n) update that hold about `SAMPLE` entries; all of them where it is small.

    >>> sampled_rows(8, 4).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    >>> len(sampled_rows(1280, 4096))
    2
    """
    count = min(out, max(1, -(-SAMPLE // n)))
    return (np.arange(count) * out) // count + out // (2 * count) if count < out else np.arange(out)


def count_signs(rows_c: NDArray[np.generic], rows_s: NDArray[np.generic]) -> tuple[int, int]:
    """How many entries disagree in sign, and how many are not zero on either side.

    >>> count_signs(np.array([[1.0, -1.0, 0.0]]), np.array([[2.0, 3.0, 4.0]]))
    (1, 2)
    """
    zeros = int(np.sum((rows_c == 0) | (rows_s == 0)))
    differ = np.signbit(rows_c) ^ np.signbit(rows_s)
    if zeros:
        differ &= (rows_c != 0) & (rows_s != 0)
    return int(np.sum(differ)), rows_c.size - zeros


def expected_share(cosine: float) -> float:
    """The share of entries that disagree at this angle by chance: ``arccos(cos) / pi``.

    >>> expected_share(0.0), expected_share(1.0)
    (0.5, 0.0)
    """
    return acos(min(max(cosine, -1.0), 1.0)) / pi
