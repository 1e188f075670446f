"""Pages and plots without a browser: what stands in them, and that anything can be drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import nplora
from making import SD15, make, numbers, write
from nplora.analysis.comparison import compare
from nplora.analysis.family import relate
from nplora.analysis.inspection import describe
from nplora.cli import main
from nplora.errors import UsageError
from nplora.plots import COLOURS, CYCLE, as_png, as_svg, figures
from nplora.plots.modules import grid
from pages.conftest import LINES


class Ran(NamedTuple):
    """What a command line did."""

    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command line in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: str) -> Ran:
        capsys.readouterr()
        status = main([*line.split(), *more])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", LINES)
def test_a_page_asks_nothing_of_the_network(name: str, written: Path) -> None:
    text = (written / f"{name}.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", text)
    assert str(written) not in text  # a page is passed on; folders are nobody's business


def test_a_fusion_s_page_says_what_was_done(written: Path) -> None:
    text = (written / "fusion.html").read_text(encoding="utf-8")
    for part in ("Unrelated runs", "The result holds", "cat.safetensors (Stable Diffusion 1.x, 7 modules)",
                 "Before and after", "What mu does", "Every key of the inputs is in the result."):  # fmt: skip
        assert part in text, part
    again = (written / "report.html").read_text(encoding="utf-8")
    assert "The result holds" in again
    merged = (written / "merge.html").read_text(encoding="utf-8")
    assert "c kept" in merged
    assert "What mu does" not in merged


def test_plots_are_written(written: Path, command: Command) -> None:
    for name in ("cat", "ink", "twin"):
        Path(f"{name}.safetensors").write_bytes((written / f"{name}.safetensors").read_bytes())
    for line in ("inspect cat.safetensors --plot out.png", "compare cat.safetensors ink.safetensors --plot out.png --overwrite",
                 "compare . --plot out.png --overwrite"):  # fmt: skip
        ran = command(line)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.endswith("  plot            out.png\n")
        assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert command("inspect cat.safetensors --plot out.png").status == 4
    assert command("inspect cat.safetensors --html cat.safetensors").status == 2
    assert command("inspect . --plot many.png").err == (
        "nplora: --plot draws one adapter; --html shows several side by side. See `nplora inspect --help`.\n"
    )
    assert not Path("many.png").exists()


def test_report_tells_again_and_asks_for_what_it_lacks(written: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "fused.safetensors").write_bytes((written / "fused.safetensors").read_bytes())
    ran = command("report fused.safetensors")
    assert (ran.status, ran.out) == (3, "")
    assert "the subject that the recipe names is not found" in ran.err
    ran = command("report fused.safetensors", str(written / "cat.safetensors"), str(written / "ink.safetensors"))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.endswith("  page            fused.safetensors.html\n")
    assert "The result holds" in (tmp_path / "fused.safetensors.html").read_text(encoding="utf-8")
    assert command("report cat.safetensors").status == 3


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_what_is_not_installed_is_named(missing: str, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from nplora.pages import Page, render

    monkeypatch.setitem(sys.modules, missing, None)
    description = describe(nplora.load(written / "cat.safetensors"))
    with pytest.raises(UsageError, match=f"need {missing}"):
        figures.of_adapter(description) if missing == "matplotlib" else render(Page("x", (), ()))


# ------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("size", [0.0, 1.0])
@pytest.mark.parametrize("modules", [dict([next(iter(SD15.items()))]), SD15], ids=["one module", "some"])
def test_anything_is_drawn(size: float, modules: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    paths = [make(tmp_path / f"${n}_{{x}}.safetensors", modules=modules, seed=n, size=size) for n in (1, 2, 3)]
    adapters = [nplora.load(path) for path in paths]
    pair = compare(*adapters[:2])
    drawn = [figures.of_adapter(describe(adapters[0])), figures.of_pair(pair), figures.of_family(relate(adapters))]
    for figure in drawn:
        assert as_png(figure).startswith(b"\x89PNG")
        assert as_svg(figure).startswith("<svg")
    one, two = (as_svg(figures.of_adapter(describe(adapters[0]))) for _ in range(2))
    assert one == two  # the same data, the same bytes


def test_a_grid_has_holes_where_blocks_differ() -> None:
    rows = [
        {"module": "unet.up_blocks.0.attentions.0.proj_in", "x": 1.0},
        {"module": "unet.mid_block.attentions.0.proj_out", "x": None},
    ]
    roles, blocks, table = grid(rows, lambda row: row["x"])
    assert (roles, blocks) == (
        ["proj_in", "proj_out"],
        ["unet.mid_block.attentions.0", "unet.up_blocks.0.attentions.0"],
    )
    assert np.isnan(table).tolist() == [[True, False], [True, True]]


def test_colours_are_okabe_and_ito_s() -> None:
    palette = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"}
    assert {*COLOURS.values(), *CYCLE} <= palette


def test_a_page_tells_what_a_terminal_tells(tmp_path: Path, command: Command) -> None:
    """NaN, zero modules, dead ranks and strange keys stand on the page too."""
    make("odd.safetensors", seed=1, size=np.nan, extra={"embedding": np.ones(3, np.float32)})
    ran = command("inspect odd.safetensors --html odd.html")
    text = (tmp_path / "odd.html").read_text(encoding="utf-8")
    for part in ("(NaN or infinite)", "1 key in no module: embedding", "F16 ("):
        assert part in ran.out, part
        assert part in text, part


def test_a_report_beside_the_base_counts_intruders(written: Path, command: Command, tmp_path: Path) -> None:
    for name in ("cat", "ink", "fused"):
        Path(f"{name}.safetensors").write_bytes((written / f"{name}.safetensors").read_bytes())
    weights = {f"{name.removeprefix('unet.')}.weight": numbers(5, name, shape).astype(np.float32)
               for name, shape in SD15.items()}  # fmt: skip
    write(tmp_path / "model.safetensors", weights)
    assert command("report fused.safetensors --base model.safetensors").status == 0
    text = (tmp_path / "fused.safetensors.html").read_text(encoding="utf-8")
    assert "Intruder dimensions" in text
    assert all(f"<dt>{name}.safetensors</dt>" in text for name in ("cat", "ink", "fused"))
