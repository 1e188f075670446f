"""`describe` and `compare`: plain data that is true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import nplora
from making import CONVOLUTIONS, PLAIN, SD15, TEXT, make, tensors, write
from nplora.analysis.comparison import compare
from nplora.analysis.inspection import describe, module_norm, sentence
from nplora.errors import InputError, UsageError

NAME = next(iter(SD15))
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def described(path: Path) -> dict[str, object]:
    data = describe(nplora.load(path))
    return json.loads(json.dumps(data, allow_nan=False))  # ready for JSON, whatever is in the file


def test_what_an_adapter_is(tmp_path: Path) -> None:
    metadata = {"ss_tag_frequency": '{"4_sks cat": {}}', "ss_output_name": "cat", "ss_seed": "None"}
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT, **CONVOLUTIONS}, rank=4, alpha=2, metadata=metadata)
    data = described(tmp_path / "cat.safetensors")
    assert data["bytes"] == (tmp_path / "cat.safetensors").stat().st_size
    assert data["base"] == {
        "name": "sd15", "title": "Stable Diffusion 1.x", "evidence": "7 of 7 modules are Stable Diffusion 1.x's",
        "rivals": [],
    }  # fmt: skip
    assert data["format"]["name"] == "kohya"
    assert {name: component["modules"] for name, component in data["components"].items()} == {
        "text_encoder": 1,
        "unet": 6,
    }
    assert data["kinds"] == {"LoRA": 5, "LoRA (3x3 convolution)": 1, "LoRA (1x1 convolution)": 1}
    assert data["ranks"] == {"4": 7}
    assert data["dtypes"] == {"F16": 21}
    assert data["trigger_words"] == ["sks cat"]
    assert data["metadata"] == {"ss_output_name": "cat"}
    assert [group["scales"] for group in data["groups"]] == [
        [{"scale": 0.5, "known_from": "alpha", "modules": count}] for count in (1, 4, 1, 1)
    ]
    assert sentence(data) == "LoRA for Stable Diffusion 1.x: 7 modules of rank 4 at scale 0.5."


def test_norms_are_those_of_the_dense_updates(tmp_path: Path) -> None:
    tucker = next(iter(CONVOLUTIONS))
    make(tmp_path / "cat.safetensors", modules={**SD15, **CONVOLUTIONS}, alpha=-3, tucker=[tucker], full=[NAME])
    adapter = nplora.load(tmp_path / "cat.safetensors")
    for module in adapter.values():
        assert module_norm(module) == pytest.approx(np.linalg.norm(module.delta()), rel=1e-9)
    total = np.sqrt(sum(np.linalg.norm(module.delta()) ** 2 for module in adapter.values()))
    assert describe(adapter)["components"]["unet"]["norm"] == pytest.approx(total, rel=1e-9)


def test_how_each_scale_is_known(tmp_path: Path) -> None:
    make(tmp_path / "none.safetensors", "diffusers")
    make(tmp_path / "peft", "peft", PLAIN, rank=4, alpha=8)
    sources = [described(tmp_path / name)["groups"][0]["scales"] for name in ("none.safetensors", "peft")]
    assert sources == [
        [{"scale": 1.0, "known_from": "assumed 1", "modules": 4}],
        [{"scale": 2.0, "known_from": "config", "modules": 3}],
    ]  # fmt: skip


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    broken = np.ones((320, 4), np.float16)
    broken[0, 0] = np.nan
    bias = np.array([1, np.inf, np.nan], np.float16)
    up = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight"
    extra = {f"{KEY}.lora_up.weight": broken, up: np.zeros((320, 4), np.float16), f"{KEY}.diff_b": bias, "odd": bias}
    make(tmp_path / "odd.safetensors", extra=extra)
    data = described(tmp_path / "odd.safetensors")
    assert data["not_finite"] == [
        {"module": NAME, "key": f"{KEY}.lora_up.weight", "values": 1},
        {"module": NAME, "key": f"{KEY}.diff_b", "values": 2},
    ]
    assert data["zero_modules"] == [NAME.replace("to_q", "to_k")]
    assert data["foreign_keys"] == ["odd"]
    assert data["components"]["unet"]["norm"] is None
    assert sentence(data).endswith(
        "4 modules of rank 4 at scale 1, 1 of them zero; it holds values that are NaN or infinite."
    )


def test_an_adapter_that_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "zero.safetensors", size=0.0)
    assert sentence(described(tmp_path / "zero.safetensors")).endswith("all of them zero: it changes nothing.")


def test_unknown_bases_and_ranks_that_differ(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 32)),
             "model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((48, 2))}  # fmt: skip
    make(tmp_path / "x.safetensors", "plain", PLAIN, rank=4, extra=extra)
    assert sentence(described(tmp_path / "x.safetensors")) == (
        "LoRA for an unknown base: 3 modules of ranks 2 to 4 at scale 1."
    )


def test_a_base_that_only_the_file_names(tmp_path: Path) -> None:
    tensors = {"blocks.0.q.lora_A.weight": np.ones((2, 32)), "blocks.0.q.lora_B.weight": np.ones((48, 2))}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_sd_model_name": "my\x1b[2J world"})
    data = described(tmp_path / "x.safetensors")
    assert data["base"]["title"] == r"'my\x1b[2J world', as the file calls it"
    assert sentence(data) == r"LoRA for 'my\x1b[2J world', as the file calls it: 1 module of rank 2 at scale 1."


# ------------------------------------------------------------------------------------------ compare


def compared(folder: Path, **parameters: object) -> dict[str, object]:
    data = compare(*(nplora.load(next(folder.glob(f"{name}*"))) for name in ("cat", "ink")), **parameters)
    return json.loads(json.dumps(data, allow_nan=False))


def test_rho_is_the_dense_share(tmp_path: Path) -> None:
    modules = {f"m.{index}.x": (24, 12) for index in range(3)}
    make(tmp_path / "cat.safetensors", "plain", modules, seed=1, rank=4)
    make(tmp_path / "ink.safetensors", "plain", modules, seed=2, rank=6, alpha=2)
    data = compared(tmp_path)
    cat, ink = nplora.load(tmp_path / "cat.safetensors"), nplora.load(tmp_path / "ink.safetensors")
    inside = energy = 0.0
    for row in data["overlaps"]:
        dW_c, dW_s = cat[row["module"]].delta(), ink[row["module"]].delta()
        V = np.linalg.svd(dW_s)[2][:6].T
        part, whole = np.linalg.norm(dW_c @ V) ** 2, np.linalg.norm(dW_c) ** 2
        assert row["rho"] == pytest.approx(part / whole, rel=1e-5)
        assert (row["chance"], row["directions"]) == (0.5, 6)
        assert row["subject_norm"] == pytest.approx(np.sqrt(whole), rel=1e-5)
        inside, energy = inside + part, energy + whole
    assert data["rho"] == pytest.approx(inside / energy, rel=1e-4)
    assert data["norms"]["subject"] == pytest.approx(np.sqrt(energy), rel=1e-5)
    assert data["norm_ratio"] == pytest.approx(data["norms"]["subject"] / data["norms"]["style"])


def test_the_overlap_is_the_fusion_s_own_also_where_ranks_are_dead(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1, rank=4)
    arrays = tensors(seed=2, rank=8)
    arrays[f"{KEY}.lora_up.weight"][:, 3:5] = 0  # no certificate: by QR and SVD
    write(tmp_path / "ink.safetensors", arrays)
    data = compared(tmp_path)
    fusion = nplora.fuse(nplora.load(tmp_path / "cat.safetensors"), nplora.load(tmp_path / "ink.safetensors"))
    assert len(data["overlaps"]) == len(fusion.overlaps) == len(SD15)
    for row, overlap in zip(data["overlaps"], fusion.overlaps.values(), strict=True):
        assert (row["module"], row["directions"]) == (overlap.name, overlap.protected)
        assert row["rho"] == pytest.approx(overlap.rho, rel=1e-5)
        assert row["style_norm"] == pytest.approx(np.sqrt(overlap.style), rel=1e-5)
    assert {row["directions"] for row in data["overlaps"]} == {6, 8}


def test_one_seed_shows_in_the_down_factors_even_where_ranks_differ(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1, rank=8)
    make(tmp_path / "ink.safetensors", "diffusers", seed=2, down_seed=1, rank=8)
    data = compared(tmp_path)
    assert (data["median_down_cosine"], data["initialisation"], data["regime"]) == (1.0, "shared", "shared")
    make(tmp_path / "ink.safetensors", "diffusers", seed=2, down_seed=1, rank=4)
    assert compared(tmp_path)["initialisation"] == "shared"
    make(tmp_path / "ink.safetensors", "diffusers", seed=2, rank=8)
    data = compared(tmp_path)
    assert (abs(data["median_down_cosine"]) < 0.05, data["initialisation"], data["regime"]) == (
        True,
        "different",
        "unrelated",
    )


def test_some_modules_of_one_seed(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1)
    twin = f"{KEY}.lora_down.weight"
    arrays = {twin: nplora.load(tmp_path / "cat.safetensors").file.tensors[twin].read()}
    make(tmp_path / "ink.safetensors", seed=2, extra=arrays)
    assert compared(tmp_path)["initialisation"] == "mixed"


def test_counts_of_modules(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1)
    make(tmp_path / "ink.safetensors", modules={**SD15, **CONVOLUTIONS}, seed=2, full=[NAME])
    data = compared(tmp_path, mu="inf")
    assert data["modules"] == {"common": 4, "only_subject": 1, "only_style": 2, "not_projected": 1}
    assert data["mu"] == "inf"


def test_strangers(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", modules=TEXT, seed=1)
    make(tmp_path / "ink.safetensors", modules=SD15, seed=2)
    data = compared(tmp_path)
    assert (data["regime"], data["median_down_cosine"], data["initialisation"], data["norm_ratio"]) == (
        "none", None, "unknown", None
    )  # fmt: skip


def test_mu_and_bases_are_checked(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", seed=1)
    make(tmp_path / "ink.safetensors", modules={NAME: (640, 640)}, seed=2)
    with pytest.raises(UsageError):
        compared(tmp_path, mu=-1)
    with pytest.raises(InputError):
        compared(tmp_path)
