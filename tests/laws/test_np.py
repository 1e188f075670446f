"""The np method against dense float64 references: what it computes, and the identities that it must obey."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from math import inf, sqrt
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.making import (
    Factors,
    attenuated,
    factors,
    g_of,
    kohya_tensors,
    protected,
    reference,
    relative,
    write,
)

import nplora
from nplora import projection
from nplora.methods import all_methods

MUS = [0.0, 1e-9, 0.5, 1.0, 10.0, inf]
EXACT = 1e-10  # float64 against float64; what is left is the condition of random matrices

each_mu = pytest.mark.parametrize("mu", MUS)
each_side = pytest.mark.parametrize("side", ["input", "output"])


# ------------------------------------------------------------------------------------------ surfaces


def fused_delta(subject: Factors, style: Factors, **parameters):
    """The dense update of one fused module, through two files and `fuse`."""
    return fusion(subject, style, **parameters)["unknown.layer"].delta()


def fusion(subject: Factors, style: Factors, **parameters):
    with tempfile.TemporaryDirectory() as place:
        paths = [
            write(Path(place, name), kohya_tensors({"lora_unet_layer": module}))
            for name, module in (("c.safetensors", subject), ("s.safetensors", style))
        ]
        return nplora.fuse(*map(nplora.load, paths), **parameters)


def run(subject: Factors, style: Factors, mu: float, directions="all"):
    """X = the projected subject (dense, strength 1), its share inside, and the count of protected directions."""
    arrays = (module[None].astype(np.float64) for module in (subject.up, subject.down, style.up, style.down))
    down, (_, found) = project(*arrays, mu, directions)
    return subject.scale * subject.up.astype(np.float64) @ down[0], float(found.inside[0]), int(found.protected[0])


def project(B_c, A_c, B_s, A_s, mu, directions="all"):
    with np.errstate(all="ignore"):  # as the package calls it: a zero style divides 0 by 0 and is seen to
        return projection.project(B_c, A_c, B_s, A_s, all_methods()["np"], {"mu": mu, "directions": directions})


def projected(subject: Factors, style: Factors, mu: float, directions="all"):
    return run(subject, style, mu, directions)[0]


def transposed(module: Factors) -> Factors:
    return Factors(module.down.T, module.up.T, module.scale)


# ------------------------------------------------------------------------------------------ what is drawn


@dataclass(frozen=True)
class Pair:
    subject: Factors
    style: Factors

    @property
    def deltas(self):
        return self.subject.dense(), self.style.dense()


dtypes = st.sampled_from(["F64", "F32", "F16", "BF16"])
scales = st.sampled_from([1.0, 0.25, 2.0, -1.5])


@st.composite
def pairs(draw, largest: int = 20, top_rank: int = 24):
    """Two updates of one weight: any shape, any ranks (above out and n too), any number types, dead ranks, zeros."""
    out, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = [
        factors(
            rng, out, n, draw(st.integers(1, top_rank)), dtype=draw(dtypes), scale=draw(scales),
            size=10.0 ** draw(st.integers(-3, 2)),
        )
        for _ in range(2)
    ]  # fmt: skip
    style = made[1]
    dead = draw(st.integers(0, style.rank))
    if draw(st.booleans()):
        style.up[:, :dead] = 0
    return Pair(made[0], style)


mus = st.sampled_from(MUS)
strengths = st.sampled_from([1.0, 0.7, -1.0, 3.5, 1000.0, 1e-4])


def size_of(pair: Pair, w_c: float = 1.0, w_s: float = 1.0) -> float:
    """What errors are measured against: the sum may cancel."""
    dW_c, dW_s = pair.deltas
    return abs(w_c) * np.linalg.norm(dW_c) + abs(w_s) * np.linalg.norm(dW_s) or 1.0


def clear_spectrum(dW: np.ndarray, directions) -> bool:
    """Whether the top k directions, or the share, are well defined: no tie at the cut."""
    s = np.linalg.svd(dW, compute_uv=False)
    s = s[s > 1e-5 * s[0]] if s.size and s[0] else s[:0]
    if isinstance(directions, int):
        return directions >= s.size or s[directions - 1] > 1.01 * s[directions]
    energy = np.cumsum(s**2)
    return not s.size or bool(np.all(np.abs(energy / energy[-1] - directions) > 1e-6)) and bool(np.all(s[:-1] > 1.01 * s[1:]))


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


def invertible(rng, rank):
    """Neither orthogonal nor ill-conditioned."""
    return np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.2, 5.0, rank)


def regauged(rng, module: Factors) -> Factors:
    """(B G^-1, G A): the same update from other factors."""
    G = invertible(rng, module.rank)
    return replace(module, up=module.up.astype(np.float64) @ np.linalg.inv(G), down=G @ module.down.astype(np.float64))


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


# ------------------------------------------------------------------------------------------ special positions


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@each_mu
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_row_spaces_give_the_subject_at_one_part_in_one_plus_mu(rng, mu, rank):
    style = factors(rng, 9, 11, rank, dtype="F64")
    subject = Factors(rng.standard_normal((9, rank)), rng.standard_normal((rank, rank)) @ style.down)
    assert relative(projected(subject, style, mu), subject.dense() * (1 - g_of(mu)), np.linalg.norm(subject.dense())) < EXACT


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
        np.stack([getattr(module, side) for module in modules]) for modules in ([subject] * 4, styles) for side in ("up", "down")
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


# ------------------------------------------------------------------------------------------ regimes


def test_unrelated_row_spaces_overlap_by_chance(rng):
    """E[rho] = k / n."""
    rhos = [
        list(fusion(factors(rng, 32, 64, 4), factors(rng, 32, 64, 4)).overlaps.values())[0] for _ in range(40)
    ]  # fmt: skip
    mean = np.mean([found.rho for found in rhos])
    assert mean == pytest.approx(4 / 64, rel=0.15)


def test_how_far_the_projection_moves_the_subject(rng):
    """||X - dW_c|| / ||dW_c|| = g sqrt(rho)."""
    subject, style = factors(rng, 30, 40, 4), factors(rng, 30, 40, 6)
    (found,) = fusion(subject, style).overlaps.values()
    moved = relative(projected(subject, style, 0.5), subject.dense())
    assert moved == pytest.approx(sqrt(found.rho) / 3, rel=1e-5)
