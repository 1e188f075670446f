"""Recipes that run: one fusion or many, none twice, the same bytes again."""

from __future__ import annotations

from pathlib import Path

import pytest

import nplora
from making import SD15, make
from nplora.cli import main
from nplora.errors import InputError, NploraError, OutputError
from nplora.recipes import read_recipe_text, recipe_of, recipe_yaml, run_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("cat", "dog", "ink", "oil")):
        make(tmp_path / f"{name}.safetensors", modules=SD15, seed=seed, rank=2 + seed, alpha=2)
    return tmp_path


def run(text: str, folder: Path, **options: object) -> list[tuple[str, bool]]:
    recipe, marks = read_recipe_text(text, "r.yaml")
    outcomes = sorted(run_recipe(recipe, folder, marks=marks, **options), key=lambda outcome: outcome.number)
    return [(outcome.single.output.name, outcome.made) for outcome in outcomes]


PAIR = "inputs: {subject: cat.safetensors, style: ink.safetensors}\n"
SWEEP = """\
inputs:
  subject: [cat.safetensors, dog.safetensors]
  style: [ink.safetensors, oil.safetensors]
parameters: {mu: [0.25, inf]}
output: {folder: out}
"""


def test_one_fusion_is_what_fuse_makes(folder: Path) -> None:
    text = PAIR.replace("cat.safetensors", "{path: cat.safetensors, strength: 0.5}")
    assert run(
        text + "parameters: {mu: 2}\noutput: {path: out.safetensors, format: diffusers, dtype: fp32}", folder
    ) == [("out.safetensors", True)]
    cat, ink = (nplora.load(folder / f"{name}.safetensors") for name in ("cat", "ink"))
    fused = nplora.fuse(cat, ink, mu=2, subject_strength=0.5)
    (folder / "by-hand").mkdir()
    fused.save(folder / "by-hand/out.safetensors", format="diffusers", dtype="fp32")
    assert (folder / "out.safetensors").read_bytes() == (folder / "by-hand/out.safetensors").read_bytes()


def test_a_fused_file_gives_its_recipe_and_the_recipe_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PAIR + "parameters: {mu: inf, directions: 2}\noutput: {path: out.safetensors, format: kohya}", folder)
    made = (folder / "out.safetensors").read_bytes()
    assert main(["recipe", str(folder / "out.safetensors")]) == 0
    text = capsys.readouterr().out
    (folder / "again.yaml").write_text(text)
    (folder / "out.safetensors").unlink()
    assert main(["run", str(folder / "again.yaml"), "-q"]) == 0
    assert (folder / "out.safetensors").read_bytes() == made
    assert recipe_yaml(recipe_of(folder / "out.safetensors")) in text


def test_a_converted_file_too(folder: Path) -> None:
    run("inputs: {subject: cat.safetensors}\nmethod: convert\noutput: {path: cat-peft, format: peft}", folder)
    before = (folder / "cat-peft/adapter_model.safetensors").read_bytes()
    text = recipe_yaml(recipe_of(folder / "cat-peft"))
    assert run(text, folder) == [("cat-peft", False)]
    assert run(text.replace("peft\n", "other\n", 1), folder) == [("cat-other", True)]
    assert before != b""


def test_lists_stand_for_every_combination(folder: Path) -> None:
    names = [f"{subject}-{style}-mu{mu}.safetensors" for style in ("ink", "oil") for subject in ("cat", "dog") for mu in ("0.25", "inf")]  # fmt: skip
    assert run(SWEEP, folder) == [(name, True) for name in names]
    assert recipe_of(folder / "out/dog-oil-muinf.safetensors").parameters["mu"] == "inf"


