"""ComfyUI takes our kohya files of SD1.5, SDXL and FLUX.1 and our diffusers files of FLUX.1 whole, with equal weights.

By its rules as `comfy_rules.py` has them; the loader itself is GPL and not installed here.
"""

from __future__ import annotations

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no model to take names and shapes from")

import torch

import nplora
from consumers import comfy_rules, writer
from consumers.harness import assert_deltas
from consumers.roundtrip import Input, dense, tensors

pytestmark = pytest.mark.consumer

SD15 = r"unet\.(conv_in|down_blocks\.0\.(attentions\.0|resnets\.0\.(conv|time)|downsamplers)|up_blocks\.0\.upsamplers)"
SDXL = r"unet\.(conv_out|add_embedding|down_blocks\.1\.(attentions\.0|resnets\.0\.conv_s)|up_blocks\.1\.upsamplers)"
TEXT = r"text_encoder(_2)?\.text_model\.encoder\.layers\.0\.self_attn"
IMAGE = r"transformer\.transformer_blocks\.0\.attn\.to_"
JOINT = r"transformer\.transformer_blocks\.0\.attn\.(to_[qkv]|to_add|add_)"
HEADS = r"transformer\.(proj_out|x_embedder|norm_out|context_embedder|time_text_embed\.guidance_embedder)"

TAKEN = {
    "SD1.5 kohya": (
        "sd15-wide", Input("kohya", f"{SD15}|{TEXT}"), Input("diffusers", f"{SD15}|{TEXT}", (2, 8)), "kohya"),
    "SD1.5 first diffusers names": (
        "sd15-wide", Input("diffusers-processor", SD15 + ".*attn.*to_"),
        Input("diffusers-processor", SD15 + ".*attn2.*to_"), "auto"),
    "SDXL kohya": (
        "sdxl-wide", Input("diffusers", f"{SDXL}|{TEXT}|text_encoder_2.text_projection"),
        Input("kohya-sgm", f"{SDXL}|{TEXT}", (2, 8)), "kohya"),
    "SDXL kohya with diffusers names": (
        "sdxl-wide", Input("kohya", SDXL + ".*attn"), Input("kohya", SDXL + ".*attn2", (2, 8)), "auto"),
    "FLUX.1 kohya": (
        "flux1-wide", Input("kohya-flux1", JOINT), Input("diffusers", f"{IMAGE}[qk]|{TEXT}", (2, 8)), "kohya"),
    "FLUX.1 kohya, the modules around the blocks": (
        "flux1-wide", Input("diffusers", HEADS), Input("diffusers", HEADS, (2, 8)), "kohya"),
    "FLUX.1 OneTrainer": (
        "flux1-wide", Input("onetrainer", IMAGE + "q"), Input("onetrainer", IMAGE + "[qk]"), "auto"),
    "FLUX.1 diffusers": (
        "flux1-wide", Input("kohya-flux1", IMAGE), Input("diffusers", f"{IMAGE}q|{HEADS}", (2, 8)), "diffusers"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "subject", "style", "format"), TAKEN.values(), ids=TAKEN)
def test_comfyui_takes_the_whole_file(kind, subject, style, format, tmp_path):
    fused = nplora.fuse(subject.make(tmp_path / "a", kind, 1), style.make(tmp_path / "b", kind, 2), style_strength=-1.5)
    fused.save(tmp_path / "out.safetensors", format=format)
    deltas, left = comfy_rules.read(kind, tensors(tmp_path / "out.safetensors"))
    assert left == []
    expected = dense(fused)
    assert_deltas({name: d for name, d in deltas.items() if name in expected or d.any()}, expected, 2**-23)


@pytest.mark.parametrize("kind", ["sd15-wide", "sdxl-wide"])
def test_comfyui_does_not_find_lora_a_keys_of_an_sd_unet(kind):
    """So SD and SDXL files for ComfyUI have kohya's names."""
    state = writer.lora_state(Input("diffusers", r"unet\.mid_block\..*attn2").spec(kind, 1), "diffusers")
    assert comfy_rules.read(kind, state) == ({}, sorted(state))


def test_the_rules_see_a_key_that_is_left_and_a_shape_that_does_not_fit():
    spec = Input("kohya", r"unet\.mid_block\..*attn2.to_[qk]").spec("sd15-wide", 1)
    state = writer.lora_state(spec, "kohya")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    state |= {f"{stem}.lora_up.weight": torch.zeros(3, 4), "bundle_emb.cat.clip_l": torch.zeros(1)}
    deltas, left = comfy_rules.read("sd15-wide", state)
    assert list(deltas) == ["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    roles = ("alpha", "lora_down.weight", "lora_up.weight")
    assert left == ["bundle_emb.cat.clip_l", *(f"{stem}.{role}" for role in roles)]
