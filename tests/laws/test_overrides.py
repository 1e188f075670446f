"""Parameters in parts of the model: an override everywhere is the plain parameter; on a part it is two fusions cut."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplora
from fusing import changed
from laws import flux
from making import PLAIN, SD15, TEXT, make
from nplora.checking.verify import verify
from nplora.errors import UsageError
from nplora.fusion.options import options_of
from nplora.fusion.overrides import Overrides, read_overrides
from nplora.fusion.selectors import selects
from nplora.methods import Method, find_method, known_methods
from nplora.parameters import OVERRIDES, Parameter
from nplora.storage import TensorFile

ALONE = "model.layers.7.ff.net.2"  # a module of the first adapter alone
PART, MEANT = "*.layers.1.*", "unknown.model.layers.1.self_attn.q_proj"


def files(folder: Path, count: int = 2, dtype: str = "F32") -> list[nplora.Adapter]:
    found = []
    for seed, name in zip(range(count), ("cat", "ink", "fog"), strict=False):
        modules = PLAIN if seed else {**PLAIN, ALONE: (32, 48)}
        path = make(folder / f"{name}.safetensors", "plain", modules, seed=seed, rank=4, alpha=2.0, dtype=dtype)
        found.append(nplora.load(path))
    return found


def tensors(path: Path) -> dict[str, bytes]:
    return {key: tensor.read().tobytes() for key, tensor in TensorFile(path).tensors.items()}


# ------------------------------------------------------------------------------------------ the laws, for all of them


@dataclass(frozen=True)
class Case:
    method: str
    parameter: str
    value: object
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.parameter}={self.value}"


VALUES: dict[str, object] = {
    "mu": inf, "directions": 2, "calibrate": inf, "kappa": 0.1, "eta": 0.9, "chance": True, "rank": 2, "density": 0.6,
    "scaling": 2.0, "outliers": 0.2, "epsilon": 0.05, "common": 0.5,
}  # fmt: skip
BESIDE: dict[str, tuple[str, object]] = {  # what gives a parameter something to do
    "calibrate": ("mu", 2.0), "election": ("variant", "ties"), "agreeing": ("variant", "ties"), "eta": ("kappa", 0.01),
    "chance": ("kappa", 0.01),
}  # fmt: skip
ALSO: dict[tuple[str, str], tuple[tuple[str, object], ...]] = {("pico", "density"): (("inner", "ties"),)}


def in_parts(method: str) -> dict[str, Parameter]:
    """The parameters of a method that may be others in parts of the model, those of every method aside."""
    return {parameter.name: parameter for parameter in find_method(method).options if not parameter.whole}


def case_of(method: str, parameter: Parameter) -> Case:
    value = VALUES.get(parameter.name) or next(c for c in parameter.choices if c != parameter.default)
    beside = (BESIDE.get(parameter.name, ("", None)), *ALSO.get((method, parameter.name), ()))
    return Case(method, parameter.name, value, tuple(one for one in beside if one[0] in in_parts(method)))


CASES = [
    *(case_of(method, parameter) for method in known_methods() for parameter in in_parts(method).values()),
    Case("np", "rank", 3), Case("np", "energy", 0.7), Case("np", "error", 0.4), Case("ties", "energy", 0.7),
    Case("np", "keep_style", True, (("rank", 5),)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everywhere_it_is_the_plain_parameter_and_on_a_part_two_fusions_cut_together(
    case: Case, tmp_path: Path
) -> None:
    adapters = files(tmp_path, 2 if case.parameter == "keep_style" else 3)
    asked: dict[str, dict[str, Any]] = {
        "without": {},
        "plain": {case.parameter: case.value},
        "everywhere": {"overrides": {case.parameter: case.value}},
        "cut": {"overrides": {case.parameter: {PART: case.value}}},
    }
    made = {}
    for name, options in asked.items():
        fusion = nplora.fuse(*adapters, method=case.method, **dict(case.options) | options)
        made[name] = tmp_path / f"{name}.safetensors"
        fusion.save(made[name])
    without, plain, everywhere, cut = (tensors(made[name]) for name in asked)
    assert everywhere == plain
    assert cut == {key: (plain if fnmatchcase(key, PART) else without)[key] for key in cut}
    meant = [key for key in cut if fnmatchcase(key, PART)]
    assert any(plain[key] != without[key] for key in meant), "the value changes nothing: choose another"
    assert verify(made["everywhere"]).passed
    assert verify(made["cut"]).passed
    assert not verify(made["cut"], overrides={case.parameter: {"*.layers.0.*": case.value}}).passed


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_three_adapters_in_half_precision(dtype: str, tmp_path: Path) -> None:
    adapters = files(tmp_path, 3, dtype)
    rules = {"mu": {PART: inf}, "calibrate": {"*.layers.2.*": 1.5}}
    fusion = nplora.fuse(*adapters, mu=0.5, overrides=rules, protect="c > b = a")
    plain = nplora.fuse(*adapters, mu=0.5, protect="c > b = a")
    hard = nplora.fuse(*adapters, mu=inf, protect="c > b = a")
    np.testing.assert_array_equal(fusion[MEANT].delta(), hard[MEANT].delta())
    np.testing.assert_array_equal(fusion[MEANT.replace("1", "0")].delta(), plain[MEANT.replace("1", "0")].delta())
    fusion.save(tmp_path / "out.safetensors")
    assert verify(tmp_path / "out.safetensors").passed


def test_a_count_and_a_share_that_are_one_number_are_not_computed_together(tmp_path: Path) -> None:
    """``directions=1`` is the first direction, ``directions=1.0`` all of the energy, and 1 == 1.0."""
    cat, ink = files(tmp_path)
    fusion = nplora.fuse(cat, ink, mu=inf, overrides=["directions@*.layers.0.*=1", "directions@*.layers.1.*=1.0"])
    assert fusion.parameters["overrides"] == ("directions@*.layers.0.*=1", "directions@*.layers.1.*=1.0")
    out = tmp_path / "out.safetensors"
    report = fusion.save(out)
    assert [row["protected"] for row in report["overlaps"]] == [1, 4, 4]
    assert verify(out).passed


def test_a_wrong_number_in_the_part_is_found(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    nplora.fuse(*files(tmp_path), overrides={"mu": {PART: inf}}).save(out)

    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays[f"{MEANT.removeprefix('unknown.')}.lora_A.weight"][0] *= 1.01

    changed(out, spoil)
    found = verify(out)
    assert [check.name for check in found.checks if not check.passed] == [MEANT]


# ------------------------------------------------------------------------------------------ fused projections


@pytest.mark.parametrize("rule", ["mu@*.to_q=inf", "side@*.to_q=output", "directions@*.to_q=1", "mu@*=2"])
def test_parts_of_one_tensor_with_parameters_of_their_own(rule: str, tmp_path: Path) -> None:
    """q, k and v of FLUX.1 share a down factor: what is computed once for all of them must hold for all of them."""
    cat, ink = (
        nplora.load(flux.kohya_file(tmp_path / f"{name}.safetensors", {flux.DOUBLE: flux.made(seed)}))
        for seed, name in ((1, "cat"), (7, "ink"))
    )
    place, _, value = rule.partition("=")
    name, _, where = place.partition("@")
    fusion = nplora.fuse(cat, ink, overrides=rule)
    assert len(fusion.jobs) == (1 if where == "*" else 3)
    made = {}
    for file, options in (("cut", {"overrides": rule}), ("plain", {}), ("other", {name: value})):
        nplora.fuse(cat, ink, **options).save(tmp_path / f"{file}.safetensors")
        made[file] = nplora.load(tmp_path / f"{file}.safetensors")
    for module in fusion:
        wanted = made["other" if where == "*" or module.endswith("to_q") else "plain"][module]
        exact = probed(wanted)
        assert np.linalg.norm(probed(made["cut"][module]) - exact) < 1e-6 * np.linalg.norm(exact)
    assert verify(tmp_path / "cut.safetensors").passed


def probed(module: Any) -> np.ndarray:
    """What a low-rank module makes of one random input."""
    update, x = module.update, np.random.default_rng(0).standard_normal(flux.WIDTH)
    return np.asarray(update.scale * update.up.read() @ (update.down.read() @ x))


def test_a_full_matrix_meets_its_own_mu(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", "kohya", SD15, seed=0, full=list(SD15)[:2], dtype="F32")
    make(tmp_path / "ink.safetensors", "kohya", SD15, seed=1, dtype="F32")
    cat, ink = (nplora.load(tmp_path / f"{name}.safetensors") for name in ("cat", "ink"))
    first, second = list(SD15)[:2]
    fusion = nplora.fuse(cat, ink, mu=1, overrides={"mu": {first: inf}})
    np.testing.assert_array_equal(fusion[first].delta(), nplora.fuse(cat, ink, mu=inf)[first].delta())
    np.testing.assert_array_equal(fusion[second].delta(), nplora.fuse(cat, ink, mu=1)[second].delta())
    fusion.save(tmp_path / "out.safetensors")
    assert verify(tmp_path / "out.safetensors").passed


# ------------------------------------------------------------------------------------------ conversion


def test_a_conversion_is_compressed_in_parts(tmp_path: Path) -> None:
    (cat,) = files(tmp_path, 1)
    out = tmp_path / "out.safetensors"
    nplora.convert(cat, out, overrides="rank@*.layers.1.*=1, energy@mlp=0.5")
    ranks = {name: module.update.rank for name, module in nplora.load(out).modules.items()}
    assert ranks[MEANT] == 1
    assert ranks["unknown." + ALONE] < 4
    assert ranks[MEANT.replace("1", "0")] == 4
    assert verify(out).passed
    assert not verify(out, overrides="rank@*.layers.1.*=2").passed


# ------------------------------------------------------------------------------------------ what a report says


def text_of(report: dict[str, Any]) -> str:
    return str(report["sentence"])


def test_the_sentence_names_the_parts_and_its_numbers_are_those_of_all_modules(tmp_path: Path) -> None:
    make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1, dtype="F32")
    make(tmp_path / "ink.safetensors", modules={**SD15, **TEXT}, seed=2, down_seed=1, dtype="F32")
    cat, ink = (nplora.load(tmp_path / f"{name}.safetensors") for name in ("cat", "ink"))
    fusion = nplora.fuse(cat, ink, mu=1, overrides="mu@text=0, mu@mlp=inf, calibrate@attention=1.5")
    report = fusion.save(tmp_path / "out.safetensors")
    left = whole = 0.0
    for name, module in cat.items():
        size = float(np.linalg.norm(module.delta())) ** 2
        left += size * (1.0 if name.startswith("text") else 0.0 if ".ff." in name else 0.75**2)
        whole += size
    assert text_of(report) == (
        f"Shared initialisation (100 % overlap): mu = 1, 0 in text, inf in mlp is a strength of its own in each part, and "
        f"keeps {100 * (left / whole) ** 0.5:.0f} % of the subject's norm; strengths for parts of the model (--strength) "
        "give the same by plain addition."
    )
    assert report["overrides"] == [
        {"parameter": "mu", "where": "text", "value": 0.0, "modules": 1},
        {"parameter": "mu", "where": "mlp", "value": "inf", "modules": 1},
        {"parameter": "calibrate", "where": "attention", "value": 1.5, "modules": 4},
    ]
    changed_by = report["subject_change"]
    assert abs(changed_by**2 * whole - sum(
        float(np.linalg.norm(m.delta())) ** 2 * (0 if n.startswith("text") else 1 if ".ff." in n else 0.25)
        for n, m in cat.items()
    )) < 1e-4 * whole  # fmt: skip


def test_unrelated_and_mixed_pairs(tmp_path: Path) -> None:
    cat, _ = files(tmp_path)
    twin = make(
        tmp_path / "twin.safetensors", "plain", {n: PLAIN[n] for n in list(PLAIN)[:2]}, seed=5, down_seed=0, rank=2
    )
    report = nplora.fuse(cat, nplora.load(twin), mu=0, overrides={"mu": {PART: inf}}).report()
    assert text_of(report).startswith("Mixed (")
    assert ": mu = 0, inf in *.layers.1.* keeps " in text_of(report)
    assert text_of(report).endswith(" of the subject's norm; it acts most in model.layers.1.self_attn.q_proj.")
    make(tmp_path / "a.safetensors", modules=SD15, seed=1)
    make(tmp_path / "b.safetensors", modules=SD15, seed=2)
    report = nplora.fuse(
        nplora.load(tmp_path / "a.safetensors"), nplora.load(tmp_path / "b.safetensors"), overrides="mu@*=2"
    ).report()
    assert ": mu = 2 changes the subject by " in text_of(report)


def test_a_module_that_holds_nan_is_in_no_number(tmp_path: Path) -> None:
    cat, ink = files(tmp_path)
    rules = {"mu": {PART: inf}}
    good = nplora.fuse(cat, ink, overrides=rules).report()

    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays[f"{MEANT.removeprefix('unknown.')}.lora_A.weight"][0, 0] = np.nan

    changed(tmp_path / "cat.safetensors", spoil)
    spoiled = nplora.load(tmp_path / "cat.safetensors")
    report = nplora.fuse(spoiled, ink, overrides=rules, allow_nonfinite=True).report()
    numbers = [report["subject_change"], report["matched_addition_strength"]]
    assert np.isfinite(numbers).all()
    assert numbers != [good["subject_change"], good["matched_addition_strength"]]
    assert "nan" not in text_of(report)


def test_other_methods_name_the_parts_too(tmp_path: Path) -> None:
    cat, ink = files(tmp_path)
    report = nplora.fuse(cat, ink, method="ties", overrides={"density": {PART: 0.5}}).report()
    assert text_of(report).startswith("TIES-Merging (density = 0.2, 0.5 in *.layers.1.*): the result holds ")
    report = nplora.fuse(cat, ink, method="np-spectral", overrides={"mu": {PART: 2}}).report()
    assert " (mu = 0.5, 2 in *.layers.1.*). " in text_of(report)


# ------------------------------------------------------------------------------------------ how rules are read

SAME = [
    "mu@up=2, rank@attention=8",
    ["mu@up=2", "rank@attention=8"],
    {"mu": {"up": 2}, "rank": {"attention": 8}},
    {"mu@up": 2, "rank@attention": 8},
    [{"where": "up", "mu": 2}, {"where": "attention", "rank": 8}],
    ["mu @ up = 2.0", {"where": "attention", "rank": "8"}],
]
OPTIONS = options_of(find_method("np"))


@pytest.mark.parametrize("value", SAME)
def test_one_rule_has_many_spellings(value: object) -> None:
    assert read_overrides(OVERRIDES.check(value), OPTIONS).texts == ("mu@up=2.0", "rank@attention=8")


WORDS = st.sampled_from(["up", "down", "mid", "attention", "unet", "*", "*.attn1.*", "up_blocks.1", "unet.mid_block"])
NAMES = [
    "unet.up_blocks.1.attentions.0.attn1.to_q", "unet.down_blocks.0.resnets.0.conv1", "text_encoder.layers.0.mlp.fc1",
    "unet.mid_block.attentions.0.attn2.to_v",
]  # fmt: skip
RULES = st.lists(
    st.one_of(
        st.tuples(st.just("mu"), WORDS, st.floats(0, allow_nan=False)),
        st.tuples(st.just("directions"), WORDS, st.one_of(st.just("all"), st.integers(1, 99), st.floats(1e-9, 1.0))),
        st.tuples(st.just("side"), WORDS, st.sampled_from(["input", "output"])),
        st.tuples(st.just("rank"), WORDS, st.integers(1, 10**6)),
        st.tuples(st.just("keep_style"), WORDS, st.booleans()),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(rules=RULES)
def test_the_first_rule_about_a_parameter_that_means_a_module_decides(rules: list[tuple[str, str, object]]) -> None:
    found = read_overrides(OVERRIDES.check([{"where": where, name: value} for name, where, value in rules]), OPTIONS)
    assert [(rule.parameter, rule.where, rule.value) for rule in found.rules] == rules
    for module in NAMES:
        wanted: dict[str, object] = {}
        for name, where, value in rules:
            if selects(where, module):
                wanted.setdefault(name, value)
        assert found.at(module) == wanted
        assert all(type(value) is type(wanted[name]) for name, value in found.at(module).items())


@given(rules=RULES)
def test_the_texts_say_the_rules(rules: list[tuple[str, str, object]]) -> None:
    """What a header holds is read back as it was, and again from one line."""
    found = read_overrides(OVERRIDES.check([{"where": where, name: value} for name, where, value in rules]), OPTIONS)
    again = read_overrides(OVERRIDES.check(list(found.texts)), OPTIONS)
    line = read_overrides(OVERRIDES.check(",".join(found.texts)), OPTIONS)
    assert again == line == found
    assert again.texts == found.texts == line.texts


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("mu@up=1"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["where", "mu"]), inner),
    )
)
def test_whatever_is_given_is_rules_or_an_error_of_the_family(value: object) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(read_overrides(OVERRIDES.check(value), OPTIONS), Overrides)


def test_words_for_yes_and_no_and_hyphens() -> None:
    texts = ("keep-style@up=yes", "keep_style@mid=true", "keep-style@down=off")
    assert read_overrides(OVERRIDES.check(texts), OPTIONS).texts == (
        "keep_style@up=yes", "keep_style@mid=yes", "keep_style@down=no",
    )  # fmt: skip


def test_many_rules_are_counted_in_a_sentence() -> None:
    found = read_overrides(OVERRIDES.check("mu@up=2,mu@mid=1,mu@down=0,mu@text=3,mu@mlp=inf"), OPTIONS)
    assert found.told("mu", 0.5) == "0.5, 2 in up, 1 in mid, others in 3 more places"


# ------------------------------------------------------------------------------------------ what makes no sense

MU = "How strongly the style's directions are protected: 0 is plain addition, inf the hard projection."
FITTING = "mu, directions, side, calibrate, rank, energy, error, keep_style"
GLOB = 'A module\'s name, its beginning, or a glob such as "*.attn1.*" will do as well.'
SHAPE = (
    "overrides is out of range: expected PARAMETER@WHERE=VALUE, or several with commas between them, such as "
    "mu@up=2,rank@down=8, got {}. Parameters in parts of the model, such as mu@up=2 or rank@attention=8; the first that "
    "means a module counts."
)
WRONG = {
    "mu@upp=2": f"mu@upp: no module is called upp: expected one of attention, mlp, unknown. {GLOB}",
    "mu@*=1,mu@mlp=2": (
        "mu@mlp: this is never reached: earlier ones decide about all that it means: got 2.0. The first that means a module "
        "counts: put the general ones last."
    ),
    "mu@mlp=1,mu@mlp=1": (
        "mu@mlp: this is never reached: earlier ones decide about all that it means: got 1.0. The first that means a module "
        "counts: put the general ones last."
    ),
    "mu@mlp=-1": f"mu@mlp: mu is out of range: expected a number from 0 to inf, got '-1'. {MU}",
    "keep_style@mlp=maybe": (
        "keep_style@mlp: keep_style is out of range: expected yes or no, got 'maybe'. Compress only what lies outside the "
        "style's input directions, whose response stays as it is."
    ),
    "mue@mlp=1": f"mue@mlp: this fusion has no parameter mue: expected one of {FITTING}. Did you mean mu?",
    "density@mlp=1": f"density@mlp: this fusion has no parameter density: expected one of {FITTING}.",
    "protect@mlp=2>1": "protect@mlp: protect holds for the whole file. Give it without a place: --protect.",
    "device@mlp=cpu": "device@mlp: device holds for the whole file. Give it without a place: --device.",
    "style_strength@mlp=1": (
        "style_strength@mlp: style_strength holds for the whole file. Strengths in parts of the model have rules of their "
        "own: --strength style@up=0."
    ),
    "energy@mlp=0.5,error@unknown=0.5": (
        f"unknown.{ALONE}: --energy and --error say the same in two ways. Give one of them."
    ),
    "keep_style@mlp=yes": "--keep-style says how to compress, but not how far. Add --rank, --energy or --error.",
    "mu@mlp": SHAPE.format("'mu@mlp'"),
    "=1": SHAPE.format("'=1'"),
}  # fmt: skip


@pytest.mark.parametrize("rules", WRONG)
def test_rules_that_make_no_sense(rules: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*files(tmp_path), overrides=rules)
    assert str(caught.value) == WRONG[rules]


def test_a_seed_is_the_whole_file_s(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*files(tmp_path), method="dare", overrides="seed@mlp=1")
    assert str(caught.value) == "seed@mlp: seed holds for the whole file. Give it without a place: --seed."


@pytest.mark.parametrize(
    "value", [{}, [], "", 3, {"mu": {}}, [{"where": "up"}, 3], {"where": "", "mu": 1}, {"where": 3, "mu": 1},
              {"where": "up", "mu": [1, 2]}, {"mu": {"*[a,b]*": 1}}, {"mu": {"up": None}}]
)  # fmt: skip
def test_values_that_are_no_overrides(value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="overrides is out of range"):
        nplora.fuse(*files(tmp_path), overrides=value)


def test_projections_without_overrides_run_in_the_batches_that_they_always_did(tmp_path: Path) -> None:
    fusion = nplora.fuse(*files(tmp_path))
    assert isinstance(fusion.method, Method)
    assert {job.setting for job in fusion.jobs} == {("input",)}
