"""Three adapters and more: who gives way to whom, against dense projections."""

from __future__ import annotations

from itertools import permutations
from math import inf
from pathlib import Path

import numpy as np
import pytest

import nplora
from fusing import changed
from making import SD15, TEXT, make
from nplora.checking.verify import verify
from nplora.errors import UsageError

NAME = next(iter(SD15))
MODULES = {"m.x.y": (24, 40), "m.x.z": (40, 16, 3, 3), "m.x.w": (20, 12)}


def files(folder: Path, count: int = 3, modules: dict[str, tuple[int, ...]] = MODULES, **options: object) -> list[Path]:
    given = {"naming": "plain", "dtype": "F64", **options}
    return [
        make(folder / f"{name}.safetensors", modules=modules, seed=seed, rank=2 + seed, alpha=1.0 + seed, **given)
        for seed, name in zip(range(count), ("cat", "ink", "fog", "sun"), strict=False)
    ]


def flat(delta: np.ndarray) -> np.ndarray:
    return delta.reshape(delta.shape[0], -1)


def rows(*deltas: np.ndarray) -> np.ndarray:
    """An orthonormal basis (n, k) of the union of row spaces."""
    _, s, vt = np.linalg.svd(np.concatenate(deltas), full_matrices=False)
    return vt[s > 1e-10 * s[0]].T


def dense(deltas: list[np.ndarray], levels: list[int], mu: float) -> np.ndarray:
    g, total = 1.0 if mu == inf else mu / (1 + mu), np.zeros_like(deltas[0])
    for index, delta in enumerate(deltas):
        above = [d for i, d in enumerate(deltas) if i != index and levels[i] >= levels[index]]
        if above:
            V = rows(*above)
            total -= g * (delta @ V) @ V.T
        total += delta
    return total


ORDERS = {None: [0, 1, 2], "fog > ink > cat": [0, 1, 2], "cat > ink > fog": [2, 1, 0], "a = b = c": [0, 0, 0],
          "3 > 1 = 2": [0, 0, 1], "b=c > a": [0, 1, 1]}  # fmt: skip


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("mu", [0.0, 0.5, inf])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_gives_way_to_the_union_of_what_is_above_it(
    order: str | None, mu: float, side: str, tmp_path: Path
) -> None:
    adapters = [nplora.load(path) for path in files(tmp_path)]
    fusion = nplora.fuse(*adapters, protect=order, mu=mu, side=side)
    out = tmp_path / "out.safetensors"
    fusion.save(out)
    back = nplora.load(out)
    for name in fusion:
        deltas = [flat(adapter[name].delta()) for adapter in adapters]
        turned = [delta.T for delta in deltas] if side == "output" else deltas
        wanted = dense(turned, ORDERS[order], mu)
        size = sum(map(np.linalg.norm, deltas))
        for found in (flat(fusion[name].delta()), flat(back[name].delta())):
            assert np.linalg.norm((found.T if side == "output" else found) - wanted) < 1e-6 * size
    result = verify(out)
    assert result.passed, result.sentence


def test_the_most_protected_is_whole_and_copied(tmp_path: Path) -> None:
    adapters = [nplora.load(path) for path in files(tmp_path, dtype="F16", naming="kohya", modules=SD15)]
    nplora.fuse(*adapters, mu="inf").save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    top = adapters[-1]
    for name in back:
        V = rows(flat(top[name].delta()))
        wanted = flat(top[name].delta()) @ V
        assert np.linalg.norm(flat(back[name].delta()) @ V - wanted) < 3e-3 * np.linalg.norm(wanted)
    for key, tensor in top.file.tensors.items():
        if "lora_down" in key:
            rank = tensor.shape[0]
            assert back.file.tensors[key].read()[-rank:].tobytes() == tensor.read().tobytes()


@pytest.mark.parametrize("mu", [0.5, inf])
def test_equals_may_be_given_in_any_order(mu: float, tmp_path: Path) -> None:
    paths = files(tmp_path)
    found = [
        nplora.fuse(*map(nplora.load, order), protect="cat = ink = fog", mu=mu)["unknown.m.x.y"].delta()
        for order in permutations(paths)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-12)


@pytest.mark.parametrize("method", ["np", "np-spectral"])
def test_hard_each_is_silent_on_the_inputs_of_all_above_it(method: str, tmp_path: Path) -> None:
    """What an adapter adds, by fusing with and without it: ``X_j V_i = 0`` for all i above j."""
    adapters = [nplora.load(path) for path in files(tmp_path, 4)]
    for name in ("unknown.m.x.y", "unknown.m.x.z"):
        sums = [nplora.fuse(*adapters[j:], method=method, mu="inf")[name].delta() for j in range(3)]
        sums.append(adapters[3][name].delta())
        for j in range(3):
            X = flat(sums[j] - sums[j + 1])
            for above in adapters[j + 1 :]:
                V = rows(flat(above[name].delta()))
                assert np.linalg.norm(X @ V) < 1e-7 * np.linalg.norm(flat(adapters[j][name].delta()))


@pytest.mark.parametrize("mu", [0.5, inf])
def test_orthogonal_row_spaces_are_added_whatever_the_order(mu: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0].T
    paths, total = [], np.zeros((24, 40))
    for index in range(4):
        up, down = rng.standard_normal((24, 5)), basis[5 * index : 5 * index + 5]
        total += up @ down
        tensors = {"m.x.y.lora_B.weight": up, "m.x.y.lora_A.weight": np.ascontiguousarray(down)}
        paths.append(make(tmp_path / f"{index}.safetensors", modules={}, extra=tensors))
    for order in (None, "1 > 2 > 3 > 4", "1 = 2 = 3 = 4"):
        found = nplora.fuse(*map(nplora.load, paths), mu=mu, protect=order)["unknown.m.x.y"].delta()
        assert np.linalg.norm(found - total) < 1e-9 * np.linalg.norm(total)


