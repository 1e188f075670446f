"""Small matrices, for which threads would only get in each other's way; a pipeline with two adapters."""

from __future__ import annotations

import copy

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    from live.wan import WAN

    folder = tmp_path_factory.mktemp("wan")
    return {
        name: inputs.make(folder / name, "wan", seed).path
        for seed, (name, inputs) in enumerate({"cat": WAN.subject, "ink": WAN.style}.items())
    }


@pytest.fixture
def pipe(paths):
    """A pipeline of its own with a subject "cat" and a style "ink", both inactive in turn."""
    from consumers.tiny import tiny_pipeline

    pipe = copy.deepcopy(tiny_pipeline("wan"))
    for name, path in paths.items():
        pipe.load_lora_weights(path, adapter_name=name)
    return pipe
