"""Pairs of FLUX.1 files: each part is fused by itself, and one down factor serves all where nothing forces them apart."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

import nplora
from laws.flux import (
    DOUBLE,
    LAST,
    LINEAR1,
    QKV,
    SINGLE,
    WIDTH,
    canonical,
    diffusers_file,
    fuse,
    kohya,
    kohya_file,
    made,
    require_fused,
    rows_of,
    sampled,
    split,
    stack_of,
)  # fmt: skip
from laws.making import (
    Factors,
    factors,
    peft_tensors,
    read,
    reference,
    relative,
    suffixed_tensors,
    write,
)

# ------------------------------------------------------------------------------------------ fusing


@pytest.mark.parametrize("name", [DOUBLE, SINGLE, LAST])
@pytest.mark.parametrize("mu", [0.0, 0.5, inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_two_kohya_files_keep_one_down_factor_each(tmp_path, name, mu, dtype):
    subject, style = made(8, name, 3, dtype, 0.5), made(9, name, 2, dtype, 2.0)
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", {name: module}) for role, module in (("c", subject), ("s", style))
    ]
    out, _ = fuse(tmp_path, *paths, mu=mu)
    assert stack_of(out, name).rank == 3 + 2
    require_fused(out, name, subject, style, dtype, mu=mu)


def test_the_style_and_the_ups_are_copied_byte_for_byte(tmp_path):
    subject, style = made(8, DOUBLE, 3, "F16", 0.5), made(9, DOUBLE, 2, "F16", 2.0)
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module})
        for role, module in (("c", subject), ("s", style))
    ]
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
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module})
        for role, module in (("c", subject), ("s", style))
    ]
    out, _ = fuse(tmp_path, *paths, mu=mu)
    require_fused(out, DOUBLE, subject, style, "F32", mu=mu)
    assert stack_of(out, DOUBLE).rank == 3 * 3 + 2


@pytest.mark.parametrize("directions", [1, 2, 0.8])
@pytest.mark.parametrize("side", ["input", "output"])
def test_directions_and_side_are_those_of_each_part(tmp_path, directions, side):
    subject, style = made(12, rank=3), made(13, rank=3)
    style.up[:] *= np.array([4.0, 2.0, 1.0], np.float32)
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module})
        for role, module in (("c", subject), ("s", style))
    ]
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
    k = (
        directions
        if isinstance(directions, int)
        else next(i + 1 for i in range(s.size) if energy[i] >= directions * energy[-1])
    )
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
    s = write(
        tmp_path / "s.safetensors",
        suffixed_tensors({"single_blocks.3.processor.qkv_lora": style}, ".up.weight", ".down.weight"),
    )
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
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", {DOUBLE: module})
        for role, module in (("c", subject), ("s", style))
    ]
    out, _ = fuse(tmp_path, *paths, subject_strength=w_c, style_strength=w_s)
    require_fused(out, DOUBLE, subject, style, "F32", mu=0.5, subject_strength=w_c, style_strength=w_s)
    alpha = read(out)[0][f"{kohya(DOUBLE)}.alpha"]
    assert alpha.dtype == np.float32
    assert alpha > 0
