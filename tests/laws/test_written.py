"""What other programs take for granted in a written file: alphas, configs, metadata, keys."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import nplora
from laws.making import Factors, allowed, factors, folder, kohya_tensors, peft_tensors, read, reference, relative, write

SD15 = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.{}"
SDXL = "down_blocks.1.attentions.0.transformer_blocks.1.attn1.{}"  # depth 2: no other base has it
SGM = "input_blocks.4.1.transformer_blocks.1.attn1.{}"
LEAVES = ("to_q", "to_k", "to_v", "to_out.0")
BASES = {
    "sd15": (SD15, SD15, 320), "sdxl, diffusers blocks": (SDXL, SDXL, 640), "sdxl, sgm blocks": (SGM, SDXL, 640)
}  # fmt: skip


def several(rng, width, ranks, scales, dtype="F32") -> dict[str, Factors]:
    """Four attention modules of different ranks and scales."""
    return {
        leaf: factors(rng, width, width, rank, dtype=dtype, scale=scale)
        for leaf, rank, scale in zip(LEAVES, ranks, scales, strict=True)
    }


def kohya_file(path, spelling: str, modules: dict[str, Factors], metadata=None):
    names = {leaf: "lora_unet_" + spelling.format(leaf).replace(".", "_") for leaf in modules}
    return write(path, kohya_tensors({names[leaf]: module for leaf, module in modules.items()}), metadata)


def pair_of(tmp_path, base: str, *, dtype="F32", style_ranks=(2, 2, 3, 2)):
    spelling, _, width = BASES[base]
    rng = np.random.default_rng(5)
    subject = several(rng, width, (4, 4, 2, 1), (0.5, 0.5, 1.0, 2.0), dtype)
    style = several(rng, width, style_ranks, (1.0, 0.25, 1.0, 0.3), dtype)
    paths = [kohya_file(tmp_path / f"{role}.safetensors", spelling, m) for role, m in (("c", subject), ("s", style))]
    return subject, style, paths


def fuse(paths, out, *, format="auto", **parameters):
    return nplora.fuse(*map(nplora.load, paths), **parameters).save(out, format=format, overwrite=True)


def require_sums(out, base, subject, style, dtype, *, w_c=1.0, w_s=1.0, mu=0.5):
    adapter, (_, canonical, _) = nplora.load(out), BASES[base]
    assert set(adapter) == {"unet." + canonical.format(leaf) for leaf in LEAVES}
    for leaf in LEAVES:
        got = adapter["unet." + canonical.format(leaf)].delta()
        wanted = reference(subject[leaf].dense(), style[leaf].dense(), mu, w_c=w_c, w_s=w_s)
        bound = allowed([(subject[leaf], w_c), (style[leaf], w_s)], dtype)
        assert np.linalg.norm(got - wanted) <= bound, leaf


# ------------------------------------------------------------------------------------------ alphas of kohya files

SIGNS = [(1.0, 1.0), (0.5, 2.0), (-1.0, 1.0), (1.0, -1.0), (-0.7, -0.3), (1e-3, 10.0)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("w_c", "w_s", "dtype"), [(*signs, "F16") for signs in SIGNS] + [(-0.7, 1.3, "BF16"), (-0.7, 1.3, "F32")]
)
def test_alphas_of_stable_diffusion_are_positive_float32_and_one_for_a_component(tmp_path, base, w_c, w_s, dtype):
    """diffusers takes one alpha for all of a component's attention, so scales go into the factors."""
    subject, style, paths = pair_of(tmp_path, base, dtype=dtype)
    fuse(paths, tmp_path / "f.safetensors", subject_strength=w_c, style_strength=w_s)
    alphas = [array for key, array in read(tmp_path / "f.safetensors")[0].items() if key.endswith(".alpha")]
    assert len(alphas) == len(LEAVES)
    assert {(alpha.dtype, alpha.shape) for alpha in alphas} == {(np.dtype(np.float32), ())}
    assert len({float(alpha) for alpha in alphas}) == 1
    assert float(alphas[0]) > 0
    require_sums(tmp_path / "f.safetensors", base, subject, style, dtype, w_c=w_c, w_s=w_s)


