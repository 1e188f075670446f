"""What multiplies B A in a file: alpha in every shape, configs and their patterns, metadata, nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import nplora
from laws.making import DTYPES, factors, folder, peft_tensors, suffixed_tensors, write
from nplora import InputError

RANK = 4
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{}"
CANONICAL = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"


@pytest.fixture
def module():
    return factors(np.random.default_rng(0), 320, 320, RANK)


def loaded(path):
    return nplora.load(path)[CANONICAL.format("q")]


def kohya(path, module, alpha=None, names=("q",), **more):
    """A kohya file; `alpha` is the tensor of every module, or of those that a mapping names."""
    modules = {KOHYA.format(name): module for name in names}
    tensors = suffixed_tensors(modules, ".lora_up.weight", ".lora_down.weight")
    for name in names:
        own = alpha.get(name) if isinstance(alpha, dict) else alpha
        if own is not None:
            tensors[KOHYA.format(name) + ".alpha"] = own
    return write(path / "a.safetensors", tensors | more)


# ------------------------------------------------------------------------------------------ alpha


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "I64"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("alpha", [1, 4, 16])
def test_alpha_of_any_type_is_read_as_it_is(tmp_path, module, alpha, dtype, shape):
    got = loaded(kohya(tmp_path, module, np.full(shape, alpha, DTYPES[dtype])))
    assert (got.update.scale, got.update.scale_from) == (alpha / RANK, "alpha")
    assert np.allclose(got.delta(), alpha / RANK * module.dense(), rtol=1e-14, atol=0)


def test_a_negative_alpha_subtracts(tmp_path, module):
    assert loaded(kohya(tmp_path, module, np.float32(-2))).update.scale == -0.5


def test_no_alpha_at_all_is_scale_1(tmp_path, module):
    adapter = nplora.load(kohya(tmp_path, module))
    assert adapter[CANONICAL.format("q")].update.scale == 1.0
    assert adapter[CANONICAL.format("q")].update.scale_from == "assumed 1"
    assert adapter.notes == ()


def test_alphas_missing_in_half_of_the_modules_are_said(tmp_path, module):
    adapter = nplora.load(kohya(tmp_path, module, {"q": np.float32(2), "k": np.float32(2)}, ("q", "k", "v")))
    assert [adapter[CANONICAL.format(name)].update.scale for name in "qkv"] == [0.5, 0.5, 1.0]
    assert adapter.notes == (
        (
            "1 modules have no alpha while others do: scale 1 is assumed for them, as kohya and ComfyUI do (diffusers would "
            "take the most common alpha)"
        ),
    )


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (
            np.float32(0),
            (
                "alpha is 0, which programs read in two ways (off in ComfyUI and A1111, full strength in kohya): expected a "
                "positive number. Set it to 4 for full strength, or remove the module to leave it out."
            ),
        ),
        (np.float32(np.nan), "the scale is not finite: got nan. The file is damaged: get the original."),
        (np.float32(np.inf), "the scale is not finite: got inf. The file is damaged: get the original."),
        (np.ones(2, np.float32), "this must be a single number: expected shape () or (1,), got shape (2,)."),
    ],
    ids=["zero", "nan", "infinite", "two numbers"],
)
def test_an_alpha_without_a_meaning_is_refused(tmp_path, module, alpha, message):
    path = kohya(tmp_path, module, alpha)
    with pytest.raises(InputError) as error:
        nplora.load(path)
    assert str(error.value) == f"{path}: {KOHYA.format('q')}.alpha: {message}"


def test_a_fixed_scale_overrides_alpha(tmp_path, module):
    path = kohya(tmp_path, module, np.float32(2), **{KOHYA.format("q") + ".scale": np.float32(3)})
    assert loaded(path).update.scale == 3.0


# ------------------------------------------------------------------------------------------ PEFT


def peft(path, module, config, names=("q",)):
    tensors = peft_tensors(
        {"base_model.model." + CANONICAL.format(name).removeprefix("unet."): module for name in names}
    )
    return folder(path / "a", tensors, {"peft_type": "LORA", **config})


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": RANK, "lora_alpha": 16}, 4.0),
        ({"r": 64, "lora_alpha": 16}, 4.0),  # the rank is what the tensors have
        ({"r": RANK, "lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"r": RANK, "lora_alpha": 16, "use_rslora": False}, 4.0),
        ({"r": RANK}, 2.0),  # PEFT's default alpha is 8
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"to_q": 2}}, 0.5),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"to_q": 2}, "use_rslora": True}, 1.0),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"attn2.to_q": 2}}, 4.0),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"to_k": 1, "attn1.to_q": 2, "to_q": 3}}, 0.5),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"^to_q": 2}}, 4.0),  # anchored: the whole path
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"^" + CANONICAL.format("q").removeprefix("unet."): 2}}, 0.5),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {r".*\.attn1\..*": 2}}, 0.5),
        ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"o_q": 2}}, 4.0),  # ends of names, not of words
        ({"r": RANK, "lora_alpha": 16, "rank_pattern": {"to_q": 2}}, 4.0),
    ],
)  # fmt: skip
def test_a_peft_config_is_read_as_peft_reads_it(tmp_path, module, config, scale):
    got = loaded(peft(tmp_path, module, config))
    assert got.update.scale == pytest.approx(scale)
    assert got.update.scale_from == "config"


def test_an_unanchored_pattern_hits_every_module_that_ends_so(tmp_path):
    """`proj_out` is FLUX's last layer and the end of every single block's."""
    rng = np.random.default_rng(1)
    modules = {
        "proj_out": factors(rng, 64, 3072, RANK), "single_transformer_blocks.0.proj_out": factors(rng, 3072, 15360, RANK)
    }  # fmt: skip
    for pattern, scales in (("proj_out", (2.0, 2.0)), ("^proj_out", (2.0, 1.0)), ("blocks.0.proj_out", (1.0, 1.0))):
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "alpha_pattern": {pattern: 8}}
        path = folder(
            tmp_path / "a", peft_tensors({f"base_model.model.{name}": m for name, m in modules.items()}), config
        )
        adapter = nplora.load(path)
        assert tuple(adapter["transformer." + name].update.scale for name in modules) == scales


def test_patterns_are_about_the_names_of_the_wrapped_model(tmp_path):
    """A PEFT folder over the original FLUX model has fused names in its patterns."""
    module = factors(np.random.default_rng(2), 9216, 3072, RANK)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "alpha_pattern": {"img_attn.qkv": 8}}
    path = folder(tmp_path / "a", peft_tensors({"base_model.model.double_blocks.0.img_attn.qkv": module}), config)
    adapter = nplora.load(path)
    assert {module.update.scale for module in adapter.values()} == {2.0}


def test_alpha_keys_of_a_peft_folder_have_no_effect(tmp_path, module):
    name = "base_model.model." + CANONICAL.format("q").removeprefix("unet.")
    tensors = peft_tensors({name: module}) | {name + ".alpha": np.float32(1)}
    path = folder(tmp_path / "a", tensors, {"peft_type": "LORA", "r": RANK, "lora_alpha": 16})
    assert loaded(path).update.scale == 4.0


def test_a_broken_pattern_matches_nothing(tmp_path, module):
    assert loaded(peft(tmp_path, module, {"r": RANK, "lora_alpha": 4, "alpha_pattern": {"(": 2}})).update.scale == 1.0


def test_an_alpha_that_is_no_number_is_refused(tmp_path, module):
    with pytest.raises(InputError, match="lora_alpha is not a number"):
        nplora.load(peft(tmp_path, module, {"r": RANK, "lora_alpha": "many"}))


# ------------------------------------------------------------------------------------------ metadata and MLX


@pytest.mark.parametrize(
    ("table", "scale"),
    [
        ({"unet.r": RANK, "unet.lora_alpha": 16}, 4.0),
        ({"r": RANK, "lora_alpha": 16}, 4.0),
        ({"unet.r": RANK, "unet.lora_alpha": 16, "unet.use_rslora": True}, 8.0),
        ({"unet.r": RANK, "unet.lora_alpha": 16, "unet.alpha_pattern": {"attn1.to_q": 1}}, 0.25),
        ({"text_encoder.r": RANK, "text_encoder.lora_alpha": 16}, 1.0),
    ],
)
def test_the_adapter_metadata_of_diffusers_is_the_config_of_its_component(tmp_path, module, table, scale):
    text = json.dumps(table)
    path = write(
        tmp_path / "a.safetensors", peft_tensors({CANONICAL.format("q"): module}), {"lora_adapter_metadata": text}
    )
    assert loaded(path).update.scale == scale


def test_broken_adapter_metadata_is_refused(tmp_path, module):
    path = write(
        tmp_path / "a.safetensors", peft_tensors({CANONICAL.format("q"): module}), {"lora_adapter_metadata": "{"}
    )
    with pytest.raises(InputError) as error:
        nplora.load(path)
    assert str(error.value) == (
        f"{path}: lora_adapter_metadata: the adapter metadata is not valid JSON. Remove that metadata entry; then alpha "
        "keys or scale 1 apply."
    )


@pytest.mark.parametrize(
    ("config", "scale"), [({"rank": RANK, "alpha": 16, "scale": 10.0}, 10.0), ({"rank": RANK, "alpha": 16}, None)]
)
def test_mlx_multiplies_by_scale_whatever_alpha_says(tmp_path, module, config, scale):
    tensors = suffixed_tensors({"model.layers.0.self_attn.q_proj": module}, ".lora_b", ".lora_a", transposed=True)
    path = folder(tmp_path / "a", tensors, {"lora_parameters": config}, "adapters")
    (got,) = nplora.load(path).values()
    assert got.update.scale == (scale if scale is not None else pytest.approx(got.update.scale))
    assert math.isfinite(got.update.scale)
    assert np.allclose(got.delta(), got.update.scale * module.dense(), rtol=1e-12, atol=1e-15)
