"""A recipe's fusions in worker processes: the same bytes, reports, errors and interrupts as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import nplora
from making import SD15, make
from nplora.errors import InputError, NploraError, OutputError
from nplora.recipes import Outcome, processes, read_recipe_text, run_recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX")

SWEEP = """\
inputs:
  subject: [cat.safetensors, dog.safetensors]
  style: [ink.safetensors, oil.safetensors]
method: [np, linear]
parameters: {mu: [0.25, inf]}
output: {folder: out}
"""
NAMES = [f"{subject}-{style}-{rest}.safetensors" for style in ("ink", "oil") for subject in ("cat", "dog") for rest in ("np-mu0.25", "np-muinf", "linear")]  # fmt: skip
PROGRAM = """\
import os, sys
from nplora.recipes import processes
processes.LEAST_BYTES = 0
os.cpu_count = lambda: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("cat", "dog", "ink", "oil")):
        make(tmp_path / f"{name}.safetensors", modules=SD15, seed=seed, rank=2 + seed, alpha=2)
    return tmp_path


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has small recipes run in two worker processes, and tells the processes that were started."""
    monkeypatch.setattr(processes, "LEAST_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found: list[int] = []
    start = subprocess.Popen

    def popen(*arguments, **options):
        process = start(*arguments, **options)
        found.append(process.pid)
        return process

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    return found


def run(text: str, folder: Path, **options: object) -> list[Outcome]:
    recipe, marks = read_recipe_text(text, "r.yaml")
    return sorted(run_recipe(recipe, folder, marks=marks, **options), key=lambda outcome: outcome.number)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_process_and_several_give_the_same(folder: Path, several: list[int], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    seen: list[tuple[int, int]] = []
    by_many = run(SWEEP, folder, progress=lambda done, total: seen.append((done, total)))
    made = contents(folder / "out")
    assert len(several) == 2
    assert [outcome.single.output.name for outcome in by_many] == NAMES
    assert sorted(made) == sorted(NAMES)
    assert seen == [(number, 12) for number in range(1, 13)]
    for path in (folder / "out").iterdir():
        path.unlink()
    monkeypatch.setattr(processes, "LEAST_FUSIONS", 100)
    assert run(SWEEP, folder) == by_many
    assert contents(folder / "out") == made
    assert len(several) == 2


def test_what_is_there_is_kept_and_the_rest_made(folder: Path, several: list[int]) -> None:
    recipe, _ = read_recipe_text(SWEEP)
    outcomes = run_recipe(recipe, folder)
    next(outcomes)
    outcomes.close()
    before = contents(folder / "out")
    assert 1 <= len(before) < 8
    assert set(before) <= set(NAMES)
    again = run(SWEEP, folder)
    assert {outcome.single.output.name for outcome in again if not outcome.made} == set(before)
    assert contents(folder / "out").items() >= before.items()
    assert len(several) == 4
    make(folder / "dog.safetensors", modules=SD15, seed=9, rank=3, alpha=2)
    redone = run(SWEEP, folder, overwrite=True)
    assert [outcome.made for outcome in redone] == ["dog" in outcome.single.output.name for outcome in redone]
    assert all(nplora.verify(outcome.single.output).passed for outcome in redone)


def test_few_small_or_foreign_fusions_stay_in_the_process(
    folder: Path, several: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SWEEP.replace("[cat.safetensors, dog.safetensors]", "cat.safetensors").replace("[0.25, inf]", "1")
    run(one.replace("[np, linear]", "np"), folder)
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    run(SWEEP.replace("out}", "two}"), folder)
    monkeypatch.setattr(sys, "executable", None)
    run(SWEEP.replace("out}", "three}"), folder)
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "Popen", None)
    run(SWEEP.replace("out}", "four}"), folder)
    assert several == []


def test_where_no_worker_starts_threads_do_it(folder: Path, several: list[int], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(processes, "_START", "raise SystemExit")
    assert [outcome.single.output.name for outcome in run(SWEEP, folder)] == NAMES
    assert len(several) == 2


def bad_numbers(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "oil.safetensors")
    next(array for array in tensors.values() if array.ndim == 2)[0, 0] = np.nan
    save_file(tensors, folder / "oil.safetensors")


def foreign_output(folder: Path) -> None:
    (folder / "out").mkdir()
    make(folder / "out" / NAMES[5], modules=SD15)


@pytest.mark.parametrize(
    ("spoil", "text", "kind"),
    [
        (bad_numbers, SWEEP, InputError),
        (foreign_output, SWEEP, OutputError),
        (lambda folder: None, SWEEP + "overrides:\n- {where: attention, mu: 1}\n- {where: upp, mu: 1}\n", NploraError),
    ],
)
def test_an_error_in_the_middle_is_the_same(spoil, text: str, kind, folder: Path, several: list[int], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    spoil(folder)
    with pytest.raises(kind) as by_many:
        run(text, folder)
    assert len(several) == 2
    assert not list(folder.rglob(".*"))
    monkeypatch.setattr(processes, "LEAST_FUSIONS", 100)
    with pytest.raises(kind) as by_one:
        run(text, folder)
    assert str(by_many.value) == str(by_one.value)
    assert type(by_many.value) is type(by_one.value)
    assert len(several) == 2


def test_a_worker_that_is_killed_is_told(folder: Path, several: list[int]) -> None:
    recipe, _ = read_recipe_text(SWEEP)
    outcomes = run_recipe(recipe, folder)
    next(outcomes)
    for process in several:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(OutputError) as caught:
        list(outcomes)
    assert str(caught.value.file).startswith(str(folder / "out"))
    assert str(caught.value).partition(": ")[2] == (
        "the process that was to write this file ended before: got status -9. Memory may have run out. Run it again: what is finished is kept."
    )
    assert len(run(SWEEP, folder)) == 12
    assert sorted(contents(folder / "out")) == sorted(NAMES)


@pytest.mark.parametrize("seconds", [0.05, 0.4, 0.9])
def test_an_interrupt_ends_all_and_leaves_whole_files_or_none(seconds: float, folder: Path) -> None:
    text = SWEEP.replace("[0.25, inf]", f"{[number / 8 for number in range(1, 100)]}")
    (folder / "r.yaml").write_text(text)
    program = PROGRAM + "from nplora.cli import main\nsys.exit(main(['run', 'r.yaml']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (folder / "out").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told.strip()) == (130, "nplora: interrupted; no half-written file was left.")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not [path for path in (folder / "out").iterdir() if path.suffix != ".safetensors"]
    made = contents(folder / "out") if (folder / "out").exists() else {}
    assert len(made) < 400
    outcomes = run(text, folder)
    assert {outcome.single.output.name for outcome in outcomes if not outcome.made} == set(made)
    assert all(nplora.verify(folder / "out" / name).passed for name in made)


SCRIPT = """\
print("once", flush=True)
from pathlib import Path
from nplora.recipes import read_recipe_file, run_recipe
recipe, marks = read_recipe_file("r.yaml")
print(len(list(run_recipe(recipe, Path(), marks=marks))))
"""


def test_a_script_without_a_main_guard_runs_once(folder: Path) -> None:
    (folder / "r.yaml").write_text(SWEEP)
    (folder / "script.py").write_text(PROGRAM + SCRIPT)
    ran = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=True)
    assert (ran.stdout.split(), ran.stderr) == (["once", "12"], "")


def test_a_daemonic_process_and_a_thread_may_do_it(folder: Path) -> None:
    (folder / "r.yaml").write_text(SWEEP)
    body = textwrap.indent(SCRIPT, "    ")
    program = f"""\
{PROGRAM}
import threading
from multiprocessing import get_context
def work():
{body}
process = get_context("fork").Process(target=work, daemon=True)
process.start(); process.join()
thread = threading.Thread(target=work)
thread.start(); thread.join()
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert (ran.stdout.split(), ran.stderr) == (["once", "12"] * 2, "")


def test_a_file_that_changes_meanwhile_is_refused(folder: Path) -> None:
    file = nplora.load(folder / "cat.safetensors").file
    digest, identity = file.sha256(), file.identity
    os.utime(folder / "cat.safetensors", ns=(1, 1))
    touched = nplora.load(folder / "cat.safetensors").file
    touched.require_sha256(digest, identity)
    assert touched.sha256() == digest
    make(folder / "cat.safetensors", modules=SD15, seed=7)
    with pytest.raises(InputError) as caught:
        nplora.load(folder / "cat.safetensors").file.require_sha256(digest, identity)
    assert str(caught.value) == f"{folder}/cat.safetensors: the file changed during the run. Run it again."


def test_fusions_of_one_style_stay_with_one_worker() -> None:
    untouched = processes._groups([])
    untouched.extend(processes.deque(range(start, start + 3)) for start in (0, 3, 6))
    hands = [processes.deque(), processes.deque()]
    turns = [processes._next(untouched, hands, index) for index in (0, 1) * 5]
    assert turns == [0, 3, 1, 4, 2, 5, 6, 8, 7, None]
