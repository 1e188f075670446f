"""What must hold for each merge by its definition, whatever the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.updates import EXACT, dense, distance, live, merged, of, orthogonal, part, regauged, run, several
from nplora.errors import UsageError
from nplora.methods import Part

EXACT_SUMS = [
    ("svd", {}),
    ("knots", {"inner": "linear"}),
    ("core-space", {"inner": "linear"}),
    ("dare", {"density": 1.0}),
]


@pytest.mark.parametrize(("name", "values"), EXACT_SUMS, ids=str)
@given(parts=several())
def test_linear_merging_is_the_sum_in_every_space(name, values, parts):
    assert distance(merged(name, parts, **values), sum(live(parts)), parts) < EXACT


def random_parts(seed: int, count: int = 2, out: int = 13, width: int = 17) -> list[Part]:
    rng = np.random.default_rng(seed)
    return [part(rng, out, width, rank) for rank in range(2, 2 + count)]


# ------------------------------------------------------------------------------------------ TIES


@given(st.integers(0, 99))
def test_ties_of_equal_signs_at_density_1_is_the_mean(seed):
    rng = np.random.default_rng(seed)
    xs = [abs(rng.standard_normal((7, 9))) for _ in range(3)]
    assert distance(merged("ties", list(map(of, xs)), density=1.0, rank=9), sum(xs) / 3) < EXACT


@given(st.integers(0, 99), st.sampled_from([0.2, 0.6, 1.0]))
def test_ties_of_an_update_with_itself_is_the_trimmed_update(seed, density):
    (one, _) = random_parts(seed)
    got = merged("ties", [one, one], density=density, rank=13)
    alone = merged("ties", [one], density=density, rank=13)
    assert distance(got, alone) < EXACT
    if density == 1.0:
        assert distance(got, dense(one)) < EXACT
    assert np.count_nonzero(abs(got) > 1e-9) == int(density * got.size)


@given(st.integers(0, 99))
def test_ties_of_an_update_and_its_opposite_is_its_magnitude(seed):
    (one, _) = random_parts(seed)
    opposite = Part(-one.up, one.down)
    assert distance(merged("ties", [one, opposite], density=1.0, rank=13), abs(dense(one))) < EXACT


@given(st.integers(0, 99))
def test_ties_scales_with_the_strengths(seed):
    one, two = random_parts(seed)
    twice = [Part(one.up, one.down, 2.0), Part(two.up, two.down, 2.0)]
    assert distance(merged("ties", twice, rank=13), 2 * merged("ties", [one, two], rank=13)) < EXACT
    assert distance(merged("ties", [one, two], scaling=2.0, rank=13), 2 * merged("ties", [one, two], rank=13)) < EXACT


def test_ties_keeps_disjoint_updates_whole():
    left, right = np.zeros((6, 8)), np.zeros((6, 8))
    left[:3], right[3:] = 1.5, -2.0
    assert distance(merged("ties", [of(left), of(right)], density=0.5, rank=6), left + right) < EXACT


# ------------------------------------------------------------------------------------------ TSV and Iso


@given(st.integers(0, 99))
def test_tsv_of_orthogonal_updates_is_their_sum(seed):
    parts = orthogonal(np.random.default_rng(seed), 14, 16, [2, 3, 1])
    assert distance(merged("tsv", parts), sum(map(dense, parts))) < EXACT


@given(st.integers(0, 99), st.integers(1, 4))
def test_tsv_of_equal_updates_is_one_of_them(seed, count):
    (one, _) = random_parts(seed)
    assert distance(merged("tsv", [one] * count), dense(one)) < 1e-8
    assert run("tsv", [one] * count).down.shape[0] == 2


@given(several())
def test_tsv_takes_the_updates_in_any_order(parts):
    assert distance(merged("tsv", parts[::-1]), merged("tsv", parts), parts) < EXACT


@pytest.mark.parametrize("inner", ["tsv", "iso"])
@given(parts=several())
def test_tsv_and_iso_are_the_same_in_core_space(inner, parts):
    outside = merged({"tsv": "tsv", "iso": "iso-c"}[inner], parts)
    assert distance(merged("core-space", parts, inner=inner), outside, parts) < EXACT


@given(st.integers(0, 99))
def test_iso_c_has_one_singular_value_and_the_directions_of_the_sum(seed):
    parts = random_parts(seed)
    got, total = merged("iso-c", parts), sum(map(dense, parts))
    u, s, vt = np.linalg.svd(total)
    assert np.allclose(np.linalg.svd(got, compute_uv=False)[:5], s[:5].mean())
    assert np.allclose(u[:, :5].T @ got @ vt[:5].T, s[:5].mean() * np.eye(5))
    assert np.linalg.matrix_rank(got) == 5


def test_iso_c_gives_a_flat_spectrum_back():
    rng = np.random.default_rng(1)
    flat = 3 * np.linalg.qr(rng.standard_normal((9, 2)))[0] @ np.linalg.qr(rng.standard_normal((11, 2)))[0].T
    assert distance(merged("iso-c", [of(flat)]), flat) < EXACT


@given(several())
def test_iso_cts_with_nothing_but_the_common_space_is_iso_c(parts):
    assert distance(merged("iso-cts", parts, common=1.0), merged("iso-c", parts), parts) < 1e-8


@given(several())
def test_iso_cts_takes_the_updates_in_any_order(parts):
    assert distance(merged("iso-cts", parts[::-1], common=0.4), merged("iso-cts", parts, common=0.4), parts) < 1e-7


def test_iso_cts_of_two_adapters_of_rank_4_gives_each_a_direction_of_its_own():
    rng = np.random.default_rng(1)
    parts = [part(rng, 20, 30, 4) for _ in range(2)]
    assert distance(merged("iso-cts", parts), merged("iso-c", parts)) > 0.1
    assert distance(merged("iso-cts", parts[:1], common=1.0), merged("iso-c", parts[:1])) < 1e-8


# ------------------------------------------------------------------------------------------ DO-Merging


@given(st.integers(0, 99))
def test_do_merging_makes_orthogonal_parts_of_the_same_norms(seed):
    parts = random_parts(seed, 3)
    later = [merged("do-merging", parts[index:]) for index in range(3)]
    vs = [later[0] - later[1], later[1] - later[2], later[2]]
    for index, (v, one) in enumerate(zip(vs, parts, strict=True)):
        assert np.isclose(np.linalg.norm(v), np.linalg.norm(dense(one)))
        for other in vs[index + 1 :]:
            assert abs(np.sum(v * other)) < 1e-9 * np.linalg.norm(v) * np.linalg.norm(other)
    assert distance(vs[2], dense(parts[2])) < EXACT


# ------------------------------------------------------------------------------------------ Pico


@given(st.integers(0, 99), st.sampled_from(["each", "merged", "nothing"]))
def test_pico_of_one_adapter_is_the_adapter(seed, rescale):
    (one, _) = random_parts(seed)
    assert distance(merged("pico", [one], rescale=rescale), dense(one)) < EXACT


@given(st.integers(0, 99), st.integers(1, 4))
def test_pico_of_updates_with_one_flat_spectrum_is_the_sum(seed, count):
    """All directions are damped alike, and the norms are given back."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((13, 13)))[0]
    parts = [Part(left[:, 3 * i : 3 * i + 3], np.linalg.qr(rng.standard_normal((17, 3)))[0].T) for i in range(count)]
    assert distance(merged("pico", parts), sum(map(dense, parts))) < EXACT
    same = [parts[0]] * count
    assert distance(merged("pico", same), count * dense(parts[0])) < EXACT


