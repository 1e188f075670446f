"""The factors of a fused layer from the adapters' shares: side by side, projected or merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UsageError
from ..fusion.merging import module_seed
from ..fusion.projection import Job, Overlap, check_finite
from ..methods import Merge, Method, Part
from .injection import Factors
from .layers import Held, Place, Share
from .moving import Moving, compute, wide


def fuse_places(
    places: Sequence[Place], roles: Sequence[str], levels: Mapping[str, int], method: Method | Merge,
    values: Mapping[str, Any],
) -> tuple[dict[str, Factors], dict[str, tuple[Moving, ...]], dict[str, Overlap]]:  # fmt: skip
    """Compute every layer's factors in the new adapter; the model is not touched.

    Args:
        places: the layers of one model.
        roles: what the adapters are called, in their order; levels: their priorities.
        method, values: how to fuse, and every checked option.

    Returns:
        By path: the factors, and what moves with mu; and the overlaps.

    Raises:
        InputError: a factor holds NaN or infinity (unless allowed).
        UsageError: a result does not fit the adapters' number type.
    """
    own = {parameter.name: values[parameter.name] for parameter in method.parameters}
    allowed = bool(values["allow_nonfinite"])
    moving: dict[str, Moving] = {}
    overlaps: dict[str, Overlap] = {}
    if isinstance(method, Method):
        common = {name: values[name] for name in ("calibrate",) if name in values}
        jobs = jobs_of(places, roles, levels, values.get("side", "input"))
        moving, overlaps = compute(jobs, method, own | common, allowed)
    layers, turnable = {}, {}
    for place in places:
        if isinstance(method, Merge):
            factors = _merged(place, method, own, values["seed"])
        else:
            found = {role: moving[f"{role}:{place.name}"] for role in roles if f"{role}:{place.name}" in moving}
            factors, turned = _stacked(place, roles, levels, found if method.rewrites else {})
            if turned and "mu" in own:
                turnable[place.path] = turned
        if not allowed:
            _require_finite(place, factors)
        layers[place.path] = factors
    return layers, turnable, overlaps


def jobs_of(
    places: Sequence[Place], roles: Sequence[str], levels: Mapping[str, int], side: str
) -> Iterator[Job]:  # fmt: skip
    """The projections: one for each adapter of a layer that gives way to others there."""
    for place in places:
        shares = _present(place, roles)
        for role, share in shares.items():
            above = _above(role, shares, levels)
            if above:
                up, down, factor = together([shares[other] for other in above], side)
                yield Job(
                    f"{role}:{place.name}", place.name, (share.up, share.down), (up, down), (share.factor, factor),
                    side, role, above,
                )  # fmt: skip


def _present(place: Place, roles: Sequence[str]) -> dict[str, Share]:
    return {role: share for role, share in zip(roles, place.shares, strict=True) if share is not None}


def _above(role: str, shares: Mapping[str, Share], levels: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(other for other in shares if other != role and levels[other] >= levels[role])


def together(shares: Sequence[Share], side: str) -> tuple[Held, Held, float]:
    """One update whose row space (column space with side "output") is that of all; see `nplora.reading.stacks`."""
    import torch

    if len(shares) == 1:
        return shares[0].up, shares[0].down, shares[0].factor
    ups, downs = ([wide(getattr(share, part).numbers) for share in shares] for part in ("up", "down"))
    factors = [share.factor for share in shares]
    diagonal: Any = torch.block_diag  # untyped in torch
    if side == "input":
        up = diagonal(*(f * u for f, u in zip(factors, ups, strict=True)))
        return Held(up, shares[0].up.keys), Held(torch.cat(downs), shares[0].down.keys), 1.0
    down = diagonal(*(f * d for f, d in zip(factors, downs, strict=True)))
    return Held(torch.cat(ups, dim=1), shares[0].up.keys), Held(down, shares[0].down.keys), 1.0


def _stacked(
    place: Place, roles: Sequence[str], levels: Mapping[str, int], moving: Mapping[str, Moving]
) -> tuple[Factors, tuple[Moving, ...]]:
    """``[f_1 B_1, f_2 B_2, ..] [A_1; A_2; ..]``, each number rounded once to the adapters' own type."""
    import torch

    shares = _present(place, roles)
    ups, downs, spans, first = [], [], {}, 0
    for role, share in shares.items():
        moved = moving.get(role)
        ups.append(scaled(share.up.numbers, share.factor))
        downs.append(share.down.numbers)
        if moved is not None and moved.side == "input":
            downs[-1] = moved.now()
        elif moved is not None:
            ups[-1] = moved.now().T * moved.factor
        spans[role] = slice(first, first := first + share.rank)
    turned = tuple(
        replace(moved, ranks=spans[role], above=tuple(spans[other] for other in _above(role, shares, levels)))
        for role, moved in moving.items()
    )
    up_type, down_type = _types(shares.values())
    up = torch.cat([part.to(up_type) for part in ups], dim=1)
    return Factors(up, torch.cat([part.to(down_type) for part in downs])), turned


def scaled(numbers: Any, factor: float) -> Any:
    """The matrix times a factor; as it is for 1."""
    return numbers if factor == 1.0 else wide(numbers) * factor


def _merged(place: Place, method: Merge, values: Mapping[str, object], seed: int) -> Factors:
    shares = [share for share in place.shares if share is not None]
    parts = [
        Part(share.scale * wide(share.up.numbers), wide(share.down.numbers), share.strength, share.scale)
        for share in shares
    ]
    product = method(parts, seed=module_seed(seed, place.name), **values)
    up_type, down_type = _types(shares)
    up, down = product.up.to(up_type), product.down.to(down_type)
    if down.shape[0] == 0:  # PEFT has no layer of rank 0
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    return Factors(up, down)


def _types(shares: Any) -> tuple[Any, Any]:
    """Number types of up and down that hold all of them; fp8 counts as bfloat16, which it is computed in."""
    import torch

    found = []
    for part in ("up", "down"):
        tensors = [getattr(share, part).numbers for share in shares]
        types = [torch.bfloat16 if tensor.element_size() == 1 else tensor.dtype for tensor in tensors]
        wider = types[0]
        for other in types[1:]:
            wider = torch.promote_types(wider, other)
        found.append(wider)
    return found[0], found[1]


def _require_finite(place: Place, factors: Factors) -> None:
    import torch

    if bool(torch.isfinite(factors.up).all()) and bool(torch.isfinite(factors.down).all()):
        return
    for share in place.shares:
        if share is not None:
            check_finite(share.up, place.name)
            check_finite(share.down, place.name)
    raise UsageError(
        "a fused number does not fit the adapters' number type", key=place.name, got=str(factors.up.dtype),
        hint="Load the adapters in bfloat16 or float32, or lower the strengths.",
    )  # fmt: skip
