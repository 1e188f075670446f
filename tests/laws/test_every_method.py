"""What every method takes: any number of adapters, any ranks, convolutions, kinds on their base; and how little room."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws import based
from laws.based import LINEAR, put, put_base
from laws.test_based_fusions import put_plain
from making import make
from nplora.checking.verify import verify
from nplora.methods import Merge, Part, all_merges, find_method, known_methods

METHODS = list(known_methods())
EQUAL_RANKS = ("peft-linear", "peft-ties", "kohya-add")
STREAMED = ("ties", "dare", "della", "breadcrumbs", "magnitude")  # look at every entry of dW, a block at a time
MODULES = {"m.x.y": (24, 40), "m.x.z": (16, 8, 3, 3)}


def options(method: str) -> dict[str, object]:
    """Such that a method has something to do."""
    return {"mu": 1.0} if any(parameter.name == "mu" for parameter in find_method(method).parameters) else {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_adapters_of_any_ranks(method: str, count: int, tmp_path: Path) -> None:
    """Linear layers and 3x3 convolutions; the incumbents that add factors refuse unequal ranks."""
    adapters = [
        nplora.load(make(tmp_path / f"{seed}.safetensors", "plain", MODULES, rank=1 + seed, seed=seed, dtype="F32"))
        for seed in range(count)
    ]
    out = tmp_path / "out.safetensors"
    if method in EQUAL_RANKS:
        with pytest.raises(nplora.InputError, match=f"{method} adds factors, which must have one rank"):
            nplora.fuse(*adapters, method=method).save(out)
        return
    nplora.fuse(*adapters, method=method, **options(method)).save(out)
    found = nplora.load(out)
    ranks = sum(range(1, count + 1))
    for name, module in found.items():
        assert module.update.rank <= ranks
        assert np.isfinite(module.delta()).all()
        assert module.delta().shape == MODULES[name.removeprefix("unknown.")]
        assert np.any(module.delta())
    assert verify(out).passed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["GLoRA", "DoRA by output"])
def test_a_kind_that_has_low_rank_factors_on_its_base_is_fused_as_the_lora_it_is(
    kind: str, method: str, tmp_path: Path
) -> None:
    """GLoRA with the base, DoRA's direction with its magnitude ignored: as if they had been converted before."""
    made = based.module(kind, LINEAR)
    known: dict[str, object] = {"dora": "ignore"} if kind.startswith("DoRA") else {}
    if not known:
        known["base"] = put_base(tmp_path / "base.safetensors")
    first = nplora.load(put(tmp_path / "a.safetensors", LINEAR, made))
    nplora.convert(first, tmp_path / "lora.safetensors", dtype="fp32", **known)
    second = nplora.load(put_plain(tmp_path / "b.safetensors"))
    if method in EQUAL_RANKS and kind == "GLoRA":  # of twice the rank
        with pytest.raises(nplora.InputError, match="must have one rank"):
            nplora.fuse(first, second, method=method, **known).save(tmp_path / "out.safetensors")
        return
    name = f"unet.{LINEAR}"
    found = nplora.fuse(first, second, method=method, **known)[name].delta()
    wanted = nplora.fuse(nplora.load(tmp_path / "lora.safetensors"), second, method=method)[name].delta()
    assert np.linalg.norm(found - wanted) < 2e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", all_merges())
def test_nothing_of_the_weight_s_size_is_kept(method: str) -> None:
    """Two updates of a weight of 100 million entries, 800 MB in float64; of 4 million where every entry is looked at."""
    side = 2000 if method in STREAMED else 10_000
    rng = np.random.default_rng(1)
    parts = [Part(rng.standard_normal((side, 2)), rng.standard_normal((2, side))) for _ in range(2)]
    merge = all_merges()[method]
    assert isinstance(merge, Merge)
    tracemalloc.start()
    merge(parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < side * side * 8 / (2 if method in STREAMED else 16)
