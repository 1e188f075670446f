"""Recompression: the nearest update of fewer ranks, at the exact error it says, for any result of `fuse` and `convert`."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplora
from laws import based
from laws.based import CONV, LINEAR, OTHER, SHAPES, flat, key, put, put_base
from laws.making import Factors, factors, kohya_tensors, protected, read, reference, relative, write
from laws.one_module import pairs
from nplora import UsageError
from nplora.algebra.compression import Goal, TooFewError, recompress
from nplora.checking.verify import verify

GOALS = [
    Goal(rank=1),
    Goal(rank=3),
    Goal(energy=0.9),
    Goal(energy=1.0),
    Goal(error=0.3),
    Goal(error=0.0),
    Goal(rank=2, error=0.01),
]


def nearest(dW: np.ndarray, rank: int) -> float:
    """Eckart and Young's error, densely."""
    s = np.linalg.svd(dW, compute_uv=False)
    return float(np.sqrt(np.sum(s[rank:] ** 2)))


# ------------------------------------------------------------------------------------------ the function


@pytest.mark.parametrize("goal", GOALS)
@given(pair=pairs(largest=12, top_rank=15))
def test_it_is_the_nearest_update_of_its_rank_and_says_its_error(goal: Goal, pair) -> None:
    B, A = pair.style.scale * pair.style.up.astype(float), pair.style.down.astype(float)
    dW, found = B @ A, recompress(B, A, goal)
    size = np.linalg.norm(dW)
    assert abs(found.norm - size) <= 1e-9 * size
    assert abs(np.linalg.norm(dW - found.up @ found.down) - found.error) <= 1e-9 * size
    assert abs(nearest(dW, found.rank) - found.error) <= 1e-9 * size
    dropped = [*np.linalg.svd(dW, compute_uv=False), 0.0][min(found.rank, *dW.shape)]  # s_{k+1}, the spectral error
    assert abs(np.linalg.norm(dW - found.up @ found.down, 2) - dropped) <= 1e-9 * size
    if goal.rank:
        assert found.rank <= max(goal.rank, 1)
    elif goal.error is not None:
        assert found.error <= (goal.error + 1e-9) * size
        assert found.rank == 1 or nearest(dW, found.rank - 1) > (goal.error - 1e-9) * size
    elif goal.energy is not None:
        assert found.error**2 <= (1 - goal.energy + 1e-9) * size**2


@given(pair=pairs(largest=12, top_rank=15))
def test_the_dense_update_is_compressed_alike(pair) -> None:
    B, A = pair.style.up.astype(float), pair.style.down.astype(float)
    one, two = recompress(B, A, Goal(rank=2)), recompress(B @ A, None, Goal(rank=2))
    size = np.linalg.norm(B @ A)
    assert abs(one.error - two.error) <= 1e-9 * size


@given(pair=pairs(largest=12, top_rank=6), extra=st.integers(0, 3))
def test_what_is_kept_stays_as_it_is_and_the_rest_is_nearest(pair, extra: int) -> None:
    B = np.hstack([pair.subject.up.astype(float), pair.style.up.astype(float)])
    A = np.vstack([pair.subject.down.astype(float), pair.style.down.astype(float)])
    dW, V = B @ A, protected(pair.style.dense())
    rank = V.shape[1] + extra
    if not rank:
        return
    found = recompress(B, A, Goal(rank=rank), V)
    size = np.linalg.norm(B) * np.linalg.norm(A)
    difference = dW - found.up @ found.down
    assert np.linalg.norm(difference @ V) <= 1e-9 * size
    outside = dW - dW @ V @ V.T
    kept = np.linalg.matrix_rank(dW @ V, tol=1e-9 * size) if V.shape[1] else 0
    assert nearest(outside, rank - kept) <= found.error + 1e-9 * size
    assert abs(np.linalg.norm(difference) - found.error) <= 1e-9 * size


