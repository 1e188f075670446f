"""Which of many adapters share a seed, which a subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nplora
from making import SD15, TEXT, make, tensors, write
from nplora.analysis.family import groups, relate, relatives, trainer


def family(folder: Path) -> list[nplora.Adapter]:
    """a and b of one seed; c and d of one subject (the same outputs) and two seeds; e alone; f for another model."""
    for name, seed, down in (("a", 1, 9), ("b", 2, 9), ("c", 3, 3), ("e", 5, 5)):
        make(folder / f"{name}.safetensors", "diffusers" if name == "b" else "kohya", seed=seed, down_seed=down, rank=4)
    make(folder / "d.safetensors", seed=3, down_seed=4, rank=4)  # c's up factors
    make(folder / "f.safetensors", "plain", {"m.0.x": (24, 12)}, seed=6)
    return [nplora.load(folder / f"{name}.safetensors") for name in "abcdef"]


def test_seeds_subjects_and_a_readable_order(tmp_path: Path) -> None:
    found = relate(family(tmp_path))
    assert json.dumps(found, allow_nan=False)
    assert found["groups"] == {"seed": [[0, 1]], "subject": [[2, 3]], "trainer": [[0, 2, 3, 4]]}
    assert found["down_cosine"][0][1] == pytest.approx(1.0, abs=1e-3)
    assert abs(found["down_cosine"][0][2]) < 0.1
    assert found["column_alike"][2][3] > 0.95
    assert abs(found["row_alike"][2][3]) < 0.1
    assert found["down_cosine"][0][5] is None
    order = found["order"]
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert abs(order.index(0) - order.index(1)) == 1
    assert abs(order.index(2) - order.index(3)) == 1
    assert relatives(found) == [("one seed", "a, b"), ("write alike", "c, d")]
    assert found["sentences"][0] == "Between two adapters of one seed mu acts mostly as a strength."
    assert found["sentences"][1].startswith("Adapters that write alike add up")
    assert found["sentences"][2].endswith("Stable Diffusion 1.x (5), unknown base (1).")


def test_matrices_are_symmetric_and_near_the_dense_values(tmp_path: Path) -> None:
    adapters = family(tmp_path)
    found = relate(adapters)
    for name in ("down_cosine", "row_alike", "column_alike", "cosine"):
        assert all(found[name][i][j] == found[name][j][i] for i in range(6) for j in range(6))
    vectors = [np.concatenate([adapter[name].delta().ravel() for name in SD15]) for adapter in adapters[:5]]
    for i in range(5):
        for j in range(i):
            wanted = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            assert found["cosine"][i][j] == pytest.approx(wanted, abs=1e-4)


def test_a_wide_adapter_is_not_alike_with_everything(tmp_path: Path) -> None:
    """A rank that fills the weight spans all outputs, which says nothing."""
    for name, seed, rank in (("a", 1, 4), ("b", 2, 4), ("wide", 3, 320)):
        modules = {name: shape for name, shape in SD15.items() if shape == (320, 320)}
        make(tmp_path / f"{name}.safetensors", modules=modules, seed=seed, rank=rank)
    found = relate([nplora.load(path) for path in sorted(tmp_path.iterdir())])
    assert found["groups"]["subject"] == []
    assert found["sentences"][0].startswith("No two of them share a seed")


def test_files_that_touch_different_components(tmp_path: Path) -> None:
    make(tmp_path / "a.safetensors", modules=SD15, seed=1)
    make(tmp_path / "b.safetensors", modules=TEXT, seed=2)
    make(tmp_path / "c.safetensors", modules={**SD15, **TEXT}, seed=3, down_seed=2)
    found = relate([nplora.load(path) for path in sorted(tmp_path.iterdir())])
    assert found["down_cosine"][0][1] is None
    assert found["groups"]["seed"] == [[1, 2]]


def test_two_files_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        paths.append(make(tmp_path / name / "x.safetensors", seed=1))
    found = relate([nplora.load(path) for path in paths])
    assert [file["name"] for file in found["files"]] == [str(path) for path in paths]


def test_not_a_number_is_left_out(tmp_path: Path) -> None:
    arrays = tensors(seed=1)
    key = next(key for key in arrays if "down" in key)
    arrays[key] = np.full_like(arrays[key], np.nan)
    write(tmp_path / "a.safetensors", arrays)
    make(tmp_path / "b.safetensors", seed=1)
    found = relate([nplora.load(path) for path in sorted(tmp_path.iterdir())])
    assert found["down_cosine"][0][1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"ss_network_module": "networks.lora"}, "sd-scripts (networks.lora)"),
        ({"software": '{"name": "ai-toolkit", "version": "1"}'}, "ai-toolkit"),
        ({"software": "OneTrainer"}, "OneTrainer"),
        ({"nplora.recipe": "{}"}, "nplora"),
        ({}, "unknown; names: kohya / sd-scripts"),
    ],
)
def test_trainers(metadata: dict[str, str], name: str, tmp_path: Path) -> None:
    assert trainer(nplora.load(make(tmp_path / "x.safetensors", metadata=metadata))) == name


def test_groups_are_connected_not_complete() -> None:
    chain = np.array([[1, 0.9, np.nan], [0.9, 1, 0.9], [np.nan, 0.9, 1]])
    assert groups(chain, 0.8) == [[0, 1, 2]]
    assert groups(chain, 0.95) == []
