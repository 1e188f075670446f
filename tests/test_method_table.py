"""`compare_methods`: the numbers are those of the dense updates, and the words say which methods came to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nplora
from making import make
from nplora.analysis.method_table import compare_methods
from nplora.errors import UsageError

MODULES = {"m.x.y": (24, 40), "m.x.z": (40, 16, 3, 3), "m.x.w": (20, 32)}
FAST = ["np", "linear", "np-spectral", "svd", "tsv", "ties", "peft-linear"]


def files(folder: Path, count: int = 2, **options: object) -> list[nplora.Adapter]:
    given = {"naming": "plain", "modules": MODULES, "dtype": "F32", "rank": 3, **options}
    names = ("cat", "ink", "fog")[:count]
    return [nplora.load(make(folder / f"{name}.safetensors", seed=seed, **given)) for seed, name in enumerate(names)]


def flat(delta: np.ndarray) -> np.ndarray:
    return delta.reshape(delta.shape[0], -1)


@pytest.mark.parametrize("method", FAST)
def test_measures_are_those_of_the_dense_updates(method: str, tmp_path: Path) -> None:
    cat, ink = files(tmp_path)
    options = {"mu": "inf"} if method.startswith("np") else {"rank": 4} if method in ("svd", "ties") else {}
    options["style_strength"] = 0.5
    (row,) = compare_methods(cat, ink, methods=[method], **options)["methods"]
    fusion = nplora.fuse(cat, ink, method=method, **options)
    away = total = leaked = style = norm = 0.0
    for name in fusion:
        made, subject, own = (flat(d) for d in (fusion[name].delta(), cat[name].delta(), 0.5 * ink[name].delta()))
        V = np.linalg.svd(own)[2][:3].T
        away += np.linalg.norm(made - subject - own) ** 2
        total += np.linalg.norm(subject + own) ** 2
        leaked += np.linalg.norm((made - own) @ V) ** 2
        style += np.linalg.norm(own) ** 2
        norm += np.linalg.norm(made) ** 2
    assert row["distance"] == pytest.approx(np.sqrt(away / total), abs=1e-6)
    assert row["leakage"] == pytest.approx(np.sqrt(leaked / style), abs=1e-5)
    assert row["norm"] == pytest.approx(np.sqrt(norm), rel=1e-6)
    assert row["sum_norm"] == pytest.approx(np.sqrt(total), rel=1e-6)


def test_the_plain_sum_keeps_everything_and_the_hard_projection_leaks_nothing(tmp_path: Path) -> None:
    rows = {
        row["method"]: row for row in compare_methods(*files(tmp_path), methods=["np", "linear"], mu="inf")["methods"]
    }
    assert rows["linear"]["kept"] == pytest.approx({"subject": 1.0, "style": 1.0})
    assert (rows["linear"]["distance"], rows["linear"]["foreign"]) == (0.0, 0.0)
    sizes = [sum(np.linalg.norm(module.delta()) ** 2 for module in one.values()) for one in files(tmp_path)]
    parts = {role: size / rows["linear"]["norm"] ** 2 for role, size in zip(("subject", "style"), sizes, strict=True)}
    assert rows["linear"]["energies"] == pytest.approx(parts, rel=1e-6)
    assert rows["np"]["leakage"] < 1e-6
    assert rows["linear"]["leakage"] > 0.01
    assert rows["linear"]["rank"] == 6
    assert rows["linear"]["bytes"] == sum(4 * 6 * (out + np.prod(rest, dtype=int)) for out, *rest in MODULES.values())


def test_with_one_initialisation_np_is_a_strength(tmp_path: Path) -> None:
    found = compare_methods(*files(tmp_path, down_seed=9), methods=["np", "linear", "svd"], mu=1)
    rows = {row["method"]: row for row in found["methods"]}
    assert rows["np"]["kept"] == pytest.approx({"subject": 0.5, "style": 1.0}, abs=1e-4)
    assert found["same"] == [["linear", "svd"]]
    why, same = found["sentences"]
    assert why == (
        "Shared initialisation (100 % overlap): all lie in the same input directions; what protects them all alike is "
        "only a strength."
    )
    assert same == "linear and svd give the plain sum here, within 5 %."


def test_unrelated_adapters_leave_nothing_to_protect(tmp_path: Path) -> None:
    found = compare_methods(
        *files(tmp_path, modules={"m.x.y": (24, 2000)}), methods=["np", "np-spectral", "linear", "svd", "peft-linear"]
    )
    assert found["regime"] == "unrelated"
    assert found["same"] == [["np", "np-spectral", "linear", "svd"]]
    assert found["sentences"][1] == "np, np-spectral, linear and svd give the plain sum here, within 5 %."
    assert found["sentences"][2].startswith("A large part of the result is in none of the adapters with peft-linear (")


def test_three_adapters(tmp_path: Path) -> None:
    found = compare_methods(
        *files(tmp_path, 3), methods=["np", "linear", "tsv"], strengths="fog=0.5", protect="a > b > c"
    )
    assert [list(row["kept"]) for row in found["methods"]] == [["a", "b", "c"]] * 3
    assert found["methods"][1]["distance"] == 0


def test_a_method_that_cannot_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    cat = nplora.load(make(tmp_path / "cat.safetensors", "plain", MODULES, seed=0, rank=3))
    ink = nplora.load(make(tmp_path / "ink.safetensors", "plain", MODULES, seed=1, rank=5))
    rows = {row["method"]: row for row in compare_methods(cat, ink, methods=["peft-linear", "linear"])["methods"]}
    assert "rank" in rows["peft-linear"]["not_possible"]
    assert rows["linear"]["rank"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["magic"]}, "no method is called magic"),
        ({"methods": ["np", "linear"], "density": 0.5}, "none of the methods has an option density"),
        ({"methods": ["np"], "mu": -1}, "none of the methods can fuse these adapters"),
    ],
)
def test_what_makes_no_sense(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compare_methods(*files(tmp_path), **options)
    with pytest.raises(UsageError, match="there is nothing to compare"):
        compare_methods(files(tmp_path)[0])


def test_overrides_go_to_the_methods_that_have_their_parameter(tmp_path: Path) -> None:
    adapters, rules = files(tmp_path), "mu@m.x.y=inf, density@m.x.w=1, rank@m.x.z=1"
    rows = {
        row["method"]: row
        for row in compare_methods(*adapters, methods=["np", "ties", "linear"], overrides=rules)["methods"]
    }
    own = {"np": "mu@m.x.y=inf, rank@m.x.z=1", "ties": "density@m.x.w=1, rank@m.x.z=1", "linear": "rank@m.x.z=1"}
    for method, fitting in own.items():
        fusion = nplora.fuse(*adapters, method=method, overrides=fitting)
        (alone,) = compare_methods(*adapters, methods=[method], overrides=fitting)["methods"]
        assert rows[method]["norm"] == alone["norm"]
        assert len(fusion.overrides.rules) == fitting.count("=")
    with pytest.raises(UsageError, match="none of the methods has an option kappa"):
        compare_methods(*adapters, methods=["np", "ties"], overrides="kappa@*=1")


def test_of_three_in_different_positions_each_overlap_is_told(tmp_path: Path) -> None:
    """Two of one initialisation and a stranger: not all lie in the same input directions."""
    one = nplora.load(make(tmp_path / "a.safetensors", "plain", MODULES, rank=3, seed=1, down_seed=9, dtype="F32"))
    two = nplora.load(make(tmp_path / "b.safetensors", "plain", MODULES, rank=3, seed=2, down_seed=9, dtype="F32"))
    stranger = nplora.load(make(tmp_path / "c.safetensors", "plain", MODULES, rank=3, seed=3, dtype="F32"))
    sentence = compare_methods(one, two, stranger, methods=["linear", "svd"])["sentences"][0]
    assert sentence.startswith("Of each adapter in the input directions of those after it: a 100 %, b ")
    assert sentence.endswith(" %. Methods differ where that is much.")
    twins = compare_methods(one, two, one, methods=["linear"])["sentences"][0]
    assert twins.startswith("Shared initialisation (100 % overlap): all lie in the same input directions")
