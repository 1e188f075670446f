"""Adapters with DoRA: looked at by their direction where no base model is at hand, exactly beside one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nplora
from making import SD15, key_stem, make, numbers, tensors, write
from nplora.analysis.inspection import describe, overview, sentence
from nplora.reading.base import BaseModel


@pytest.fixture
def dora(tmp_path: Path) -> nplora.Adapter:
    """cat.safetensors of the tests, with magnitudes."""
    arrays = tensors(seed=1, rank=4, alpha=2.0, dtype="F32")
    for name, shape in SD15.items():
        magnitude = 1 + np.abs(numbers(1, name, (shape[0], 1)))
        arrays[f"{key_stem(name, 'kohya')}.dora_scale"] = magnitude.astype(np.float32)
    return nplora.load(write(tmp_path / "dora.safetensors", arrays))


def test_without_the_base_its_direction_is_described(dora: nplora.Adapter, tmp_path: Path) -> None:
    plain = describe(nplora.load(make(tmp_path / "cat.safetensors", seed=1, rank=4, alpha=2.0, dtype="F32")))
    found = describe(dora)
    assert sentence(found) == "DoRA for Stable Diffusion 1.x: 4 modules of rank 4 at scale 0.5."
    assert found["kinds"] == {"DoRA direction": 4}
    assert overview(found)["kind"] == "DoRA"
    (note,) = found["notes"]
    assert note.startswith("the numbers of 4 DoRA modules are those of the direction, without the magnitude: --base ")
    for one, two in zip(found["details"], plain["details"], strict=True):
        assert one | {"kind": ""} == two | {"kind": ""}


def test_beside_the_base_it_is_exact(dora: nplora.Adapter, tmp_path: Path) -> None:
    weights = {f"{name.removeprefix('unet.')}.weight": numbers(5, name, shape).astype(np.float32) / 20
               for name, shape in SD15.items()}  # fmt: skip
    base = BaseModel(write(tmp_path / "model.safetensors", weights))
    found = describe(dora, base)
    assert (found["kinds"], found["notes"], found["ranks"]) == ({"DoRA": 4}, [], {4: 4})
    exact = nplora.expand(dora, base)
    for detail in found["details"]:
        singular = np.linalg.svd(exact[detail["module"]].update.delta(), compute_uv=False)
        assert detail["norm"] == pytest.approx(np.linalg.norm(singular), rel=1e-6)
        assert detail["singular_values"][:8] == pytest.approx(singular[:8], rel=1e-4)
        assert (detail["scale"], detail["known_from"]) == (0.5, "alpha")


def test_two_are_compared_by_their_directions(dora: nplora.Adapter, tmp_path: Path) -> None:
    ink, cat = (nplora.load(make(tmp_path / f"{seed}.safetensors", seed=seed, rank=4, alpha=2.0, dtype="F32"))
                for seed in (2, 1))  # fmt: skip
    found, wanted = nplora.compare(dora, ink), nplora.compare(cat, ink)
    assert found["overlaps"] == wanted["overlaps"]
    assert found["notes"] == ["subject: of 4 DoRA modules the direction is compared, not the magnitude"]
