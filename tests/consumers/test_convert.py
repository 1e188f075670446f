"""A file in any naming, written in any other, adds the same to the weights in the programs that load it.

Expected values come from the numbers that were put into the file, never from nplora.
"""

from __future__ import annotations

import json
import re
import warnings

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: what the consumers load cannot be seen")

import numpy as np
import peft
import torch
from transformers import GPT2Config, GPT2Model

import nplora
from consumers import writer
from consumers.harness import _adapted, assert_deltas, peft_deltas
from consumers.roundtrip import Input, assert_loads, dense, target, tensors
from consumers.tiny import tiny_pipeline

pytestmark = [
    pytest.mark.consumer,
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
    ),  # peft, of transformers
]

# What one component's files hold, and what files of several hold besides.
ONLY = {
    "sd15": (
        r"unet\.(conv_in|down_blocks\.0\.(attentions\.0\.|resnets\.1\.conv2))",
        r"text_encoder\..*\.0\.(self_attn|mlp\.fc1)",
    ),
    "sdxl": (
        r"unet\.(down_blocks\.1\.attentions\.1\.|up_blocks\.2\.resnets\.2\.conv_shortcut|add_embedding)",
        r"text_encoder(_2)?\..*\.0\.(self_attn|mlp\.fc1)",
    ),
    "flux1": (
        r"transformer\.transformer_blocks\.0\.attn\.(to_|add_[qkv])",
        r"text_encoder\..*\.0\.(self_attn|mlp\.fc1)",
    ),
}  # fmt: skip
SOURCES = {
    "sd15": ("kohya", "diffusers", "diffusers-linear", "peft"),
    "sdxl": ("kohya", "kohya-sgm", "diffusers", "peft"),
    "flux1": ("kohya-flux1", "onetrainer", "diffusers", "peft"),
}
PAIRS = [
    (kind, source, format)
    for kind, namings in SOURCES.items()
    for source in namings
    for format in ("kohya", "diffusers", "peft")
]


