"""A LoRA of one's own in a few steps: what is written, where the seed comes from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
pytest.importorskip("peft", reason="peft is not installed")

import torch
from PIL import Image
from safetensors.numpy import load_file

import nplora as package
from cli.conftest import Nplora, nplora  # noqa: F401 - a fixture
from consumers import tiny
from nplora.pictures import Asked, arrange, find_base, open_pipeline, render
from nplora.training import captioned, content_seed, train_lora, write_adapter

pytestmark = [pytest.mark.consumer, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

WORLD = Path(__file__).resolve().parents[2] / "world"
LINE = "train-lora --base world --images images --kind subject --steps 2 -o own.safetensors"
PROMPT = ("--prompt", "a sks in {name} style")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small pictures."""
    monkeypatch.setenv("NPLORA_WORLD", str(WORLD))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, name in enumerate(("flat-0", "flat-1", "glossy-0")):
        noise = np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return folder


def products(adapter: package.Adapter) -> dict[str, np.ndarray]:
    """The updates; names flattened, as kohya's are where the base is unknown."""
    return {name.replace(".", "_"): module.delta() for name, module in adapter.items()}


@pytest.mark.skipif(not (WORLD / "model").is_dir(), reason="the folder world/model is missing")
def test_two_steps_on_the_world(nplora: Nplora, images: Path, tmp_path: Path) -> None:  # noqa: F811
    ran = nplora(LINE, *PROMPT)
    assert (ran.status, ran.err) == (0, "")
    seed = content_seed(captioned(images, PROMPT[1]), "subject")
    assert ran.out.splitlines()[0] == "A subject LoRA of rank 4, trained for 2 steps."
    assert f"  seed            {seed}, of the pictures and captions\n" in ran.out
    own = package.load(tmp_path / "own.safetensors")
    assert len(own) == 100
    assert own.format.name == "diffusers"
    facts = json.loads(own.metadata["nplora.training"])
    assert facts["base"] == "world"
    assert (facts["seed"], facts["seed_from"], facts["rank"], facts["steps"]) == (seed, "content", 4, 2)
    assert (facts["prompt"], facts["kind"], facts["pictures"]) == (PROMPT[1], "subject", 3)
    assert own.metadata["modelspec.trigger_phrase"] == "sks"
    assert all(np.linalg.norm(delta) > 0 for delta in products(own).values())

    # The same content and seed, the same numbers; the three forms hold one product; another seed starts elsewhere.
    trained = train_lora(
        "world",
        images,
        PROMPT[1],
        "subject",
        tmp_path / "again.safetensors",
        steps=2,
        forms=("diffusers", "kohya", "peft"),
    )
    assert [file.name for file in trained.files] == [
        "again.safetensors",
        "again.kohya.safetensors",
        "adapter_model.safetensors",
    ]
    for file in trained.files:
        loaded = package.load(file)
        assert loaded.metadata["ss_seed"] == str(seed)
        assert products(loaded).keys() == products(own).keys()
        assert all(np.array_equal(delta, products(own)[name]) for name, delta in products(loaded).items())
    assert len(trained.losses) == 2
    train_lora("world", images, PROMPT[1], "subject", tmp_path / "other.safetensors", steps=2, seed=7)
    downs = [load_file(tmp_path / f"{name}.safetensors") for name in ("own", "again", "other")]
    key = next(key for key in downs[0] if "lora_A" in key)
    assert np.array_equal(downs[0][key], downs[1][key])
    cosine = float(
        (downs[0][key] * downs[2][key]).sum() / np.linalg.norm(downs[0][key]) / np.linalg.norm(downs[2][key])
    )
    assert abs(cosine) < 0.5

    sheet = render(
        arrange(Asked(["a sks in flat style"], steps=2), [trained.files[2].parent]),
        [trained.files[2].parent],
        open_pipeline(find_base(WORLD), "cpu"),
    )
    assert sheet.notes == ()


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_bases_of_the_field(kind: str, images: Path, tmp_path: Path) -> None:
    tiny.tiny_pipeline(kind).save_pretrained(tmp_path / kind)
    trained = train_lora(
        tmp_path / kind, images, "a sks", "style", tmp_path / "own.safetensors", steps=1, batch=2, rank=2, alpha=1
    )
    own = package.load(trained.files[0])
    assert {module.update.rank for module in own.values()} == {2}
    assert all(name.startswith(("unet.", "unknown.")) for name in own)


def test_flux_is_left_to_others(images: Path, tmp_path: Path) -> None:
    from nplora.training.loop import encode

    class Opened:
        pipe = object()

    with pytest.raises(package.UsageError) as caught:
        encode(Opened(), [])  # type: ignore[arg-type]
    assert str(caught.value) == (
        "train-lora does not train a object: expected Stable Diffusion, SDXL or the world. diffusers' examples, ai-toolkit "
        "and sd-scripts train others."
    )


