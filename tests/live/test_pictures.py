"""Pipelines of six kinds paint with the live fusion what they paint with the fused file.

Tolerance: 1e-5 of the largest value, two steps, float32. The two routes round differently (2^-24), and the pictures
with and without the projection differ by far more, as the test checks.
"""

from __future__ import annotations

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no pipeline to fuse in")

import numpy as np

import nplora
import nplora.diffusers
from consumers.tiny import tiny_pipeline
from live.pictures import PAIRS, paint

pytestmark = [
    pytest.mark.consumer,
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
    ),  # peft, of transformers
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # two adapters are what is meant
]
TOLERANCE = 1e-5


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("model", PAIRS)
def test_live_pictures_are_those_of_the_files(model, tmp_path):
    pair = PAIRS[model]
    pipe = tiny_pipeline(pair.kind)
    inputs = [
        getattr(pair, role).make(tmp_path / role, pair.kind, seed) for seed, role in enumerate(("subject", "style"))
    ]
    pictures = {}
    try:
        for name, adapter in zip(("cat", "ink"), inputs, strict=True):
            pipe.load_lora_weights(adapter.path, adapter_name=name)
        pipe.set_adapters(["cat", "ink"])
        pictures["both"] = paint(pipe, pair.size)
        done = nplora.diffusers.fuse_adapters(pipe, subject="cat", style="ink", mu=1.0)
        assert done.fused > 0 and done.passed > 0  # noqa: PT018 - one fact: both sorts of layer are there
        pictures["live"] = paint(pipe, pair.size)
        for mu in (0, "inf", 1.0):
            nplora.diffusers.set_mu(pipe, mu)
            pictures[mu] = paint(pipe, pair.size)
        for mu in (1.0, "inf"):
            pipe.unload_lora_weights()
            out = tmp_path / f"{mu}.safetensors"
            nplora.fuse(*inputs, mu=mu).save(out)
            pipe.load_lora_weights(str(out))
            pictures[f"file {mu}"] = paint(pipe, pair.size)
    finally:
        pipe.unload_lora_weights()
    assert distance(pictures["live"], pictures["file 1.0"]) < TOLERANCE
    assert distance(pictures["inf"], pictures["file inf"]) < TOLERANCE
    assert distance(pictures[0], pictures["both"]) < TOLERANCE
    assert np.array_equal(pictures[1.0], pictures["live"])  # there and back
    assert distance(pictures["live"], pictures["both"]) > 5 * TOLERANCE
    assert distance(pictures["inf"], pictures["live"]) > 5 * TOLERANCE
