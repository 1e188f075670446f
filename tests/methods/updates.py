"""Updates for the tests of merges: factors, what they multiply to, and what hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from nplora.methods import Part, Product, all_merges

EXACT = 1e-9  # float64 against float64; what is left is the condition of random matrices


@dataclass(frozen=True)
class Library:
    """How arrays get into an array library and back."""

    into: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]


def strict() -> Library:
    library = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    return Library(library.asarray, lambda array: np.asarray(array._array))


def torch() -> Library:
    library = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("array_api_compat", reason="array-api-compat is not installed")
    return Library(library.from_numpy, lambda array: array.numpy())


def run(name: str, parts: Sequence[Part], *, seed: int = 0, **values: object) -> Product:
    """A merge by its name."""
    return all_merges()[name](parts, seed=seed, **values)


def merged(name: str, parts: Sequence[Part], *, seed: int = 0, **values: object) -> np.ndarray:
    """The dense result of a merge."""
    return dense(run(name, parts, seed=seed, **values))


def dense(product: Part | Product) -> np.ndarray:
    weight = getattr(product, "weight", 1.0)
    return weight * (product.up @ product.down)


def part(rng: np.random.Generator, out: int, width: int, rank: int, weight: float = 1.0) -> Part:
    """Random factors of an update of ordinary size."""
    return Part(rng.standard_normal((out, rank)) / np.sqrt(rank), rng.standard_normal((rank, width)), weight)


def of(matrix: np.ndarray, weight: float = 1.0) -> Part:
    """A dense matrix as an update."""
    return Part(matrix, np.eye(matrix.shape[1]), weight)


def regauged(rng: np.random.Generator, one: Part) -> Part:
    """(B G^-1, G A): the same update from other factors."""
    rank = one.up.shape[1]
    G = np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.2, 5.0, rank)
    return Part(one.up @ np.linalg.inv(G), G @ one.down, one.weight)


def orthogonal(rng: np.random.Generator, out: int, width: int, ranks: Sequence[int]) -> list[Part]:
    """Updates whose row spaces and column spaces are orthogonal to each other's."""
    total = sum(ranks)
    left = np.linalg.qr(rng.standard_normal((out, total)))[0]
    right = np.linalg.qr(rng.standard_normal((width, total)))[0]
    parts, start = [], 0
    for rank in ranks:
        own = slice(start, start + rank)
        mix = rng.standard_normal((rank, rank))
        parts.append(Part(left[:, own] @ mix, rng.standard_normal((rank, rank)) @ right[:, own].T))
        start += rank
    return parts


def distance(got: np.ndarray, wanted: np.ndarray, parts: Sequence[Part] = ()) -> float:
    """Frobenius distance, relative to the parts' sizes (what is wanted may cancel) or to what is wanted."""
    size = sum(float(np.linalg.norm(dense(one))) for one in parts) or float(np.linalg.norm(wanted)) or 1.0
    return float(np.linalg.norm(got - wanted)) / size


weights = st.sampled_from([1.0, 0.7, -0.5, 2.0, 0.0])


@st.composite
def several(draw: st.DrawFn, most: int = 3) -> list[Part]:
    """One to three updates of one module: unequal ranks, any strengths, at times equal, zero or with dead ranks."""
    out, width = draw(st.integers(2, 14)), draw(st.integers(2, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts: list[Part] = []
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["plain", "plain", "plain", "zero", "dead rank", "again"]))
        weight = draw(weights)
        if kind == "again" and parts:
            parts.append(Part(parts[0].up, parts[0].down, 0.9))  # cancels with no other: rounding would elect signs
            continue
        one = part(rng, out, width, draw(st.integers(1, 5)), weight)
        if kind == "zero":
            one.up[:] = 0
        elif kind == "dead rank":
            one.up[:, 0] = 0
        parts.append(one)
    return parts


def live(parts: Sequence[Part]) -> list[np.ndarray]:
    """``w_i dW_i`` without those of strength 0."""
    return [dense(one) for one in parts if one.weight] or [dense(parts[0])]