@given(st.integers(0, 99))
def test_pico_damps_most_what_carries_most_and_takes_any_order(seed):
    parts = random_parts(seed, 3)
    assert distance(merged("pico", parts[::-1]), merged("pico", parts)) < EXACT
    before, after = (
        np.linalg.svd(np.hstack(xs), compute_uv=False)
        for xs in (list(map(dense, parts)), [merged("pico", parts, rescale="nothing")])
    )
    share = before**2 / np.sum(before**2)
    assert after[0] <= np.sqrt(3) * before[0] / (1 + 2 * share[0]) + EXACT


@given(st.integers(0, 99), st.sampled_from([1e-3, 50.0]))
def test_pico_scales_with_its_inputs(seed, factor):
    parts = random_parts(seed)
    scaled = [Part(factor * one.up, one.down) for one in parts]
    for rescale in ("each", "merged"):
        one, two = (merged("pico", which, rescale=rescale) for which in (scaled, parts))
        assert distance(one, factor * two) < EXACT
    size = np.mean([np.linalg.norm(dense(one)) for one in parts])
    assert np.isclose(np.linalg.norm(merged("pico", parts, rescale="merged")), size)


# ------------------------------------------------------------------------------------------ LEGO


@given(st.integers(0, 99))
def test_lego_with_a_cluster_for_each_unit_is_the_sum(seed):
    parts = random_parts(seed)
    assert distance(merged("lego", parts, rank=5), sum(map(dense, parts))) < EXACT


@given(st.integers(0, 99), st.integers(1, 3))
def test_lego_of_equal_updates_is_their_sum(seed, count):
    (one, _) = random_parts(seed)
    assert distance(merged("lego", [one] * count, rank=2), count * dense(one)) < 1e-8


