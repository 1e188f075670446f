"""What a file holds beside low-rank factors: full matrices, biases, norms, carried kinds, foreign keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import Factor, Full, LowRank, Matrix, Opaque, Update
from ..errors import InputError
from ..formats import Spelling
from ..fusion.fused import Fused, FusedModule, Member
from ..fusion.jobs import check_finite
from ..fusion.leftovers import LeftOut
from ..fusion.pairing import partners
from ..layouts import Part
from ..reading.adapter import Adapter, Origin, Vector
from ..storage import Tensor, numpy_dtype, wider
from .assembly import rounded
from .naming import Naming
from .plan import Plan, join


@dataclass(frozen=True, slots=True)
class Share:
    """What one canonical module gives to a tensor of the file: its shape and type, and how to make its numbers."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor whose numbers are made when it is written, one at a time: dense updates would fill the memory."""

    key: str
    spelling: Spelling
    shares: Mapping[str, Share]

    @property
    def dtype(self) -> str:
        return wider(share.dtype for share in self.shares.values())

    @property
    def shape(self) -> tuple[int, ...]:
        first, last = next(iter(self.shares.values())).shape, self.spelling.parts[-1].rows
        return (last[1], *first[1:]) if last is not None and len(self.spelling.parts) > 1 else first

    def read(self) -> NDArray[Any]:
        dtype = numpy_dtype(self.dtype)
        places = {part.name: part for part in self.spelling.parts}
        if len(places) == 1:
            (share,), (part,) = self.shares.values(), places.values()
            numbers = rounded(share.make(), dtype, self.key).reshape(share.shape)
            return np.roll(numbers, numbers.shape[0] // 2, axis=0) if part.swap else numbers
        out = np.zeros(self.shape, dtype)
        for name, share in self.shares.items():
            rows = places[name].rows
            assert rows is not None
            out[rows[0] : rows[1]] = rounded(share.make(), dtype, self.key).reshape(share.shape)
        return out


@dataclass
class Loose:
    """Tensors outside the plan, and keys that the output's format has no place for (key -> why)."""

    tensors: list[Tensor | Computed] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)  # what the fusion left out already is among them
    added: list[str] = field(default_factory=list)  # biases and norms that were added up
    copied: list[str] = field(default_factory=list)  # foreign keys
    carried: set[str] = field(default_factory=set)  # tensors of kinds that stay as they are
    pieces: dict[str, tuple[Spelling, dict[str, Share]]] = field(default_factory=dict)

    def put(self, spelling: Spelling, suffix: str, name: str, share: Share) -> None:
        """Keep the share of a canonical module for the tensor that its module of the file stores."""
        parts = self.pieces.setdefault(join(spelling.module, suffix), (spelling, {}))[1]
        parts[name.partition(".")[2]] = share

    def finish(self) -> None:
        """Make the tensors: rows of a fused projection in their places, halves as the file has them."""
        for key, (spelling, shares) in self.pieces.items():
            self.tensors.append(Computed(key, spelling, shares))


def loose_tensors(fusion: Fused, naming: Naming, plan: Plan) -> Loose:
    """Everything of a fusion that is not a pair of factors."""
    loose = Loose(left_out=LeftOut(fusion.left_out))
    for module in fusion.modules.values():
        kinds = [member.update for member in module.written]
        if any(isinstance(kind, Opaque) for kind in kinds) or carried_whole(module, naming):
            _carry(module.members[0], naming, loose)
        elif any(isinstance(kind, Full) for kind in kinds):
            _full(module, fusion.parameters, naming, loose)
    _vectors(fusion, naming, plan, loose)
    loose.finish()
    _others(fusion, naming, plan, loose)
    for role, adapter in fusion.inputs.items():
        if adapter.file is not None:
            loose.left_out.account(role, adapter.file.tensors, _consumed(fusion, role, adapter))
    return loose


def _consumed(fusion: Fused, role: str, adapter: Adapter) -> set[str]:
    """Keys of one input that stand behind a module, a bias or a norm of the output, or were copied."""
    keys = {
        key
        for module in fusion.modules.values()
        for member in module.members
        if member.role == role
        for key in member.module.keys
    }
    for vector in adapter.vectors.values():
        keys.update((vector.tensor.key, *vector.origin.scale_keys))
    return keys.union(adapter.others)


