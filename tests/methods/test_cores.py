"""Merges on small cores and in batches: what they declare holds, and files come out as module by module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplora
from making import make
from methods.updates import EXACT, dense, distance, part, run, several
from nplora.algebra.polar import polar, polar_root
from nplora.checking.verify import verify
from nplora.fusion.cores import merge_cores
from nplora.fusion.merging import merge_module
from nplora.methods import Part, all_merges

CORES = [name for name, method in all_merges().items() if method.cores]
BATCHES = [name for name, method in all_merges().items() if method.batches]
MODULES = {f"m.x.{letter}": (48, 64) for letter in "abcd"} | {"m.x.conv": (40, 8, 3, 3), "m.x.low": (9, 40)}


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


@pytest.mark.parametrize("name", CORES)
@given(parts=several(), seed=st.integers(0, 99))
def test_what_runs_on_cores_follows_every_change_of_basis(name, parts, seed):
    rng = np.random.default_rng(seed)
    out, width = parts[0].up.shape[0], parts[0].down.shape[1]
    Q, P = orthonormal(rng, out + 5, out), orthonormal(rng, width + 3, width)
    turned = [Part(Q @ one.up, one.down @ P.T, one.weight, one.scale) for one in parts]
    wanted = Q @ dense(run(name, parts)) @ P.T
    assert distance(dense(run(name, turned)), wanted, parts) < 1e-6


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_its_modules_one_by_one(name, rank):
    rng = np.random.default_rng(7)
    modules = [[part(rng, 14, 17, rank, weight) for rank, weight in ((3, 1.0), (4, -0.5))] for _ in range(5)]
    stack = [
        Part(np.stack([one.up for one in same]), np.stack([one.down for one in same]), same[0].weight)
        for same in zip(*modules, strict=True)
    ]
    found = run(name, stack, rank=rank)
    for index, parts in enumerate(modules):
        alone = run(name, parts, rank=rank)
        assert found.up[index].shape == alone.up.shape
        assert distance(found.up[index] @ found.down[index], dense(alone)) < EXACT
        assert np.isclose(np.broadcast_to(found.error, 5)[index], alone.error, atol=1e-12)


def test_methods_that_look_at_entries_or_sizes_or_cut_equal_singular_values_do_not_run_on_cores():
    assert not {"ties", "dare", "della", "breadcrumbs", "magnitude", "knots", "lego", "np-adaptive", "iso-cts"} & set(
        CORES
    )
    assert {"svd", "tsv", "iso-c"} <= set(BATCHES) <= set(CORES)


def pair(folder: Path, **options: object) -> tuple[nplora.Adapter, nplora.Adapter]:
    given = {"naming": "plain", "modules": MODULES, "rank": 4, "alpha": 3.0, **options}
    one, two = (
        nplora.load(make(folder / f"{name}.safetensors", seed=seed, **given)) for seed, name in ((1, "cat"), (2, "ink"))
    )
    return one, two


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("name", CORES)
def test_on_cores_and_alone_a_module_comes_out_the_same(name, dtype, tmp_path):
    cat, ink = pair(tmp_path, dtype=dtype)
    fusion = nplora.fuse(cat, ink, method=name, subject_strength=0.7)
    batch = [module for module in fusion.values() if module.update.size == (48, 64)]
    cores = merge_cores(batch)
    assert cores is not None
    for module, core in zip(batch, cores, strict=True):
        alone = merge_module(module)
        up, down = (matrix.read().astype(float) for matrix in core.factors)
        wanted = alone.factors[0] @ alone.factors[1]
        assert np.linalg.norm(up @ down - wanted) < 1e-6 * np.linalg.norm(wanted)
        np.testing.assert_allclose(
            core.measure.gram, alone.measure.gram, rtol=1e-9, atol=1e-9 * alone.measure.gram.max()
        )
        assert np.isclose(core.measure.error, alone.measure.error)
        lengths = np.linalg.norm(up, axis=0) / np.linalg.norm(down, axis=1)
        assert (lengths > 0.49).all()
        assert (lengths < 2.01).all()


@pytest.mark.parametrize("dtype", ["same", "fp32", "bf16"])
@pytest.mark.parametrize("name", CORES)
def test_a_file_made_on_cores_is_verified_module_by_module(name, dtype, tmp_path):
    cat, ink = pair(tmp_path, dtype="F16")
    fusion = nplora.fuse(cat, ink, method=name, style_strength=1.3)
    report = fusion.save(tmp_path / "out.safetensors", dtype=dtype)
    assert verify(tmp_path / "out.safetensors").passed
    plain = nplora.fuse(cat, ink, method="linear", style_strength=1.3).report()
    for found, wanted in zip(report["overlaps"], plain["overlaps"], strict=True):
        assert found["module"] == wanted["module"]
        assert found["rho"] == pytest.approx(wanted["rho"], rel=1e-4)


def test_what_is_not_certified_goes_alone_and_comes_out_right(tmp_path):
    cat, _ = pair(tmp_path, dtype="F32")
    same = nplora.fuse(cat, cat, method="svd")  # factors side by side are dependent
    batch = [module for module in same.values() if module.update.size == (48, 64)]
    assert merge_cores(batch) is None
    same.save(tmp_path / "twice.safetensors")
    assert verify(tmp_path / "twice.safetensors").passed
    assert all(row["rank"] == 4 for row in nplora.fuse(cat, cat, method="svd").report()["merges"])
    wide = pair(tmp_path, dtype="F64")
    assert merge_cores(list(nplora.fuse(*wide, method="svd").values())[:1]) is None


@given(st.integers(0, 99), st.floats(0.0, 1.0))
def test_the_polar_factor_is_that_of_an_svd(seed, overlap):
    rng = np.random.default_rng(seed)
    F = orthonormal(rng, 20, 6)
    F = np.concatenate([F[:, :3], overlap * F[:, :3] + np.sqrt(1 - overlap**2) * F[:, 3:]], axis=1)
    U, s, Vt = np.linalg.svd(F, full_matrices=False)
    live = s > 1e-6 * s[0]
    assert np.linalg.norm(polar(F) - U[:, live] @ Vt[live]) < 1e-7
    root = polar_root(np.stack([np.eye(6), F.T @ F]))
    assert np.linalg.norm(root[0] - np.eye(6)) < 1e-12
