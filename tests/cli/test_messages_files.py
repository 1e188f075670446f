"""The wording of errors about configs, recipes and outputs that cannot be written; test_messages.py has the rest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from cli.conftest import Nplora
from making import PLAIN, SD15, make
from nplora.storage import TensorFile

FUSE = "fuse cat.safetensors ink.safetensors -o out.safetensors"

# ------------------------------------------------------------------------------------------ configs: status 3


def test_configs(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "peft", "peft", PLAIN, config={"lora_alpha": "lots"})
    assert refused("inspect peft") == (3, ("layers.0.self_attn.q_proj: lora_alpha is not a number: got 'lots'. "
                                          "Mend adapter_config.json."))  # fmt: skip
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    assert refused("inspect peft") == (
        3, f"{Path('peft', 'adapter_config.json')}: the config is not valid JSON. Download it again, or mend it."
    )  # fmt: skip
    make(tmp_path / "odd.safetensors", "diffusers", SD15, metadata={"lora_adapter_metadata": "{"})
    assert refused("inspect odd.safetensors") == (
        3, ("odd.safetensors: lora_adapter_metadata: the adapter metadata is not valid JSON. Remove that metadata "
        "entry; then "
        "alpha keys or scale 1 apply."),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ recipes: status 3


@pytest.fixture
def made(refused: Nplora, nplora: Nplora) -> Nplora:
    """there.safetensors, made of cat and ink."""
    assert nplora("fuse cat.safetensors ink.safetensors -o there.safetensors -q").status == 0
    return refused


def test_no_recipe(refused: Nplora) -> None:
    assert refused("verify cat.safetensors") == (
        3, ("cat.safetensors: nplora.recipe: the header holds no recipe. Name the inputs, and the options that they "
        "were fused "
        "with: nplora verify OUTPUT SUBJECT STYLE."),
    )  # fmt: skip


def test_an_input_is_gone(made: Nplora, tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").unlink()
    assert made("verify there.safetensors") == (
        3, ("there.safetensors: the style that the recipe names is not found: expected ink.safetensors beside the "
        "output or in "
        "the current folder. Name the inputs: nplora verify OUTPUT SUBJECT STYLE."),
    )  # fmt: skip


def test_an_input_is_another_one(made: Nplora, tmp_path: Path) -> None:
    expected = json.loads(package_metadata(tmp_path / "there.safetensors"))["inputs"]["style"]["sha256"]
    make(tmp_path / "ink.safetensors", seed=3)
    got = hashlib.sha256((tmp_path / "ink.safetensors").read_bytes()).hexdigest()
    message = (
        "ink.safetensors: this is not the style that the recipe names (ink.safetensors): the bytes differ: expected "
        "sha256 "
        f"{expected[:12]}…, got {got[:12]}…. Use the file that was fused; name it if it lies elsewhere: nplora "
        "verify OUTPUT "
        "SUBJECT STYLE."
    )
    assert made("verify there.safetensors cat.safetensors ink.safetensors") == (3, message)
    assert made("verify there.safetensors") == (
        3,
        message.replace("ink.safetensors: ", f"{Path('ink.safetensors')}: ", 1),
    )


def package_metadata(path: Path) -> str:
    return TensorFile(path).header.metadata["nplora.recipe"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("[", "the recipe in the header cannot be read"),
        ("[]", "the recipe in the header cannot be read"),
        ('{"inputs": {}, "method": "np", "parameters": {}}', "the recipe in the header does not name its inputs"),
        (
            (
                '{"inputs": {"subject": {"name": "cat.safetensors"}, "style": {"name": "ink.safetensors"}}, "method": '
                '"np", '
                '"parameters": {"mu": -1}}'
            ),
            "the recipe in the header cannot be read: expected a number from 0 to inf, got -1",
        ),
    ],
)
def test_a_recipe_that_makes_no_sense(recipe: str, words: str, refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "there.safetensors", metadata={"nplora.recipe": recipe})
    assert refused("verify there.safetensors") == (
        3, f"there.safetensors: nplora.recipe: {words}. Name the inputs: nplora verify OUTPUT SUBJECT STYLE."
    )  # fmt: skip


def test_a_recipe_of_another_method(refused: Nplora, tmp_path: Path) -> None:
    recipe = {"inputs": {"subject": {"name": "cat.safetensors"}, "style": {"name": "ink.safetensors"}}, "method": "zip",
              "parameters": {}}  # fmt: skip
    make(tmp_path / "there.safetensors", metadata={"nplora.recipe": json.dumps(recipe)})
    assert refused("verify there.safetensors") == (
        3, "there.safetensors: the method 'zip' of the recipe is not known. Update nplora."
    )  # fmt: skip


def test_a_recipe_cannot_point_elsewhere(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path.parent / "secret.safetensors")
    name = os.fspath(tmp_path.parent / "secret.safetensors")
    recipe = {"inputs": {"subject": {"name": name}}, "method": "convert", "parameters": {}}
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    make(tmp_path / "deep" / "deeper" / "there.safetensors", metadata={"nplora.recipe": json.dumps(recipe)})
    there = Path("deep", "deeper", "there.safetensors")
    assert refused(f"verify {there}") == (
        3, (f"{there}: the subject that the recipe names is not found: expected secret.safetensors beside the output "
        "or in the "
        "current folder. Name the inputs: nplora verify OUTPUT SUBJECT STYLE."),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ cannot write: status 4


def test_outputs(refused: Nplora, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"precious")
    for line in (
        "fuse cat.safetensors ink.safetensors -o there.safetensors",
        "convert cat.safetensors -o there.safetensors",
    ):
        assert refused(line) == (
            4,
            "there.safetensors: the output exists already. Choose another name, or add --overwrite.",
        )
    assert there.read_bytes() == b"precious"
    assert refused("fuse cat.safetensors ink.safetensors -o out.pt") == (
        4, ("out.pt: the output's name does not end in .safetensors. Name it out.safetensors; a folder is written with "
        "--format peft."),
    )  # fmt: skip
    (tmp_path / "r.json").write_text("{}")
    assert refused(f"{FUSE} --report r.json") == (
        4,
        "r.json: the report exists already. Choose another name, or add --overwrite.",
    )


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_is_not_ours(refused: Nplora, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert refused("fuse cat.safetensors ink.safetensors -o closed/out.safetensors") == (
        4, ("closed/out.safetensors: cannot be written (Permission denied). The folder is not yours to write: choose "
        "another. "
        "Nothing was changed."),
    )  # fmt: skip


def test_a_file_where_a_folder_should_be(refused: Nplora) -> None:
    assert refused("fuse cat.safetensors ink.safetensors -o cat.safetensors/out.safetensors") == (
        4, "cat.safetensors/out.safetensors: cannot be written (Not a directory). Nothing was changed."
    )  # fmt: skip


def test_too_large_for_half(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "big.safetensors", modules=SD15, dtype="F32", size=1e8)
    status, message = refused("fuse big.safetensors ink.safetensors -o out.safetensors --dtype fp16")
    assert status == 4
    assert message.removeprefix(f"{message.partition(':')[0]}: ") == (
        "a fused number does not fit fp16: expected at most 65504. Use --dtype bf16 or fp32."
    )


def test_a_full_disk(refused: Nplora, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", full)
    assert refused(FUSE) == (
        4, ("out.safetensors: cannot be written (No space left on device). The disk is full: free some space. Nothing "
        "was changed.")
    )  # fmt: skip