def test_the_seed_follows_the_content(images: Path) -> None:
    pairs = captioned(images, "a {name}")
    seeds = {content_seed(pairs, "subject"), content_seed(pairs, "style"), content_seed(pairs[:2], "subject"),
             content_seed(captioned(images, "the {name}"), "subject")}  # fmt: skip
    assert len(seeds) == 4
    assert content_seed(captioned(images, "a {name}"), "subject") in seeds


def test_a_table_gives_the_captions(images: Path) -> None:
    (images / "metadata.jsonl").write_text('{"file_name": "glossy-0.png", "text": "a fox"}\n')
    assert captioned(images, "ignored") == [(images / "glossy-0.png", "a fox")]
    assert [text for _, text in captioned_without_table(images)] == ["a flat", "a flat", "a glossy"]


def captioned_without_table(images: Path):
    (images / "metadata.jsonl").unlink()
    return captioned(images, "a {name}")


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_what_is_written_is_the_product(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    shapes = {f"{block}.attn1.to_q": (320, 320), f"{block}.attn2.to_k": (320, 768)}
    factors = {
        name: (rng.standard_normal((out, 3)), rng.standard_normal((3, width))) for name, (out, width) in shapes.items()
    }
    file = write_adapter(
        tmp_path / ("own" if form == "peft" else "own.safetensors"),
        factors,
        {"modelspec.trigger_phrase": "sks"},
        form=form,
        dtype="fp32",
    )
    own = package.load(file)
    assert (own.base, own.format.name) == ("Stable Diffusion 1.x", form)
    for name, (up, down) in factors.items():
        assert np.allclose(
            own[name].delta(), up.astype(np.float32).astype(np.float64) @ down.astype(np.float32), rtol=0, atol=1e-12
        )
    assert own.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


WRONG = {
    "train-lora --base world --images nowhere --kind subject -o own.safetensors": (
        3, "nowhere: no such folder. --images takes a folder of pictures.",
    ),
    "train-lora --base world --images empty --kind subject -o own.safetensors": (
        3, "empty: no pictures: expected .png, .jpg, .jpeg, .webp.",
    ),
    "train-lora --base world --images table --kind subject -o own.safetensors": (
        3, "table/metadata.jsonl: cat.png: no such picture. Check file_name in the table.",
    ),
    "train-lora --base world --images words --kind subject -o own.safetensors": (
        3,
        ('words/metadata.jsonl: cannot be read (JSONDecodeError: Expecting value: line 1 column 1 (char 0)): expected lines like '
        '{"file_name": "cat.png", "text": "a cat"}.'),
    ),
    "train-lora --base world --images images --kind subject -o taken.safetensors": (
        4, "taken.safetensors: the output exists already. Choose another name, or add --overwrite.",
    ),
    "train-lora --base nowhere --images images --kind subject -o own.safetensors": (
        3, "nowhere: no such folder. --base takes the word world or a local diffusers folder; nothing is fetched from a hub.",
    ),
    "train-lora --base world --images images --kind mood -o own.safetensors": (
        2, "Invalid value for '--kind': 'mood' is not one of 'subject', 'style'. See `nplora train-lora --help`.",
    ),
    "train-lora --base world --images images --kind style --rank 0 -o own.safetensors": (
        2, "Invalid value for '--rank': 0 is not in the range 1<=x<=1024. See `nplora train-lora --help`.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_wording(line: str, nplora: Nplora, images: Path, tmp_path: Path) -> None:  # noqa: F811
    for folder in ("empty", "table", "words"):
        (tmp_path / folder).mkdir()
    (tmp_path / "table" / "metadata.jsonl").write_text('{"file_name": "cat.png", "text": "a cat"}')
    (tmp_path / "words" / "metadata.jsonl").write_text("a cat")
    (tmp_path / "taken.safetensors").touch()
    status, message = WRONG[line]
    assert nplora(line, *PROMPT) == (status, "", f"nplora: {message}\n")


def test_a_file_that_is_no_picture(nplora: Nplora, images: Path) -> None:  # noqa: F811
    (images / "text.png").write_text("not a picture")
    ran = nplora(LINE, *PROMPT)
    assert ran.status == 3
    assert "images/text.png: is no picture (" in ran.err
    assert ran.err.endswith("). Remove it, or save it again.\n")


def test_the_help_says_why_the_seed_is_no_constant(nplora: Nplora) -> None:  # noqa: F811
    shown = " ".join(nplora("train-lora --help").out.split())
    assert "two LoRAs of one seed start from the same random down factors" in shown


def test_a_loss_that_is_no_number_stops_the_training(images: Path, tmp_path: Path) -> None:
    with pytest.raises(package.NploraError, match="the loss is no number any more at step"):
        train_lora(WORLD / "model", images, "a sks", "style", tmp_path / "own.safetensors", steps=6, rate=1e30)
    assert not (tmp_path / "own.safetensors").exists()
    assert torch.is_grad_enabled()
