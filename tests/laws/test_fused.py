"""FLUX.1's fused projections: split and joined exactly, one down factor where nothing forces the parts apart."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from laws.making import (
    Factors,
    factors,
    folder,
    kohya_tensors,
    peft_tensors,
    read,
    reference,
    relative,
    suffixed_tensors,
    write,
)

import nplora

WIDTH = 3072
QKV = {"to_q": (0, 3072), "to_k": (3072, 6144), "to_v": (6144, 9216)}
LINEAR1 = {"attn." + name: rows for name, rows in QKV.items()} | {"proj_mlp": (9216, 21504)}
DOUBLE = "double_blocks.0.img_attn.qkv"
SINGLE = "single_blocks.3.linear1"
LAST = "final_layer.adaLN_modulation.1"
TOLERANCE = {"F32": 2e-7, "F16": 1e-3, "BF16": 8e-3}  # a few roundings of the down factor


def kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def canonical(name: str) -> dict[str, tuple[int, int]]:
    """Canonical path -> rows of a native module."""
    if name == DOUBLE:
        return {f"transformer_blocks.0.attn.{part}": rows for part, rows in QKV.items()}
    if name == SINGLE:
        return {f"single_transformer_blocks.3.{part}": rows for part, rows in LINEAR1.items()}
    return {"norm_out.linear": (0, 6144)}


def made(seed: int, name: str = DOUBLE, rank: int = 2, dtype: str = "F32", scale: float = 0.5) -> Factors:
    out = max(stop for _, stop in canonical(name).values())
    return factors(np.random.default_rng(seed), out, WIDTH, rank, dtype=dtype, scale=scale)


def kohya_file(path, modules: dict[str, Factors]):
    return write(path, kohya_tensors({kohya(name): module for name, module in modules.items()}))


def split(name: str, module: Factors) -> dict[str, Factors]:
    """The parts by canonical name, as diffusers stores them: rows of the up factor, the down factor again and again."""
    return {
        part: Factors(halves(module.up[start:stop]) if name == LAST else module.up[start:stop], module.down, module.scale)
        for part, (start, stop) in canonical(name).items()
    }


def halves(array: np.ndarray) -> np.ndarray:
    """Shift and scale the other way round."""
    middle = array.shape[0] // 2
    return np.concatenate([array[middle:], array[:middle]])


def diffusers_file(path, modules: dict[str, Factors]):
    """Parts in diffusers' naming, the scale folded into the up factors (a power of two: exact)."""
    parts = {}
    for name, module in modules.items():
        for part, piece in split(name, module).items():
            parts["transformer." + part] = Factors((piece.up * piece.up.dtype.type(piece.scale)), piece.down)
    return write(path, peft_tensors(parts))


def fuse(tmp_path, subject, style, *, format="auto", **parameters):
    """Two paths in, one path out."""
    out = tmp_path / ("fused" if format == "peft" else "fused.safetensors")
    report = nplora.fuse(nplora.load(subject), nplora.load(style), **parameters).save(out, format=format, overwrite=True)
    return out, report


def sampled(start: int, stop: int) -> np.ndarray:
    """A few rows stand for all: the input side treats every row alike."""
    return np.linspace(start, stop - 1, 12).astype(int)


def stack_of(path, name: str) -> Factors:
    """A fused kohya module as it was written, read without nplora."""
    tensors, _ = read(path)
    up, down = (tensors[f"{kohya(name)}.lora_{side}.weight"] for side in ("up", "down"))
    return Factors(up, down, float(tensors[f"{kohya(name)}.alpha"]) / down.shape[0])


def rows_of(module: Factors, rows: np.ndarray) -> np.ndarray:
    return module.scale * module.up[rows].astype(np.float64) @ module.down.astype(np.float64)


def require_fused(path, name: str, subject: Factors, style: Factors, dtype: str, **parameters):
    """Every part of the written module is the formula on that part alone: the finest split decides."""
    written = stack_of(path, name)
    w = {"w_c": parameters.pop("subject_strength", 1.0), "w_s": parameters.pop("style_strength", 1.0)}
    for rows in canonical(name).values():
        rows = sampled(*rows)
        wanted = reference(rows_of(subject, rows), rows_of(style, rows), **parameters, **w)
        assert relative(rows_of(written, rows), wanted) < TOLERANCE[dtype]


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
    assert {key.rpartition(".lora_")[0] for key in read(second)[0]} == {"transformer." + part for part in canonical(name)}
    assert not any(key.endswith(".alpha") for key in read(second)[0])
    back = stack_of(fourth, name)
    for rows in canonical(name).values():
        assert relative(rows_of(back, sampled(*rows)), rows_of(module, sampled(*rows))) < 1e-6  # halving rounds subnormal halves
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


