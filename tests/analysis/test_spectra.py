"""Singular values from factors equal those of the dense product, whatever the factors look like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.dense import factor, factors, module
from nplora.adapters import Full, Opaque
from nplora.analysis.spectra import Spectrum, form, spectra
from nplora.reading.adapter import Module

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))


@given(shapes, st.floats(-4, 4).filter(lambda s: abs(s) > 1e-3))
def test_values_and_norm_are_the_dense_ones(shape: tuple[int, int, int, int], scale: float) -> None:
    out, n, rank, seed = shape
    B, A = factors(np.random.default_rng(seed), out, n, rank)
    spectrum = spectra([module((B, A), scale)])["unet.x"]
    dense = np.linalg.svd(scale * B @ A, compute_uv=False)[: len(spectrum.values)]
    assert np.allclose(spectrum.values, dense[: len(spectrum.values)], rtol=0, atol=3e-7 * dense[0])
    assert spectrum.norm == pytest.approx(np.linalg.norm(scale * B @ A), rel=1e-9)
    assert spectrum.stable_rank == pytest.approx(np.sum(dense**2) / dense[0] ** 2, rel=1e-6)


@given(shapes)
def test_the_vectors_are_a_decomposition(shape: tuple[int, int, int, int]) -> None:
    out, n, rank, seed = shape
    B, A = factors(np.random.default_rng(seed), out, n, rank)
    found = form((B.T @ B)[None], (A @ A.T)[None])
    U, V = B @ found.left[0], A.T @ found.right[0]
    assert np.allclose(U * found.s[0] @ V.T, B @ A, rtol=0, atol=1e-4 * found.s[0, 0])
    live = np.any(found.right[0] != 0, axis=0)
    for vectors in (U[:, live], V[:, live]):
        assert np.allclose(vectors.T @ vectors, np.eye(live.sum()), atol=1e-4)


def test_a_change_of_basis_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    B, A = factors(rng, 30, 20, 4)
    G = rng.standard_normal((4, 4))
    scaled = spectra([module((B / 1e6, 1e6 * A)), ])["unet.x"].values  # fmt: skip
    turned = spectra([module((B @ np.linalg.inv(G), G @ A))])["unet.x"].values
    own = spectra([module((B, A))])["unet.x"].values
    assert np.allclose(turned, own, rtol=1e-6)
    assert np.allclose(scaled, own, rtol=1e-9)


@pytest.mark.parametrize("what", ["a zero column of B", "a zero row of A", "two equal rows of A"])
def test_dead_ranks_are_found(what: str) -> None:
    B, A = factors(np.random.default_rng(2), 30, 20, 4)
    if "column" in what:
        B[:, 1] = 0
    elif "zero" in what:
        A[1] = 0
    else:
        A[1] = A[0]
    spectrum = spectra([module((B, A))])["unet.x"]
    assert (spectrum.rank, spectrum.alive, spectrum.dead) == (4, 3, 1)


def test_a_rank_above_the_weights_size_is_partly_dead() -> None:
    spectrum = spectra([module(factors(np.random.default_rng(3), 5, 3, 8))])["unet.x"]
    assert (len(spectrum.values), spectrum.alive, spectrum.dead) == (3, 3, 5)


def test_nothing_and_not_a_number() -> None:
    B, A = factors(np.random.default_rng(4), 6, 6, 2)
    zero = spectra([module((0 * B, A))])["unet.x"]
    assert (zero.norm, zero.alive, zero.effective_rank, zero.stable_rank) == (0.0, 0, 0.0, 0.0)
    B[0, 0] = np.nan
    assert spectra([module((B, A))])["unet.x"].norm == np.inf


def test_full_matrices_and_kinds_that_are_carried() -> None:
    dense = np.random.default_rng(5).standard_normal((7, 4))
    full = spectra([Module("m", Full(factor(dense)), None)])["m"]
    assert np.allclose(full.values, np.linalg.svd(dense, compute_uv=False))
    assert full.norm == pytest.approx(np.linalg.norm(dense))
    assert spectra([Module("m", Opaque("OFT", {}), None)]) == {"m": None}


def test_effective_rank_lies_between_one_and_the_rank() -> None:
    even, single = (Spectrum(np.array(values), 4, 1.0) for values in ([1.0] * 4, [1.0, 0.0, 0.0, 0.0]))
    assert even.effective_rank == pytest.approx(4)
    assert single.effective_rank == pytest.approx(1)


def test_modules_keep_their_order_in_batches_of_many_shapes() -> None:
    rng = np.random.default_rng(6)
    listed = [module(factors(rng, *shape), name=f"m{i}") for i, shape in enumerate([(5, 6, 2), (7, 8, 3)] * 4)]
    found = spectra(listed)
    assert list(found) == [m.name for m in listed]
    for m in listed:
        assert found[m.name].norm == pytest.approx(np.linalg.norm(m.delta()))
