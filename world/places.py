"""Where the world keeps what does not belong in git."""

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
