"""The one factor that a fusion changes, kept so that mu can be turned without computing anything again.

``A_c(g) = A_c - g D`` with ``g = mu/(1+mu)`` and D the part of the subject inside the protected directions (for the
output side likewise with B_c): one fused multiply-add for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import Method
from ..parameters import attenuation
from ..projection import Job, Overlap, batches_of, energies, project, require_finite
from .layers import Held, Place


@dataclass(frozen=True, slots=True, eq=False)
class Moving:
    """The subject's factor that a method changes, as a matrix whose rows are directions of the protected side.

    ``base`` (r_c, n) is the factor itself (B_c^T for the output side), ``inside`` (r_c, n) what is subtracted in full
    at mu = inf; None for a method that is not linear in g, which has given ``fixed`` instead.
    """

    base: Any
    inside: Any | None
    fixed: Any | None
    side: str
    method: Method
    values: Mapping[str, object]

    def at(self, mu: float) -> Any:
        """The factor at a mu, in float32 or wider."""
        import torch

        if self.inside is None:
            return self.fixed
        return torch.sub(self.base, self.inside, alpha=attenuation(mu))

    def to(self, device: Any) -> Moving:
        """The same on another device."""
        moved = (None if t is None else t.to(device) for t in (self.base, self.inside, self.fixed))
        return Moving(*moved, self.side, self.method, self.values)


def jobs_of(places: Iterable[Place], side: str) -> dict[str, Job]:
    """Path in its component -> projection, for each place that subject and style both change."""
    jobs = {}
    for place in places:
        subject, style = place.shares
        if subject is not None and style is not None:
            factors = (subject.factor, style.factor)
            jobs[place.name] = Job(
                place.name, place.name, (subject.up, subject.down), (style.up, style.down), factors, side
            )
    return jobs


def compute(
    jobs: Iterable[Job], method: Method, values: Mapping[str, object], allow_nonfinite: bool
) -> tuple[dict[str, Moving], dict[str, Overlap]]:
    """Run projections where the factors are, batches of equal shapes together.

    The arithmetic is float64 (float32 on MPS, which has no wider type), so neither TF32 nor autocast reaches it; what
    is subtracted is kept in float32.

    Returns:
        Job key -> what moves, and job key -> overlap.

    Raises:
        InputError: a factor holds NaN or infinity (unless allowed).
    """
    moving: dict[str, Moving] = {}
    overlaps: dict[str, Overlap] = {}
    for batch in batches_of(list(jobs)):
        found, seen = _run(batch, method, values, allow_nonfinite)
        moving.update(zip((job.key for job in batch), found, strict=True))
        overlaps.update(zip((job.key for job in batch), seen, strict=True))
    return moving, overlaps


def _run(
    batch: Sequence[Job], method: Method, values: Mapping[str, object], allow_nonfinite: bool
) -> tuple[list[Moving], list[Overlap]]:
    import torch

    side = batch[0].side
    stacks = [_stack(matrices) for matrices in zip(*((*job.subject, *job.style) for job in batch), strict=True)]
    if side == "output":  # the same on transposed updates: dW^T = A^T B^T
        stacks = [stacks[i].mT.contiguous() for i in (1, 0, 3, 2)]
    linear = method.linear and "mu" in values
    projected, state = project(*stacks, method, {**values, "mu": float("inf")} if linear else values)
    seen = energies(state, batch)
    if not allow_nonfinite and not all(_is_finite(overlap) for overlap in seen):
        for job in batch:
            require_finite(job)
    moved = (stacks[1] - projected if linear else projected).to(torch.float32)
    found = []
    for index, job in enumerate(batch):
        held = job.subject[1] if side == "input" else job.subject[0]
        assert isinstance(held, Held)
        base = held.tensor.clone() if side == "input" else held.tensor.T.clone()
        kept = moved[index].clone()
        found.append(Moving(base, kept if linear else None, None if linear else kept, side, method, values))
    return found, seen


def _is_finite(overlap: Overlap) -> bool:
    return abs(overlap.subject) + abs(overlap.style) < float("inf")


def _stack(matrices: Sequence[Any]) -> Any:
    import torch

    wide = torch.float32 if matrices[0].tensor.device.type == "mps" else torch.float64
    return torch.stack([matrix.tensor.to(wide) for matrix in matrices])
