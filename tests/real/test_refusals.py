"""Real and made files that are no adapters, or damaged: one sentence that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.making import read
from nplora import InputError

LORAS = Path(__file__).parents[3] / "shared" / "loras"
pytestmark = pytest.mark.usefixtures("loras")

POINTER = (
    "this is a Git LFS pointer (text), not the adapter itself. Run `git lfs pull`, or download the file from its page."
)
FOREIGN = (
    "this is not a LoRA: expected pairs of low-rank factors (lora_up/lora_down, lora_A/lora_B, ...), got {}. Check that this "
    "is the adapter, not a model or an embedding."
)
EMBEDDING = FOREIGN.replace(
    "Check that this is the adapter, not a model or an embedding.",
    "It looks like an embedding (textual inversion), which programs load beside a LoRA.",
)
BERT = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight"
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
REFUSALS = {
    "broken-lfs-pointer-sdxl.safetensors": POINTER,
    "broken-lfs-pointer-style.safetensors": POINTER,
    "broken-two-bytes.safetensors": (
        "the file is too short to be a safetensors file: expected at least 10 bytes, got 2 bytes. The download was cut off: "
        "download it again."
    ),
    "made-header-length-2pow40.safetensors": (
        "the header's length is out of range: expected at most 100000000 bytes, got 1099511627776 bytes. This is not a "
        "safetensors file, or it is damaged: download it again."
    ),
    "made-overlapping-offsets.safetensors": (
        f"{BERT}: the byte range overlaps the tensor before it: expected offset 2048, got offset 0. The program that wrote "
        "the file made a mistake: export it again, or download it again."
    ),
    "made-truncated-in-data.safetensors": (
        "the file ends inside its data: expected 17504 bytes, got 11000 bytes. The download was cut off: download it again."
    ),
    "made-truncated-in-header.safetensors": (
        "the file ends inside its header: expected at least 1120 bytes, got 500 bytes. The download was cut off: download it "
        "again."
    ),
    "made-sd15-kohya-rank-mismatch.safetensors": (
        f"{TO_K}.lora_down.weight: the two factors differ in rank: expected rank 2 as in {TO_K}.lora_up.weight, got rank 4. "
        "The file is damaged or badly converted: get the original."
    ),
    "vit-wa-only-r4-lost-half.safetensors": (
        "w_a_000: half of the module is missing: expected its up factor beside it. The file was saved incompletely: get the "
        "original."
    ),
    "notlora-all-dtypes.safetensors": FOREIGN.format("tensors such as B (9 in all)"),
    "notlora-empty.safetensors": FOREIGN.format("no tensors at all"),
    "notlora-mel-filters.safetensors": FOREIGN.format("tensors such as mel_80 (1 in all)"),
    "notlora-peft-unilora-vector": (
        "adapters of the kind UNILORA are not made of low-rank factors: got tensors such as base_model.unilora_theta_d (1 in all). "
        "nplora reads LoRA and its relatives."
    ),
    "sd15-ti-emb_params-5tokens.safetensors": EMBEDDING.format("tensors such as emb_params (1 in all)"),
    "sd15-ti-embedding-style-pin.safetensors": EMBEDDING.format("tensors such as <pin> (1 in all)"),
    "sd15-ti-embedding-subject-licia.safetensors": EMBEDDING.format("tensors such as <licia> (1 in all)"),
    "headers-only-flux-peft-r4.json": (
        "this is JSON text, not an adapter. Name the .safetensors file itself, or download it again."
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_that_is_no_adapter_is_refused_in_these_words(name):
    with pytest.raises(InputError) as error:
        nplora.load(LORAS / name)
    assert str(error.value) == f"{LORAS / name}: {REFUSALS[name]}"
    assert error.value.exit_code == 3


def test_every_file_of_the_folder_is_either_refused_here_or_read(loras):
    """None of them crashes, and none is forgotten."""
    unread = []
    for path in sorted(loras.iterdir()):
        if path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors"))):
            try:
                assert len(nplora.load(path)) > 0
            except InputError:
                unread.append(path.name)
    assert set(unread) == {name for name in REFUSALS if not name.endswith(".json")}


@pytest.mark.parametrize("role", ["subject", "style"])
def test_numbers_that_are_none_are_refused_with_module_and_key_and_leave_no_file(tmp_path, role):
    bad, good = LORAS / "made-nan-and-inf.safetensors", LORAS / "berttiny-peft-qv-r4"
    pair = [nplora.load(path) for path in ((bad, good) if role == "subject" else (good, bad))]
    out = tmp_path / "fused"
    with pytest.raises(InputError) as error:
        nplora.fuse(*pair).save(out)
    name = "unknown." + BERT.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
    assert str(error.value) == (
        f"{bad}: {BERT}: 2 values are NaN or infinite (module {name}). The training run diverged: use an earlier checkpoint, "
        "or go on with --allow-nonfinite."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["subject", "style"])
def test_when_allowed_the_numbers_that_are_none_stay_where_they_were(tmp_path, role):
    bad, good = LORAS / "made-nan-and-inf.safetensors", LORAS / "berttiny-peft-qv-r4"
    pair = [nplora.load(path) for path in ((bad, good) if role == "subject" else (good, bad))]
    out = tmp_path / "fused"
    nplora.fuse(*pair, allow_nonfinite=True).save(out)
    written = read(out)[0]
    broken = {key for key, array in written.items() if not np.isfinite(array.astype(np.float64)).all()}
    assert broken == {BERT}
    assert int((~np.isfinite(written[BERT])).sum()) == 2
