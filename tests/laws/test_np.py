"""The np method against dense float64 references: what it computes, and the identities that it must obey."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laws.making import g_of, protected, reference, relative
from laws.one_module import (
    EXACT,
    MUS,
    clear_spectrum,
    fused_delta,
    fusion,
    mus,
    pairs,
    project,
    projected,
    regauged,
    run,
    size_of,
    strengths,
    transposed,
)  # fmt: skip

# ------------------------------------------------------------------------------------------ the formula


@given(pairs(), mus, st.sampled_from(["input", "output"]), strengths, strengths)
def test_the_fused_delta_is_the_formula_on_dense_matrices(pair, mu, side, w_c, w_s):
    dW_c, dW_s = pair.deltas
    got = fused_delta(pair.subject, pair.style, mu=mu, side=side, subject_strength=w_c, style_strength=w_s)
    wanted = reference(dW_c, dW_s, mu, w_c=w_c, w_s=w_s, side=side)
    assert relative(got, wanted, size_of(pair, w_c, w_s)) < EXACT


@given(pairs(top_rank=6), mus, st.integers(1, 8), st.sampled_from(["input", "output"]))
def test_the_top_k_directions_are_those_of_a_dense_svd(pair, mu, k, side):
    dW_c, dW_s = pair.deltas
    assume(clear_spectrum(dW_s, k))
    got = fused_delta(pair.subject, pair.style, mu=mu, directions=k, side=side)
    assert relative(got, reference(dW_c, dW_s, mu, directions=k, side=side), size_of(pair)) < 1e-8


@given(pairs(top_rank=6), mus, st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]), st.sampled_from(["input", "output"]))
def test_an_energy_share_protects_as_many_directions_as_hold_it(pair, mu, share, side):
    dW_c, dW_s = pair.deltas
    assume(share == 1.0 or clear_spectrum(dW_s, share))
    got = fused_delta(pair.subject, pair.style, mu=mu, directions=share, side=side)
    assert relative(got, reference(dW_c, dW_s, mu, directions=share, side=side), size_of(pair)) < 1e-8


@given(pairs(), mus)
def test_transposing_all_inputs_maps_the_input_side_to_the_output_side(pair, mu):
    one = fused_delta(pair.subject, pair.style, mu=mu, side="output")
    other = fused_delta(transposed(pair.subject), transposed(pair.style), mu=mu, side="input").T
    assert relative(one, other, size_of(pair)) < EXACT


@given(pairs(), mus)
def test_a_batch_gives_what_each_module_gives_alone(pair, mu):
    zero = replace(pair.style, up=np.zeros_like(pair.style.up))
    styles = [pair.style, zero, replace(pair.style, up=2 * pair.style.up)]
    stacks = [
        np.stack([getattr(module, side).astype(np.float64) for module in modules])
        for modules in ([pair.subject] * 3, styles) for side in ("up", "down")
    ]  # fmt: skip
    down, (_, found) = project(*stacks, mu)
    for index, style in enumerate(styles):
        X, inside, count = run(pair.subject, style, mu)
        size = np.linalg.norm(X) or 1.0
        assert relative(pair.subject.scale * pair.subject.up.astype(np.float64) @ down[index], X, size) < EXACT
        assert found.inside[index] == pytest.approx(inside, rel=1e-9, abs=1e-12)
        assert int(found.protected[index]) == count


# ------------------------------------------------------------------------------------------ identities


@given(pairs(), strengths, strengths)
def test_mu_0_is_the_plain_sum(pair, w_c, w_s):
    dW_c, dW_s = pair.deltas
    got = fused_delta(pair.subject, pair.style, mu=0, subject_strength=w_c, style_strength=w_s)
    assert relative(got, w_c * dW_c + w_s * dW_s, size_of(pair, w_c, w_s)) < 1e-14


@given(pairs(), strengths, strengths)
def test_hard_leaves_the_style_alone_in_its_directions(pair, w_c, w_s):
    V = protected(pair.style.dense())
    got = fused_delta(pair.subject, pair.style, mu=inf, subject_strength=w_c, style_strength=w_s)
    assert relative(got @ V, w_s * pair.style.dense() @ V, size_of(pair, w_c, w_s)) < EXACT


@given(pairs(), mus)
def test_soft_leaves_the_subject_one_part_in_one_plus_mu_there(pair, mu):
    dW_c, dW_s = pair.deltas
    V = protected(dW_s)
    got = fused_delta(pair.subject, pair.style, mu=mu)
    assert relative(got @ V, dW_s @ V + dW_c @ V * (1 - g_of(mu)), size_of(pair)) < EXACT


@given(pairs(), mus)
def test_energy_identity(pair, mu):
    X, inside, _ = run(pair.subject, pair.style, mu)
    energy = np.linalg.norm(pair.subject.dense()) ** 2
    rho = pair.subject.scale**2 * inside / energy if energy else 0.0
    wanted = energy * (1 - rho + rho * (1 - g_of(mu)) ** 2)
    assert np.linalg.norm(X) ** 2 == pytest.approx(wanted, rel=1e-8, abs=1e-12 * energy)


@given(pairs())
def test_leakage_falls_as_mu_grows(pair):
    V = protected(pair.style.dense())
    leakage = [np.linalg.norm(projected(pair.subject, pair.style, mu) @ V) for mu in MUS]
    inside = np.linalg.norm(pair.subject.dense() @ V)
    assert leakage == sorted(leakage, reverse=True) or inside < 1e-9 * np.linalg.norm(pair.subject.dense())
    for mu, left in zip(MUS, leakage, strict=True):
        assert left == pytest.approx(inside * (1 - g_of(mu)), rel=1e-8, abs=EXACT * size_of(pair))


@given(pairs(), mus)
def test_rho_protected_and_chance_are_those_of_the_dense_matrices(pair, mu):
    dW_c, dW_s = pair.deltas
    V = protected(dW_s)
    (found,) = fusion(pair.subject, pair.style, mu=mu).overlaps.values()
    energy = np.linalg.norm(dW_c) ** 2
    assert found.protected == V.shape[1]
    assert found.width == dW_c.shape[1]
    assert found.chance == pytest.approx(V.shape[1] / dW_c.shape[1])
    assert found.rho == pytest.approx(np.linalg.norm(dW_c @ V) ** 2 / energy if energy else 0.0, rel=1e-3, abs=1e-6)
    assert found.subject == pytest.approx(energy, rel=1e-3)
    assert found.style == pytest.approx(np.linalg.norm(dW_s) ** 2, rel=1e-3)


@given(pairs(), mus, st.integers(0, 2**32), st.sampled_from(["subject", "style", "both"]))
def test_other_factors_of_the_same_update_change_nothing(pair, mu, seed, which):
    rng = np.random.default_rng(seed)
    subject = regauged(rng, pair.subject) if which != "style" else pair.subject
    style = regauged(rng, pair.style) if which != "subject" else pair.style
    one = fused_delta(pair.subject, pair.style, mu=mu)
    assert relative(fused_delta(subject, style, mu=mu), one, size_of(pair)) < 1e-9


@given(pairs(), mus, st.integers(0, 2**32))
def test_permuting_ranks_changes_nothing(pair, mu, seed):
    rng = np.random.default_rng(seed)
    made = []
    for module in (pair.subject, pair.style):
        order = rng.permutation(module.rank)
        made.append(replace(module, up=module.up[:, order], down=module.down[order]))
    one = fused_delta(pair.subject, pair.style, mu=mu)
    assert relative(fused_delta(*made, mu=mu), one, size_of(pair)) < EXACT


@given(pairs(), mus, st.sampled_from([1e-6, 0.3, -1.0, 7.0, 1e6]))
def test_the_strength_of_the_style_does_not_change_the_subject(pair, mu, w_s):
    dW_s = pair.style.dense()
    one = fused_delta(pair.subject, pair.style, mu=mu) - dW_s
    other = fused_delta(pair.subject, pair.style, mu=mu, style_strength=w_s) - w_s * dW_s
    assert relative(other, one, size_of(pair, 1.0, max(abs(w_s), 1.0))) < EXACT


@given(pairs(), mus, strengths)
def test_a_style_of_strength_0_is_no_style_rather_than_a_projector(pair, mu, w_c):
    got = fused_delta(pair.subject, pair.style, mu=mu, style_strength=0, subject_strength=w_c)
    assert relative(got, w_c * pair.subject.dense()) < 1e-14


@given(pairs(), mus, strengths)
def test_a_subject_of_strength_0_leaves_the_style(pair, mu, w_s):
    got = fused_delta(pair.subject, pair.style, mu=mu, subject_strength=0, style_strength=w_s)
    assert relative(got, w_s * pair.style.dense()) < 1e-14


@given(pairs(), mus, st.sampled_from([2.0, -1.0, 0.125]))
def test_the_fusion_is_linear_in_the_strength_of_the_subject(pair, mu, w_c):
    dW_s = pair.style.dense()
    one = fused_delta(pair.subject, pair.style, mu=mu) - dW_s
    other = fused_delta(pair.subject, pair.style, mu=mu, subject_strength=w_c) - dW_s
    assert relative(other, w_c * one, size_of(pair)) < EXACT
