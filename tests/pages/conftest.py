"""The browser and the pages that it looks at, made once by the commands that people use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making import CONVOLUTIONS, SD15, TEXT, make
from nplora.cli import main
from pages.browser import chromium, program

EVIL = "<script>document.title='owned'</script> \"& $x$ <b>sks</b>"
LINES = {
    "inspect": "inspect cat.safetensors --for diffusers --for comfyui --html inspect.html",
    "many": "inspect . --for kohya --html many.html",
    "compare": "compare cat.safetensors twin.safetensors --html compare.html",
    "family": "compare cat.safetensors ink.safetensors twin.safetensors odd.safetensors --html family.html",
    "fusion": "fuse cat.safetensors ink.safetensors --mu 1 -o fused.safetensors --html fusion.html -q",
    "merge": "fuse cat.safetensors ink.safetensors twin.safetensors --method ties -o merged.safetensors --html merge.html -q",
    "report": "report fused.safetensors --html report.html -q",
}  # fmt: skip


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four adapters and every kind of page on them."""
    folder = tmp_path_factory.mktemp("pages")
    modules = {**SD15, **CONVOLUTIONS, **TEXT}
    make(folder / "cat.safetensors", modules=modules, seed=1, rank=4, alpha=2, metadata={"ss_output_name": "cat"})
    make(folder / "ink.safetensors", "diffusers", SD15, seed=2, rank=8)
    make(folder / "twin.safetensors", modules=modules, seed=3, down_seed=1, rank=4)
    words = {"modelspec.trigger_phrase": EVIL, "ss_output_name": EVIL, "modelspec.title": EVIL}
    arrays = {"odd": np.ones(2, np.float32)}
    make(folder / "odd.safetensors", modules=SD15, seed=4, rank=2, size=0.0, metadata=words, extra=arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in LINES.values():
            assert main(line.split()) == 0, line
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    pytest.importorskip("playwright", reason="no playwright: pages are not looked at in a browser")
    if program() is None:
        pytest.skip("no Chromium on this system (`make browser` installs one): pages are not looked at in a browser")
    with chromium() as running:
        yield running
