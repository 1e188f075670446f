"""Any merge through files: the numbers it makes are those of the file, whatever the naming and the number of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import nplora
from fusing import changed
from making import CONVOLUTIONS, SD15, TEXT, make
from nplora import methods
from nplora.checking.verify import verify
from nplora.errors import InputError
from nplora.methods import Merge, Part, Product

NAME = next(iter(SD15))
EXTRA = {"tucker": list(CONVOLUTIONS)[:1]}


def noisy(parts: Sequence[Part], *, seed: int = 0, share: float = 0.5) -> Product:
    """Keep a random share of each adapter's ranks: seeded, low-rank, and easy to compute by hand."""
    rng = np.random.default_rng(seed)
    ups, downs, lost = [], [], 0.0
    for part in parts:
        keep = rng.random(part.up.shape[1]) < share
        ups.append(part.weight * part.up[:, keep])
        downs.append(part.down[keep])
        lost += float(np.linalg.norm(part.weight * part.up[:, ~keep] @ part.down[~keep]) ** 2)
    return Product(np.concatenate(ups, axis=1), np.concatenate(downs), lost**0.5)


SHARE = methods.Parameter("share", "number", 0.5, "Share of the ranks.", low=0.0, high=1.0)
NOISY = Merge("noisy", "Noisy sum", "a test", "sum of some ranks", "nothing", (SHARE,), noisy)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.all_merges(), "noisy", NOISY)


def files(folder: Path, count: int, dtype: str = "F16") -> list[nplora.Adapter]:
    """Adapters of different namings, ranks and modules."""
    sets = [{**SD15, **CONVOLUTIONS}, {**SD15, **TEXT}, {name: shape for name, shape in SD15.items() if name != NAME}]
    norms = {"unet.down_blocks.0.resnets.0.norm1": 320}
    return [
        nplora.load(
            make(
                folder / f"{seed}.safetensors",
                ("kohya", "diffusers")[seed % 2],
                sets[seed % 3],
                seed=seed,
                rank=3 + seed,
                dtype=dtype,
                alpha=(2.0, None)[seed % 2],
                norms=norms if seed == 0 else None,
            )
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("format", "dtype"), [("auto", "same"), ("kohya", "fp16"), ("diffusers", "fp32"), ("peft", "bf16")]
)
def test_what_a_merge_makes_is_what_the_file_holds(count: int, format: str, dtype: str, tmp_path: Path) -> None:
    adapters = files(tmp_path, count)
    components = "unet" if format == "peft" else None  # a PEFT folder holds one
    fusion = nplora.fuse(*adapters, method="noisy", share=0.7, seed=3, components=components)
    out = tmp_path / ("out" if format == "peft" else "out.safetensors")
    report = fusion.save(out, format=format, dtype=dtype)
    back = nplora.load(out)
    assert set(back) == set(fusion)
    assert components or set(back) == {name for adapter in adapters for name in adapter}
    for name in back:
        found, wanted = back[name].delta(), fusion[name].delta()
        assert np.linalg.norm(found - wanted) <= 6e-3 * np.linalg.norm(wanted)
    assert report["method"] == "noisy"
    assert {row["module"] for row in report["merges"]} == set(back)
    result = verify(out)
    assert result.passed, result.sentence
    assert not verify(out, share=0.2).passed
    assert not verify(out, seed=4).passed


def test_the_file_does_not_depend_on_names_or_the_order_of_modules(tmp_path: Path) -> None:
    one, two = files(tmp_path, 2)
    first = nplora.fuse(one, two, method="noisy", seed=1)
    few = make(tmp_path / "few.safetensors", "kohya", {NAME: SD15[NAME]}, seed=0, rank=3, alpha=2.0)
    alone = nplora.fuse(nplora.load(few), two, method="noisy", seed=1)
    np.testing.assert_array_equal(first[NAME].delta(), alone[NAME].delta())
    assert np.any(first[NAME].delta() != nplora.fuse(one, two, method="noisy", seed=2)[NAME].delta())


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    adapters = files(tmp_path, 3)
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path in paths:
        nplora.fuse(*adapters, method="noisy").save(path, format="kohya")
    one, two = (nplora.load(path) for path in paths)
    assert all(
        one.file.tensors[key].read().tobytes() == two.file.tensors[key].read().tobytes() for key in one.file.tensors
    )


def test_the_report_says_what_is_left_of_each_adapter(tmp_path: Path) -> None:
    adapters = files(tmp_path, 3)
    report = nplora.fuse(*adapters, method="noisy", share=1.0).report()
    assert report["kept"] == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})
    assert (report["distance_to_sum"], report["error"], report["foreign"]) == (0.0, 0.0, 0.0)
    assert report["sentence"] == (
        "Noisy sum: the result holds a at 1.00, b at 1.00 and c at 1.00 of their strengths, and equals the plain sum."
    )
    pair = nplora.fuse(*adapters[:2], method="noisy", share=0.5).report()
    assert 0 < pair["kept"]["subject"] < 1
    assert 0 < pair["error"] < 1
    assert "overlap, chance is" in pair["sentence"]
    assert pair["regime"] == "unrelated"


