"""A fused layer of fewer ranks, and what is kept of it so that mu can be turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..algebra.compression import Goal, TooFewError, recompress
from ..algebra.devices import to_host
from ..algebra.factors import thin_svd
from ..fusion.dense import counted
from ..fusion.fused import Squeezed
from ..fusion.recompression import too_few_error
from .injection import Factors
from .layers import Held, Place, Share
from .moving import Moving, wide


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """All that a compressed layer was computed from, copied: its truncation is not linear in g.

    ``goal`` names the rank that the layer has, ``held`` how many of its ranks are zeros beyond it; ``keep`` (n, q) are
    the style's directions, if they are kept. ``written`` is the first row of the layer's down factor as it was left.
    """

    shares: Mapping[str, Share]
    moving: Mapping[str, Moving]
    goal: Goal
    rank: int
    keep: Any = None
    written: Any = None

    def on(self, device: Any) -> Source:
        """The same with its numbers on a device."""
        if all(share.up.numbers.device == device for share in self.shares.values()):
            return self
        shares = {
            role: replace(share, up=_on(share.up, device), down=_on(share.down, device))
            for role, share in self.shares.items()
        }
        moving = {role: moved.on(device) for role, moved in self.moving.items()}
        return replace(self, shares=shares, moving=moving)


def _on(held: Held, device: Any) -> Held:
    return Held(held.numbers.to(device), held.keys)


def squeezed(name: str, up: Any, down: Any, goal: Goal, keep: Any = None) -> tuple[Factors | None, Squeezed]:
    """The nearest update of fewer ranks; None where nothing is gained.

    Args:
        name: of the layer, for messages. up, down: (out, r) and (r, n), any float type; computed in float64 (on the
            CPU for MPS, which has no such type).
        goal: how far; keep: orthonormal directions (n, q) whose response stays as it is.

    Raises:
        UsageError: fewer ranks are asked for than those that are kept.
    """
    import torch

    home, before = up.device, int(down.shape[0])
    if not (bool(torch.isfinite(up).all()) and bool(torch.isfinite(down).all())):
        return None, Squeezed(name, before, before, 0.0, 0.0)  # allowed: such a layer has no singular values
    try:
        found = recompress(_exact(up), _exact(down), goal, keep)
    except TooFewError as error:
        raise too_few_error(error.kept, name, goal) from None
    if found.rank >= before:
        return None, Squeezed(name, before, before, 0.0, found.norm)
    told = Squeezed(name, before, found.rank, found.error, found.norm)
    return Factors(found.up.to(home), found.down.to(home)), told


def _exact(matrix: Any) -> Any:
    return wide(matrix.cpu() if matrix.device.type == "mps" else matrix)


def padded(factors: Factors, rank: int) -> Factors:
    """The factors with ranks of zeros up to so many."""
    import torch

    more = rank - factors.rank
    if more <= 0:
        return factors
    up, down = factors.up, factors.down
    return Factors(
        torch.cat([up, up.new_zeros(up.shape[0], more)], dim=1),
        torch.cat([down, down.new_zeros(more, down.shape[1])]),
    )


def style_directions(place: Place) -> Any:
    """The style's input directions (n, q) that are to be kept; None where there is no style here."""
    share = place.shares.get("style")
    if share is None:
        return None
    _, s, V = thin_svd(_exact(share.up.numbers), _exact(share.down.numbers))
    size = share.up.shape[0], share.down.shape[1]
    return V[:, : counted(np.asarray(to_host(s)), size, place.values.get("directions", "all"))]


def constant(goal: Goal) -> int:
    """The rank that every layer has: the one asked for, where nothing else is; else 0."""
    alone = goal.energy is None and goal.error is None
    return goal.rank or 0 if alone else 0
