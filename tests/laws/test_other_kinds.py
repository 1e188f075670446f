"""Kinds beside plain factors: full matrices take part densely, kinds that need the base weight are carried or refused."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

import nplora
from laws.making import factors, kohya_tensors, read, reference, relative, write
from laws.tables import flattened
from nplora import InputError

CONV = "lora_unet_conv_in"
CANONICAL = "unet.conv_in"
SHAPE = (320, 4, 3, 3)


def plain(seed: int):
    """A 3x3 LoRA and what it means."""
    module = factors(np.random.default_rng(seed), 320, 4, 3, scale=0.5, kernel=(3, 3))
    return kohya_tensors({CONV: module}), module.dense()


def full(seed: int):
    """A whole matrix of rank 5 with a clear spectrum."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, 5)))[0] for size in (320, 36))
    diff = (left * [8.0, 4.0, 2.0, 1.0, 0.5] @ right.T).astype(np.float32).reshape(SHAPE)
    return {f"{CONV}.diff": diff}, flattened(diff).astype(np.float64)


KINDS = {"plain": plain, "full": full}


def fuse(tmp_path, tensors, **parameters):
    """Two lists of tensors in, the written tensors and the adapter read from them out."""
    paths = [write(tmp_path / f"{role}.safetensors", one) for role, one in zip("cs", tensors, strict=True)]
    out = tmp_path / "f.safetensors"
    nplora.fuse(*map(nplora.load, paths), **parameters).save(out, overwrite=True)
    return read(out)[0], nplora.load(out)


# ------------------------------------------------------------------------------------------ full matrices


@pytest.mark.parametrize(("subject", "style"), [("plain", "full"), ("full", "plain"), ("full", "full")])
@pytest.mark.parametrize("directions", [1, 3, 0.9])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("mu", [0.5, inf])
def test_a_full_matrix_on_either_side_is_fused_as_the_formula_says(tmp_path, subject, style, directions, side, mu):
    (one, dW_c), (two, dW_s) = KINDS[subject](1), KINDS[style](2)
    written, fused = fuse(
        tmp_path, (one, two), mu=mu, directions=directions, side=side, subject_strength=0.7, style_strength=-1.5
    )
    wanted = reference(dW_c, dW_s, mu, w_c=0.7, w_s=-1.5, directions=directions, side=side)
    assert set(written) == {f"{CONV}.diff"}
    assert fused[CANONICAL].delta().shape == SHAPE
    assert relative(flattened(fused[CANONICAL].delta()), wanted) < 1e-6


@pytest.mark.parametrize("subject", ["plain", "full"])
def test_a_full_style_has_every_direction_so_a_share_must_be_named(tmp_path, subject):
    (one, _), (two, _) = KINDS[subject](1), full(2)
    with pytest.raises(InputError) as error:
        fuse(tmp_path, (one, two))
    assert str(error.value) == (
        f"{tmp_path / 's.safetensors'}: {CONV}.diff: the style changes this module by a full matrix, whose directions are "
        "all there are. Protect a share of its energy instead: --directions 0.9, or --directions 8."
    )


@pytest.mark.parametrize(("subject", "style"), [("plain", "full"), ("full", "full"), ("full", "plain")])
def test_plain_addition_needs_no_directions(tmp_path, subject, style):
    (one, dW_c), (two, dW_s) = KINDS[subject](1), KINDS[style](2)
    _, fused = fuse(tmp_path, (one, two), mu=0)
    assert relative(flattened(fused[CANONICAL].delta()), dW_c + dW_s) < 1e-6


# ------------------------------------------------------------------------------------------ carried along

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
V = Q.removesuffix("q") + "v"
NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


CARRIED = {
    "DoRA": {".lora_up.weight": numbers(320, 2), ".lora_down.weight": numbers(2, 320), ".dora_scale": numbers(1, 320),
             ".alpha": np.float32(2)},
    "OFT": {".oft_blocks": numbers(4, 80, 80), ".alpha": np.float32(1)},
    "GLoRA": {".a1.weight": numbers(320, 2), ".a2.weight": numbers(2, 320), ".b1.weight": numbers(320, 2), ".b2.weight": numbers(2, 320)},
    "IA3": {".on_input": np.zeros(1, np.uint8), ".weight": numbers(320)},
    "VeRA": {".vera_lambda_b": numbers(320), ".vera_lambda_d": numbers(2)},
}  # fmt: skip


