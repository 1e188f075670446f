"""Fusing what depends on the base model: the formula on dense updates, with plain LoRAs and with each other."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws import based
from laws.based import LINEAR, OTHER, SHAPES, flat, key, put, put_base
from laws.making import attenuated, factors, kohya_tensors, protected, read, reference, relative, write
from nplora import InputError, UsageError
from nplora.checking.verify import verify

TIGHT = 1e-6  # float32 in the file


def plain(where: str = LINEAR, seed: int = 3):
    out, width, *kernel = SHAPES[where]
    return factors(np.random.default_rng(seed), out, width, 3, scale=0.5, kernel=tuple(kernel))


def put_plain(path: Path, where: str = LINEAR, seed: int = 3) -> Path:
    return write(path, kohya_tensors({key(where): plain(where, seed)}))


def fused(tmp_path: Path, subject: Path, style: Path, **options: object) -> Path:
    out = tmp_path / "f.safetensors"
    base = put_base(tmp_path / "base.safetensors")
    nplora.fuse(nplora.load(subject), nplora.load(style), base=base, **options).save(out, overwrite=True)
    return out


def delta(path: Path, where: str = LINEAR) -> np.ndarray:
    return flat(nplora.load(path)[f"unet.{where}"].delta())


# ------------------------------------------------------------------------------------------ the first law


@pytest.mark.parametrize(("kind", "where"), based.CELLS, ids=[f"{kind}, {where}" for kind, where in based.CELLS])
def test_written_out_it_adds_what_it_added(tmp_path: Path, kind: str, where: str) -> None:
    made = based.module(kind, where)
    out, base = tmp_path / "b.safetensors", put_base(tmp_path / "base.safetensors")
    nplora.convert(nplora.load(put(tmp_path / "a.safetensors", where, made)), out, base=base)
    suffixes = {name.removeprefix(key(where)) for name in read(out)[0]}
    low_rank = {".lora_up.weight", ".lora_down.weight", ".alpha"}
    assert suffixes == (low_rank if kind in based.LOW_RANK else {".diff"})
    assert relative(delta(out, where), made.dense) < TIGHT
    assert verify(out).passed


@pytest.mark.parametrize("kind", based.KINDS)
@pytest.mark.parametrize("role", ["subject", "style"])
def test_alone_at_strength_1_it_is_copied_byte_for_byte(tmp_path: Path, kind: str, role: str) -> None:
    made = based.module(kind, LINEAR)
    pair = put(tmp_path / "a.safetensors", LINEAR, made), put_plain(tmp_path / "b.safetensors", OTHER)
    out = fused(tmp_path, *(pair if role == "subject" else pair[::-1]))
    before, after = read(pair[0])[0], read(out)[0]
    assert all(np.array_equal(after[name], array) for name, array in before.items())


@pytest.mark.parametrize("kind", based.KINDS)
@pytest.mark.parametrize("role", ["subject", "style"])
def test_alone_at_any_strength_it_is_that_share_of_its_update(tmp_path: Path, kind: str, role: str) -> None:
    made = based.module(kind, LINEAR)
    pair = put(tmp_path / "a.safetensors", LINEAR, made), put_plain(tmp_path / "b.safetensors", OTHER)
    out = fused(tmp_path, *(pair if role == "subject" else pair[::-1]), **{f"{role}_strength": -0.5})
    assert relative(delta(out), -0.5 * made.dense) < TIGHT


# ------------------------------------------------------------------------------------------ with plain LoRAs


@pytest.mark.parametrize(("kind", "where"), based.CELLS, ids=[f"{kind}, {where}" for kind, where in based.CELLS])
def test_as_the_subject_of_a_plain_lora(tmp_path: Path, kind: str, where: str) -> None:
    made, style = based.module(kind, where), plain(where)
    pair = put(tmp_path / "c.safetensors", where, made), put_plain(tmp_path / "s.safetensors", where)
    out = fused(tmp_path, *pair, subject_strength=0.7)
    assert relative(delta(out, where), reference(made.dense, style.dense(), 0.5, w_c=0.7)) < TIGHT
    assert verify(out).passed


@pytest.mark.parametrize("kind", based.KINDS)
@pytest.mark.parametrize(("side", "directions"), [("input", 4), ("output", 0.5)])
def test_as_the_style_of_a_plain_lora_by_its_leading_directions(
    tmp_path: Path, kind: str, side: str, directions: float
) -> None:
    made, subject = based.module(kind, LINEAR), plain()
    pair = put_plain(tmp_path / "c.safetensors"), put(tmp_path / "s.safetensors", LINEAR, made)
    out = fused(tmp_path, *pair, side=side, directions=directions, mu=inf)
    wanted = reference(subject.dense(), made.dense, inf, side=side, directions=directions)
    assert relative(delta(out), wanted) < TIGHT
    assert verify(out).passed


@pytest.mark.parametrize("kind", ["DoRA by output", "DoRA by input", "DoRA of a LoHa"])
@pytest.mark.parametrize("mu", [0.5, inf])
def test_all_directions_of_a_dora_are_those_of_its_direction_part(tmp_path: Path, kind: str, mu: float) -> None:
    """The rest of its update is the base weight rescaled, whose directions are all there are."""
    made, subject = based.module(kind, LINEAR), plain().dense()
    without = {suffix: array for suffix, array in made.tensors.items() if suffix != ".dora_scale"}
    direction = nplora.load(put(tmp_path / "d.safetensors", LINEAR, based.Based(without, made.dense)))
    V = protected(direction[f"unet.{LINEAR}"].delta())
    pair = put_plain(tmp_path / "c.safetensors"), put(tmp_path / "s.safetensors", LINEAR, made)
    out = fused(tmp_path, *pair, mu=mu)
    assert V.shape[1] < 320
    assert relative(delta(out), made.dense + attenuated(subject, V, mu)) < TIGHT
    assert verify(out).passed


@pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3 by output"])
def test_a_style_of_no_direction_part_needs_a_share_of_its_directions(tmp_path: Path, kind: str) -> None:
    pair = put_plain(tmp_path / "c.safetensors"), put(tmp_path / "s.safetensors", LINEAR, based.module(kind, LINEAR))
    with pytest.raises(InputError, match="the style changes this module by a full matrix"):
        fused(tmp_path, *pair)


@pytest.mark.parametrize(
    ("subject", "style"), [("DoRA by output", "GLoRA"), ("OFT", "DoRA by input"), ("IA3 by input", "DoRA of a LoHa")]
)
def test_such_kinds_with_each_other(tmp_path: Path, subject: str, style: str) -> None:
    one, two = based.module(subject, LINEAR, 1), based.module(style, LINEAR, 2)
    out = fused(
        tmp_path,
        put(tmp_path / "c.safetensors", LINEAR, one),
        put(tmp_path / "s.safetensors", LINEAR, two),
        directions=5,
    )
    assert relative(delta(out), reference(one.dense, two.dense, 0.5, directions=5)) < TIGHT


@pytest.mark.parametrize("order", ["c > b > a", "a > b = c"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_three_adapters_one_of_them_full(tmp_path: Path, order: str, side: str) -> None:
    """Each gives way to the union of what is above it, whatever is low-rank and what is not."""
    made = based.module("DoRA by output", LINEAR)
    paths = [put(tmp_path / "a.safetensors", LINEAR, made)]
    paths += [put_plain(tmp_path / f"{name}.safetensors", seed=seed) for name, seed in (("b", 3), ("c", 4))]
    dense = {"a": made.dense, "b": plain(seed=3).dense(), "c": plain(seed=4).dense()}
    above = {"c > b > a": {"a": "bc", "b": "c", "c": ""}, "a > b = c": {"a": "", "b": "ac", "c": "ab"}}[order]
    base = put_base(tmp_path / "base.safetensors")
    fusion = nplora.fuse(*map(nplora.load, paths), base=base, protect=order, directions=4, mu=inf, side=side)
    wanted = np.zeros((320, 320))
    for name, D in dense.items():
        if above[name]:
            joined = [dense[other] for other in above[name]]
            V = protected(np.concatenate(joined) if side == "input" else np.concatenate(joined, axis=1).T, 4)
            wanted += D - (D @ V) @ V.T if side == "input" else D - V @ (V.T @ D)
        else:
            wanted += D
    assert relative(fusion[f"unet.{LINEAR}"].delta(), wanted) < 1e-12
    fusion.save(tmp_path / "f.safetensors")
    assert relative(delta(tmp_path / "f.safetensors"), wanted) < TIGHT
    assert verify(tmp_path / "f.safetensors").passed


# ------------------------------------------------------------------------------------------ without the base


@pytest.mark.parametrize("role", ["subject", "style"])
def test_the_direction_alone_fuses_as_a_plain_lora(tmp_path: Path, role: str) -> None:
    made, other = based.module("DoRA by output", LINEAR), plain()
    without = {suffix: array for suffix, array in made.tensors.items() if suffix != ".dora_scale"}
    direction = based.ALPHA / based.RANK * flat(without[".lora_up.weight"]) @ flat(without[".lora_down.weight"])
    pair = put(tmp_path / "a.safetensors", LINEAR, made), put_plain(tmp_path / "b.safetensors")
    subject, style = pair if role == "subject" else pair[::-1]
    fusion = nplora.fuse(nplora.load(subject), nplora.load(style), dora="ignore")
    report = fusion.save(tmp_path / "f.safetensors")
    dense = (direction, other.dense()) if role == "subject" else (other.dense(), direction)
    assert relative(delta(tmp_path / "f.safetensors"), reference(*dense, 0.5)) < TIGHT
    assert report["left_out"] == {key(LINEAR) + ".dora_scale": "the magnitude is ignored (--dora ignore)"}
    note = (
        f"{role}: the magnitudes of 1 module are ignored: only the direction part of DoRA is used, and how its rows or "
        "channels were rescaled is lost; --base MODEL.safetensors keeps it exactly"
    )
    assert report["notes"] == [note]
    assert verify(tmp_path / "f.safetensors").passed


def test_strict_takes_the_loss_of_a_magnitude_for_an_error(tmp_path: Path) -> None:
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module("DoRA by output", LINEAR)))
    other = nplora.load(put_plain(tmp_path / "b.safetensors"))
    with pytest.raises(InputError, match=r"keys would be left out \(1 in all; the magnitude is ignored"):
        nplora.fuse(adapter, other, dora="ignore", strict=True)


# ------------------------------------------------------------------------------------------ recipes


def test_the_recipe_names_the_base_and_its_bytes_but_no_path(tmp_path: Path) -> None:
    pair = put(tmp_path / "a.safetensors", LINEAR, based.module("OFT", LINEAR)), put_plain(tmp_path / "b.safetensors")
    out = fused(tmp_path, *pair)
    recipe = read(out)[1]["nplora.recipe"]
    assert '"base": "base.safetensors"' in recipe
    assert nplora.BaseModel(tmp_path / "base.safetensors").path not in recipe
    put_base(tmp_path / "base.safetensors", weights=based.base_weights(10))
    with pytest.raises(InputError) as caught:
        verify(out)
    assert "this is not the base model that the recipe names (base.safetensors): the bytes differ" in str(caught.value)
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        verify(out)
    assert str(caught.value).endswith(
        "the base model that the recipe names is not found: expected base.safetensors beside the output or in the current "
        "folder. Name it with --base."
    )


def test_a_base_that_nothing_needs_is_said_and_not_recorded(tmp_path: Path) -> None:
    pair = put_plain(tmp_path / "a.safetensors"), put_plain(tmp_path / "b.safetensors", seed=4)
    out = tmp_path / "f.safetensors"
    base = put_base(tmp_path / "base.safetensors")
    report = nplora.fuse(*map(nplora.load, pair), base=base).save(out)
    assert report["notes"] == ["the base model was not needed: no module's update depends on it"]
    assert '"base": null' in read(out)[1]["nplora.recipe"]


@pytest.mark.parametrize("value", ["", 3])
def test_a_base_that_is_no_path_is_refused(tmp_path: Path, value: object) -> None:
    adapter = nplora.load(put_plain(tmp_path / "a.safetensors"))
    with pytest.raises(UsageError, match="base is out of range: expected a file or a folder"):
        nplora.fuse(adapter, adapter, base=value)
