"""Fused files, loaded by the programs that people use, add to the weights what `fused[name].delta()` says.

Each case fuses two made files of different naming, ranks, scales and number types; no key may be unexpected or
missing, and no loader may warn.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: what the consumers load cannot be seen")

import numpy as np
import torch
from safetensors.torch import save_file

import nplora
from consumers import writer
from consumers.harness import effective_deltas
from consumers.roundtrip import Input, assert_loads, dense, target, tensors
from consumers.tiny import tiny_pipeline

pytestmark = pytest.mark.consumer

BLOCK = r"unet\.down_blocks\.0\.attentions\.0\."  # with the 1x1 convolutions proj_in and proj_out in SD1.5
BLOCKS = r"unet\.(down_blocks\.0\.attentions\.[01]\.|mid_block\.attentions\.0\.transformer_blocks\.0\.attn2)"
CONVOLUTIONS = r"unet\.(conv_in|down_blocks\.0\.(resnets\.0\.conv|downsamplers))"
TEXT = r"text_encoder\.text_model\.encoder\.layers\.0"
XL = r"unet\.(down_blocks\.1\.attentions\.0\.|mid_block\.attentions\.0\.transformer_blocks\.1\.attn2)"
XL_REST = r"unet\.(conv_in|conv_out|time_embedding|add_embedding|up_blocks\.2\.resnets\.0\.conv_shortcut)"
XL_TEXT = r"text_encoder(_2)?\.text_model\.encoder\.layers\.0\.(self_attn|mlp\.fc1)"
XL_TEXT_2 = r"text_encoder_2\.text_model\.encoder\.layers\.0"
DOUBLE = r"transformer\.transformer_blocks\.0\.attn\."
SINGLE = r"transformer\.single_transformer_blocks\.0\.(attn|proj_mlp)"
QWEN = r"transformer\.transformer_blocks\.0\."
HEADS = r"transformer\.(single_transformer_blocks\.0\.proj_out|proj_out|x_embedder|norm_out)"


class Case(NamedTuple):
    kind: str
    subject: Input
    style: Input
    parameters: dict[str, object]
    outputs: tuple[tuple[str, str], ...]


CASES = {
    "SD1.5: kohya with convolutions and text, and diffusers": Case(
        "sd15-wide", Input("kohya", f"{BLOCK}|{CONVOLUTIONS}|{TEXT}", dtype="float16"),
        Input("diffusers", f"{BLOCKS}|unet\\.conv_in|{TEXT[:-1]}[01]", (2, 3, 8)), {},
        (("kohya", "same"), ("diffusers", "same"), ("kohya", "bf16"), ("diffusers", "fp16")),
    ),
    "SD1.5: text from one, UNet from the other": Case(
        "sd15-wide", Input("kohya", TEXT), Input("diffusers", BLOCK, (2, 8)), {},
        (("kohya", "same"), ("diffusers", "same")),
    ),
    "SD1.5: first diffusers names and kohya, hard, negative": Case(
        "sd15-wide", Input("diffusers-processor", BLOCKS + ".*attn"), Input("kohya", BLOCK, (2, 4), 1, "bfloat16"),
        {"mu": "inf", "subject_strength": -0.7, "style_strength": 1.3},
        (("auto", "same"), ("kohya", "fp32"), ("diffusers", "fp32")),
    ),
    "SD1.5: both in first diffusers names": Case(
        "sd15-wide", Input("diffusers-processor", BLOCK + ".*attn|" + TEXT + ".*attn"),
        Input("diffusers-processor", BLOCK + ".*attn|" + TEXT + ".*attn", (2, 3)), {}, (("auto", "same"),),
    ),
    "SD1.5: 2023 diffusers names and first ones": Case(
        "sd15-wide", Input("diffusers-linear", BLOCK + "|" + TEXT, (4, 2)),
        Input("diffusers-processor", BLOCK + ".*attn|" + TEXT + ".*attn"), {"style_strength": -1.5},
        (("auto", "same"), ("diffusers", "same")),
    ),
    "SD1.5: two PEFT folders": Case(
        "sd15-wide", Input("peft", BLOCK, (4, 2), 3), Input("peft", BLOCKS, (3, 4), 1, "bfloat16"),
        {"mu": 2, "subject_strength": 0.5},
        (("auto", "same"), ("peft", "bf16"), ("kohya", "same"), ("diffusers", "fp16")),
    ),
    "SD1.5: output side, two directions": Case(
        "sd15-wide", Input("kohya", f"{BLOCK}|{CONVOLUTIONS}", (4, 6)), Input("kohya", f"{BLOCK}|{CONVOLUTIONS}", (3,)),
        {"side": "output", "directions": 2}, (("auto", "same"), ("peft", "same")),
    ),
    "SDXL: kohya's original names and diffusers": Case(
        "sdxl-wide", Input("kohya-sgm", f"{XL}|{XL_REST}|{XL_TEXT}", dtype="bfloat16"),
        Input("diffusers", f"{XL}|{XL_TEXT}", (2, 8), 1), {}, (("kohya", "same"), ("diffusers", "same")),
    ),
    "SDXL: both of kohya's namings": Case(
        "sdxl-wide", Input("kohya", XL + r".*attn\d\.to_[qk]"), Input("kohya-sgm", f"{XL}.*to_|{XL_REST}", (2, 4)),
        {"style_strength": -1}, (("auto", "same"), ("auto", "fp16"), ("diffusers", "same")),
    ),
    "SDXL: a PEFT folder and kohya": Case(
        "sdxl-wide", Input("peft", XL + ".*(attn2|proj)", (4,), 4), Input("kohya-sgm", XL + ".*(to_|proj)", (2, 8)),
        {"mu": "inf"}, (("auto", "same"), ("kohya", "fp16")),
    ),
    "SDXL: the second text encoder alone": Case(
        "sdxl-wide", Input("kohya-sgm", XL_TEXT_2), Input("diffusers", XL_TEXT_2, (2, 3)), {},
        (("kohya", "same"), ("diffusers", "same"), ("peft", "same")),
    ),
    "FLUX.1: kohya's fused q, k, v and split ones": Case(
        "flux1-wide", Input("kohya-flux1", f"{DOUBLE}to_|{TEXT}", alpha=3, dtype="bfloat16"),
        Input("diffusers", f"{DOUBLE}(to_[qv]|add_k)|{TEXT}", (2, 3, 8)), {},
        (("kohya", "same"), ("diffusers", "same"), ("kohya", "fp16")),
    ),
    "FLUX.1: fused modules with one down factor each": Case(
        "flux1-wide", Input("kohya-flux1", SINGLE, shared=True), Input("kohya-flux1", SINGLE, (2,), 1, shared=True),
        {"mu": "inf", "style_strength": -1.5}, (("auto", "same"), ("diffusers", "same")),
    ),
    "FLUX.1: OneTrainer's names and kohya's": Case(
        "flux1-wide", Input("onetrainer", DOUBLE + "to_[qo]"), Input("kohya-flux1", DOUBLE + "to_[qkv]", (2,)),
        {"subject_strength": 0.25}, (("auto", "same"), ("peft", "same")),
    ),
    "FLUX.1: heads whose name ends other names": Case(
        "flux1-wide", Input("diffusers", HEADS, (4, 5), 3), Input("diffusers", HEADS, (2, 3, 1), 1, "float16"),
        {"subject_strength": -1}, (("auto", "same"), ("peft", "fp32")),
    ),
    "SD3.5: kohya's fused q, k, v and split ones, written with diffusers names": Case(
        "sd35-wide", Input("kohya-sd3", r"transformer\.transformer_blocks\.0\.attn2?\.", (4,), 3),
        Input("diffusers", r"transformer\.transformer_blocks\.[01]\.attn\.", (2, 3)), {},
        (("diffusers", "same"), ("diffusers", "bf16"), ("peft", "same")),
    ),
    "Qwen-Image: kohya and diffusers": Case(
        "qwen-image-wide", Input("kohya", QWEN + "(attn.to_[qo]|img_mlp.net.2)"),
        Input("diffusers", QWEN + "(attn.(to_q|add_k)|img_mlp.net.2)", (2,)), {},
        (("kohya", "same"), ("diffusers", "same"), ("peft", "same")),
    ),
    "Wan: original names": Case(
        "wan-wide", Input("native-wan", r"transformer\.blocks\.0.*(attn|net.2)"),
        Input("native-wan", r"transformer\.blocks\.0.*(attn1|net.2)", (2, 3)), {"style_strength": -1},
        (("auto", "same"), ("diffusers", "same")),
    ),
    "Wan: original names and diffusers": Case(
        "wan-wide", Input("native-wan", r"transformer\.blocks\.0.*attn"),
        Input("diffusers", r"transformer\.blocks\.[01].*attn1", (2, 3)), {}, (("auto", "same"), ("diffusers", "same")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_consumer_adds_what_delta_says(case, tmp_path):
    subject = case.subject.make(tmp_path / "subject", case.kind, seed=1)
    style = case.style.make(tmp_path / "style", case.kind, seed=2)
    fused = nplora.fuse(subject, style, **case.parameters)
    expected = dense(fused)
    for number, (format, dtype) in enumerate(case.outputs):
        kept = case.subject.naming if format == "auto" else format
        path = target(tmp_path, kept, f"out{number}")
        report = fused.save(path, format=format, dtype=dtype)
        assert report["left_out"] == {}
        assert_loads(case.kind, path, expected)


@pytest.mark.parametrize("mu", [0.0, 0.5, math.inf])
def test_the_consumer_adds_the_formula(mu, tmp_path):
    """Against dense matrices and LAPACK's singular vectors, without a line of nplora's own arithmetic."""
    subject, style = Input("kohya", BLOCK + ".*attn2"), Input("diffusers-linear", BLOCK + ".*attn2", (3, 2), 1)
    fused = nplora.fuse(
        subject.make(tmp_path / "a", "sd15-wide", 1), style.make(tmp_path / "b", "sd15-wide", 2), mu=mu,
        subject_strength=-0.75, style_strength=1.5,
    )  # fmt: skip
    fused.save(tmp_path / "out.safetensors")
    theirs, expected = writer.deltas_of(style.spec("sd15-wide", 2)), {}
    for name, product in writer.deltas_of(subject.spec("sd15-wide", 1)).items():
        delta, other = np.asarray(product), np.asarray(theirs[name])
        _, sizes, rows = np.linalg.svd(other, full_matrices=False)
        kept = rows[sizes > 1e-9 * sizes[0]].T
        share = 1.0 if math.isinf(mu) else mu / (1 + mu)
        expected[name] = 1.5 * other - 0.75 * (delta - share * (delta @ kept) @ kept.T)
    assert_loads("sd15-wide", tmp_path / "out.safetensors", expected)


def fused_file(tmp_path, kind, subject, style, format="auto", **parameters):
    pair = subject.make(tmp_path / "subject", kind, 1), style.make(tmp_path / "style", kind, 2)
    fused = nplora.fuse(*pair, **parameters)
    fused.save(tmp_path / "out.safetensors", format=format)
    return tmp_path / "out.safetensors", dense(fused)


@pytest.mark.parametrize("strength", [1.0, -2.5])
def test_a_kohya_sd_file_has_one_alpha_for_each_component(strength, tmp_path):
    path, _ = fused_file(
        tmp_path, "sd15-wide", Input("kohya", f"{BLOCK}|{TEXT}", (4, 2), 3), Input("kohya", f"{BLOCK}|{TEXT}", (3,), 8),
        style_strength=strength,
    )  # fmt: skip
    alphas = {(key[:7], tensor.item()) for key, tensor in tensors(path).items() if key.endswith("alpha")}
    assert len(alphas) == 2


def test_a_module_of_two_number_types_has_the_wider_one(tmp_path):
    path, expected = fused_file(
        tmp_path, "sd15-wide", Input("kohya", BLOCK, dtype="float16"), Input("kohya", BLOCK, dtype="float32")
    )
    assert {tensor.dtype for tensor in tensors(path).values()} == {torch.float32}
    assert_loads("sd15-wide", path, expected)


def test_a_down_factor_that_fused_parts_share_is_written_once(tmp_path):
    only = DOUBLE + "to_[qkv]"
    path, expected = fused_file(
        tmp_path, "flux1-wide", Input("kohya-flux1", only, (4,), shared=True),
        Input("kohya-flux1", only, (2,), shared=True),
    )  # fmt: skip
    assert tensors(path)["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 3072)
    assert_loads("flux1-wide", path, expected)


def test_an_adapter_metadata_of_the_subject_decides_its_scale_and_is_written_anew(tmp_path):
    style = Input("diffusers", f"{BLOCK}|{TEXT}", (2, 8)).make(tmp_path / "style", "sd15-wide", 2)
    state = writer.lora_state(Input("diffusers", BLOCK + ".*attn1").spec("sd15-wide", 1), "diffusers")
    modules = [key.removesuffix(".lora_A.weight").removeprefix("unet.") for key in state if "lora_A" in key]
    config = {"r": 4, "lora_alpha": 12, "target_modules": modules, "alpha_pattern": {"attn1.to_k": 2}}
    flat = json.dumps({f"unet.{name}": value for name, value in config.items()})
    save_file(state, tmp_path / "subject.safetensors", {"lora_adapter_metadata": flat})
    subject = nplora.load(tmp_path / "subject.safetensors")
    assert_loads("sd15-wide", tmp_path / "subject.safetensors", dense(subject))
    fused = nplora.fuse(subject, style)
    fused.save(tmp_path / "out.safetensors")
    assert_loads("sd15-wide", tmp_path / "out.safetensors", dense(fused))


def test_a_text_projection_of_a_kohya_file_gets_the_rank_that_diffusers_expects(tmp_path):
    path, expected = fused_file(
        tmp_path, "sdxl-wide", Input("kohya-sgm", XL_TEXT_2 + r"|text_encoder_2\.text_projection"),
        Input("diffusers", XL_TEXT_2, (2,)), "kohya",
    )  # fmt: skip
    assert_loads("sdxl-wide", path, expected)


def test_diffusers_ignores_t5_of_a_flux_file_and_takes_the_rest(tmp_path):
    only = DOUBLE + r"to_[qo]|text_encoder_2\.encoder\.block\.0\.layer\.0\.SelfAttention\.[qk]"
    inputs = Input("diffusers", only), Input("diffusers", only, (3,))
    path, expected = fused_file(tmp_path, "flux1-wide", *inputs)
    assert_loads("flux1-wide", path, {name: d for name, d in expected.items() if not name.startswith("text_encoder_2")})


def test_diffusers_cannot_load_a_kohya_sd3_file_but_its_conversion(tmp_path):
    only = r"transformer\.transformer_blocks\.0\.attn\."
    path, expected = fused_file(
        tmp_path, "sd35-wide", Input("kohya-sd3", only), Input("kohya-sd3", only, (2,)), subject_strength=-1
    )
    with pytest.raises(AssertionError, match="No LoRA keys associated"):
        effective_deltas(tiny_pipeline("sd35-wide"), path)
    nplora.convert(nplora.load(path), tmp_path / "converted.safetensors", format="diffusers")
    assert_loads("sd35-wide", tmp_path / "converted.safetensors", expected)


def test_diffusers_drops_the_heads_of_a_kohya_flux_file(tmp_path):
    """They are in the file (ComfyUI takes them, see test_comfy.py); --format diffusers is for diffusers."""
    only = r"transformer\.(single_transformer_blocks\.0\.attn\.to_q|proj_out|x_embedder|norm_out)"
    path, expected = fused_file(tmp_path, "flux1-wide", Input("diffusers", only), Input("diffusers", only), "kohya")
    assert_loads("flux1-wide", path, {name: delta for name, delta in expected.items() if "single" in name})


def test_a_loha_subject_and_a_tucker_style_that_diffusers_refuses_load_once_they_are_fused(tmp_path):
    random = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(shape, generator=random)

    query, convolution = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "down_blocks_0_resnets_0_conv1"
    hada = {
        f"hada_{part}": some(*shape) for w in "12" for part, shape in ((f"w{w}_a", (320, 2)), (f"w{w}_b", (2, 320)))
    }
    tucker = {"lora_up": some(320, 4, 1, 1), "lora_mid": some(4, 4, 3, 3), "lora_down": some(4, 320, 1, 1)}
    subject = {f"lora_unet_{query}.{role}": tensor for role, tensor in hada.items()}
    style = {f"lora_unet_{convolution}.{role}.weight": tensor for role, tensor in tucker.items()}
    plain = writer.lora_state(Input("kohya", BLOCK + ".*attn|" + CONVOLUTIONS, (2, 3)).spec("sd15-wide", 2), "kohya")
    style |= {key: tensor for key, tensor in plain.items() if convolution not in key}
    subject |= {key: tensor for key, tensor in plain.items() if convolution in key}
    for name, state in (("subject", subject), ("style", style)):
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match="correctly renamed"):
            effective_deltas(tiny_pipeline("sd15-wide"), tmp_path / f"{name}.safetensors")
    fused = nplora.fuse(*(nplora.load(tmp_path / f"{name}.safetensors") for name in ("subject", "style")))
    for format in ("kohya", "diffusers"):
        report = fused.save(tmp_path / f"{format}.safetensors", format=format)
        assert report["left_out"] == {}
        assert_loads("sd15-wide", tmp_path / f"{format}.safetensors", dense(fused))
