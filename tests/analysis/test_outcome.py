"""What a fused file holds of its parts, against dense least squares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nplora
from making import CONVOLUTIONS, SD15, TEXT, make
from nplora.analysis.outcome import outcome


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, nplora.Adapter]:
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1, rank=4, alpha=2, dtype="F32")
    make(tmp_path / "ink.safetensors", "diffusers", {**SD15, **CONVOLUTIONS}, seed=2, rank=8, dtype="F32")
    return {
        role: nplora.load(tmp_path / f"{name}.safetensors") for role, name in (("subject", "cat"), ("style", "ink"))
    }


def told(pair: dict[str, nplora.Adapter], folder: Path, **parameters: object) -> dict[str, object]:
    nplora.fuse(*pair.values(), **parameters).save(folder / "out.safetensors", dtype="fp32")
    strengths = {role: float(parameters.get(f"{role}_strength", 1.0)) for role in pair}
    found = outcome(nplora.load(folder / "out.safetensors"), pair, strengths)
    assert json.dumps(found, allow_nan=False)
    return found


@pytest.mark.parametrize(("w_c", "w_s"), [(1.0, 1.0), (0.7, -0.4)])
def test_plain_addition_holds_the_strengths(
    w_c: float, w_s: float, pair: dict[str, nplora.Adapter], tmp_path: Path
) -> None:
    found = told(pair, tmp_path, mu=0, subject_strength=w_c, style_strength=w_s)
    total = found["total"]
    assert (total["subject_kept"], total["style_kept"], total["rest"]) == (pytest.approx(w_c), pytest.approx(w_s), 0.0)
    assert total["fused"] == pytest.approx(total["sum"], rel=1e-6)
    cat = np.sqrt(sum(np.linalg.norm(module.delta()) ** 2 for module in pair["subject"].values()))
    assert total["subject"] == pytest.approx(abs(w_c) * cat)


def test_every_module_is_the_dense_fit(pair: dict[str, nplora.Adapter], tmp_path: Path) -> None:
    found = told(pair, tmp_path, mu=3)
    fused = nplora.load(tmp_path / "out.safetensors")
    assert found["modules"][0]["module"].startswith("unet.down_blocks.0")
    for row in found["modules"]:
        F = fused[row["module"]].delta().ravel()
        parts = {role: a[row["module"]].delta().ravel() for role, a in pair.items() if row["module"] in a}
        fit = np.linalg.lstsq(np.stack(list(parts.values()), axis=1), F)[0]
        kept = dict(zip(parts, fit, strict=True))
        for role in pair:
            wanted = kept.get(role)
            assert row[f"{role}_kept"] == (None if wanted is None else pytest.approx(wanted, abs=1e-4))
        rest = np.linalg.norm(F - sum(k * parts[role] for role, k in kept.items())) / np.linalg.norm(F)
        assert row["rest"] == pytest.approx(rest, abs=2e-4)
        assert row["fused"] == pytest.approx(np.linalg.norm(F), rel=1e-6)
        assert row["sum"] == pytest.approx(np.linalg.norm(sum(parts.values())), rel=1e-6)


def test_blocks_add_up(pair: dict[str, nplora.Adapter], tmp_path: Path) -> None:
    found = told(pair, tmp_path, mu=1)
    for kind in ("fused", "subject", "style"):
        squares = sum(block[kind] ** 2 for block in found["blocks"])
        assert squares == pytest.approx(found["total"][kind] ** 2)
        assert squares == pytest.approx(sum(module[kind] ** 2 for module in found["modules"]))


def test_one_seed_is_a_strength(tmp_path: Path) -> None:
    for name, seed in (("cat", 1), ("ink", 2)):
        make(tmp_path / f"{name}.safetensors", seed=seed, down_seed=9, dtype="F32")
    pair = {
        role: nplora.load(tmp_path / f"{name}.safetensors") for role, name in (("subject", "cat"), ("style", "ink"))
    }
    total = told(pair, tmp_path, mu=1)["total"]
    assert (total["subject_kept"], total["style_kept"]) == (pytest.approx(0.5, abs=1e-3), pytest.approx(1.0, abs=1e-3))


def test_full_matrices_and_a_zero_part(tmp_path: Path) -> None:
    name = next(iter(SD15))
    make(tmp_path / "cat.safetensors", modules={name: SD15[name]}, seed=1, full=[name], dtype="F32")
    make(tmp_path / "ink.safetensors", modules={name: SD15[name]}, seed=2, size=0.0, dtype="F32")
    pair = {role: nplora.load(tmp_path / f"{n}.safetensors") for role, n in (("subject", "cat"), ("style", "ink"))}
    (row,) = told(pair, tmp_path, mu=0)["modules"]
    assert (row["subject_kept"], row["style_kept"], row["rest"]) == (pytest.approx(1.0), None, 0.0)
