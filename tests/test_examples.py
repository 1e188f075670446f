"""The examples run as they are, and the demo says what the README says it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nplora
from making import SD15, make
from nplora.checking.verify import verify

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"


def run(example: str, *words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "cat.safetensors", "kohya", seed=1, alpha=4)
    make(tmp_path / "ink.safetensors", "diffusers", seed=2)
    make(tmp_path / "twin.safetensors", "diffusers", seed=3, down_seed=1)
    return tmp_path


def test_every_example_is_tested() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {
        "demo.py", "sdxl_pairs.py", "fuse.py", "inspect_pair.py",
    }  # fmt: skip


@pytest.mark.parametrize("example", ["fuse.py", "inspect_pair.py"])
def test_an_example_is_short(example: str) -> None:
    lines = (EXAMPLES / example).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 12


def test_fuse(folder: Path) -> None:
    said = run("fuse.py", "cat.safetensors", "ink.safetensors", "cat-ink.safetensors", folder=folder)
    assert said.startswith("Unrelated runs")
    assert len(nplora.load(folder / "cat-ink.safetensors")) == len(SD15)
    assert verify(folder / "cat-ink.safetensors").passed


def test_inspect_pair(folder: Path) -> None:
    said = run("inspect_pair.py", "cat.safetensors", "twin.safetensors", folder=folder).splitlines()
    assert said[0] == "Stable Diffusion 1.x: 4 modules, Stable Diffusion 1.x: 4 modules"
    assert said[1].startswith("Shared initialisation (100 % overlap): mu = 0.5 acts as subject strength 0.67")
    assert len(said) == 2 + len(SD15)
    assert said[2].startswith("100.0%  unet.")


@pytest.mark.slow
def test_the_readme_quotes_the_made_pairs(tmp_path: Path) -> None:
    said = run("sdxl_pairs.py", folder=tmp_path)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> (.+)$", readme, re.MULTILINE)
    assert len(quoted) == 2
    for sentence in quoted:
        assert sentence in " ".join(said.split()), sentence
    assert said.count("is what its recipe says") == 2
    assert {file.name for file in (tmp_path / "sdxl-pairs").iterdir()} == {
        "subject.safetensors", "style-shared-seed.safetensors", "style-other-seed.safetensors",
        "fused-style-shared-seed.safetensors", "fused-style-other-seed.safetensors",
        "fused-style-shared-seed.json", "fused-style-other-seed.json",
    }  # fmt: skip


@pytest.mark.consumer
@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / "world" / "model").is_dir(), reason="the folder world/model is missing")
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
    said = run("demo.py", "--steps", "2", folder=tmp_path)
    assert said.count("is what its recipe says") == 4
    assert said.count("overlap, chance is ") == 4
    page = (tmp_path / "demo" / "demo.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 * 7
    assert page.count("overlap, chance is ") == 4
    assert not re.search(r"https?:", page)
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 20_000
