"""Files that lie about themselves: each ends in one sentence, quickly, and in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nplora.storage.tensors import TensorFile

from .attacks import ATTACKS, DAMAGED, GOOD
from .crafting import assemble, padded, tensor

Refusal = Callable[[Path], str]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_in_words(attack: str, tmp_path: Path, refusal_of: Refusal) -> None:
    data, message = ATTACKS[attack]
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    assert refusal_of(path) == message


@pytest.mark.parametrize("size", [100_000_001, 2**40])
def test_giant_header_is_refused_by_its_length(size: int, tmp_path: Path, refusal_of: Refusal) -> None:
    path = tmp_path / "giant.safetensors"
    path.write_bytes(assemble(b'{"a":[', b"", length=size))
    os.truncate(path, size + 8)  # sparse: the file does have that many bytes
    message = f"the header's length is out of range: expected at most 100000000 bytes, got {size} bytes. {DAMAGED}"
    assert refusal_of(path) == message


# 640, 896, 1152 and 1408 begin as a pickle does, 15392 and 60 as a web page; 64 spells nothing.
@pytest.mark.parametrize("length", [64, 60 + 256, 640, 896, 1152, 1408, 15392, 0x0A3C0])
def test_a_length_that_spells_something_else_is_a_length(length: int, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(padded(length))
    assert list(TensorFile(path).tensors) == ["a"]


def test_names_of_all_languages_are_names(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(assemble({"层.to_q\u200d 🎨": GOOD, "__metadata__": {"title": "two\nlines"}}))
    assert list(TensorFile(path).tensors) == ["层.to_q\u200d 🎨"]


def test_tensors_without_a_byte_are_tensors(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    entries = {"a": tensor(0, 0, shape=[0, 3]), "b": GOOD, "c": tensor(8, 8, shape=[5, 0])}
    path.write_bytes(assemble(entries))
    assert [t.read().shape for t in TensorFile(path).tensors.values()] == [(0, 3), (2,), (5, 0)]
