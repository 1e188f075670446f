"""Every merge gives the same on array-api-strict (which refuses NumPy's extras) and torch as on NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from methods.references import REFERENCES
from methods.updates import Library, dense, distance, part, run, strict, torch
from nplora.algebra import sketch
from nplora.algebra.blocks import kth_largest, of_product
from nplora.fusion.projection import project
from nplora.methods import Part, all_methods

CASES = [(name, values) for name, (_, cases) in REFERENCES.items() for values in cases]
CASES += [("core-space", {"inner": inner}) for inner in ("ties", "dare", "linear", "tsv", "iso")]
CASES += [("ties", {"space": "core", "rank": 2}), ("lego", {"rank": 3})]


@pytest.fixture(params=[strict, torch], ids=["array-api-strict", "torch"])
def library(request) -> Library:
    return request.param()


def elsewhere(library: Library, one: Part) -> Part:
    return replace(one, up=library.into(one.up), down=library.into(one.down))


@pytest.mark.parametrize(("name", "values"), CASES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "with a dead rank and a zero update"])
def test_a_merge_is_the_same_in_every_library(library, name, values, kind):
    rng = np.random.default_rng(3)
    parts = [part(rng, 12, 17, 3), part(rng, 12, 17, 2, -0.5), part(rng, 12, 17, 2)]
    if kind != "plain":
        parts[0].up[:, 0] = 0
        parts[2].up[:] = 0
    here = run(name, parts, seed=4, **values)
    there = run(name, [elsewhere(library, one) for one in parts], seed=4, **values)
    assert type(there.up) is type(there.down) is type(library.into(parts[0].up))
    assert distance(library.back(there.up) @ library.back(there.down), dense(here)) < 1e-9
    assert there.error == pytest.approx(here.error, rel=1e-6, abs=1e-9)


def test_streamed_parts_are_the_same_in_every_library(library):
    rng = np.random.default_rng(3)
    up, down = rng.standard_normal((300, 3)), rng.standard_normal((3, 1000))
    here, there = of_product(up, down), of_product(library.into(up), library.into(down))
    assert kth_largest(there, 70_000) == pytest.approx(kth_largest(here, 70_000), rel=1e-12)
    one, two = sketch.nearest(here, 2), sketch.nearest(there, 2)
    assert distance(library.back(two[0]) @ library.back(two[1]), one[0] @ one[1]) < 1e-9


def test_np_spectral_is_the_same_in_every_library(library):
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape) for shape in ((2, 12, 3), (2, 3, 17), (2, 12, 4), (2, 4, 17))]
    arrays[2][1, :, 0] = 0  # a dead rank
    method = all_methods()["np-spectral"]
    with np.errstate(all="ignore"):
        here, there = (project(*map(into, arrays), method, {"mu": 0.5})[0] for into in (np.asarray, library.into))
    assert distance(library.back(there), here) < 1e-9
