"""What a person sees on narrow and wide terminals, in pipes, on screens without UTF-8; where a number is never cut."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli.conftest import Nplora
from making import SD15, make
from nplora.cli import main
from nplora.cli.tables import Sheet, bar, table
from nplora.errors import OutputError

NUMBERS = [("unet.down_blocks.0", bar(0.4), "12.5%", "0.9%", "81"), ("unet.up_blocks.1", bar(1), "100.0%", "0.3%", "7")]
TABLE = table(("block", "", "overlap", "chance", "rows"), NUMBERS, 2)


def shown(sheet: Sheet, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True).print(sheet)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", range(12, 120))
def test_a_table_fits_and_cuts_no_number(width: int) -> None:
    lines = shown(TABLE, width)
    assert max(map(len, lines)) <= width
    for _, _, *numbers in NUMBERS:
        assert all(number in " ".join(lines) for number in numbers)
    if width >= 40:
        assert any("unet.down_blocks.0" in line for line in lines)


def test_a_table_gives_up_its_bars_first_and_its_columns_last() -> None:
    assert shown(TABLE, 80)[1] == "unet.down_blocks.0   ██████▍              12.5%     0.9%     81"
    assert shown(TABLE, 45)[1] == "unet.down_blocks.0    12.5%    0.9%    81"
    assert shown(TABLE, 30) == [
        "block",
        "unet.down_blocks.0",
        "  overlap 12.5%, chance 0.9%,",
        "  rows 81",
        "unet.up_blocks.1",
        "  overlap 100.0%, chance 0.3%,",
        "  rows 7",
    ]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("line", ["compare cat.safetensors ink.safetensors", "inspect cat.safetensors", "methods"])
def test_screens_without_utf_8(line: str, tmp_path: Path) -> None:
    for encoding in ("ascii", "cp1252"):
        ran = subprocess.run(
            [sys.executable, "-m", "nplora", *line.split()], cwd=tmp_path, capture_output=True, check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, b"")
        ran.stdout.decode(encoding)


def test_names_in_json_are_right_in_any_encoding(tmp_path: Path) -> None:
    make(tmp_path / "kätzchen 猫.safetensors", modules=SD15)
    ran = subprocess.run(
        [sys.executable, "-m", "nplora", "inspect", "kätzchen 猫.safetensors", "--json"], cwd=tmp_path,
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert json.loads(ran.stdout)["file"] == "kätzchen 猫.safetensors"


@pytest.mark.usefixtures("pair")
def test_json_is_all_there_is_on_stdout(nplora: Nplora) -> None:
    pytest.importorskip("matplotlib")
    for line in (
        "inspect cat.safetensors --json --plot a.png",
        "compare cat.safetensors ink.safetensors --json --plot b.png --html b.html",
        "fuse cat.safetensors ink.safetensors --json --report c.json",
        "convert cat.safetensors --format diffusers --json",
        "verify cat-ink.safetensors --json",
    ):
        ran = nplora(line)
        assert (ran.status, ran.err) == (0, ""), line
        assert json.loads(ran.out)
    assert Path("a.png").stat().st_size > 0
    assert Path("b.html").stat().st_size > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_is_no_fault_of_ours(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "nplora", "methods"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (ran.returncode, ran.stderr) == (4, b"nplora: stdout: cannot be written (No space left on device).\n")


def test_a_closed_stdout(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("a POSIX shell is needed")
    for line in ("methods", "--help"):
        ran = subprocess.run(
            ["sh", "-c", f"'{sys.executable}' -m nplora {line} >&-"], cwd=tmp_path, capture_output=True, check=False
        )
        assert b"Traceback" not in ran.stderr
        assert b"fault of nplora" not in ran.stderr


# ------------------------------------------------------------------------------------------ names and notes


@pytest.mark.usefixtures("pair")
def test_names_of_outputs_follow_from_those_of_inputs(nplora: Nplora, tmp_path: Path) -> None:
    assert "  written         cat-ink.safetensors: " in nplora("fuse cat.safetensors ink.safetensors").out
    again = nplora("fuse cat.safetensors ink.safetensors")
    assert (again.status, again.err) == (
        4, "nplora: cat-ink.safetensors: the output exists already. Choose another name, or add --overwrite.\n"
    )  # fmt: skip
    assert nplora("fuse cat.safetensors ink.safetensors --format peft --components unet -q").status == 0
    assert (tmp_path / "cat-ink" / "adapter_config.json").is_file()
    assert nplora("convert ink.safetensors --format kohya --dtype fp32 --rank 2 -q").status == 0
    assert (tmp_path / "ink-kohya-fp32-rank2.safetensors").is_file()


@pytest.mark.usefixtures("pair")
def test_letters_are_explained(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "fog.safetensors", modules=SD15, seed=3)
    out = nplora("fuse cat.safetensors ink.safetensors fog.safetensors").out
    assert "set the balance with --strength, such as --strength a=0.8.\n" in out
    assert (
        "  a               cat.safetensors\n  b               ink.safetensors\n  c               fog.safetensors\n"
        in out
    )


@pytest.mark.usefixtures("pair")
def test_a_file_that_is_fused_with_itself(nplora: Nplora) -> None:
    out = nplora("fuse cat.safetensors ./cat.safetensors").out
    assert "  note            subject and style are the same file, which is fused with itself\n" in out


@pytest.mark.usefixtures("pair")
def test_one_that_drowns_the_other(nplora: Nplora) -> None:
    out = nplora("fuse cat.safetensors ink.safetensors --subject-strength 100").out
    assert "times as strong as the style in the common modules and will drown it: lower --subject-strength, or" in out
    assert "drown" not in nplora("fuse cat.safetensors ink.safetensors --overwrite").out


@pytest.mark.usefixtures("pair")
def test_a_report_that_cannot_be_written_says_that_the_file_is_there(
    nplora: Nplora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: str, data: object) -> None:
        raise OutputError("cannot be written (full)", file=path, hint="Free some space. Nothing was changed.")

    monkeypatch.setattr("nplora.cli.fuse.write_json", full)
    ran = nplora("fuse cat.safetensors ink.safetensors --report r.json")
    assert (ran.status, ran.err) == (
        4, ("nplora: r.json: cannot be written (full). Free some space. What was fused before it is there: "
        "cat-ink.safetensors.\n"),
    )  # fmt: skip
    assert (tmp_path / "cat-ink.safetensors").is_file()


@pytest.mark.usefixtures("pair")
def test_what_draws_is_looked_for_before_the_work_begins(
    nplora: Nplora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    for line in (
        "fuse cat.safetensors ink.safetensors --html a.html", "inspect cat.safetensors --plot a.png",
        "compare cat.safetensors ink.safetensors --html a.html", "report cat-ink.safetensors",
    ):  # fmt: skip
        ran = nplora(line)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.endswith(
            'need matplotlib. Install the extra, pip install ".[plots]" in nplora\'s folder, or pip install matplotlib.\n'
        )
    assert not (tmp_path / "cat-ink.safetensors").exists()


def test_a_lost_terminal_is_told_from_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(words: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("nplora.cli.running.invoke", lost)
    assert main(["methods"]) == 4
    assert capsys.readouterr().err == "nplora: stdout: cannot be written (Input/output error).\n"
