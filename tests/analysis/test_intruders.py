"""Intruder dimensions by their definition, and as PEFT counts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplora
from making import CONVOLUTIONS, SD15, TEXT, key_stem, make, numbers, tensors, write
from nplora.analysis.frames import leading_of
from nplora.analysis.intruders import against_parts, compare_with_base, find_intruders, likeness
from nplora.errors import InputError
from nplora.reading.base import BaseModel


def weight(seed: int, out: int, n: int) -> np.ndarray:
    """A weight with a falling spectrum, as trained ones have, and none of its directions lost in rounding."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, min(out, n))))[0] for size in (out, n))
    return U * np.exp(-6.0 * np.arange(min(out, n)) / min(out, n)) @ V.T


def by_definition(W_0: np.ndarray, W: np.ndarray, k: int) -> np.ndarray:
    U_0, _, Vt_0 = np.linalg.svd(W_0, full_matrices=False)  # the smaller side is complete
    U, _, Vt = np.linalg.svd(W, full_matrices=False)
    side = (U_0, U) if W_0.shape[0] <= W_0.shape[1] else (Vt_0.T, Vt.T)
    return np.abs(side[0].T @ side[1][:, :k]).max(axis=0)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_it_is_the_definition(out: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    W_0 = weight(seed, out, n)
    W = W_0 + 0.5 * np.outer(rng.standard_normal(out), rng.standard_normal(n)) / np.sqrt(out * n)
    found = likeness(W_0, W)
    assert np.allclose(found.cosines, by_definition(W_0, W, 10)[: len(found.cosines)], atol=1e-6)
    assert np.allclose(found.values, np.linalg.svd(W, compute_uv=False)[: len(found.values)], atol=1e-7)


@pytest.mark.parametrize("factor", [1.0, 3.0, -2.0])
def test_the_base_itself_at_any_size_has_none(factor: float) -> None:
    W_0 = weight(1, 60, 80)
    found = likeness(W_0, factor * W_0)
    assert found.intruders() == 0
    assert np.allclose(found.cosines, 1.0)


@pytest.mark.parametrize(("size", "there"), [(0.5, False), (1.0, True), (3.0, True)])
def test_a_planted_direction_is_found_once_it_leads(size: float, there: bool) -> None:
    rng = np.random.default_rng(2)
    W_0 = weight(2, 128, 128)
    u, v = (x / np.linalg.norm(x) for x in rng.standard_normal((2, 128)))
    found = likeness(W_0, W_0 + size * np.outer(u, v), leading=1)
    assert (found.intruders() == 1) is there


def test_turning_the_space_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    W_0, dW = weight(3, 30, 50), 0.3 * rng.standard_normal((30, 2)) @ rng.standard_normal((2, 50))
    Q, P = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (30, 50))
    one, two = likeness(W_0, W_0 + dW), likeness(Q @ W_0 @ P, Q @ (W_0 + dW) @ P)
    assert np.allclose(one.cosines, two.cosines, atol=1e-6)
    assert one.energy() == pytest.approx(two.energy())


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    """The weights of a few modules, as a checkpoint of the original names stores them, among others."""
    names = {**SD15, **CONVOLUTIONS}
    arrays = {f"{name.removeprefix('unet.')}.weight": weight_of(name, shape) for name, shape in names.items()}
    return BaseModel(write(tmp_path / "model.safetensors", arrays | {"unrelated.weight": np.ones(3, np.float32)}))


def weight_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    flat = weight(len(name), shape[0], int(np.prod(shape[1:])))
    return flat.reshape(shape).astype(np.float32)


def test_an_adapter_against_its_base(base: BaseModel, tmp_path: Path) -> None:
    modules = {**SD15, **CONVOLUTIONS}
    adapter = nplora.load(make(tmp_path / "cat.safetensors", modules={**modules, **TEXT}, seed=1, size=3.0))
    found = find_intruders(adapter, base)
    assert json.dumps(found, allow_nan=False)
    assert found["missing"] == list(TEXT)
    assert found["of"] == 10 * len(modules)
    for row in found["modules"]:
        W_0 = weight_of(row["module"], modules[row["module"]]).astype(np.float64)
        W_0 = W_0.reshape(len(W_0), -1)
        W = W_0 + adapter[row["module"]].delta().reshape(W_0.shape)
        assert row["cosines"] == pytest.approx(by_definition(W_0, W, 10), abs=2e-4)
        assert row["intruders"] == sum(cosine < 0.5 for cosine in row["cosines"])
    assert found["intruders"] == sum(row["intruders"] for row in found["modules"]) > 0
    assert found["sentence"].startswith(f"{found['intruders']} of the 60 leading directions are intruders, with ")


def test_a_weaker_adapter_has_fewer_and_a_zero_one_none(base: BaseModel, tmp_path: Path) -> None:
    counts = []
    for size in (0.0, 0.3, 3.0):
        adapter = nplora.load(make(tmp_path / f"{size}.safetensors", seed=1, size=size))
        counts.append(find_intruders(adapter, base)["intruders"])
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > 0
    zero = find_intruders(nplora.load(tmp_path / "0.0.safetensors"), base)
    assert zero["sentence"].startswith("No intruders: ")


