"""One code paints with every pipeline: the world, and tiny random pipelines of SD, SDXL and FLUX.1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")

import diffusers
import torch
from PIL import Image

from cli.conftest import Nplora, nplora, refused  # noqa: F401 - fixtures
from consumers import tiny
from making import make
from nplora import InputError, UsageError
from nplora.pictures import (
    Asked,
    Base,
    Sheet,
    Shot,
    arrange,
    find_base,
    open_pipeline,
    paint,
    render,
    wanted_of,
    world_scorer,
)

pytestmark = [pytest.mark.consumer, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

WORLD = Path(__file__).resolve().parents[2] / "world"
needs_world = pytest.mark.skipif(
    not (WORLD / "model" / "model_index.json").exists(), reason="the folder world/model is missing"
)


def pixels(sheet: Sheet) -> np.ndarray:
    """(rows, columns, height, width, 3) in 0..1."""
    return np.array([[np.asarray(p.image, np.float64) / 255 for p in row] for row in sheet.pictures])


# ------------------------------------------------------------------------------------------ tiny pipelines


def _flux() -> diffusers.DiffusionPipeline:
    """Small enough to run, all of it diffusers' own classes, so that it can be saved and opened again."""
    pipe = tiny._flux_pipeline(
        diffusers.FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
            in_channels=64,
        )
    )
    pipe.vae.register_to_config(shift_factor=0.1)
    return pipe  # fmt: skip


KINDS: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "sd15": lambda: tiny.tiny_pipeline("sd15"),
    "sdxl": lambda: tiny.tiny_pipeline("sdxl"),
    "flux1": _flux,
}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        KINDS[request.param]().save_pretrained(folder)
    return find_base(folder)


def attention_of(base: Base) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of the denoiser's attention projections."""
    part = "transformer" if "transformer" in base.index else "unet"
    config = json.loads((base.folder / part / "config.json").read_text())
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    return {
        f"{part}.{name}": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v"))
    }


def test_a_grid_on_any_pipeline(base: Base, tmp_path: Path) -> None:
    modules = attention_of(base)
    files = [
        make(tmp_path / "cat.safetensors", "diffusers", modules, seed=1, size=8.0),
        make(tmp_path / "ink.safetensors", "diffusers", modules, seed=2, size=8.0),
    ]
    opened = open_pipeline(base, "cpu")
    seen: list[tuple[int, int]] = []
    asked = Asked(["a cat"], [0, 1], columns=["adapter=none,subject,style,addition,soft"], steps=2)
    sheet = render(arrange(asked, files), files, opened, progress=lambda *done: seen.append(done))
    assert sheet.notes == ()
    assert seen[-1] == (20, 20)
    found = pixels(sheet)
    assert found.shape[:2] == (2, 5)
    for row in found:
        for first in range(5):
            for second in range(first + 1, 5):
                assert np.abs(row[first] - row[second]).max() > 0, (first, second)
    assert np.abs(found[0] - found[1]).max() > 0
    # What was on the pipeline is off again, and a picture depends on its own seed only.
    bare = paint(opened, [Shot("a cat", 1)], steps=2)[0]
    assert np.abs(np.asarray(bare, float) / 255 - found[1][0]).max() <= 2 / 255  # another batch rounds otherwise


def test_an_adapter_of_another_base_is_refused(base: Base, tmp_path: Path) -> None:
    files = [make(tmp_path / "llm.safetensors", "plain", {"model.layers.0.q_proj": (48, 32)})]
    with pytest.raises(InputError) as caught:
        render(arrange(Asked(["a cat"], steps=1), files), files, open_pipeline(base, "cpu"))
    assert str(caught.value).startswith(str(files[0]))
    assert "Check which base model the adapter is for: nplora inspect says it." in str(caught.value)


def test_factors_of_other_widths_are_refused(base: Base, tmp_path: Path) -> None:
    wide = {name: (out + 1, width + 1) for name, (out, width) in attention_of(base).items()}
    files = [make(tmp_path / "wide.safetensors", "diffusers", wide)]
    opened = open_pipeline(base, "cpu")
    with pytest.raises(InputError, match="does not fit"):
        render(arrange(Asked(["a cat"], steps=1), files), files, opened)
    assert len(paint(opened, [Shot("a cat", 1)], steps=1)) == 1  # and the pipeline is usable as before


def test_a_part_that_is_not_loaded_is_told(base: Base, tmp_path: Path) -> None:
    modules = attention_of(base)
    name, shape = next(iter(modules.items()))
    files = [make(tmp_path / "odd.safetensors", "diffusers", modules | {name.replace("to_q", "to_w"): shape})]
    try:
        sheet = render(
            arrange(Asked(["a cat"], columns=["adapter=1"], steps=1), files), files, open_pipeline(base, "cpu")
        )
    except InputError:  # diffusers refuses what it does not know in some pipelines: as good
        return
    assert sheet.notes == (f"{files[0]}: diffusers loaded {len(modules)} of {len(modules) + 1} modules",)