@pytest.mark.parametrize("shape", [(300, 140), (140, 300)])
@pytest.mark.parametrize(
    "goal", [Goal(rank=9), Goal(error=0.05), Goal(error=1e-9), Goal(energy=0.9), Goal(rank=9, error=0.05)]
)
def test_the_quick_route_of_a_dense_update_is_as_near(shape: tuple[int, int], goal: Goal) -> None:
    """Through the Gram matrix where what is lost is not tiny."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 100)))[0] for side in shape)
    dW = left * 0.8 ** np.arange(100) @ right.T
    found = recompress(dW, None, goal)
    size = np.linalg.norm(dW)
    assert abs(np.linalg.norm(dW - found.up @ found.down) - found.error) <= 1e-10 * size
    assert abs(nearest(dW, found.rank) - found.error) <= 1e-10 * size
    assert found.rank == recompress(left * 0.8 ** np.arange(100), right.T, goal).rank


def test_too_few_ranks_for_what_is_kept_is_an_error() -> None:
    with pytest.raises(TooFewError, match="2 ranks are to be kept"):
        recompress(np.eye(4), np.eye(4), Goal(rank=1), np.eye(4)[:, :2])


def test_factors_are_balanced() -> None:
    rng = np.random.default_rng(0)
    found = recompress(1e4 * rng.standard_normal((9, 5)), 1e-4 * rng.standard_normal((5, 7)), Goal(rank=3))
    assert np.allclose(np.linalg.norm(found.up, axis=0), np.linalg.norm(found.down, axis=1))


def test_an_update_of_zeros_keeps_one_rank_of_zeros() -> None:
    found = recompress(np.zeros((4, 2)), np.zeros((2, 3)), Goal(error=0.1))
    assert (found.rank, found.error, found.norm) == (1, 0.0, 0.0)


# ------------------------------------------------------------------------------------------ through files


def module(where: str = LINEAR, seed: int = 3, rank: int = 6, dtype: str = "F32") -> Factors:
    out, width, *kernel = SHAPES[where]
    return factors(np.random.default_rng(seed), out, width, rank, scale=0.5, kernel=tuple(kernel), dtype=dtype)


def pair(tmp_path: Path, dtype: str = "F32") -> list[Path]:
    made = {"c": {LINEAR: (1, 6), CONV: (2, 4)}, "s": {LINEAR: (3, 5), OTHER: (4, 3)}}
    return [
        write(tmp_path / f"{role}.safetensors", kohya_tensors({key(w): module(w, s, r, dtype) for w, (s, r) in modules.items()}))
        for role, modules in made.items()
    ]  # fmt: skip


def delta(path: Path, where: str) -> np.ndarray:
    return flat(nplora.load(path)[f"unet.{where}"].delta())


@pytest.mark.parametrize("goal", [{"rank": 4}, {"energy": 0.8}, {"error": 0.5}, {"rank": 2, "energy": 0.99}])
@pytest.mark.parametrize("mu", [0.0, inf])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_a_fusion_is_compressed_to_the_nearest_and_its_error_reported(
    tmp_path: Path, goal: dict, mu: float, dtype: str
) -> None:
    out = tmp_path / "f.safetensors"
    report = nplora.fuse(*map(nplora.load, pair(tmp_path, dtype)), mu=mu, **goal).save(out)
    exact = {
        LINEAR: reference(module(LINEAR, 1, 6, dtype).dense(), module(LINEAR, 3, 5, dtype).dense(), mu),
        CONV: module(CONV, 2, 4, dtype).dense(), OTHER: module(OTHER, 4, 3, dtype).dense(),
    }  # fmt: skip
    errors = []
    for where, dW in exact.items():
        rank = nplora.load(out)[f"unet.{where}"].update.rank
        got = np.linalg.norm(delta(out, where) - dW)
        rounding = (2e-3 if dtype == "F16" else 1e-6) * np.linalg.norm(dW)
        assert abs(got - nearest(dW, rank)) <= rounding
        errors.append(nearest(dW, rank))
        if "error" in goal:
            assert got <= goal["error"] * np.linalg.norm(dW) + rounding
        if "rank" in goal:
            assert rank <= goal["rank"]
    size = np.sqrt(sum(np.linalg.norm(dW) ** 2 for dW in exact.values()))
    found = report["compression"]
    assert abs(found["relative_error"] - np.linalg.norm(errors) / size) < 1e-4
    assert found["ranks_before"] == 6 + 5 + 4 + 3
    assert found["ranks"] == sum(entry["rank"] for entry in report["compressed"])
    assert verify(out).passed


@pytest.mark.parametrize("method", ["linear", "svd", "ties"])
def test_any_method_s_result_is_compressed(tmp_path: Path, method: str) -> None:
    out, whole = tmp_path / "f.safetensors", tmp_path / "w.safetensors"
    adapters = [nplora.load(path) for path in pair(tmp_path)]
    nplora.fuse(*adapters, method=method).save(whole)
    nplora.fuse(*adapters, method=method, rank=3, error=0.9).save(out)
    for where in (LINEAR, CONV, OTHER):
        dW, rank = delta(whole, where), nplora.load(out)[f"unet.{where}"].update.rank
        assert rank <= 3
        if method != "ties":  # whose own truncation comes first
            assert np.linalg.norm(delta(out, where) - dW) <= nearest(dW, rank) + 1e-5 * np.linalg.norm(dW)
    assert verify(out).passed


def test_three_adapters_are_compressed(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.safetensors", kohya_tensors({key(LINEAR): module(LINEAR, n, 4)})) for n in range(3)]
    fusion = nplora.fuse(*map(nplora.load, paths), rank=5)
    exact = flat(fusion[f"unet.{LINEAR}"].delta())
    fusion.save(tmp_path / "f.safetensors")
    error = np.linalg.norm(delta(tmp_path / "f.safetensors", LINEAR) - exact)
    assert abs(error - nearest(exact, 5)) < 1e-5 * np.linalg.norm(exact)
    assert verify(tmp_path / "f.safetensors").passed


def test_modules_of_no_more_ranks_keep_their_bytes(tmp_path: Path) -> None:
    path, out = pair(tmp_path)[0], tmp_path / "b.safetensors"
    report = nplora.convert(nplora.load(path), out, rank=5, format="kohya")
    before, after = read(path)[0], read(out)[0]
    for suffix in (".lora_up.weight",):
        assert np.array_equal(before[key(CONV) + suffix], after[key(CONV) + suffix])
    assert {entry["module"]: entry["rank"] for entry in report["compressed"]} == {
        f"unet.{LINEAR}": 5,
        f"unet.{CONV}": 4,
    }
    assert verify(out).passed


@pytest.mark.parametrize("format", ["same", "diffusers", "kohya"])
def test_convert_compresses_in_any_format(tmp_path: Path, format: str) -> None:
    path, out = pair(tmp_path)[0], tmp_path / "b.safetensors"
    report = nplora.convert(nplora.load(path), out, error=0.4, format=format)
    dW = module(LINEAR, 1, 6).dense()
    assert np.linalg.norm(delta(out, LINEAR) - dW) <= 0.4 * np.linalg.norm(dW)
    assert 0 < report["compression"]["worst_relative_error"] <= 0.4
    assert verify(out).passed


# ------------------------------------------------------------------------------------------ the style kept


@pytest.mark.parametrize("goal", [{"rank": 7}, {"energy": 0.7}, {"error": 0.6}])
@pytest.mark.parametrize("directions", ["all", 2])
def test_the_style_s_response_is_kept_while_the_rest_is_compressed(
    tmp_path: Path, goal: dict, directions: object
) -> None:
    out = tmp_path / "f.safetensors"
    report = nplora.fuse(
        *map(nplora.load, pair(tmp_path)), keep_style=True, directions=directions, components="unet", **goal
    ).save(out)
    subject, style = module(LINEAR, 1, 6).dense(), module(LINEAR, 3, 5).dense()
    exact, V = reference(subject, style, 0.5, directions=directions), protected(style, directions)
    difference = delta(out, LINEAR) - exact
    assert np.linalg.norm(difference @ V) <= 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(difference) > 0.05 * np.linalg.norm(exact)
    assert report["parameters"]["keep_style"] is True
    assert verify(out).passed


def test_verify_sees_a_style_that_was_not_kept(tmp_path: Path) -> None:
    """A file that is nearest as a whole, under a recipe that says the style was kept."""
    adapters = [nplora.load(path) for path in pair(tmp_path)]
    nplora.fuse(*adapters, rank=7).save(tmp_path / "f.safetensors")
    assert verify(tmp_path / "f.safetensors").passed
    assert not verify(tmp_path / "f.safetensors", keep_style=True).passed


def test_fewer_ranks_than_the_style_s_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*map(nplora.load, pair(tmp_path)), rank=2, keep_style=True).save(tmp_path / "f.safetensors")
    assert str(caught.value) == (
        f"the style alone has rank 5 in unet.{LINEAR}, and its response is to be kept: expected --rank 5 or more, got 2. "
        "Ask for more ranks, or leave --keep-style away."
    )


# ------------------------------------------------------------------------------------------ full matrices


def full(seed: int, rank: int = 320) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((320, 320)))[0][:, :rank] for _ in range(2))
    return {key(LINEAR) + ".diff": (left * 0.5 ** np.arange(rank) @ right.T).astype(np.float32)}


@pytest.mark.parametrize("format", ["same", "diffusers"])
def test_a_full_matrix_becomes_low_rank_at_a_stated_error(tmp_path: Path, format: str) -> None:
    path, out = write(tmp_path / "a.safetensors", full(1)), tmp_path / "b.safetensors"
    report = nplora.convert(nplora.load(path), out, error=1e-2, format=format)
    dW = full(1)[key(LINEAR) + ".diff"].astype(float)
    update = nplora.load(out)[f"unet.{LINEAR}"].update
    assert update.kind == "LoRA"
    assert update.rank == 7  # 0.5^7 < 0.01
    assert abs(report["compression"]["relative_error"] - nearest(dW, 7) / np.linalg.norm(dW)) < 1e-6
    assert report["left_out"] == {}
    assert verify(out).passed


def test_a_full_matrix_of_full_rank_is_kept_where_that_is_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {key(LINEAR) + ".diff": rng.standard_normal((320, 320)).astype(np.float32)}
    path, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    report = nplora.convert(nplora.load(path), out, error=1e-3)
    assert np.array_equal(read(out)[0][key(LINEAR) + ".diff"], tensors[key(LINEAR) + ".diff"])
    assert report["compression"]["relative_error"] == 0
    assert verify(out).passed
    nplora.convert(nplora.load(path), tmp_path / "d.safetensors", error=1e-3, format="diffusers")
    assert relative(delta(tmp_path / "d.safetensors", LINEAR), tensors[key(LINEAR) + ".diff"]) < 1e-3


@pytest.mark.parametrize("kind", based.KINDS)
def test_a_kind_on_its_base_becomes_low_rank_at_a_stated_error(tmp_path: Path, kind: str) -> None:
    made = based.module(kind, LINEAR)
    out, base = tmp_path / "b.safetensors", put_base(tmp_path / "base.safetensors")
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, made))
    report = nplora.convert(adapter, out, base=base, rank=40)
    rank = nplora.load(out)[f"unet.{LINEAR}"].update.rank
    assert rank <= 40
    error = np.linalg.norm(delta(out, LINEAR) - made.dense) / np.linalg.norm(made.dense)
    assert abs(error - report["compression"]["relative_error"]) < 1e-5
    assert verify(out).passed


def test_a_loha_is_compressed_from_its_factors(tmp_path: Path) -> None:
    made = based.module("DoRA of a LoHa", LINEAR)
    del made.tensors[".dora_scale"]
    path, out = put(tmp_path / "a.safetensors", LINEAR, made), tmp_path / "b.safetensors"
    exact = flat(nplora.load(path)[f"unet.{LINEAR}"].delta())
    nplora.convert(nplora.load(path), out, rank=2)
    assert set(read(out)[0]) == {key(LINEAR) + suffix for suffix in (".lora_up.weight", ".lora_down.weight", ".alpha")}
    assert abs(np.linalg.norm(delta(out, LINEAR) - exact) - nearest(exact, 2)) < 1e-5 * np.linalg.norm(exact)


# ------------------------------------------------------------------------------------------ what is refused

REFUSED = {
    "two goals": ({"energy": 0.9, "error": 0.1}, "--energy and --error say the same in two ways. Give one of them."),
    "no goal": (
        {"keep_style": True},
        "--keep-style says how to compress, but not how far. Add --rank, --energy or --error.",
    ),
    "rank 0": ({"rank": 0}, "rank is out of range: expected a whole number from 1, got 0."),
    "energy 2": ({"energy": 2}, "energy is out of range: expected a number from 0 to 1, got 2."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_goals_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    options, text = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*map(nplora.load, pair(tmp_path)), **options)
    assert str(caught.value).startswith(text)


def test_keeping_the_style_needs_one(tmp_path: Path) -> None:
    adapter = nplora.load(pair(tmp_path)[0])
    with pytest.raises(UsageError, match="--keep-style needs a subject and a style: got 3 adapters"):
        nplora.fuse(adapter, adapter, adapter, keep_style=True, rank=4)
