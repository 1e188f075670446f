"""Every pair of ../shared/loras/PAIRS.md, fused to a file, read back, and compared with dense float64."""

from __future__ import annotations

from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.making import NAMES, Factors, allowed, g_of, read
from laws.tables import flattened
from nplora import InputError, UsageError
from real.originals import distance, norm, original, row_space, rows

LORAS = Path(__file__).parents[3] / "shared" / "loras"
TABLE = rows(LORAS) if (LORAS / "PAIRS.md").is_file() else []
POKEMON = "sd15-diffusers-attn-r4-style-pokemon.safetensors"
LICIA = "sd15-diffusers-attn-r4-subject-licia.safetensors"
HAMSTER = "sd15-diffusers-attn-r4-subject-hamster.safetensors"
ZERO = "sd15-diffusers-attn-r4-zero-up.safetensors"
GUITAR, DOUBLED = "sd15-diffusers-attn-r4-guitar.safetensors", "sd15-odd-doubled-prefix-r4-guitar.safetensors"
NARUTO = "sd2-diffusers-attn-r4-bf16-style-naruto.safetensors"
TEXT = "sd15-peft-textencoder-r8-style-anime"
LOKR = "sd15-lycoris-lokr-dim16.safetensors", "sd15-lycoris-lokr-dim4.safetensors"
REFUSED, APART = (LICIA, NARUTO), (TEXT, POKEMON)
FUSED = [row for row in TABLE if row[:2] not in (REFUSED, APART, LOKR)]

pytestmark = pytest.mark.usefixtures("loras")


def each(table):
    """A table of pairs as parameters; one skipped test with a reason where the folder is missing."""
    return pytest.mark.parametrize(
        "row", table or [None], ids=[f"{c[:40]} + {s[:40]}" for c, s, _ in table] or ["no folder"]
    )


def load(name: str):
    return nplora.load(LORAS / name)


def fuse(subject: str, style: str, place, *, format: str = "auto", **parameters):
    """The written path, the adapter read from it, and the report."""
    pair = load(subject), load(style)
    folder = format == "peft" or (format == "auto" and pair[0].format.name in ("peft", "mlx"))
    out = place / ("fused" if folder else "fused.safetensors")
    report = nplora.fuse(*pair, **parameters).save(out, format=format, overwrite=True)
    return out, nplora.load(out), report


def sources(name: str) -> dict[str, Factors]:
    """Canonical module -> what the file says of it, read without nplora."""
    modules = original(LORAS / name)
    return {module.name: modules[module.origin.module] for module in load(name).values()}


def sides(subject: str, style: str, fused) -> dict[str, tuple[Factors | None, Factors | None]]:
    one, two = sources(subject), sources(style)
    assert set(fused) == one.keys() | two.keys()
    return {name: (one.get(name), two.get(name)) for name in fused}