def test_a_fused_adapter_beside_its_parts(base: BaseModel, tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{name}.safetensors", seed=seed, size=2.0) for name, seed in (("cat", 1), ("ink", 2))]
    nplora.fuse(*map(nplora.load, paths)).save(tmp_path / "out.safetensors")
    found = [find_intruders(nplora.load(path), base) for path in (*paths, tmp_path / "out.safetensors")]
    rows = against_parts(found)
    assert [row["module"] for row in rows] == [row["module"] for row in found[0]["modules"]]
    assert all(len(row["intruders"]) == 3 for row in rows)
    assert sum(row["intruders"][2] for row in rows) == found[2]["intruders"]


def test_another_model_is_refused(base: BaseModel, tmp_path: Path) -> None:
    write(tmp_path / "small.safetensors", {f"{next(iter(SD15))[5:]}.weight": np.ones((8, 8), np.float32)})
    adapter = nplora.load(make(tmp_path / "cat.safetensors", seed=1))
    with pytest.raises(InputError, match=r"another shape.*expected 320x320, got 8x8"):
        find_intruders(adapter, BaseModel(tmp_path / "small.safetensors"))
    write(tmp_path / "other.safetensors", {"x.weight": numbers(1, "x", (3, 3))})
    with pytest.raises(InputError, match="holds none of the adapter's modules"):
        find_intruders(adapter, BaseModel(tmp_path / "other.safetensors"))


def test_several_at_once_are_what_each_is_alone(base: BaseModel, tmp_path: Path) -> None:
    modules = {**SD15, **CONVOLUTIONS}
    paths = [make(tmp_path / f"{seed}.safetensors", modules=modules, seed=seed, rank=8 * seed) for seed in (1, 2)]
    write(tmp_path / "wrong.safetensors", {f"{key}.lora_{side}.weight": np.ones(shape, np.float32)
                                           for key in ("lora_unet_conv_in",) for side, shape in
                                           (("up", (3, 1)), ("down", (1, 3)))})  # fmt: skip
    paths.append(tmp_path / "wrong.safetensors")
    adapters = [nplora.load(path) for path in paths]
    found = compare_with_base(adapters, base)
    assert [found[index] for index in (0, 1)] == [find_intruders(adapter, base) for adapter in adapters[:2]]
    assert isinstance(found[2], InputError)  # it does not keep the others from being told
    assert found[0]["at"]["0.5"] == found[0]["intruders"]
    assert list(found[0]["at"].values()) == sorted(found[0]["at"].values())


def test_dora_is_compared_by_its_exact_update(base: BaseModel, tmp_path: Path) -> None:
    arrays = tensors(modules=SD15, seed=1, dtype="F32")
    for name, shape in SD15.items():
        arrays[f"{key_stem(name, 'kohya')}.dora_scale"] = 0.1 + np.abs(numbers(1, name, (shape[0], 1))).astype(
            np.float32
        )
    adapter = nplora.load(write(tmp_path / "dora.safetensors", arrays))
    exact = nplora.expand(adapter, base)
    found = find_intruders(adapter, base)
    assert found["missing"] == []
    for row in found["modules"]:
        W_0 = weight_of(row["module"], SD15[row["module"]]).astype(np.float64)
        W = W_0 + exact[row["module"]].update.delta()
        assert row["cosines"] == pytest.approx(by_definition(W_0, W, 10), abs=2e-4)


def test_a_base_that_stores_its_weights_transposed(tmp_path: Path) -> None:
    W_0 = weight(5, 24, 40)
    names = {"transformer.h.0.attn.c_attn": (24, 40)}
    folder = make(tmp_path / "peft", "peft", {f"x.{name}": shape for name, shape in names.items()}, seed=1, rank=2)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    model = BaseModel(write(tmp_path / "gpt2.safetensors", {"transformer.h.0.attn.c_attn.weight": W_0.T.copy()}))
    adapter = nplora.load(folder)
    (row,) = find_intruders(adapter, model)["modules"]
    (module,) = adapter.values()
    assert row["cosines"] == pytest.approx(by_definition(W_0, W_0 + module.update.delta(), 10), abs=2e-4)


@given(st.integers(60, 120), st.integers(1, 6), st.integers(0, 100))
def test_lanczos_finds_what_the_whole_matrix_holds(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    diagonal, P = np.sort(rng.random(n)) ** 4, rng.standard_normal((n, k)) / 4
    S = rng.standard_normal((k, k))
    values, vectors = leading_of(diagonal, P, S + S.T, 5)
    wanted, Y = np.linalg.eigh(np.diag(diagonal) + P @ (S + S.T) @ P.T)
    assert np.allclose(values, wanted[::-1][:5], atol=1e-9)
    assert np.allclose(np.abs(np.sum(vectors * Y[:, ::-1][:, :5], axis=0)), 1.0, atol=1e-6)


@pytest.mark.consumer
@pytest.mark.parametrize("size", [0.2, 1.0, 4.0])
def test_peft_counts_the_same(size: float) -> None:
    torch = pytest.importorskip("torch", reason="no torch: PEFT's count cannot be asked for")
    peft = pytest.importorskip("peft", reason="no PEFT to compare with")
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    W_0 = weight(7, 48, 64)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False))
    model[0].weight.data = torch.tensor(W_0, dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    layer = wrapped.base_model.model[0]
    rng = np.random.default_rng(8)
    B, A = size * rng.standard_normal((48, 4)) / 7, rng.standard_normal((4, 64)) / 8
    layer.lora_A["default"].weight.data = torch.tensor(A, dtype=torch.float32)
    layer.lora_B["default"].weight.data = torch.tensor(B, dtype=torch.float32)
    said: list[str] = []
    reduce_intruder_dimension(wrapped, logging_sink=said.append)
    line = next(line for line in said if "ntruders" in line)
    counted = 0 if "No intruders" in line else int(line.rpartition(" ")[2])
    assert likeness(W_0, W_0 + B @ A).intruders() == counted
