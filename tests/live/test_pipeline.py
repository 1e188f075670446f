"""Fusing inside a diffusers pipeline: products, strengths, the pipeline's own verbs, offloading, number types, memory."""

from __future__ import annotations

import copy

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no pipeline to fuse in")

import numpy as np
import torch

import nplora
from consumers.tiny import tiny_pipeline
from live.dense import assert_close, deltas, factors, projected
from live.pictures import PAIRS, paint
from live.wan import BOTH, MARKS, STYLE_ALONE, WAN, expected, message
from nplora import InputError
from nplora.diffusers import fuse_adapters, set_mu
from nplora.fusion.merging import module_seed
from nplora.methods import Part, all_merges, all_methods

pytestmark = MARKS


# ------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("mu", [0.0, 0.5, float("inf")])
def test_products_are_the_dense_fusion(pipe, mu, side):
    fuse_adapters(pipe, "cat", "ink", mu=mu, side=side)
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, mu, side))


@pytest.mark.parametrize("side", ["input", "output"])
def test_turning_mu_gives_bit_for_bit_what_fusing_at_it_gives(pipe, side):
    fuse_adapters(pipe, "cat", "ink", mu=0.2, side=side, name="turned", subject_strength=0.7)
    fuse_adapters(pipe, "cat", "ink", mu="inf", side=side, name="fixed", subject_strength=0.7)
    set_mu(pipe, "inf", name="turned")
    turned, fixed = (deltas(pipe.transformer, name) for name in ("turned", "fixed"))
    assert all(np.array_equal(turned[path], fixed[path]) for path in fixed)


@pytest.mark.parametrize("method", [m.name for m in all_methods().values() if "mu" in {p.name for p in m.parameters}])
def test_every_projection_turns_to_what_fusing_gives(pipe, method):
    """To 1e-6: one that is not linear in g is computed anew from factors that were rounded."""
    fuse_adapters(pipe, "cat", "ink", method=method, mu=0.2, name="turned")
    for mu in (0, 1.5, "inf"):
        set_mu(pipe, mu, "turned")
        fuse_adapters(pipe, "cat", "ink", method=method, mu=mu, name=f"at-{mu}".replace(".", "_"))
        assert_close(deltas(pipe.transformer, "turned"), deltas(pipe.transformer, f"at-{mu}".replace(".", "_")), 1e-6)


def test_directions_reach_the_method(pipe):
    fuse_adapters(pipe, "cat", "ink", mu="inf", directions=1)
    ink, cat = deltas(pipe.transformer, "ink"), deltas(pipe.transformer, "cat")
    _, _, Vt = np.linalg.svd(ink[BOTH])
    wanted = ink[BOTH] + cat[BOTH] @ (np.eye(Vt.shape[1]) - np.outer(Vt[0], Vt[0]))
    assert_close({BOTH: deltas(pipe.transformer, "fused")[BOTH]}, {BOTH: wanted})


def test_what_is_left_may_be_calibrated_and_turned(pipe):
    """Calibration is not linear in g: it is computed anew from the fused adapter, whose factors are rounded."""
    cat, ink = (deltas(pipe.transformer, name)[BOTH] for name in ("cat", "ink"))
    fuse_adapters(pipe, "cat", "ink", mu=0.1, calibrate=3.0)
    for mu in (4.0, 0.7):
        set_mu(pipe, mu)
        left = projected(cat, ink, mu)
        left *= min(3.0, np.linalg.norm(cat) / np.linalg.norm(left))
        assert_close({BOTH: deltas(pipe.transformer, "fused")[BOTH]}, {BOTH: left + ink}, 1e-6)


@pytest.mark.parametrize("strengths", [(0.5, 1.0), (-1.0, 2.0), (1.0, 0.0)])
def test_strength_means_strength_of_the_product(pipe, strengths):
    wanted = expected(pipe, 0.5 if strengths[1] else 0.0, strengths=strengths)
    wanted = {path: delta for path, delta in wanted.items() if np.any(delta)}
    fuse_adapters(pipe, "cat", "ink", subject_strength=strengths[0], style_strength=strengths[1])
    assert_close(deltas(pipe.transformer, "fused"), wanted)


def test_weights_of_set_adapters_count(pipe):
    pipe.set_adapters(["cat", "ink"], [0.25, 3.0])
    wanted = expected(pipe)
    fuse_adapters(pipe, "cat", "ink")
    assert_close(deltas(pipe.transformer, "fused"), wanted)
    pipe.set_adapters(["cat", "ink"], [1.0, 1.0])
    assert not np.allclose(wanted[BOTH], expected(pipe)[BOTH])


