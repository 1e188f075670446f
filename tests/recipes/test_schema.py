"""The published schema says what the reader does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from nplora.cli import main
from nplora.recipes import recipe_schema
from nplora.recipes.running import method_parameters

FILE = Path(__file__).resolve().parents[2] / "docs" / "recipe.schema.json"
GOOD = "{inputs: {subject: [a, {path: b, strength: [1, 2]}], style: c}, method: [np], parameters: {mu: [0.5, inf]}, overrides: [{where: up, mu: [2, inf]}, {where: mlp, rank: 8}], output: {folder: x}}"


def test_the_file_is_the_code_s() -> None:
    assert json.loads(FILE.read_text()) == recipe_schema(), "run .venv/bin/python tools/recipe_schema.py"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


def test_every_parameter_is_in_it_with_its_sentence() -> None:
    described = recipe_schema()["properties"]["parameters"]["properties"]
    for parameters in method_parameters().values():
        for parameter in parameters:
            assert parameter.sentence in described[parameter.name]["description"]


def test_it_takes_a_good_recipe() -> None:
    jsonschema.validate(yaml.safe_load(GOOD), recipe_schema())


@pytest.mark.parametrize(
    ("good", "bad"),
    [("[np]", "[nq]"), ("mu: [0.5", "mu: [-1"), ("mu:", "nu:"), ("path: b", "pth: b"), ("where: up", "wher: up"), ("mu: [2", "mu: [-2"), ("where: mlp, rank: 8", "where: mlp"), ("rank: 8", "seed: 8"), ("where: mlp", "where: 3"), ("output", "outptu"), ("folder: x", "folder: 3")],
)  # fmt: skip
def test_it_refuses_what_the_reader_refuses(good: str, bad: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD.replace(good, bad)), recipe_schema())
