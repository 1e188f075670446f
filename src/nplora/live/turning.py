"""Turn mu of a fused adapter in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..fusion.projection import Job
from .layers import Held, Share, factors_of
from .moving import Moving, compute
from .stacking import together


def kept_of(layer: Any, name: str) -> tuple[Moving, ...]:
    """What moves in a layer of a fused adapter; nothing where only one adapter changes it."""
    return getattr(layer.lora_dropout[name], "nplora", ()) if name in layer.lora_dropout else ()


def remember(layer: Any, name: str, moving: tuple[Moving, ...]) -> None:
    """Keep what moves beside the adapter, in its dropout module: it goes when the adapter goes, and is never saved."""
    layer.lora_dropout[name].nplora = moving


def is_as_left(layer: Any, name: str) -> bool:
    """Whether the layer still holds what the last turn (or the fusion) gave it: a file may have been swapped in.

    To within bfloat16's rounding, because the whole model may have been cast meanwhile.
    """
    import torch

    moved = kept_of(layer, name)[0]
    target = _target(layer, name, moved).detach().float()
    value = _value(moved.on(target.device)).float().reshape(target.shape)
    return torch.allclose(target, value, rtol=2**-7, atol=1e-7 * float(value.abs().max()))


def turn(path: str, layer: Any, name: str, mu: float) -> None:
    """Give a layer's factors the values that they have at a mu, in the tensors that they are in."""
    device = _factors(layer, name)[1].device
    moving = tuple(moved.on(device) for moved in kept_of(layer, name))
    moving = tuple(replace(moved, values={**moved.values, "mu": mu}) for moved in moving)
    if not moving[0].linear:
        moving = _again(path, layer, name, moving)
    remember(layer, name, moving)
    for moved in moving:
        _put(layer, name, moved)


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
        above = [_share(path, up, down, ranks) for ranks in moved.above]
        own = _share(path, up, down, moved.ranks)
        style_up, style_down, factor = together(above, moved.side)
        pair = (own.up, own.down)
        if moved.side == "output":
            pair = Held(moved.base.T, (path,)), own.down
        job = Job(path, path, pair, (style_up, style_down), (moved.factor, factor), moved.side)
        (result,) = compute([job], moved.method, moved.values, allow_nonfinite=True)[0].values()
        found.append(replace(result, ranks=moved.ranks, above=moved.above))
    return tuple(found)


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
