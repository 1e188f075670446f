"""What is imported when nothing heavy was asked for: nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from making import make

HEAVY = ("torch", "rich", "diffusers", "peft", "matplotlib", "gradio", "ray", "transformers", "scipy")

LINE = ["fuse", "cat.safetensors", "ink.safetensors", "-o", "out.safetensors"]

# Everything that must stay light: a name for the report, and code that runs it.
LIGHT = {
    "the package": "import nplora",
    "reading": "import nplora.storage.tensors",
    "the fronts to live models": "import nplora.diffusers\nimport nplora.peft",
    "loading": "import nplora\nnplora.load('cat.safetensors')",
    "fusing": (
        "import nplora\nfused = nplora.fuse(nplora.load('cat.safetensors'), nplora.load('ink.safetensors'))\n"
        "fused.save('out.safetensors')\nfused.report()"
    ),
    "the command": f"from nplora.cli import main\nassert main([*{LINE!r}, '-q']) == 0",
    "the command, not to a terminal": f"from nplora.cli import main\nassert main({LINE!r}) == 0",
}  # fmt: skip


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty packages with the heavy names, so that an import is seen whether or not the real one is installed."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for name in HEAVY:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return folder


def heavy_modules_of(code: str, stand_ins: Path, folder: Path, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """The heavy packages that a fresh interpreter holds after running some code."""
    ask = f"import sys\nprint('loaded:', *sorted(set({heavy!r}) & set(sys.modules)))"
    path = os.pathsep.join([os.fspath(stand_ins), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ask}"],
        env={**os.environ, "PYTHONPATH": path}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.mark.parametrize("what", LIGHT)
def test_nothing_heavy_is_loaded(what: str, stand_ins: Path, tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1, alpha=2)
    make(tmp_path / "ink.safetensors", "diffusers", seed=2)
    assert heavy_modules_of(LIGHT[what], stand_ins, tmp_path) == []


@pytest.mark.parametrize("name", HEAVY)
def test_the_test_above_can_fail(name: str, stand_ins: Path, tmp_path: Path) -> None:
    assert heavy_modules_of(f"import nplora, {name}", stand_ins, tmp_path) == [name]


def test_it_fails_on_an_import_hidden_in_a_try(stand_ins: Path, tmp_path: Path) -> None:
    code = "import nplora\ntry:\n    import torch.nn\nexcept ImportError:\n    pass"
    assert heavy_modules_of(code, stand_ins, tmp_path) == ["torch"]


def test_importing_the_package_loads_no_numpy_either(stand_ins: Path, tmp_path: Path) -> None:
    light = ("numpy", "ml_dtypes", "numkong", "click", "threadpoolctl", "array_api_compat")
    assert heavy_modules_of("import nplora", stand_ins, tmp_path, light) == []
    assert "numpy" in heavy_modules_of("import nplora\nnplora.load", stand_ins, tmp_path, light)


def test_files_without_bfloat16_load_no_type_for_it(stand_ins: Path, tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1, alpha=2)
    make(tmp_path / "ink.safetensors", "diffusers", seed=2)
    assert heavy_modules_of(LIGHT["fusing"], stand_ins, tmp_path, ("ml_dtypes", "array_api_compat")) == []


def test_a_fusion_that_draws_would_be_seen(stand_ins: Path, tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1, alpha=2)
    code = "import nplora\nnplora.fuse(*[nplora.load('cat.safetensors')] * 2, progress=lambda *_: __import__('rich'))"
    code += ".save('out.safetensors')"
    assert heavy_modules_of(code, stand_ins, tmp_path) == ["rich"]
