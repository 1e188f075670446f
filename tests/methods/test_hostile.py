"""Every method on what nobody would ask for: extreme values, zero, dead, equal, opposite, huge and tiny updates."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.updates import dense, part, run
from nplora.errors import NploraError
from nplora.fusion.projection import project
from nplora.methods import Merge, Part, all_merges, all_methods
from nplora.parameters import Parameter

COMPATIBILITY = {"peft-linear", "peft-ties", "kohya-add", "kohya-concat"}  # products of factors, refuse unequal ranks
CHANCE = {"dare", "della", "knots", "core-space"}  # what is kept may be divided by a small probability
FEW = settings(max_examples=max(1, settings().max_examples // 2))
SIZES = {"tiny": 1e-20, "huge": 1e20}
WEIGHTS = [1.0, 1.0, -1.0, 0.0, 0.5, 1e-6, 1e6]
KINDS = ["plain", "plain", "zero", "dead ranks", "more ranks than rows", "again", "opposite", "one direction", *SIZES]


def update(rng: np.random.Generator, kind: str, out: int, width: int, parts: list[Part], weight: float) -> Part:
    if parts and kind in ("again", "opposite"):
        return Part(parts[0].up if kind == "again" else -parts[0].up, parts[0].down, weight)
    rank = {"more ranks than rows": 2 * max(out, width), "one direction": 1}.get(kind, int(rng.integers(1, 5)))
    one = part(rng, out, width, rank, weight)
    one.up[...] *= SIZES.get(kind, 1.0)
    if kind == "zero":
        one.up[:] = 0
    if kind == "dead ranks":
        one.up[:, ::2] = 0
        one.down[1::2] = 0
    return one


@st.composite
def adapters(draw: st.DrawFn, most: int = 4) -> list[Part]:
    out, width = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    rng, parts = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=most)):
        parts.append(update(rng, kind, out, width, parts, draw(st.sampled_from(WEIGHTS))))
    return parts


def hostile(parameter: Parameter) -> st.SearchStrategy[Any]:
    """The ends of its range, just inside them, and its default; all that `Parameter.check` lets pass."""
    if parameter.kind == "number":
        low, high = max(parameter.low, -1e6), min(parameter.high, 1e6)
        values = {low, high, low + 1e-9, parameter.default, (low + high) / 2, 1.0 if low <= 1 <= high else low}
        return st.sampled_from(sorted(values | ({inf} if parameter.low >= 0 and parameter.high == inf else set())))
    if parameter.kind == "count":
        return st.sampled_from([None, 1, 2, 1000])
    if parameter.kind == "flag":
        return st.booleans()
    if parameter.kind == "directions":
        return st.sampled_from(["all", 1, 2, 1000, 1e-12, 0.5, 1.0])
    assert parameter.kind == "choice"
    return st.sampled_from(parameter.choices)


def options(parameters: tuple[Parameter, ...]) -> st.SearchStrategy[dict[str, Any]]:
    drawn = st.fixed_dictionaries({p.name: hostile(p) for p in parameters})
    return drawn.map(lambda values: {p.name: p.check(values[p.name]) for p in parameters if values[p.name] is not None})


def size(parts: list[Part]) -> float:
    return float(sum(np.linalg.norm(dense(one)) for one in parts))


@pytest.mark.parametrize("name", all_merges())
@FEW
@given(data=st.data(), parts=adapters())
def test_a_merge_gives_finite_factors_of_the_right_shape_or_an_error_that_says_why(name, data, parts):
    merge = all_merges()[name]
    assert isinstance(merge, Merge)
    values = data.draw(options(merge.parameters))
    unequal = len({one.up.shape[1] for one in parts}) > 1 and name in COMPATIBILITY - {"kohya-concat"}
    if unequal or (name == "della" and 0 < values["density"] <= values["epsilon"]):
        with pytest.raises(NploraError, match=r"expected .*\. (Use|Lower) "):
            run(name, parts, seed=3, **values)
        return
    found = run(name, parts, seed=3, **values)
    out, width = parts[0].up.shape[0], parts[0].down.shape[1]
    assert found.up.shape == (out, found.down.shape[0])
    assert found.down.shape[1] == width
    assert found.up.shape[1] >= 1
    assert np.isfinite(found.up).all()
    assert np.isfinite(found.down).all()
    assert 0 <= found.error < inf
    if name not in COMPATIBILITY | CHANCE:
        ranks = sum(one.up.shape[1] for one in parts)
        assert np.linalg.norm(dense(found)) <= 1.01 * abs(values.get("scaling", 1.0)) * ranks * size(parts)


@pytest.mark.parametrize("name", ["np", "np-spectral", "linear"])
@FEW
@given(data=st.data(), parts=adapters(most=2))
def test_a_projection_never_makes_the_subject_larger(name, data, parts):
    method = all_methods()[name]
    subject, style = parts[0], parts[-1]
    values = data.draw(options(method.parameters))
    with np.errstate(all="ignore"):
        arrays = (array[None] for array in (subject.up, subject.down, style.up, style.down))
        down, (_, found) = project(*arrays, method, values)
    X, whole = subject.up @ down[0], np.linalg.norm(subject.up @ subject.down)
    assert np.isfinite(X).all()
    assert np.linalg.norm(X) <= (1 + 1e-6) * whole
    assert 0 <= int(found.protected[0]) <= min(style.up.shape[0], style.down.shape[1])


@FEW
@given(
    parts=adapters(most=2), limit=st.sampled_from([1.0, 1 + 1e-12, 1e9, inf]), mu=st.sampled_from([1e-300, 1e300, inf])
)
def test_calibration_gives_back_no_more_than_was_there(parts, limit, mu):
    subject, style = parts[0], parts[-1]
    with np.errstate(all="ignore"):
        arrays = (array[None] for array in (subject.up, subject.down, style.up, style.down))
        down, _ = project(*arrays, all_methods()["np"], {"mu": mu, "directions": "all", "calibrate": limit})
    X, whole = subject.up @ down[0], np.linalg.norm(subject.up @ subject.down)
    assert np.isfinite(X).all()
    assert np.linalg.norm(X) <= (1 + 1e-6) * whole


REFUSED = [
    ("np", "mu", -1), ("np", "mu", "nan"), ("np", "directions", 0), ("np", "directions", 0.0), ("np", "calibrate", 0.5),
    ("ties", "density", -0.1), ("ties", "density", 1.1), ("ties", "rank", 0), ("ties", "scaling", "inf"),
    ("ties", "scaling", "nan"), ("della", "epsilon", 0.6), ("breadcrumbs", "outliers", 2), ("iso-cts", "common", -1),
    ("np-adaptive", "kappa", -1), ("np-adaptive", "eta", 1.5), ("svd", "rank", -3), ("lego", "rank", 2.5),
    ("pico", "inner", "mean"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_with_the_range(name, option, value):
    from nplora.fusion.options import check_options
    from nplora.methods import find_method

    with pytest.raises(NploraError, match=rf"^{option} is out of range: expected .*, got "):
        check_options(find_method(name), {option: value})
