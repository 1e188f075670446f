"""Build the wheel and use it as a person would: in an environment of its own, with its declared dependencies only.

    python tests/wheel/smoke.py

No torch can be imported there, and nothing of the repository: what is missing from the wheel is missed here.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command: object, folder: Path, status: int = 0) -> str:
    """Run a command in a folder, without the repository on its path; its output, where it ended as expected."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != status:
        raise SystemExit(f"{command}: exit code {done.returncode}, not {status}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, after a look inside: every file of the package is there, and nothing else."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, folder=folder)
    (wheel,) = folder.glob("nplora-*.whl")
    source = REPOSITORY / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and not {"__pycache__", ".mypy_cache"} & set(path.parts)
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if packed != expected:
        raise SystemExit(f"missing in the wheel: {expected - packed}; too much in it: {packed - expected}")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel and what it declares; the folder of its commands."""
    venv.create(folder, with_pip=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [commands / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", REPOSITORY / "constraints.txt", wheel, folder=folder)
    return commands


def write_lora(path: Path, seed: int) -> None:
    """A kohya file of one attention module of SD1.5 at rank 4, written by hand: no library is at hand there."""
    numbers = random.Random(seed)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {f"{stem}.alpha": [], f"{stem}.lora_down.weight": [4, 320], f"{stem}.lora_up.weight": [320, 4]}
    header, data = {}, b""
    for name, shape in shapes.items():
        values = [numbers.gauss(0, 0.1) for _ in range(4 * 320)] if shape else [4.0]
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def main() -> None:
    """Build, install, fuse."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = install(build(folder), folder / "environment")
        python, nplora = commands / "python", commands / "nplora"
        run(python, "-c", "import torch", folder=folder, status=1)
        for number, file in enumerate(("cat.safetensors", "ink.safetensors")):
            write_lora(folder / file, number)
        usage = run(nplora, "--help", folder=folder)
        if "fuse" not in usage:
            raise SystemExit(f"nplora --help does not name fuse:\n{usage}")
        version = run(python, "-c", "from nplora.version import __version__; print(__version__)", folder=folder).strip()
        run(nplora, "fuse", "cat.safetensors", "ink.safetensors", "-o", "cat-ink.safetensors", folder=folder)
        run(nplora, "verify", "cat-ink.safetensors", folder=folder)
        run(nplora, "inspect", "cat-ink.safetensors", folder=folder)
    print(f"wheel: nplora {version} installs, fuses and verifies with its own dependencies only")


if __name__ == "__main__":
    main()
