"""What two updates have to do with each other, against dense references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from analysis.dense import Pair, bases, factors, job
from nplora.analysis.meeting import Meeting, meet
from nplora.analysis.signs import SAMPLE, expected_share, sampled_rows


def met(subject: Pair, style: Pair, scales: tuple[float, float] = (1.0, 1.0)) -> Meeting:
    return meet([job(subject, style, scales)])["input:x"]


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_angles_energies_and_signs_are_the_dense_ones(out: int, n: int, r_c: int, r_s: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    subject, style = factors(rng, out, n, r_c), factors(rng, out, n, r_s)
    found = met(subject, style, (0.5, -2.0))
    one, two = 0.5 * subject[0] @ subject[1], -2.0 * style[0] @ style[1]
    for cosines, a, b in zip((found.row_cosines, found.column_cosines), bases(one), bases(two), strict=True):
        wanted = np.sort(np.cos(subspace_angles(a, b)))[::-1]
        assert np.allclose(cosines, wanted, atol=1e-5)
    assert found.subject == pytest.approx(np.sum(one**2))
    assert found.style == pytest.approx(np.sum(two**2))
    assert found.inner == pytest.approx(np.sum(one * two), abs=1e-9 * np.sqrt(found.subject * found.style))
    assert found.together == pytest.approx(np.sum((one + two) ** 2), rel=1e-6, abs=1e-9 * found.subject)
    assert (found.differ, found.entries) == (int(np.sum(one * two < 0)), out * n)


def test_dead_ranks_span_nothing() -> None:
    rng = np.random.default_rng(1)
    subject, style = factors(rng, 30, 40, 3), factors(rng, 30, 40, 4)
    style[0][:, 2] = 0
    style[1][2] = subject[1][0]  # a direction of the subject that the style stores and does not use
    found = met(subject, style)
    assert len(found.row_cosines) == 3
    wanted = np.sort(np.cos(subspace_angles(bases(subject[0] @ subject[1])[0], bases(style[0] @ style[1])[0])))[::-1]
    assert np.allclose(found.row_cosines, wanted, atol=1e-6)
    assert found.row_cosines[0] < 0.9


def test_a_change_of_basis_changes_nothing_but_the_start() -> None:
    rng = np.random.default_rng(2)
    subject, style = factors(rng, 20, 24, 3), factors(rng, 20, 24, 3)
    G = rng.standard_normal((3, 3))
    own, turned = met(subject, style), met((subject[0] @ np.linalg.inv(G), G @ subject[1]), style)
    assert np.allclose(own.row_cosines, turned.row_cosines, atol=1e-7)
    assert np.allclose(own.column_cosines, turned.column_cosines, atol=1e-7)
    assert own.inner == pytest.approx(turned.inner)
    assert own.down_cosine != pytest.approx(turned.down_cosine, abs=1e-3)


def test_twins() -> None:
    subject = factors(np.random.default_rng(3), 20, 24, 3)
    found = met(subject, subject)
    assert np.allclose(found.row_cosines, 1.0)
    assert np.allclose(found.column_cosines, 1.0)
    assert (found.cosine, found.sign_share, found.sign_excess) == (pytest.approx(1.0), 0.0, 0.0)
    assert found.down_cosine == pytest.approx(1.0)
    assert met(subject, subject, (1.0, -1.0)).sign_share == 1.0


def test_one_seed_at_two_ranks() -> None:
    rng = np.random.default_rng(4)
    long = factors(rng, 20, 24, 6)
    short = (rng.standard_normal((20, 4)), long[1][:4])
    assert met(long, short).down_cosine == pytest.approx(1.0)


def test_a_zero_update_meets_nothing() -> None:
    rng = np.random.default_rng(5)
    subject, (B, A) = factors(rng, 9, 8, 2), factors(rng, 9, 8, 2)
    found = met(subject, (0 * B, A))
    assert (len(found.row_cosines), found.cosine, found.entries, found.sign_excess) == (0, 0.0, 0, 0.0)


def test_excess_conflict_is_what_the_angle_does_not_explain() -> None:
    """A few large entries agree and many small ones disagree: the cosine is near 0, most signs differ."""
    rng = np.random.default_rng(6)
    one = np.abs(rng.standard_normal((40, 50)))
    two = -one.copy()
    one[0], two[0] = 10.0, 10.0 * np.linalg.norm(one[1:]) ** 2 / 5000 / 10
    subject, style = (one, np.eye(50)), (two, np.eye(50))
    found = met(subject, style)
    assert found.sign_share == pytest.approx(39 / 40)
    assert found.sign_excess == pytest.approx(39 / 40 - expected_share(found.cosine))
    unrelated = met(factors(rng, 40, 50, 10), factors(rng, 40, 50, 10))
    assert unrelated.sign_excess < 0.05


def test_large_modules_are_sampled_and_the_share_is_near_the_true_one() -> None:
    rng = np.random.default_rng(7)
    subject, style = factors(rng, 400, 512, 8), factors(rng, 400, 512, 8)
    style = (style[0] + subject[0], style[1] + subject[1])
    found = met(subject, style)
    assert SAMPLE <= found.entries < 2 * SAMPLE
    true = np.mean((subject[0] @ subject[1]) * (style[0] @ style[1]) < 0)
    assert found.sign_share == pytest.approx(true, abs=0.03)


@pytest.mark.parametrize(("out", "n"), [(10, 10), (1280, 640), (10240, 1280), (3, 10**6)])
def test_sampled_rows_are_spread_over_the_whole_weight(out: int, n: int) -> None:
    rows = sampled_rows(out, n)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < out
    assert rows[0] < out / len(rows)
    assert rows[-1] >= out - out / len(rows)
