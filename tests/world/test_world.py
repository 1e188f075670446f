"""The shipped world is an ordinary diffusers pipeline, and its LoRA files load in all three forms alike."""

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")

WORLD = Path(__file__).resolve().parents[2] / "world"
MODEL, LORAS = WORLD / "model", WORLD / "loras"

if not (MODEL / "model_index.json").exists():
    pytest.skip("the folder world/model is missing", allow_module_level=True)

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file


def in_three_forms() -> list[str]:
    """Names of the shipped LoRAs that exist as diffusers, kohya and PEFT files."""
    plain = [f for f in sorted(LORAS.glob("*.safetensors")) if not f.name.endswith(".kohya.safetensors")]
    return [f.stem for f in plain if f.with_suffix(".kohya.safetensors").exists() and f.with_suffix(".peft").is_dir()]


def pictures(load=None, prompts=("a cat in flat style", "a sks in comic style"), steps=4):
    """Two small pictures of a fresh pipeline after `load(pipe)`."""
    import torch

    pipe = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    pipe.text_encoder.float()
    pipe.set_progress_bar_config(disable=True)
    if load:
        load(pipe)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(list(prompts), num_inference_steps=steps, guidance_scale=3.0, generator=noise, output_type="np").images


def test_the_pipeline_paints():
    images = pictures()
    assert images.shape == (2, 64, 64, 3)
    assert np.isfinite(images).all()
    assert images.std(axis=(1, 2, 3)).min() > 0.02, "the pictures are blank"
    assert np.abs(images[0] - images[1]).mean() > 0.02, "the prompt changes nothing"


def test_the_folder_is_small_and_holds_no_pickles():
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6
    assert not [f for f in files if f.suffix in {".bin", ".pkl", ".pt", ".ckpt"}]


@pytest.mark.skipif(not in_three_forms(), reason="no LoRA in three forms under world/loras")
def test_three_forms_of_one_lora_paint_the_same():
    name = in_three_forms()[0]
    peft = load_file(LORAS / f"{name}.peft" / "adapter_model.safetensors")
    as_unet = {key.replace("base_model.model.", "unet."): value for key, value in peft.items()}
    without = pictures()
    diffusers = pictures(lambda pipe: pipe.load_lora_weights(LORAS / f"{name}.safetensors"))
    kohya = pictures(lambda pipe: pipe.load_lora_weights(LORAS / f"{name}.kohya.safetensors"))
    of_peft = pictures(lambda pipe: pipe.load_lora_weights(as_unet))
    assert np.abs(diffusers - without).mean() > 1e-3, "the LoRA changes nothing"
    np.testing.assert_allclose(kohya, diffusers, atol=1e-5)
    np.testing.assert_allclose(of_peft, diffusers, atol=1e-5)


def test_every_shipped_lora_fits_the_pipeline():
    from safetensors import safe_open

    pipe = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    modules = {name for name, _ in pipe.unet.named_modules()}
    for file in LORAS.glob("*.safetensors"):
        if file.name.endswith(".kohya.safetensors"):
            continue
        with safe_open(file, "np") as opened:
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                assert key.removeprefix("unet.").split(".lora_")[0] in modules, f"{file.name}: {key}"
