"""The small adapters that tests are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from making import write


def test_write_makes_a_file_that_the_library_reads(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.array(2.0, np.float32)}
    found = safetensors.load_file(write(tmp_path / "x.safetensors", arrays, {"k": "v"}))
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in arrays.items()
    }
