"""The variants of NP-LoRA: what each of them promises."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws.making import protected
from methods.updates import EXACT, dense, distance, merged, orthogonal, part, regauged, run
from nplora.fusion.projection import project
from nplora.methods import Part, all_methods
from nplora.methods.np_adaptive import Overlap, mu_of

mus = st.sampled_from([0.0, 0.1, 0.5, 2.0, 100.0, inf])
seeds = st.integers(0, 99)


def projected(name: str, subject: Part, style: Part, **values: object) -> np.ndarray:
    """The fused subject by a projection."""
    with np.errstate(all="ignore"):
        arrays = (array[None] for array in (subject.up, subject.down, style.up, style.down))
        down, _ = project(*arrays, all_methods()[name], values)
    return subject.up @ down[0]


def graded(dW_c: np.ndarray, dW_s: np.ndarray, mu: float) -> np.ndarray:
    _, s, vt = np.linalg.svd(dW_s, full_matrices=False)
    k = int(np.sum(s > 1e-12 * s[0]))
    s, V = s[:k], vt[:k].T
    a = np.ones(k) if mu == inf else mu * s**2 / (s[0] ** 2 + mu * s**2)
    return dW_c - dW_c @ V @ np.diag(a) @ V.T


def pair(seed: int) -> tuple[Part, Part]:
    rng = np.random.default_rng(seed)
    return part(rng, 11, 13, int(rng.integers(1, 6))), part(rng, 11, 13, int(rng.integers(1, 6)))


# ------------------------------------------------------------------------------------------ one operator


def weight_of_style(name: str, dW_s: np.ndarray) -> np.ndarray:
    """C_s (n, n): which inputs matter to the style, by the projection's own reading."""
    V = protected(dW_s)
    return V @ V.T if name == "np" else dW_s.T @ dW_s / np.linalg.norm(dW_s, 2) ** 2


@pytest.mark.parametrize("name", ["np", "np-spectral"])
@given(seeds, st.sampled_from([0.0, 0.1, 0.5, 2.0, 100.0]))
def test_a_projection_is_the_general_operator_with_its_own_c_s(name, seed, mu):
    """``X = D_c C_c (C_c + mu C_s)^-1`` with ``C_c = I``."""
    subject, style = pair(seed)
    wanted = dense(subject) @ np.linalg.inv(np.eye(13) + mu * weight_of_style(name, dense(style)))
    assert distance(projected(name, subject, style, mu=mu), wanted, [subject]) < 1e-8


@pytest.mark.parametrize("name", ["np", "np-spectral"])
@given(seeds, st.sampled_from([0.1, 0.5, 5.0]))
def test_a_projection_is_the_least_of_its_objective(name, seed, mu):
    """``min_X ||X - D_c||^2 + mu tr(X C_s X^T)``."""
    subject, style = pair(seed)
    C, X, rng = weight_of_style(name, dense(style)), projected(name, subject, style, mu=mu), np.random.default_rng(seed)

    def cost(Y: np.ndarray) -> float:
        return np.linalg.norm(Y - dense(subject)) ** 2 + mu * np.trace(Y @ C @ Y.T)

    for _ in range(5):
        assert cost(X) <= cost(X + 1e-3 * rng.standard_normal(X.shape))


# ------------------------------------------------------------------------------------------ by the spectrum


@given(seeds, mus, st.sampled_from(["plain", "dead rank", "more ranks than directions", "tiny direction"]))
def test_np_spectral_attenuates_by_the_style_s_spectrum(seed, mu, kind):
    subject, style = pair(seed)
    if kind == "dead rank":
        style = Part(np.hstack([style.up, np.zeros((11, 1))]), np.vstack([style.down, np.ones((1, 13))]))
    elif kind == "more ranks than directions":
        style = Part(np.hstack([style.up, style.up]), np.vstack([style.down, style.down]))
    elif kind == "tiny direction":
        style.up[:, -1] *= 1e-5
    got = projected("np-spectral", subject, style, mu=mu)
    assert distance(got, graded(dense(subject), dense(style), mu), [subject]) < 1e-7


@given(seeds, mus)
def test_np_spectral_of_equal_singular_values_is_np(seed, mu):
    rng = np.random.default_rng(seed)
    subject = part(rng, 11, 13, 3)
    style = Part(3 * np.linalg.qr(rng.standard_normal((11, 4)))[0], np.linalg.qr(rng.standard_normal((13, 4)))[0].T)
    spectral, plain = (projected(name, subject, style, mu=mu) for name in ("np-spectral", "np"))
    assert distance(spectral, plain, [subject]) < EXACT


@given(seeds, mus, st.sampled_from([1e-3, 0.3, -2.0]))
def test_np_spectral_does_not_see_the_style_s_strength_or_its_factors(seed, mu, strength):
    subject, style = pair(seed)
    other = regauged(np.random.default_rng(seed), Part(strength * style.up, style.down))
    one, two = (projected("np-spectral", subject, s, mu=mu) for s in (style, other))
    assert distance(one, two, [subject]) < 1e-7


@given(seeds)
def test_np_spectral_without_its_last_direction_is_that_of_a_rank_less(seed):
    subject, style = pair(seed)
    u, s, vt = np.linalg.svd(dense(style), full_matrices=False)
    k = style.up.shape[1]
    found = [
        projected("np-spectral", subject, Part(u[:, :k] * np.append(s[: k - 1], last), vt[:k]), mu=0.5)
        for last in (1e-9, 0)
    ]
    assert distance(*found, [subject]) < 1e-8 or k == 1


