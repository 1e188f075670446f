"""Matrices that are read by blocks of rows, so that nothing of the shape of a weight is kept.

Entry-wise methods (TIES, DARE, ...) are defined on the entries of ``dW = B A``, of which there are out x n. Here such a
matrix is a function that gives some of its rows whenever they are asked for. A method reads it several times: for a
threshold, and twice or more to bring the result back to a low rank (`sketch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import TYPE_CHECKING

from .factors import Array, namespace

if TYPE_CHECKING:  # the list of methods is shown by --help, which loads no NumPy
    import numpy as np
    from numpy.typing import NDArray

BLOCK_ENTRIES = 1 << 16  # entries of a block: half a megabyte in float64, so that its temporaries stay in the cache
FLOAT64_ENTRIES = 1 << 16  # of an update up to which entry-wise methods work in float64
CAUGHT_ENTRIES = 1 << 18  # candidates for an order statistic that are kept at once
SAMPLED_FROM = 1 << 14  # entries from which on a guess is worth its sample
LEVELS = 1 << 16  # random numbers are 16-bit integers: a probability is one of 65,536 levels


@dataclass(frozen=True)
class Blocks:
    """A matrix (rows, columns) that is computed a block of rows at a time.

    ``read(start, stop)`` gives the rows start to stop; ``like`` is any array of the same library, dtype and device;
    ``factors`` are up and down where the matrix is their product, from which single entries are cheap.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], Array]
    like: Array
    factors: tuple[Array, Array] | None = None

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self.shape[0] * self.shape[1]

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        """Pairs of a first row and the block that begins there; always the same blocks, to the bit."""
        rows, columns = self.shape
        step = max(1, BLOCK_ENTRIES // max(columns, 1))
        for start in range(0, rows, step):
            yield start, self.read(start, min(start + step, rows))

    def whole(self) -> Array:
        """All rows at once; for small matrices."""
        return self.read(0, self.shape[0])


def of_product(up: Array, down: Array) -> Blocks:
    """``up @ down`` by blocks of rows.

    >>> import numpy as np
    >>> [(start, block.shape) for start, block in of_product(np.ones((3, 1)), np.ones((1, 40000)))]
    [(0, (1, 40000)), (1, (1, 40000)), (2, (1, 40000))]
    """
    return Blocks(
        (up.shape[0], down.shape[1]), lambda start, stop: up[start:stop, :] @ down, like=up, factors=(up, down)
    )


def of_large_product(up: Array, down: Array) -> Blocks:
    """The same, but formed in float32 if it has many entries: half the time, for a rounding of 2^-24."""
    exact, xp = of_product(up, down), namespace(up)
    if exact.size <= FLOAT64_ENTRIES:
        return exact
    quick = of_product(xp.astype(up, xp.float32), xp.astype(down, xp.float32))
    return replace(quick, factors=(up, down))


def of_matrix(matrix: Array) -> Blocks:
    """A small matrix that is there already."""
    return Blocks((matrix.shape[0], matrix.shape[1]), lambda start, stop: matrix[start:stop, :], like=matrix)


def combined(sources: Sequence[Blocks], function: Callable[[list[Array]], Array]) -> Blocks:
    """An entry-wise function of matrices of one shape; nothing is computed before it is read."""
    return Blocks(
        sources[0].shape,
        lambda start, stop: function([source.read(start, stop) for source in sources]),
        like=sources[0].like,
    )


# ------------------------------------------------------------------------------------------ order statistics


def kth_largest(matrix: Blocks, k: int) -> float:
    """The k-th largest absolute value of all entries, exactly; 0 if there are not more than k, infinity for k = 0.

    Sampled entries tell between which two numbers it should lie; one pass over the matrix counts what is above and
    keeps the few entries in between (Floyd and Rivest's selection, streamed). A wrong guess costs another pass.

    >>> import numpy as np
    >>> kth_largest(of_matrix(np.array([[3.0, -7.0, 0.0, 5.0]])), 2)
    5.0
    """
    if k >= matrix.size:
        return 0.0
    if k <= 0:
        return inf
    low, high = _guess(matrix, k)
    while True:
        above, caught = _between(matrix, low, high)
        if caught is None:  # nearly all entries are alike, or nothing was known: halve
            pivot = _median_of_some(matrix, low, high)
            more, equal = _above_and_at(matrix, pivot)
            if more < k <= more + equal:
                return pivot
            low, high = (_next(pivot, matrix.like), high) if k <= more else (low, pivot)
        elif k <= above:
            low, high = high, inf
        elif k > above + caught.shape[0]:
            low, high = 0.0, low
        else:
            return float(caught[caught.shape[0] - (k - above)])


def _guess(matrix: Blocks, k: int) -> tuple[float, float]:
    """Low and high (exclusive) of an interval that holds the k-th largest with a probability of about 99.95 %."""
    if matrix.size < SAMPLED_FROM or (matrix.factors is None and matrix.size > CAUGHT_ENTRIES):
        return 0.0, inf
    sample = _sorted(abs(_entries(matrix, min(max(matrix.size // 64, 1 << 12), 1 << 16))))
    count = sample.shape[0]
    middle = count * (1 - k / matrix.size)
    margin = 3.5 * sqrt(middle * (1 - middle / count)) + 4
    low, high = int(middle - margin), ceil(middle + margin)
    return (
        float(sample[low]) if low > 0 else 0.0,
        _next(float(sample[high]), matrix.like) if high < count else inf,
    )


def _entries(matrix: Blocks, count: int) -> Array:
    """Some entries (always the same ones): at random places of a product, every so many of a small matrix."""
    import numpy as np

    if matrix.factors is None:
        whole = matrix.whole()
        return namespace(whole).reshape(whole, (-1,))[:: matrix.size // count]
    up, down = matrix.factors
    xp, places = namespace(up), np.random.default_rng(0)
    rows, columns = (xp.asarray(places.integers(0, size, count), device=up.device) for size in matrix.shape)
    return xp.sum(xp.take(up, rows, axis=0) * xp.matrix_transpose(xp.take(down, columns, axis=1)), axis=-1)


def _between(matrix: Blocks, low: float, high: float) -> tuple[int, Array | None]:
    """How many entries are at least `high`, and those in [low, high), sorted; None if they are too many to keep."""
    xp, above, caught, kept = namespace(matrix.like), 0, [], 0
    for _, block in matrix:
        size = abs(block)
        below = size < high
        found = size[below & (size >= low)]
        above += size.shape[0] * size.shape[1] - int(xp.count_nonzero(below))
        kept += found.shape[0]
        if kept > CAUGHT_ENTRIES:
            return 0, None
        caught.append(found)
    return above, _sorted(xp.concat(caught))


def _median_of_some(matrix: Blocks, low: float, high: float) -> float:
    """The middle one of the first entries in [low, high)."""
    for _, block in matrix:
        size = abs(block)
        found = size[(size >= low) & (size < high)]
        if found.shape[0]:
            return float(_sorted(found)[found.shape[0] // 2])
    raise AssertionError("an interval that holds too many entries holds one")


def _above_and_at(matrix: Blocks, pivot: float) -> tuple[int, int]:
    xp, more, equal = namespace(matrix.like), 0, 0
    for _, block in matrix:
        size = abs(block)
        more += int(xp.count_nonzero(size > pivot))
        equal += int(xp.count_nonzero(size == pivot))
    return more, equal


def _next(value: float, like: Array) -> float:
    """The next larger number of the array's type."""
    import numpy as np

    kind = np.float32 if "float32" in str(like.dtype) else np.float64
    return float(np.nextafter(kind(value), kind(inf)))


def _sorted(values: Array) -> Array:
    return namespace(values).sort(values)


# ------------------------------------------------------------------------------------------ chance


def keep(source: Blocks, probability: float, key: tuple[int, ...]) -> Blocks:
    """Each entry kept with a probability and divided by it, else 0: the expectation is the source.

    Args:
        source: any matrix.
        probability: rounded to a multiple of 2^-16, by which kept entries are divided; of 0 nothing is kept.
        key: what the choice depends on, together with the entry's place; not on how the matrix is read.
    """
    xp, level = namespace(source.like), max(1, round(probability * LEVELS))
    if level == LEVELS:
        return source
    if probability == 0:
        return combined([source], lambda blocks: xp.zeros_like(blocks[0]))

    def read(start: int, stop: int) -> Array:
        chosen = xp.asarray(draw(key, start, stop, source.shape[1]) < level, device=source.like.device)
        return source.read(start, stop) * xp.astype(chosen, source.like.dtype) * (LEVELS / level)

    return Blocks(source.shape, read, like=source.like)


def keep_by_rank(source: Blocks, density: float, epsilon: float, key: tuple[int, ...]) -> Blocks:
    """As `keep`, with a probability from density - epsilon (a row's smallest entry) to density + epsilon (largest)."""
    xp, columns = namespace(source.like), source.shape[1]
    steps = xp.arange(columns, dtype=source.like.dtype, device=source.like.device) / max(columns - 1, 1)
    spread = steps * 2 - 1 if columns > 1 else steps
    levels = xp.clip(xp.round((density + epsilon * spread) * LEVELS), 1, LEVELS)

    def read(start: int, stop: int) -> Array:
        block = source.read(start, stop)
        order = xp.argsort(xp.argsort(abs(block), axis=1), axis=1)
        level = xp.reshape(xp.take(levels, xp.reshape(order, (-1,))), block.shape)
        drawn = xp.asarray(draw(key, start, stop, columns).astype("int32"), device=block.device)
        return block * xp.astype(xp.astype(drawn, block.dtype) < level, block.dtype) * (LEVELS / level)

    return Blocks(source.shape, read, like=source.like)


def draw(key: tuple[int, ...], start: int, stop: int, columns: int) -> NDArray[np.uint16]:
    """Uniform 16-bit integers for the rows start to stop; a row's numbers are the same in whichever block it is read.

    >>> bool((draw((7,), 0, 5, 3)[2:4] == draw((7,), 2, 4, 3)).all())
    True
    """
    import numpy as np

    words = -(-columns // 4)  # four numbers in a word
    stream = np.random.PCG64DXSM(np.random.SeedSequence(key))
    stream.advance(start * words)
    raw: NDArray[np.uint64] = stream.random_raw((stop - start) * words)
    return raw.astype("<u8", copy=False).view("<u2").reshape(stop - start, 4 * words)[:, :columns]
