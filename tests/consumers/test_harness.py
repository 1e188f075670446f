"""The harness in `harness.py` is right, and fails where it should: each test's name is a fact about a consumer."""

from __future__ import annotations

import json
import re
import signal

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: what the consumers load cannot be seen")

import numpy as np
import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from consumers.harness import assert_deltas, effective_deltas, peft_deltas
from consumers.tiny import modules_of, tiny_pipeline
from consumers.writer import Factors, deltas_of, lora_state, random_spec, write_lora

pytestmark = pytest.mark.consumer

ATTENTION = r"unet\.down_blocks\.0\.attentions\.0"
CLIP = r"text_encoder\.text_model\.encoder\.layers\.0"
CLIP2 = r"text_encoder_2\.text_model\.encoder\.layers\.0"
DOUBLE = r"transformer\.transformer_blocks\.0\.attn\.to_"
SINGLE = r"transformer\.single_transformer_blocks\.0\.(attn|proj_mlp)"
EMBEDDERS = r"transformer\.(x_embedder|context_embedder|time_text_embed|proj_out)"


def without(state, pattern):
    return {key: tensor for key, tensor in state.items() if not re.search(pattern, key)}


def renamed(state, old, new):
    return {re.sub(old, new, key): tensor for key, tensor in state.items()}


def kohya(spec, other="(?!)", alpha=4.0):
    """A kohya state; modules matching `other` get another alpha."""
    state = lora_state(spec, "kohya")
    return {k: torch.tensor(alpha) if re.search(other + r".*alpha$", k) else v for k, v in state.items()}


def diffusers_form(spec, alpha=None):
    """`lora_A`/`lora_B` keys, with an alpha beside each module when asked for."""
    alphas = {f"{name}.alpha": torch.tensor(alpha) for name in spec} if alpha else {}
    return lora_state(spec, "diffusers") | alphas


@pytest.mark.parametrize("got", [{}, {"a": [[1, 1]], "b": [[1]]}, {"a": [[1, 1 + 3e-6]]}, {"a": [[1], [1]]}])
def test_assert_deltas_sees_what_is_missing_extra_wrong_or_turned(got):
    with pytest.raises(AssertionError):
        assert_deltas({name: np.array(rows) for name, rows in got.items()}, {"a": np.ones((1, 2))})


@pytest.mark.parametrize(
    ("kind", "naming", "only"),
    [
        ("sd15", "diffusers", ""),
        ("sd15", "kohya", ""),
        ("sdxl", "kohya-sgm", r"(?!.*transformer_blocks\.[2-8])"),  # all kinds of module, and two-digit blocks
        ("flux1", "diffusers", r"transformer|text_encoder\."),
        ("flux1", "kohya-flux1", r"transformer\.\w*transformer_blocks|text_encoder\."),
        ("sd3", "diffusers", ""),
        ("qwen-image", "diffusers", ""),
        ("wan", "diffusers", r"transformer\."),
    ],
)
def test_every_naming_gives_exactly_the_dense_deltas(kind, naming, only, tmp_path):
    spec = random_spec(kind, only)
    path = write_lora(tmp_path / "lora.safetensors", spec, naming)
    assert_deltas(effective_deltas(tiny_pipeline(kind), path), deltas_of(spec))


def test_a_kohya_flux_file_whose_fused_parts_share_one_down():
    spec = random_spec("flux1", DOUBLE + "[qkv]|" + SINGLE, ranks=(4,))
    shared = {n: f._replace(down=next(iter(spec.values())).down) for n, f in spec.items()}
    assert_deltas(effective_deltas(tiny_pipeline("flux1"), lora_state(shared, "kohya-flux1")), deltas_of(shared))


def test_a_kohya_linear1_of_the_true_width_is_split_where_the_real_one_is():
    spec = random_spec("flux1-wide", SINGLE)
    got = effective_deltas(tiny_pipeline("flux1-wide"), lora_state(spec, "kohya-flux1"), only=r"attn\.to_[kv]")
    assert_deltas(got, deltas_of({n: f for n, f in spec.items() if n.endswith(("to_k", "to_v"))}))


def test_a_wan_file_goes_into_the_second_expert_when_told():
    spec = random_spec("wan", r"transformer\.blocks\.0")
    got = effective_deltas(tiny_pipeline("wan"), diffusers_form(spec), load_into_transformer_2=True)
    assert_deltas(got, {n.replace("transformer.", "transformer_2."): d for n, d in deltas_of(spec).items()})