# ------------------------------------------------------------------------------------------ adaptive


@given(seeds, st.sampled_from([0.05, 0.25, 0.5, 1.0, 2.0]))
def test_np_adaptive_keeps_the_leakage_within_its_budget(seed, kappa):
    subject, style = pair(seed)
    V = protected(dense(style))
    X = merged("np-adaptive", [subject, style], kappa=kappa) - dense(style)
    before, allowed = np.linalg.norm(dense(subject) @ V), kappa * np.linalg.norm(dense(style))
    assert np.linalg.norm(X @ V) == pytest.approx(min(before, allowed), rel=1e-9)
    if before <= allowed:
        assert distance(X, dense(subject)) < EXACT


@given(seeds, st.floats(0.3, 1.0))
def test_np_adaptive_keeps_the_content_floor(seed, eta):
    subject, style = pair(seed)
    X = merged("np-adaptive", [subject, style], kappa=0.0, eta=eta) - dense(style)
    assert np.linalg.norm(X) ** 2 >= eta * np.linalg.norm(dense(subject)) ** 2 * (1 - 1e-9)


@given(seeds, st.sampled_from([1e-3, 7.0]))
def test_np_adaptive_scales_with_both_inputs(seed, factor):
    subject, style = pair(seed)
    scaled = [Part(factor * one.up, one.down) for one in (subject, style)]
    assert distance(merged("np-adaptive", scaled), factor * merged("np-adaptive", [subject, style])) < EXACT


def test_np_adaptive_without_a_budget_is_the_sum_and_with_none_left_is_hard():
    subject, style = pair(3)
    assert distance(merged("np-adaptive", [subject, style], kappa=inf), dense(subject) + dense(style)) < EXACT
    V = protected(dense(style))
    hard = dense(subject) @ (np.eye(13) - V @ V.T) + dense(style)
    assert distance(merged("np-adaptive", [subject, style], kappa=0.0), hard) < EXACT


def test_chance_overlap_is_left_alone():
    found = Overlap(inside=0.25, content=1.0, style=0.01, k=2, n=8)
    assert mu_of(found, kappa=1.0, eta=0.0, chance=True) == 0
    assert mu_of(found, kappa=1.0, eta=0.0, chance=False) == pytest.approx(4.0)
    half = Overlap(inside=0.625, content=1.0, style=0.01, k=2, n=8)  # half way from chance to all
    assert mu_of(half, 1.0, 0.0, chance=True) == pytest.approx(mu_of(half, 1.0, 0.0, chance=False) / 2)


@pytest.mark.parametrize("name", ["np-adaptive", "np-bilateral"])
@given(seed=seeds)
def test_orthogonal_updates_are_added_and_the_last_is_untouched(name, seed):
    parts = orthogonal(np.random.default_rng(seed), 14, 16, [2, 3, 1])
    assert distance(merged(name, parts), sum(map(dense, parts))) < EXACT
    assert distance(merged(name, parts[-1:]), dense(parts[-1])) < EXACT


@given(seed=seeds)
def test_hard_np_adaptive_of_three_keeps_each_from_all_later_ones(seed):
    rng = np.random.default_rng(seed)
    parts = [part(rng, 14, 16, rank) for rank in (2, 3, 4)]
    X = [merged("np-adaptive", parts[j:], kappa=0.0) - merged("np-adaptive", parts[j + 1 :], kappa=0.0) for j in (0, 1)]
    for j in (0, 1):
        for later in parts[j + 1 :]:
            assert np.linalg.norm(X[j] @ protected(dense(later))) < 1e-9 * np.linalg.norm(dense(parts[j]))


# ------------------------------------------------------------------------------------------ both sides


@given(seeds)
def test_hard_np_bilateral_leaves_the_style_its_own_core(seed):
    subject, style = pair(seed)
    u, s, vt = np.linalg.svd(dense(style), full_matrices=False)
    k = style.up.shape[1]
    got = merged("np-bilateral", [subject, style], mu=inf)
    assert distance(u[:, :k].T @ got @ vt[:k].T, np.diag(s[:k])) < 1e-8
    assert run("np-bilateral", [subject, style], mu=inf).up.shape[1] <= subject.up.shape[1] + k


@given(seeds, st.sampled_from([0.1, 0.5, 5.0]))
def test_np_bilateral_is_the_least_of_its_objective(seed, mu):
    subject, style = pair(seed)
    X = merged("np-bilateral", [subject, style], mu=mu) - dense(style)
    u, _, vt = np.linalg.svd(dense(style), full_matrices=False)
    U, V = u[:, : style.up.shape[1]], vt[: style.up.shape[1]].T

    def cost(Y: np.ndarray) -> float:
        return np.linalg.norm(Y - dense(subject)) ** 2 + mu * np.linalg.norm(U.T @ Y @ V) ** 2

    rng = np.random.default_rng(seed)
    for _ in range(5):
        assert cost(X) <= cost(X + 1e-3 * rng.standard_normal(X.shape))


@given(seeds, mus)
def test_np_bilateral_does_not_know_inputs_from_outputs(seed, mu):
    parts = pair(seed)
    turned = [Part(one.down.T, one.up.T) for one in parts]
    assert distance(merged("np-bilateral", turned, mu=mu).T, merged("np-bilateral", list(parts), mu=mu)) < 1e-8