def test_every_merge_gives_its_own_product(pipe, tmp_path):
    """On torch tensors, what the same call gives on NumPy arrays of the same numbers."""
    path = WAN.subject.make(tmp_path / "gold", "wan", 5).path  # of equal ranks, which some merges ask for
    pipe.load_lora_weights(path, adapter_name="gold")
    parts = [Part(*factors(pipe.transformer, name)[BOTH], scale=0.02 / 4) for name in ("cat", "gold")]
    for name, merge in all_merges().items():
        fuse_adapters(pipe, "cat", "gold", method=name, name=f"by-{name}", seed=3)
        found = deltas(pipe.transformer, f"by-{name}")
        assert found.keys() == deltas(pipe.transformer, "cat").keys()
        values = {parameter.name: parameter.default for parameter in merge.parameters}
        product = merge(parts, seed=module_seed(3, f"transformer.{BOTH}"), **values)
        # DELLA keeps entries by their order, which the last bit of a product may change
        assert_close({BOTH: found[BOTH]}, {BOTH: product.up @ product.down}, 0.01 if name == "della" else 1e-6)


def test_three_adapters_each_give_way_to_what_follows(pipe, tmp_path):
    third = WAN.style.make(tmp_path / "gold", "wan", 5).path
    pipe.load_lora_weights(third, adapter_name="gold")
    pipe.set_adapters(["cat", "ink", "gold"], [0.5, 1.0, 2.0])
    cat, ink, gold = (deltas(pipe.transformer, name)[BOTH] for name in ("cat", "ink", "gold"))
    done = fuse_adapters(pipe, "cat", "ink", "gold", mu=1.0)
    wanted = projected(cat, np.vstack([ink, gold]), 1.0) + projected(ink, gold, 1.0) + gold
    assert_close({BOTH: deltas(pipe.transformer, "fused")[BOTH]}, {BOTH: wanted})
    assert done.sentence.startswith("cat: ")
    assert " ink: " in done.sentence
    fuse_adapters(pipe, "cat", "ink", "gold", mu=0.3, protect="cat > ink = gold", name="turned", side="output")
    set_mu(pipe, "inf", "turned")
    fuse_adapters(pipe, "cat", "ink", "gold", mu="inf", protect="cat > 2 = 3", name="other", side="output")
    turned, other = (deltas(pipe.transformer, name)[BOTH] for name in ("turned", "other"))
    assert np.array_equal(turned, other)
    wanted = cat + projected(ink, np.hstack([cat, gold]), np.inf, "output")
    wanted += projected(gold, np.hstack([cat, ink]), np.inf, "output")
    assert_close({BOTH: turned}, {BOTH: wanted})


# ------------------------------------------------------------------------------------------- the pipeline's own verbs


def test_the_new_adapter_is_active_and_the_pipeline_s_verbs_go_on_working(pipe):
    before = paint(copy.deepcopy(tiny_pipeline("wan")), 16)
    fuse_adapters(pipe, "cat", "ink", name="mix")
    assert pipe.get_active_adapters() == ["mix"]
    assert pipe.get_list_adapters() == {"transformer": ["cat", "ink", "mix"]}
    mixed = paint(pipe, 16)
    pipe.set_adapters("cat")
    assert not np.array_equal(paint(pipe, 16), mixed)
    pipe.set_adapters("mix")
    pipe.delete_adapters(["cat", "ink"])
    assert np.array_equal(paint(pipe, 16), mixed)
    set_mu(pipe, 3.0, "mix")  # needs neither of the two
    assert not np.array_equal(paint(pipe, 16), mixed)
    pipe.unload_lora_weights()
    assert np.array_equal(paint(pipe, 16), before)
    assert not [name for name, _ in pipe.transformer.named_modules() if "lora" in name]


def test_a_fused_adapter_scales_like_any_other(pipe):
    fuse_adapters(pipe, "cat", "ink")
    full = deltas(pipe.transformer, "fused")
    pipe.set_adapters("fused", 0.5)
    assert_close(deltas(pipe.transformer, "fused"), {path: 0.5 * delta for path, delta in full.items()})


