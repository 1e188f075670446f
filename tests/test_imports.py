"""What is imported when nothing heavy was asked for: nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "rich", "diffusers", "peft", "matplotlib", "gradio", "ray", "transformers", "scipy")

# Everything that must stay light: a name for the report, and code that runs it.
LIGHT = {
    "the package": "import nplora",
    "reading": "import nplora.storage.tensors",
}


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty packages with the heavy names, so that an import is seen whether or not the real one is installed."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for name in HEAVY:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return folder


def heavy_modules_of(code: str, stand_ins: Path, folder: Path) -> list[str]:
    """The heavy packages that a fresh interpreter holds after running some code."""
    ask = f"import sys\nprint('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    path = os.pathsep.join([os.fspath(stand_ins), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ask}"],
        env={**os.environ, "PYTHONPATH": path}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.mark.parametrize("what", LIGHT)
def test_nothing_heavy_is_loaded(what: str, stand_ins: Path, tmp_path: Path) -> None:
    assert heavy_modules_of(LIGHT[what], stand_ins, tmp_path) == []


@pytest.mark.parametrize("name", HEAVY)
def test_the_test_above_can_fail(name: str, stand_ins: Path, tmp_path: Path) -> None:
    assert heavy_modules_of(f"import nplora, {name}", stand_ins, tmp_path) == [name]


def test_it_fails_on_an_import_hidden_in_a_try(stand_ins: Path, tmp_path: Path) -> None:
    code = "import nplora\ntry:\n    import torch.nn\nexcept ImportError:\n    pass"
    assert heavy_modules_of(code, stand_ins, tmp_path) == ["torch"]
