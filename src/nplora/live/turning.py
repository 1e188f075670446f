"""Turn mu of a fused adapter in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..fusion.jobs import Job
from .layers import Held, Share, factors_of
from .moving import Moving, compute
from .squeezing import Source, padded, squeezed
from .stacking import Kept, joined, rounded, side_by_side, together


def kept_of(layer: Any, name: str) -> Kept:
    """What moves in a layer of a fused adapter; nothing where only one adapter changes it."""
    return getattr(layer.lora_dropout[name], "nplora", ()) if name in layer.lora_dropout else ()


def remember(layer: Any, name: str, kept: Kept) -> None:
    """Keep what moves beside the adapter, in its dropout module: it goes when the adapter goes, and is never saved."""
    layer.lora_dropout[name].nplora = kept


def is_as_left(layer: Any, name: str) -> bool:
    """Whether the layer still holds what the last turn (or the fusion) gave it: a file may have been swapped in.

    To within bfloat16's rounding, because the whole model may have been cast meanwhile.
    """
    import torch

    kept = kept_of(layer, name)
    if isinstance(kept, Source):
        target = factors_of(layer, name)[1][0].detach().float().flatten()
        value = kept.written.to(target.device).float()
    else:
        target = _target(layer, name, kept[0]).detach().float()
        value = _value(kept[0].on(target.device)).float().reshape(target.shape)
    return target.shape == value.shape and torch.allclose(
        target, value, rtol=2**-7, atol=1e-7 * float(value.abs().max())
    )


def turn(path: str, layer: Any, name: str, mu: float) -> None:
    """Give a layer's factors the values that they have at a mu, in the tensors that they are in."""
    device, kept = factors_of(layer, name)[1].device, kept_of(layer, name)
    if isinstance(kept, Source):
        remember(layer, name, _compressed(path, layer, name, kept.on(device), mu))
        return
    moving = tuple(_at(moved.on(device), mu) for moved in kept)
    if not moving[0].linear:
        moving = _again(path, layer, name, moving)
    remember(layer, name, moving)
    for moved in moving:
        _put(layer, name, moved)


def _at(moved: Moving, mu: float) -> Moving:
    return replace(moved, values={**moved.values, "mu": mu})


def _compressed(path: str, layer: Any, name: str, source: Source, mu: float) -> Source:
    """A compressed layer computed anew from what it was made of, at the rank that it has."""
    shares, moving = source.shares, {}
    for role, moved in source.moving.items():
        at_mu = _at(moved, mu)
        above = [shares[other] for other in moved.above]
        moving[role] = at_mu if at_mu.linear else _projected(path, at_mu, shares[role], above)
    small, _ = squeezed(path, *joined(*side_by_side(shares, moving)), source.goal, source.keep)
    assert small is not None  # the layer has fewer ranks than its parts
    factors = padded(rounded([small.up], [small.down], shares), source.rank)
    for target, value in zip(factors_of(layer, name), (factors.up, factors.down), strict=True):
        target.copy_(value.reshape(target.shape))
    return replace(source, moving=moving, written=factors.down[0].clone())


def _again(path: str, layer: Any, name: str, moving: Sequence[Moving]) -> tuple[Moving, ...]:
    """The projections computed anew, from the factors as they were before any of them moved."""
    up, down = (factor.clone() for factor in _factors(layer, name))
    for moved in moving:
        if moved.side == "input":
            down[moved.ranks] = moved.base
        else:
            up[:, moved.ranks] = (moved.base.T * moved.factor).to(up.dtype)
    found = []
    for moved in moving:
        above = [_share(path, up, down, ranks) for ranks in moved.above.values()]
        own = _share(path, up, down, moved.ranks)
        if moved.side == "output":
            own = replace(own, up=Held(moved.base.T, (path,)))
        found.append(_projected(path, moved, own, above))
    return tuple(found)


def _projected(path: str, moved: Moving, own: Share, above: Sequence[Share]) -> Moving:
    """The projection of one adapter's share computed anew."""
    style_up, style_down, factor = together(above, moved.side)
    job = Job(path, path, (own.up, own.down), (style_up, style_down), (moved.factor, factor), moved.side)
    (result,) = compute([job], moved.method, {path: moved.values})[0].values()
    return replace(result, ranks=moved.ranks, above=moved.above)


def _share(path: str, up: Any, down: Any, ranks: slice) -> Share:
    return Share(Held(up[:, ranks], (path,)), Held(down[ranks], (path,)), 1.0, 1.0)


def _factors(layer: Any, name: str) -> tuple[Any, Any]:
    up, down = factors_of(layer, name)
    return up.detach().flatten(1), down.detach().flatten(1)


def _put(layer: Any, name: str, moved: Moving) -> None:
    """Write what moved into the adapter's own tensor, which keeps its place in memory."""
    target = _target(layer, name, moved)
    target.copy_(_value(moved).reshape(target.shape))


def _target(layer: Any, name: str, moved: Moving) -> Any:
    up, down = factors_of(layer, name)
    return down[moved.ranks] if moved.side == "input" else up[:, moved.ranks]


def _value(moved: Moving) -> Any:
    return moved.now() if moved.side == "input" else moved.now().T * moved.factor
