"""What travels between the verbs: two adapters paired module by module, not yet computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adapter import Adapter, Module
from .adapters import Factor, LowRank, Update
from .leftovers import LeftOut
from .methods import Method, all_methods
from .projection import Job, Overlap, stream
from .storage import Tensor

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FusedModule:
    """One module of a fusion: what each side brings and, where both do, the projection between them."""

    name: str
    subject: Module | None
    style: Module | None
    strengths: tuple[float, float]
    job: Job | None
    method: Method
    values: Mapping[str, object]

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(module for module in (self.subject, self.style) if module is not None)

    @property
    def update(self) -> Update:
        return self.modules[0].update

    def delta(self) -> NDArray[np.float64]:
        """The dense fused update, float64, in the weight's shape; for the curious and for tests.

        ``dW = w_s dW_s + w_c dW_c (I - g V V^T)``, exact to float64 before any rounding of an output file.
        """
        w_c, w_s = self.strengths
        deltas = [w * module.delta() for w, module in ((w_c, self.subject), (w_s, self.style)) if module is not None]
        if self.job is None:
            return np.asarray(sum(deltas))
        projected: list[NDArray[Any]] = []
        stream([_in_float64(self.job)], self.method, self.values, emit=lambda _, array: projected.append(array))
        own = self.subject.update  # type: ignore[union-attr]
        assert isinstance(own, LowRank)
        up, down = (factor.read().astype(np.float64) for factor in (own.up, own.down))
        product = up @ projected[0] if self.job.side == "input" else projected[0] @ down
        return np.asarray(deltas[1] + (w_c * own.scale * product).reshape(deltas[1].shape))


def _in_float64(job: Job) -> Job:
    """The same job on float64 copies of its factors, so that nothing is rounded."""

    def widen(pair: Sequence[Any]) -> tuple[Any, Any]:
        one, two = (Factor(Tensor.of(m.keys[0], m.read().astype(np.float64))) for m in pair)
        return one, two

    return Job(job.key, job.name, widen(job.subject), widen(job.style), job.factors, job.side)


@dataclass(frozen=True)
class Fused(Mapping[str, FusedModule]):
    """Two adapters paired module by module, with every parameter; numbers are computed when they are needed."""

    subject: Adapter
    style: Adapter | None  # None: one adapter on its way into another format
    parameters: Mapping[str, Any]  # every parameter of `fuse`
    modules: Mapping[str, FusedModule]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    progress: Progress | None = None

    def __getitem__(self, name: str) -> FusedModule:
        return self.modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def inputs(self) -> dict[str, Adapter]:
        """Role -> adapter."""
        return {"subject": self.subject} | ({"style": self.style} if self.style is not None else {})

    @property
    def jobs(self) -> list[Job]:
        return list({module.job.key: module.job for module in self.modules.values() if module.job}.values())

    @cached_property
    def overlaps(self) -> dict[str, Overlap]:
        """Job key -> overlap; computed at no extra pass when the fusion is saved, else by a pass of its own."""
        return stream(
            self.jobs, self.method, self.method_values, device=self.parameters["device"],
            allow_nonfinite=self.parameters["allow_nonfinite"], progress=self.progress,
        )  # fmt: skip

    @property
    def method(self) -> Method:
        return all_methods()["np"]

    @property
    def method_values(self) -> dict[str, object]:
        return {parameter.name: self.parameters[parameter.name] for parameter in self.method.parameters}
