"""The factors of a fused layer from the adapters' shares: side by side, projected, merged, of fewer ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..algebra.compression import Goal
from ..errors import UsageError
from ..fusion.fused import Squeezed
from ..fusion.jobs import Job, Overlap, check_finite
from ..fusion.merging import module_seed
from ..fusion.options import goal_of
from ..methods import Merge, Method, Part
from .injection import Factors
from .layers import Held, Place, Share
from .moving import Moving, compute, wide
from .squeezing import Source, constant, padded, squeezed, style_directions

Kept = tuple[Moving, ...] | Source


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a layer gets: its factors, what is kept to turn mu (nothing: ``()``), and what compressing did."""

    factors: Factors
    kept: Kept = ()
    squeezed: Squeezed | None = None


def fuse_places(
    places: Sequence[Place], levels: Mapping[str, int], method: Method | Merge
) -> tuple[dict[str, Made], dict[str, Overlap]]:
    """Compute every layer's factors in the new adapter; the model is not touched.

    Args:
        places: the layers of one model in which an adapter is heard.
        levels: priorities, by what the adapters are called.
        method: how to fuse.

    Returns:
        What each layer gets, by path; and the overlaps.

    Raises:
        InputError: a factor holds NaN or infinity (unless allowed).
        UsageError: a result does not fit the adapters' number type, or fewer ranks are asked for than are kept.
    """
    moving: dict[str, Moving] = {}
    overlaps: dict[str, Overlap] = {}
    if isinstance(method, Method):
        moving, overlaps = compute(jobs_of(places, levels), method, {place.name: place.values for place in places})
    made = {}
    for place in places:
        goal = goal_of(place.values, len(levels), place.name)
        if isinstance(method, Merge):
            done = _merged(place, method, goal)
        else:
            found = {role: moving[key] for role in place.shares if (key := f"{role}:{place.name}") in moving}
            done = _stacked(place, levels, found if method.rewrites else {}, goal)
        if not place.values["allow_nonfinite"]:
            _require_finite(place, done.factors)
        made[place.path] = done
    return made, overlaps


def jobs_of(places: Sequence[Place], levels: Mapping[str, int]) -> Iterator[Job]:
    """The projections: one for each adapter of a layer that gives way to others there."""
    for place in places:
        for role, share in place.shares.items():
            above = _above(role, place.shares, levels)
            if above:
                side = place.values.get("side", "input")
                up, down, factor = together([place.shares[other] for other in above], side)
                yield Job(
                    f"{role}:{place.name}", place.name, (share.up, share.down), (up, down), (share.factor, factor),
                    side, role, above, place.own,
                )  # fmt: skip


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


def side_by_side(shares: Mapping[str, Share], moving: Mapping[str, Moving]) -> tuple[list[Any], list[Any]]:
    """The parts of ``[f_1 B_1, f_2 B_2, ..] [A_1; A_2; ..]``, projected where they move; their own or wider types."""
    ups, downs = [], []
    for role, share in shares.items():
        moved = moving.get(role)
        ups.append(share.up.numbers if share.factor == 1.0 else wide(share.up.numbers) * share.factor)
        downs.append(share.down.numbers)
        if moved is not None and moved.side == "input":
            downs[-1] = moved.now()
        elif moved is not None:
            ups[-1] = moved.now().T * moved.factor
    return ups, downs


def _stacked(place: Place, levels: Mapping[str, int], moving: Mapping[str, Moving], goal: Goal | None) -> Made:
    """All shares side by side, or the nearest update of fewer ranks; each number rounded once to the adapters' type."""
    shares, spans, first = place.shares, {}, 0
    for role, share in shares.items():
        spans[role] = slice(first, first := first + share.rank)
    moving = {
        role: replace(moved, ranks=spans[role], above={a: spans[a] for a in _above(role, shares, levels)})
        for role, moved in moving.items()
    }
    ups, downs = side_by_side(shares, moving)
    turns = bool(moving) and "mu" in next(iter(moving.values())).values
    if goal is None:
        return Made(rounded(ups, downs, shares), tuple(moving.values()) if turns else ())
    keep = style_directions(place) if goal.keep_style else None
    small, told = squeezed(place.name, *joined(ups, downs), goal, keep)
    if small is None:
        whole = padded(rounded(ups, downs, shares), constant(goal))
        return Made(whole, tuple(moving.values()) if turns else (), told)
    factors = padded(rounded([small.up], [small.down], shares), constant(goal))
    if not turns:
        return Made(factors, (), told)
    source = Source(
        {role: _copied(share) for role, share in shares.items()}, moving, replace(goal, energy=None, error=None,
        rank=small.rank), factors.rank, keep, factors.down[0].clone(),
    )  # fmt: skip
    return Made(factors, source, told)


def _copied(share: Share) -> Share:
    """The same with numbers of its own: the adapter may be deleted, or another file swapped into it."""
    up, down = (Held(held.numbers.clone(), held.keys) for held in (share.up, share.down))
    return replace(share, up=up, down=down)


def joined(ups: Sequence[Any], downs: Sequence[Any]) -> tuple[Any, Any]:
    """The parts as one pair of factors in the type that is computed in."""
    import torch

    return torch.cat([wide(part) for part in ups], dim=1), torch.cat([wide(part) for part in downs])


def rounded(ups: Sequence[Any], downs: Sequence[Any], shares: Mapping[str, Share]) -> Factors:
    """The parts as factors of the adapters' own number types."""
    import torch

    up_type, down_type = _types(shares.values())
    up = torch.cat([part.to(up_type) for part in ups], dim=1)
    return Factors(up, torch.cat([part.to(down_type) for part in downs]))


def _merged(place: Place, method: Merge, goal: Goal | None) -> Made:
    shares, values = place.shares, place.values
    parts = [
        Part(share.scale * wide(share.up.numbers), wide(share.down.numbers), share.strength, share.scale)
        for share in shares.values()
    ]
    own = {parameter.name: values[parameter.name] for parameter in method.parameters}
    product = method(parts, seed=module_seed(values["seed"], place.canonical), **own)
    up, down, told = product.up, product.down, None
    if goal is not None:
        keep = style_directions(place) if goal.keep_style else None
        small, told = squeezed(place.name, up, down, goal, keep)
        up, down = (up, down) if small is None else (small.up, small.down)
    if down.shape[0] == 0:  # PEFT has no layer of rank 0
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    factors = rounded([up], [down], shares)
    return Made(factors if goal is None else padded(factors, constant(goal)), (), told)


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
    for share in place.shares.values():
        check_finite(share.up, place.name)
        check_finite(share.down, place.name)
    raise UsageError(
        "a fused number does not fit the adapters' number type", key=place.name, got=str(factors.up.dtype),
        hint="Load the adapters in bfloat16 or float32, or lower the strengths.",
    )  # fmt: skip
