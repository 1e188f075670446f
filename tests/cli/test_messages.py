"""The wording of every error that a person can meet at the command line, whole, with its exit status.

What is wrong with the bytes of a file is worded in tests/hostile; recipes and outputs in test_messages_files.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Nplora
from making import SD15, TEXT, make, tensors, write
from nplora.cli import COMMANDS
from nplora.methods import known_methods

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ONE = {NAME: (320, 320)}
FUSE = "fuse cat.safetensors ink.safetensors -o out.safetensors"


# ------------------------------------------------------------------------------------------ usage: status 2

MU = "How strongly the style's directions are protected: 0 is plain addition, inf the hard projection."


def having(option: str) -> list[str]:
    """The methods with an option."""
    return [name for name, method in known_methods().items() if option in {p.name for p in method.options}]


MU_OF = f"--mu belongs to {', '.join(having('mu'))}."
WHICH = "Which of the style's directions are protected: all, the top k, or as many as hold a share of its energy."
USAGE = {
    "fuze": "No such command 'fuze'. Did you mean fuse? See `nplora --help`.",
    "paint": (
        f"No such command 'paint'. There are: {', '.join(COMMANDS)}. See `nplora --help`."
    ),
    "--loud": "No such option '--loud'. See `nplora --help`.",
    "fuse": (
        "SUBJECT STYLE ... is missing. For example: nplora fuse cat.safetensors ink.safetensors. "
        "See `nplora fuse --help`."
    ),
    "convert cat.safetensors": (
        "no output is named. For example: nplora convert cat.safetensors --format kohya -o FILE.safetensors."
    ),
    "convert cat.safetensors ink.safetensors -o out.safetensors": (
        "one adapter is converted at a time: got 2. nplora fuse puts several into one."
    ),
    "inspect cat.safetensors --plot out.gif": "out.gif: a plot is written as .png. Name it out.png.",
    "inspect cat.safetensors --html out": "out: a page is written as .html. Name it out.html.",
    f"{FUSE} --mu 0,5": "mu is out of range: expected a number from 0 to inf, got '0,5'. Write a point: 0.5.",
    f"{FUSE} --format koya": (
        "format is out of range: expected auto, same, kohya, diffusers, peft, got 'koya'. Did you mean kohya?"
    ),
    f"{FUSE} --method TIES": (
        f"no method is called TIES: expected one of {', '.join(known_methods())}. Did you mean ties?"
    ),
    "fuse cat.safetensors ink.safetensors cat.safetensors -o out.safetensors --style-strength 0.5": (
        "--style-strength is for a subject and a style: got 3 adapters. Of more, name one by its letter or its file: "
        "--strength a=0.5."
    ),
    "fuse cat.safetensors -o out.safetensors": (
        "the method np takes two adapters or more: expected a subject and a style, got 1. Name the style after the "
        "subject; nplora convert writes one adapter alone."
    ),
    "inspect": (
        "ADAPTER... is missing. For example: nplora inspect cat.safetensors. See `nplora inspect --help`."
    ),
    "compare cat.safetensors": "Two adapters are needed, or a folder that holds them. See `nplora compare --help`.",
    "verify": (
        "OUTPUT is missing. For example: nplora verify cat-ink.safetensors. See `nplora verify --help`."
    ),
    f"{FUSE} --method magic": (
        f"no method is called magic: expected one of {', '.join(known_methods())}. nplora methods lists them."
    ),
    f"{FUSE} --method linear --mu 1": f"the method linear has no option --mu: expected none of its own. {MU_OF}",
    f"{FUSE} --density 0.5": (
        "the method np has no option --density: expected --mu, --directions, --side, --protect, --calibrate. "
        f"--density belongs to {', '.join(having('density'))}."
    ),
    f"{FUSE} --method svd --mu 1": f"the method svd has no option --mu: expected --rank, --seed. {MU_OF}",
    f"{FUSE} --method svd --rank 0": (
        "rank is out of range: expected a whole number from 1, got '0'. Rank of the result in each module; by default as "
        "large as all the adapters' ranks together."
    ),
    f"{FUSE} --strength ink": (
        "strengths is out of range: expected WHO@WHERE=NUMBER, or several with commas between them, such as "
        "style@up=1,style@*=0, got 'ink'. Of a whole adapter: style=0.5, or --style-strength 0.5."
    ),
    f"{FUSE} --override mu": (
        "overrides is out of range: expected PARAMETER@WHERE=VALUE, or several with commas between them, such as "
        "mu@up=2,rank@down=8, got 'mu'. Parameters in parts of the model, such as mu@up=2 or rank@attention=8; the first "
        "that means a module counts."
    ),
    f"{FUSE} --override mu@attention=-1": (
        f"mu@attention: mu is out of range: expected a number from 0 to inf, got '-1'. {MU}"
    ),
    f"{FUSE} --override mu@up=2": (
        "mu@up: no module is called up: expected one of down, attention, cross-attention, mlp, text, text_encoder, unet. A "
        'module\'s name, its beginning, or a glob such as "*.attn1.*" will do as well.'
    ),
    f"{FUSE} --override mu@down=2 --override mu@mlp=1": (
        "mu@mlp: this is never reached: earlier ones decide about all that it means: got 1.0. The first that means a module "
        "counts: put the general ones last."
    ),
    f"{FUSE} --method svd --override mu@down=2": (
        "mu@down: this fusion has no parameter mu: expected one of rank, energy, error, keep_style."
    ),
    f"{FUSE} --method dare --override seed@down=2": (
        "seed@down: seed holds for the whole file. Give it without a place: --seed."
    ),
    f"{FUSE} --override style-strength@down=2": (
        "style_strength@down: style_strength holds for the whole file. Strengths in parts of the model have rules of their "
        "own: --strength style@up=0."
    ),
    f"{FUSE} --protect ink": (
        "protect must name every adapter once: expected style > subject, got ink. The first is the most protected; = gives "
        "two the same priority."
    ),
    f"{FUSE} --calibrate 0.5": (
        "calibrate is out of range: expected a number from 1 to inf, got '0.5'. How far what is left of a projected adapter "
        "may be scaled up to get its norm back: 1 is not at all, inf wholly."
    ),
    f"{FUSE} --mux 1": "No such option '--mux'. Did you mean --mu? See `nplora fuse --help`.",
    f"{FUSE} --mu": "Option '--mu' requires an argument. See `nplora fuse --help`.",
    f"{FUSE} --mu -1": f"mu is out of range: expected a number from 0 to inf, got '-1'. {MU}",
    f"{FUSE} --mu nan": f"mu is out of range: expected a number from 0 to inf, got 'nan'. {MU}",
    f"{FUSE} --mu much": f"mu is out of range: expected a number from 0 to inf, got 'much'. {MU}",
    f"{FUSE} --directions 0": (
        'directions is out of range: expected "all", a count such as 4, or a share of the energy such as 0.95, got '
        '\'0\'. '
        + WHICH
    ),
    f"{FUSE} --style-strength inf": (
        "style_strength is out of range: expected a number (any finite one), got 'inf'. Strength of the style; 0 "
        "leaves it "
        "out, negative values subtract it."
    ),
    f"{FUSE} --side left": (
        "side is out of range: expected input, output, got 'left'. Project on the input side (the method) or on the "
        "output "
        "side (the paper's ablation)."
    ),
    f"{FUSE} --format zip": (
        "format is out of range: expected auto, same, kohya, diffusers, peft, got 'zip'. How the output is named: "
        "auto is "
        "the inputs' common format, else the subject's."
    ),
    f"{FUSE} --components unet,": (
        "components is out of range: expected names separated by commas, got 'unet,'. Only these parts of the model, "
        "for "
        "example unet,text_encoder; the rest is left out and named in the report."
    ),
    f"{FUSE} --components vae": (
        "no component is called vae: expected text_encoder or unet. Check --components."
    ),
    f"{FUSE} --subject-strength 0 --style-strength 0": (
        "nothing is left to write: expected a module with a strength other than 0. Check --components and the "
        "strengths."
    ),
    "fuse cat.safetensors ink.safetensors -o cat.safetensors --overwrite": (
        "cat.safetensors: the output would replace an input. Choose another name for the output."
    ),
    f"{FUSE} --report ink.safetensors --overwrite": (
        "ink.safetensors: the report would replace an adapter. Choose another name for the report."
    ),
    f"{FUSE} --format peft --components unet": (
        "out.safetensors: PEFT is a folder, not one file. Name a folder, such as out, or add --format diffusers."
    ),
    "convert cat.safetensors -o out --format peft": (
        "a PEFT folder holds one component: expected one, got text_encoder, unet. Write one folder for each: "
        "--components text_encoder."
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", USAGE)
def test_usage(line: str, refused: Nplora) -> None:
    assert refused(line) == (2, USAGE[line])


def test_a_device_that_is_not_there(refused: Nplora) -> None:
    status, message = refused(f"{FUSE} --device mps") if sys.platform != "darwin" else (2, "device mps")
    assert status == 2
    assert message in (
        'device mps needs torch. Install the extra, pip install ".[torch]" in nplora\'s folder, or pip install torch.',
        "device mps is not available on this machine. Use --device cpu.",
        "device mps",
    )


# ------------------------------------------------------------------------------------------ bad input: status 3

BROKEN = {
    "missing half": (
        lambda: {key: array for key, array in tensors(modules=ONE).items() if "up" not in key},
        (
            f"bad.safetensors: {Q}.lora_down.weight: half of the module is missing: expected its up factor beside it. "
            "The file was saved incompletely: get the original."
        ),
    ),
    "ranks differ": (
        lambda: tensors(modules=ONE) | {f"{Q}.lora_up.weight": np.zeros((320, 3), np.float16)},
        (
            f"bad.safetensors: {Q}.lora_down.weight: the two factors differ in rank: expected rank 3 as in "
            f"{Q}.lora_up.weight, "
            "got rank 4. The file is damaged or badly converted: get the original."
        ),
    ),
    "rank 0": (
        lambda: tensors(modules=ONE, rank=0),
        (
            f"bad.safetensors: {Q}.lora_down.weight: the rank is 0: expected rank 1 or more. The module is empty: get "
            "the original."
        ),
    ),
    "integers": (
        lambda: tensors(modules=ONE) | {f"{Q}.lora_up.weight": np.zeros((320, 4), np.int32)},
        (
            f"bad.safetensors: {Q}.lora_up.weight: a factor must be a float matrix or convolution: expected two axes "
            "or "
            "more of "
            "floats, got I32 [320, 4]."
        ),
    ),
    "alpha 0": (
        lambda: tensors(modules=ONE, alpha=0),
        (
            f"bad.safetensors: {Q}.alpha: alpha is 0, which programs read in two ways (off in ComfyUI and A1111, full "
            "strength in "
            "kohya): expected a positive number. Set it to 4 for full strength, or remove the module to leave it out."
        ),
    ),
    "alpha infinite": (
        lambda: tensors(modules=ONE, alpha=float("inf")),
        f"bad.safetensors: {Q}.alpha: the scale is not finite: got inf. The file is damaged: get the original.",
    ),
    "alphas": (
        lambda: tensors(modules=ONE) | {f"{Q}.alpha": np.zeros(2, np.float16)},
        f"bad.safetensors: {Q}.alpha: this must be a single number: expected shape () or (1,), got shape (2,).",
    ),
    "several": (
        lambda: {
            f"unet.a.lora_{side}.{name}.weight": np.ones((4, 4), np.float32) for side in "AB" for name in ("x", "y")
        },
        (
            "bad.safetensors: the file holds several adapters: expected one adapter, got x, y. Save each one to a file "
            "of its own."
        ),
    ),
    "twice": (
        lambda: {f"unet.a.{part}.weight": np.ones((4, 4), np.float32) for part in ("lora_A", "lora_down", "lora_B")},
        (
            "bad.safetensors: unet.a.lora_down.weight: one module holds the same role under two names: expected one "
            "tensor, got "
            "also unet.a.lora_A.weight. The file was badly converted: get the original."
        ),
    ),
    "a model": (
        lambda: {"conv_in.weight": np.ones((4, 4), np.float32)},
        (
            "bad.safetensors: this is not a LoRA: expected pairs of low-rank factors (lora_up/lora_down, "
            "lora_A/lora_B, "
            "...), got "
            "tensors such as conv_in.weight (1 in all). It looks like a whole model: name the LoRA here, and the model with --base where "
            "a kind needs it."
        ),
    ),
    "an embedding": (
        lambda: {"<pin>": np.ones(768, np.float32)},
        (
            "bad.safetensors: this is not a LoRA: expected pairs of low-rank factors (lora_up/lora_down, "
            "lora_A/lora_B, ...), got tensors such as <pin> (1 in all). It looks like an embedding (textual inversion), "
            "which programs load beside a LoRA."
        ),
    ),
    "nothing": (
        dict,
        (
            "bad.safetensors: this is not a LoRA: expected pairs of low-rank factors (lora_up/lora_down, "
            "lora_A/lora_B, "
            "...), got "
            "no tensors at all. Check that this is the adapter, not a model or an embedding."
        ),
    ),
    "a lost core": (
        lambda: {f"{Q}.lora_mid.weight": np.ones((4, 4, 3, 3), np.float32)},
        f"bad.safetensors: {Q}.lora_mid.weight: half of the module is missing: expected its up factor beside it.",
    ),
    "a core that does not fit": (
        lambda: (
            tensors(modules={NAME: (320, 320, 3, 3)}, tucker=[NAME])
            | {f"{Q}.lora_mid.weight": np.ones((3, 4, 3, 3), np.float16)}
        ),
        (
            f"bad.safetensors: {Q}.lora_mid.weight: the core does not fit the factors: expected shape (4, 4, k, k), "
            "got "
            "shape "
            "(3, 4, 3, 3)."
        ),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_adapters(what: str, refused: Nplora, tmp_path: Path) -> None:
    arrays, message = BROKEN[what]
    write(tmp_path / "bad.safetensors", arrays())
    for line in ("inspect bad.safetensors", "fuse bad.safetensors ink.safetensors -o out.safetensors"):
        assert refused(line) == (3, message)


def test_a_name_that_is_nearly_right(refused: Nplora) -> None:
    assert refused("inspect cat") == (3, "cat: no such file. Did you mean cat.safetensors?")
    assert refused("compare catt.safetensors ink.safetensors")[1].endswith(
        "no such file. Did you mean cat.safetensors?"
    )
    assert refused("inspect loras/cat.safetensors") == (
        3, "loras/cat.safetensors: no such file. There is no folder loras: check the path."
    )  # fmt: skip
    assert refused("inspect", "") == (3, "no file is named: got an empty name. Check the command line.")


def test_files_that_are_not_there(refused: Nplora) -> None:
    lines = (
        "inspect no.safetensors", "compare no.safetensors cat.safetensors", "verify no.safetensors",
        "convert no.safetensors -o out.safetensors", "fuse cat.safetensors no.safetensors -o out.safetensors",
    )  # fmt: skip
    for line in lines:
        assert refused(line) == (3, "no.safetensors: no such file. Check the path.")


def test_a_pickle(refused: Nplora, tmp_path: Path) -> None:
    (tmp_path / "cat.pt").write_bytes(b"\x80\x04.")
    assert refused("inspect cat.pt") == (
        3, ("cat.pt: this is a pickle file, which can run code when it is opened; nplora never loads one. Convert it "
        "in a "
        "sandbox: `torch.load(path, weights_only=True)`, then `safetensors.torch.save_file`."),
    )  # fmt: skip


def test_two_bases(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "xl.safetensors", modules={f"{NAME[:-12]}.attn2.to_k": (320, 2048), NAME: (640, 640)})
    assert refused("fuse cat.safetensors xl.safetensors -o out.safetensors") == (
        3, (f"the two adapters are for different base models: {NAME} is 320x320 in cat.safetensors (Stable Diffusion "
        "1.x) and "
        "640x640 in xl.safetensors (unknown base). Use two adapters of one base model."),
    )  # fmt: skip


def test_nan(refused: Nplora, nplora: Nplora, tmp_path: Path) -> None:
    broken = np.ones((320, 4), np.float16)
    broken[3, 1], broken[5, 0] = np.nan, np.inf
    make(tmp_path / "nan.safetensors", modules=SD15, extra={f"{Q}.lora_up.weight": broken})
    message = (
        f"nan.safetensors: {Q}.lora_up.weight: 2 values are NaN or infinite (module {NAME}). The training run "
        "diverged: use an "
        "earlier checkpoint, or go on with --allow-nonfinite."
    )
    assert refused("fuse nan.safetensors ink.safetensors -o out.safetensors") == (3, message)
    assert refused("fuse ink.safetensors nan.safetensors -o out.safetensors") == (3, message)
    assert nplora("fuse nan.safetensors ink.safetensors -o there.safetensors --allow-nonfinite").status == 0
    shown = nplora("inspect there.safetensors").out
    assert "it holds values that are NaN or infinite." in shown
    ran = nplora("verify there.safetensors")
    assert ran.status == 1
    assert f"1 of 4 modules over the bound (worst {NAME}: values that cannot be compared)" in ran.out


def test_strict(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "odd.safetensors", modules=SD15, seed=1, extra={"extra": np.ones(2, np.float32)})
    assert refused("fuse odd.safetensors ink.safetensors -o out.safetensors --strict") == (
        3, ("extra: keys would be left out (1 in all; a foreign key would keep readers of kohya / sd-scripts from loading the "
        "file). "
        "Go on without --strict to allow it."),
    )  # fmt: skip
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    assert refused(f"{FUSE} --strict --components unet") == (
        3, f"{key}: keys would be left out (3 in all; not among --components). Go on without --strict to allow it."
    )  # fmt: skip


def test_a_full_style(refused: Nplora, tmp_path: Path) -> None:
    make(tmp_path / "full.safetensors", modules=SD15, full=[NAME])
    assert refused("fuse cat.safetensors full.safetensors -o out.safetensors") == (
        3, (f"full.safetensors: {Q}.diff: the style changes this module by a full matrix, whose directions are all "
        "there are. "
        "Protect a share of its energy instead: --directions 0.9, or --directions 8."),
    )  # fmt: skip


def test_kinds_that_cannot_be_fused(refused: Nplora, tmp_path: Path) -> None:
    dora = tensors(modules=SD15) | {f"{Q}.dora_scale": np.ones((320, 1), np.float16)}
    write(tmp_path / "dora.safetensors", dora)
    adds = (
        f"dora.safetensors: {Q}.dora_scale: what the DoRA module {NAME} adds depends on the base model's weight, and "
    )
    hint = "Add --base MODEL.safetensors, or use the direction alone with --dora ignore."
    assert refused("fuse dora.safetensors ink.safetensors -o out.safetensors") == (
        3, f"{adds}both adapters change it. {hint}"
    )  # fmt: skip
    make(tmp_path / "text.safetensors", modules=TEXT)
    assert refused("fuse dora.safetensors text.safetensors -o out.safetensors --subject-strength 0.5") == (
        3, f"{adds}its strength is 0.5. {hint}"
    )  # fmt: skip
    assert refused("fuse dora.safetensors ink.safetensors -o out.safetensors --base none.safetensors") == (
        3, "none.safetensors: no such base model. Check the path after --base."
    )  # fmt: skip
