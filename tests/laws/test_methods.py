"""Laws of every method, through files: over methods, kinds and formats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.tables import CELLS, content, flattened
from laws.test_files import output, saved, spelt
from making import make
from nplora import methods
from nplora.checking.verify import verify
from nplora.methods import Merge, Method, find_method, known_methods

METHODS = list(known_methods())
MERGES = [name for name, method in known_methods().items() if isinstance(method, Merge)]
# Under which options one adapter gives itself back; {} where it always does, None where the definition says otherwise.
GIVES_BACK: dict[str, dict[str, object] | None] = {
    "linear": {}, "svd": {}, "tsv": {}, "lego": {}, "do-merging": {}, "np-adaptive": {}, "np-bilateral": {},
    "pico": {}, "peft-linear": {}, "kohya-add": {}, "kohya-concat": {}, "ties": {"density": 1}, "dare": {"density": 1},
    "magnitude": {"density": 1}, "knots": {"inner": "linear"}, "core-space": {"inner": "linear"},
    "breadcrumbs": None, "della": None, "iso-c": None, "iso-cts": None, "peft-ties": None,
}  # fmt: skip
SQUARED = ("kohya-add", "kohya-concat")  # what these programs do with a strength
MODULES = {"m.x.y": (24, 40), "m.x.z": (16, 8, 3, 3), "m.x.w": (20, 12)}
# Kinds in one format, and one kind in every format; XLabs' modules are large.
SOME = [(format, kind) for format, kind in CELLS if format == "kohya" or (kind == "linear" and format != "xlabs")]
QUICK = ["np", "linear", "np-spectral", "svd", "tsv", "np-bilateral", "kohya-concat"]


EVERY = [(*cell, method) for cell in SOME for method in (METHODS if cell[0] == "kohya" else QUICK)]


def pair(folder: Path, **options: object) -> tuple[nplora.Adapter, nplora.Adapter]:
    given = {"naming": "plain", "modules": MODULES, "rank": 4, "dtype": "F32", **options}
    one, two = (
        nplora.load(make(folder / f"{name}.safetensors", seed=seed, **given)) for seed, name in ((1, "cat"), (2, "ink"))
    )
    return one, two


def test_the_table_knows_every_method() -> None:
    assert set(GIVES_BACK) == {name for name in METHODS if find_method(name).least == 1}


@pytest.mark.parametrize("method", [name for name, options in GIVES_BACK.items() if options is not None])
@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
def test_one_adapter_gives_itself_back_times_its_strength(method: str, strength: float, tmp_path: Path) -> None:
    cat, _ = pair(tmp_path)
    options = GIVES_BACK[method]
    assert options is not None
    nplora.fuse(cat, method=method, subject_strength=strength, **options).save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    acts_as = strength**2 if method in SQUARED else strength
    for name in cat:
        assert np.linalg.norm(back[name].delta() - acts_as * cat[name].delta()) < 1e-6 * np.linalg.norm(
            cat[name].delta()
        )
    assert verify(tmp_path / "out.safetensors").passed


@pytest.mark.parametrize("method", [name for name, options in GIVES_BACK.items() if options is None])
def test_where_the_definition_changes_one_adapter_a_strength_still_scales(method: str, tmp_path: Path) -> None:
    cat, _ = pair(tmp_path)
    whole, half = (nplora.fuse(cat, method=method, subject_strength=strength) for strength in (1.0, 0.5))
    for name in cat:
        np.testing.assert_allclose(half[name].delta(), 0.5 * whole[name].delta(), atol=1e-12)
        assert np.linalg.norm(whole[name].delta() - cat[name].delta()) > 0.01 * np.linalg.norm(cat[name].delta())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_what_is_written_is_what_was_computed_and_verify_finds_it_right(
    method: str, dtype: str, tmp_path: Path
) -> None:
    fusion = nplora.fuse(*pair(tmp_path, dtype=dtype), method=method, subject_strength=0.8)
    fusion.save(tmp_path / "out.safetensors")
    back = nplora.load(tmp_path / "out.safetensors")
    for name in fusion:
        wanted = fusion[name].delta()
        assert np.linalg.norm(back[name].delta() - wanted) < (2e-3 if dtype == "F16" else 1e-6) * np.linalg.norm(wanted)
    result = verify(tmp_path / "out.safetensors")
    assert result.passed, result.sentence
    assert result.bound < (5e-3 if dtype == "F16" else 1e-5)
    assert not verify(tmp_path / "out.safetensors", subject_strength=0.7).passed


@pytest.mark.parametrize("method", METHODS)
def test_a_module_does_not_depend_on_those_beside_it(method: str, tmp_path: Path) -> None:
    whole = nplora.fuse(*pair(tmp_path), method=method)
    turned = dict(reversed(MODULES.items()))
    del turned["m.x.z"]
    (tmp_path / "few").mkdir()
    few = nplora.fuse(*pair(tmp_path / "few", modules=turned), method=method)
    for name in few:
        np.testing.assert_array_equal(few[name].delta(), whole[name].delta())


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_write_the_same_numbers(method: str, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        nplora.fuse(*pair(tmp_path), method=method).save(tmp_path / f"{name}.safetensors")
        file = nplora.load(tmp_path / f"{name}.safetensors").file
        contents.append({key: tensor.read().tobytes() for key, tensor in file.tensors.items()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("method", MERGES)
def test_modules_of_one_adapter_alone_pass_as_the_method_has_it(method: str, tmp_path: Path) -> None:
    """Beside a partner that lacks the module, an adapter is treated as it is alone."""
    cat, _ = pair(tmp_path)
    few = {"m.x.y": MODULES["m.x.y"]}
    ink = nplora.load(make(tmp_path / "few.safetensors", "plain", few, rank=4, seed=2, dtype="F32"))
    both, alone = nplora.fuse(cat, ink, method=method), nplora.fuse(cat, method=method)
    for name in ("unknown.m.x.z", "unknown.m.x.w"):
        np.testing.assert_array_equal(both[name].delta(), alone[name].delta())


@pytest.mark.parametrize(("format", "kind", "method"), EVERY, ids=[", ".join(cell) for cell in EVERY])
def test_every_kind_in_every_format(format: str, kind: str, method: str, tmp_path: Path) -> None:
    """What the method makes of the adapters' dense meaning is what the file holds; whole matrices pass or are refused."""
    one, two = content(format, kind, "F32", 0), content(format, kind, "F32", 1)
    cat, ink = (nplora.load(saved(tmp_path, format, made, name)) for made, name in ((one, "cat"), (two, "ink")))
    options = {"directions": 0.9} if one.full and method == "np" else {}
    if one.full and method not in ("np", "linear"):
        with pytest.raises(
            nplora.InputError, match="works on low-rank factors, and this module is stored as a full matrix"
        ):
            nplora.fuse(cat, ink, method=method)
        return
    fusion = nplora.fuse(cat, ink, method=method, style_strength=0.5, **options)
    path = output(tmp_path, format)
    fusion.save(path)
    back = {spelt(name): module for name, module in nplora.load(path).items()}
    assert set(back) == {spelt(name) for name in one.deltas}
    for name, delta in one.deltas.items():
        size = np.linalg.norm(delta) + 0.5 * np.linalg.norm(two.deltas[name])
        found = flattened(back[spelt(name)].delta())
        wanted = flattened(fusion[next(n for n in fusion if spelt(n) == spelt(name))].delta())
        assert np.linalg.norm(found - wanted) < 1e-5 * size
        if method in ("linear", "svd"):
            assert np.linalg.norm(wanted - delta - 0.5 * two.deltas[name]) < 1e-5 * size
    result = verify(path)
    assert result.passed, result.sentence


def test_no_two_methods_share_a_name() -> None:
    found = [method for method in methods._found() if isinstance(method, Method | Merge)]
    names = [method.name for method in {id(method): method for method in found}.values()]
    names += [alias for method in known_methods().values() for alias in getattr(method, "aliases", ())]
    assert sorted(names) == sorted(set(names))


def test_np_imports_no_other_method() -> None:
    """Other methods are loaded when they are asked for: each has a file of its own name."""
    code = (
        "import sys, nplora.methods as m; m.find_method('np'); m.find_method('svd');"
        "print(sorted(name.rpartition('.')[2] for name in sys.modules if name.startswith('nplora.methods.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['np', 'svd']"