def test_each_component_has_an_alpha_of_its_own(tmp_path):
    rng = np.random.default_rng(6)
    names = [
        "lora_unet_" + SD15.format("to_q").replace(".", "_"),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ]
    modules = [factors(rng, 320, 320, 4, scale=0.5), factors(rng, 768, 768, 4, scale=0.125)]
    path = write(tmp_path / "a.safetensors", kohya_tensors(dict(zip(names, modules, strict=True))))
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors", format="kohya")
    written, _ = read(tmp_path / "b.safetensors")
    assert [float(written[name + ".alpha"]) for name in names] == [2.0, 0.5]
    assert all(np.array_equal(read(path)[0][key], array) for key, array in written.items())


def test_most_modules_of_the_style_are_copied_although_alphas_must_agree(tmp_path):
    """The most common alpha is the one that is written; only the others' downs are scaled."""
    _, style, paths = pair_of(tmp_path, "sd15", style_ranks=(2, 2, 2, 2))
    fuse(paths, tmp_path / "f.safetensors", subject_strength=0)
    written, _ = read(tmp_path / "f.safetensors")
    copied = [
        leaf for leaf in LEAVES
        if np.array_equal(written[f"lora_unet_{SD15.format(leaf)}".replace(".", "_") + ".lora_down.weight"], style[leaf].down)
    ]  # fmt: skip
    assert copied == ["to_q", "to_v"]