@pytest.mark.parametrize(("kind", "count"), [("sd15", 192), ("sdxl", 722)])
def test_a_tiny_unet_has_the_attention_modules_of_the_real_one(kind, count):
    names = modules_of(tiny_pipeline(kind))
    assert sum(bool(re.match(r"unet\..*attentions", name)) for name in names) == count


def test_the_deltas_are_what_fuse_lora_adds_to_the_weights(tmp_path):
    pipe, spec = tiny_pipeline("sd15"), random_spec("sd15", r"unet\.(down_blocks\.0|mid_block)")
    path = write_lora(tmp_path / "lora.safetensors", spec, "kohya")
    deltas, modules = effective_deltas(pipe, path), {n: pipe.unet.get_submodule(n[5:]) for n in spec}
    before = {n: module.weight.detach().clone() for n, module in modules.items()}
    pipe.load_lora_weights(path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    added = {n: (modules[n].weight.detach() - before[n]).flatten(1).double().numpy() for n in spec}
    for name, module in modules.items():
        module.weight.data = before[name]
    assert_deltas(added, deltas, tolerance=1e-5)


# Facts about diffusers. Every module has rank 4 and, unless said, alpha 4.

REFUSED = {
    "a lora_te3_ key in a kohya SD file: nothing is loaded": (
        "sd15", ATTENTION, lambda s: kohya(s) | {"lora_te3_a.alpha": torch.ones(1)}, "No LoRA keys associated"),
    "an embedding in a kohya SD file: ValueError": (
        "sd15", ATTENTION, lambda s: kohya(s) | {"bundle_emb.a.clip_l": torch.ones(1)}, "Invalid LoRA checkpoint"),
    "LoHa in a kohya SD file: ValueError": (
        "sd15", ATTENTION, lambda s: kohya(s) | {"lora_unet_a.hada_w1_a": torch.ones(1)}, "correctly renamed"),
    "dora_scale is dropped with a warning": (
        "sd15", ATTENTION, lambda s: kohya(s) | {"lora_unet_a.dora_scale": torch.ones(1)}, "DoRA checkpoint"),
    "mixed alphas in a kohya SD file: those of attention match no module": (
        "sd15", ATTENTION, lambda s: kohya(s, "to_k", 1.0), "alpha_pattern keys did not match"),
    "kohya text attention alone without out_proj: ValueError": (
        "sd15", CLIP + r"\.self_attn\.[qkv]", kohya, "infer state dict type"),
    "kohya text attention and mlp without out_proj: the attention is unexpected": (
        "sd15", CLIP, lambda s: without(kohya(s), "out_proj"), "UNEXPECTED"),
    "add_embedding under its diffusers name in a kohya SDXL file: both layers become one name": (
        "sdxl", r"unet\.(add_embedding|mid_block\.attentions\.0\.proj_in)", kohya, "unexpected keys"),
    "FLUX keys without transformer. are not found": (
        "flux1", DOUBLE, lambda s: renamed(diffusers_form(s), r"^transformer\.", ""), "No LoRA keys associated"),
    "FLUX keys with .default. are unexpected": (
        "flux1", DOUBLE, lambda s: renamed(diffusers_form(s), r"weight$", "default.weight"), "unexpected keys"),
    "integer alphas beside FLUX lora_A keys: ValueError": (
        "flux1", DOUBLE, lambda s: diffusers_form(s, 4), "alpha key"),
    "Qwen keys with transformer. and .default.: no module": (
        "qwen-image", DOUBLE, lambda s: renamed(diffusers_form(s), r"weight$", "default.weight"), "not found in the"),
    "Qwen keys with transformer. and alpha: no module": (
        "qwen-image", DOUBLE, lambda s: diffusers_form(s, 4.0), "not found in the"),
    "kohya SD3: nothing is loaded": ("sd3", DOUBLE, kohya, "No LoRA keys associated"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "only", "form", "message"), REFUSED.values(), ids=REFUSED)
def test_diffusers_refuses(kind, only, form, message):
    pipe, spec = tiny_pipeline(kind), random_spec(kind, only, alpha=4.0, ranks=(4,))
    with pytest.raises((AssertionError, ValueError), match=message):
        effective_deltas(pipe, form(spec))
    assert_deltas(effective_deltas(pipe, diffusers_form(spec)), deltas_of(spec))  # the failure left nothing behind


APPLIED = {  # what becomes of each module: its scale, or None where it is not applied
    "a missing kohya SD alpha is the most common one": (
        "sd15", ATTENTION, lambda s: without(kohya(s, "", 2.0), "proj_in.alpha"), lambda n: 0.5),
    "a kohya SD alpha of 0 is 0": ("sd15", ATTENTION, lambda s: kohya(s, "", 0.0), lambda n: 0.0),
    "mixed kohya UNet alphas: attention gets the most common one, the rest its own": (
        "sd15", ATTENTION, lambda s: kohya(s, "(to_k|proj_in|net_2)", 1.0),
        lambda n: 0.25 if re.search(r"proj_in|net\.2", n) else 1.0),
    "mixed kohya alphas, first text encoder: all get the most common one": (
        "sdxl", CLIP, lambda s: kohya(s, "(k_proj|fc1)", 1.0), lambda n: 1.0),
    "mixed kohya alphas, second text encoder: attention gets the most common one, mlp its own": (
        "sdxl", CLIP2, lambda s: kohya(s, "(k_proj|fc1)", 1.0), lambda n: 0.25 if "fc1" in n else 1.0),
    "kohya text encoder without out_proj: the attention is lost": (
        "sd15", CLIP, lambda s: without(kohya(s), "out_proj"), lambda n: 1.0 if "mlp" in n else None),
    "one kohya SDXL file in both namings: the original names are dropped in silence": (
        "sdxl", r"unet\.(down_blocks\.1|mid_block)\.attentions\.0\.proj_in",
        lambda s: without(kohya(s), "mid_block") | without(lora_state(s, "kohya-sgm"), "input_blocks"),
        lambda n: None if "mid_block" in n else 1.0),
    "FLUX lora_A keys with float alphas: a missing one is the most common one": (
        "flux1", DOUBLE, lambda s: without(diffusers_form(s, 2.0), "to_q.alpha"), lambda n: 0.5),
    "kohya FLUX embedders are dropped in silence": (
        "flux1", f"{EMBEDDERS}|{DOUBLE}", lambda s: lora_state(s, "kohya-flux1"),
        lambda n: 1.0 if "attn" in n else None),
    "kohya keys beside transformer. keys in a FLUX file are dropped in silence": (
        "flux1", r"transformer\.transformer_blocks\.\d\.attn\.to_out",
        lambda s: without(lora_state(s, "kohya-flux1"), "_0_") | without(diffusers_form(s), r"\.1\."),
        lambda n: 1.0 if "blocks.0" in n else None),
    "Qwen keys with .default. and no prefix are found": (
        "qwen-image", DOUBLE, lambda s: renamed(diffusers_form(s), r"^transformer\.(.*)weight$", r"\1default.weight"),
        lambda n: 1.0),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "only", "form", "scale"), APPLIED.values(), ids=APPLIED)
