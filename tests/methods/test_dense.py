"""Every merge against a dense float64 reference, over shapes, ranks, strengths, zero, equal and dead updates."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from methods.references import REFERENCES, dare, in_core, linear, principal, ties, tsv
from methods.updates import EXACT, dense, distance, live, merged, part, regauged, run, several
from nplora.methods import Part, all_merges

WITHOUT_RANK = {"do-merging", "np-bilateral", "np-adaptive"}
NOT_NEAREST = {*WITHOUT_RANK, "iso-c"}  # iso-c: the level is the mean of what is kept
FAITHFUL = {"peft-ties", "kohya-concat"}  # incumbents let an adapter of strength 0 vote, or count its ranks
FEW = settings(max_examples=max(1, settings().max_examples // 4))  # for each of many merges
CASES = [
    pytest.param(name, values, id=f"{name} {values}") for name, (_, cases) in REFERENCES.items() for values in cases
]
ROTATES = {"knots"}  # depends on the basis where singular values coincide, as they do for equal updates


def wide(name: str) -> dict[str, int]:
    """So large a rank that nothing is truncated."""
    return {} if name in WITHOUT_RANK else {"rank": 64}


def tolerance(name: str) -> float:
    return 1e-7 if name == "iso-cts" else EXACT  # its residual spaces feel the rounding of the common one


def apart(values: np.ndarray, gap: float) -> bool:
    """No two of them so close that rounding decides which is the larger; what is rounding itself is not looked at."""
    values = np.sort(np.abs(values), axis=None)
    values = values[values > 1e-9 * np.max(values, initial=1e-300)]
    return bool(np.all(np.diff(values) > gap * values[1:]))


def well_posed(xs: list[np.ndarray]) -> bool:
    """KnOTS of these has one answer: no singular values coincide, nor magnitudes among what is trimmed."""
    _, s, vt = np.linalg.svd(np.hstack(xs), full_matrices=False)
    k = int(np.sum(s > 1e-10 * s[0]))
    return apart(s, 1e-4) and all(apart(v, 1e-9) for v in np.split(s[:k, None] * vt[:k], len(xs), axis=1))


def well_posed_core(parts: list[Part]) -> bool:
    used = [one for one in parts if one.weight] or parts[:1]
    stacks = [np.hstack([p.weight * p.up for p in used]), np.hstack([p.down.T for p in used])]
    U_B, V_A = map(principal, stacks)
    spectra = [np.linalg.svd(stack, compute_uv=False) for stack in stacks]
    return all(apart(s, 1e-4) for s in spectra) and all(apart(U_B.T @ x @ V_A, 1e-9) for x in live(parts))


@pytest.mark.parametrize(("name", "values"), CASES)
@FEW
@given(parts=several())
def test_a_merge_is_its_definition_on_dense_matrices(name, values, parts):
    xs = live(parts)
    if name in ROTATES:
        assume(well_posed(xs))
    reference, _ = REFERENCES[name]
    found = run(name, parts, seed=3, **wide(name), **values)
    assert distance(dense(found), reference(xs, 3, **values), parts) < tolerance(name)
    assert found.error <= EXACT * (sum(map(np.linalg.norm, xs)) + 1)


@pytest.mark.parametrize(("name", "values"), [case for case in CASES if case.values[0] not in NOT_NEAREST])
@FEW
@given(parts=several(), rank=st.integers(1, 6))
def test_a_smaller_rank_is_the_nearest_one_and_its_error_is_told(name, values, parts, rank):
    whole = merged(name, parts, rank=64, **values)
    found = run(name, parts, rank=rank, **values)
    assert found.up.shape[1] == found.down.shape[0] <= rank
    rest = np.linalg.svd(whole, compute_uv=False)[rank:]
    size = np.linalg.norm(whole) + 1
    assert abs(np.linalg.norm(dense(found) - whole) - np.linalg.norm(rest)) < 1e-7 * size
    assert abs(found.error - np.linalg.norm(rest)) < 1e-7 * size


@pytest.mark.parametrize(
    ("inner", "rule", "values"),
    [
        ("ties", ties, {"density": 0.4}), ("ties", ties, {"density": 1.0, "election": "frequency", "agreeing": "sum"}),
        ("dare", dare, {"density": 0.5}), ("linear", linear, {}), ("tsv", tsv, {}),
    ],
)  # fmt: skip
@FEW
@given(parts=several())
def test_core_space_is_the_merge_of_the_cores(inner, rule, values, parts):
    assume(inner in {"linear", "tsv"} or well_posed_core(parts))
    got = merged("core-space", parts, seed=5, inner=inner, **values)
    assert distance(got, in_core(parts, rule, 5, **values), parts) < EXACT


@pytest.mark.parametrize("name", ["ties", "dare"])
@FEW
@given(parts=several())
def test_space_core_is_the_same_as_core_space(name, parts):
    one = merged(name, parts, seed=2, space="core", density=0.5)
    assert distance(one, merged("core-space", parts, seed=2, inner=name, density=0.5), parts) < EXACT


@pytest.mark.parametrize(("name", "values"), CASES)
@FEW
@given(parts=several(), seed=st.integers(0, 99))
def test_factors_do_not_matter_but_their_product(name, values, parts, seed):
    if name in ROTATES:
        assume(well_posed(live(parts)))
    other = [regauged(np.random.default_rng(seed), one) for one in parts]
    got = merged(name, other, **wide(name), **values)
    assert distance(got, merged(name, parts, **wide(name), **values), parts) < 1e-7


@pytest.mark.parametrize(("name", "values"), CASES)
def test_the_same_call_gives_the_same_bits(name, values):
    parts = [part(np.random.default_rng(1), 20, 30, 3), part(np.random.default_rng(2), 20, 30, 4, -0.5)]
    one, two = (run(name, parts, seed=11, **values) for _ in range(2))
    assert one.up.tobytes() == two.up.tobytes()
    assert one.down.tobytes() == two.down.tobytes()


@pytest.mark.parametrize("name", sorted(all_merges().keys() - FAITHFUL))
def test_a_strength_of_zero_leaves_an_adapter_out(name):
    rng = np.random.default_rng(4)
    one, two, silent = part(rng, 9, 11, 2), part(rng, 9, 11, 2), part(rng, 9, 11, 2, 0.0)
    assert np.array_equal(merged(name, [one, silent, two]), merged(name, [one, two]))


@pytest.mark.parametrize("name", all_merges())
def test_updates_that_are_zero_give_zero(name):
    zero = part(np.random.default_rng(4), 9, 11, 2)
    zero.up[:] = 0
    for parts in ([zero], [zero, zero], [part(np.random.default_rng(5), 9, 11, 2, 0.0)]):
        found = run(name, parts)
        assert not np.any(dense(found))
        assert found.up.shape == (9, found.down.shape[0])
        assert found.down.shape[0] >= 1


@pytest.mark.parametrize("name", all_merges())
def test_the_example_in_each_docstring_runs(name):
    merge = all_merges()[name]
    module = vars(__import__(merge.function.__module__, fromlist=["x"]))
    test = doctest.DocTestParser().get_doctest(merge.function.__doc__ or "", dict(module), name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("name", all_merges())
def test_every_parameter_is_an_argument_with_the_same_default(name):
    merge = all_merges()[name]
    rng = np.random.default_rng(4)
    parts = [part(rng, 9, 11, 2), part(rng, 9, 11, 2)]
    defaults = {parameter.name: parameter.default for parameter in merge.parameters}
    assert np.array_equal(merged(name, parts, **defaults), merged(name, parts))
    assert all(text for text in (merge.title, merge.reference, merge.formula, merge.guarantee))
