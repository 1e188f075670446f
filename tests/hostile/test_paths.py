"""Paths and folders that hold no adapter: one sentence each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nplora.errors import InputError
from nplora.storage.tensors import MAX_CONFIG, TensorFile

from .attacks import ATTACKS, BAD_WRITER, CUT_OFF, LFS, PICKLE
from .crafting import assemble, tensor

MEND = "Download it again, or mend it."


def message_of(path: object) -> str:
    with pytest.raises(InputError) as caught:
        TensorFile(path)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert message_of(path) == f"{path}: no such file. Check the path."


def test_missing_pickle_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    assert message_of(path) == f"{path}: no such file. Check the path."


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".PT"])
def test_pickle_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"adapter{suffix}"
    path.write_bytes(b"\x80\x04.")
    assert message_of(path) == f"{path}: {PICKLE}"


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    assert message_of(path) == f"{path}: this is a pipe or a device, not a file. Save it to a file first."


def test_name_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    hint = "Check the path and its permissions."
    assert message_of(path) == f"{path}: cannot be read (File name too long). {hint}"


def test_nul_in_the_name() -> None:
    assert message_of("a\0b") == "a\0b: cannot be read (embedded null byte). Check the path and its permissions."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(assemble({"a": tensor()}))
    path.chmod(0)
    hint = "Check the path and its permissions."
    assert message_of(path) == f"{path}: cannot be read (Permission denied). {hint}"


def test_folder_without_adapter(tmp_path: Path) -> None:
    problem = f"{tmp_path}: the folder holds no adapter: expected adapter_model.safetensors"
    assert message_of(tmp_path) == f"{problem}, got no safetensors file. Name the file itself."
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(assemble({"a": tensor()}))
    assert message_of(tmp_path) == f"{problem}, got 2 safetensors files. Name the file itself."


def test_folder_with_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(b"")
    assert message_of(tmp_path) == f"{path}: {PICKLE}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "the config is not valid JSON"),
        (b"{", "the config is not valid JSON"),
        (b"\xff\xfe", "the config is not valid JSON"),
        (b"[" * 100_000, "the config is not valid JSON"),
        (b"[1]", "the config is not a JSON object"),
        (b" " * (MAX_CONFIG + 1), f"the config is too long: expected at most {MAX_CONFIG} bytes"),
    ],
    ids=["empty", "cut", "not UTF-8", "nested", "a list", "too long"],
)
def test_broken_config(text: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(assemble({"a": tensor()}))
    config = tmp_path / "adapter_config.json"
    config.write_bytes(text)
    assert message_of(tmp_path) == f"{config}: {problem}. {MEND}"


# The broken files of the shared folder, and what each is told. Real downloads failed in these ways.
SHARED = {
    "broken-lfs-pointer-sdxl.safetensors": LFS,
    "broken-lfs-pointer-style.safetensors": LFS,
    "broken-two-bytes.safetensors": ATTACKS["two bytes"][1],
    "made-truncated-in-data.safetensors": (
        f"the file ends inside its data: expected 17504 bytes, got 11000 bytes. {CUT_OFF}"
    ),
    "made-truncated-in-header.safetensors": (
        f"the file ends inside its header: expected at least 1120 bytes, got 500 bytes. {CUT_OFF}"
    ),
    "made-header-length-2pow40.safetensors": ATTACKS["length 2^40"][1],
    "made-overlapping-offsets.safetensors": (
        "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight: "
        f"the byte range overlaps the tensor before it: expected offset 2048, got offset 0. {BAD_WRITER}"
    ),
    "headers-only-sd15-kohya-r128-te.json": ATTACKS["JSON"][1],
    "headers-only-flux-peft-r4.json": ATTACKS["JSON"][1],
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_broken_file(name: str, loras: Path, refusal_of: Callable[[Path], str]) -> None:
    assert refusal_of(loras / name) == SHARED[name]


def test_shared_valid_files_open(loras: Path) -> None:
    assert not TensorFile(loras / "notlora-empty.safetensors").tensors
    dtypes = TensorFile(loras / "notlora-all-dtypes.safetensors")
    for item in dtypes.tensors.values():
        assert item.read().shape == item.shape
    assert sorted(item.dtype for item in dtypes.tensors.values()) == sorted(
        ["U8", "U16", "U32", "I8", "F64", "F16", "F32", "I16", "I32"]
    )
