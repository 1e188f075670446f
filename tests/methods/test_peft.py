"""The compatibility modes give the numbers of the incumbents: PEFT's own, and kohya's formulas as read in its code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.updates import dense, distance, merged, part
from nplora.errors import InputError
from nplora.methods import Part

OUT, WIDTH, RANK = 10, 12, 3
alphas = st.sampled_from([1.0, 3.0, 8.0])
strengths = st.sampled_from([1.0, 0.5, -0.7, 0.0])
few = settings(max_examples=max(1, settings().max_examples // 5))


def stored(seed: int, weight: float, alpha: float, rank: int = RANK) -> Part:
    """An adapter as a file holds it: the scale alpha / r is folded into up, as every merge gets it."""
    one = part(np.random.default_rng(seed), OUT, WIDTH, rank, weight)
    return Part(alpha / rank * one.up, one.down, weight, alpha / rank)


@pytest.fixture(scope="module")
def peft():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    library = pytest.importorskip("peft", reason="PEFT is not installed")

    def combine(parts: list[Part], kind: str, **values: object) -> np.ndarray:
        """The dense update of PEFT's combination, through its own layers."""
        model = torch.nn.Sequential(torch.nn.Linear(WIDTH, OUT, bias=False, dtype=torch.float64))
        names = [f"adapter{index}" for index in range(len(parts))]
        wrapped = None
        for name, one in zip(names, parts, strict=True):
            rank = one.up.shape[1]
            config = library.LoraConfig(r=rank, lora_alpha=one.scale * rank, target_modules=["0"])
            if wrapped is None:
                wrapped = library.get_peft_model(model, config, name, autocast_adapter_dtype=False)
            else:
                wrapped.add_adapter(name, config, autocast_adapter_dtype=False)
            layer = wrapped.base_model.model[0]
            layer.lora_A[name].weight.data = torch.from_numpy(one.down.copy())
            layer.lora_B[name].weight.data = torch.from_numpy(one.up / one.scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a density of 1
            wrapped.add_weighted_adapter(names, [one.weight for one in parts], "merged", kind, **values)
        return layer.get_delta_weight("merged").detach().numpy()

    return combine


@pytest.mark.consumer
@few
@given(st.integers(0, 99), st.lists(st.tuples(strengths, alphas), min_size=1, max_size=3))
def test_peft_linear_is_peft_s_linear(peft, seed, how):
    parts = [stored(seed + index, weight, alpha) for index, (weight, alpha) in enumerate(how)]
    assert distance(merged("peft-linear", parts), peft(parts, "linear"), parts) < 1e-6  # it holds z_i in float32


@pytest.mark.consumer
@pytest.mark.parametrize("election", ["total", "frequency"])
@few
@given(st.integers(0, 99), st.lists(st.tuples(strengths, alphas), min_size=2, max_size=3), st.sampled_from([0.3, 1.0]))
def test_peft_ties_is_peft_s_ties(peft, election, seed, how, density):
    parts = [stored(seed + index, weight, alpha) for index, (weight, alpha) in enumerate(how)]
    wanted = peft(parts, "ties", density=density, majority_sign_method=election)
    assert distance(merged("peft-ties", parts, density=density, election=election), wanted, parts) < 1e-6


@pytest.mark.consumer
@few
@given(st.integers(0, 99), st.lists(st.tuples(strengths, alphas), min_size=1, max_size=3))
def test_svd_is_peft_s_svd_with_the_same_rank(peft, seed, how):
    parts = [stored(seed + i, weight, alpha, rank=i + 2) for i, (weight, alpha) in enumerate(how)]
    wanted = peft(parts, "svd", svd_rank=4)
    assert distance(merged("svd", parts, rank=4), wanted, parts) < 1e-5


@pytest.mark.consumer
def test_ties_on_updates_is_what_peft_calls_ties_svd_at_strength_1(peft):
    parts = [stored(seed, 1.0, 4.0) for seed in (1, 2, 3)]
    wanted = peft(parts, "ties_svd", density=0.4, svd_rank=10)
    assert distance(merged("ties", parts, density=0.4, rank=10), wanted) < 1e-6
    assert distance(merged("peft-ties", parts, density=0.4), wanted) > 0.3


def test_peft_linear_has_cross_terms():
    half = stored(1, 0.5, 3.0)
    assert distance(merged("peft-linear", [half, half]), 2 * dense(half) * 2) < 1e-12
    parts = [stored(1, 1.0, 3.0), stored(2, 1.0, 3.0)]
    assert distance(merged("peft-linear", parts), sum(map(dense, parts))) > 0.5


def test_peft_ties_of_equal_adapters_at_a_half_each_is_half_and_density_1_still_drops():
    half = stored(1, 0.5, 3.0)
    assert distance(merged("peft-ties", [half, half], density=1.0), 0.5 * dense(stored(1, 1.0, 3.0))) < 1e-12
    one, two = stored(1, 1.0, 3.0), stored(2, 1.0, 3.0)
    opposed = merged("peft-ties", [one, two], density=1.0)
    assert distance(opposed, merged("peft-linear", [one, two])) > 0.3


# ------------------------------------------------------------------------------------------ kohya


def kohya(parts: list[Part], concat: bool) -> np.ndarray:
    """The two factors of sd-scripts' merge and the scale that a loader applies."""
    alpha_0 = parts[0].scale * parts[0].up.shape[1]
    ups, downs = [], []
    for one in parts:
        scale = np.sqrt(one.scale * one.up.shape[1] / alpha_0) * one.weight
        ups.append(one.up / one.scale * abs(scale))
        downs.append(one.down * scale)
    up, down = (np.hstack(ups), np.vstack(downs)) if concat else (sum(ups), sum(downs))
    return alpha_0 / down.shape[0] * up @ down


@given(st.integers(0, 99), st.lists(st.tuples(strengths, alphas), min_size=1, max_size=3), st.booleans())
def test_kohya_s_merges_are_its_formulas(seed, how, concat):
    parts = [stored(seed + i, weight, alpha, RANK + i * concat) for i, (weight, alpha) in enumerate(how)]
    name = "kohya-concat" if concat else "kohya-add"
    assert distance(merged(name, parts), kohya(parts, concat), parts) < 1e-12


def test_kohya_s_strength_is_squared_and_its_concat_too_weak():
    one = stored(1, 0.5, 3.0)
    assert distance(merged("kohya-add", [one]), 0.5 * dense(one)) < 1e-12
    two = [stored(1, 0.5, 3.0), stored(2, 0.5, 3.0)]
    assert distance(merged("kohya-concat", two), sum(map(dense, two)) / 4) < 1e-12


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["peft-linear", "peft-ties", "kohya-add"])
def test_unequal_ranks_are_refused(name):
    with pytest.raises(InputError) as caught:
        merged(name, [stored(1, 1.0, 3.0), stored(2, 1.0, 3.0, rank=4)])
    assert str(caught.value).startswith(
        f"{name} adds factors, which must have one rank: expected equal ranks, got 3 and 4"
    )
    assert "Use linear or svd: they take any ranks and give the exact sum." in str(caught.value)


@pytest.mark.parametrize("name", ["kohya-add", "kohya-concat"])
def test_alphas_of_two_signs_are_refused(name):
    with pytest.raises(InputError) as caught:
        merged(name, [stored(1, 1.0, 3.0), stored(2, 1.0, -3.0)])
    assert "kohya's merge takes the square root of alphas: expected alphas of one sign, got 3, -3" in str(caught.value)