# ------------------------------------------------------------------------------------------ the world


def loras(kind: str, name: str) -> list[Path]:
    """A shipped LoRA in its three forms."""
    (plain,) = (WORLD / "loras").glob(f"{kind}-{name}-r4-shared.safetensors")
    return [plain, plain.with_suffix(".kohya.safetensors"), plain.with_suffix(".peft")]


def in_three_forms(kind: str) -> str:
    names = sorted(f.stem.split("-")[1] for f in (WORLD / "loras").glob(f"{kind}-*-r4-shared.peft"))
    return names[0]


@pytest.fixture(scope="module")
def world():
    return open_pipeline(find_base(WORLD), "cpu")


@needs_world
def test_the_form_of_a_file_makes_no_difference(world) -> None:
    subjects, styles = loras("subject", in_three_forms("subject")), loras("style", in_three_forms("style"))
    found = []
    for files in zip(subjects, (styles[2], styles[0], styles[1]), strict=True):
        asked = Asked(["a sks in stl style"], columns=["adapter=subject,style,soft"], steps=4)
        found.append(pixels(render(arrange(asked, files), files, world)))
    for other in found[1:]:
        assert np.abs(other - found[0]).max() <= 2 / 255
    assert np.abs(found[0][0, 0] - found[0][0, 2]).mean() > 0.01


@needs_world
def test_mu_zero_is_addition_and_strength_zero_is_the_bare_base(world) -> None:
    files = [loras("subject", in_three_forms("subject"))[0], loras("style", in_three_forms("style"))[0]]
    columns = ["adapter=none,addition,fused", "strength=0,1"]
    found = pixels(
        render(
            arrange(Asked(["a sks in stl style"], columns=columns, parameters={"mu": 0.0}, steps=4), files),
            files,
            world,
        )
    )
    none, none_too, nothing, addition, nothing_too, fused = found[0]
    assert np.array_equal(none, none_too)
    assert np.array_equal(addition, fused)
    assert np.abs(none - nothing).max() <= 1 / 255
    assert np.array_equal(nothing, nothing_too)


class Brightness:
    """A scorer as a person would write one."""

    def __call__(self, pictures, cells):
        return [
            {"light": float(np.asarray(p).mean() / 255), "seed": float(c.seed)}
            for p, c in zip(pictures, cells, strict=True)
        ]


