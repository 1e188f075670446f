"""Projections to be run: which factors, in batches of equal shapes, and what is learned from each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..adapters import Matrix
from ..errors import InputError
from ..storage import cast_into

BATCH_ELEMENTS = 1 << 18  # numbers per factor in a batch where nothing else is asked for
# Numbers per factor in all batches that are in work at once: few enough to bound the memory, and as many as that
# allows, since Python's part is the same for a batch of any size and threads wait for each other there.
ELEMENTS_IN_WORK = 1 << 21

Values = tuple[tuple[str, object], ...]  # parameters by name


@dataclass(frozen=True, slots=True)
class Job:
    """One projection: a subject and a style of one weight, and on which side to project.

    ``values`` are the parameters that are others here than in the rest of the fusion.
    """

    key: str
    name: str  # the canonical module, for messages and reports
    subject: tuple[Matrix, Matrix]  # up, down
    style: tuple[Matrix, Matrix]
    factors: tuple[float, float]  # strength * scale of subject and style
    side: str = "input"
    role: str = "subject"  # whose factor is rewritten
    above: tuple[str, ...] = ("style",)  # whose directions are protected
    values: Values = ()

    @property
    def setting(self) -> tuple[str, ...]:
        """Side and parameters, as jobs that are computed together have in common (the count 1 is not the share 1.0)."""
        return (self.side, *(f"{name}={value!r}" for name, value in self.values))

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(matrix.dtype for matrix in (*self.subject, *self.style))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(matrix.shape for matrix in (*self.subject, *self.style))


class Batch(NamedTuple):
    """Jobs of equal shapes and types that are computed together, and their numbers while they are in memory."""

    jobs: Sequence[Job]
    held: Mapping[int, NDArray[np.generic]]  # by the matrices' identity

    def read(self, matrix: Matrix) -> NDArray[np.generic]:
        """The numbers of a matrix as stored, from memory if a job of the batch has it."""
        found = self.held.get(id(matrix))
        return matrix.read() if found is None else found


Emit = Callable[[Batch, NDArray[Any]], None]


class Overlap(NamedTuple):
    """What a projection learned about one module; energies are squared Frobenius norms at the strengths asked for.

    ``inside`` is the subject's energy in the style's protected directions before the projection, ``protected``
    their number, ``width`` the dimension of the space they lie in, ``values`` the job's own parameters.
    """

    name: str
    subject: float
    style: float
    inside: float
    protected: int
    width: int
    role: str = "subject"
    values: Values = ()

    @property
    def rho(self) -> float:
        """Share of the subject's energy inside the protected directions (0 for a subject without energy)."""
        return min(max(self.inside / self.subject, 0.0), 1.0) if self.subject > 0 else 0.0

    @property
    def chance(self) -> float:
        """The share that unrelated directions would have: k / n."""
        return self.protected / self.width if self.width else 0.0


def batches_of(jobs: Iterable[Job], elements: int = BATCH_ELEMENTS) -> Iterator[list[Job]]:
    """Jobs of equal shapes, types and settings together, so many that the largest factor has so many elements."""
    groups: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.shapes, job.dtypes, job.setting), []).append(job)
    for group in groups.values():
        largest = max(rows * columns for rows, columns in group[0].shapes)
        size = max(1, elements // max(largest, 1))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def read_stack(matrices: Sequence[Matrix], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Matrices of one shape as a stack (k, rows, columns) of the given dtype."""
    stack = np.empty((len(matrices), *matrices[0].shape), dtype)
    for index, matrix in enumerate(matrices):
        cast_into(matrix.read(), stack[index])
    return stack


def require_finite(job: Job) -> None:
    """Name the factor that holds NaN or infinity.

    Raises:
        InputError: with the module's key.
    """
    for matrix in (*job.subject, *job.style):
        check_finite(matrix, job.name)


def check_finite(matrix: Matrix, name: str, array: NDArray[Any] | None = None) -> None:
    """Raise if a stored matrix holds NaN or infinity; array: its numbers, if they have been read.

    Raises:
        InputError: with module and key.
    """
    array = matrix.read() if array is None else array
    good = np.isfinite(array.astype(np.float32) if array.dtype.itemsize == 1 else array)
    if not good.all():
        raise InputError(
            f"{int((~good).sum())} values are NaN or infinite (module {name})", file=file_of(matrix),
            key=matrix.keys[0],
            hint="The training run diverged: use an earlier checkpoint, or go on with --allow-nonfinite.",
        )  # fmt: skip


def file_of(matrix: Matrix) -> str | None:
    """The file that a matrix is stored in, if any."""
    tensor = getattr(matrix, "tensor", None) or getattr(matrix, "mid", None)
    return getattr(getattr(tensor, "source", None), "path", None)