def test_a_lone_adapter_that_a_merge_leaves_alone_is_copied_byte_for_byte(tmp_path: Path) -> None:
    (one,) = files(tmp_path, 1)
    nplora.fuse(one, method="noisy", share=1.0).save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    for key, tensor in one.file.tensors.items():
        if not key.endswith(".alpha"):
            assert back.file.tensors[key].read().tobytes() == tensor.read().tobytes()


def test_a_full_matrix_passes_alone_and_is_refused_in_company(tmp_path: Path) -> None:
    full = nplora.load(make(tmp_path / "full.safetensors", seed=1, full=[NAME]))
    other = nplora.load(make(tmp_path / "other.safetensors", modules={**TEXT, **dict(list(SD15.items())[1:])}, seed=2))
    fusion = nplora.fuse(full, other, method="noisy", subject_strength=0.5)
    fusion.save(tmp_path / "out.safetensors")
    np.testing.assert_allclose(
        nplora.load(tmp_path / "out.safetensors")[NAME].delta(), 0.5 * full[NAME].delta(), rtol=1e-3, atol=1e-7
    )
    assert verify(tmp_path / "out.safetensors").passed
    both = nplora.load(make(tmp_path / "both.safetensors", seed=2))
    with pytest.raises(
        InputError, match="the method noisy works on low-rank factors, and this module is stored as a full"
    ):
        nplora.fuse(full, both, method="noisy")


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bad = make(tmp_path / "bad.safetensors", seed=1, size=float("inf"))
    with pytest.raises(InputError, match="values are NaN or infinite"):
        nplora.fuse(nplora.load(bad), method="noisy").save(tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", sorted(methods.all_merges()))
def test_when_allowed_a_module_that_is_not_finite_is_added_and_noted(name: str, order: int, tmp_path: Path) -> None:
    """No method can work there; all other modules are merged as they would be without it."""
    few = {"m.x.y": (24, 40), "m.x.z": (20, 12)}
    good, other = (make(tmp_path / f"{n}.safetensors", "plain", few, seed=n, rank=3, dtype="F32") for n in (1, 2))
    bad = make(tmp_path / "bad.safetensors", "plain", few, seed=1, rank=3, dtype="F32")
    changed(bad, lambda arrays: arrays["m.x.y.lora_A.weight"].__setitem__((0, 0), np.nan))
    clean, broken = ([nplora.load(one), nplora.load(other)] for one in (good, bad))
    if order:
        clean, broken = clean[::-1], broken[::-1]
    with pytest.raises(InputError, match="1 values are NaN or infinite"):
        nplora.fuse(*broken, method=name).save(tmp_path / "out.safetensors")
    report = nplora.fuse(*broken, method=name, allow_nonfinite=True).save(tmp_path / "out.safetensors")
    nplora.fuse(*clean, method=name).save(tmp_path / "wanted.safetensors")
    found, wanted = (nplora.load(tmp_path / f"{n}.safetensors") for n in ("out", "wanted"))
    np.testing.assert_array_equal(found["unknown.m.x.z"].delta(), wanted["unknown.m.x.z"].delta())
    assert not np.isfinite(found["unknown.m.x.y"].delta()).all()
    note = "values are not finite, so the method cannot work and the updates are added: unknown.m.x.y"
    assert note in report["notes"]
    assert "nan" not in str({**report, "notes": [], "modules": [], "overlaps": [], "inputs": []})


def test_np_adaptive_reports_its_mu_and_where_the_floor_overrules_the_budget(tmp_path: Path) -> None:
    one = make(tmp_path / "one.safetensors", seed=1, rank=4, down_seed=3, dtype="F32")
    two = make(tmp_path / "two.safetensors", seed=2, rank=4, down_seed=3, dtype="F32")
    pair = [nplora.load(one), nplora.load(two)]
    report = nplora.fuse(*pair, method="np-adaptive", kappa=0.1, eta=0.5).save(tmp_path / "a.safetensors")
    assert all(row["mu"] == pytest.approx(2**0.5 - 1, rel=1e-3) for row in report["merges"])
    assert report["notes"][0].startswith("eta keeps more than kappa allows: unet.")
    assert report["notes"][0].endswith(f" and {len(SD15) - 2} more")
    free = nplora.fuse(*pair, method="np-adaptive", kappa=0.1).save(tmp_path / "b.safetensors")
    assert free["notes"] == []
    assert all(row["mu"] > 5 for row in free["merges"])


@pytest.mark.parametrize("method", ["np", "np-spectral", "linear"])
def test_a_report_speaks_of_the_modules_that_are_finite(method: str, tmp_path: Path) -> None:
    bad = make(tmp_path / "bad.safetensors", seed=1, rank=3, dtype="F32")
    changed(bad, lambda arrays: next(iter(arrays.values())).__setitem__((0, 0), np.inf))
    pair = [nplora.load(bad), nplora.load(make(tmp_path / "good.safetensors", seed=2, rank=3, dtype="F32"))]
    report = nplora.fuse(*pair, method=method, allow_nonfinite=True).save(tmp_path / "out.safetensors")
    assert "nan" not in report["sentence"]
    assert 0 <= report["rho"] <= 1
    assert report["regime"] == "unrelated"