def test_rank_and_memory_addresses_stay_when_mu_is_turned(pipe):
    """So that a compiled model is not compiled again."""
    fuse_adapters(pipe, "cat", "ink")
    layer = pipe.transformer.get_submodule(BOTH)
    weights = layer.lora_A["fused"].weight, layer.lora_B["fused"].weight
    before = [(weight.data_ptr(), weight.shape) for weight in weights]
    set_mu(pipe, 2.0)
    assert [(weight.data_ptr(), weight.shape) for weight in weights] == before
    assert layer.lora_A["fused"].weight is weights[0]
    assert layer.scaling["fused"] == 1.0
    assert weights[0].shape[0] == 4 + 2


def test_a_fused_adapter_saved_by_diffusers_loads_with_the_same_product(pipe, tmp_path):
    from peft.utils import get_peft_model_state_dict

    fuse_adapters(pipe, "cat", "ink")
    wanted = deltas(pipe.transformer, "fused")
    state = get_peft_model_state_dict(pipe.transformer, adapter_name="fused")
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=state)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="again")
    assert_close(deltas(pipe.transformer, "again"), wanted, 1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_a_file_may_be_swapped_into_the_fused_adapter(pipe, paths, tmp_path, padded):
    """In place, as `hotswap` does; what mu was kept for is gone then, and set_mu says so."""
    if padded:
        pipe = copy.deepcopy(tiny_pipeline("wan"))
        pipe.enable_lora_hotswap(target_rank=16)
        for name, path in paths.items():
            pipe.load_lora_weights(path, adapter_name=name)
    fuse_adapters(pipe, "cat", "ink")
    weight = pipe.transformer.get_submodule(BOTH).lora_A["fused"].weight
    assert weight.shape[0] == 4 + 2
    nplora.fuse(*map(nplora.load, paths.values()), mu=3.0).save(tmp_path / "file.safetensors")
    pipe.load_lora_weights(str(tmp_path / "file.safetensors"), adapter_name="fused", hotswap=True)
    assert pipe.transformer.get_submodule(BOTH).lora_A["fused"].weight.data_ptr() == weight.data_ptr()
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, 3.0))
    assert message(lambda: set_mu(pipe, 1.0)) == (
        "the adapter 'fused' has been changed since it was fused. Fuse again, under another name."
    )


def test_components_may_be_chosen(tmp_path):
    pair = PAIRS["SD1.5"]
    pipe = copy.deepcopy(tiny_pipeline(pair.kind))
    for seed, (name, inputs) in enumerate({"cat": pair.subject, "ink": pair.style}.items()):
        pipe.load_lora_weights(inputs.make(tmp_path / name, pair.kind, seed).path, adapter_name=name)
    pipe.set_adapters(["cat", "ink"])
    fuse_adapters(pipe, "cat", "ink", name="words", components=["text_encoder"])
    assert pipe.unet.active_adapters() == ["cat", "ink"]  # as it was
    assert pipe.get_list_adapters() == {"unet": ["cat", "ink"], "text_encoder": ["cat", "ink", "words"]}
    done = fuse_adapters(pipe, "cat", "ink")
    assert {overlap.name.partition(".")[0] for overlap in done.overlaps} == {"unet", "text_encoder"}
    assert pipe.unet.active_adapters() == ["fused"]
    cat, ink = (deltas(pipe.unet, name) for name in ("cat", "ink"))  # convolutions are flattened to in * kh * kw
    path = next(path for path in cat if path.endswith("conv1"))
    assert_close({path: deltas(pipe.unet, "fused")[path]}, {path: ink[path] + projected(cat[path], ink[path])})


# ------------------------------------------------------------------------------------------------------- messages


