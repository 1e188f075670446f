"""Norm calibration, and the plain sum: what they promise, through files."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.test_priorities import MODULES, files, flat, rows
from making import make
from nplora.checking.verify import verify


def projected(subject: np.ndarray, style: np.ndarray, mu: float) -> np.ndarray:
    V, g = rows(style), 1.0 if mu == inf else mu / (1 + mu)
    return subject - g * (subject @ V) @ V.T


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("limit", [1.0, 1.01, 1.2, inf])
@pytest.mark.parametrize("mu", [0.0, 0.5, 5.0, inf])
def test_what_is_left_gets_its_norm_back_up_to_the_limit(mu: float, limit: float, side: str, tmp_path: Path) -> None:
    cat, ink = map(nplora.load, files(tmp_path, 2))
    fusion = nplora.fuse(cat, ink, mu=mu, calibrate=limit, side=side)
    fusion.save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    for name in fusion:
        subject, style = (flat(adapter[name].delta()) for adapter in (cat, ink))
        left = projected(subject, style, mu) if side == "input" else projected(subject.T, style.T, mu).T
        gain = min(limit, np.linalg.norm(subject) / np.linalg.norm(left))
        wanted = gain * left + style
        for found in (flat(fusion[name].delta()), flat(back[name].delta())):
            assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)
    result = verify(tmp_path / "out.safetensors")
    assert result.passed, result.sentence
    if mu and limit > 1:
        assert not verify(tmp_path / "out.safetensors", calibrate=1).passed


def test_with_one_initialisation_it_is_plain_addition(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / f"{seed}.safetensors", "plain", MODULES, rank=4, seed=seed, down_seed=0, dtype="F32")
        for seed in (1, 2)
    ]
    cat, ink = map(nplora.load, paths)
    fusion, added = nplora.fuse(cat, ink, mu=1, calibrate="inf"), nplora.fuse(cat, ink, method="linear")
    for name in fusion:
        np.testing.assert_allclose(fusion[name].delta(), added[name].delta(), atol=1e-6)
    assert fusion.report()["sentence"] == (
        "Shared initialisation (100 % overlap): calibration gives back what mu = 1 takes from the subject; the result is "
        "plain addition."
    )
    hard = nplora.fuse(cat, ink, mu="inf", calibrate="inf")  # nothing is left but rounding, which is not blown up
    for name in hard:
        np.testing.assert_allclose(hard[name].delta(), ink[name].delta(), atol=1e-5)


@pytest.mark.parametrize("mu", [0.5, inf])
def test_where_nothing_is_taken_away_nothing_is_given_back(mu: float, tmp_path: Path) -> None:
    """rho = 0: the gain is 1."""
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((40, 40)))[0].T
    paths = []
    for seed, own in enumerate((basis[:4], basis[4:9])):
        up = np.random.default_rng(seed).standard_normal((24, len(own)))
        tensors = {"m.x.y.lora_B.weight": up, "m.x.y.lora_A.weight": np.ascontiguousarray(own)}
        paths.append(make(tmp_path / f"{seed}.safetensors", modules={}, extra=tensors))
    cat, ink = map(nplora.load, paths)
    found, wanted = nplora.fuse(cat, ink, mu=mu, calibrate="inf"), nplora.fuse(cat, ink, method="linear")
    np.testing.assert_allclose(found["unknown.m.x.y"].delta(), wanted["unknown.m.x.y"].delta(), atol=1e-12)


def test_a_full_matrix_is_calibrated_as_well(tmp_path: Path) -> None:
    name = "m.x.y"
    full = nplora.load(
        make(tmp_path / "full.safetensors", "plain", {name: MODULES[name]}, seed=1, full=[name], dtype="F64")
    )
    low = nplora.load(make(tmp_path / "low.safetensors", "plain", {name: MODULES[name]}, seed=2, rank=9, dtype="F64"))
    out = tmp_path / "out.safetensors"
    nplora.fuse(full, low, mu="inf", calibrate="inf").save(out)
    found = nplora.load(out)[f"unknown.{name}"].delta() - low[f"unknown.{name}"].delta()
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(full[f"unknown.{name}"].delta()))
    assert verify(out).passed


# ------------------------------------------------------------------------------------------ linear


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_linear_is_the_exact_sum(count: int, tmp_path: Path) -> None:
    adapters = [nplora.load(path) for path in files(tmp_path, count)]
    out = tmp_path / "out.safetensors"
    report = nplora.fuse(*adapters, method="linear", strengths="1=0.5").save(out)
    back = nplora.load(out)
    for name in back:
        weights = [0.5, *[1.0] * (count - 1)]
        wanted = sum(w * adapter[name].delta() for w, adapter in zip(weights, adapters, strict=True))
        np.testing.assert_allclose(back[name].delta(), wanted, rtol=1e-6, atol=1e-9)
    assert report["method"] == "linear"
    assert report["sentence"].startswith("Exact weighted sum.")
    assert verify(out).passed


def test_linear_is_np_without_protection_byte_for_byte(tmp_path: Path) -> None:
    paths = files(tmp_path, 2, dtype="F16")
    contents = []
    for name, options in (("one", {"method": "linear"}), ("two", {"mu": 0})):
        nplora.fuse(*map(nplora.load, paths), **options).save(tmp_path / f"{name}.safetensors")
        file = nplora.load(tmp_path / f"{name}.safetensors").file
        contents.append({key: tensor.read().tobytes() for key, tensor in file.tensors.items()})
    assert contents[0] == contents[1]