def test_diffusers_applies(kind, only, form, scale):
    spec = random_spec(kind, only, alpha=4.0, ranks=(4,))
    expected = {n: f._replace(scale=scale(n)) for n, f in spec.items() if scale(n) is not None}
    got = effective_deltas(tiny_pipeline(kind), form(spec), tolerate="alpha_pattern|UNEXPECTED")
    assert_deltas(got, deltas_of(expected))


def with_metadata(path, state, **config):
    """The file with a `lora_adapter_metadata` for rank 4 and scale 1 on all its modules, but for `config`."""
    component = next(iter(state)).split(".")[0]
    targets = [k.removeprefix(f"{component}.").removesuffix(".lora_A.weight") for k in state if "lora_A" in k]
    config = {"r": 4, "lora_alpha": 4, "target_modules": targets} | config
    flat = json.dumps({f"{component}.{field}": value for field, value in config.items()})
    save_file(state, path, metadata={"lora_adapter_metadata": flat})
    return path


STALE = {
    "a stale rank: size mismatch": (diffusers_form, {"r": 8}, RuntimeError, "size mismatch"),
    "an unknown field: TypeError": (diffusers_form, {"news": 1}, TypeError, "could not be instantiated"),
    "beside kohya alphas: ValueError": (kohya, {}, ValueError, "cannot be specified"),
}


