"""The one factor that a projection changes, kept so that mu can be turned without computing anything again.

``A_c(g) = A_c - g D`` with ``g = mu/(1+mu)`` and D the part of the subject inside the protected directions (for the
output side likewise with B_c): one fused multiply-add for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..fusion.jobs import Job, Overlap, batches_of, require_finite
from ..fusion.projection import energies, project
from ..methods import Method
from ..parameters import attenuation
from .layers import Held


@dataclass(frozen=True, slots=True, eq=False)
class Moving:
    """The factor of one adapter that a projection changes, as a matrix with a row for each of its ranks.

    ``base`` (r_c, n) is the factor itself (A_c, or B_c^T for the output side) in its own number type. ``change``
    (r_c, n) float32 is what is subtracted: at mu = inf where the projection is linear in g, else at ``values``' mu.
    ``factor`` is the adapter's strength * scale; ``ranks`` says where it lies in the fused layer, ``above`` to whom it
    gives way and where those lie.
    """

    base: Any
    change: Any
    side: str
    factor: float
    method: Method
    values: Mapping[str, object]
    ranks: slice = field(default_factory=lambda: slice(0))
    above: Mapping[str, slice] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        """Whether turning mu takes no computing."""
        return is_linear(self.method, self.values)

    def now(self) -> Any:
        """The projected factor (r_c, n), float32 or wider."""
        import torch

        share = attenuation(float(str(self.values["mu"]))) if self.linear else 1.0
        base = self.base.to(self.change.dtype) if self.base.element_size() == 1 else self.base  # fp8 cannot be added
        return torch.sub(base, self.change, alpha=share)

    def on(self, device: Any) -> Moving:
        """The same with its numbers on a device."""
        if self.base.device == device:
            return self
        return replace(self, base=self.base.to(device), change=self.change.to(device))


def is_linear(method: Method, values: Mapping[str, object]) -> bool:
    """Whether a projection is linear in g: calibration, which scales by a ratio of norms, is not."""
    return method.linear and values.get("calibrate", 1.0) == 1.0


def compute(
    jobs: Iterable[Job], method: Method, values: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Moving], dict[str, Overlap]]:
    """Run projections where the factors are, batches of equal shapes together.

    The arithmetic is float64 (float32 on MPS, which has no wider type), so neither TF32 nor autocast reaches it; what
    is subtracted is kept in float32.

    Args:
        values: the options that hold in each layer, by the jobs' names.

    Returns:
        Job key -> what moves, and job key -> overlap.

    Raises:
        InputError: a factor holds NaN or infinity (unless allowed).
    """
    moving: dict[str, Moving] = {}
    overlaps: dict[str, Overlap] = {}
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(repr(_own(method, values[job.name])), []).append(job)
    for batch in (batch for group in alike.values() for batch in batches_of(group)):
        here = values[batch[0].name]
        found, seen = _run(batch, method, _own(method, here), bool(here.get("allow_nonfinite", True)))
        moving.update(zip((job.key for job in batch), found, strict=True))
        overlaps.update(zip((job.key for job in batch), seen, strict=True))
    return moving, overlaps


def _own(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options on which a projection depends."""
    names = [*(parameter.name for parameter in method.parameters), "calibrate"]
    return {name: values[name] for name in names if name in values}


def _run(
    batch: Sequence[Job], method: Method, values: Mapping[str, object], allow_nonfinite: bool
) -> tuple[list[Moving], list[Overlap]]:
    import torch

    side = batch[0].side
    stacks = (_stack(matrices) for matrices in zip(*((*job.subject, *job.style) for job in batch), strict=True))
    B_c, A_c, B_s, A_s = stacks
    if side == "output":  # the same on transposed updates: dW^T = A^T B^T
        B_c, A_c, B_s, A_s = (stack.mT.contiguous() for stack in (A_c, B_c, A_s, B_s))
    projected, state = project(
        B_c, A_c, B_s, A_s, method, {**values, "mu": float("inf")} if is_linear(method, values) else values
    )
    seen = energies(state, batch)
    if not allow_nonfinite and not all(abs(one.subject) + abs(one.style) < float("inf") for one in seen):
        for job in batch:
            require_finite(job)
    change = (A_c - projected).to(torch.float32)
    found = []
    for index, job in enumerate(batch):
        tensor = numbers_of(job.subject[1 if side == "input" else 0])
        base = (tensor if side == "input" else tensor.T).clone(memory_format=torch.contiguous_format)
        found.append(Moving(base, change[index].clone(), side, job.factors[0], method, values))
    return found, seen


def _stack(matrices: Sequence[Any]) -> Any:
    import torch

    return torch.stack([wide(matrix.numbers) for matrix in matrices])


def wide(tensor: Any) -> Any:
    """The tensor in the type that is computed in."""
    import torch

    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def numbers_of(matrix: Any) -> Any:
    """The tensor behind a factor of a layer."""
    assert isinstance(matrix, Held)
    return matrix.numbers