def carried(kind: str) -> dict[str, np.ndarray]:
    return {Q + suffix: array for suffix, array in CARRIED[kind].items()}


def lora(name: str) -> dict[str, np.ndarray]:
    return kohya_tensors({name: factors(np.random.default_rng(3), 320, 320, 2)})


@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("role", ["subject", "style"])
def test_a_kind_that_needs_the_base_weight_is_carried_byte_for_byte_where_it_stands_alone(tmp_path, kind, role):
    pair = (carried(kind), lora(V)) if role == "subject" else (lora(V), carried(kind))
    written, _ = fuse(tmp_path, pair)
    assert all(np.array_equal(written[key], array) for key, array in carried(kind).items())


BASED = {
    "DoRA": "Add --base MODEL.safetensors, or use the direction alone with --dora ignore.",
    **dict.fromkeys(("OFT", "GLoRA", "IA3"), "Add --base MODEL.safetensors."),
}


@pytest.mark.parametrize("kind", BASED)
@pytest.mark.parametrize("role", ["subject", "style"])
def test_without_the_base_it_is_refused_by_name_where_both_files_change_the_module(tmp_path, kind, role):
    pair = (carried(kind), lora(Q)) if role == "subject" else (lora(Q), carried(kind))
    with pytest.raises(InputError) as error:
        fuse(tmp_path, pair)
    path = tmp_path / ("c.safetensors" if role == "subject" else "s.safetensors")
    text = str(error.value)
    assert text.startswith(f"{path}: {Q}")
    assert text.endswith(
        f": what the {kind} module {NAME} adds depends on the base model's weight, and both adapters change it. {BASED[kind]}"
    )


def test_a_base_without_its_weight_is_refused_where_both_files_change_the_module(tmp_path):
    base = write(tmp_path / "vae.safetensors", {"conv_in.weight": np.zeros((320, 4, 3, 3), np.float32)})
    with pytest.raises(InputError) as error:
        fuse(tmp_path, (carried("DoRA"), lora(Q)), base=base)
    assert str(error.value).startswith(f"{base}: {Q}")
    assert str(error.value).endswith(
        f": the base model has no weight for the DoRA module {NAME}. Name the base model that the adapter was trained on, "
        "or use the direction alone with --dora ignore."
    )


@pytest.mark.parametrize("kind", [kind for kind in CARRIED if kind not in BASED])
@pytest.mark.parametrize("role", ["subject", "style"])
def test_it_is_refused_by_name_where_both_files_change_the_module(tmp_path, kind, role):
    pair = (carried(kind), lora(Q)) if role == "subject" else (lora(Q), carried(kind))
    with pytest.raises(InputError) as error:
        fuse(tmp_path, pair)
    path = tmp_path / ("c.safetensors" if role == "subject" else "s.safetensors")
    text = str(error.value)
    assert text.startswith(f"{path}: {Q}")
    assert f"{kind} modules cannot be fused yet, and both adapters change {NAME}" in text
    assert text.endswith("Convert it to a LoRA first, or leave the component out with --components.")


@pytest.mark.parametrize("role", ["subject", "style"])
def test_it_is_refused_at_any_other_strength_than_1(tmp_path, role):
    pair = (carried("VeRA"), lora(V)) if role == "subject" else (lora(V), carried("VeRA"))
    with pytest.raises(InputError) as error:
        fuse(tmp_path, pair, **{f"{role}_strength": 0.8})
    assert "VeRA modules can only be carried along at strength 1" in str(error.value)
    assert f"expected --{role}-strength 1, got 0.8" in str(error.value)


@pytest.mark.parametrize("role", ["subject", "style"])
def test_without_the_base_it_is_refused_at_any_other_strength_than_1(tmp_path, role):
    pair = (carried("OFT"), lora(V)) if role == "subject" else (lora(V), carried("OFT"))
    with pytest.raises(InputError) as error:
        fuse(tmp_path, pair, **{f"{role}_strength": 0.8})
    assert str(error.value).endswith(
        f"what the OFT module {NAME} adds depends on the base model's weight, and its strength is 0.8. "
        "Add --base MODEL.safetensors."
    )
