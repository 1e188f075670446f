"""Draw the pictures of docs/inspect.md from the LoRAs in world/: `.venv/bin/python tools/docs_pictures.py`.

The page's screenshot is taken where there is a Chromium and playwright.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nplora.cli import main

ROOT = Path(__file__).resolve().parents[1]
LORAS, IMAGES = ROOT / "world" / "loras", ROOT / "docs" / "images"
FOX, GOLD = (f"{LORAS}/{name}.safetensors" for name in ("subject-fox-r4-shared", "style-gold-r4-shared"))


def draw() -> None:
    """The plots, by the commands that the page shows."""
    names = ("subject-fox-r4-own", "subject-fox-r4-shared", "subject-guitar-r4-own", "subject-guitar-r4-shared",
             "style-gold-r4-shared", "style-thermal-r4-shared")  # fmt: skip
    family = [f"{LORAS}/{name}.safetensors" for name in names]
    for line in (
        ["inspect", GOLD, "--plot", f"{IMAGES}/inspect.png"],
        ["compare", FOX, GOLD, "--plot", f"{IMAGES}/compare.png"],
        ["compare", *family, "--plot", f"{IMAGES}/family.png"],
    ):
        assert main([*line, "--overwrite"]) == 0


def shoot() -> None:
    """A fusion's page, as a window on a desk shows it at first."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pages.browser import DESK, chromium, look, program

    if program() is None:
        print("no Chromium: the screenshot stays as it is")
        return
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = Path(folder) / "fox-gold.html"
        out = str(page.with_suffix(".safetensors"))
        assert main(["fuse", FOX, GOLD, "--mu", "1", "-o", out, "--html", str(page), "-q"]) == 0
        look(browser, page, DESK).page.screenshot(path=IMAGES / "page-desk.png")


if __name__ == "__main__":
    draw()
    shoot()