@given(st.integers(0, 99), st.integers(1, 5))
def test_lego_depends_on_updates_not_on_factors_and_has_the_rank_asked_for(seed, rank):
    parts = random_parts(seed)
    other = [regauged(np.random.default_rng(seed), one) for one in parts]
    assert distance(merged("lego", parts, rank=rank), merged("lego", other, rank=rank)) < 1e-6
    assert run("lego", parts, rank=rank).down.shape[0] == rank


@given(st.integers(0, 99))
def test_lego_with_a_cluster_for_each_unit_is_the_sum_of_partly_equal_updates_too(seed):
    one, two = random_parts(seed)
    assert distance(merged("lego", [one, two, one], rank=7), 2 * dense(one) + dense(two)) < 1e-8


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 9))
def test_every_unit_is_in_one_cluster_and_no_cluster_is_empty(seed, R, k):
    from nplora.methods.lego import _centroids

    F = np.random.default_rng(seed).standard_normal((4, R))
    F[:, R // 2] = F[:, 0]
    members = _centroids(F.T @ F, min(k, R)) != 0
    assert np.all(members.sum(axis=1) == 1)
    assert np.all(members.any(axis=0))


# ------------------------------------------------------------------------------------------ pruning


@given(several())
def test_breadcrumbs_without_outliers_is_magnitude_pruning(parts):
    one = merged("breadcrumbs", parts, density=0.4, outliers=0.0)
    assert distance(one, merged("magnitude", parts, density=0.4), parts) < EXACT


@given(several(), st.sampled_from(["linear", "ties"]))
def test_della_without_epsilon_is_dare(parts, variant):
    values = {"density": 0.4, "variant": variant, "seed": 5}
    assert distance(merged("della", parts, epsilon=0.0, **values), merged("dare", parts, **values), parts) < EXACT


def test_the_mean_over_seeds_of_della_is_the_sum():
    parts = random_parts(1, out=8, width=9)
    found = [merged("della", parts, seed=seed, variant="linear", epsilon=0.3, rank=8) for seed in range(400)]
    spread = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - sum(map(dense, parts))) < 5 * spread + 1e-12)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15)])
def test_della_refuses_a_probability_that_is_not_above_0(density, epsilon):
    with pytest.raises(UsageError) as caught:
        merged("della", random_parts(1), density=density, epsilon=epsilon)
    assert str(caught.value) == (
        "DELLA keeps a row's smallest entries with the probability density - epsilon = "
        f"{density - epsilon:g}: expected more than 0. Lower --epsilon or raise --density."
    )


# ------------------------------------------------------------------------------------------ KnOTS and Core Space


def test_knots_trims_what_adds_least_to_the_update():
    """Singular values count: of a strong and of a weak direction, only entries of the strong one are left."""
    row = np.array([[1.0, -1.0] * 4])
    strong, weak = (np.eye(6)[:, :1], np.ones((1, 8)) * 100), (np.eye(6)[:, 1:2], 3 * row)
    both = Part(np.hstack([strong[0], weak[0]]), np.vstack([strong[1], weak[1]]))
    assert np.allclose(merged("knots", [both], density=0.5)[:2], [[100] * 8, [0] * 8])


@given(several())
def test_cores_lose_nothing(parts):
    from nplora.algebra.bases import cores

    factors = [(one.up, one.down) for one in parts]
    shared = cores(factors)
    assert (
        distance(
            shared.left.lift(np.eye(shared.left.R.shape[0])).T @ shared.left.lift(np.eye(shared.left.R.shape[0])),
            np.eye(shared.left.R.shape[0]),
        )
        < 1e-9
    )
    for (up, down), M in zip(factors, shared.matrices, strict=True):
        lifted = shared.lift(M)
        assert distance(lifted[0] @ lifted[1], up @ down, parts) < EXACT


@given(several())
def test_the_aligned_updates_of_knots_multiply_back(parts):
    from nplora.methods.knots import align

    U, aligned = align([(one.up, one.down) for one in parts])
    for one, SV in zip(parts, aligned, strict=True):
        assert distance(U @ SV, one.up @ one.down, parts) < EXACT


@given(st.integers(0, 99))
def test_core_space_takes_any_ranks_and_gives_at_most_their_sum(seed):
    found = run("core-space", random_parts(seed, 3), inner="ties")
    assert found.up.shape == (13, 9)
    assert np.linalg.matrix_rank(dense(found)) <= 9


# ------------------------------------------------------------------------------------------ truncation


@given(several(), st.integers(1, 6))
def test_a_truncation_error_is_the_energy_of_what_was_dropped(parts, rank):
    found = run("svd", parts, rank=rank)
    total = sum(live(parts))
    dropped = np.linalg.svd(total, compute_uv=False)[rank:]
    assert abs(found.error - np.sqrt(np.sum(dropped**2))) < EXACT * (1 + np.linalg.norm(total))
    assert np.allclose(np.linalg.norm(found.up, axis=0), np.linalg.norm(found.down, axis=1))
