"""The first law, through files: what goes in at strength 1 comes out, at strength s it comes out times s."""

from __future__ import annotations

import numpy as np
import pytest

import nplora
from laws.making import DTYPES, ROUNDOFF, allowed, read
from laws.tables import CELLS, FORMATS, Content, content, flattened


def cells(chosen):
    return pytest.mark.parametrize(("format", "kind"), chosen, ids=[f"{format}, {kind}" for format, kind in chosen])


each_cell = cells(CELLS)
each_dtype = pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
each_module = pytest.mark.parametrize(
    ("format", "kind", "dtype"),
    # XLabs' modules are large: one number type will do.
    [
        (format, kind, dtype)
        for format, kind in CELLS
        for dtype in ("F16", "BF16", "F32")
        if format != "xlabs" or dtype == "F16"
    ],
)
REWRITTEN = ("tucker", "loha", "loha, 3x3", "lokr")  # leave as plain LoRA
COPIED = [(format, kind) for format, kind in CELLS if kind not in REWRITTEN and format != "mlx"]
FACTORS = [(format, kind) for format, kind in CELLS if kind in ("linear", "1x1", "3x3", "bias", *REWRITTEN)]


def saved(tmp_path, format, made: Content, name="input"):
    return FORMATS[format].save(tmp_path / name, made)


def output(tmp_path, format, name="output"):
    return tmp_path / (name if FORMATS[format].config else f"{name}.safetensors")


def require_equal(path, made: Content, dtype: str, *, strength: float = 1.0, exact: bool = False):
    """Everything that the content means stands in the file at `path`, times the strength, and nothing else."""
    adapter = nplora.load(path)
    modules = {spelt(name): module for name, module in adapter.items()}
    assert set(modules) == {spelt(name) for name in made.deltas}
    for name, wanted in made.deltas.items():
        distance = np.linalg.norm(flattened(modules[spelt(name)].delta()) - strength * wanted)
        if name in made.factors:
            bound = allowed([(made.factors[name], strength)], dtype, 2.0**-52 if exact else 2.0**-22)
        elif name in made.full:
            bound = abs(strength) * np.linalg.norm(wanted) * ROUNDOFF[dtype]
        else:  # products of two numbers, summed over ranks, in float32 at least
            bound = abs(strength) * np.linalg.norm(wanted) * 2.0**-20
        assert distance <= bound, name
    vectors = {(spelt(name), what): vector for (name, what), vector in adapter.vectors.items()}
    assert set(vectors) == {(spelt(name), what) for name, what in made.vectors}
    for (name, what), wanted in made.vectors.items():
        vector = vectors[spelt(name), what]
        got = vector.scale * vector.tensor.read().astype(np.float64)
        assert np.linalg.norm(got - strength * wanted) <= abs(strength) * np.linalg.norm(wanted) * (
            ROUNDOFF[dtype] + 2.0**-23
        )


def spelt(name: str) -> str:
    """kohya flattens the names of a model that nobody knows."""
    return name.replace(".", "_") if name.startswith("unknown.") else name


# ------------------------------------------------------------------------------------------ reading


@each_module
def test_a_file_is_read_as_what_it_says(tmp_path, format, kind, dtype):
    made = content(format, kind, dtype)
    adapter = nplora.load(saved(tmp_path, format, made))
    assert adapter.format.name == format
    assert set(adapter) == set(made.deltas)
    for name, wanted in made.deltas.items():
        assert np.allclose(flattened(adapter[name].delta()), wanted, rtol=1e-14, atol=1e-13)
    for target, wanted in made.vectors.items():
        assert np.allclose(adapter.vectors[target].scale * adapter.vectors[target].tensor.read(), wanted)


# ------------------------------------------------------------------------------------------ strength 1


@each_module
def test_saving_in_the_same_format_changes_nothing(tmp_path, format, kind, dtype):
    made = content(format, kind, dtype)
    nplora.convert(nplora.load(saved(tmp_path, format, made)), output(tmp_path, format))
    require_equal(output(tmp_path, format), made, dtype, exact=(format, kind) in COPIED)


