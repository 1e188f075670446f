"""Merges on dense float64 matrices, slow and obvious: what the low-rank ones must agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from methods.updates import live
from nplora.algebra.blocks import LEVELS, draw
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
    if density == 0:
        return [np.zeros_like(x) for x in xs]
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


def magnitude(xs: Matrices, seed: int, density: float = 0.2) -> np.ndarray:
    return sum(trim(x, density) for x in xs)


def crumbs(x: np.ndarray, density: float, outliers: float) -> np.ndarray:
    """The entries in order of magnitude, from number `top` on, as many as the density asks for."""
    order = np.argsort(-np.abs(x), axis=None)
    top = int(outliers * x.size)
    mask = np.zeros(x.size)
    mask[order[top : top + int(density * x.size)]] = 1
    return x * mask.reshape(x.shape)


def breadcrumbs(xs: Matrices, seed: int, density: float = 0.9, outliers: float = 0.01) -> np.ndarray:
    return sum(crumbs(x, density, outliers) for x in xs)


def della(
    xs: Matrices, seed: int, density=0.5, epsilon=0.15, variant="ties", election="total", agreeing="mean"
) -> np.ndarray:
    kept = []
    for index, x in enumerate(xs):
        if density == 0:
            return np.zeros_like(x)
        out, width = x.shape
        ranks = np.argsort(np.argsort(np.abs(x), axis=1), axis=1)
        p = density - epsilon + 2 * epsilon * ranks / (width - 1) if width > 1 else np.full(x.shape, density)
        level = np.clip(np.round(p * LEVELS), 1, LEVELS)
        kept.append(x * (draw((seed, index), 0, out, width) < level) * LEVELS / level)
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


def iso_cts(xs: Matrices, seed: int, common: float = 0.8) -> np.ndarray:
    xs = [x for x in xs if np.any(x)]
    if not xs:
        return np.zeros(1)
    total = sum(xs)
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    R = max(1, rank_of(s, total.shape, sum(np.linalg.norm(x) for x in xs)))
    own = min(round((R - int(common * R + 1e-9)) / len(xs)), R // len(xs))
    kept = R - own * len(xs)
    us, ss, vs = [u[:, :kept]], [s[:kept]], [vt[:kept].T]
    for x in xs:
        rest_u, rest_s, rest_vt = np.linalg.svd(x - us[0] @ us[0].T @ x, full_matrices=False)
        count = min(own, int(np.sum(rest_s > 1e-9 * s[0])))
        us.append(rest_u[:, :count])
        ss.append(rest_s[:count])
        vs.append(rest_vt[:count].T)
    return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.hstack(vs)).T


def do_merging(xs: Matrices, seed: int) -> np.ndarray:
    done: list[np.ndarray] = []
    for x in reversed(xs):
        v = x.ravel().copy()
        for other in done:
            if np.any(other):
                v -= (v @ other) / (other @ other) * other
        own = np.linalg.norm(v) > 1e-6 * np.linalg.norm(x)
        done.append(v * np.linalg.norm(x) / np.linalg.norm(v) if own else x.ravel())
    return sum(done).reshape(xs[0].shape)


def np_bilateral(xs: Matrices, seed: int, mu: float = 0.5) -> np.ndarray:
    g, total = 1.0 if mu == np.inf else mu / (1 + mu), np.zeros_like(xs[0])
    for index, x in enumerate(xs):
        U, V = spaces(xs[index + 1 :], x.shape)
        total = total + x - g * U @ U.T @ x @ V @ V.T
    return total


def spaces(xs: Matrices, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the column spaces and of the row spaces of some updates together."""
    found = [svd(x) for x in xs]
    return tuple(
        svd(np.hstack([np.zeros((size, 1)), *sides]))[0]
        for size, sides in zip(shape, ([u for u, _, _ in found], [v for _, _, v in found]), strict=True)
    )