@needs_world
def test_the_command(nplora: Nplora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    subject, style = loras("subject", in_three_forms("subject"))[0], loras("style", in_three_forms("style"))[0]
    (tmp_path / "looking.py").write_text(
        "import numpy\ndef light(pictures, cells):\n    return [{'light': float(numpy.asarray(p).mean() / 255)} for p in pictures]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NPLORA_WORLD", str(WORLD))
    line = f"render {subject} {style} --base world --rows mu=0,inf --steps 2 --seed 3 -o grid --each each"
    ran = nplora(
        line, "--columns", "adapter=subject,fused", "--prompt", "a sks in stl style", "--scorer", "looking:light"
    )
    assert (ran.status, ran.err) == (0, "")
    assert "overlap" in ran.out
    assert "  written         grid.html, grid.png, and 4 pictures in each\n" in ran.out
    assert "  pictures        2 x 2 of 64 x 64 pixels on cpu in fp32, " in ran.out
    assert sorted(f.name for f in (tmp_path / "each").iterdir()) == [
        "1-1-mu---0-subject-alone.png", "1-2-mu---0-fused.png", "2-1-mu---inf-subject-alone.png",
        "2-2-mu---inf-fused.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "each" / "1-2-mu---0-fused.png") as image:
        assert image.size == (64, 64)
        assert np.asarray(image).std() > 5
    text = (tmp_path / "grid.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4
    assert text.count("light 0.") == 4
    assert subject.name in text
    again = nplora(line, "--prompt", "a cat")
    assert again == (4, "", "nplora: grid.html: the output exists already. Choose another name, or add --overwrite.\n")


def test_the_world_s_files_say_what_they_show() -> None:
    files = [WORLD / "loras" / name for name in ("subject-fox-r4-own.safetensors", "style-gold-r4-shared.safetensors")]
    assert wanted_of(files) == {"subject": "fox", "style": "gold"}


def judge_or_skip(wanted: dict[str, str]):
    try:
        return world_scorer(find_base(WORLD), wanted)
    except UsageError as error:
        pytest.skip(f"the judge cannot be used here: {error}")


def true_pictures() -> list[Path]:
    return sorted((WORLD / "pictures" / "true").glob("*.png"))


@needs_world
@pytest.mark.parametrize("file", true_pictures(), ids=lambda file: file.stem)
def test_the_judge_knows_true_pictures(file: Path) -> None:
    subject, style = file.stem.split("-")
    score = judge_or_skip({"subject": subject, "style": style})
    with Image.open(file) as image:
        (found,) = score([image], [None])  # type: ignore[list-item]
    assert list(found) == [subject, style]
    assert min(found.values()) > 0.5


@needs_world
def test_the_judge_says_what_it_does_not_know() -> None:
    judge_or_skip({"subject": "fox"})
    with pytest.raises(UsageError, match="the world's judge knows no style 'cubism': expected blueprint, "):
        world_scorer(find_base(WORLD), {"style": "cubism"})


# ------------------------------------------------------------------------------------------ wording


@pytest.fixture
def no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nplora.pictures.bases.REPOSITORY", Path("nowhere"))
    monkeypatch.delenv("NPLORA_WORLD", raising=False)


EXAMPLE = (
    'For example: nplora render cat.safetensors ink.safetensors --base models/sdxl --prompt "a sks cat, ink wash" -o '
    "cat-ink."
)
MESSAGES = {
    "render cat.safetensors --base world --prompt cat -o out": (
        2,
        (
            "the world was not found: expected a folder world/ here, in a folder above, or named by NPLORA_WORLD. The wheel does "
            "not carry it: clone nplora's repository, or give --base the path of a diffusers folder."
        ),
    ),
    "render cat.safetensors --base sd15 --prompt cat -o out": (
        3,
        "sd15: no such folder. --base takes the word world or a local diffusers folder; nothing is fetched from a hub.",
    ),
    "render cat.safetensors --base cat.safetensors --prompt cat -o out": (
        3,
        (
            "cat.safetensors: a single file is no pipeline: expected a diffusers folder (it holds model_index.json). Convert the "
            "checkpoint with diffusers' from_single_file and save_pretrained."
        ),
    ),
    "render cat.safetensors --base . --prompt cat -o out": (
        3,
        ".: no diffusers pipeline: expected a folder that holds model_index.json. Name the folder that save_pretrained wrote.",
    ),
    "render dog.safetensors --base broken --prompt cat -o out": (3, "dog.safetensors: no such file. Check the path."),
    "render cat.safetensors --base broken --prompt cat -o out": (
        3,
        "broken/model_index.json: does not describe a pipeline. Save the pipeline again.",
    ),
    "render --base world --prompt cat -o out": (2, f"FILE... is missing. {EXAMPLE} See `nplora render --help`."),
    "render cat.safetensors --base world -o out": (2, f"--prompt is missing. {EXAMPLE} See `nplora render --help`."),
    "render cat.safetensors --base empty --prompt cat --seed 1 --seed 1 -o out": (
        2,
        "one seed is given twice: got 1, 1.",
    ),
    "render cat.safetensors --base empty --prompt cat --size 65x64 -o out": (
        2,
        "--size is out of range: expected WIDTHxHEIGHT in multiples of 8, got 65x64.",
    ),
    "render cat.safetensors --base empty --prompt cat --scorer best -o out": (
        2,
        "no scorer is called 'best': expected MODULE:NAME. See docs/pictures.md.",
    ),
    "render cat.safetensors --base empty --prompt cat --scorer no.such:one -o out": (
        2,
        "no.such:one: the scorer cannot be imported (No module named 'no'). See docs/pictures.md.",
    ),
    "render cat.safetensors --base empty --prompt cat --expect fox -o out": (
        2,
        "--expect is out of range: expected subject=NAME or style=NAME, got fox.",
    ),
    "render cat.safetensors --base empty --prompt cat --expect subject=fox -o out": (
        2,
        "only the world has a judge. Use --scorer MODULE:NAME with another base.",
    ),
    "render cat.safetensors --base empty --prompt cat --offload --device cpu -o out": (
        2,
        "offload needs a GPU. On the CPU all of it is in main memory already.",
    ),
    "render cat.safetensors --base empty --prompt cat --device cuda -o out": (
        2,
        "device cuda is not available on this machine. Use --device cpu.",
    ),
}


@pytest.mark.parametrize("line", MESSAGES)
@pytest.mark.usefixtures("no_world")
def test_wording(line: str, refused: Nplora, tmp_path: Path) -> None:  # noqa: F811
    if "cuda" in line and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name, text in (("broken", "[]"), ("empty", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(text)
    assert refused(line) == MESSAGES[line]


def test_a_folder_that_diffusers_cannot_open(refused: Nplora, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    status, said = refused("render cat.safetensors --base empty --prompt cat -o out")
    assert status == 3
    assert said.startswith("empty: diffusers cannot open this pipeline (")
    assert said.endswith("). Check that the folder is whole; weights must be safetensors.")


def test_a_variable_that_names_no_world(refused: Nplora, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("NPLORA_WORLD", "elsewhere")
    assert refused("render cat.safetensors --base world --prompt cat -o out") == (
        2,
        (
            "elsewhere: NPLORA_WORLD does not name a world: expected a folder that holds model/model_index.json. Point it to the "
            "folder world of nplora's repository."
        ),
    )


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("peft", "diffusers") else object())
    with pytest.raises(UsageError) as caught:
        open_pipeline(Base(tmp_path, "any"))
    assert str(caught.value) == (
        'this needs diffusers, peft. Install the extra, pip install ".[pictures]" in nplora\'s folder, or pip install diffusers peft.'
    )
