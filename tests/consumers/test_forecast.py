"""`forecast` says what diffusers and PEFT then really do: predicted and actual modules are compared.

The cases are those of test_harness.py, where each one's name is a fact about a consumer, and files as trainers write
them. A module is applied if its factors are taken; it is right if its delta is the one that nplora reads.
"""

from __future__ import annotations

import re

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: what the consumers load cannot be seen")

import numpy as np
import torch
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import save_file

import nplora
from consumers.comfy_rules import read
from consumers.harness import _distance, _norm, effective_deltas, peft_deltas
from consumers.roundtrip import tensors
from consumers.test_harness import APPLIED, ATTENTION, CLIP, DOUBLE, REFUSED, kohya, peft_spec
from consumers.tiny import modules_of, tiny_pipeline
from consumers.writer import lora_state, random_spec, write_lora
from nplora.consumers import Forecast, all_programs, forecast
from nplora.errors import UsageError

pytestmark = pytest.mark.consumer

ANY = "alpha_pattern|UNEXPECTED|DoRA|unexpected|No LoRA keys|inconsistency"  # warnings beside which a file is still loaded


def predicted(found: Forecast, adapter: nplora.Adapter) -> tuple[set[str], set[str]]:
    """Canonical modules that are applied, and those among them that act otherwise."""
    taken, changed = set(found.taken), set(found.changed)
    applied = {name for name, module in adapter.items() if set(module.update.keys) <= taken}
    return applied, {name for name in applied if set(adapter[name].update.keys) & changed}


def actual(kind: str, path, adapter: nplora.Adapter) -> tuple[set[str], set[str]]:
    """The same, as diffusers does it; nothing where it refuses."""
    try:
        got = effective_deltas(tiny_pipeline(kind), path, tolerate=ANY)
    except (ValueError, RuntimeError, TypeError, AssertionError, KeyError):
        return set(), set()
    return set(got), {name for name in got if is_wrong(got[name], adapter[name].delta())}


def is_wrong(got: np.ndarray, wanted: np.ndarray) -> bool:
    wanted = wanted.reshape(len(wanted), -1)
    return _distance(got, wanted) > 1e-5 * (_norm(wanted) or 1)


def check(kind: str, state: dict[str, torch.Tensor], path, metadata: dict[str, str] | None = None) -> Forecast:
    save_file(state, path, metadata)
    adapter = nplora.load(path)
    found = forecast(adapter, "diffusers")
    assert sorted([*found.taken, *found.dropped]) == sorted(state)
    assert predicted(found, adapter) == actual(kind, path, adapter), found.sentence
    return found


# nplora refuses half a LoHa and an alpha of 0; the third needs two blocks, see below.
UNREADABLE = {"a kohya SD alpha of 0 is 0", "LoHa in a kohya SD file: ValueError",
              "kohya keys beside transformer. keys in a FLUX file are dropped in silence"}  # fmt: skip
WIDE = {"sd15": "sd15-wide", "sdxl": "sdxl-wide", "flux1": "flux1-wide", "sd3": "sd35-wide", "qwen-image": "qwen-image-wide"}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in REFUSED | APPLIED if case not in UNREADABLE])
def test_facts_about_diffusers_are_foretold(case, tmp_path):
    kind, only, form, _ = (REFUSED | APPLIED)[case]
    only = SOME[WIDE[kind]] if kind == "qwen-image" else only  # attention alone could be FLUX.1's
    found = check(WIDE[kind], form(random_spec(WIDE[kind], only, alpha=4.0, ranks=(4,))), tmp_path / "x.safetensors")
    assert found.dropped or found.changed or "are found" in case


def test_kohya_keys_beside_transformer_keys_of_a_flux_file(tmp_path):
    query, output = (random_spec("flux1-wide", rf"{DOUBLE}{leaf}", ranks=(4,)) for leaf in ("[qkv]", "out"))
    state = lora_state(query, "kohya-flux1") | lora_state(output, "diffusers")
    found = check("flux1-wide", state, tmp_path / "x.safetensors")
    assert len(found.taken) == 2


def test_a_loha_is_refused(tmp_path):
    parts = {"w1_a": (320, 2), "w1_b": (2, 320), "w2_a": (320, 2), "w2_b": (2, 320)}
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    state = kohya(random_spec("sd15-wide", rf"{ATTENTION}.*attn2", ranks=(4,)))
    found = check("sd15-wide", state | {f"{stem}.hada_{part}": torch.ones(shape) for part, shape in parts.items()},
                  tmp_path / "x.safetensors")  # fmt: skip
    assert found.taken == ()
    assert found.sentence.startswith("diffusers loads nothing of this file, because it knows no such tensors as lora_")


