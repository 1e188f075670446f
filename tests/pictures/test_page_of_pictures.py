"""docs/pictures.md says what the commands do: every one of them runs, and its snippet is a scorer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")

from PIL import Image

from cli.conftest import Nplora, nplora  # noqa: F401 - a fixture
from nplora.pictures import VARIANTS, axes

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "pictures.md").read_text(encoding="utf-8")
LINES = re.findall(
    r"^nplora (.+)$", "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)), re.MULTILINE
)

pytestmark = [
    pytest.mark.consumer,
    pytest.mark.skipif(not (REPOSITORY / "world" / "model").is_dir(), reason="the folder world/model is missing"),
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_runs(line: str, nplora: Nplora, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "world").symlink_to(REPOSITORY / "world")
    (tmp_path / "pictures" / "turtle").mkdir(parents=True)
    Image.effect_noise((64, 64), 60).save(tmp_path / "pictures" / "turtle" / "flat-0.png")
    words = shlex.split(line)
    ran = nplora("", *words, *([] if "--steps" in words else ["--steps", "2"]))
    assert (ran.status, ran.err) == (0, "")
    written = tmp_path / words[words.index("-o") + 1]
    assert (written if written.suffix else written.with_suffix(".html")).exists()


def test_the_snippet_is_a_scorer() -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(snippet, "docs/pictures.md", "exec"), names)  # noqa: S102 - our own page
    assert names["light"]([Image.fromarray(np.full((4, 4, 3), 255, np.uint8))], [None]) == [{"light": 1.0}]


def test_every_axis_and_adapter_is_named() -> None:
    table = PAGE.partition("| axis |")[2].partition("\n\n")[0].replace("-", "_")
    named = set(re.findall(r"`(\w+)`", table))
    assert named - {*VARIANTS, "fuse"} <= set(axes())
    assert {*VARIANTS, "adapter", "method", "mu", "prompt", "seed", "steps", "guidance", "strength"} <= named