def test_parts_with_downs_of_their_own_are_joined_block_by_block(tmp_path):
    rng = np.random.default_rng(6)
    parts = {name: factors(rng, 3072, WIDTH, rank) for name, rank in zip(canonical(DOUBLE), (1, 2, 3), strict=True)}
    path = write(tmp_path / "a.safetensors", peft_tensors({"transformer." + name: piece for name, piece in parts.items()}))
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


# ------------------------------------------------------------------------------------------ fusing


@pytest.mark.parametrize("name", [DOUBLE, SINGLE, LAST])
@pytest.mark.parametrize("mu", [0.0, 0.5, inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_two_kohya_files_keep_one_down_factor_each(tmp_path, name, mu, dtype):
    subject, style = made(8, name, 3, dtype, 0.5), made(9, name, 2, dtype, 2.0)
    paths = [kohya_file(tmp_path / f"{role}.safetensors", {name: module}) for role, module in (("c", subject), ("s", style))]
    out, _ = fuse(tmp_path, *paths, mu=mu)
    assert stack_of(out, name).rank == 3 + 2
    require_fused(out, name, subject, style, dtype, mu=mu)


def test_the_style_and_the_ups_are_copied_byte_for_byte(tmp_path):
    subject, style = made(8, DOUBLE, 3, "F16", 0.5), made(9, DOUBLE, 2, "F16", 2.0)
    paths = [kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module}) for role, module in (("c", subject), ("s", style))]
    written = stack_of(fuse(tmp_path, *paths)[0], DOUBLE)
    assert np.array_equal(written.up, np.hstack([subject.up, style.up]))
    assert np.array_equal(written.down[3:], style.down)
    assert written.scale == style.scale


@pytest.mark.parametrize("mu", [0.5, inf])
@pytest.mark.parametrize("part", ["to_q", "to_k", "to_v"])
def test_a_dead_column_in_one_part_of_the_style_forces_the_parts_apart_and_stays_exact(tmp_path, mu, part):
    subject, style = made(10, rank=3), made(11, rank=2)
    start, stop = QKV[part]
    style.up[start:stop, 1] = 0  # this part uses one of the two rows of A_s only
    paths = [kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module}) for role, module in (("c", subject), ("s", style))]
    out, _ = fuse(tmp_path, *paths, mu=mu)
    require_fused(out, DOUBLE, subject, style, "F32", mu=mu)
    assert stack_of(out, DOUBLE).rank == 3 * 3 + 2


@pytest.mark.parametrize("directions", [1, 2, 0.8])
@pytest.mark.parametrize("side", ["input", "output"])
def test_directions_and_side_are_those_of_each_part(tmp_path, directions, side):
    subject, style = made(12, rank=3), made(13, rank=3)
    style.up[:] *= np.array([4.0, 2.0, 1.0], np.float32)
    paths = [kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module}) for role, module in (("c", subject), ("s", style))]
    out, _ = fuse(tmp_path, *paths, mu=1.0, directions=directions, side=side)
    fused, parts = nplora.load(out), [split(DOUBLE, module) for module in (subject, style)]
    some = sampled(0, WIDTH)
    for name in canonical(DOUBLE):
        update = fused["transformer." + name].update
        got = update.scale * update.up.read()[some].astype(np.float64) @ update.down.read()[:, some].astype(np.float64)
        wanted = thin_reference(parts[0][name], parts[1][name], 1.0, directions, side)(some, some)
        assert relative(got, wanted) < 1e-6


def thin_reference(subject: Factors, style: Factors, mu: float, directions, side: str):
    """The formula for some rows and columns, with U and V from a thin SVD: 3072 x 3072 is too much for a dense one."""
    Q_b, R_b = np.linalg.qr(style.up.astype(np.float64))
    Q_a, R_a = np.linalg.qr(style.down.T.astype(np.float64))
    u, s, vt = np.linalg.svd(R_b @ R_a.T)
    energy = np.cumsum(s**2)
    k = directions if isinstance(directions, int) else next(i + 1 for i in range(s.size) if energy[i] >= directions * energy[-1])
    U, V, g = Q_b @ u[:, :k], Q_a @ vt[:k].T, mu / (1 + mu)
    up, down = (factor.astype(np.float64) for factor in (subject.up, subject.down))
    if side == "output":
        up = up - g * U @ (U.T @ up)
    else:
        down = down - g * (down @ V) @ V.T
    return lambda rows, columns: (
        subject.scale * up[rows] @ down[:, columns]
        + style.scale * style.up[rows].astype(np.float64) @ style.down[:, columns].astype(np.float64)
    )


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("spellings", [("kohya", "diffusers"), ("diffusers", "kohya"), ("diffusers", "diffusers")])
def test_the_result_does_not_depend_on_how_the_files_are_spelt(tmp_path, spellings, format):
    subject, style = made(14, rank=3, scale=0.5), made(15, rank=2, scale=2.0)
    style.up[:3072, 1] = 0
    writers = {"kohya": kohya_file, "diffusers": diffusers_file}
    paths = [
        writers[spelling](tmp_path / f"{role}.safetensors", {DOUBLE: module})
        for role, spelling, module in zip("cs", spellings, (subject, style), strict=True)
    ]
    out, report = fuse(tmp_path, *paths, mu=inf, format=format)
    assert report["modules"]["fused"] == 3
    assert report["left_out"] == {}
    fused = nplora.load(out)
    for name, (start, stop) in canonical(DOUBLE).items():
        rows = sampled(start, stop)
        wanted = reference(rows_of(subject, rows), rows_of(style, rows), inf)
        update = fused["transformer." + name].update
        got = update.scale * update.up.read()[rows - start].astype(np.float64) @ update.down.read().astype(np.float64)
        assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("format", ["auto", "kohya", "diffusers"])
