"""Where the world keeps what does not belong in git, and by which name it knows its files again."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = REPOSITORY / "world" / "model"
LORAS = REPOSITORY / "world" / "loras"
JUDGES = REPOSITORY / "world" / "judges"


def runs() -> Path:
    """Return the folder for caches, checkpoints and logs: $NPLORA_WORLD_RUNS, else `runs/` in the repository."""
    folder = Path(os.environ.get("NPLORA_WORLD_RUNS", REPOSITORY / "runs"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def painter(pipeline: Path) -> Path:
    """Return the weights of a pipeline's UNet."""
    return pipeline / "unet" / "diffusion_pytorch_model.safetensors"


def digest(*files: Path) -> str:
    """Return the start of the files' SHA-256: what was made from the same bytes is not made again."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