def np_adaptive(xs: Matrices, seed: int, kappa: float = 0.5, eta: float = 0.0, chance: bool = False) -> np.ndarray:
    total = np.zeros_like(xs[0])
    for index, x in enumerate(xs):
        later = xs[index + 1 :]
        _, V = spaces(later, x.shape)
        inside, content = np.linalg.norm(x @ V) ** 2, np.linalg.norm(x) ** 2
        if not (V.size and inside and content):
            total = total + x
            continue
        style, rho, (n, k) = sum(np.linalg.norm(y) ** 2 for y in later), min(inside / content, 1.0), V.shape
        with np.errstate(divide="ignore"):
            mu = max(0.0, np.sqrt(inside / style) / np.float64(kappa) - 1)
        if chance:
            mu = mu * (rho - k / n) / (1 - k / n) if k < n and rho > k / n else 0.0
        if eta - 1 + rho > 0:
            mu = min(mu, np.sqrt(rho / (eta - 1 + rho)) - 1)
        g = 1.0 if mu == np.inf else mu / (1 + mu)
        total = total + x - g * x @ V @ V.T
    return total


def knots(xs: Matrices, seed: int, inner: str = "ties", **values) -> np.ndarray:
    side = np.hstack(xs)
    u, s, vt = np.linalg.svd(side, full_matrices=False)
    k = max(1, rank_of(s, side.shape))
    sV = s[:k, None] * vt[:k]
    vs = [np.where(np.abs(v) > 1e-12 * s[0], v, 0.0) for v in np.split(sV, len(xs), axis=1)]  # rounding must not vote
    if inner == "dare":
        values["variant"] = "ties"
    return u[:, :k] @ {"ties": ties, "dare": dare, "linear": linear}[inner](vs, seed, **values)


def pico(xs: Matrices, seed: int, inner: str = "linear", rescale: str = "each", **values) -> np.ndarray:
    xs = [x for x in xs if np.any(x)] or xs[:1]
    U, s, _ = np.linalg.svd(np.hstack([np.zeros((len(xs[0]), 0)), *xs]), full_matrices=False)
    share = s**2 / (np.sum(s**2) or 1.0)
    calm = [x - U @ np.diag(1 - 1 / (1 + (len(xs) - 1) * share)) @ U.T @ x for x in xs]
    norms = [np.linalg.norm(x) for x in xs]
    if rescale == "each":
        calm = [y * norm / (np.linalg.norm(y) or 1.0) for y, norm in zip(calm, norms, strict=True)]
    merged = {"linear": linear, "ties": ties, "tsv": tsv}[inner](calm, seed, **values)
    size = np.linalg.norm(merged)
    return merged * np.mean(norms) / size if rescale == "merged" and size else merged


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
    "dare": (dare, [{"density": 0.3}, {"density": 0.6, "variant": "ties"}, {"density": 1.0}, {"density": 0.0}]),
    "tsv": (tsv, [{}]),
    "iso-c": (iso_c, [{}]),
    "magnitude": (magnitude, [{}, {"density": 1.0}]),
    "breadcrumbs": (
        breadcrumbs,
        [{"density": 0.5, "outliers": 0.1}, {"outliers": 0.0}, {"density": 1.0, "outliers": 1.0}],
    ),
    "della": (della, [{}, {"variant": "linear", "density": 0.9, "epsilon": 0.3}, {"density": 0.0}]),
    "iso-cts": (iso_cts, [{"common": 0.5}, {"common": 1.0}]),
    "do-merging": (do_merging, [{}]),
    "np-bilateral": (np_bilateral, [{}, {"mu": np.inf}, {"mu": 0.0}]),
    "np-adaptive": (
        np_adaptive,
        [{}, {"kappa": 0.0}, {"kappa": 0.2, "eta": 0.8}, {"kappa": 0.1, "chance": True}, {"kappa": np.inf}],
    ),
    "pico": (
        pico,
        [{}, {"rescale": "merged"}, {"rescale": "nothing"}, {"inner": "tsv"}, {"inner": "ties", "density": 0.5}],
    ),
    "knots": (knots, [{"density": 0.3}, {"inner": "dare", "density": 0.5}, {"inner": "linear"}]),
}