def wanted(c: Factors | None, s: Factors | None, mu: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The formula on one module, as products to be added up."""
    terms = [
        (module.scale * module.up.astype(np.float64), module.down.astype(np.float64)) for module in (s, c) if module
    ]
    if c is not None and s is not None:
        V = row_space(s)
        up, down = terms[1]
        terms[1] = up, down - g_of(mu) * (down @ V) @ V.T
    return terms


def require_exact(subject: str, style: str, fused, mu: float) -> None:
    """All modules by their factors, and every sixteenth on dense matrices."""
    for index, (name, (c, s)) in enumerate(sides(subject, style, fused).items()):
        present = [(module, 1.0) for module in (c, s) if module is not None]
        types = {NAMES[module.up.dtype] for module, _ in present}
        dtype = types.pop() if len(types) == 1 else "F32"
        bound = allowed(present, dtype, 2.0**-22 if dtype == "F32" else 2.0**-15)
        update, terms = fused[name].update, wanted(c, s, mu)
        assert distance(update.scale * update.up.read().astype(np.float64), update.down.read(), terms) <= bound, name
        if index % 16 == 0:
            dense = sum(up @ down for up, down in terms)
            assert np.linalg.norm(flattened(fused[name].delta()) - dense) <= bound, name


def apart(module, wanted: Factors) -> float:
    """How far a module is from another update, relatively; 0 to float64's rounding counts as 0."""
    update = module.update
    found = distance(
        update.scale * update.up.read().astype(np.float64),
        update.down.read(),
        [(wanted.scale * wanted.up, wanted.down)],
    )
    return 0.0 if found <= 1e-14 * wanted.size else found / wanted.size


def overlap(subject: str, style: str) -> tuple[float, float]:
    """rho of the pair by its definition, and what chance would give: k/n, weighted by energy."""
    one, two = sources(subject), sources(style)
    inside = energy = chance = 0.0
    for name in one.keys() & two.keys():
        c, s = one[name], two[name]
        own = c.scale**2 * norm(c.up, c.down) ** 2
        if s.up.any():
            V = row_space(s)
            inside += c.scale**2 * norm(c.up, c.down.astype(np.float64) @ V) ** 2
            chance += V.shape[1] / V.shape[0] * own
        energy += own
    return inside / energy, chance / energy


# ------------------------------------------------------------------------------------------ every row


def test_the_table_is_read_whole(loras):
    assert len(TABLE) == 21
    assert {REFUSED, APART, LOKR} <= {row[:2] for row in TABLE}


@each(FUSED)
@pytest.mark.parametrize("mu", [0.5, inf])
def test_a_pair_is_fused_exactly(tmp_path, row, mu):
    subject, style, (theirs, others, common, *_) = row
    _, fused, report = fuse(subject, style, tmp_path, mu=mu)
    assert report["modules"]["fused"] == common
    assert report["modules"]["passed_through"] == {"subject": theirs - common, "style": others - common}
    assert report["left_out"] == {}
    assert report["keys"]["read"] == report["keys"]["used"] + report["keys"]["copied"]
    require_exact(subject, style, fused, mu)


@each([row for row in FUSED if row[0] != ZERO])
def test_the_overlap_is_the_one_of_the_definition_and_the_sentence_says_what_it_means(row):
    subject, style, _ = row
    report = nplora.fuse(load(subject), load(style)).report()
    if style == ZERO:
        assert (report["regime"], report["rho"]) == ("none", 0.0)
        return
    rho, chance = overlap(subject, style)
    assert report["rho"] == pytest.approx(rho, rel=1e-3, abs=1e-6)
    assert report["chance"] == pytest.approx(chance, rel=1e-3)
    assert report["subject_change"] == pytest.approx(sqrt(rho) / 3, rel=1e-3, abs=1e-5)
    words = {"shared": "Shared initialisation (", "unrelated": "Unrelated runs (", "mixed": "Mixed ("}
    assert report["sentence"].startswith(words[report["regime"]])


# ------------------------------------------------------------------------------------------ regimes


@pytest.mark.parametrize(("subject", "style"), [(LICIA, POKEMON), (POKEMON, LICIA), (GUITAR, DOUBLED)])
def test_files_of_one_seed_overlap_fully_and_mu_is_a_strength(subject, style):
    report = nplora.fuse(load(subject), load(style)).report()
    assert report["regime"] == "shared"
    assert report["rho"] > 0.98
    assert report["sentence"] == (
        f"Shared initialisation ({100 * report['rho']:.0f} % overlap): mu = 0.5 acts as subject strength 0.67; plain addition at "
        "that strength gives the same."
    )
    assert "deletes the subject" in nplora.fuse(load(subject), load(style), mu=inf).report()["sentence"]


@pytest.mark.parametrize(
    ("subject", "style"), [(HAMSTER, POKEMON), (LICIA, "sd15-processor-attn-r4-style-rickmorty.safetensors")]
)
def test_files_of_different_seeds_overlap_by_chance_and_mu_does_next_to_nothing(subject, style):
    report = nplora.fuse(load(subject), load(style)).report()
    assert report["regime"] == "unrelated"
    assert report["rho"] == pytest.approx(report["chance"], rel=0.25)
    assert report["chance"] == pytest.approx(0.0041, rel=0.1)
    assert report["sentence"] == (
        f"Unrelated runs ({100 * report['rho']:.2g} % overlap, chance is {100 * report['chance']:.2g} %): mu = 0.5 changes the "
        "subject by 2.1 %; the result is nearly plain addition."
    )


def test_two_moments_of_one_run_are_named_with_the_modules_that_matter():
    report = nplora.fuse(load("gemma2b-mlx-r8-step100"), load("gemma2b-mlx-r8-step600")).report()
    assert report["regime"] == "mixed"
    assert 0.8 < report["rho"] < 0.9
    assert "it acts most in model.layers.17.self_attn.q_proj" in report["sentence"]


# ------------------------------------------------------------------------------------------ rows of their own


def test_two_bases_are_refused_in_one_line_with_module_shapes_and_bases():
    with pytest.raises(InputError) as error:
        nplora.fuse(load(LICIA), load(NARUTO))
    assert str(error.value) == (
        "the two adapters are for different base models: unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k is "
        f"320x768 in {LORAS / LICIA} (Stable Diffusion 1.x) and 320x1024 in {LORAS / NARUTO} (Stable Diffusion 2.x). Use two "
        "adapters of one base model."
    )
    assert error.value.exit_code == 3


def test_no_common_module_is_said_and_everything_passes_through(tmp_path):
    _, fused, report = fuse(TEXT, POKEMON, tmp_path, format="diffusers")
    assert report["modules"]["fused"] == 0
    assert report["modules"]["passed_through"] == {"subject": 24, "style": 128}
    assert report["sentence"] == (
        "The two adapters have no module in common: nothing is projected, the result is plain addition."
    )
    require_exact(TEXT, POKEMON, fused, 0.5)


def test_a_peft_folder_does_not_take_two_components(tmp_path):
    with pytest.raises(UsageError) as error:
        fuse(TEXT, POKEMON, tmp_path)
    assert str(error.value) == (
        "a PEFT folder holds one component: expected one, got text_encoder, unet. Write one folder for each: --components "
        "text_encoder."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_style_with_its_config_in_the_metadata_gives_the_same_file_as_the_folder(tmp_path):
    subject = "sd15-peft-unet-qv-r8-subject"
    outs = [
        fuse(subject, style, tmp_path / str(i))[0]
        for i, style in enumerate(
            ("sd15-peft-unet-r4-style-anime", "sd15-noprefix-peft-names-r4-style-anime.safetensors")
        )
    ]
    one, two = (read(out)[0] for out in outs)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)
    configs = [(out / "adapter_config.json").read_text() for out in outs]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("mu", [0.5, inf])
def test_a_zero_subject_gives_the_style(tmp_path, mu):
    _, fused, report = fuse(ZERO, POKEMON, tmp_path, mu=mu)
    style = sources(POKEMON)
    assert all(apart(fused[name], style[name]) == 0 for name in style)
    assert report["sentence"] == "The subject is zero in every common module: nothing is projected."


@pytest.mark.parametrize("mu", [0.5, inf])
def test_a_zero_style_gives_the_subject_because_random_rows_of_a_are_no_directions(tmp_path, mu):
    _, fused, report = fuse(LICIA, ZERO, tmp_path, mu=mu)
    subject = sources(LICIA)
    assert all(apart(fused[name], subject[name]) < 1e-7 for name in subject)
    assert {found["protected"] for found in report["overlaps"]} == {0}


def test_the_same_tensors_under_two_namings_leave_the_style_alone_when_hard(tmp_path):
    _, fused, _ = fuse(GUITAR, DOUBLED, tmp_path, mu=inf)
    style = sources(DOUBLED)
    assert all(apart(fused[name], style[name]) < 1e-6 for name in style)


def test_a_head_beside_the_adapter_is_not_lost(tmp_path):
    subject, style = "gpt2-peft-cattn-r8-fan_in_fan_out", "gpt2-peft-cattn-r8-with-score-head"
    out, _, report = fuse(subject, style, tmp_path)
    key = "base_model.model.score.weight"
    assert np.array_equal(read(out)[0][key], read(LORAS / style)[0][key])
    assert report["keys"]["copied"] == 1


def test_embedded_tokens_are_not_lost(tmp_path):
    out, _, report = fuse(*next(row[:2] for row in TABLE if "cloneofsimo" in row[0]), tmp_path)
    tensors, metadata = read(out)
    assert {"<s1>", "<s2>"} <= tensors.keys()
    assert metadata["<s1>"] == metadata["<s2>"] == "<embed>"
    assert report["trigger_words"]["subject"] == ["<s1>", "<s2>"]
    assert {metadata[f"unet:{i}:rank"] for i in range(144)} == {"5"}


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_a_pair_comes_out_in_any_format(tmp_path, format):
    _, fused, _ = fuse(HAMSTER, "sd15-peft-unet-r4-style-anime", tmp_path, format=format)
    require_exact(HAMSTER, "sd15-peft-unet-r4-style-anime", fused, 0.5)


# ------------------------------------------------------------------------------------------ LoKr


def kronecker(name: str, module: str) -> np.ndarray:
    """kron(w1, w2) of a LoKr module, both sides given as two factors; its alpha is its dim, so the scale is 1."""
    tensors, _ = read(LORAS / name)
    w1, w2 = (
        tensors[f"{module}.lokr_{side}_a"].astype(np.float64) @ tensors[f"{module}.lokr_{side}_b"].astype(np.float64).reshape(
            tensors[f"{module}.lokr_{side}_b"].shape[0], -1
        )
        for side in ("w1", "w2")
    )  # fmt: skip
    return np.kron(w1, w2)


def test_two_lokr_files_are_fused_exactly(tmp_path):
    """All 72 modules of the text encoder are fused; a few of them are compared."""
    _, fused, report = fuse(*LOKR, tmp_path, mu=inf, components="text_encoder")
    assert report["modules"]["fused"] == len(fused) == 72
    for name in [name for name in fused if ".layers.3." in name and "self_attn" in name]:
        file = "lora_te_" + name.removeprefix("text_encoder.").replace(".", "_")
        dW_c, dW_s = (kronecker(lokr, file) for lokr in LOKR)
        _, s, vt = np.linalg.svd(dW_s)
        V = vt[s > 768 * 2.0**-52 * s[0]].T
        exact = dW_s + dW_c - dW_c @ V @ V.T
        assert np.linalg.norm(flattened(fused[name].delta()) - exact) < 1e-5 * np.linalg.norm(exact)


def test_a_lokr_file_meets_a_plain_one(tmp_path):
    _, fused, report = fuse(LOKR[1], POKEMON, tmp_path, mu=inf)
    assert (report["modules"]["fused"], report["modules"]["passed_through"]) == (128, {"subject": 222, "style": 0})
    style = sources(POKEMON)
    for name in list(style)[::40]:
        file = "lora_" + name.replace(".", "_")
        c, V = kronecker(LOKR[1], file), row_space(style[name])
        exact = style[name].dense() + c - c @ V @ V.T
        assert np.linalg.norm(flattened(fused[name].delta()) - exact) < 1e-5 * np.linalg.norm(exact)


# ------------------------------------------------------------------------------------------ what is read of the other files


@pytest.mark.parametrize(
    ("name", "format", "modules", "scale"),
    [
        ("berttiny-peft-qv-r4", "peft", 4, 4.0), ("convnext-peft-mlp-r8", "peft", 36, 2.0),
        ("gpt2tiny-peft-r4-rank-above-width", "peft", 6, 0.25), ("gptneo-peft-qv-r4", "peft", 24, 0.25),
        ("opt125m-peft-qv-r16-bf16", "peft", 24, 2.0), ("gptneox1b-peft-r1-fp16", "peft", 24, 32.0),
        ("llm-mlx-r8-step200", "mlx", 8, 10.0), ("sam-vitb-wawb-r4.safetensors", "generic", 24, 1.0),
        ("made-sd15-kohya-r4-no-alpha.safetensors", "kohya", 12, 1.0),
    ],
)  # fmt: skip
def test_a_file_without_a_partner_is_read_and_comes_back_as_it_was(tmp_path, name, format, modules, scale):
    adapter = load(name)
    assert (adapter.format.name, len(adapter), {module.update.scale for module in adapter.values()}) == (
        format,
        modules,
        {scale},
    )
    out = tmp_path / ("same" if format in ("peft", "mlx") else "same.safetensors")
    nplora.convert(adapter, out)
    back, truth = nplora.load(out), sources(name)
    for key, module in truth.items():
        assert apart(back[key], module) * module.size <= allowed([(module, 1.0)], NAMES[module.up.dtype]), key


def test_alphas_in_half_of_the_modules_are_said():
    adapter = load("made-sd15-kohya-r4-alpha-in-half.safetensors")
    assert sorted(module.update.scale for module in adapter.values()) == [0.5] * 6 + [1.0] * 6
    assert adapter.notes == (
        (
            "6 modules have no alpha while others do: scale 1 is assumed for them, as kohya and ComfyUI do (diffusers would take "
            "the most common alpha)"
        ),
    )


def test_parts_of_a_real_pair_are_two_fusions_cut_together(tmp_path) -> None:
    """Byte for byte: a module's numbers do not depend on what is computed in one batch with it."""
    found = {}
    for name, options in {"soft": {}, "hard": {"mu": inf}, "cut": {"overrides": "mu@up=inf"}}.items():
        (tmp_path / name).mkdir()
        _, adapter, _ = fuse(LICIA, POKEMON, tmp_path / name, **options)
        found[name] = {module: (one.update.up.read(), one.update.down.read()) for module, one in adapter.items()}
    for module, factors in found["cut"].items():
        wanted = found["hard" if module.startswith("unet.up_blocks") else "soft"][module]
        assert all(np.array_equal(*pair) for pair in zip(factors, wanted, strict=True)), module
