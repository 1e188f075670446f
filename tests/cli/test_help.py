"""Help is complete and consistent: every command has examples that parse, ranges are in one wording, shells complete."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.conftest import Nplora
from nplora.cli import COMMANDS
from nplora.cli.group import group
from nplora.methods import known_methods


def command_of(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name: str) -> None:
    examples = command_of(name).examples  # type: ignore[attr-defined]
    assert examples
    for example in examples:
        program, called, *words = shlex.split(example.partition(" > ")[0] if name == "recipe" else example)
        assert (program, called) == ("nplora", name)
        command_of(name).make_context(name, words, parent=click.Context(group, **group.context_settings))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_one_wording(name: str, nplora: Nplora) -> None:
    ran = nplora(f"{name} --help")
    assert ran.status == 0
    for foreign in ("x>=", "<=x<=", "TEXT|", "[auto|", "[diffusers|", "default: 1.0", "default: False"):
        assert foreign not in ran.out
    assert "\nExamples:\n  nplora " in ran.out
    assert ran.out.count("  -h, --help ") == 1


def test_many_options_are_in_groups(nplora: Nplora) -> None:
    lines = nplora("fuse --help").out.splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Output:", "Method:", "Strengths:", "Parts of the model:", "Fewer ranks:", "Inputs:",
        "Options of other methods (nplora methods NAME):", "Help:", "Examples:",
    ]  # fmt: skip
    assert "Options:" in nplora("inspect --help").out


def test_verify_shows_no_defaults_since_the_recipe_decides(nplora: Nplora) -> None:
    assert "default:" in nplora("fuse --help").out
    assert "default:" not in nplora("verify --help").out


def test_help_and_version_by_other_names(nplora: Nplora) -> None:
    assert nplora("help").out == nplora("--help").out
    assert nplora("-V").out == nplora("--version").out
    assert "\nExit status:\n" in nplora("--help").out


def completed(folder: Path, line: str) -> list[str]:
    """What bash offers at the end of a line, by click's own protocol."""
    words = line.split(" ")
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; from nplora.cli import main; sys.exit(main())"], cwd=folder, check=False,
        capture_output=True, text=True,
        env=os.environ | {
            "_NPLORA_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
        },
    )  # fmt: skip
    assert ran.stderr == ""
    return ran.stdout.split()


def test_shells_complete_commands_options_methods_and_files(tmp_path: Path) -> None:
    assert completed(tmp_path, "nplora comp") == ["plain,compare", "plain,compare-methods"]
    assert completed(tmp_path, "nplora fuse cat --den") == ["plain,--density"]
    assert completed(tmp_path, "nplora fuse cat --method np") == [
        f"plain,{name}" for name in known_methods() if name.startswith("np")
    ]
    assert completed(tmp_path, "nplora convert cat --format p") == ["plain,peft"]
    for line in (
        "nplora fuse c",
        "nplora fuse cat ink -o f",
        "nplora inspect c",
        "nplora run r",
        "nplora fuse --base m",
    ):
        assert completed(tmp_path, line)[0].startswith("file,"), line


def test_the_script_for_a_shell(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; from nplora.cli import main; sys.exit(main())"], cwd=tmp_path,
        capture_output=True, text=True, check=False, env=os.environ | {"_NPLORA_COMPLETE": "zsh_source"},
    )  # fmt: skip
    assert ran.returncode == 0
    assert "_NPLORA_COMPLETE=zsh_complete" in ran.stdout
