"""Where `verify` finds its inputs, and what it makes of its parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusing import fused, pair
from making import PLAIN, make, write
from nplora.checking.verify import Verification, verify
from nplora.errors import InputError, UsageError
from nplora.storage import TensorFile


def test_inputs_by_path_with_and_without_a_recipe(tmp_path: Path) -> None:
    output = fused(pair(tmp_path), mu=1)
    inputs = [tmp_path / "elsewhere" / f"{role}.safetensors" for role in ("subject", "style")]
    (tmp_path / "elsewhere").mkdir()
    for path in inputs:
        (tmp_path / path.name).rename(path)
    with pytest.raises(InputError):
        verify(output)
    assert verify(output, *inputs).passed
    assert not verify(output, *inputs, mu=2.0).passed
    file = TensorFile(output)
    write(output, {key: tensor.read() for key, tensor in file.tensors.items()})
    assert verify(output, *inputs, mu=1.0).passed
    assert not verify(output, *inputs).passed


def test_the_right_file_is_found_among_others_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = fused(pair(tmp_path))
    (tmp_path / "deep").mkdir()
    moved = tmp_path / "deep" / output.name
    output.rename(moved)
    make(tmp_path / "deep" / "style.safetensors", seed=9)
    monkeypatch.chdir(tmp_path)
    assert verify(moved).passed


def test_only_parameters_that_change_numbers(tmp_path: Path) -> None:
    output = fused(pair(tmp_path))
    with pytest.raises(UsageError) as caught:
        verify(output, dtype="fp32")
    assert str(caught.value) == (
        "dtype changes no number, so there is nothing to verify with it: expected mu, directions, side, "
        "protect, calibrate, subject_strength, style_strength, strengths, overrides, components, base, dora, rank, energy, error, keep_style."
    )


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(fused(pair(tmp_path)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index + 1, 4) for index in range(4)]


def test_nothing_to_check_is_no_error() -> None:
    assert Verification("x", ()).error == 0.0


def test_peft_folders_with_their_configs(tmp_path: Path) -> None:
    make(tmp_path / "subject", "peft", PLAIN, seed=1, rank=4, alpha=16, config={"use_rslora": True})
    make(tmp_path / "style", "peft", PLAIN, seed=2, rank=8, alpha=4)
    output = fused(tmp_path, format="peft")
    assert verify(output).passed
    config = tmp_path / "style" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 5'))
    with pytest.raises(InputError) as caught:
        verify(output)
    assert (
        caught.value.problem == "this is not the style that the recipe names (style): the adapter_config.json differs"
    )
