"""K-LoRA's selection: the sums are those of the dense updates, and the switch step has the paper's properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplora
from making import SD15, make
from methods.updates import part
from nplora.analysis.klora import absolute_sums, choices, selection


def factors(seed: int, size: float = 1.0, shape: tuple[int, int] = (11, 13), rank: int = 3):
    one = part(np.random.default_rng(seed), *shape, rank)
    return size * one.up, one.down


@given(st.integers(0, 99), st.integers(1, 143))
def test_the_sums_are_those_of_the_dense_update(seed, K):
    up, down = factors(seed)
    sizes = np.sort(np.abs(up @ down), axis=None)
    assert absolute_sums(up, down, K) == pytest.approx((sizes[-K:].sum(), sizes.sum()), rel=1e-9)


def test_the_sums_of_large_and_of_repeated_entries():
    up, down = factors(1, shape=(300, 700))
    sizes = np.sort(np.abs(up @ down), axis=None)
    assert absolute_sums(up, down, 5000) == pytest.approx((sizes[-5000:].sum(), sizes.sum()), rel=1e-6)
    assert absolute_sums(np.ones((4, 1)), np.ones((1, 5)), 7) == (7.0, 20.0)


@given(st.integers(0, 99))
def test_identical_adapters_change_over_after_a_third(seed):
    one = factors(seed)
    (choice,), gamma = choices({"q": (one, one)})
    assert gamma == pytest.approx(1.0)
    assert choice.switch == pytest.approx(1 / 3)
    assert choice.K == 9


@given(st.integers(0, 99), st.sampled_from([1e-3, 7.0]))
def test_the_style_s_strength_changes_nothing(seed, z):
    found = []
    for size in (1.0, z):
        pairs = {name: (factors(seed + i), factors(seed + 50 + i, size)) for i, name in enumerate("qkv")}
        found.append([choice.switch for choice in choices(pairs)[0]])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@given(st.integers(0, 99), st.floats(0.0, 1.0))
def test_until_the_switch_the_subject_wins_and_after_it_the_style(seed, when):
    pairs = {name: (factors(seed + i), factors(seed + 50 + i)) for i, name in enumerate("qk")}
    found, gamma = choices(pairs)
    for one in found:
        wins = one.subject >= one.style * gamma * (1.5 * when + 0.5)
        assert wins == (when <= one.switch) or abs(when - one.switch) < 1e-9 or one.switch in {0.0, 1.0}


def test_an_adapter_that_is_zero_is_never_used():
    zero = (np.zeros((11, 3)), np.ones((3, 13)))
    pairs = {"q": (factors(1), zero), "k": (zero, factors(2)), "v": (factors(3), factors(4))}
    switches = {one.name: one.switch for one in choices(pairs)[0]}
    assert (switches["q"], switches["k"]) == (1.0, 0.0)


def test_two_files_whatever_their_names(tmp_path: Path):
    cat = nplora.load(make(tmp_path / "cat.safetensors", "kohya", seed=1, rank=4, alpha=2))
    ink = nplora.load(make(tmp_path / "ink.safetensors", "diffusers", seed=2, rank=8))
    found, gamma = selection(cat, ink)
    assert {one.name for one in found} == set(SD15)
    assert gamma == pytest.approx(
        sum(np.abs(cat[name].delta()).sum() for name in SD15) / sum(np.abs(ink[name].delta()).sum() for name in SD15),
        rel=1e-5,
    )