def test_a_style_for_some_parts_only_leaves_the_other_parts_of_the_subject_alone(tmp_path, format):
    subject, style = made(16, rank=3, scale=1.0), made(17, rank=2, scale=1.0)
    c = kohya_file(tmp_path / "c.safetensors", {DOUBLE: subject})
    parts = split(DOUBLE, style)
    del parts["transformer_blocks.0.attn.to_k"]
    s = write(tmp_path / "s.safetensors", peft_tensors({"transformer." + name: piece for name, piece in parts.items()}))
    out, _ = fuse(tmp_path, c, s, format=format)
    fused = nplora.load(out)
    for name, (start, stop) in canonical(DOUBLE).items():
        rows = sampled(start, stop)
        other = rows_of(style, rows) if name in parts else np.zeros((12, WIDTH))
        update = fused["transformer." + name].update
        got = update.scale * update.up.read()[rows - start].astype(np.float64) @ update.down.read().astype(np.float64)
        assert relative(got, reference(rows_of(subject, rows), other, 0.5)) < 1e-6


def test_xlabs_and_kohya_meet_part_by_part(tmp_path):
    """XLabs' module holds q, k, v of linear1, without the MLP rows."""
    subject, style = made(18, SINGLE, 3, scale=1.0), factors(np.random.default_rng(19), 9216, WIDTH, 2)
    c = kohya_file(tmp_path / "c.safetensors", {SINGLE: subject})
    s = write(tmp_path / "s.safetensors", suffixed_tensors({"single_blocks.3.processor.qkv_lora": style}, ".up.weight", ".down.weight"))
    out, report = fuse(tmp_path, c, s, mu=inf)
    assert report["modules"]["fused"] == 3
    written = stack_of(out, SINGLE)
    for start, stop in LINEAR1.values():
        rows = sampled(start, stop)
        other = rows_of(style, rows) if stop <= 9216 else np.zeros((12, WIDTH))
        assert relative(rows_of(written, rows), reference(rows_of(subject, rows), other, inf)) < 1e-6


@pytest.mark.parametrize(("w_c", "w_s"), [(0.5, 2.0), (-1.0, 1.0), (1.0, -0.5), (-0.3, -0.7)])
def test_strengths_of_either_sign_are_in_the_numbers_and_alpha_stays_positive(tmp_path, w_c, w_s):
    subject, style = made(20, rank=2), made(21, rank=2)
    paths = [kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module}) for role, module in (("c", subject), ("s", style))]
    out, _ = fuse(tmp_path, *paths, subject_strength=w_c, style_strength=w_s)
    require_fused(out, DOUBLE, subject, style, "F32", mu=0.5, subject_strength=w_c, style_strength=w_s)
    alpha = read(out)[0][f"{kohya(DOUBLE)}.alpha"]
    assert alpha.dtype == np.float32
    assert alpha > 0


# ------------------------------------------------------------------------------------------ beside factors


def test_a_full_matrix_on_swapped_rows_comes_back_as_it_was(tmp_path):
    diff = np.resize(np.random.default_rng(22).standard_normal(10007).astype(np.float16), (6144, 3072))
    tensors = {f"diffusion_model.{LAST}.diff": diff} | peft_tensors({f"diffusion_model.{DOUBLE}": made(23, scale=1.0)})
    path = write(tmp_path / "a.safetensors", tensors)
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors")
    assert np.array_equal(read(tmp_path / "b.safetensors")[0][f"diffusion_model.{LAST}.diff"], diff)


def test_a_full_matrix_on_a_fused_projection_comes_back_as_it_was(tmp_path):
    diff = np.resize(np.random.default_rng(24).standard_normal(10007).astype(np.float16), (9216, 3072))
    tensors = {f"diffusion_model.{DOUBLE}.diff": diff} | peft_tensors({f"diffusion_model.{SINGLE}": made(25, SINGLE, scale=1.0)})
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
