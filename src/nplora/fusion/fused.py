"""What travels between the verbs: adapters matched module by module, not yet computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Factor, Full, LowRank, Update
from ..algebra.bases import stacked
from ..algebra.compression import Goal
from ..methods import Merge, Method, Part, Product, find_method, weighted
from ..reading.adapter import Adapter, Module
from ..reading.base import BaseModel
from ..storage import Tensor, cast
from .dense import fuse_dense
from .jobs import Job, Overlap
from .leftovers import LeftOut
from .overrides import Overrides
from .projection import stream
from .strengths import Strengths

Progress = Callable[[int, int], None]
OBSERVED = {"mu": 0.0, "directions": "all"}  # what the overlap of a pair is measured with where nothing is projected


@dataclass(frozen=True, slots=True)
class Member:
    """What one adapter brings to a module, and how strongly."""

    role: str
    module: Module
    strength: float

    @property
    def update(self) -> Update:
        return self.module.update

    def part(self) -> Part:
        """Its share as a merge sees it: float64, the adapter's own scale in the up factor, the strength as weight."""
        update = self.module.update
        assert isinstance(update, LowRank)
        up, down = (
            cast(np.ascontiguousarray(factor.read()), np.dtype(np.float64)) for factor in (update.up, update.down)
        )
        return Part(update.scale * up, down, self.strength, update.scale)


@dataclass(frozen=True, slots=True)
class FusedModule:
    """One module of a fusion: what each adapter brings, and what becomes of it.

    Attributes:
        members: in the order in which the adapters were given; those of strength 0 take no part.
        jobs: role -> the projection between that adapter and what it gives way to. Merges keep a pair's job for the
            overlap alone.
        method, values: how the members are fused, with the method's parameters for this module.
        side: on which side projections act. calibrate: how far what is left of an adapter is scaled up.
        seed: of this module, for methods with randomness.
        made: what is written instead of the members, once a merge has been computed.
        goal: how far the result is compressed; None: not at all.
        gives_way: role -> the roles that this member is projected away from, where one of them is a full matrix.
    """

    name: str
    members: tuple[Member, ...]
    jobs: Mapping[str, Job]
    method: Method | Merge
    values: Mapping[str, object]
    side: str = "input"
    calibrate: float = 1.0
    seed: int = 0
    made: tuple[Member, ...] | None = None
    gives_way: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    goal: Goal | None = None

    def of(self, role: str) -> Module | None:
        """The module that one adapter brings."""
        return next((member.module for member in self.members if member.role == role), None)

    @property
    def subject(self) -> Module | None:
        return self.of("subject")

    @property
    def style(self) -> Module | None:
        return self.of("style")

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(member.module for member in self.members)

    @property
    def written(self) -> tuple[Member, ...]:
        """What the output stacks: the members, or what a merge made of them."""
        return self.members if self.made is None else self.made

    @property
    def update(self) -> Update:
        return self.members[0].update

    @property
    def merges(self) -> bool:
        """Whether a merge has something to do here: low-rank factors of one adapter or more."""
        return isinstance(self.method, Merge) and all(isinstance(member.update, LowRank) for member in self.members)

    @property
    def job(self) -> Job | None:
        """The first projection; a pair's only one."""
        return next(iter(self.jobs.values()), None)

    @property
    def projections(self) -> Mapping[str, Job]:
        """The jobs whose result is written."""
        return self.jobs if isinstance(self.method, Method) and self.method.rewrites else {}

    def product_of(self, parts: Sequence[Part]) -> Product:
        """What a merge makes of the module's parts; their plain sum where they hold NaN, which no method can sort."""
        assert isinstance(self.method, Merge)
        if not all(np.isfinite(part.up).all() and np.isfinite(part.down).all() for part in parts):
            return Product(*stacked(weighted(parts)))
        return self.method(parts, seed=self.seed, **self.values)

    @property
    def is_dense(self) -> bool:
        """Whether a full matrix takes part."""
        return any(isinstance(member.update, Full) for member in self.members)

    def dense(self) -> NDArray[np.float64]:
        """The fused update (out, in*kernel) where a full matrix takes part."""
        mu, directions = self.values.get("mu", 0.0), self.values.get("directions", "all")
        return fuse_dense(
            self.members, self.gives_way, float(mu), directions, self.side, self.calibrate  # type: ignore[arg-type]
        )  # fmt: skip

    def delta(self) -> NDArray[np.float64]:
        """The dense fused update, float64, in the weight's shape; for the curious and for tests.

        Exact to float64 before any rounding of an output file.
        """
        if self.is_dense:
            return self.dense().reshape(self.members[0].module.delta().shape)
        if self.merges:
            product = self.product_of([member.part() for member in self.members])
            shape = self.members[0].module.delta().shape
            return np.asarray(product.up @ product.down, np.float64).reshape(shape)
        return np.asarray(sum(self._delta(member) for member in self.members))

    def _delta(self, member: Member) -> NDArray[np.float64]:
        job = self.projections.get(member.role)
        if job is None:
            return member.strength * member.module.delta()
        assert isinstance(self.method, Method)
        projected: list[NDArray[Any]] = []
        values = {**self.values, "calibrate": self.calibrate}
        stream([_in_float64(job)], self.method, values, emit=lambda _, stack: projected.extend(stack))
        own = member.update
        assert isinstance(own, LowRank)
        up, down = (factor.read().astype(np.float64) for factor in (own.up, own.down))
        product = up @ projected[0] if job.side == "input" else projected[0] @ down
        return np.asarray((member.strength * own.scale * product).reshape(member.module.delta().shape))


