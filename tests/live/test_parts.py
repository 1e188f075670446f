"""Strengths in parts of the model, results of fewer ranks, and mu turned in both, against files and dense references."""

from __future__ import annotations

import copy

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no pipeline to fuse in")

import numpy as np
import torch

import nplora
from consumers.tiny import tiny_pipeline
from live.dense import assert_close, deltas, projected
from live.pictures import PAIRS, paint
from live.test_states import compiled
from live.wan import BOTH, MARKS, STYLE_ALONE, expected, message
from nplora.diffusers import fuse_adapters, set_mu

pytestmark = MARKS


@pytest.fixture
def of_the_file(paths, tmp_path):
    """A function: the same fusion through a file, as updates in a fresh pipeline."""

    def made(**options) -> dict[str, np.ndarray]:
        nplora.fuse(*map(nplora.load, paths.values()), **options).save(tmp_path / "out.safetensors", overwrite=True)
        pipe = copy.deepcopy(tiny_pipeline("wan"))
        pipe.load_lora_weights(str(tmp_path / "out.safetensors"), adapter_name="file")
        return deltas(pipe.transformer, "file")

    return made


def truncated(delta: np.ndarray, rank: int) -> np.ndarray:
    U, s, Vt = np.linalg.svd(delta, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


# ------------------------------------------------------------------------------------------------------ strengths


def test_strengths_hold_in_parts_of_the_model(pipe, of_the_file):
    rules = "ink@blocks.0=0.5,cat@*.attn2.*=0,style@*=2"
    plain = expected(pipe)
    cat, ink = (deltas(pipe.transformer, name) for name in ("cat", "ink"))
    fuse_adapters(pipe, subject="cat", style="ink", strengths=rules)
    found = deltas(pipe.transformer, "fused")
    assert_close({BOTH: found[BOTH]}, {BOTH: plain[BOTH] - 0.5 * ink[BOTH]})
    silent = "blocks.1.attn2.to_q"
    assert silent in cat
    assert_close({silent: found[silent]}, {silent: 2 * ink[silent]})
    assert "blocks.1.attn2.to_v" not in found  # the subject's alone, and it is not heard
    assert_close(found, of_the_file(strengths=rules.replace("cat@", "subject@").replace("ink@", "style@")))


def test_rules_find_text_encoders_by_the_names_that_files_have(tmp_path):
    pair = PAIRS["SD1.5"]
    pipe = copy.deepcopy(tiny_pipeline(pair.kind))
    for seed, (name, inputs) in enumerate({"cat": pair.subject, "ink": pair.style}.items()):
        pipe.load_lora_weights(inputs.make(tmp_path / name, pair.kind, seed).path, adapter_name=name)
    places = {"text_encoder": "encoder.layers.0.self_attn.q_proj", "unet": "mid_block.attentions.0.proj_in"}
    for name, rule in {"a": "ink@text=0.5", "b": "2@text_encoder.text_model.encoder.layers.0=0.5"}.items():
        fuse_adapters(pipe, "cat", "ink", name=name, strengths=rule)
        for component, path in places.items():
            cat, ink, fused = (deltas(getattr(pipe, component), one)[path] for one in ("cat", "ink", name))
            strength = 0.5 if component == "text_encoder" else 1.0
            assert_close({path: fused}, {path: projected(cat, ink) + strength * ink})


def test_rules_that_decide_nothing_are_refused(pipe):
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", strengths="dog@up=1")).startswith(
        "no adapter is called dog: expected one of subject (number 1, cat), style (number 2, ink)."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", strengths="ink@up=1")).startswith(
        "the style does not change anything that is called up: expected one of attention, cross-attention, transformer"
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", strengths="ink@*=1,ink@attention=0")).startswith(
        "the strength 2@attention=0.0 is never reached"
    )


# ---------------------------------------------------------------------------------------------------- fewer ranks


def test_a_rank_is_the_nearest_update_of_that_rank_and_constant(pipe, of_the_file):
    whole = expected(pipe)
    wanted = {path: truncated(delta, 3) for path, delta in whole.items()}
    done = fuse_adapters(pipe, "cat", "ink", rank=3)
    found = deltas(pipe.transformer, "fused")
    assert_close(found, wanted, 1e-6)
    assert_close(found, of_the_file(rank=3), 1e-6)
    config = pipe.transformer.peft_config["fused"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (3, 3, {}, {})
    lost = sum(np.sum((whole[path] - wanted[path]) ** 2) for path in whole)
    error = np.sqrt(lost / sum(np.sum(delta**2) for delta in whole.values()))
    assert done.sentence.endswith(f"relative error {error:.2e}.")
    assert " Compressed from " in done.sentence


def test_a_rank_that_is_enough_fills_up_with_zeros(pipe):
    fuse_adapters(pipe, "cat", "ink", rank=8)
    config = pipe.transformer.peft_config["fused"]
    assert (config.r, config.rank_pattern, config.alpha_pattern) == (8, {}, {})
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe))
    set_mu(pipe, 3.0)
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, 3.0))