def test_messages(pipe):
    assert message(lambda: fuse_adapters(pipe, "dog", "ink")) == (
        "no adapter is called 'dog': expected cat or ink. Load it first: pipe.load_lora_weights(..., adapter_name=...), "
        "model.load_adapter(..., adapter_name=...)."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "cat")) == (
        "an adapter cannot be fused with itself: got cat, cat. Name different adapters."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", name="ink")) == (
        "an adapter is called 'ink' already. Choose another name, or delete that adapter first."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", mu=-1)).startswith(
        "mu is out of range: expected a number from 0 to inf, got -1."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", strength=2)).startswith("unknown parameter 'strength'")
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", method="magic")).startswith("no method is called magic")
    assert message(lambda: fuse_adapters(pipe, "cat")) == (
        "name the adapters to fuse: expected subject=... and style=..., or two names and more in order, got cat."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", style="ink")).endswith("got cat, ink, ink.")
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", components=["unet"])) == (
        "no component is called unet: expected transformer or transformer_2."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", subject_strength=0, style_strength=0)) == (
        "nothing is left to fuse. Check the strengths and the adapters' own scales."
    )
    assert message(lambda: set_mu(pipe, 1.0)) == (
        "no adapter 'fused' with a mu is in the model. Make one first: fuse_adapters(...) with method np."
    )
    assert message(lambda: fuse_adapters(pipe.transformer, "cat", "ink")) == (
        "the pipeline takes no LoRA: got WanTransformer3DModel. Give the pipeline, not one of its models."
    )
    pipe.fuse_lora(components=["transformer"])
    assert message(lambda: fuse_adapters(pipe, "cat", "ink")) == (
        f"{'transformer.' + BOTH}: adapters are merged into the base weights: got ink. Take them out first: "
        "pipe.unfuse_lora() in diffusers, model.unmerge_adapter() in PEFT."
    )
    assert "fused" not in pipe.get_list_adapters()["transformer"]


def test_a_factor_that_is_not_finite_is_named(pipe):
    layer = pipe.transformer.get_submodule(BOTH)
    layer.lora_B["cat"].weight.data[0, 0] = float("nan")
    text = message(lambda: fuse_adapters(pipe, "cat", "ink"), InputError)
    assert f"transformer.{BOTH} (cat, up)" in text
    assert "NaN" in text
    fuse_adapters(pipe, "cat", "ink", allow_nonfinite=True)


def test_a_passed_factor_that_is_not_finite_is_named(pipe):
    pipe.transformer.get_submodule(STYLE_ALONE).lora_A["ink"].weight.data[0, 0] = float("inf")
    text = message(lambda: fuse_adapters(pipe, "cat", "ink"), InputError)
    assert f"transformer.{STYLE_ALONE} (ink, down)" in text


def test_a_number_that_does_not_fit_half_precision_is_an_error(pipe):
    pipe.to(torch.float16)
    text = message(lambda: fuse_adapters(pipe, "cat", "ink", style_strength=1e8))
    assert text.endswith(
        "a fused number does not fit the adapters' number type: got torch.float16. Load the adapters in bfloat16 or "
        "float32, or lower the strengths."
    )


def test_dora_is_refused_by_name(pipe, tmp_path):
    from peft import LoraConfig

    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["attn1.to_q"], use_dora=True), "dora")
    assert message(lambda: fuse_adapters(pipe, "dora", "ink"), InputError) == (
        f"transformer.{BOTH}: this layer cannot be fused in a model: DoRA is more than two factors: got adapter dora. "
        "Fuse the files with nplora.fuse, or train without it."
    )


def test_another_kind_of_adapter_is_refused_by_name(paths, tmp_path):
    from peft import LoKrConfig, inject_adapter_in_model

    pipe = copy.deepcopy(tiny_pipeline("wan"))
    inject_adapter_in_model(LoKrConfig(r=2, target_modules=["attn1.to_q"]), pipe.transformer, "lokr")
    pipe.transformer._hf_peft_config_loaded = True
    pipe.load_lora_weights(paths["ink"], adapter_name="ink")
    assert message(lambda: fuse_adapters(pipe, "lokr", "ink"), InputError) == (
        "adapter lokr in transformer: only LoRA adapters can be fused in a model: expected LORA, got LOKR. Fuse its "
        "file with nplora.fuse, which reads more kinds, and load the result."
    )


def test_a_failure_in_one_component_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    pair = PAIRS["SD1.5"]
    pipe = copy.deepcopy(tiny_pipeline(pair.kind))
    for seed, (name, inputs) in enumerate({"cat": pair.subject, "ink": pair.style}.items()):
        pipe.load_lora_weights(inputs.make(tmp_path / name, pair.kind, seed).path, adapter_name=name)
    layer = pipe.text_encoder.get_submodule("encoder.layers.0.self_attn.q_proj")
    layer.lora_A["cat"].weight.data[0, 0] = float("nan")
    message(lambda: fuse_adapters(pipe, "cat", "ink"), InputError)
    assert pipe.get_list_adapters() == {"unet": ["cat", "ink"], "text_encoder": ["cat", "ink"]}
    assert not [n for model in (pipe.unet, pipe.text_encoder) for n, _ in model.named_modules() if "fused" in n]


def test_what_was_done_is_said(pipe):
    done = fuse_adapters(pipe, "cat", "ink", mu=0.5)
    assert (done.name, done.adapters, done.method, done.fused, done.passed) == ("fused", ("cat", "ink"), "np", 4, 12)
    assert 0 < done.summary.rho < 1
    assert "overlap" in done.sentence
    assert done.advice