@cells(COPIED)
@each_dtype
def test_saving_in_the_same_format_keeps_every_byte(tmp_path, format, kind, dtype):
    """Except where factors are multiplied out, and in MLX, whose one scale for the whole file goes into the factors."""
    made = content(format, kind, dtype)
    nplora.convert(nplora.load(saved(tmp_path, format, made)), output(tmp_path, format))
    written, _ = read(output(tmp_path, format))
    assert {key: fingerprint(array) for key, array in written.items()} == {
        key: fingerprint(array) for key, array in made.tensors.items()
    }


def fingerprint(array):
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


@each_dtype
def test_a_core_that_nothing_changes_keeps_its_own_tensors(tmp_path, dtype):
    made = content("kohya", "tucker", dtype)
    nplora.convert(nplora.load(saved(tmp_path, "kohya", made)), output(tmp_path, "kohya"))
    written, _ = read(output(tmp_path, "kohya"))
    assert (
        written["lora_unet_conv_in.lora_mid.weight"].tobytes()
        == made.tensors["lora_unet_conv_in.lora_mid.weight"].tobytes()
    )
    require_equal(output(tmp_path, "kohya"), made, dtype)


@each_dtype
def test_a_contracted_core_is_float32_so_that_its_products_fit(tmp_path, dtype):
    made = content("kohya", "tucker", dtype)
    nplora.convert(nplora.load(saved(tmp_path, "kohya", made)), output(tmp_path, "kohya"), dtype="fp32")
    written, _ = read(output(tmp_path, "kohya"))
    down = written["lora_unet_conv_in.lora_down.weight"]
    assert (down.dtype, down.shape) == (np.float32, (3, 4, 3, 3))
    assert not any("lora_mid" in key for key in written)
    require_equal(output(tmp_path, "kohya"), made, "F32")


@pytest.mark.parametrize("target", ["kohya", "diffusers", "peft"])
@cells(FACTORS)
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_converting_keeps_the_product(tmp_path, format, kind, target, dtype):
    made = content(format, kind, dtype)
    path = tmp_path / ("converted" if target == "peft" else "converted.safetensors")
    nplora.convert(nplora.load(saved(tmp_path, format, made)), path, format=target)
    require_equal(path, made, dtype)


# ------------------------------------------------------------------------------------------ strength s


@each_cell
@pytest.mark.parametrize("role", ["subject", "style"])
@pytest.mark.parametrize("strength", [1.0, -1.25, 3.0])
def test_strength_s_means_s(tmp_path, format, kind, role, strength):
    """The other side has strength 0."""
    made = content(format, kind, "F16")
    one = nplora.load(saved(tmp_path, format, made))
    other = nplora.load(saved(tmp_path, format, content(format, kind, "F16", seed=1), "other"))
    pair = {"subject": (one, other), "style": (other, one)}[role]
    silent = {"subject": "style", "style": "subject"}[role]
    fusion = nplora.fuse(*pair, **{f"{role}_strength": strength, f"{silent}_strength": 0})
    fusion.save(output(tmp_path, format))
    require_equal(output(tmp_path, format), made, "F16", strength=strength)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@cells([cell for cell in CELLS if cell[0] in ("kohya", "generic", "mlx")])
def test_the_asked_number_type_is_written_and_costs_its_rounding_only(tmp_path, format, kind, dtype):
    made = content(format, kind, "F32")
    nplora.convert(nplora.load(saved(tmp_path, format, made)), output(tmp_path, format), dtype=dtype)
    name = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
    written, _ = read(output(tmp_path, format))
    assert {array.dtype for key, array in written.items() if not key.endswith(".alpha")} == {DTYPES[name]}
    twice = {"F32": 1, "F16": 2, "BF16": 2}[name]  # up and down are both rounded here
    adapter = nplora.load(output(tmp_path, format))
    for key, wanted in made.deltas.items():
        bound = (
            twice * allowed([(made.factors[key], 1.0)], name) if key in made.factors else np.linalg.norm(wanted) * 2**-6
        )
        assert np.linalg.norm(flattened(adapter[key].delta()) - wanted) <= bound