def _spelling(name: str, origin: Origin, naming: Naming) -> Spelling | None:
    if naming.keep and origin.format == naming.format.name:
        return Spelling(origin.module, origin.parts)
    component, _, path = name.partition(".")
    return naming.format.spell(component, path, naming.layout)


def carried_whole(module: FusedModule, naming: Naming) -> bool:
    """Whether a LoHa, LoKr or Tucker module that nothing changes keeps its own small tensors, byte for byte."""
    if len(module.members) != 1 or not naming.format.carries_kinds or naming.dtype is not None:
        return False
    (member,) = module.members
    return bool(member.module.stored) and member.strength == 1.0 and module.written == module.members


def _carry(member: Member, naming: Naming, loose: Loose) -> None:
    role, module = member.role, member.module
    spelling = _spelling(module.name, module.origin, naming)
    kept = naming.keep and module.origin.format == naming.format.name  # then the parts of a fused projection stay one
    name = spelling.module if spelling is not None and (kept or len(spelling.parts) == 1) else None
    stored = module.update.parts if isinstance(module.update, Opaque) else module.stored
    for suffix, tensor in stored.items():
        if name is None:
            why = f"{naming.format.title} has no name for this {module.update.kind} module"
            loose.left_out.add(role, [tensor.key], why)
        elif (key := join(name, suffix)) not in loose.carried:
            loose.carried.add(key)
            loose.tensors.append(Tensor(key, tensor.dtype, tensor.shape, tensor.source, tensor.start))


