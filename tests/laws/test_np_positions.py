"""The np method where one side lies in a special position to the other, or is not all there."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import numpy as np
import pytest

from laws.making import Factors, attenuated, factors, g_of, protected, relative
from laws.one_module import (
    EXACT,
    each_mu,
    each_side,
    fused_delta,
    fusion,
    projected,
    regauged,
    run,
)  # fmt: skip

# ------------------------------------------------------------------------------------------ special positions


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@each_mu
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_row_spaces_give_the_subject_at_one_part_in_one_plus_mu(rng, mu, rank):
    style = factors(rng, 9, 11, rank, dtype="F64")
    subject = Factors(rng.standard_normal((9, rank)), rng.standard_normal((rank, rank)) @ style.down)
    assert (
        relative(projected(subject, style, mu), subject.dense() * (1 - g_of(mu)), np.linalg.norm(subject.dense()))
        < EXACT
    )


@each_mu
@each_side
def test_identical_inputs_give_two_plus_mu_over_one_plus_mu(rng, mu, side):
    module = factors(rng, 8, 13, 4)
    wanted = module.dense() * (2 - g_of(mu))
    assert relative(fused_delta(module, module, mu=mu, side=side), wanted) < EXACT


@each_mu
def test_orthogonal_row_spaces_give_the_sum(rng, mu):
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0].T
    subject, style = (Factors(rng.standard_normal((6, 3)), basis[rows]) for rows in (slice(0, 3), slice(3, 6)))
    assert relative(projected(subject, style, mu), subject.dense()) < EXACT
    assert run(subject, style, mu)[1] < 1e-20


@each_mu
def test_a_zero_style_protects_nothing(rng, mu):
    subject = factors(rng, 6, 7, 3)
    style = replace(factors(rng, 6, 7, 3), up=np.zeros((6, 3), np.float32))
    X, inside, count = run(subject, style, mu)
    assert relative(X, subject.dense()) < EXACT
    assert (inside, count) == (0, 0)


@each_mu
def test_a_zero_subject_gives_the_style(rng, mu):
    subject = replace(factors(rng, 6, 7, 3), up=np.zeros((6, 3), np.float32))
    style = factors(rng, 6, 7, 3)
    assert relative(fused_delta(subject, style, mu=mu), style.dense()) < 1e-14
    (found,) = fusion(subject, style, mu=mu).overlaps.values()
    assert found.rho == 0.0


def test_a_style_that_spans_the_whole_input_erases_the_subject_when_hard(rng):
    subject, style = factors(rng, 9, 4, 2), factors(rng, 9, 4, 6)
    X, _, count = run(subject, style, inf)
    assert count == 4
    assert np.linalg.norm(X) < EXACT * np.linalg.norm(subject.dense())


@each_mu
def test_more_ranks_than_rows_protect_no_more_than_the_rows_use(rng, mu):
    """r > out: the row space of dW_s has at most `out` dimensions, that of A_s more."""
    subject, style = factors(rng, 3, 20, 5), factors(rng, 3, 20, 8)
    X, _, count = run(subject, style, mu)
    assert count == 3
    assert relative(X, attenuated(subject.dense(), protected(style.dense()), mu)) < EXACT


def test_hard_on_the_output_side_the_subject_writes_nothing_that_the_style_writes(rng):
    subject, style = factors(rng, 9, 11, 3), factors(rng, 9, 11, 4)
    X = fused_delta(subject, style, mu=inf, side="output") - style.dense()
    U = protected(style.dense().T)
    assert np.linalg.norm(U.T @ X) < 1e-9 * np.linalg.norm(subject.dense())
    assert np.linalg.norm(X) > 0.1 * np.linalg.norm(subject.dense())


def test_hard_and_symmetric_both_lose_what_they_share(rng):
    """Of equal row spaces nothing is left, of orthogonal ones everything."""
    style = factors(rng, 9, 11, 3, dtype="F64")
    same = Factors(rng.standard_normal((9, 3)), rng.standard_normal((3, 3)) @ style.down)
    left = fused_delta(same, style, mu=inf, protect="subject = style")
    assert np.linalg.norm(left) < EXACT * np.linalg.norm(style.dense())
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0].T
    one, two = (Factors(rng.standard_normal((6, 3)), basis[rows]) for rows in (slice(0, 3), slice(3, 6)))
    assert relative(fused_delta(one, two, mu=inf, protect="subject = style"), one.dense() + two.dense()) < EXACT


# ------------------------------------------------------------------------------------------ dead ranks


def dead_style(rng, alive=2, dead=3):
    """Zero columns in B beside random rows in A: they are in the file and not in the update."""
    style = factors(rng, 10, 16, alive + dead, dtype="F64")
    style.up[:, alive:] = 0
    return style


@each_mu
def test_dead_ranks_protect_nothing(rng, mu):
    subject, style = factors(rng, 10, 16, 4), dead_style(rng)
    X, _, count = run(subject, style, mu)
    assert count == 2
    assert relative(X, attenuated(subject.dense(), protected(style.dense()), mu)) < EXACT


def test_the_row_space_of_the_down_factor_alone_would_be_wrong(rng):
    """What a QR of A_s protects differs by far from what the update uses."""
    subject, style = factors(rng, 10, 16, 4), dead_style(rng)
    naive = np.linalg.qr(style.down.T)[0]
    wrong = attenuated(subject.dense(), naive, inf)
    assert relative(wrong, projected(subject, style, inf)) > 0.1


@each_mu
def test_padding_the_style_with_dead_ranks_changes_nothing(rng, mu):
    subject, style = factors(rng, 10, 16, 4), factors(rng, 10, 16, 2)
    padded = Factors(
        np.hstack([style.up, np.zeros((10, 3), np.float32)]),
        np.vstack([style.down, rng.standard_normal((3, 16)).astype(np.float32)]),
    )
    assert relative(projected(subject, padded, mu), projected(subject, style, mu)) < EXACT


@each_mu
def test_ranks_that_cancel_in_the_product_are_dead_too(rng, mu):
    """B has two opposite columns on equal rows of A: neither factor looks dead."""
    subject, style = factors(rng, 10, 16, 4), factors(rng, 10, 16, 3, dtype="F64")
    style.up[:, 1], style.down[1] = -style.up[:, 0], style.down[0]
    X, _, count = run(subject, style, mu)
    assert count == 1
    assert relative(X, attenuated(subject.dense(), protected(style.dense()), mu)) < EXACT


@pytest.mark.parametrize("seed", range(20))
def test_rounding_that_other_factors_of_one_update_leave_behind_is_no_direction(seed):
    """Thirty ranks of which all but one are dead, with large rows in A, behind a change of basis: the rest is noise."""
    rng = np.random.default_rng(seed)
    style = factors(rng, 6, 8, 30, dtype="F64")
    style.up[:, :29] = 0
    style.down[:29] *= 100
    subject, other = factors(rng, 6, 8, 3, dtype="F64"), regauged(rng, style)
    X, _, count = run(subject, other, inf)
    assert count == 1
    assert relative(X, projected(subject, style, inf), np.linalg.norm(subject.dense())) < 1e-9


# ------------------------------------------------------------------------------------------ regimes


def test_unrelated_row_spaces_overlap_by_chance(rng):
    """E[rho] = k / n."""
    rhos = [
        next(iter(fusion(factors(rng, 32, 64, 4), factors(rng, 32, 64, 4)).overlaps.values())) for _ in range(40)
    ]  # fmt: skip
    mean = np.mean([found.rho for found in rhos])
    assert mean == pytest.approx(4 / 64, rel=0.15)


def test_how_far_the_projection_moves_the_subject(rng):
    """||X - dW_c|| / ||dW_c|| = g sqrt(rho)."""
    subject, style = factors(rng, 30, 40, 4), factors(rng, 30, 40, 6)
    (found,) = fusion(subject, style).overlaps.values()
    moved = relative(projected(subject, style, 0.5), subject.dense())
    assert moved == pytest.approx(sqrt(found.rho) / 3, rel=1e-5)