NAMINGS = {
    "sd15-wide": ("kohya", "diffusers", "diffusers-linear", "diffusers-processor"),
    "sdxl-wide": ("kohya", "kohya-sgm", "diffusers"),
    "flux1-wide": ("kohya-flux1", "diffusers", "onetrainer"),
    "sd35-wide": ("kohya-sd3", "diffusers"),
    "qwen-image-wide": ("kohya", "diffusers"),
    "wan-wide": ("native-wan", "diffusers"),
}
SOME = {
    "sd15-wide": rf"{ATTENTION}.*attn|{CLIP}", "sdxl-wide": rf"unet\.down_blocks\.1\.attentions\.0.*attn|{CLIP}",
    "flux1-wide": rf"{DOUBLE}|{CLIP}|transformer\.(proj_out|x_embedder)", "sd35-wide": DOUBLE,
    "qwen-image-wide": r"transformer\.transformer_blocks\.0\.", "wan-wide": r"transformer\.blocks\.0\.",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "naming"), [(kind, naming) for kind in NAMINGS for naming in NAMINGS[kind]])
@pytest.mark.parametrize("ranks", [(4,), (2, 4)])
def test_every_naming_is_foretold(kind, naming, ranks, tmp_path):
    only = SOME[kind] if naming != "diffusers-processor" else rf"{ATTENTION}.*attn"
    check(kind, lora_state(random_spec(kind, only, alpha=2.0, ranks=ranks), naming), tmp_path / "x.safetensors")


def test_a_text_projection_of_another_rank(tmp_path):
    only = r"text_encoder_2\.(text_model\.encoder\.layers\.0\.self_attn|text_projection)"
    spec = random_spec("sdxl-wide", only, alpha=4.0, ranks=(4,))
    spec |= random_spec("sdxl-wide", r"text_encoder_2\.text_projection", alpha=4.0, ranks=(8,))
    found = check("sdxl-wide", lora_state(spec, "kohya"), tmp_path / "x.safetensors")
    assert "text projection" in found.sentence


def test_adapter_metadata_beside_alphas(tmp_path):
    state = kohya(random_spec("sd15-wide", ATTENTION + ".*attn", alpha=4.0, ranks=(4,)))
    found = check("sd15-wide", state, tmp_path / "x.safetensors", {"lora_adapter_metadata": '{"unet.r": 4}'})
    assert found.taken == ()


def test_a_negative_alpha_of_flux_is_refused_in_words(tmp_path):
    save_file(lora_state(random_spec("flux1-wide", DOUBLE, alpha=-4.0), "kohya-flux1"), tmp_path / "x.safetensors")
    found = forecast(nplora.load(tmp_path / "x.safetensors"), "diffusers")  # diffusers itself never comes back
    assert "a loop without end" in str(found.refused)


@pytest.mark.parametrize("name", ["sd15-processor-attn-r4-subject-weapons", "sd15-diffusers-attn-r4-guitar",
                                  "sd15-noprefix-peft-names-r4-style-anime", "sd15-lycoris-lokr-dim4",
                                  "made-sd15-kohya-r4-alpha-in-half", "sd15-cloneofsimo-r1-style-disney"])  # fmt: skip
def test_real_files_are_foretold(name, loras):
    path = loras / f"{name}.safetensors"
    adapter = nplora.load(path)
    applied, changed = predicted(forecast(adapter, "diffusers"), adapter)
    names = modules_of(tiny_pipeline("sd15-wide")).keys()
    assert (applied & names, changed) == actual("sd15-wide", path, adapter)


# ------------------------------------------------------------------------------------------ PEFT


@pytest.mark.parametrize("extra", [{}, {"base_model.model.x.alpha": 1}, {"score.weight": 2}, {"base_model.model.score.weight": 2}])  # fmt: skip
def test_peft_folders_are_foretold(extra, tmp_path):
    path = write_lora(tmp_path / "peft", peft_spec(rf"{ATTENTION}.*attn1"), "peft")
    state = tensors(path)
    state |= {key: torch.ones(1 if "alpha" in key else (2, 2)) for key in extra}
    save_file(state, path / "adapter_model.safetensors")
    found = forecast(nplora.load(path), "peft")
    assert set(found.dropped) == set(extra)
    model = tiny_pipeline("sd15").unet
    if not extra:
        assert len(peft_deltas(model, path)) == len(found.taken) // 2
        return
    from peft import PeftModel

    try:
        wrapped = PeftModel.from_pretrained(model, str(path))
        weights = load_peft_weights(str(path))
        unexpected = set_peft_model_state_dict(wrapped, weights).unexpected_keys
    finally:
        import diffusers

        diffusers.utils.peft_utils.recurse_remove_peft_layers(model)
        vars(model).pop("peft_config", None)
    assert {re.sub(r"\.default", "", key) for key in unexpected} == set(found.dropped)


