"""Pairs of adapters of real size, made once and kept in a folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MAKER = Path(__file__).resolve().parents[2] / "shared" / "loras" / "make_true_shaped.py"


@dataclass(frozen=True)
class Pair:
    """A subject and a style, each a line of arguments for the maker."""

    name: str
    title: str
    subject: str
    style: str
    room: float  # GB that both inputs and two outputs take

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Both files, made where they are not there yet."""
        return (
            _made(folder / f"{self.name}-subject.safetensors", f"{self.subject} --seed 1"),
            _made(folder / f"{self.name}-style.safetensors", f"{self.style} --seed 2"),
        )


PAIRS = (
    Pair("sdxl-8", "SDXL, rank 8", "sdxl-kohya --rank 8", "sdxl-kohya --rank 8", 0.3),
    Pair("sdxl-32", "SDXL, rank 32", "sdxl-kohya --rank 32", "sdxl-kohya --rank 32", 1.1),
    Pair("sdxl-128", "SDXL, rank 128", "sdxl-kohya --rank 128", "sdxl-kohya --rank 128", 4.2),
    Pair(
        "flux-mixed", "FLUX.1, rank 16, diffusers + kohya", "flux-peft --rank 16 --dtype bf16",
        "flux-kohya --rank 16 --dtype bf16", 1.1,
    ),
    Pair(
        "flux-kohya", "FLUX.1, rank 16, kohya + kohya", "flux-kohya --rank 16 --dtype bf16",
        "flux-kohya --rank 16 --dtype bf16", 1.1,
    ),
)  # fmt: skip


def _made(path: Path, arguments: str) -> Path:
    if not path.exists():
        shape, *options = arguments.split()
        part = path.with_name(f"part-{path.name}")  # a run that is stopped leaves no half file under the name
        subprocess.run([sys.executable, str(MAKER), shape, str(part), *options], check=True, stdout=subprocess.DEVNULL)
        part.rename(path)
    return path