def test_an_interrupted_run_goes_on_and_changed_inputs_are_seen(folder: Path) -> None:
    recipe, _ = read_recipe_text(SWEEP)
    outcomes = run_recipe(recipe, folder)
    next(outcomes)
    outcomes.close()  # those that have begun are finished
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert 1 <= len(stamps) < 8
    assert sum(not made for _, made in run(SWEEP, folder)) == len(stamps)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    make(folder / "dog.safetensors", modules=SD15, seed=9, rank=3, alpha=2)
    with pytest.raises(OutputError, match="this recipe would not give it"):
        run(SWEEP, folder)
    assert [made for _, made in run(SWEEP, folder, overwrite=True)] == [False, False, True, True] * 2


def test_progress_counts_every_fusion(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(SWEEP, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 8) for number in range(1, 9)]


OVERRIDE = PAIR + "output: {path: o.safetensors}\noverrides:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIR + "output: {path: o.safetensors}\nmethod: npp", "r.yaml, line 3: method: there is no method 'npp'. Did you mean np?"),
        (PAIR + "output: {path: o.safetensors}\nparameters:\n  mue: 1", "r.yaml, line 4: parameters.mue: there is no parameter 'mue'. Did you mean mu?"),
        (PAIR + "output: {path: o.safetensors}\nparameters:\n  mu: [1, -1]", "r.yaml, line 4: parameters.mu[1]: mu is out of range: expected a number from 0 to inf, got -1. How strongly the style's directions are protected: 0 is plain addition, inf the hard projection."),
        (PAIR + "output: {path: o.safetensors}\nparameters:\n  mu: [1, 2]", "r.yaml, line 2: output.path: one path for many results. Give output.folder, and output.name if you like: {subject}-{style}."),
        (PAIR + "output: {path: o.safetensors}\nparameters:\n  overrides: mu@up=2", "r.yaml, line 4: parameters.overrides: overrides are no parameter. They are a field of their own, a list beside parameters: overrides: [{where: up, mu: 2}]."),
        (OVERRIDE + "- {where: attention, mue: 1}", "r.yaml, line 4: overrides[0].mue: there is no parameter 'mue'. Did you mean mu?"),
        (OVERRIDE + "- where: attention\n  mu: [1, -1]", "r.yaml, line 5: overrides[0].mu[1]: mu is out of range: expected a number from 0 to inf, got -1. How strongly the style's directions are protected: 0 is plain addition, inf the hard projection."),
        (OVERRIDE + "- where: attention\n  protect: 2 > 1", "r.yaml, line 5: overrides[0].protect: protect holds for the whole file. Give it without a place: --protect."),
        (OVERRIDE + "- where: attention\n  keep_style: 1", "r.yaml, line 5: overrides[0].keep_style: keep_style is out of range: expected yes or no, got 1. Compress only what lies outside the style's input directions, whose response stays as it is."),
        (OVERRIDE + "- {where: mlp, mu: 1}\n- {where: up, mu: 1}", "r.yaml, line 5: overrides[1].mu: no module is called up: expected one of down, attention, cross-attention, mlp, unet. A module's name, its beginning, or a glob such as \"*.attn1.*\" will do as well."),
        (OVERRIDE + "- {where: unet, mu: 1}\n- {where: mlp, mu: 2}", "r.yaml, line 5: overrides[1].mu: this is never reached: earlier ones decide about all that it means: got 2.0. The first that means a module counts: put the general ones last."),
        (OVERRIDE + "- {where: mlp, mu: [1, 2]}", "r.yaml, line 2: output.path: one path for many results. Give output.folder, and output.name if you like: {subject}-{style}."),
        (PAIR + "output: {path: o.safetensors, name: x}", "r.yaml, line 2: output: path stands beside folder or name. path is for one result; folder and name are for many."),
        (PAIR + "output: {format: kohya}", "r.yaml, line 2: output: no place for the result: expected path, or folder for many results."),
        (PAIR + "parameters: {mu: [1, 2]}\noutput:\n  folder: out\n  name: '{style}'", "r.yaml, line 3: output: two results would be called ink.safetensors. Name what varies: {mu}."),
        (PAIR + "output: {folder: out, name: '{stile}'}", "r.yaml, line 2: output.name: there is no field 'stile'. Did you mean style?"),
        (PAIR + "output: {folder: out, name: '{style.x}'}", "r.yaml, line 2: output.name: there is no field 'style.x'. Did you mean style?"),
        (PAIR + "output: {folder: out, name: '../{style}'}", "r.yaml, line 2: output.name: this is no file name: got ../ink. Folders go into output.folder."),
        (PAIR + "output: {folder: out, name: '{style'}", "r.yaml, line 2: output.name: the name cannot be read (expected '}' before end of string)."),
        ("inputs:\n  subject: cow.safetensors\n  style: ink.safetensors\noutput: {path: o.safetensors}", "r.yaml, line 2: inputs.subject: cow.safetensors: no such file. Check the path."),
        ("inputs:\n  subject: cat.safetensors\n  style: {path: ink.safetensors, sha256: '00'}\noutput: {path: o.safetensors}", "r.yaml, line 3: inputs.style: ink.safetensors: this is not the style that the recipe names (ink.safetensors): the bytes differ"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told_at_its_line_and_nothing_is_written(text: str, message: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(NploraError) as caught:
        run(text, folder)
    told = str(caught.value).replace(f"{folder}/", "")
    assert told.startswith(message) if message.endswith("differ") else told == message
    assert sorted(folder.rglob("*")) == before


def test_an_output_that_something_else_made_is_not_replaced(folder: Path) -> None:
    text = PAIR + "output: {path: ink2.safetensors}"
    make(folder / "ink2.safetensors", modules=SD15)
    with pytest.raises(OutputError) as caught:
        run(text, folder)
    assert str(caught.value).replace(f"{folder}/", "") == (
        "ink2.safetensors: there is an output already, and this recipe would not give it. Choose another name or folder, or add --overwrite."
    )
    assert run(text, folder, overwrite=True) == [("ink2.safetensors", True)]


def test_a_file_without_a_recipe(folder: Path) -> None:
    with pytest.raises(InputError, match="the header holds no recipe"):
        recipe_of(folder / "cat.safetensors")


def test_the_command_shows_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sweep.yaml").write_text(SWEEP)
    assert main(["run", str(folder / "sweep.yaml"), "--report", str(folder / "all.json")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8 files written.")
    assert shown.count(".safetensors") == 8
    assert main(["run", str(folder / "sweep.yaml")]) == 0
    assert capsys.readouterr().out.startswith("0 files written, 8 kept: the same recipe made them.")
    assert (folder / "all.json").read_text().count('"made": true') == 8


THREE = """\
inputs: {one: cat.safetensors, two: dog.safetensors, three: ink.safetensors}
parameters: {mu: inf, protect: cat > dog = ink}
output: {path: three.safetensors}
"""


def test_three_adapters_and_their_order(folder: Path) -> None:
    assert run(THREE, folder) == [("three.safetensors", True)]
    before = (folder / "three.safetensors").read_bytes()
    text = recipe_yaml(recipe_of(folder / "three.safetensors"))
    (folder / "three.safetensors").unlink()
    assert run(text, folder) == [("three.safetensors", True)]
    assert (folder / "three.safetensors").read_bytes() == before
    cat, dog, ink = (nplora.load(folder / f"{name}.safetensors") for name in ("cat", "dog", "ink"))
    fused = nplora.fuse(cat, dog, ink, mu="inf", protect="cat > dog = ink")
    (folder / "by-hand").mkdir()
    fused.save(folder / "by-hand/three.safetensors")
    assert (folder / "by-hand/three.safetensors").read_bytes() == before


def test_a_strength_is_its_adapter_s_whatever_the_role_is_called(folder: Path) -> None:
    text = "inputs: {a: {path: cat.safetensors, strength: 0.5}, b: dog.safetensors}\nmethod: svd\noutput: {path: o.safetensors}"
    run(text, folder)
    assert recipe_of(folder / "o.safetensors").inputs["subject"].strength == 0.5


IN_PARTS = """\
parameters: {mu: 1.0, rank: 6}
overrides:
- {where: cross-attention, mu: inf, directions: 2}
- {where: "*.attn1.*", mu: 2}
- {where: mlp, rank: 5, keep_style: yes}
output: {path: out.safetensors}
"""


def test_overrides_are_those_of_fuse_and_come_back_from_the_file(folder: Path) -> None:
    assert run(PAIR + IN_PARTS, folder) == [("out.safetensors", True)]
    made = (folder / "out.safetensors").read_bytes()
    cat, ink = (nplora.load(folder / f"{name}.safetensors") for name in ("cat", "ink"))
    rules = "mu@cross-attention=inf, directions@cross-attention=2, mu@*.attn1.*=2, rank@mlp=5, keep-style@mlp=yes"
    (folder / "by-hand").mkdir()
    nplora.fuse(cat, ink, mu=1, rank=6, overrides=rules).save(folder / "by-hand/out.safetensors")
    assert (folder / "by-hand/out.safetensors").read_bytes() == made
    recipe = recipe_of(folder / "out.safetensors")
    assert recipe.overrides == [
        {"where": "cross-attention", "mu": "inf", "directions": 2}, {"where": "*.attn1.*", "mu": 2.0},
        {"where": "mlp", "rank": 5, "keep_style": True},
    ]  # fmt: skip
    assert "overrides" not in recipe.parameters
    assert run(recipe_yaml(recipe), folder) == [("out.safetensors", False)]
    (folder / "out.safetensors").unlink()
    assert run(recipe_yaml(recipe), folder) == [("out.safetensors", True)]
    assert (folder / "out.safetensors").read_bytes() == made
    assert nplora.verify(folder / "out.safetensors").passed


def test_rules_of_one_place_that_do_not_stand_together_keep_their_order(folder: Path) -> None:
    text = (
        PAIR
        + "overrides:\n- {where: attention, mu: 1}\n- {where: '*', mu: 2}\n- {where: attention, directions: 1}\noutput: {path: o.safetensors}"
    )
    run(text, folder)
    tables = [{"where": "attention", "mu": 1.0}, {"where": "*", "mu": 2.0}, {"where": "attention", "directions": 1}]
    assert recipe_of(folder / "o.safetensors").overrides == tables


def test_an_override_is_swept_like_a_parameter(folder: Path) -> None:
    text = (
        PAIR
        + "method: [np, linear]\noverrides:\n- {where: '*.attn1.*', mu: [1, inf]}\n- {where: mlp, mu: 2}\noutput: {folder: out}"
    )
    names = ["cat-ink-np-mu@attn11", "cat-ink-np-mu@attn1inf", "cat-ink-linear"]
    assert run(text, folder) == [(f"{name}.safetensors", True) for name in names]
    assert recipe_of(folder / "out/cat-ink-linear.safetensors").overrides == []
    assert recipe_of(folder / "out/cat-ink-np-mu@attn1inf.safetensors").overrides[0] == {
        "where": "*.attn1.*",
        "mu": "inf",
    }
    named = text.replace("folder: out", "folder: out, name: '{method} {mu@*.attn1.*}'").replace("[np, linear]", "np")
    assert run(named, folder) == [("np 1.safetensors", True), ("np inf.safetensors", True)]


def test_a_conversion_has_overrides_too(folder: Path) -> None:
    text = "inputs: {subject: ink.safetensors}\nmethod: convert\noverrides:\n- {where: mlp, rank: 1}\noutput: {path: o.safetensors}"
    run(text, folder)
    ranks = {module.update.rank for module in nplora.load(folder / "o.safetensors").modules.values()}
    assert ranks == {1, 4}
    assert run(recipe_yaml(recipe_of(folder / "o.safetensors")), folder) == [("o.safetensors", False)]
    assert nplora.verify(folder / "o.safetensors").passed
