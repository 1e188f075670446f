"""Fusion of modules of which one adapter has a full matrix; only there something out x in exists already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..adapters import Full, LowRank, Update, wide
from ..algebra import numerical_rank, thin_svd
from ..errors import UsageError
from ..parameters import attenuation
from .projection import LEAST

Array = NDArray[np.float64]


class Share(Protocol):
    """What one adapter brings to a module, and how strongly."""

    @property
    def role(self) -> str: ...
    @property
    def strength(self) -> float: ...
    @property
    def update(self) -> Update: ...


def fuse_dense(
    members: Sequence[Share],
    gives_way: Mapping[str, Sequence[str]],
    mu: float,
    directions: str | int | float,
    side: str,
    calibrate: float = 1.0,
) -> Array:
    """``sum_i w_i dW_i (I - g V_i V_i^T)`` with at least one of the updates a full matrix.

    Args:
        members: what each adapter brings.
        gives_way: role -> the roles whose directions V_i spans; members that are not named stay as they are.
        mu, directions, side, calibrate: as in `fuse`; on the output side the projector stands on the left.

    Returns:
        The dense float64 update (out, in*kernel).
    """
    g, by_role = attenuation(mu), {member.role: member for member in members}
    total: Array | None = None
    with np.errstate(all="ignore"):
        for member in members:
            if not isinstance(member.update, (Full, LowRank)):
                raise UsageError("only LoRA and full modules can be fused", hint="Please report this.")
            dW, above = member.update.delta(), gives_way.get(member.role, ())
            if g and above:
                V = protected([by_role[role] for role in above], directions, side)
                whole = float(np.linalg.norm(dW))
                dW = dW - g * (dW @ V) @ V.T if side == "input" else dW - g * V @ (V.T @ dW)
                dW = calibrated(dW, whole, calibrate)
            total = member.strength * dW if total is None else total + member.strength * dW
    assert total is not None
    return total


def calibrated(left: Array, whole: float, limit: float) -> Array:
    """What is left of an update, scaled up towards the norm that it had; see `projection.project`."""
    norm = float(np.linalg.norm(left))
    return left * min(limit, whole / norm) if limit > 1 and LEAST * whole < norm < whole else left


def protected(above: Sequence[Share], directions: str | int | float, side: str) -> Array:
    """An orthonormal basis (n, k) of what is protected on the input side; (out, k) on the output side.

    It comes from an SVD of the updates one below the other, at their strengths: of one low-rank update by
    its factors, else densely. Of a kind that also rescales the base weight, "all" directions are its low-rank part's.
    """
    meant = [spanning(member.update, directions) for member in above]
    if len(meant) == 1 and isinstance(meant[0], LowRank):
        pair = wide(meant[0].up), wide(meant[0].down)
        matrices = list(pair)
    else:
        matrices = [member.strength * update.delta() for member, update in zip(above, meant, strict=True)]
    if not all(np.isfinite(matrix).all() for matrix in matrices):  # allowed by --allow-nonfinite: no directions
        return np.zeros(((meant[0].size or (0, 0))[1 if side == "input" else 0], 0))
    if len(meant) == 1 and isinstance(meant[0], LowRank):
        U, s, V = thin_svd(*pair)
        vt, size = V.T if side == "input" else U.T, (U.shape[0], V.shape[0])
    else:
        joined = np.concatenate(matrices) if side == "input" else np.concatenate(matrices, axis=1).T
        _, s, vt = np.linalg.svd(joined, full_matrices=False)
        size = (joined.shape[0], joined.shape[1])
    return np.ascontiguousarray(vt[: counted(s, size, directions)].T)


def counted(s: Array, size: tuple[int, int], directions: str | int | float) -> int:
    """How many of an update's directions are meant: all that count, the first so many, or a share of their energy.

    >>> counted(np.array([3.0, 1.0, 0.0]), (4, 4), "all"), counted(np.array([3.0, 1.0, 0.0]), (4, 4), 0.9)
    (2, 1)
    """
    rank = numerical_rank(s, size)
    if isinstance(directions, int):
        return min(rank, directions)
    if isinstance(directions, float) and rank:
        energy = np.cumsum(s[:rank] ** 2)
        return int(np.searchsorted(energy, directions * energy[-1] * (1 - 1e-12))) + 1
    return rank


def spanning(update: Update, directions: object) -> Update:
    """The update whose directions are meant: all of a rescaling kind's are those of its low-rank part."""
    if directions == "all" and isinstance(update, Full) and update.around is not None:
        return update.around
    return update