@dataclass(frozen=True, slots=True)
class Squeezed:
    """What compressing did to a module: ranks before and after, the Frobenius error, and the norm before."""

    name: str
    before: int
    rank: int
    error: float
    norm: float

    @property
    def relative(self) -> float:
        """The error relative to the module's norm."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """What a merge made of one module.

    ``error`` is the distance from the method's definition; ``gram`` (k + 1, k + 1) holds the inner products of the k
    adapters' updates at their strengths, in the order of ``roles``, and of the result, which comes last. ``facts`` and
    ``note`` are the merge's own.
    """

    name: str
    rank: int
    error: float
    roles: tuple[str, ...]
    gram: NDArray[np.float64]
    facts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def _in_float64(job: Job) -> Job:
    """The same job on float64 copies of its factors, so that nothing is rounded."""

    def widen(pair: Sequence[Any]) -> tuple[Any, Any]:
        one, two = (Factor(Tensor.of(m.keys[0], m.read().astype(np.float64))) for m in pair)
        return one, two

    return replace(job, subject=widen(job.subject), style=widen(job.style))


@dataclass(frozen=True)
class Fused(Mapping[str, FusedModule]):
    """Adapters matched module by module, with every parameter; numbers are computed when they are needed.

    Attributes:
        inputs: role ("subject" and "style" for two, letters for more) -> adapter.
        method: how they are fused; None for one adapter on its way into another format.
        parameters: every parameter of `fuse` that the method has.
        strengths: of each adapter, everywhere and in parts of the model.
        overrides: parameters in parts of the model; each module's ``values`` hold them already.
        modules: canonical name -> module.
        left_out, notes: what a user should know.
        measures: what the merges made, by module, once they are computed.
        base: the base model, where kinds that depend on it were expanded.
        squeezed: what compressing did, by module, once it is computed.
    """

    inputs: Mapping[str, Adapter]
    method: Method | Merge | None
    parameters: Mapping[str, Any]
    strengths: Strengths
    modules: Mapping[str, FusedModule]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    progress: Progress | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    base: BaseModel | None = None
    squeezed: Mapping[str, Squeezed] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=Overrides)

    def __getitem__(self, name: str) -> FusedModule:
        return self.modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def subject(self) -> Adapter:
        """The first adapter."""
        return next(iter(self.inputs.values()))

    @property
    def style(self) -> Adapter | None:
        """The style of a pair."""
        return self.inputs.get("style")

    @property
    def jobs(self) -> list[Job]:
        jobs = (job for module in self.modules.values() for job in module.jobs.values())
        return list({job.key: job for job in jobs}.values())

    @cached_property
    def overlaps(self) -> dict[str, Overlap]:
        """Job key -> overlap; computed at no extra pass when the fusion is saved, else by a pass of its own."""
        method, values = self.projection
        return stream(
            self.jobs, method, values, device=self.parameters["device"],
            allow_nonfinite=self.parameters["allow_nonfinite"], progress=self.progress,
        )  # fmt: skip

    @property
    def projection(self) -> tuple[Method, Mapping[str, object]]:
        """The method that the jobs are run with, and its parameters where they have no others; merges only measure."""
        if isinstance(self.method, Method):
            names = [parameter.name for parameter in self.method.parameters]
            names += ["calibrate"] if self.method.rewrites else []
            return self.method, {name: self.parameters[name] for name in names}
        measure = find_method("np")
        assert isinstance(measure, Method)
        return measure, OBSERVED
