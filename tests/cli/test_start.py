"""What the command costs to start, and how it behaves on a terminal and when something breaks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nplora as package
from cli.conftest import Nplora
from making import make
from nplora.cli import COMMANDS, usage
from nplora.cli.group import render
from nplora.parameters import FUSE


def test_the_quick_help_is_clicks_own() -> None:
    assert usage() == render(80)


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_help(line: str, nplora: Nplora) -> None:
    assert nplora(line) == (0, usage(), "")


def test_version(nplora: Nplora) -> None:
    assert nplora("--version") == (0, f"nplora {package.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, nplora: Nplora) -> None:
    ran = nplora(f"{command} --help")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: nplora {command}")


def test_every_parameter_is_an_option_with_its_sentence(nplora: Nplora) -> None:
    shown = " ".join(nplora("fuse --help").out.split())
    for parameter in FUSE:
        assert f"{parameter.option} " in shown
        assert parameter.sentence in shown.replace("- ", "-")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("line", ["", "--help", "--version"])
def test_the_quick_answers_import_next_to_nothing(line: str) -> None:
    code = f"import sys; before = set(sys.modules); from nplora.cli import main; main({line.split()!r})"
    heavy = run_python(code + "; print(sorted(set(sys.modules) - before))").stdout.splitlines()[-1]
    assert heavy == "['__future__', 'nplora', 'nplora.cli', 'nplora.version']"


def test_help_of_a_command_imports_no_numpy() -> None:
    code = "import sys; from nplora.cli import main; main(['fuse', '--help']); print('numpy' in sys.modules)"
    assert run_python(code).stdout.splitlines()[-1] == "False"


@pytest.mark.usefixtures("pair")
def test_fuse_and_verify_load_no_rich(tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.chdir({os.fspath(tmp_path)!r}); from nplora.cli import main\n"
        "main(['fuse', 'cat.safetensors', 'ink.safetensors', '-o', 'out.safetensors']); main(['verify', "
        "'out.safetensors'])\n"
        "print(sorted({'rich', 'torch'} & set(sys.modules)), os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[] 1"


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "nplora", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"nplora {package.__version__}\n"


# ------------------------------------------------------------------------------------------ terminals


def test_files_play_no_tricks_with_the_terminal(nplora: Nplora, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07 cat\u202e\x9b2J [red]"
    metadata = {"modelspec.trigger_phrase": evil, "ss_output_name": evil, "modelspec.title": evil}
    make(tmp_path / "evil.safetensors", seed=1, metadata=metadata)
    make(tmp_path / "good.safetensors", seed=2)
    for line in ("inspect evil.safetensors", "inspect evil.safetensors --json",
                 "fuse evil.safetensors good.safetensors -o out.safetensors"):  # fmt: skip
        ran = nplora(line)
        assert ran.status == 0
        assert (ran.out + ran.err).replace("\n", "").isprintable(), line
        assert "[red]" in ran.out
    assert json.loads(nplora("inspect evil.safetensors --json").out)["trigger_words"] == [evil.strip()]


def test_an_interrupt_is_one_line(nplora: Nplora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make(tmp_path / "a.safetensors")

    def interrupt(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nplora.reading.loading.load", interrupt)
    ran = nplora("inspect a.safetensors")
    assert (ran.status, ran.out) == (130, "")
    assert ran.err.strip() == "nplora: interrupted; no half-written file was left."


def test_a_fault_of_ours_asks_to_be_reported(nplora: Nplora, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(path: str) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("nplora.reading.loading.load", fault)
    assert nplora("inspect a.safetensors") == (
        70, "",
        ("nplora: unexpected ZeroDivisionError (by zero). This is a fault of nplora: please report it with what "
        "NPLORA_TRACEBACK=1 shows.\n"),
    )  # fmt: skip
    monkeypatch.setenv("NPLORA_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        nplora("inspect a.safetensors")


def test_no_memory_is_one_line(nplora: Nplora, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(path: str) -> None:
        raise MemoryError

    monkeypatch.setattr("nplora.reading.loading.load", exhausted)
    assert nplora("inspect a.safetensors") == (
        70, "", "nplora: out of memory; nothing was changed. Close other programs, or fuse on a larger machine.\n"
    )  # fmt: skip


@pytest.mark.usefixtures("pair")
def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    line = f"{sys.executable} -m nplora inspect cat.safetensors ink.safetensors | true"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S602
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
@pytest.mark.usefixtures("pair")
def test_on_a_terminal_lines_fit_and_a_long_run_shows_a_bar(tmp_path: Path) -> None:
    code = (
        "import sys, nplora.cli.progress as progress; progress.PATIENCE = 0.0\n"
        "from nplora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    seen = on_terminal([sys.executable, "-c", code, "verify", "out.safetensors"], tmp_path, "make it first")
    assert "verifying" in seen
    assert "\x1b[" in seen
    plain = on_terminal([sys.executable, "-m", "nplora", "inspect", "cat.safetensors"], tmp_path)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", plain).replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 100


def on_terminal(command: list[str], folder: Path, first: str = "") -> str:
    """What a command writes on a terminal of 100 columns."""
    import fcntl
    import pty
    import struct
    import termios

    if first:
        fuse = [sys.executable, "-m", "nplora", "fuse", "cat.safetensors", "ink.safetensors", "-o", "out.safetensors"]
        subprocess.run(fuse, cwd=folder, check=True, capture_output=True)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
                               env={**environment, "TERM": "xterm-256color"})  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait() == 0
    return seen.decode()
