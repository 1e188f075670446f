"""A recipe's text: what is understood, and where it says that something is wrong."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nplora.errors import InputError, NploraError
from nplora.recipes import Input, read_recipe_file, read_recipe_text

WHOLE = """\
inputs:
  subject: {path: cat.safetensors, strength: 0.9}
  style:
    - ink.safetensors
    - {path: oil.safetensors, sha256: "12"}
method: [np, linear]
parameters:
  mu: [0.25, inf]
overrides:
  - {where: up, mu: [1, inf], rank: 8}
output:
  folder: out
  name: "{subject}-{style}-{method}-{mu}"
  format: kohya
"""


def test_every_field_is_understood() -> None:
    recipe, marks = read_recipe_text(WHOLE)
    assert recipe.inputs["subject"] == Input("cat.safetensors", strength=0.9)
    assert recipe.inputs["style"] == ["ink.safetensors", Input("oil.safetensors", "12")]
    assert (recipe.method, recipe.parameters) == (["np", "linear"], {"mu": [0.25, "inf"]})
    assert recipe.overrides == [{"where": "up", "mu": [1, "inf"], "rank": 8}]
    assert marks.lines["overrides", 0, "rank"] == 10
    assert (recipe.output.folder, recipe.output.format, recipe.output.dtype) == ("out", "kohya", "same")
    assert marks.lines["inputs", "style", 1, "sha256"] == 5
    assert marks.lines["parameters", "mu"] == 8


WHERE = "a block such as up, a component, the beginning of a module's name, or a glob"
PLACE = "output: {path: x}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml, line 1: this is no recipe: expected fields such as inputs, method and output, got nothing. See docs/recipes.md."),
        ("- 1", "r.yaml, line 1: this is no recipe: expected fields such as inputs, method and output, got a list. See docs/recipes.md."),
        ("inputs: {a: b}", "r.yaml, line 1: the field output is missing. See docs/recipes.md."),
        (PLACE + "inputs: 3", "r.yaml, line 2: inputs: wrong sort of value: expected fields, got a number."),
        (PLACE + "inputs:\n  subject: 3", "r.yaml, line 3: inputs.subject: this is no adapter: expected a path, or fields such as path and strength, got a number."),
        (PLACE + "inputs:\n  style:\n    pth: x", "r.yaml, line 4: inputs.style.pth: there is no such field. Did you mean path?"),
        (PLACE + "inputs:\n  style:\n    sha256: x", "r.yaml, line 3: inputs.style: the field path is missing. See docs/recipes.md."),
        (PLACE + "inputs:\n  s:\n  - a\n  - {path: x, strength: high}", "r.yaml, line 5: inputs.s[1].strength: wrong sort of value: expected a number or a list, got text."),
        (PLACE + "inputs: {s: []}", "r.yaml, line 2: inputs.s: the list is empty: expected at least one adapter."),
        (PLACE + "inputs: {s: a}\nmethud: np", "r.yaml, line 3: methud: there is no such field. Did you mean method?"),
        (PLACE + "inputs: {s: a}\ncolour: red", "r.yaml, line 3: colour: there is no such field. There are: inputs, output, method, parameters, overrides, nplora."),
        (PLACE + "inputs: {s: a}\nmethod: 3", "r.yaml, line 3: method: wrong sort of value: expected text or a list, got a number."),
        (PLACE + "inputs: {s: a}\noverrides: {where: up}", "r.yaml, line 3: overrides: wrong sort of value: expected a list, got fields."),
        (PLACE + "inputs: {s: a}\noverrides:\n- up", "r.yaml, line 4: overrides[0]: this is no override: expected fields such as where and mu, got text."),
        (PLACE + "inputs: {s: a}\noverrides:\n- {where: up, mu: 2}\n- mu: 2", f"r.yaml, line 5: overrides[1]: the field where is missing: expected {WHERE}. See docs/recipes.md."),
        (PLACE + "inputs: {s: a}\noverrides:\n- mu: 2\n  where: [up, mid]", f"r.yaml, line 5: overrides[0].where: this is no part of a model: expected {WHERE}, got a list."),
        (PLACE + "inputs: {s: a}\noverrides:\n- mu: 2\n  where: ' '", f"r.yaml, line 5: overrides[0].where: this is no part of a model: expected {WHERE}, got ' '."),
        (PLACE + "inputs: {s: a}\noverrides:\n- where: up", "r.yaml, line 4: overrides[0]: nothing is set here: expected a parameter beside where, such as mu: 2."),
        ("inputs: {s: a}\noutput:\n  fromat: x", "r.yaml, line 3: output.fromat: there is no such field. Did you mean format?"),
        ("inputs: {s: a}\noutput:\n  path: 1", "r.yaml, line 3: output.path: wrong sort of value: expected text, got a number."),
        ("inputs:\n  a: b\n  a: c", "r.yaml, line 3: inputs.a: the field is given twice, on line 2 too. Keep one of them."),
        ("inputs: {a: b\nc", "r.yaml, line 2: this is no YAML: expected ',' or '}', but got '<stream end>'."),
        ("a: &x [*x]", "r.yaml: the recipe contains itself. Write it without aliases."),
        ("a: 2020-13-45", "r.yaml: this is no YAML (ValueError). See docs/recipes.md."),
        ("a: !!python/object/apply:os.system [ls]", "r.yaml, line 1: this is no YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'."),
    ],
)  # fmt: skip
def test_each_error_names_line_field_and_what_belongs_there(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe_text(text, "r.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 5000, "this is no YAML (RecursionError)"),
        ("a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)), "repeats itself"),
        ("a: " + "x" * 1_000_001, "too long for a recipe"),
    ],
)  # fmt: skip
def test_bombs_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=r"r\.yaml") as caught:
        read_recipe_text(text, "r.yaml")
    assert problem in str(caught.value)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["inputs", "output", "path", "method", "strength", "overrides", "where", "x"]), x)).map(str))  # fmt: skip
def test_no_text_gets_past_the_error_family(text: str) -> None:
    with contextlib.suppress(NploraError):
        read_recipe_text(text)


def test_a_file_that_is_none(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_recipe_file(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="this is no text: expected a recipe in YAML"):
        read_recipe_file(tmp_path / "binary.yaml")
