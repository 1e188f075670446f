"""The pages of docs/methods: one for each method, with the code's tables; what they show runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nplora
from making import make
from nplora.methods import known_methods

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "methods"
OTHERS = {"README", "block-slice", "k-lora"}
SDXL = {
    f"unet.up_blocks.0.attentions.{block}.transformer_blocks.0.attn1.to_{x}": (1280, 1280)
    for block in range(3) for x in "qk"
}  # fmt: skip


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", REPOSITORY / "tools" / "docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    assert {page.stem for page in FOLDER.glob("*.md")} == known_methods().keys() | OTHERS


@pytest.mark.parametrize("name", ["README", *known_methods()])
def test_the_tables_are_the_code_s(name: str, tables: ModuleType) -> None:
    path = FOLDER / f"{name}.md"
    page = path.read_text(encoding="utf-8")
    assert page == tables.filled(page, tables.pages()[path]), "run .venv/bin/python tools/docs_tables.py"


@pytest.mark.parametrize("name", known_methods())
def test_a_page_says_when_its_method_helps_and_when_not(name: str) -> None:
    headings = re.findall(r"^## (.+)$", (FOLDER / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Idea", "When it helps", "When it does nothing, or something else"]


def code(name: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", (FOLDER / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters of SDXL."""
    for seed, name in enumerate(("cat", "ink")):
        make(tmp_path / f"{name}.safetensors", "kohya", SDXL, seed=seed, rank=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippet_of_k_lora_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code("k-lora", "python"), "k-lora.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("gamma ")


def test_a_block_slice_takes_one_block_of_each(folder: Path) -> None:
    from nplora.cli import main

    assert main(code("block-slice", "shell").split()[1:]) == 0
    cat, ink, slice_ = (nplora.load(folder / f"{name}.safetensors") for name in ("cat", "ink", "slice"))
    assert set(slice_) == {name for name in SDXL if ".attentions.2." not in name}
    for name in slice_:
        wanted = (cat if ".attentions.0." in name else ink)[name].delta()
        assert np.array_equal(slice_[name].delta(), wanted)


def test_a_block_slice_of_a_file_with_itself_is_the_file_in_two_blocks(folder: Path) -> None:
    cat = nplora.load(folder / "cat.safetensors")
    rules = "subject@content-block=1,subject@*=0,style@style-block=1,style@*=0"
    fused = nplora.fuse(cat, cat, method="linear", strengths=rules)
    assert all(np.array_equal(fused[name].delta(), cat[name].delta()) for name in fused)
    assert len(fused) == 4
