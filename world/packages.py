"""`python -m world.packages`: fetch the three Fluent icon packages (MIT) with npm, by name and version."""

import subprocess
import tarfile
from pathlib import Path

from world.places import runs

PACKAGES = {"fluent-emoji-flat": "1.2.6", "fluent-emoji": "1.2.7", "fluent-emoji-high-contrast": "1.2.6"}


def fetch(folder: Path) -> None:
    """Download and unpack the packages into `folder`; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGES.items():
        target = folder / name
        if (target / "package" / "icons.json").exists():
            continue
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
        with tarfile.open(folder / packed) as archive:
            archive.extractall(target, filter="data")
        (folder / packed).unlink()


if __name__ == "__main__":
    fetch(runs() / "icons")
