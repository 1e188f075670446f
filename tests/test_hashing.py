"""A digest that is begun early must be that of the file that is read later."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from making import make
from nplora import hashing
from nplora.storage import TensorFile


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("early", [False, True])
def test_the_digest_is_the_files(early: bool, tmp_path: Path) -> None:
    path = make(tmp_path / "cat.safetensors")
    if early:
        hashing.begin(os.fspath(path))
    assert TensorFile(path).sha256() == sha256(path)


def test_a_file_that_was_replaced_since_is_hashed_again(tmp_path: Path) -> None:
    path = make(tmp_path / "cat.safetensors", seed=1)
    hashing.begin(os.fspath(path))
    other = make(tmp_path / "other.safetensors", seed=2)
    assert other.stat().st_size == path.stat().st_size
    other.replace(path)
    assert TensorFile(path).sha256() == sha256(path)


@pytest.mark.parametrize("name", ["missing", "", "empty", "nul\0"])
def test_what_is_no_file_is_left_to_the_reader(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    hashing.begin(os.fspath(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=hashing.begin, args=[os.fspath(tmp_path / "pipe")], daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