def test_peft_wants_a_folder(tmp_path):
    save_file(lora_state(random_spec("sd15-wide", ATTENTION, ranks=(4,)), "diffusers"), tmp_path / "x.safetensors")
    found = forecast(nplora.load(tmp_path / "x.safetensors"), "peft")
    assert found.sentence == (
        "PEFT loads nothing of this file, because PEFT reads a folder with adapter_config.json (write one with "
        "--format peft)."
    )


# ------------------------------------------------------------------------------------------ ComfyUI, sd-scripts


@pytest.mark.parametrize(
    ("kind", "naming"),
    [(kind, naming) for kind in ("sd15-wide", "sdxl-wide", "flux1-wide") for naming in NAMINGS[kind]],
)
def test_comfyui_takes_the_keys_that_its_rules_take(kind, naming, tmp_path):
    only = SOME[kind] if naming != "diffusers-processor" else rf"{ATTENTION}.*attn"
    state = lora_state(random_spec(kind, only, alpha=2.0, ranks=(4,)), naming) | {"bundle_emb.a.clip_l": torch.ones(1)}
    save_file(state, tmp_path / "x.safetensors")
    found = forecast(nplora.load(tmp_path / "x.safetensors"), "comfyui")
    assert sorted(found.dropped) == read(kind, state)[1]


def test_sd_scripts_reads_its_own_names_only(tmp_path):
    spec = random_spec("sd15-wide", ATTENTION + ".*attn1", alpha=4.0, ranks=(4,))
    save_file(kohya(spec) | {"lora_te3_x.dora_scale": torch.ones(1, 3)}, tmp_path / "k.safetensors")
    save_file(lora_state(spec, "diffusers"), tmp_path / "d.safetensors")
    own, other = (forecast(nplora.load(tmp_path / f"{name}.safetensors"), "kohya") for name in "kd")
    assert (len(own.dropped), len(other.taken)) == (1, 0)
    assert other.sentence == "sd-scripts takes none of the 8 keys."


def test_sd_scripts_makes_no_module_for_an_alpha_alone(tmp_path):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    parts = {"w1_a": (320, 2), "w1_b": (2, 320), "w2_a": (320, 2), "w2_b": (2, 320)}
    state = {f"{stem}.hada_{part}": torch.ones(shape) for part, shape in parts.items()}
    save_file(state | {f"{stem}.alpha": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    assert forecast(nplora.load(tmp_path / "x.safetensors"), "kohya").taken == ()


def with_magnitudes(spec) -> dict[str, torch.Tensor]:
    """A kohya file whose modules have magnitudes beside them, but for one."""
    state = kohya(spec)
    ups = [key for key in state if key.endswith(".lora_up.weight")][1:]
    return state | {key.replace("lora_up.weight", "dora_scale"): torch.ones(len(state[key]), 1) for key in ups}


def test_dora_without_its_magnitude_is_another_adapter(tmp_path):
    state = with_magnitudes(random_spec("sd15-wide", ATTENTION + ".*attn1", alpha=4.0, ranks=(4,)))
    save_file(state, tmp_path / "x.safetensors")
    adapter = nplora.load(tmp_path / "x.safetensors")
    factors = {key for key in state if ".lora_" in key}
    for program in ("diffusers", "kohya"):
        found = forecast(adapter, program)
        assert set(found.dropped) == {key for key in state if key.endswith("dora_scale")}
        scaled = {key.removesuffix(".dora_scale") for key in found.dropped}
        assert set(found.changed) == {key for key in factors if key.partition(".lora_")[0] in scaled}
    got = effective_deltas(tiny_pipeline("sd15-wide"), tmp_path / "x.safetensors", tolerate=ANY)
    plain = nplora.expand(adapter, None, "ignore")
    assert all(not is_wrong(got[name], plain[name].delta()) for name in plain)


def test_an_unknown_program_is_named(tmp_path):
    save_file(kohya(random_spec("sd15-wide", ATTENTION, ranks=(4,))), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no such program"):
        forecast(nplora.load(tmp_path / "x.safetensors"), "word")


def test_every_program_says_how_it_is_known():
    assert set(all_programs()) == {"comfyui", "diffusers", "kohya", "peft"}
    assert all(program.checked.startswith(("run with", "read (")) for program in all_programs().values())