def _full(module: FusedModule, values: Mapping[str, object], naming: Naming, loose: Loose) -> None:
    first = module.modules[0]
    spelling = _spelling(module.name, first.origin, naming)
    for member in module.members:
        if spelling is None or naming.format.name in ("diffusers", "peft"):
            why = f"{naming.format.title} has no place for a full matrix (--rank or --error makes it low-rank)"
            loose.left_out.add(member.role, member.module.keys, why)
        elif not values["allow_nonfinite"]:
            for matrix in _matrices(member.update):
                if isinstance(matrix, Factor):  # what is computed is looked at when it is there
                    check_finite(matrix, module.name)
    if spelling is None or naming.format.name in ("diffusers", "peft"):
        return
    stored = [matrix.dtype for member in module.members for matrix in _matrices(member.update)]
    (out, width), kernel = first.update.size or (0, 0), first.update.kernel
    shape = (out, width // prod(kernel), *kernel) if kernel else (out, width)
    share = Share(shape, naming.dtype or wider(stored), partial(_dense, module, values))
    loose.put(spelling, ".diff", module.name, share)


def _dense(module: FusedModule, values: Mapping[str, Any]) -> NDArray[np.float64]:
    numbers = module.dense()
    if not values["allow_nonfinite"] and not np.isfinite(numbers).all():
        raise InputError(
            f"{int((~np.isfinite(numbers)).sum())} values of the fused matrix are NaN or infinite", key=module.name,
            hint="Look for the damaged input with nplora inspect, or go on with --allow-nonfinite.",
        )  # fmt: skip
    return numbers


def _matrices(update: Update) -> list[Matrix]:
    if isinstance(update, LowRank):
        return [update.up, update.down]
    return [update.diff] if isinstance(update, Full) else []


def _vectors(fusion: Fused, naming: Naming, plan: Plan, loose: Loose) -> None:
    """Biases and norms: added by strength, never projected."""
    components = fusion.parameters["components"]
    known: list[str] = []
    targets: dict[tuple[str, str], list[_Weighted]] = {}
    for role, adapter in fusion.inputs.items():
        ours = _modules_of(adapter)
        names = {theirs: name for name, theirs in partners(known, ours).items()}
        known += [name for name in ours if name not in names]
        for (name, what), vector in adapter.vectors.items():
            if components is not None and name.partition(".")[0] not in components:
                loose.left_out.add(role, [vector.tensor.key], "not among --components")
            elif not fusion.strengths.of(role, name):
                loose.left_out.add(role, [vector.tensor.key], f"{role} strength is 0")
            else:
                weighted = _Weighted(role, fusion.strengths.of(role, name) * vector.scale, vector)
                targets.setdefault((names.get(name, name), what), []).append(weighted)
    for (_, what), shares in targets.items():
        if not fusion.parameters["allow_nonfinite"]:
            for share in shares:
                check_finite(Factor(share.vector.tensor), share.vector.name)
        _vector(shares[0].vector.name, what, shares, naming, plan, loose)


def _modules_of(adapter: Adapter) -> list[str]:
    return list(dict.fromkeys(name for name, _ in adapter.vectors))


@dataclass(frozen=True, slots=True)
class _Weighted:
    role: str
    weight: float
    vector: Vector


def _vector(module: str, what: str, shares: list[_Weighted], naming: Naming, plan: Plan, loose: Loose) -> None:
    first = shares[0].vector
    spelling = _spelling(module, first.origin, naming)
    if spelling is None and module in plan.unnamed:
        spelling = Spelling(plan.modules[module], (Part(module.partition(".")[2]),))
    role, factor = _vector_role(module, what, first, naming, plan)
    if spelling is None or role is None:
        for share in shares:
            why = f"{naming.format.title} has no place for a {what} delta here"
            loose.left_out.add(share.role, [share.vector.tensor.key], why)
        return
    weights = [share.weight / factor for share in shares]
    if len(shares) == 1 and weights[0] == 1.0 and naming.dtype in (None, first.tensor.dtype):
        total = Share(first.tensor.shape, first.tensor.dtype, first.tensor.read)
    else:
        dtype = naming.dtype or wider(share.vector.tensor.dtype for share in shares)
        total = Share(first.tensor.shape, dtype, partial(_sum, weights, [share.vector.tensor for share in shares]))
    suffix = (
        first.origin.suffixes.get(first.role) if naming.keep and first.origin.format == naming.format.name else None
    )
    loose.put(spelling, suffix or _VECTOR_SUFFIX[role], module, total)
    if len(shares) > 1:
        loose.added.append(f"{module} ({what})")


def _sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    scaled = [weight * tensor.read().astype(np.float64) for weight, tensor in zip(weights, tensors, strict=True)]
    return np.asarray(np.sum(scaled, axis=0))


_VECTOR_SUFFIX = {
    "diff_b": ".diff_b", "bias": ".lora_B.bias", "w_norm": ".w_norm", "b_norm": ".b_norm", "diff": ".w_norm"
}  # fmt: skip


def _vector_role(module: str, what: str, vector: Vector, naming: Naming, plan: Plan) -> tuple[str | None, float]:
    """The role that the output's format has for this vector, and what a reader will multiply it by."""
    if naming.format.name in ("diffusers", "peft"):
        if what != "bias" or module not in plan.scales:
            return None, 1.0
        return "bias", plan.scales[module]  # PEFT multiplies lora_B.bias by the scale
    if naming.keep and vector.role == "bias":
        return "bias", plan.scales.get(module, 1.0)
    return ("diff_b" if vector.role == "bias" else vector.role), 1.0


def _others(fusion: Fused, naming: Naming, plan: Plan, loose: Loose) -> None:
    """Foreign keys (embeddings, heads): copied where the format's readers stand them, else named as left out."""
    taken = {spec[0] for spec in plan.specs} | {tensor.key for tensor in loose.tensors}
    kept: dict[str, Tensor] = {}
    for role, adapter in fusion.inputs.items():
        for key, tensor in adapter.others.items():
            if not naming.format.keeps_others:
                why = f"a foreign key would keep readers of {naming.format.title} from loading the file"
                loose.left_out.add(role, [key], why)
            elif key in taken or (key in kept and not _same_bytes(kept[key], tensor)):
                loose.left_out.add(role, [key], "the output has a different tensor of this name")
            else:
                kept.setdefault(key, tensor)
                loose.copied.append(key)
    loose.tensors += kept.values()


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.read().tobytes() == other.read().tobytes()
