"""One algebra for every array library: array-api-strict (which refuses NumPy's extras) and torch agree with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import pytest

from laws.making import attenuated, protected, relative
from nplora import algebra
from nplora.fusion.projection import project
from nplora.methods import all_methods

NP = all_methods()["np"]


@dataclass(frozen=True)
class Library:
    """How arrays get into a library and back."""

    into: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]


def strict() -> Library:
    library = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    return Library(
        library.asarray, lambda array: np.asarray(array._array) if hasattr(array, "_array") else np.asarray(array)
    )


def torch() -> Library:
    library = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("array_api_compat", reason="array-api-compat is not installed")
    return Library(library.from_numpy, lambda array: array.numpy() if hasattr(array, "numpy") else np.asarray(array))


@pytest.fixture(params=[strict, torch], ids=["array-api-strict", "torch"])
def library(request) -> Library:
    return request.param()


def arrays_of(name: str, dtype: str) -> tuple[np.ndarray, ...]:
    """Batches of three modules: B_c, A_c, B_s, A_s."""
    rng = np.random.default_rng(7)
    B_c, A_c = rng.standard_normal((3, 12, 4)), rng.standard_normal((3, 4, 18))
    B_s, A_s = rng.standard_normal((3, 12, 3)), rng.standard_normal((3, 3, 18))
    if name == "ill-conditioned":
        A_s[1] = A_s[1, :1] + 1e-6 * rng.standard_normal((3, 18))
    elif name == "dead ranks":
        B_s[0, :, 1:] = 0
    elif name == "zero style":
        B_s[2] = 0
    return tuple(array.astype(dtype) for array in (B_c, A_c, B_s, A_s))


STYLES = ["ordinary", "ill-conditioned", "dead ranks", "zero style"]
TOLERANCE = {"float64": 1e-9, "float32": 2e-3}  # float32: the ill-conditioned style is itself known to 1e-7 / 1e-6 only


def run(arrays, into, **values):
    with np.errstate(all="ignore"):
        return project(*map(into, arrays), NP, values)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("directions", ["all", 2, 0.9])
@pytest.mark.parametrize("mu", [0.5, inf])
def test_a_projection_is_the_same_in_every_library(library, style, dtype, directions, mu):
    arrays = arrays_of(style, dtype)
    here, (_, ours) = run(arrays, np.asarray, mu=mu, directions=directions)
    there, (_, theirs) = run(arrays, library.into, mu=mu, directions=directions)
    assert type(there) is type(library.into(arrays[0]))
    there = library.back(there)
    assert there.dtype == np.dtype(dtype)
    tolerance = TOLERANCE[dtype] if style == "ill-conditioned" else 1e-5 if dtype == "float32" else 1e-10
    assert relative(there, here.astype(np.float64)) < tolerance
    assert library.back(theirs.inside) == pytest.approx(ours.inside, rel=tolerance, abs=1e-9)
    assert library.back(theirs.protected).tolist() == ours.protected.tolist()


@pytest.mark.parametrize("style", STYLES)
def test_a_projection_in_any_library_is_the_dense_one(library, style):
    B_c, A_c, B_s, A_s = arrays = arrays_of(style, "float64")
    there, _ = run(arrays, library.into, mu=0.5, directions="all")
    for index, down in enumerate(library.back(there)):
        wanted = attenuated(B_c[index] @ A_c[index], protected(B_s[index] @ A_s[index]), 0.5)
        assert relative(B_c[index] @ down, wanted) < 1e-8


def svd_multiplied(B, A):
    U, s, V = algebra.thin_svd(B, A)
    return (U * s) @ algebra.transpose(V)


def form_multiplied(B, A):
    up, down, _ = algebra.orthonormal_form(B, A)
    return up @ down


TWO_DIMENSIONAL: dict[str, Callable[..., Any]] = {
    "thin_svd": lambda B, A: algebra.thin_svd(B, A)[1],
    "thin_svd, multiplied": svd_multiplied,
    "orthonormal_form, multiplied": form_multiplied,
    "product_norm": algebra.product_norm,
    "frobenius": lambda B, A: algebra.frobenius(A),
}


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
@pytest.mark.parametrize("style", STYLES)
def test_a_function_of_one_module_is_the_same_in_every_library(library, style, name):
    function = TWO_DIMENSIONAL[name]
    for B, A in zip(*arrays_of(style, "float64")[2:], strict=True):
        there = function(library.into(B), library.into(A))
        there = there if isinstance(there, float) else library.back(there)
        assert np.allclose(there, function(B, A), rtol=1e-9, atol=1e-12)


def test_gram_matrices_and_certificates_are_the_same_in_every_library(library):
    for style in STYLES:
        arrays = arrays_of(style, "float32")
        with np.errstate(all="ignore"):
            here, there = algebra.grams(*arrays), algebra.grams(*map(library.into, arrays))
        for name, ours in vars(here).items():
            theirs = getattr(there, name)
            if ours is not None:
                assert np.allclose(library.back(theirs), ours, rtol=1e-5), name


def test_numerical_rank_counts_the_same_everywhere(library):
    s = np.array([1.0, 1e-3, 1e-12, 1e-17])
    assert algebra.numerical_rank(library.into(s), (12, 18)) == algebra.numerical_rank(s, (12, 18)) == 3
    assert algebra.numerical_rank(library.into(s[:0]), (12, 18)) == 0


def test_strict_arrays_do_refuse_numpys_extras():
    """The tests above can fail: an indexing that NumPy allows and the standard does not."""
    with pytest.raises(IndexError):
        strict().into(np.zeros((3, 4, 5)))[0:1]
