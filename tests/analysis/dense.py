"""Updates of one weight as nplora's types, and what NumPy and SciPy say of their dense products."""

from __future__ import annotations

import numpy as np

from nplora.adapters import Factor, LowRank
from nplora.fusion.jobs import Job
from nplora.reading.adapter import Module
from nplora.storage import Tensor

Pair = tuple[np.ndarray, np.ndarray]


def factors(rng: np.random.Generator, out: int, n: int, rank: int) -> Pair:
    return rng.standard_normal((out, rank)), rng.standard_normal((rank, n))


def factor(array: np.ndarray, key: str = "x") -> Factor:
    return Factor(Tensor.of(key, np.ascontiguousarray(array)))


def module(pair: Pair, scale: float = 1.0, name: str = "unet.x") -> Module:
    return Module(name, LowRank(factor(pair[0]), factor(pair[1]), scale, "alpha"), None)


def job(subject: Pair, style: Pair, scales: tuple[float, float] = (1.0, 1.0), key: str = "input:x") -> Job:
    one, two = ((factor(up), factor(down)) for up, down in (subject, style))
    return Job(key, key.partition(":")[2], one, two, scales)


def bases(product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the row space and the column space."""
    U, s, Vt = np.linalg.svd(product, full_matrices=False)
    k = int(np.sum(s > 1e-10 * s[0]))
    return Vt[:k].T, U[:, :k]