@pytest.mark.parametrize("goal", [{"energy": 0.7}, {"error": 0.3}, {"energy": 0.9, "rank": 5}])
def test_energy_and_error_reach_as_far_as_in_a_file(pipe, of_the_file, goal):
    done = fuse_adapters(pipe, "cat", "ink", **goal)
    assert_close(deltas(pipe.transformer, "fused"), of_the_file(**goal), 1e-6)
    assert len({one.rank for one in done.squeezed}) > 1
    assert max(one.relative for one in done.squeezed) > 0.1
    if "error" in goal:
        assert max(one.relative for one in done.squeezed) <= 0.3


def test_the_style_s_response_may_be_kept(pipe, of_the_file):
    ink, whole = deltas(pipe.transformer, "ink")[BOTH], expected(pipe)[BOTH]
    fuse_adapters(pipe, "cat", "ink", rank=4, keep_style=True, strengths="ink@*.to_k=0")
    found = deltas(pipe.transformer, "fused")[BOTH]
    V = np.linalg.svd(ink)[2][:2].T
    assert np.linalg.norm((found - whole) @ V) < 1e-6 * np.linalg.norm(whole)
    assert np.linalg.norm(found - whole) > 0.01 * np.linalg.norm(whole)
    assert_close({BOTH: found}, {BOTH: of_the_file(rank=4, keep_style=True, strengths="style@*.to_k=0")[BOTH]}, 1e-6)
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", rank=4, keep_style=True, name="no")) == (
        f"the style alone has rank 8 in transformer.{STYLE_ALONE}, and its response is to be kept: expected --rank 8 or "
        "more, got 4. Ask for more ranks, or leave --keep-style away."
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"side": "output"}, {"method": "np-spectral"}, {"calibrate": 2.0}])
def test_mu_turns_in_a_compressed_adapter_to_what_fusing_gives(pipe, options, dtype):
    """Bit for bit, because both begin with the adapters' own numbers."""
    pipe.to(dtype)
    fuse_adapters(pipe, "cat", "ink", mu=0.2, rank=3, name="turned", **options)
    weight = pipe.transformer.get_submodule(BOTH).lora_A["turned"].weight
    for place, mu in enumerate(("inf", 0, 1.5)):
        set_mu(pipe, mu, "turned")
        fuse_adapters(pipe, "cat", "ink", mu=mu, rank=3, name=f"fixed-{place}", **options)
        turned, fixed = (deltas(pipe.transformer, one) for one in ("turned", f"fixed-{place}"))
        assert all(np.array_equal(turned[path], fixed[path]) for path in fixed)
    assert pipe.transformer.get_submodule(BOTH).lora_A["turned"].weight.data_ptr() == weight.data_ptr()


def test_a_compressed_adapter_needs_neither_of_the_two(pipe, paths, tmp_path):
    fuse_adapters(pipe, "cat", "ink", mu=0.2, rank=3)
    wanted = {path: truncated(delta, 3) for path, delta in expected(pipe, 2.0).items()}
    pipe.transformer.get_submodule(BOTH).lora_A["cat"].weight.data.zero_()
    pipe.delete_adapters(["cat", "ink"])
    set_mu(pipe, 2.0)
    assert_close(deltas(pipe.transformer, "fused"), wanted, 1e-6)
    nplora.fuse(*map(nplora.load, paths.values()), rank=3).save(tmp_path / "file.safetensors")
    pipe.load_lora_weights(str(tmp_path / "file.safetensors"), adapter_name="fused", hotswap=True)
    assert message(lambda: set_mu(pipe, 1.0)) == (
        "the adapter 'fused' has been changed since it was fused. Fuse again, under another name."
    )


