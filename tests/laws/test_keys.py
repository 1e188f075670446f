"""No key is lost in silence: every tensor of both inputs changes the output, is copied, or is named as left out."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import nplora
from laws.making import factors, folder, kohya_tensors, peft_tensors, read, suffixed_tensors, write
from nplora import InputError

Q, K, V, OUT = (
    f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_{leaf}"
    for leaf in ("to_q", "to_k", "to_v", "to_out_0")
)
NORM, CONV = "lora_unet_down_blocks_0_resnets_0_norm1", "lora_unet_conv_in"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def zoo(seed: int) -> dict[str, np.ndarray]:
    """One of everything that a kohya file can hold."""
    rng = np.random.default_rng(seed)

    def vector(size=320):
        return rng.standard_normal(size).astype(np.float32)

    linear = {Q: factors(rng, 320, 320, 2), K: factors(rng, 320, 320, 3, scale=0.5), TEXT: factors(rng, 768, 768, 2)}
    tucker = factors(rng, 320, 4, 2)
    return kohya_tensors(linear) | {
        CONV + ".lora_up.weight": tucker.up[:, :, None, None], CONV + ".lora_down.weight": tucker.down[:, :, None, None],
        CONV + ".lora_mid.weight": rng.standard_normal((2, 2, 3, 3)).astype(np.float32), CONV + ".alpha": np.float32(2),
        Q + ".diff_b": vector(), OUT + ".diff_b": vector(), NORM + ".w_norm": vector(), NORM + ".b_norm": vector(),
        V + ".diff": rng.standard_normal((320, 320)).astype(np.float32),
        # what has no place: factors beside a full matrix, a bias of the down factor, an alpha alone, foreign keys
        V + ".lora_up.weight": rng.standard_normal((320, 2)).astype(np.float32),
        V + ".lora_down.weight": rng.standard_normal((2, 320)).astype(np.float32),
        K + ".lora_down.bias": vector(3), "lora_unet_conv_out.alpha": np.float32(1),
        "bundle_emb.cat.string_to_param": vector(8), "emb_params": vector(8), "_aux.step": np.int64(7),
    }  # fmt: skip


STRAY = {
    V + ".lora_up.weight", V + ".lora_down.weight", K + ".lora_down.bias", "lora_unet_conv_out.alpha",
    "bundle_emb.cat.string_to_param", "emb_params", "_aux.step",
}  # fmt: skip


def digest(path) -> dict[str, str]:
    tensors, _ = read(path)
    return {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in tensors.items()}


def fuse(subject, style, out, **parameters):
    return nplora.fuse(nplora.load(subject), nplora.load(style), directions=0.9, **parameters).save(out, overwrite=True)


def changed(array: np.ndarray) -> np.ndarray:
    """One number differs, by an amount that no rounding swallows."""
    copy = np.array(array)
    copy.reshape(-1)[0] += copy.dtype.type(1)
    return copy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def fused(place):
    """Both files, and what came of them."""
    paths = [write(place / f"{role}.safetensors", zoo(seed)) for seed, role in enumerate("cs")]
    report = fuse(*paths, place / "f.safetensors")
    return paths, report, digest(place / "f.safetensors")


def test_what_has_no_place_is_named_for_each_input_with_the_reason(fused):
    _, report, _ = fused
    assert set(report["left_out"]) == STRAY | {f"{key} (style)" for key in STRAY}
    reasons = {key: why for key, why in report["left_out"].items() if "(style)" not in key}
    assert reasons[V + ".lora_up.weight"] == reasons[V + ".lora_down.weight"] == "no part of a full module"
    assert reasons[K + ".lora_down.bias"] == "no part of a LoRA module"
    assert reasons["emb_params"] == "a foreign key would keep readers of kohya / sd-scripts from loading the file"


def test_the_counts_are_true(fused):
    paths, report, _ = fused
    assert report["keys"] == {
        "read": 2 * len(zoo(0)), "used": 2 * (len(zoo(0)) - len(STRAY)), "copied": 0, "left out": 2 * len(STRAY)
    }  # fmt: skip
    assert report["keys"]["read"] == sum(len(read(path)[0]) for path in paths)


@pytest.mark.parametrize("role", [0, 1], ids=["subject", "style"])
@pytest.mark.parametrize("key", sorted(set(zoo(0)) - STRAY))
def test_every_key_that_is_not_named_changes_the_output(place, fused, role, key):
    paths, _, before = fused
    tensors = zoo(role)
    tensors[key] = changed(tensors[key])
    pair = list(paths)
    pair[role] = write(place / "changed.safetensors", tensors)
    fuse(*pair, place / "again.safetensors")
    assert digest(place / "again.safetensors") != before


def test_every_key_that_is_named_changes_nothing(place, fused):
    paths, _, before = fused
    tensors = {key: changed(array) if key in STRAY else array for key, array in zoo(0).items()}
    fuse(write(place / "changed.safetensors", tensors), paths[1], place / "again.safetensors")
    assert digest(place / "again.safetensors") == before


def test_strict_makes_any_leftover_an_error_and_leaves_no_file(tmp_path, fused):
    paths, _, _ = fused
    with pytest.raises(InputError) as error:
        fuse(*paths, tmp_path / "f.safetensors", strict=True)
    text = str(error.value)
    assert text.startswith(next(key for key in STRAY if text.startswith(key)))
    assert text.endswith("Go on without --strict to allow it.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stray", sorted(STRAY))
def test_strict_finds_each_of_them_alone(tmp_path, stray):
    tensors = {key: array for key, array in zoo(0).items() if key not in STRAY}
    clean, dirty = (
        write(tmp_path / "a.safetensors", tensors),
        write(tmp_path / "b.safetensors", tensors | {stray: zoo(0)[stray]}),
    )
    fuse(clean, clean, tmp_path / "f.safetensors", strict=True)
    for pair in ((clean, dirty), (dirty, clean)):
        if stray.startswith(V):  # half of a module beside a full matrix is a leftover too
            pass
        with pytest.raises(InputError, match="would be left out"):
            fuse(*pair, tmp_path / "f.safetensors", strict=True)


@pytest.mark.parametrize("silent", ["subject", "style"])
def test_a_strength_of_0_names_every_key_of_that_side(tmp_path, fused, silent):
    paths, _, _ = fused
    report = fuse(*paths, tmp_path / "f.safetensors", **{f"{silent}_strength": 0})
    named = [key for key, why in report["left_out"].items() if why == f"{silent} strength is 0"]
    assert len(named) == len(zoo(0)) - len(STRAY)
    assert report["keys"]["left out"] == len(zoo(0)) + len(STRAY)


@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_what_a_format_has_no_place_for_is_named(tmp_path, target):
    tensors = {key: array for key, array in zoo(0).items() if key not in STRAY and not key.startswith(TEXT)}
    path = write(tmp_path / "a.safetensors", tensors)
    report = nplora.convert(nplora.load(path), tmp_path / ("b" if target == "peft" else "b.safetensors"), format=target)
    # Q's bias has factors beside it, so it is written as lora_B.bias; out's stands alone.
    assert set(report["left_out"]) == {V + ".diff", OUT + ".diff_b", NORM + ".w_norm", NORM + ".b_norm"}
    assert report["keys"]["read"] == len(tensors)
    assert report["keys"]["left out"] == 4


# ------------------------------------------------------------------------------------------ foreign keys that may stay


def peft_folder(path, seed, extra):
    module = factors(np.random.default_rng(seed), 6, 5, 2)
    return folder(path, peft_tensors({"base_model.model.h.0.attn": module}) | extra, {"r": 2, "lora_alpha": 2})


@pytest.mark.parametrize(("other", "copied", "left_out"), [("none", 1, 0), ("equal", 2, 0), ("different", 1, 1)])
def test_heads_of_a_peft_folder_are_copied_unless_they_contradict_each_other(tmp_path, other, copied, left_out):
    head = {"base_model.model.score.weight": np.arange(10, dtype=np.float32).reshape(2, 5)}
    theirs = {"none": {}, "equal": head, "different": {key: array + 1 for key, array in head.items()}}[other]
    pair = [peft_folder(tmp_path / "c", 0, head), peft_folder(tmp_path / "s", 1, theirs)]
    report = nplora.fuse(*map(nplora.load, pair)).save(tmp_path / "f")
    written, _ = read(tmp_path / "f")
    assert np.array_equal(written["base_model.model.score.weight"], head["base_model.model.score.weight"])
    assert (report["keys"]["copied"], report["keys"]["left out"]) == (copied, left_out)
    assert sum(report["keys"][fate] for fate in ("used", "copied", "left out")) == report["keys"]["read"]
    assert json.loads((tmp_path / "f" / "adapter_config.json").read_text())["r"] == 4


def test_a_repeated_module_is_read_once_and_said(tmp_path):
    """Files exist that store one weight under two names."""
    module = factors(np.random.default_rng(2), 320, 320, 2)
    canonical = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = suffixed_tensors({Q: module}, ".lora_up.weight", ".lora_down.weight") | peft_tensors({canonical: module})
    path = write(tmp_path / "a.safetensors", tensors)
    adapter = nplora.load(path)
    assert list(adapter) == [canonical]
    assert adapter.notes == (f"{canonical} repeats {Q} exactly and is read once",)
    report = nplora.convert(adapter, tmp_path / "b.safetensors")
    assert report["keys"] == {"read": 4, "used": 2, "copied": 0, "left out": 2}
    assert set(report["left_out"]) == {canonical + ".lora_A.weight", canonical + ".lora_B.weight"}


def test_two_different_modules_for_one_weight_are_refused(tmp_path):
    rng = np.random.default_rng(3)
    canonical = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = kohya_tensors({Q: factors(rng, 320, 320, 2)}) | peft_tensors({canonical: factors(rng, 320, 320, 2)})
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InputError, match="two modules of the file change the same weight differently"):
        nplora.load(path)


@pytest.mark.parametrize(
    "key", [Q + ".diff_b", NORM + ".w_norm", V + ".diff", Q + ".lora_up.weight", Q + ".lora_down.weight"]
)
@pytest.mark.parametrize("role", [0, 1], ids=["subject", "style"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_with_their_key_wherever_they_stand(tmp_path, key, role, number):
    kept = {name: array for name, array in zoo(role).items() if name not in STRAY}
    kept[key].reshape(-1)[3] = number
    clean = {name: array for name, array in zoo(1 - role).items() if name not in STRAY}
    pair = [
        write(tmp_path / f"{i}.safetensors", tensors)
        for i, tensors in enumerate((kept, clean) if role == 0 else (clean, kept))
    ]
    with pytest.raises(InputError) as error:
        fuse(*pair, tmp_path / "f.safetensors")
    text = str(error.value)
    assert text.startswith(f"{pair[role]}: {key}: 1 values are NaN or infinite (module unet.")
    assert text.endswith("The training run diverged: use an earlier checkpoint, or go on with --allow-nonfinite.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors"]
    fuse(*pair, tmp_path / "f.safetensors", allow_nonfinite=True)
