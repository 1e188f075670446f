"""Matrices read by blocks: exact order statistics, chance that does not depend on the blocks, nearly best truncations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from methods.updates import dense, merged, part, run
from nplora.algebra import blocks, sketch
from nplora.algebra.blocks import keep, kth_largest, of_matrix, of_product


def watched(matrix: blocks.Blocks) -> tuple[blocks.Blocks, list[int]]:
    """The same matrix, and a list that gets the size of every block that is read."""
    sizes: list[int] = []

    def read(start, stop):
        found = matrix.read(start, stop)
        sizes.append(found.size)
        return found

    return blocks.Blocks(matrix.shape, read, matrix.like, matrix.factors), sizes


# ------------------------------------------------------------------------------------------ order statistics


@given(
    arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-3, 3, width=16)), st.data()
)
def test_the_kth_largest_is_that_of_a_sort(matrix, data):
    k = data.draw(st.integers(1, matrix.size))
    wanted = np.sort(np.abs(matrix), axis=None)[-k] if k < matrix.size else 0.0
    assert kth_largest(of_matrix(matrix), k) == wanted


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.0001, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("rank", [1, 5])
def test_it_is_exact_in_large_products_and_seldom_takes_a_second_pass(dtype, share, rank, monkeypatch):
    monkeypatch.setattr(blocks, "CAUGHT_ENTRIES", 1 << 15)
    rng = np.random.default_rng(rank)
    up, down = (rng.standard_normal(shape).astype(dtype) for shape in ((400, rank), (rank, 900)))
    product, sizes = watched(of_product(up, down))
    k = int(share * product.size)
    found = kth_largest(product, k)
    whole = np.concatenate([block for _, block in of_product(up, down)])
    assert found == float(np.sort(np.abs(whole), axis=None)[-k])
    assert max(sizes) <= blocks.BLOCK_ENTRIES
    assert sum(sizes) <= 2 * product.size


@pytest.mark.parametrize("k", [1, 1000, 100_000, 399_999])
@pytest.mark.parametrize("values", ["signs", "half zero", "two levels", "all zero"])
def test_many_equal_entries_are_no_trap(values, k, monkeypatch):
    monkeypatch.setattr(blocks, "CAUGHT_ENTRIES", 1 << 12)
    rng = np.random.default_rng(1)
    up, down = rng.choice([-1.0, 1.0], (500, 1)), rng.choice([-1.0, 1.0], (1, 800))
    if values == "half zero":
        up[::2] = 0
    elif values == "two levels":
        up[::4] *= 2
    elif values == "all zero":
        up[:] = 0
    wanted = np.sort(np.abs(up @ down), axis=None)[-k]
    assert kth_largest(of_product(up, down), k) == wanted
    assert kth_largest(of_matrix(up @ down), k) == wanted


def test_nothing_and_everything():
    matrix = of_matrix(np.arange(6.0).reshape(2, 3))
    assert kth_largest(matrix, 0) == np.inf
    assert kth_largest(matrix, 6) == kth_largest(matrix, 99) == 0


# ------------------------------------------------------------------------------------------ chance


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**40), st.data())
def test_a_row_is_drawn_alike_in_every_block(rows, columns, seed, data):
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    whole = blocks.draw((seed, 1), 0, rows, columns)
    assert np.array_equal(whole[start:stop], blocks.draw((seed, 1), start, stop, columns))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1.0])
def test_keeping_is_unbiased_and_keeps_the_share(probability):
    ones = of_matrix(np.ones((300, 300)))
    kept = keep(ones, probability, (3,)).whole()
    share = np.mean(kept != 0)
    deviation = 5 * np.sqrt(probability * (1 - probability) / kept.size) + 2.0**-16
    assert abs(share - probability) <= deviation
    assert abs(kept.mean() - 1) <= 5 * np.sqrt((1 / probability - 1) / kept.size)
    assert not np.array_equal(kept, keep(ones, probability, (4,)).whole()) or probability == 1


@pytest.mark.parametrize("values", [{}, {"variant": "ties"}, {"density": 0.2}])
def test_dare_does_not_depend_on_the_size_of_the_blocks(values, monkeypatch):
    parts = [part(np.random.default_rng(seed), 40, 50, 3) for seed in (1, 2)]
    whole = merged("dare", parts, seed=9, rank=40, **values)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 130)
    assert np.allclose(merged("dare", parts, seed=9, rank=40, **values), whole, rtol=0, atol=1e-12)


def test_the_mean_over_seeds_of_dare_is_the_sum():
    parts = [part(np.random.default_rng(seed), 8, 9, 2, weight) for seed, weight in ((1, 1.0), (2, -0.5))]
    found = [merged("dare", parts, seed=seed, density=0.5, rank=8) for seed in range(400)]
    spread = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - sum(map(dense, parts))) < 5 * spread + 1e-12)


# ------------------------------------------------------------------------------------------ truncation


@pytest.mark.parametrize("shape", [(300, 400), (700, 260)])
@pytest.mark.parametrize(("name", "values"), [("ties", {}), ("dare", {"density": 0.3}), ("dare", {"variant": "ties"})])
@pytest.mark.parametrize("rank", [4, 12])
def test_a_streamed_result_is_nearly_the_best_and_its_error_is_told_exactly(shape, name, values, rank):
    parts = [part(np.random.default_rng(seed), *shape, 6) for seed in (1, 2)]
    found = run(name, parts, seed=1, rank=rank, **values)
    assert found.up.shape == (shape[0], rank)
    whole = merged(name, parts, seed=1, rank=min(shape), **values)  # exact: no range to be found
    best = np.sqrt(np.sum(np.linalg.svd(whole, compute_uv=False)[rank:] ** 2))
    error = np.linalg.norm(dense(found) - whole)
    assert found.error == pytest.approx(error, rel=1e-5)
    assert best * (1 - 1e-9) <= error <= best * 1.03


def test_a_result_that_is_of_low_rank_is_found_exactly():
    parts = [part(np.random.default_rng(seed), 300, 400, 6) for seed in (1, 2)]
    found = run("dare", parts, density=1.0)
    assert np.linalg.norm(dense(found) - sum(map(dense, parts))) < 1e-10 * np.linalg.norm(dense(found))
    assert found.error < 1e-6 * np.linalg.norm(dense(found))


def test_more_passes_come_closer():
    rng = np.random.default_rng(1)
    matrix = of_matrix(rng.standard_normal((300, 400)))
    errors = [sketch.nearest(matrix, 8, passes=passes)[2] for passes in (2, 4, 8)]
    best = np.sqrt(np.sum(np.linalg.svd(matrix.like, compute_uv=False)[8:] ** 2))
    assert errors[0] > errors[1] > errors[2] >= best


def test_no_block_is_larger_than_it_may_be():
    rng = np.random.default_rng(1)
    product, sizes = watched(of_product(rng.standard_normal((3000, 4)), rng.standard_normal((4, 2500))))
    kth_largest(product, 10_000)
    sketch.nearest(product, 4)
    assert max(sizes) <= blocks.BLOCK_ENTRIES