@pytest.mark.parametrize("mu", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_three_of_the_four_factors_are_copied_byte_for_byte(tmp_path, mu, dtype):
    """And at mu = 0 all four, where no scale forces otherwise: the plain sum bit for bit."""
    rng = np.random.default_rng(7)
    subject, style = (
        {leaf: factors(rng, 320, 320, 4, dtype=dtype, scale=0.5) for leaf in ("to_q", "to_k")} for _ in "cs"
    )
    paths = [kohya_file(tmp_path / f"{role}.safetensors", SD15, m) for role, m in (("c", subject), ("s", style))]
    fuse(paths, tmp_path / "f.safetensors", mu=mu)
    written, _ = read(tmp_path / "f.safetensors")
    for leaf in ("to_q", "to_k"):
        name = f"lora_unet_{SD15.format(leaf)}".replace(".", "_")
        up, down = written[name + ".lora_up.weight"], written[name + ".lora_down.weight"]
        assert np.array_equal(up, np.hstack([subject[leaf].up, style[leaf].up]))
        assert np.array_equal(down[4:], style[leaf].down)
        assert np.array_equal(down[:4], subject[leaf].down) == (mu == 0)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_kohya_to_diffusers_to_peft_to_kohya_is_the_same_update(tmp_path, base, dtype):
    """The alphas differ by powers of two, so no rounding hides a fault; SDXL comes back in sd-scripts' own names."""
    spelling, canonical, width = BASES[base]
    modules = several(np.random.default_rng(13), width, (4, 4, 2, 1), (0.5, 0.25, 1.0, 2.0), dtype)
    steps = [
        kohya_file(tmp_path / "a.safetensors", spelling, modules),
        tmp_path / "b.safetensors",
        tmp_path / "c",
        tmp_path / "d.safetensors",
    ]
    for source, target, format in zip(steps, steps[1:], ("diffusers", "peft", "kohya"), strict=False):
        nplora.convert(nplora.load(source), target, format=format)
    names = SGM if base.startswith("sdxl") else canonical
    assert read(steps[-1])[0].keys() == {
        f"lora_unet_{names.format(leaf)}".replace(".", "_") + suffix
        for leaf in LEAVES
        for suffix in (".lora_up.weight", ".lora_down.weight", ".alpha")
    }
    for step in steps:
        adapter = nplora.load(step)
        for leaf, module in modules.items():
            assert relative(adapter["unet." + canonical.format(leaf)].delta(), module.dense()) < 1e-6


# ------------------------------------------------------------------------------------------ diffusers


def test_a_diffusers_file_has_factors_only_and_every_key_begins_with_its_component(tmp_path):
    subject, style, paths = pair_of(tmp_path, "sdxl, sgm blocks")
    fuse(paths, tmp_path / "f.safetensors", format="diffusers")
    written, _ = read(tmp_path / "f.safetensors")
    assert all(re.fullmatch(r"unet\.down_blocks\..*\.lora_[AB]\.weight", key) for key in written)
    require_sums(tmp_path / "f.safetensors", "sdxl, sgm blocks", subject, style, "F32")


def test_adapter_metadata_is_made_anew_where_ranks_differ(tmp_path):
    _, _, paths = pair_of(tmp_path, "sd15")
    fuse(paths, tmp_path / "f.safetensors", format="diffusers")
    table = json.loads(read(tmp_path / "f.safetensors")[1]["lora_adapter_metadata"])
    assert {key.partition(".")[0] for key in table} == {"unet"}
    ranks = {"to_q": 6, "to_k": 6, "to_v": 5, "to_out.0": 3}
    assert {
        leaf: by_pattern(table["unet.rank_pattern"], SD15.format(leaf), table["unet.r"]) for leaf in LEAVES
    } == ranks
    alphas = {
        leaf: by_pattern(table["unet.alpha_pattern"], SD15.format(leaf), table["unet.lora_alpha"]) for leaf in LEAVES
    }
    assert alphas == ranks  # scale 1
    assert all(key.startswith("^") for key in (*table["unet.rank_pattern"], *table["unet.alpha_pattern"]))


def test_adapter_metadata_is_left_away_where_one_rank_serves_all(tmp_path):
    rng = np.random.default_rng(8)
    pair = [several(rng, 320, (2,) * 4, (1.0,) * 4) for _ in range(2)]
    paths = [kohya_file(tmp_path / f"{role}.safetensors", SD15, m) for role, m in zip("cs", pair, strict=True)]
    fuse(paths, tmp_path / "f.safetensors", format="diffusers")
    assert "lora_adapter_metadata" not in read(tmp_path / "f.safetensors")[1]


@pytest.mark.parametrize("format", ["diffusers", "kohya", "auto"])
def test_adapter_metadata_of_an_input_is_never_copied(tmp_path, format):
    """It says rank 4 and alpha 16, which is not true of the fused file."""
    rng = np.random.default_rng(9)
    text = json.dumps({"unet.r": 4, "unet.lora_alpha": 16, "unet.target_modules": ["to_q"]})
    paths = []
    for role in "cs":
        modules = {"unet." + SD15.format("to_q"): factors(rng, 320, 320, 4)}
        paths.append(write(tmp_path / f"{role}.safetensors", peft_tensors(modules), {"lora_adapter_metadata": text}))
    report = fuse(paths, tmp_path / "f.safetensors", format=format)
    assert text not in read(tmp_path / "f.safetensors")[1].values()
    assert report["dropped_metadata"] == ["subject: lora_adapter_metadata", "style: lora_adapter_metadata"]
    (module,) = nplora.load(tmp_path / "f.safetensors").values()
    pair = [next(iter(nplora.load(path).values())).delta() for path in paths]
    assert relative(module.delta(), reference(*pair, 0.5)) < 1e-6


def test_what_is_true_of_one_training_run_is_not_copied_either(tmp_path):
    rng = np.random.default_rng(10)
    stale = {
        "ss_network_dim": "128",
        "ss_network_alpha": "64",
        "sshs_model_hash": "0" * 64,
        "sshs_legacy_hash": "0" * 8,
    }
    paths = [
        kohya_file(tmp_path / f"{role}.safetensors", SD15, {"to_q": factors(rng, 320, 320, 2)}, stale | {"ss_seed": role})
        for role in "cs"
    ]  # fmt: skip
    fuse(paths, tmp_path / "f.safetensors")
    metadata = read(tmp_path / "f.safetensors")[1]
    assert metadata["ss_network_dim"] == "4"
    assert float(metadata["ss_network_alpha"]) == 4.0
    assert not {"sshs_model_hash", "sshs_legacy_hash"} & metadata.keys()
    assert {"c", "s"} <= set(metadata.values())  # what differs is kept under each input's name


# ------------------------------------------------------------------------------------------ PEFT


def by_pattern(patterns: dict, path: str, default):
    """PEFT's own rule (`peft.utils.other.get_pattern_key`)."""
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)
    return default if key is None else patterns[key]