def test_two_adapters_are_the_pair(tmp_path: Path) -> None:
    """The pair's own order may be said, and turned round."""
    cat, ink, _ = map(nplora.load, files(tmp_path))
    pair, said = nplora.fuse(cat, ink), nplora.fuse(cat, ink, protect="style > subject")
    turned = nplora.fuse(ink, cat, protect="ink > cat")
    for name in pair:
        np.testing.assert_array_equal(said[name].delta(), pair[name].delta())
        np.testing.assert_allclose(turned[name].delta(), pair[name].delta(), atol=1e-12)
    turned.save(tmp_path / "turned.safetensors")
    assert verify(tmp_path / "turned.safetensors").passed
    report = nplora.fuse(cat, ink, protect="cat = ink").save(tmp_path / "equal.safetensors")
    assert report["sentence"].startswith("subject: ")
    assert " style: " in report["sentence"]
    assert verify(tmp_path / "equal.safetensors").passed


def test_the_report_speaks_of_each(tmp_path: Path) -> None:
    paths = files(tmp_path, dtype="F16", naming="kohya", modules=SD15)
    report = nplora.fuse(*map(nplora.load, paths)).save(tmp_path / "out.safetensors")
    assert report["sentence"].startswith("a: Unrelated runs (")
    assert "; the result is nearly plain addition. b: Unrelated runs (" in report["sentence"]
    assert list(report["giving_way"]) == ["a", "b"]
    assert report["giving_way"]["a"]["chance"] > report["giving_way"]["b"]["chance"]
    assert report["modules"]["fused"] == 4
    assert list(report["modules"]["passed_through"]) == ["a", "b", "c"]
    assert report["notes"] == []


def test_directions_that_fill_the_space_are_noted(tmp_path: Path) -> None:
    few = {"m.x.w": (20, 12)}
    cat, ink = (nplora.load(make(tmp_path / f"{n}.safetensors", "plain", few, rank=8, seed=n)) for n in (1, 2))
    fog = nplora.load(make(tmp_path / "3.safetensors", "plain", few, rank=8, seed=3))
    assert nplora.fuse(cat, ink, fog).report()["notes"] == [
        "a gives way to directions that fill unknown.m.x.w: mu is only a strength there, and mu = inf deletes it"
    ]


def test_fused_projections_keep_one_factor(tmp_path: Path) -> None:
    """q, k, v of FLUX.1 in one tensor: three adapters with one down factor each are written with one down factor."""
    double = "transformer.transformer_blocks.0.attn."
    modules = {f"{double}{part}": (3072, 3072) for part in ("to_q", "to_k", "to_v")}
    paths = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        tensors = {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": rng.standard_normal((2, 3072)).astype(
                np.float16
            ),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": rng.standard_normal((9216, 2)).astype(np.float16),
        }
        path = tmp_path / f"{seed}.safetensors"
        make(path, modules={}, extra=tensors)
        paths.append(path)
    adapters = [nplora.load(path) for path in paths]
    assert set(adapters[0]) == set(modules)
    nplora.fuse(*adapters, mu=2).save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    assert back.file.tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 3072)
    assert verify(tmp_path / "out.safetensors").passed


def test_a_changed_output_is_found(tmp_path: Path) -> None:
    paths = files(tmp_path, naming="kohya", modules={**SD15, **TEXT}, dtype="F16")
    out = tmp_path / "out.safetensors"
    nplora.fuse(*map(nplora.load, paths), mu=1).save(out)
    assert verify(out).passed
    assert not verify(out, mu=2).passed
    assert not verify(out, protect="cat > ink > fog").passed
    key = next(key for key in nplora.load(out).file.tensors if "lora_down" in key)
    changed(out, lambda arrays: arrays.update({key: arrays[key] * np.float16(1.02)}))
    assert sum(not check.passed for check in verify(out).checks) == 1


WRONG = {
    "cat > ink": "protect must name every adapter once: expected c > b > a, got cat > ink. "
    "The first is the most protected; = gives two the same priority.",
    "cat > ink > fog > cat": "protect must name every adapter once: expected c > b > a, got cat > ink > fog > cat. "
    "The first is the most protected; = gives two the same priority.",
    "cat > ink > 4": "there is no adapter number 4: expected 1 to 3.",
    "cat > ink > tea": "no adapter is called tea: expected one of a (number 1, cat.safetensors), "
    "b (number 2, ink.safetensors), c (number 3, fog.safetensors). A number says which one without doubt.",
}


@pytest.mark.parametrize("order", WRONG)
def test_orders_that_make_no_sense(order: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*map(nplora.load, files(tmp_path)), protect=order)
    assert str(caught.value) == WRONG[order]


def test_a_letter_that_is_another_files_name_is_refused(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{name}.safetensors", "plain", MODULES, seed=1) for name in "bac"]
    with pytest.raises(UsageError, match="b means several adapters"):
        nplora.fuse(*map(nplora.load, paths), protect="c > b > a")
    out = tmp_path / "out.safetensors"
    nplora.fuse(*map(nplora.load, paths), protect="3 > 2 > 1").save(out)
    assert verify(out).passed
