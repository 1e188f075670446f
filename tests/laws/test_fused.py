"""FLUX.1's fused projections in one file: split and joined exactly, with what stands beside the factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import nplora
from laws.flux import (
    DOUBLE,
    LAST,
    QKV,
    SINGLE,
    WIDTH,
    canonical,
    halves,
    kohya,
    kohya_file,
    made,
    rows_of,
    sampled,
    split,
    stack_of,
)  # fmt: skip
from laws.making import (
    Factors,
    factors,
    folder,
    kohya_tensors,
    peft_tensors,
    read,
    relative,
    write,
)

# ------------------------------------------------------------------------------------------ splitting and joining


@pytest.mark.parametrize("name", [DOUBLE, SINGLE, LAST])
def test_a_fused_module_is_read_as_its_parts(tmp_path, name):
    module = made(1, name)
    adapter = nplora.load(kohya_file(tmp_path / "a.safetensors", {name: module}))
    assert set(adapter) == {"transformer." + part for part in canonical(name)}
    for part, piece in split(name, module).items():
        update = adapter["transformer." + part].update
        rows = sampled(0, piece.up.shape[0])
        got = update.scale * update.up.read()[rows].astype(np.float64) @ update.down.read().astype(np.float64)
        assert relative(got, rows_of(piece, rows)) < 1e-14


@pytest.mark.parametrize("name", [DOUBLE, SINGLE, LAST])
@pytest.mark.parametrize("naming", ["kohya", "native", "fal"])
def test_saving_a_fused_module_in_its_own_naming_keeps_every_byte(tmp_path, name, naming):
    module = made(2, name, dtype="F16", scale=1.0)
    out = tmp_path / "out.safetensors"
    if naming == "kohya":
        path = kohya_file(tmp_path / "a.safetensors", {name: module})
    elif naming == "native":
        path = write(tmp_path / "a.safetensors", peft_tensors({f"diffusion_model.{name}": module}))
    else:
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
        path, out = folder(tmp_path / "a", peft_tensors({f"base_model.model.{name}": module}), config), tmp_path / "out"
    nplora.convert(nplora.load(path), out)
    before, after = read(path)[0], read(out)[0]
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [DOUBLE, SINGLE, LAST])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_kohya_to_diffusers_to_peft_to_kohya_is_the_same_file(tmp_path, name, dtype):
    """The scale is 1/2, so that no rounding hides a fault; equal downs become one again, as they were."""
    module = made(3, name, dtype=dtype)
    first = kohya_file(tmp_path / "a.safetensors", {name: module})
    second, third, fourth = tmp_path / "b.safetensors", tmp_path / "c", tmp_path / "d.safetensors"
    for source, target, format in ((first, second, "diffusers"), (second, third, "peft"), (third, fourth, "kohya")):
        nplora.convert(nplora.load(source), target, format=format)
    assert {key.rpartition(".lora_")[0] for key in read(second)[0]} == {
        "transformer." + part for part in canonical(name)
    }
    assert not any(key.endswith(".alpha") for key in read(second)[0])
    back = stack_of(fourth, name)
    for rows in canonical(name).values():
        assert (
            relative(rows_of(back, sampled(*rows)), rows_of(module, sampled(*rows))) < 1e-6
        )  # halving rounds subnormal halves
    assert back.rank == module.rank


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_joined_file_gives_its_blocks_back(tmp_path, dtype):
    """Block-diagonal ups: each part has its own ranks; alpha is left as it stands."""
    rng = np.random.default_rng(4)
    parts = [factors(rng, 3072, WIDTH, 2, dtype=dtype) for _ in range(3)]
    up = np.zeros((9216, 6), parts[0].up.dtype)
    for index, part in enumerate(parts):
        up[3072 * index : 3072 * (index + 1), 2 * index : 2 * (index + 1)] = part.up
    joined = Factors(up, np.concatenate([part.down for part in parts]), 0.25)
    path = kohya_file(tmp_path / "a.safetensors", {DOUBLE: joined})
    adapter = nplora.load(path)
    for name, part in zip(canonical(DOUBLE), parts, strict=True):
        update = adapter["transformer." + name].update
        assert (update.rank, update.scale) == (2, 0.25)
        assert np.array_equal(update.up.read(), part.up)
        assert np.array_equal(update.down.read(), part.down)
    nplora.convert(adapter, tmp_path / "b.safetensors")
    before, after = read(path)[0], read(tmp_path / "b.safetensors")[0]
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("present", [("to_q", "to_v"), ("to_k",), ("to_k", "to_v"), ("to_q",)])
def test_a_partial_group_leaves_zeros_for_the_parts_that_are_not_there(tmp_path, present):
    module = made(5)
    parts = {name: piece for name, piece in split(DOUBLE, module).items() if name.endswith(present)}
    path = write(
        tmp_path / "a.safetensors", peft_tensors({"transformer." + name: piece for name, piece in parts.items()})
    )
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="kohya")
    written = stack_of(tmp_path / "b.safetensors", DOUBLE)
    assert written.up.shape[0] == 9216
    for name, (start, stop) in QKV.items():
        rows = sampled(start, stop)
        wanted = rows_of(module, rows) / module.scale if name in present else np.zeros((12, WIDTH))
        assert relative(rows_of(written, rows), wanted) < 1e-6


@pytest.mark.parametrize("side", ["up", "down"])
def test_a_nan_in_a_part_beside_a_projected_one_is_found(tmp_path, side):
    subject, style = (
        {name: piece for name, piece in split(DOUBLE, made(seed)).items() if name.endswith(present)}
        for seed, present in ((5, ("to_q",)), (6, ("to_q", "to_k")))
    )
    lone = next(name for name in style if name.endswith("to_k"))
    broken = np.array(getattr(style[lone], side))
    broken[0, 0] = np.nan
    style[lone] = replace(style[lone], **{side: broken})
    paths = [
        write(
            tmp_path / f"{role}.safetensors",
            peft_tensors({"transformer." + name: piece for name, piece in parts.items()}),
        )
        for role, parts in (("c", subject), ("s", style))
    ]
    with pytest.raises(nplora.InputError, match="NaN or infinite") as error:
        nplora.fuse(*map(nplora.load, paths)).save(tmp_path / "o.safetensors", format="kohya")
    assert "to_k" in error.value.key
    assert not (tmp_path / "o.safetensors").exists()


def test_parts_with_downs_of_their_own_are_joined_block_by_block(tmp_path):
    rng = np.random.default_rng(6)
    parts = {name: factors(rng, 3072, WIDTH, rank) for name, rank in zip(canonical(DOUBLE), (1, 2, 3), strict=True)}
    path = write(
        tmp_path / "a.safetensors", peft_tensors({"transformer." + name: piece for name, piece in parts.items()})
    )
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="kohya")
    written = stack_of(tmp_path / "b.safetensors", DOUBLE)
    assert written.rank == 6
    for (name, part), (start, stop) in zip(parts.items(), QKV.values(), strict=True):
        got = rows_of(written, sampled(start, stop))
        assert relative(got, rows_of(part, sampled(0, 3072))) < 1e-6, name


def test_swapped_halves_lie_the_other_way_round_in_diffusers(tmp_path):
    module = made(7, LAST, scale=1.0)
    path = kohya_file(tmp_path / "a.safetensors", {LAST: module})
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="diffusers")
    written, _ = read(tmp_path / "b.safetensors")
    assert np.array_equal(written["transformer.norm_out.linear.lora_B.weight"], halves(module.up))
    assert np.array_equal(written["transformer.norm_out.linear.lora_A.weight"], module.down)


# ------------------------------------------------------------------------------------------ beside factors


def test_a_full_matrix_on_swapped_rows_comes_back_as_it_was(tmp_path):
    diff = np.resize(np.random.default_rng(22).standard_normal(10007).astype(np.float16), (6144, 3072))
    tensors = {f"diffusion_model.{LAST}.diff": diff} | peft_tensors({f"diffusion_model.{DOUBLE}": made(23, scale=1.0)})
    path = write(tmp_path / "a.safetensors", tensors)
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors")
    assert np.array_equal(read(tmp_path / "b.safetensors")[0][f"diffusion_model.{LAST}.diff"], diff)


def test_a_full_matrix_on_a_fused_projection_comes_back_as_it_was(tmp_path):
    diff = np.resize(np.random.default_rng(24).standard_normal(10007).astype(np.float16), (9216, 3072))
    tensors = {f"diffusion_model.{DOUBLE}.diff": diff} | peft_tensors(
        {f"diffusion_model.{SINGLE}": made(25, SINGLE, scale=1.0)}
    )
    path = write(tmp_path / "a.safetensors", tensors)
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors")
    assert np.array_equal(read(tmp_path / "b.safetensors")[0][f"diffusion_model.{DOUBLE}.diff"], diff)


@pytest.mark.parametrize("naming", ["kohya", "native"])
def test_a_bias_on_swapped_rows_is_swapped_with_them(tmp_path, naming):
    module = made(26, LAST, scale=1.0)
    bias = np.random.default_rng(27).standard_normal(6144).astype(np.float32)
    if naming == "kohya":
        tensors = kohya_tensors({kohya(LAST): module}) | {f"{kohya(LAST)}.diff_b": bias}
    else:
        tensors = peft_tensors({f"diffusion_model.{LAST}": module}) | {f"diffusion_model.{LAST}.lora_B.bias": bias}
    path = write(tmp_path / "a.safetensors", tensors)
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="diffusers")
    written = read(tmp_path / "b.safetensors")[0]["transformer.norm_out.linear.lora_B.bias"]
    assert np.allclose(written, halves(bias))
    nplora.convert(nplora.load(path), tmp_path / "c.safetensors")
    assert all(np.array_equal(read(path)[0][key], array) for key, array in read(tmp_path / "c.safetensors")[0].items())


def test_a_bias_on_a_fused_projection_is_split_and_joined_with_its_rows(tmp_path):
    bias = np.random.default_rng(28).standard_normal(9216).astype(np.float32)
    tensors = peft_tensors({f"diffusion_model.{DOUBLE}": made(29, scale=1.0)})
    path = write(tmp_path / "a.safetensors", tensors | {f"diffusion_model.{DOUBLE}.lora_B.bias": bias})
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="diffusers")
    written, _ = read(tmp_path / "b.safetensors")
    for name, rows in canonical(DOUBLE).items():
        assert np.array_equal(written[f"transformer.{name}.lora_B.bias"], bias[slice(*rows)])
    nplora.convert(nplora.load(path), tmp_path / "c.safetensors")
    assert np.array_equal(read(tmp_path / "c.safetensors")[0][f"diffusion_model.{DOUBLE}.lora_B.bias"], bias)