def targeted(config: dict, path: str) -> bool:
    """PEFT's rule: a string is an expression for the whole name, a list holds ends of names."""
    targets = config["target_modules"]
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return path in targets or any(path.endswith("." + target) for target in targets)


def test_a_peft_config_says_each_modules_rank_and_scale_by_pefts_own_rule(tmp_path):
    subject, style, paths = pair_of(tmp_path, "sdxl, sgm blocks")
    fuse(paths, tmp_path / "f", format="peft", style_strength=-0.5)
    config, (tensors, _) = json.loads((tmp_path / "f" / "adapter_config.json").read_text()), read(tmp_path / "f")
    assert {key.partition(".lora_")[0] for key in tensors} == {
        "base_model.model." + SDXL.format(leaf) for leaf in LEAVES
    }
    for leaf in LEAVES:
        path = SDXL.format(leaf)
        up, down = (tensors[f"base_model.model.{path}.lora_{side}.weight"].astype(np.float64) for side in "BA")
        assert by_pattern(config["rank_pattern"], path, config["r"]) == down.shape[0]
        alpha = by_pattern(config["alpha_pattern"], path, config["lora_alpha"])
        assert alpha > 0
        assert targeted(config, path)
        got = alpha / down.shape[0] * up @ down
        assert relative(got, reference(subject[leaf].dense(), style[leaf].dense(), 0.5, w_s=-0.5)) < 1e-6
    assert all(key.startswith("^") for key in (*config["rank_pattern"], *config["alpha_pattern"]))


def test_the_patterns_of_flux_do_not_hit_the_ends_of_longer_names(tmp_path):
    """`proj_out` is FLUX's last layer and the end of every single block's."""
    rng = np.random.default_rng(11)
    modules = {
        "proj_out": factors(rng, 64, 3072, 5),
        "single_transformer_blocks.0.proj_out": factors(rng, 3072, 15360, 2),
    }
    more = {f"single_transformer_blocks.{i}.proj_out": factors(rng, 3072, 15360, 2) for i in (1, 2)}
    path = write(
        tmp_path / "a.safetensors", peft_tensors({"transformer." + name: m for name, m in (modules | more).items()})
    )
    nplora.convert(nplora.load(path), tmp_path / "b", format="peft")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    ranks = {name: by_pattern(config["rank_pattern"], name, config["r"]) for name in modules}
    assert ranks == {"proj_out": 5, "single_transformer_blocks.0.proj_out": 2}
    others = ["single_transformer_blocks.7.proj_out", "transformer_blocks.0.attn.proj_out"]
    assert not any(targeted(config, name) for name in others)
    assert all(targeted(config, name) for name in (*modules, *more))


def test_rslora_inputs_leave_as_plain_scales(tmp_path):
    rng = np.random.default_rng(12)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": True}
    tensors = peft_tensors({"base_model.model." + SD15.format("to_q"): factors(rng, 320, 320, 4)})
    path = folder(tmp_path / "a", tensors, config)
    before = next(iter(nplora.load(path).values())).delta()
    nplora.convert(nplora.load(path), tmp_path / "b")
    written = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (written["use_rslora"], written["lora_alpha"], written["r"]) == (False, 32, 4)
    assert np.array_equal(next(iter(nplora.load(tmp_path / "b").values())).delta(), before)