def test_merges_are_compressed_too_and_random_ones_are_those_of_the_file(pipe, of_the_file):
    fuse_adapters(pipe, "cat", "ink", method="dare", density=0.7, seed=3, name="dare")
    assert_close(deltas(pipe.transformer, "dare"), of_the_file(method="dare", density=0.7, seed=3), 1e-6)
    fuse_adapters(pipe, "cat", "ink", method="linear", rank=2, name="two")
    assert_close(deltas(pipe.transformer, "two"), of_the_file(method="linear", rank=2), 1e-6)
    assert message(lambda: set_mu(pipe, 1.0, "two")).startswith("no adapter 'two' with a mu is in the model")


def test_goals_that_contradict_are_refused(pipe):
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", energy=0.9, error=0.1)).startswith(
        "--energy and --error say the same in two ways"
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", keep_style=True)).startswith(
        "--keep-style says how to compress, but not how far"
    )


def test_files_of_other_ranks_are_swapped_into_a_compiled_model_without_compiling(pipe, paths, tmp_path):
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    plain = copy.deepcopy(pipe)
    fuse_adapters(pipe, "cat", "ink", rank=8)
    prepare_model_for_compiled_hotswap(pipe.transformer, target_rank=16)
    made = compiled(pipe, "model.compile()")
    paint(pipe, 16)
    count = len(made)
    set_mu(pipe, 2.0)
    fuse_adapters(plain, "cat", "ink", mu=2.0)
    assert np.abs(paint(pipe, 16) - paint(plain, 16)).max() < 1e-6
    nplora.fuse(*map(nplora.load, paths.values()), mu=1.0, rank=2).save(tmp_path / "file.safetensors")
    pipe.load_lora_weights(str(tmp_path / "file.safetensors"), adapter_name="fused", hotswap=True)
    swapped = paint(pipe, 16)
    assert len(made) == count
    plain.unload_lora_weights()
    plain.load_lora_weights(str(tmp_path / "file.safetensors"))
    assert np.abs(swapped - paint(plain, 16)).max() < 1e-6


# ------------------------------------------------------------------------------------------------- mu in parts


@pytest.mark.parametrize("rank", [None, 3])
def test_mu_is_turned_in_a_part_of_the_model(pipe, rank):
    fuse_adapters(pipe, "cat", "ink", mu=0.5, rank=rank)
    set_mu(pipe, "inf", where="blocks.1")
    found, half, hard = (deltas(pipe.transformer, "fused"), expected(pipe), expected(pipe, np.inf))
    for path in half:
        wanted = (hard if path.startswith("blocks.1.") else half)[path]
        assert_close({path: found[path]}, {path: wanted if rank is None else truncated(wanted, rank)}, 1e-6)
    set_mu(pipe, 0.5)
    assert_close({BOTH: deltas(pipe.transformer, "fused")[BOTH]}, {BOTH: found[BOTH]}, 1e-12)
    assert message(lambda: set_mu(pipe, 1.0, where="up")) == (
        "mu turns nowhere in up: expected one of attention, cross-attention, transformer. A module's name, its beginning, "
        'or a glob such as "*.attn1.*" will do as well.'
    )


def test_parameters_are_others_in_parts_as_in_a_file(pipe, of_the_file):
    rules = "mu@blocks.0=inf,side@*.attn2.*=output,rank@blocks.1=3,directions@*.attn1.*=1"
    done = fuse_adapters(pipe, "cat", "ink", mu=0.2, overrides=rules)
    found = deltas(pipe.transformer, "fused")
    assert_close(found, of_the_file(mu=0.2, overrides=rules), 1e-6)
    assert np.linalg.matrix_rank(found["blocks.1.attn1.to_q"], tol=1e-6) == 3
    assert "mu = 0.2, inf in blocks.0 changes the subject by" in done.sentence
    assert len(done.squeezed) == len([path for path in found if path.startswith("blocks.1.")])
    set_mu(pipe, 0.2, where="blocks.0")
    rest = rules.replace("mu@blocks.0=inf,", "")
    assert_close(deltas(pipe.transformer, "fused"), of_the_file(mu=0.2, overrides=rest), 1e-6)
    set_mu(pipe, 1.0)
    assert_close(deltas(pipe.transformer, "fused"), of_the_file(mu=1.0, overrides=rest), 1e-6)


def test_overrides_that_mean_nothing_are_refused(pipe):
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", overrides="mu@up=1")).startswith(
        "mu@up: no module is called up: expected one of attention, cross-attention, transformer."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", overrides="subject_strength@attention=1")).startswith(
        "subject_strength@attention: subject_strength holds for the whole file."
    )
    assert message(lambda: fuse_adapters(pipe, "cat", "ink", overrides="keep_style@attention=yes")).startswith(
        "--keep-style says how to compress, but not how far"
    )
