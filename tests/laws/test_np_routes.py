"""The np method's two routes: Gram matrices where they can be trusted, QR and SVD elsewhere; and single directions."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from unittest.mock import patch

import numpy as np
import pytest

from laws.making import Factors, attenuated, factors, protected, relative
from laws.one_module import (
    EXACT,
    each_mu,
    project,
    projected,
    run,
)  # fmt: skip
from nplora.fusion import projection


@pytest.fixture
def rng():
    return np.random.default_rng(20)


# ------------------------------------------------------------------------------------------ the fallback


@pytest.fixture
def fallback():
    """Counts how often the route by QR and SVD is taken."""
    with patch.object(projection, "_project_by_svd", wraps=projection._project_by_svd) as watched:
        yield watched


def near_parallel(rng, gap: float, out=12, n=24, rank=3) -> Factors:
    """Rows of A that differ by `gap` only: the Gram matrix is ill-conditioned, the update has full rank."""
    row = rng.standard_normal(n)
    return Factors(rng.standard_normal((out, rank)), row + gap * rng.standard_normal((rank, n)))


@each_mu
@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_an_ill_conditioned_gram_matrix_takes_the_fallback_and_is_exact(rng, fallback, mu, gap):
    subject, style = factors(rng, 12, 24, 4, dtype="F64"), near_parallel(rng, gap)
    X, _, count = run(subject, style, mu)
    assert fallback.call_count == 1
    assert count == 3
    # The directions themselves are defined to roundoff / gap only: the dense reference has that error as well.
    assert relative(X, attenuated(subject.dense(), protected(style.dense()), mu)) < max(EXACT, 1e-14 / gap)


def test_where_the_gram_route_would_fail_the_fallback_is_far_better(rng):
    subject, style = factors(rng, 12, 24, 4, dtype="F64"), near_parallel(rng, 1e-7)
    A = style.down
    naive = subject.down - (subject.down @ A.T) @ np.linalg.inv(A @ A.T) @ A
    V = protected(style.dense())
    assert np.linalg.norm(naive @ V) > 1e-4  # H squares the condition number: 1e14 leaves no digit
    assert np.linalg.norm(projected(subject, style, inf) @ V) < 1e-6 * np.linalg.norm(subject.dense())


@pytest.mark.parametrize("style", ["random", "orthonormal"])
def test_ordinary_styles_take_the_fast_route(rng, fallback, style):
    module = factors(rng, 64, 48, 4)
    if style == "orthonormal":
        module = replace(module, down=np.linalg.qr(module.down.T)[0].T)
    run(factors(rng, 64, 48, 4), module, 0.5)
    assert fallback.call_count == 0


def test_one_bad_module_of_a_batch_takes_the_fallback_alone(rng, fallback):
    styles = [factors(rng, 12, 24, 3, dtype="F64") for _ in range(4)]
    styles[2] = near_parallel(rng, 1e-6)
    subject = factors(rng, 12, 24, 4, dtype="F64")
    stacks = [
        np.stack([getattr(module, side) for module in modules])
        for modules in ([subject] * 4, styles)
        for side in ("up", "down")
    ]
    down, _ = project(*stacks, inf)
    assert fallback.call_count == 1
    for index, style in enumerate(styles):
        wanted = attenuated(subject.dense(), protected(style.dense()), inf)
        assert relative(subject.up @ down[index], wanted) < 1e-8


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@each_mu
def test_rows_of_very_different_size_are_no_bad_condition(rng, fallback, dtype, mu):
    """Scaling a row of A and the column of B against it changes the Gram matrix and not the update."""
    subject, style = factors(rng, 40, 30, 3), factors(rng, 40, 30, 3)
    sizes = np.array([1.0, 1e-3, 1e3], np.float32)
    scaled = replace(style, up=style.up / sizes, down=style.down * sizes[:, None])
    assert relative(projected(subject, scaled, mu), projected(subject, style, mu)) < 1e-5
    assert fallback.call_count == 0


# ------------------------------------------------------------------------------------------ directions


def spectrum(rng, s, out=20, n=26) -> Factors:
    """An update with given singular values, behind a random rotation of its ranks."""
    s = np.asarray(s, np.float64)
    rank = s.size
    left, right = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (out, n))
    rotation = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    return Factors(left * s @ rotation.T, rotation @ right.T)


@pytest.mark.parametrize(
    ("directions", "count"),
    [("all", 5), (1, 1), (3, 3), (5, 5), (64, 5), (0.5, 1), (0.8, 2), (0.95, 3), (0.99, 4), (1.0, 5)],
)
def test_how_many_directions_are_protected(rng, directions, count):
    """Energies 16, 8, 4, 2, 1 of 31: shares .52, .77, .90, .97, 1."""
    style = spectrum(rng, np.sqrt([16, 8, 4, 2, 1]))
    expected = {0.95: 4, 0.9: 3, 0.8: 3, 0.99: 5}.get(directions, count)
    assert run(factors(rng, 20, 26, 4), style, 0.5, directions)[2] == expected


@pytest.mark.parametrize("decay", [0.5, 0.1, 1e-2])
@pytest.mark.parametrize("mu", [0.5, inf])
def test_as_many_directions_as_ranks_are_all_directions(rng, decay, mu):
    subject, style = factors(rng, 20, 26, 4, dtype="F64"), spectrum(rng, decay ** np.arange(5))
    everything = projected(subject, style, mu)
    for directions in (5, 100):
        assert relative(projected(subject, style, mu, directions), everything) < 1e-6


@pytest.mark.parametrize("directions", [1, 2, 3, 0.5, 0.9])
@each_mu
def test_directions_of_an_ill_conditioned_style_come_from_the_fallback(rng, fallback, directions, mu):
    style = spectrum(rng, [3.0, 1.0, 0.3, 0.1])
    G = np.eye(4)
    G[0, 1:] = 1e4  # rows of A nearly parallel, the update as it was
    style = Factors(style.up @ np.linalg.inv(G), G @ style.down)
    subject = factors(rng, 20, 26, 4, dtype="F64")
    got = projected(subject, style, mu, directions)
    assert fallback.call_count == 1
    assert relative(got, attenuated(subject.dense(), protected(style.dense(), directions), mu)) < 1e-6


@pytest.mark.parametrize("mu", [0.5, inf])
def test_the_weakest_direction_that_counts_is_protected_when_it_is_asked_for(rng, mu):
    """Numerical rank is a matter of s_i > max(out, n) 2^-52 s_1, however the directions are chosen."""
    subject, style = factors(rng, 20, 26, 4, dtype="F64"), spectrum(rng, [1.0, 1e-3, 1e-9])
    assert run(subject, style, mu, "all")[2] == 3
    assert run(subject, style, mu, 3)[2] == 3
    assert relative(projected(subject, style, mu, 3), projected(subject, style, mu)) < 1e-5


@pytest.mark.parametrize("decay", [0.3, 0.1, 1e-2])
@pytest.mark.parametrize("directions", [1, 2, 3, 4, 0.99])
def test_float32_arithmetic_keeps_single_directions_apart(rng, decay, directions):
    """Files of 16 bits are computed in float32; a Gram matrix of that would lose every s_i below 3e-4 s_1."""
    subject, style = factors(rng, 40, 60, 4), spectrum(rng, decay ** np.arange(5), 40, 60)
    style = replace(style, up=style.up.astype(np.float32), down=style.down.astype(np.float32))
    arrays = [array[None].astype(np.float32) for array in (subject.up, subject.down, style.up, style.down)]
    down, _ = project(*arrays, inf, directions)
    assert down.dtype == np.float32
    wanted = attenuated(subject.dense(), protected(style.dense(), directions), inf)
    # Below 1e-7 s_1 the rounding of the factors themselves decides where a direction points.
    if isinstance(directions, float) or decay ** (directions - 1) > 1e-7:
        assert relative(subject.up.astype(np.float64) @ down[0].astype(np.float64), wanted) < 1e-6