@pytest.mark.parametrize(("kind", "source", "format"), PAIRS)
def test_a_conversion_changes_no_weight(kind, source, format, tmp_path):
    unet, text = ONLY[kind]
    alone = "peft" in (source, format) or source == "diffusers-linear"
    made = Input(source, unet if alone else f"{unet}|{text}", (2, 4), 3)
    nplora.convert(made.make(tmp_path / "in", f"{kind}-wide", 1), path := target(tmp_path, format), format=format)
    assert_loads(f"{kind}-wide", path, writer.deltas_of(made.spec(f"{kind}-wide", 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_halves_stay_halves(dtype, format, tmp_path):
    made = Input("kohya", r"unet\.down_blocks\.0\.attentions\.0\.", (2, 4), 3, dtype)
    nplora.convert(made.make(tmp_path / "in", "sd15-wide", 1), path := target(tmp_path, format), format=format)
    kinds = {t.dtype for key, t in tensors(path).items() if not key.endswith("alpha")}
    assert kinds == {getattr(torch, dtype)}
    assert_loads("sd15-wide", path, writer.deltas_of(made.spec("sd15-wide", 1)))


SINGLE = r"transformer\.single_transformer_blocks\.0\.(attn|proj_mlp)"


@pytest.mark.parametrize("shared", [True, False])
def test_a_fused_flux_projection_is_split_and_joined_again(shared, tmp_path):
    """linear1 of the true width: 3072 rows of each of q, k, v, then 12288 of the MLP."""
    made = Input("kohya-flux1", SINGLE, (2,), 1, "bfloat16", shared)
    expected, downs = writer.deltas_of(made.spec("flux1-wide", 1)), {}
    first = made.make(tmp_path / "in", "flux1-wide", 1)
    nplora.convert(first, tmp_path / "split.safetensors", format="diffusers")
    assert_loads("flux1-wide", tmp_path / "split.safetensors", expected)
    for source in ("in", "split"):
        path = tmp_path / f"joined-{source}.safetensors"
        nplora.convert(nplora.load(tmp_path / f"{source}.safetensors"), path, format="kohya")
        assert_loads("flux1-wide", path, expected)
        downs[source] = tensors(path)["lora_unet_single_blocks_0_linear1.lora_down.weight"].shape[0]
    rank = 2 if shared else 8  # equal down factors are written once
    assert downs == {"in": rank, "split": rank}


def test_the_patterns_of_a_peft_folder_reach_only_their_module(tmp_path):
    """PEFT compares ends of names: `proj_out` would be every single block's, too."""
    spec = Input(
        "diffusers", r"transformer\.(proj_out|x_embedder|single_transformer_blocks\.0\.proj_out)", (2, 3, 5), 7
    )
    adapter = spec.make(tmp_path / "in", "flux1-wide", 1)
    nplora.convert(adapter, tmp_path / "out", format="peft")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert all(re.match(r"\^", key) for key in (*config["rank_pattern"], *config["alpha_pattern"]))
    assert_loads("flux1-wide", tmp_path / "out", writer.deltas_of(spec.spec("flux1-wide", 1)))


def test_a_peft_folder_of_one_of_two_modules_leaves_the_other_alone(tmp_path):
    spec = Input("diffusers", r"transformer\.proj_out", (3,))
    nplora.convert(spec.make(tmp_path / "in", "flux1-wide", 1), tmp_path / "out", format="peft")
    assert_loads("flux1-wide", tmp_path / "out", writer.deltas_of(spec.spec("flux1-wide", 1)))


# PEFT's own folders.


def gpt2() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2Model(GPT2Config(vocab_size=16, n_positions=8, n_embd=16, n_layer=2, n_head=2))


def peft_folder(path, seed, **config):
    """A folder written by PEFT itself around a tiny GPT-2; returns the model that it was written from."""
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} | config
    wrapped = peft.get_peft_model(gpt2(), peft.LoraConfig(**config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or (weight.requires_grad and "bias" in name):
                torch.nn.init.normal_(weight)
    with warnings.catch_warnings(action="ignore"):  # PEFT 0.21 takes the biases of lora_bias for damaged factors
        wrapped.save_pretrained(path)
    return wrapped


def unnamed(deltas):
    """By PEFT's names and in the base's layout, which is (in, out) in GPT-2's Conv1D."""
    return {name.removeprefix("unknown."): module.delta().T for name, module in deltas.items()}


CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns without an anchor": {
        "rank_pattern": {"c_attn": 2, "mlp.c_proj": 3}, "alpha_pattern": {"h.1.attn.c_proj": 5, "c_proj": 1},
    },
    "rslora and patterns": {
        "use_rslora": True, "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"^h.0.attn.c_attn": 9, "h.*attn.*": 3},
    },
    "trained biases": {"bias": "all"},
    "trained biases of the targets": {"bias": "lora_only"},
    "a saved module": {"modules_to_save": ["ln_f"]},
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_folder_made_by_peft_has_the_scale_with_which_peft_loads_it(config, tmp_path):
    peft_folder(tmp_path / "in", 1, **config)
    assert_deltas(unnamed(nplora.load(tmp_path / "in")), peft_deltas(gpt2(), tmp_path / "in"))


def test_peft_sorts_the_patterns_that_it_saves_so_that_another_one_may_match_first(tmp_path):
    """A scale in memory is not always the scale in the file: nplora goes by the file, as PEFT does on loading."""
    patterns = {"h.1.attn.c_proj": 5, "c_proj": 1}
    before = _adapted(peft_folder(tmp_path / "in", 1, alpha_pattern=patterns).base_model.model, "", "")
    after, name = peft_deltas(gpt2(), tmp_path / "in"), "h.1.attn.c_proj"
    np.testing.assert_allclose(np.asarray(before[name]), 5 * np.asarray(after[name]))
    assert_deltas(unnamed(nplora.load(tmp_path / "in")), after)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_fusion_of_folders_made_by_peft_is_loaded_by_peft(config, tmp_path):
    peft_folder(tmp_path / "subject", 1, **config)
    peft_folder(tmp_path / "style", 2, r=3, use_rslora=True, target_modules=["c_attn"])
    fused = nplora.fuse(nplora.load(tmp_path / "subject"), nplora.load(tmp_path / "style"), subject_strength=-2)
    report = fused.save(tmp_path / "out")
    assert_deltas(peft_deltas(gpt2(), tmp_path / "out"), unnamed(fused))
    assert report["left_out"] == {}


def test_what_peft_saves_beside_the_factors_comes_through_a_fusion(tmp_path):
    subject = peft_folder(tmp_path / "subject", 1, bias="all", modules_to_save=["wpe"])
    peft_folder(tmp_path / "style", 2)
    nplora.fuse(nplora.load(tmp_path / "subject"), nplora.load(tmp_path / "style")).save(tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(gpt2(), str(tmp_path / "out"))
    theirs, ours = (peft.get_peft_model_state_dict(model) for model in (subject, loaded))
    beside = [key for key in theirs if "lora_" not in key]
    assert len(beside) > 10
    assert all(torch.equal(theirs[key], ours[key]) for key in beside)


def test_lora_biases_are_added_as_peft_scales_them(tmp_path):
    def bias(model):
        return model.merge_and_unload().h[0].attn.c_attn.bias.detach().double().numpy() - base

    base = gpt2().h[0].attn.c_attn.bias.detach().double().numpy()
    subject = bias(peft_folder(tmp_path / "subject", 1, lora_bias=True))
    style = bias(peft_folder(tmp_path / "style", 2, lora_bias=True, lora_alpha=1))
    fused = nplora.fuse(nplora.load(tmp_path / "subject"), nplora.load(tmp_path / "style"), subject_strength=-2)
    fused.save(tmp_path / "out")
    got = bias(peft.PeftModel.from_pretrained(gpt2(), str(tmp_path / "out")))
    np.testing.assert_allclose(got, -2 * subject + style, rtol=1e-4, atol=1e-5)


TEXT_QK = r"text_encoder\.text_model\.encoder\.layers\.[01]\.self_attn\.[qk]"


def test_a_peft_folder_of_a_text_encoder_keeps_the_paths_of_its_model(tmp_path):
    """transformers 5 has no `text_model.` in CLIPTextModel; what only the style has gets the subject's paths."""
    first = {
        name.replace("text_encoder.text_model.", ""): factors
        for name, factors in Input("peft", r"text_encoder\.text_model\.encoder\.layers\.0\.self_attn\.q")
        .spec("sd15-wide", 1)
        .items()
    }
    subject = nplora.load(writer.write_lora(tmp_path / "subject", first, "peft"))
    style = Input("kohya", TEXT_QK, (2, 3)).make(tmp_path / "style", "sd15-wide", 2)
    fused = nplora.fuse(subject, style)
    for format in ("auto", "peft"):
        fused.save(tmp_path / format, format=format)
        expected = {name.removeprefix("text_encoder.text_model."): delta for name, delta in dense(fused).items()}
        assert_deltas(peft_deltas(tiny_pipeline("sd15-wide").text_encoder, tmp_path / format), expected)


def test_a_kohya_text_encoder_becomes_a_peft_folder_for_transformers_4(tmp_path):
    """Whose CLIPTextModel has `text_model.`; to PEFT with transformers 5 all of its keys are unexpected."""
    style = Input("kohya", TEXT_QK).make(tmp_path / "style", "sd15-wide", 2)
    nplora.convert(style, tmp_path / "out", format="peft")
    with pytest.raises(AssertionError, match="unexpected keys"):
        peft_deltas(tiny_pipeline("sd15-wide").text_encoder, tmp_path / "out")
    model = torch.nn.ModuleDict({"text_model": tiny_pipeline("sd15-wide").text_encoder})  # as transformers 4 has it
    expected = {name.removeprefix("text_encoder."): delta for name, delta in dense(style).items()}
    assert_deltas(peft_deltas(model, tmp_path / "out"), expected)
