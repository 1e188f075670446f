"""A few seconds of the fuzz target in every test run, and a proof that it would find something."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

import nplora
from nplora.storage.tensors import TensorFile

from .fuzz_header import ADAPTERS, fuzz, load_and_fuse


def test_only_errors_of_ours_come_out() -> None:
    findings = fuzz(seconds=2.5)
    assert not findings.crashes
    assert "accepted" in findings.kinds
    # It gets past the first check: both the header's text and its entries are refused in many ways.
    assert len(findings.kinds) >= 15
    assert findings.runs >= 200


@pytest.mark.parametrize("number", range(len(ADAPTERS)))
def test_every_adapter_among_the_seeds_is_one(number: int, tmp_path: Path) -> None:
    path = tmp_path / "seed.safetensors"
    path.write_bytes(ADAPTERS[number])
    assert len(nplora.load(path)) + len(nplora.load(path).vectors) > 0


def test_most_of_them_fuse_with_themselves(tmp_path: Path) -> None:
    fused = 0
    for number, data in enumerate(ADAPTERS):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        with suppress(nplora.NploraError):
            load_and_fuse(path)
            fused += 1
    assert fused > len(ADAPTERS) / 2


def test_the_target_can_fail() -> None:
    def careless(path: Path) -> None:
        for name in TensorFile(path).header.metadata:
            raise ValueError(name)

    findings = fuzz(seconds=0.2, entry_points=[careless])
    assert [story for _, story in findings.crashes] == ["ValueError in careless: format"]


def test_a_seed_names_a_run() -> None:
    seen: list[list[int]] = []
    for _ in range(2):
        sizes: list[int] = []
        fuzz(seconds=0.2, seed=7, entry_points=[lambda path, sizes=sizes: sizes.append(path.stat().st_size)])
        seen.append(sizes)
    common = min(map(len, seen))
    assert common > 20
    assert seen[0][:common] == seen[1][:common]