@pytest.mark.parametrize(("form", "config", "error", "message"), STALE.values(), ids=STALE)
def test_adapter_metadata_is_taken_verbatim(form, config, error, message, tmp_path):
    state = form(random_spec("sd15", ATTENTION, alpha=4.0, ranks=(4,)))
    with pytest.raises(error, match=message):
        effective_deltas(tiny_pipeline("sd15"), with_metadata(tmp_path / "lora.safetensors", state, **config))


@pytest.mark.parametrize(("key", "reached"), [("proj_out", {3.0}), ("^proj_out", {1.0, 3.0})])
def test_a_metadata_pattern_without_anchor_reaches_other_modules(key, reached, tmp_path):
    spec = random_spec("flux1", r"transformer\.(single_transformer_blocks\.\d\.)?proj_out", alpha=4.0, ranks=(4,))
    path = with_metadata(tmp_path / "lora.safetensors", diffusers_form(spec), alpha_pattern={key: 12})
    got, unit = effective_deltas(tiny_pipeline("flux1"), path), deltas_of(spec)
    assert {round(np.vdot(got[n], unit[n]) / np.vdot(unit[n], unit[n]), 6) for n in unit} == reached


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm on this system to end the loop")
def test_a_negative_alpha_in_a_kohya_flux_file_never_ends():
    def give_up(*_):
        raise TimeoutError

    state = lora_state(random_spec("flux1", DOUBLE, alpha=-4.0), "kohya-flux1")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 3)
    try:
        with pytest.raises(TimeoutError):
            effective_deltas(tiny_pipeline("flux1"), state)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peft_spec(only=ATTENTION):
    return {name.removeprefix("unet."): f for name, f in random_spec("sd15", only).items()}


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_with_rank_and_alpha_patterns_and_rslora(rslora, tmp_path):
    unet, spec = tiny_pipeline("sd15").unet, peft_spec(r"unet\.(down_blocks\.0|mid_block)")
    write_lora(tmp_path / "lora", spec, "peft", use_rslora=rslora)
    assert_deltas(peft_deltas(unet, tmp_path / "lora"), deltas_of(spec))
    assert not hasattr(unet, "peft_config")
    assert not any(isinstance(module, BaseTunerLayer) for module in unet.modules())


def test_peft_fan_in_fan_out_gives_the_delta_in_the_base_layout(tmp_path):
    model = torch.nn.ModuleDict({"c_attn": Conv1D(12, 8)})  # its weight is (in, out) = (8, 12)
    rng = np.random.default_rng(0)
    factors = Factors(rng.random((12, 2), "f"), rng.random((2, 8), "f"), 0.5)
    write_lora(tmp_path / "lora", {"c_attn": factors}, "peft", fan_in_fan_out=True)
    assert_deltas(peft_deltas(model, tmp_path / "lora"), {"c_attn": deltas_of({"": factors})[""].T})


def test_a_peft_dora_delta_is_the_merged_weight_less_the_base(tmp_path):
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5), "conv": torch.nn.Conv2d(3, 4, 3)})
    base = {name: module.weight.detach().clone() for name, module in model.items()}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["linear", "conv"], use_dora=True))
    for name, weight in wrapped.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight)
    wrapped.save_pretrained(tmp_path)
    merged = wrapped.merge_and_unload()
    added = {name: (merged[name].weight.detach() - base[name]).flatten(1).double().numpy() for name in base}
    plain = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5), "conv": torch.nn.Conv2d(3, 4, 3)})
    plain.load_state_dict(plain.state_dict() | {f"{name}.weight": weight for name, weight in base.items()})
    assert_deltas(peft_deltas(plain, tmp_path), added, tolerance=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: without(s, r"attn1\.to_q\.lora_B"), "missing adapter keys"),
        (lambda s: s | {"base_model.model.conv_in.lora_A.weight": torch.zeros(1)}, "unexpected keys"),
        (lambda s: s | {"base_model.model.conv_in.alpha": torch.zeros(1)}, "unexpected keys"),
    ],
)
def test_a_peft_folder_with_missing_or_unexpected_keys_is_refused(edit, message, tmp_path):
    folder = write_lora(tmp_path / "lora", peft_spec(), "peft")
    save_file(edit(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    with pytest.raises(AssertionError, match=message):
        peft_deltas(tiny_pipeline("sd15").unet, folder)
