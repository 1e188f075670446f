"""Every command does what its help says, with the status that a script can rely on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nplora as package
from cli.conftest import Nplora
from making import CONVOLUTIONS, SD15, TEXT, make, tensors, write
from nplora.methods import known_methods

# ------------------------------------------------------------------------------------------ fuse


@pytest.mark.usefixtures("pair")
def test_fuse_says_what_it_did(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("fuse cat.safetensors ink.safetensors -o out.safetensors")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith("Unrelated runs (")
    assert lines[0].endswith("set the balance with --subject-strength and --style-strength.")
    size = (tmp_path / "out.safetensors").stat().st_size
    assert lines[2:] == [
        f"  written         out.safetensors: kohya, rank 4 (1), 12 (4), {size / 1000:.1f} kB",
        "  modules         4 fused; 1 of the subject alone passed through",
        "  subject words   sks cat",
        "  style words     ink wash",
    ]


@pytest.mark.usefixtures("pair")
def test_fuse_quiet(nplora: Nplora) -> None:
    assert nplora("fuse cat.safetensors ink.safetensors -o out.safetensors -q") == (0, "", "")


@pytest.mark.usefixtures("pair")
def test_fuse_with_every_option(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora(
        "fuse cat.safetensors ink.safetensors -o out.safetensors --mu inf --directions 0.9 --side output --device cpu "
        "--subject-strength -0.5 --style-strength 1.1 --strength ink@attention=0.5 --strength 1@mlp=2,*@down=1 --protect ink>cat "
        "--override mu@attention=2 --override rank@mlp=3,directions@mlp=2 "
        "--calibrate 1.5 --components unet --format diffusers --dtype fp32 "
        "--allow-nonfinite --report out.json"
    )
    assert (ran.status, ran.err) == (0, "")
    assert "  left out        3 keys, not among --components: " in ran.out
    assert (
        "  in parts        mu 2.0 in 3 modules of attention, rank 3 in 1 module of mlp, directions 2 in 1 module of mlp"
        in ran.out
    )
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["parameters"] == {
        "mu": "inf", "directions": 0.9, "side": "output", "protect": "2 > 1", "calibrate": 1.5, "subject_strength": -0.5,
        "style_strength": 1.1, "strengths": ["2@attention=0.5", "1@mlp=2.0", "*@down=1.0"],
            "overrides": ["mu@attention=2.0", "rank@mlp=3", "directions@mlp=2"], "components": ["unet"],
        "base": None, "dora": "exact", "rank": None, "energy": None, "error": None, "keep_style": False,
        "format": "diffusers", "dtype": "fp32", "device": "cpu", "strict": False,
        "allow_nonfinite": True,
    }  # fmt: skip
    assert len(report["left_out"]) == 3
    assert nplora("verify out.safetensors").status == 0


@pytest.mark.usefixtures("pair")
def test_fuse_three_by_a_merge(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "fog.safetensors", modules=SD15, seed=3)
    ran = nplora("fuse cat.safetensors ink.safetensors fog.safetensors -o out.safetensors --method svd --rank 3")
    assert (ran.status, ran.err) == (0, "")
    sentence, _, facts = ran.out.partition("\n\n")
    assert sentence.startswith("Truncated sum: the result holds a at ")
    assert "% away from the plain sum" in sentence
    assert "  written         out.safetensors: kohya, rank 3, " in facts
    assert "  modules         4 fused; 1 of a alone passed through\n" in facts
    assert nplora("verify out.safetensors").status == 0
    assert nplora("verify out.safetensors --rank 4").status == 1
    assert nplora("verify out.safetensors --method linear").status == 1


@pytest.mark.usefixtures("pair")
def test_fuse_three_in_an_order(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "fog.safetensors", modules=SD15, seed=3)
    ran = nplora("fuse cat.safetensors ink.safetensors fog.safetensors -o out.safetensors --protect", "cat > fog = ink")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("b: Unrelated runs (")
    assert " c: Unrelated runs (" in ran.out
    assert nplora("verify out.safetensors").status == 0


@pytest.mark.usefixtures("pair")
def test_fuse_takes_and_writes_folders(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "peft", "peft", SD15, seed=3, rank=4, alpha=8)
    ran = nplora("fuse peft ink.safetensors -o fused --format peft")
    assert (ran.status, ran.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "fused").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert nplora("verify fused").status == 0


@pytest.mark.usefixtures("pair")
def test_what_is_left_out_is_named_and_the_report_names_the_rest(nplora: Nplora, tmp_path: Path) -> None:
    extra = {f"text_model.embedding_{index}": np.ones(2, np.float32) for index in range(5)}
    make(tmp_path / "odd.safetensors", seed=1, extra=extra)
    names = ", ".join(list(extra)[:3])
    ran = nplora("fuse odd.safetensors ink.safetensors -o out.safetensors")
    assert (
        "  left out        5 keys, a foreign key would keep readers of kohya / sd-scripts from loading the file: "
        f"{names} and 2 more\n                  --report FILE.json names all of them\n"
    ) in ran.out
    ran = nplora("fuse odd.safetensors ink.safetensors -o out.safetensors --overwrite --report all.json")
    assert "                  all of them are named in all.json\n" in ran.out
    assert len(json.loads((tmp_path / "all.json").read_text())["left_out"]) == 5


def test_added_biases_are_counted(nplora: Nplora, tmp_path: Path) -> None:
    name = next(iter(SD15))
    make(tmp_path / "a.safetensors", seed=1, bias=[name])
    make(tmp_path / "b.safetensors", seed=2, bias=[name])
    assert (
        "  added           1 bias or norm delta, by strength\n"
        in nplora("fuse a.safetensors b.safetensors -o c.safetensors").out
    )
    assert nplora("verify c.safetensors").status == 0


# ------------------------------------------------------------------------------------------ inspect


@pytest.mark.usefixtures("pair")
def test_inspect(nplora: Nplora) -> None:
    ran = nplora("inspect cat.safetensors")
    assert (ran.status, ran.err) == (0, "")
    assert [line.rstrip() for line in ran.out.splitlines()] == [
        "cat.safetensors  56.6 kB",
        "",
        "LoRA for Stable Diffusion 1.x: 5 modules of rank 4 at scale 0.5.",
        "",
        "component      kind   scale known from   modules   rank   scale    norm",
        "text_encoder   LoRA   alpha keys               1      4     0.5   0.491",
        "unet           LoRA   alpha keys               4      4     0.5    1.03",
        "",
        "block                spectrum   modules   rank   effective   stable   dead    norm",
        "unet.down_blocks.0   █▇▇▇             4      4         4.0      3.3      -    1.03",
        "text_encoder         █▇▇▇             1      4         4.0      3.3      -   0.491",
        "",
        (
            "norm: how large the change is at strength 1 (Frobenius). scale: the factor in front of B A. effective: how "
            "many of the ranks share the work (entropy). spectrum: the singular values, the largest first."
        ),
        "",
        "  base            Stable Diffusion 1.x: 5 of 5 modules are Stable Diffusion 1.x's",
        (
            "  format          kohya / sd-scripts: 5 of 5 modules are named as in "
            "'lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight'"
        ),
        "  numbers         F16 (15 tensors)",
        "  trigger words   sks cat",
        "",
        "  saved as        cat",
    ]


@pytest.mark.usefixtures("pair")
def test_inspect_as_json(nplora: Nplora) -> None:
    one = json.loads(nplora("inspect cat.safetensors --json").out)
    assert one["base"]["name"] == "sd15"
    two = json.loads(nplora("inspect cat.safetensors ink.safetensors --json").out)
    assert two[0] == one
    assert two[1]["format"]["name"] == "diffusers"


@pytest.mark.usefixtures("pair")
def test_inspect_of_a_folder_is_one_table(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "peft", "peft", seed=3)
    (tmp_path / "notes.txt").write_text("not an adapter")
    ran = nplora("inspect .")
    assert (ran.status, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == [
        "file",
        "base",
        "kind",
        "trigger",
        "words",
        "modules",
        "rank",
        "effective",
        "scale",
        "norm",
        "odd",
    ]
    assert [line[0] for line in lines[1:4]] == ["cat.safetensors", "ink.safetensors", "peft"]
    assert "sks cat" in ran.out
    assert nplora("inspect peft").out.startswith("peft")


@pytest.mark.usefixtures("pair")
def test_inspect_for_a_program(nplora: Nplora) -> None:
    ran = nplora("inspect ink.safetensors --for diffusers --for comfyui")
    assert "  for diffusers   diffusers takes all 8 keys.\n" in ran.out
    assert "  for comfyui     ComfyUI takes 2 of 8 keys and drops 6.\n" in ran.out
    assert "  dropped         6 keys, because attention under diffusers names is known in its old form only" in ran.out
    assert "known from: read (ComfyUI 17358c8), not run" in ran.out
    both = nplora("inspect . --for kohya").out
    assert [line.split()[:3] for line in both.splitlines() if line.startswith("kohya")] == [
        ["kohya", "cat.safetensors", "sd-scripts"], ["kohya", "ink.safetensors", "sd-scripts"]
    ]  # fmt: skip
    found = json.loads(nplora("inspect ink.safetensors --json --for peft").out)["for"]
    assert (found[0]["taken"], found[0]["keys"]) == (0, 8)
    assert "8 keys dropped: it loads the names of its own networks only" in both  # of many files, too, the reason


def test_inspect_names_dead_ranks(nplora: Nplora, tmp_path: Path) -> None:
    arrays = tensors(rank=4, seed=1)
    up = next(key for key in arrays if "up" in key)
    arrays[up][:, 1:3] = 0
    write(tmp_path / "dead.safetensors", arrays)
    assert "  dead ranks      2 in 1 module are stored and do nothing: unet." in nplora("inspect dead.safetensors").out


@pytest.mark.usefixtures("pair")
def test_inspect_goes_on_after_a_bad_file(nplora: Nplora) -> None:
    ran = nplora("inspect nope.safetensors cat.safetensors")
    assert (ran.status, ran.err) == (3, "nplora: nope.safetensors: no such file. Check the path.\n")
    assert ran.out.startswith("cat.safetensors")


def test_inspect_of_everything_at_once(nplora: Nplora, tmp_path: Path) -> None:
    odd, first, second = next(iter(CONVOLUTIONS)), *list(SD15)[:2]
    arrays = {"embedding": np.ones(3, np.float32)}
    make(
        tmp_path / "odd.safetensors", modules={**SD15, **CONVOLUTIONS}, tucker=[odd], full=[first], bias=[second],
        norms={"unet.down_blocks.0.resnets.0.norm1": 320}, extra=arrays, dtype="F32", size=0.0,
    )  # fmt: skip
    ran = nplora("inspect odd.safetensors")
    assert (ran.status, ran.err) == (0, "")
    for part in (
        "LoCon (Tucker)",
        "full",
        "3 deltas besides",
        "1 key in no module: embedding",
        "modules that change nothing",
    ):
        assert part in ran.out, part


# ------------------------------------------------------------------------------------------ compare


@pytest.mark.usefixtures("pair")
def test_compare(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("compare cat.safetensors ink.safetensors --mu 1")
    assert (ran.status, ran.err) == (0, "")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert "mu = 1 changes the subject by " in lines[0]
    assert lines[2].startswith("They write to different outputs (")
    assert " No sign conflict: 50 % of the entries have opposite signs, chance is 50 %. The sum is 1.1" in lines[2]
    assert lines[4].split() == ["block", "overlap", "chance", "rows", "columns", "modules", "subject", "style", "sum"]
    assert lines[5].startswith("unet.down_blocks.0 ")
    assert lines[7].startswith("overlap: share of the subject in the style's directions. chance: the share of ")
    assert lines[9:] == [
        "  base            Stable Diffusion 1.x",
        "  modules         4 in common, 1 only in the subject",
        "  norms           subject 1.03, style 1.98 in common modules: the style is 1.9 times as strong",
        "  down factors    median cosine 0.00: the trainings started from different numbers",
        (
            "  start with      --method np --mu 0.5 --subject-strength 0.85 --style-strength 0.67: mu hardly matters; the style is "
            "1.9 times as strong and would drown the subject; together they are 1.20 times as large as the stronger "
            "alone, which can burn pictures."
        ),
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "cat.safetensors", tmp_path / "ink.safetensors"]


@pytest.mark.usefixtures("pair")
def test_compare_by_module_and_as_json(nplora: Nplora) -> None:
    data = json.loads(nplora("compare cat.safetensors ink.safetensors --json --mu inf").out)
    assert (data["mu"], len(data["overlaps"])) == ("inf", 4)
    shown = nplora("compare cat.safetensors ink.safetensors --modules").out
    assert all(row["module"] in shown for row in data["overlaps"])


def test_compare_sees_one_initialisation(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "a.safetensors", seed=1)
    make(tmp_path / "b.safetensors", seed=2, down_seed=1)
    out = nplora("compare a.safetensors b.safetensors").out
    assert out.startswith("Shared initialisation (100 % overlap): mu = 0.5 acts as subject strength 0.67")
    assert "median cosine 1.00: both trainings started from the same numbers (one trainer, one seed)" in out


def test_compare_of_strangers(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "a.safetensors", modules=SD15, seed=1)
    make(tmp_path / "b.safetensors", modules=TEXT, seed=2)
    ran = nplora("compare a.safetensors b.safetensors")
    assert ran.status == 0
    assert ran.out.startswith(
        "The two adapters have no module in common: nothing is projected, the result is plain addition."
    )
    assert "  modules         0 in common, 4 only in the subject, 1 only in the style\n" in ran.out


@pytest.mark.usefixtures("pair")
def test_compare_of_many(nplora: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "dog.safetensors", modules={**SD15, **TEXT}, seed=3, down_seed=1)
    ran = nplora("compare cat.safetensors ink.safetensors dog.safetensors")
    assert (ran.status, ran.err) == (0, "")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[0].startswith("Between two adapters of one seed mu acts mostly as a strength.")
    assert lines[2] == "  one seed        cat, dog"
    assert lines[4].split() == ["file", "trainer", "its", "seed", "base", "rank"]
    assert [line.split()[0] for line in lines[9:13]] == ["seed", "1", "2", "3"]
    assert "1.00" in ran.out
    assert nplora("compare .").out == ran.out  # in the order of their names, then of their relations
    found = json.loads(nplora("compare . --json").out)
    assert [file["name"] for file in found["files"]] == ["cat.safetensors", "dog.safetensors", "ink.safetensors"]


@pytest.mark.usefixtures("pair")
def test_compare_of_many_goes_on_after_a_bad_file(nplora: Nplora) -> None:
    ran = nplora("compare cat.safetensors nope.safetensors ink.safetensors")
    assert (ran.status, ran.err) == (3, "nplora: nope.safetensors: no such file. Check the path.\n")
    assert ran.out.startswith("No two of them share a seed")


# ------------------------------------------------------------------------------------------ convert


@pytest.mark.usefixtures("pair")
def test_convert(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("convert cat.safetensors -o there.safetensors --format diffusers --dtype fp32")
    size = (tmp_path / "there.safetensors").stat().st_size
    assert ran == (
        0,
        f"5 modules from kohya to diffusers.\n\n  written         there.safetensors: {size / 1000:.1f} kB\n",
        "",
    )
    before, after = package.load("cat.safetensors"), package.load("there.safetensors")
    for name in before:
        np.testing.assert_allclose(after[name].delta(), before[name].delta(), atol=1e-7)
    assert nplora("verify there.safetensors").status == 0


@pytest.mark.usefixtures("pair")
def test_convert_some_components(nplora: Nplora) -> None:
    ran = nplora("convert cat.safetensors -o unet --format peft --components unet --report r.json")
    assert (ran.status, ran.err) == (0, "")
    assert "  left out        3 keys, not among --components: lora_te_" in ran.out
    assert list(package.load("unet").components) == ["unet"]
    assert nplora("verify unet").status == 0


# ------------------------------------------------------------------------------------------ verify


@pytest.mark.usefixtures("pair")
def test_verify(nplora: Nplora, tmp_path: Path) -> None:
    assert nplora("fuse cat.safetensors ink.safetensors -o out.safetensors -q").status == 0
    ran = nplora("verify out.safetensors")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("out.safetensors is what its recipe says: 5 modules recomputed, worst relative error ")
    assert nplora("verify out.safetensors -q") == (0, "", "")
    data = json.loads(nplora("verify out.safetensors cat.safetensors ink.safetensors --json").out)
    assert data["passed"] is True
    assert len(data["modules"]) == 5


@pytest.mark.usefixtures("pair")
def test_verify_fails_with_status_1(nplora: Nplora) -> None:
    assert nplora("fuse cat.safetensors ink.safetensors -o out.safetensors -q").status == 0
    ran = nplora("verify out.safetensors cat.safetensors ink.safetensors --style-strength 0.9 -q")
    assert (ran.status, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith(
        "out.safetensors is not what its recipe says: 4 of 5 modules over the bound (worst unet."
    )
    assert [line[:18] for line in lines[2:-1]] == ["  over the bound  "] * 4
    assert lines[-1] == (
        "  next            the options here replace the recipe's: leave them out to compare with the recipe alone"
    )
    assert json.loads(nplora("verify out.safetensors --mu 3 --json").out)["passed"] is False


# ------------------------------------------------------------------------------------------ methods


def test_methods_are_listed(nplora: Nplora) -> None:
    lines = nplora("methods").out.splitlines()
    assert lines[0].split() == ["method", "published"]
    assert lines[1].split("  ")[0] == "np"
    assert {line.split()[0] for line in lines[1:-2]} == set(known_methods())
    assert lines[-1].startswith("nplora methods NAME shows formula")


def test_a_method_is_shown(nplora: Nplora) -> None:
    out = nplora("methods np").out
    assert out.startswith(
        "np  Null-space projection (NP-LoRA)\n\n"
        "  computes        dW = w_s dW_s + w_c dW_c (I - g V V^T) with g = mu / (1 + mu)\n"
        "  promises        The subject's response in the protected directions is divided by 1 + mu"
    )
    assert "  published       arXiv 2511.11051" in out
    data = {method["name"]: method for method in json.loads(nplora("methods --json").out)}
    assert [parameter["name"] for parameter in data["np"]["parameters"]] == [
        "mu",
        "directions",
        "side",
        "protect",
        "calibrate",
    ]
    assert all(method["formula"] and method["guarantee"] for method in data.values())


@pytest.mark.usefixtures("pair")
def test_compare_methods(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("compare-methods cat.safetensors ink.safetensors --methods np,linear,ties,peft-linear --density 0.5")
    assert (ran.status, ran.err) == (0, "")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    (head,) = [line for line in lines if line.startswith("method ")]
    assert head.split() == [
        "method",
        "rank",
        "size",
        "time",
        "from",
        "sum",
        "leakage",
        "kept",
        "subject",
        "kept",
        "style",
        "foreign",
    ]
    assert [line.split()[0] for line in lines[lines.index(head) + 1 :][:3]] == ["np", "linear", "ties"]
    assert "  peft-linear     not possible: " in ran.out
    data = json.loads(nplora("compare-methods cat.safetensors ink.safetensors --methods linear --json").out)
    assert data["methods"][0]["distance"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.safetensors", "ink.safetensors"]
