"""Merges on dense float64 matrices, slow and obvious: what the low-rank ones must agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from methods.updates import live
from nplora.blocks import LEVELS, draw
from nplora.methods import Part

Matrices = Sequence[np.ndarray]


def trim(x: np.ndarray, density: float) -> np.ndarray:
    count = int(density * x.size)
    if count == 0:
        return np.zeros_like(x)
    return x * (np.abs(x) >= np.sort(np.abs(x), axis=None)[-count])


def elect(xs: Matrices, election: str = "total", agreeing: str = "mean") -> np.ndarray:
    vote = sum(xs) if election == "total" else sum(map(np.sign, xs))
    sign = np.where(vote >= 0, 1.0, -1.0)
    agreed = [np.where(x * sign > 0, x, 0.0) for x in xs]
    count = sum((x != 0).astype(float) for x in agreed)
    return sum(agreed) / (np.maximum(count, 1) if agreeing == "mean" else 1)


def drop(xs: Matrices, density: float, seed: int) -> list[np.ndarray]:
    level = max(1, round(density * LEVELS))
    masks = [draw((seed, index), 0, *x.shape) < level for index, x in enumerate(xs)]
    return [x * mask * LEVELS / level for x, mask in zip(xs, masks, strict=True)]


def linear(xs: Matrices, seed: int) -> np.ndarray:
    return sum(xs)


def ties(xs: Matrices, seed: int, density: float = 0.2, election: str = "total", agreeing: str = "mean") -> np.ndarray:
    return elect([trim(x, density) for x in xs], election, agreeing)


def dare(
    xs: Matrices, seed: int, density: float = 0.5, variant: str = "linear", election: str = "total", agreeing="mean"
) -> np.ndarray:
    kept = drop(xs, density, seed)
    return sum(kept) if variant == "linear" else elect(kept, election, agreeing)


def rank_of(s: np.ndarray, shape: tuple[int, ...], size: float = 0.0) -> int:
    return int(np.sum(s > max(shape) * 2.0**-50 * max(s[0], size))) if s.size else 0


def svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    k = rank_of(s, x.shape)
    return u[:, :k], s[:k], vt[:k].T


def polar(x: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    k = int(np.sum(s > 1e-6 * s[0])) if s.size else 0
    return u[:, :k] @ vt[:k]


def tsv(xs: Matrices, seed: int) -> np.ndarray:
    us, ss, vs = zip(*map(svd, xs), strict=True)
    if not sum(s.size for s in ss):
        return np.zeros_like(xs[0])
    return polar(np.hstack(us)) @ np.diag(np.concatenate(ss)) @ polar(np.hstack(vs)).T


def iso_c(xs: Matrices, seed: int) -> np.ndarray:
    total = sum(xs)
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    k = rank_of(s, total.shape, sum(np.linalg.norm(x) for x in xs))
    return s[:k].mean() * u[:, :k] @ vt[:k] if k else np.zeros_like(total)


def knots(xs: Matrices, seed: int, inner: str = "ties", **values) -> np.ndarray:
    side = np.hstack(xs)
    u, s, vt = np.linalg.svd(side, full_matrices=False)
    k = max(1, rank_of(s, side.shape))
    vs = [np.where(np.abs(v) > 1e-12, v, 0.0) for v in np.split(vt[:k], len(xs), axis=1)]  # rounding must not vote
    if inner == "dare":
        values["variant"] = "ties"
    return u[:, :k] * s[:k] @ {"ties": ties, "dare": dare, "linear": linear}[inner](vs, seed, **values)


def in_core(parts: Sequence[Part], rule: Callable[..., np.ndarray], seed: int, **values) -> np.ndarray:
    """A rule on the cores of ``w_i dW_i`` in the bases of all factors, and back."""
    used = [one for one in parts if one.weight] or list(parts[:1])
    U_B, V_A = (principal(np.hstack(stack)) for stack in ([p.weight * p.up for p in used], [p.down.T for p in used]))
    return U_B @ rule([U_B.T @ x @ V_A for x in live(parts)], seed, **values) @ V_A.T


def principal(F: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(F, full_matrices=False)
    k = max(1, rank_of(s, F.shape))
    return u[:, :k] * np.where(vt[:k].sum(axis=1) >= 0, 1.0, -1.0)


# merge -> its reference, and parameters that both understand
REFERENCES: dict[str, tuple[Callable[..., np.ndarray], list[dict[str, object]]]] = {
    "svd": (linear, [{}]),
    "ties": (
        ties,
        [
            {"density": 0.2},
            {"density": 0.7, "election": "frequency"},
            {"density": 1.0, "agreeing": "sum"},
            {"density": 0.0},
        ],
    ),
    "dare": (dare, [{"density": 0.3}, {"density": 0.6, "variant": "ties"}, {"density": 1.0}]),
    "tsv": (tsv, [{}]),
    "iso-c": (iso_c, [{}]),
    "knots": (knots, [{"density": 0.3}, {"inner": "dare", "density": 0.5}, {"inner": "linear"}]),
}
