"""A fusion that recalls what an earlier one learned of the same files writes the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nplora
from making import CONVOLUTIONS, SD15, make
from nplora.errors import InputError
from nplora.fusion import projection, recall

MODULES = {**SD15, **CONVOLUTIONS}


def pair(folder: Path, **options: object) -> tuple[Path, Path]:
    return tuple(
        make(folder / f"{name}.safetensors", "kohya", MODULES, seed=seed, **{"rank": 4, **options})
        for seed, name in ((1, "cat"), (2, "ink"))
    )


def written(fusion: nplora.Fusion, path: Path) -> bytes:
    """The bytes of a fusion's file; its name stands in the header, so it is always the same."""
    fusion.save(path / "out.safetensors", overwrite=True)
    return (path / "out.safetensors").read_bytes()


def count(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What is recalled from now on: True for each batch of which everything was known."""
    found: list[bool] = []
    asked = projection.recall

    def spy(*arguments):
        known = asked(*arguments)
        found.append(known is not None)
        return known

    monkeypatch.setattr(projection, "recall", spy)
    return found


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize(
    "options",
    [{"mu": 0.5}, {"mu": float("inf"), "calibrate": 1.5}, {"method": "np-spectral"}, {"method": "linear"}],
    ids=str,
)
def test_the_second_fusion_writes_what_a_first_would(dtype, options, tmp_path, monkeypatch):
    cat, ink = pair(tmp_path, dtype=dtype)
    fresh = written(nplora.fuse(nplora.load(cat), nplora.load(ink), **options), tmp_path)
    one, two = nplora.load(cat), nplora.load(ink)
    written(nplora.fuse(one, two, mu=2.0, subject_strength=0.3), tmp_path)
    recalled = count(monkeypatch)
    assert written(nplora.fuse(one, two, **options), tmp_path) == fresh
    assert recalled
    assert all(recalled)


def test_roles_and_other_ways_do_not_mix(tmp_path, monkeypatch):
    cat, ink = map(nplora.load, pair(tmp_path))
    nplora.fuse(cat, ink).save(tmp_path / "one.safetensors")
    recalled = count(monkeypatch)
    for index, (first, second, options) in enumerate(
        [(ink, cat, {}), (cat, ink, {"directions": 2}), (cat, ink, {"side": "output"})]
    ):
        nplora.fuse(first, second, **options).save(tmp_path / f"{index}.safetensors")
        assert nplora.verify(tmp_path / f"{index}.safetensors").passed
    assert not any(recalled)


def test_a_style_without_full_rank_is_looked_at_again(tmp_path, monkeypatch):
    cat, _ = map(nplora.load, pair(tmp_path, dtype="F32"))
    dead = nplora.load(make(tmp_path / "dead.safetensors", "kohya", MODULES, seed=5, rank=4, size=0.0))
    first = written(nplora.fuse(cat, dead), tmp_path)
    recalled = count(monkeypatch)
    assert written(nplora.fuse(cat, dead), tmp_path) == first
    assert not any(recalled)


def test_what_is_not_finite_is_named_each_time(tmp_path):
    cat, _ = map(nplora.load, pair(tmp_path))
    bad = nplora.load(make(tmp_path / "bad.safetensors", "kohya", MODULES, seed=1, size=float("inf")))
    for _ in range(2):
        with pytest.raises(InputError, match="values are NaN or infinite"):
            nplora.fuse(cat, bad).save(tmp_path / "out.safetensors")
    assert not bad.file.learned


def test_no_more_is_kept_than_there_is_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(recall, "KEPT_BYTES", 3 * 2 * 4 * 4 * 8)
    cat, ink = map(nplora.load, pair(tmp_path))
    one, two = (written(nplora.fuse(cat, ink), tmp_path) for _ in range(2))
    assert one == two
    assert len(cat.file.learned) == len(ink.file.learned) == 3
    assert all(np.isfinite(known[0]).all() for known in cat.file.learned.values())
