"""`verify` passes what is right, fails what is not, and its bound is neither broken nor empty."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nplora
from fusing import changed, fused, pair
from making import BLOCK, CONVOLUTIONS, SD15, TEXT, make, tensors, write
from nplora.checking.verify import verify

NAME = next(iter(SD15))
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


# ------------------------------------------------------------------------------------------ what is right passes

PARAMETERS: list[dict[str, object]] = [
    {}, {"mu": 0}, {"mu": 3.0}, {"mu": "inf"}, {"directions": 3}, {"directions": 0.8}, {"directions": 1.0},
    {"side": "output"}, {"side": "output", "directions": 2, "mu": "inf"},
    {"subject_strength": -0.7, "style_strength": 1.3}, {"subject_strength": 0}, {"style_strength": 0},
    {"format": "diffusers"}, {"format": "peft"}, {"format": "kohya", "dtype": "fp32"},
    {"dtype": "bf16"}, {"dtype": "fp16"},
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_a_fusion_passes(parameters: dict[str, object], dtype: str, tmp_path: Path) -> None:
    result = verify(fused(pair(tmp_path, dtype=dtype), **parameters))
    assert result.passed, result.sentence
    assert len(result.checks) == len(SD15)
    assert all(check.bound < 0.02 for check in result.checks)


@pytest.mark.parametrize("directions", ["all", 3, 0.9])
@pytest.mark.parametrize("down_seed", [None, 1])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_bound_is_near_the_error(dtype: str, down_seed: int | None, directions: object, tmp_path: Path) -> None:
    make(tmp_path / "subject.safetensors", seed=1, rank=16, dtype=dtype)
    make(tmp_path / "style.safetensors", seed=2, down_seed=down_seed, rank=16, dtype=dtype)
    result = verify(fused(tmp_path, directions=directions))
    assert result.passed
    assert all(check.severity > 1 / 30 for check in result.checks)


def test_the_bound_of_computing_in_single_precision_is_not_empty(tmp_path: Path) -> None:
    result = verify(fused(pair(tmp_path, dtype="F16"), dtype="fp32"))
    assert result.passed
    assert result.worst.severity > 1 / 300
    assert result.bound < 1e-5


@pytest.mark.parametrize("part", ["lora_down", "lora_up"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("rank", [4, 64])
def test_one_percent_in_one_factor_fails(rank: int, dtype: str, part: str, tmp_path: Path) -> None:
    make(tmp_path / "subject.safetensors", seed=1, rank=rank, dtype=dtype)
    make(tmp_path / "style.safetensors", seed=2, rank=rank, dtype=dtype)
    output = fused(tmp_path)

    def spoil(arrays: dict[str, np.ndarray]) -> None:
        factor = arrays[f"{KEY}.{part}.weight"]
        half = factor[:rank] if part == "lora_down" else factor[:, :rank]  # one side's strand
        half[...] = (half.astype(np.float64) * 1.01).astype(half.dtype)

    changed(output, spoil)
    result = verify(output)
    assert [check.name for check in result.checks if not check.passed] == [NAME]
    assert result.sentence == (
        f"out.safetensors is not what its recipe says: 1 of 4 modules over the bound (worst {NAME}: "
        f"{result.error:.1e}, bound "
        f"{result.bound:.1e})."
    )


def test_the_route_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = fused(pair(tmp_path))

    def forbidden(*args: object, **values: object) -> None:
        raise AssertionError("verify took the route that it is to check")

    for name in ("project", "grams"):
        monkeypatch.setattr(f"nplora.fusion.projection.{name}", forbidden)
    assert verify(output).passed


def test_a_wrong_projection_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nplora.fusion import projection

    right = projection.project

    def wrong(B_c: object, A_c: object, *others: object) -> object:
        projected, found = right(B_c, A_c, *others)
        return projected + 0.002 * (projected - A_c), found  # 0.2 % of the change

    monkeypatch.setattr(projection, "project", wrong)
    make(tmp_path / "subject.safetensors", seed=1, rank=8)
    make(tmp_path / "style.safetensors", seed=2, down_seed=1, rank=8)
    output = fused(tmp_path, mu=1)
    monkeypatch.undo()
    result = verify(output)
    assert not result.passed
    assert sum(not check.passed for check in result.checks) == len(SD15)


# ------------------------------------------------------------------------------------------ what a file may hold


def test_modules_of_one_side_and_of_other_kinds(tmp_path: Path) -> None:
    tucker, linear = CONVOLUTIONS
    modules = {**SD15, **CONVOLUTIONS}
    make(
        tmp_path / "subject.safetensors", modules={**modules, **TEXT}, seed=1, tucker=[tucker], alpha=3, bias=[NAME],
        norms={"unet.down_blocks.0.resnets.0.norm1": 320},
    )  # fmt: skip
    make(
        tmp_path / "style.safetensors", modules=modules, seed=2, full=[linear], bias=[NAME], dtype="F32",
        norms={"unet.down_blocks.0.resnets.0.norm1": 320},
    )  # fmt: skip
    result = verify(fused(tmp_path, directions=0.9, style_strength=0.8))
    assert result.passed, result.sentence
    assert len(result.checks) == len(modules) + len(TEXT) + 3
    assert f"{NAME} (bias)" in {check.name for check in result.checks}


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("full", [("subject",), ("style",), ("subject", "style")])
def test_full_matrices(full: tuple[str, ...], side: str, tmp_path: Path) -> None:
    modules = {"m.x.y": (24, 40), "m.x.z": (40, 16, 3, 3)}
    for seed, role in enumerate(("subject", "style")):
        make(tmp_path / f"{role}.safetensors", "plain", modules, seed=seed, full=list(modules) if role in full else [])
    output = fused(tmp_path, directions=3, side=side, mu=2)
    assert verify(output).passed
    changed(output, lambda arrays: arrays.update({"m.x.y.diff": arrays["m.x.y.diff"] * np.float16(1.01)}))
    assert [check.name.removeprefix("unknown.") for check in verify(output).checks if not check.passed] == ["m.x.y"]


def test_what_a_format_cannot_hold_is_named_and_no_fault(tmp_path: Path) -> None:
    make(tmp_path / "subject.safetensors", seed=1, full=[NAME], norms={"unet.down_blocks.0.resnets.0.norm1": 320})
    make(tmp_path / "style.safetensors", modules={name: shape for name, shape in SD15.items() if name != NAME}, seed=2)
    result = verify(fused(tmp_path, format="diffusers"))
    assert result.passed, result.sentence
    assert result.left_out == (
        NAME, "unet.down_blocks.0.resnets.0.norm1 (bias)", "unet.down_blocks.0.resnets.0.norm1 (weight)"
    )  # fmt: skip


def test_carried_kinds_must_be_the_same_bytes(tmp_path: Path) -> None:
    dora = tensors(modules={NAME: SD15[NAME]}, seed=1) | {f"{KEY}.dora_scale": np.ones((320, 1), np.float16)}
    write(tmp_path / "subject.safetensors", dora)
    make(tmp_path / "style.safetensors", modules={name: shape for name, shape in SD15.items() if name != NAME}, seed=2)
    output = fused(tmp_path)
    assert verify(output).passed
    changed(output, lambda arrays: arrays.update({f"{KEY}.dora_scale": np.ones((320, 1), np.float16) * 2}))
    assert [check.name for check in verify(output).checks if not check.passed] == [NAME]


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft", "same"])
@pytest.mark.parametrize("dtype", ["same", "fp32", "bf16"])
def test_a_conversion_passes(format: str, dtype: str, tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", modules={**SD15, **CONVOLUTIONS}, seed=1, alpha=3)
    output = tmp_path / ("out" if format == "peft" else "out.safetensors")
    nplora.convert(nplora.load(tmp_path / "cat.safetensors"), output, format=format, dtype=dtype)
    result = verify(output)
    assert result.passed, result.sentence
    assert len(result.checks) == len(SD15) + len(CONVOLUTIONS)


def test_components_and_names_that_differ(tmp_path: Path) -> None:
    make(tmp_path / "subject.safetensors", modules={**SD15, **TEXT}, seed=1, bias=list(TEXT))
    make(tmp_path / "style", "peft", SD15, seed=2)
    result = verify(fused(tmp_path, components="unet", format="diffusers"))
    assert result.passed, result.sentence
    assert (result.missing, result.extra, len(result.checks)) == ((), (), len(SD15))


# ------------------------------------------------------------------------------------------ what is wrong fails


def test_missing_and_extra_modules(tmp_path: Path) -> None:
    output = fused(pair(tmp_path))

    def rename(arrays: dict[str, np.ndarray]) -> None:
        for key in [key for key in arrays if key.startswith(KEY)]:
            arrays[key.replace("attn1_to_q", "attn1_to_v")] = arrays.pop(key)

    changed(output, rename)
    result = verify(output)
    other = f"{BLOCK}.attn1.to_v"
    assert (result.passed, result.missing, result.extra) == (False, (NAME,), (other,))
    assert result.sentence == (
        f"out.safetensors is not what its recipe says: 1 module missing ({NAME}); 1 module not in the recipe ({other})."
    )


def test_another_shape_or_value_that_is_not_a_number_is_over_any_bound(tmp_path: Path) -> None:
    output = fused(pair(tmp_path))
    shutil.copy(output, tmp_path / "kept.safetensors")
    up = f"{KEY}.lora_up.weight"
    for wrong in (np.zeros((321, 16), np.float16), np.full((320, 16), np.nan, np.float16)):
        shutil.copy(tmp_path / "kept.safetensors", output)
        changed(output, lambda arrays, wrong=wrong: arrays.update({up: wrong}))
        result = verify(output)
        assert not result.passed
        assert np.isinf(result.error)
        assert f"(worst {NAME}: values that cannot be compared)" in result.sentence


def test_a_changed_bias_fails(tmp_path: Path) -> None:
    make(tmp_path / "subject.safetensors", seed=1, bias=[NAME])
    make(tmp_path / "style.safetensors", seed=2, bias=[NAME])
    output = fused(tmp_path, subject_strength=0.3)
    assert verify(output).passed
    key = f"{KEY}.diff_b"
    changed(output, lambda arrays: arrays.update({key: arrays[key] * np.float16(1.01)}))
    assert [check.name for check in verify(output).checks if not check.passed] == [f"{NAME} (bias)"]


# ------------------------------------------------------------------------------------------ anything else

FILLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda a: a,
    "constant": lambda a: np.full_like(a, 0.1),  # roundings that do conspire
    "dead ranks": lambda a: a * (np.arange(a.shape[1]) % 2).reshape(1, -1, *[1] * (a.ndim - 2)),
    "subnormal": lambda a: a * 1e-5,
    "zero": lambda a: a * 0,
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_fused_passes(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    sizes, kernels = st.sampled_from([1, 2, 7, 40]), st.sampled_from([(), (1, 1), (3, 3)])
    modules = {f"m.block.{index}": (draw(sizes), draw(sizes), *draw(kernels)) for index in range(2)}
    for seed, role in enumerate(("subject", "style")):
        rank, alpha = draw(st.sampled_from([1, 3, 9, 50])), draw(st.sampled_from([None, 1.0, 7.0]))
        dtype, down_seed = draw(st.sampled_from(["F16", "BF16", "F32", "F64"])), draw(st.sampled_from([None, 0]))
        arrays = tensors("plain", modules, rank=rank, alpha=alpha, dtype=dtype, seed=seed, down_seed=down_seed)
        fill = FILLS[draw(st.sampled_from(sorted(FILLS)))]
        changed_arrays = {
            key: fill(a.astype(np.float64)).astype(a.dtype) if "lora_B" in key else a for key, a in arrays.items()
        }
        write(tmp_path / f"{role}.safetensors", changed_arrays)
    output = fused(
        tmp_path, mu=draw(st.sampled_from([0, 0.5, 2, "inf"])),
        directions=draw(st.sampled_from(["all", 1, 3, 0.6, 1.0])),
        side=draw(st.sampled_from(["input", "output"])), subject_strength=draw(st.sampled_from([1.0, -0.3])),
        dtype=draw(st.sampled_from(["same", "fp32", "bf16"])),
    )  # fmt: skip
    result = verify(output)
    assert result.passed, result.sentence
