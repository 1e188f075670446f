"""What a person sees of kinds that need the base, and of compressing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Nplora
from laws import based
from laws.based import LINEAR, key, put, put_base
from laws.making import factors, kohya_tensors, write


@pytest.fixture
def files(tmp_path: Path) -> None:
    put(tmp_path / "dora.safetensors", LINEAR, based.module("DoRA by output", LINEAR))
    put_base(tmp_path / "base.safetensors")
    plain = factors(np.random.default_rng(1), 320, 320, 4)
    write(tmp_path / "ink.safetensors", kohya_tensors({key(LINEAR): plain}))


@pytest.mark.usefixtures("files")
def test_a_dora_is_fused_with_its_base_and_proved(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("fuse dora.safetensors ink.safetensors -o out.safetensors --base base.safetensors --report r.json")
    assert (ran.status, ran.err) == (0, "")
    assert "compressed" not in ran.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["parameters"]["base"] == "base.safetensors"
    assert nplora("verify out.safetensors").status == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base.safetensors").rename(tmp_path / "elsewhere" / "b.safetensors")
    assert nplora("verify out.safetensors").status == 3
    assert nplora("verify out.safetensors --base elsewhere/b.safetensors").status == 0


@pytest.mark.usefixtures("files")
def test_an_ignored_magnitude_is_named(nplora: Nplora) -> None:
    ran = nplora("fuse dora.safetensors ink.safetensors -o out.safetensors --dora ignore")
    assert ran.status == 0
    assert f"1 key, the magnitude is ignored (--dora ignore): {key(LINEAR)}.dora_scale" in ran.out
    assert "subject: the magnitudes of 1 module are ignored: only the direction part of DoRA is used" in ran.out


@pytest.mark.usefixtures("files")
def test_compressing_prints_the_exact_error_and_the_worst_module(nplora: Nplora, tmp_path: Path) -> None:
    ran = nplora("convert dora.safetensors -o lora.safetensors --base base.safetensors --rank 20 --report r.json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text())["compression"]
    error = f"{found['relative_error']:.2e}"
    assert (
        f"compressed      320 ranks in all to 20, relative error {error} (worst module unet.{LINEAR}: {error})"
        in ran.out
    )
    assert nplora("verify lora.safetensors").status == 0


@pytest.mark.usefixtures("files")
def test_nothing_lost_is_said_as_nothing(nplora: Nplora) -> None:
    ran = nplora("convert ink.safetensors -o out.safetensors --rank 9")
    assert "compressed      4 ranks in all to 4, relative error 0.00e+00\n" in ran.out


@pytest.mark.usefixtures("files")
def test_the_style_is_kept_on_request(nplora: Nplora) -> None:
    ran = nplora("fuse dora.safetensors ink.safetensors -o out.safetensors --dora ignore --rank 5 --keep-style")
    assert ran.status == 0
    assert "compressed      7 ranks in all to 5" in ran.out
    assert nplora("verify out.safetensors").status == 0


@pytest.mark.usefixtures("files")
def test_a_format_without_full_matrices_says_what_helps(nplora: Nplora) -> None:
    ran = nplora("convert dora.safetensors -o out.safetensors --base base.safetensors --format diffusers")
    assert "diffusers has no place for a full matrix (--rank or --error makes it low-rank)" in ran.out
