"""Two files meet module by module, whatever each calls them; what does not meet is passed on or named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import nplora
from laws.making import (
    Factors,
    factors,
    folder,
    kohya_tensors,
    peft_tensors,
    read,
    reference,
    relative,
    suffixed_tensors,
    write,
)
from nplora import InputError, UsageError

BLOCK = "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.{}"
DEEP = "down_blocks.{}.attentions.0.transformer_blocks.1.attn1.{}"  # only SDXL has more than one
LEAVES = ("to_q", "to_v", "to_out.0")


def modules_of(seed: int, block: int, width: int, rank: int) -> dict[str, Factors]:
    rng = np.random.default_rng(seed)
    return {(DEEP if block else BLOCK).format(block, leaf): factors(rng, width, width, rank) for leaf in LEAVES}


# ------------------------------------------------------------------------------------------ namings of one model


def kohya(path, modules):
    return write(
        path / "a.safetensors", kohya_tensors({"lora_unet_" + name.replace(".", "_"): m for name, m in modules.items()})
    )


def sgm(path, modules):
    """SDXL's names in the original checkpoint, as sd-scripts writes them."""
    return kohya(
        path, {name.replace("down_blocks.1.attentions.0", "input_blocks.4.1"): m for name, m in modules.items()}
    )


def diffusers(path, modules):
    return write(path / "a.safetensors", peft_tensors({"unet." + name: m for name, m in modules.items()}))


def linear(path, modules):
    tensors = suffixed_tensors(
        {"unet." + name: m for name, m in modules.items()}, ".lora.up.weight", ".lora.down.weight"
    )
    return write(path / "a.safetensors", tensors)


def processor(path, modules, prefix="unet."):
    named = {}
    for name, module in modules.items():
        attention, leaf = name.removesuffix(".0").rsplit(".", 1)
        named[f"{prefix}{attention}.processor.{leaf}"] = module
    return write(path / "a.safetensors", suffixed_tensors(named, "_lora.up.weight", "_lora.down.weight"))


def bare_processor(path, modules):
    return processor(path, modules, "")


def bare(path, modules):
    return write(path / "a.safetensors", peft_tensors(modules))


def default(path, modules):
    named = {"unet." + name: m for name, m in modules.items()}
    return write(path / "a.safetensors", suffixed_tensors(named, ".lora_B.default.weight", ".lora_A.default.weight"))


def peft(path, modules):
    return folder(
        path, peft_tensors({"base_model.model." + name: m for name, m in modules.items()}), {"r": 2, "lora_alpha": 2}
    )


def peft_over_a_pipeline(path, modules):
    named = {"base_model.model.unet." + name: m for name, m in modules.items()}
    return folder(path, peft_tensors(named), {"r": 2, "lora_alpha": 2})


def doubled(path, modules):
    named = {"lora_unet_unet_" + name.replace(".", "_"): m for name, m in modules.items()}
    return write(path / "a.safetensors", suffixed_tensors(named, "_lora_up.weight", "_lora_down.weight"))


def named(writers) -> str:
    return f"{writers[0].__name__} with {writers[1].__name__}"


COMMON = (kohya, diffusers, linear, processor, bare_processor, bare, default, peft, peft_over_a_pipeline, doubled)
PAIRS = [
    ("sd15", 0, 320, pair)
    for pair in itertools.permutations(COMMON, 2)
    if kohya in pair or diffusers in pair or set(pair) == {processor, peft}
]
PAIRS += [("sdxl", 1, 640, pair) for pair in itertools.permutations((sgm, kohya, diffusers, peft), 2)]


def scaled_to_one(writer, modules):
    """PEFT's alpha of 2 means another scale for every other rank."""
    return {
        name: Factors(m.up, m.down, 2 / m.rank) if writer in (peft, peft_over_a_pipeline) else m
        for name, m in modules.items()
    }


@pytest.mark.parametrize(
    ("base", "block", "width", "writers"), PAIRS, ids=[f"{base}, {named(writers)}" for base, _, _, writers in PAIRS]
)
def test_two_namings_of_one_model_meet_module_by_module(tmp_path, base, block, width, writers):
    subject, style = modules_of(1, block, width, 3), modules_of(2, block, width, 2)
    paths = [
        writer(tmp_path / role, modules) for role, writer, modules in zip("cs", writers, (subject, style), strict=True)
    ]
    adapters = list(map(nplora.load, paths))
    assert [adapter.layout.name for adapter in adapters] == [base, base]
    fusion = nplora.fuse(*adapters)
    assert set(fusion) == {"unet." + name for name in subject}
    subject, style = (scaled_to_one(writer, m) for writer, m in zip(writers, (subject, style), strict=True))
    for name in subject:
        wanted = reference(subject[name].dense(), style[name].dense(), 0.5)
        assert relative(fusion["unet." + name].delta(), wanted) < 1e-9


@pytest.mark.parametrize(
    "writers", list(itertools.permutations((kohya, diffusers, processor, peft, bare), 2)), ids=named
)
@pytest.mark.parametrize("format", ["auto", "kohya", "diffusers", "peft"])
def test_what_two_namings_fuse_to_is_read_again_in_any_format(tmp_path, writers, format):
    subject, style = modules_of(1, 0, 320, 3), modules_of(2, 0, 320, 2)
    own = "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q"
    style[own] = factors(np.random.default_rng(3), 320, 320, 2)
    paths = [
        writer(tmp_path / role, modules) for role, writer, modules in zip("cs", writers, (subject, style), strict=True)
    ]
    out = tmp_path / ("f" if format == "peft" or (format == "auto" and writers[0] is peft) else "f.safetensors")
    report = nplora.fuse(*map(nplora.load, paths)).save(out, format=format)
    assert (report["modules"]["fused"], report["modules"]["passed_through"]) == (3, {"subject": 0, "style": 1})
    subject, style = (scaled_to_one(writer, m) for writer, m in zip(writers, (subject, style), strict=True))
    fused = nplora.load(out)
    assert set(fused) == {"unet." + name for name in style}
    for name, module in style.items():
        dW_c = subject[name].dense() if name in subject else np.zeros((320, 320))
        assert relative(fused["unet." + name].delta(), reference(dW_c, module.dense(), 0.5)) < 1e-6


# ------------------------------------------------------------------------------------------ a model that nobody knows


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("lora_unet_blocks_3_attn_q", "diffusion_model.blocks.3.attn.q"),
        ("diffusion_model.blocks.3.attn.q", "transformer.blocks.3.attn.q"),
        ("blocks.3.attn.q", "lora_unet_blocks_3_attn_q"),
        ("base_model.model.blocks.3.attn.q", "blocks.3.attn.q"),
        ("blocks.3.attn.processor.q", "blocks.3.attn.q"),
    ],
)
def test_two_namings_of_an_unknown_model_meet_when_they_flatten_to_one(tmp_path, one, two):
    rng = np.random.default_rng(4)
    pair = [factors(rng, 7, 9, 2), factors(rng, 7, 9, 3)]
    paths = []
    for role, name, module in zip("cs", (one, two), pair, strict=True):
        writer = kohya_tensors if name.startswith("lora_") else peft_tensors
        paths.append(write(tmp_path / f"{role}.safetensors", writer({name: module})))
    (fused,) = nplora.fuse(*map(nplora.load, paths)).values()
    assert relative(fused.delta(), reference(pair[0].dense(), pair[1].dense(), 0.5)) < 1e-9


def test_two_modules_that_flatten_to_one_name_are_both_kept(tmp_path):
    """`a.b_c` and `a_b.c` are two modules: exact names decide then."""
    rng = np.random.default_rng(5)
    names = ("x.a.b_c", "x.a_b.c")
    pair = [{name: factors(rng, 6, 8, 2) for name in names} for _ in range(2)]
    paths = [write(tmp_path / f"{role}.safetensors", peft_tensors(m)) for role, m in zip("cs", pair, strict=True)]
    fusion = nplora.fuse(*map(nplora.load, paths))
    assert len(fusion) == 2
    for name in names:
        wanted = reference(pair[0][name].dense(), pair[1][name].dense(), 0.5)
        assert relative(fusion["unknown." + name].delta(), wanted) < 1e-9


# ------------------------------------------------------------------------------------------ mixed namings of outputs


def cloneofsimo(path, modules):
    numbers = {BLOCK.format(0, leaf): i for leaf, i in (("to_q", 0), ("to_k", 1), ("to_v", 2), ("to_out.0", 3))}
    return write(
        path / "a.safetensors", suffixed_tensors({f"unet:{numbers[n]}": m for n, m in modules.items()}, ":up", ":down")
    )


def test_modules_that_a_numbered_format_has_no_number_for_are_readable_in_the_output(tmp_path):
    """The style has a convolution; a cloneofsimo list does not."""
    subject, style = modules_of(6, 0, 320, 2), modules_of(7, 0, 320, 2)
    style["conv_in"] = factors(np.random.default_rng(8), 320, 4, 2, kernel=(3, 3))
    out = tmp_path / "f.safetensors"
    nplora.fuse(nplora.load(cloneofsimo(tmp_path / "c", subject)), nplora.load(kohya(tmp_path / "s", style))).save(out)
    fused = nplora.load(out)
    assert set(fused) == {"unet." + name for name in style}
    assert relative(fused["unet.conv_in"].delta().reshape(320, -1), style["conv_in"].dense()) < 1e-6


def test_modules_that_xlabs_has_no_name_for_are_readable_in_the_output(tmp_path):
    rng = np.random.default_rng(9)
    subject, style = factors(rng, 3072, 3072, 2), factors(rng, 64, 3072, 2)
    one = suffixed_tensors({"double_blocks.0.processor.proj_lora1": subject}, ".up.weight", ".down.weight")
    two = kohya_tensors({"lora_unet_final_layer_linear": style})
    paths = [write(tmp_path / f"{role}.safetensors", tensors) for role, tensors in (("c", one), ("s", two))]
    nplora.fuse(*map(nplora.load, paths)).save(tmp_path / "f.safetensors")
    fused = nplora.load(tmp_path / "f.safetensors")
    assert set(fused) == {"transformer.transformer_blocks.0.attn.to_out.0", "transformer.proj_out"}
    assert relative(fused["transformer.proj_out"].delta(), style.dense()) < 1e-6


def test_a_bias_meets_its_partner_under_another_name(tmp_path):
    """kohya says diff_b, PEFT says lora_B.bias times the scale: both add up, in the output's own way."""
    rng = np.random.default_rng(10)
    name, flat = BLOCK.format(0, "to_q"), "lora_unet_" + BLOCK.format(0, "to_q").replace(".", "_")
    one, two = factors(rng, 320, 320, 2), factors(rng, 320, 320, 2)
    biases = [rng.standard_normal(320).astype(np.float32) for _ in range(2)]
    c = write(tmp_path / "c.safetensors", kohya_tensors({flat: one}) | {flat + ".diff_b": biases[0]})
    tensors = peft_tensors({"base_model.model." + name: two}) | {f"base_model.model.{name}.lora_B.bias": biases[1]}
    s = folder(tmp_path / "s", tensors, {"r": 2, "lora_alpha": 6})
    wanted = 2.0 * biases[0] + 0.5 * 3 * biases[1]
    for subject, style, strengths in ((c, s, (2.0, 0.5)), (s, c, (0.5, 2.0))):
        for format in ("kohya", "peft", "diffusers"):
            out = tmp_path / ("f" if format == "peft" else "f.safetensors")
            fusion = nplora.fuse(
                *map(nplora.load, (subject, style)), subject_strength=strengths[0], style_strength=strengths[1]
            )
            report = fusion.save(out, format=format, overwrite=True)
            (vector,) = nplora.load(out).vectors.values()
            assert np.allclose(vector.scale * vector.tensor.read(), wanted, rtol=1e-5, atol=1e-5)
            assert report["biases_and_norms_added"] == [f"unet.{name} (bias)"]
            suffix = ".diff_b" if format == "kohya" else ".lora_B.bias"
            assert [key for key in read(out)[0] if "bias" in key or "diff" in key] == [
                (flat if format == "kohya" else f"{'base_model.model' if format == 'peft' else 'unet'}.{name}") + suffix
            ]


# ------------------------------------------------------------------------------------------ components


def both_parts(path, seed):
    rng = np.random.default_rng(seed)
    unet, text = (
        "lora_unet_" + BLOCK.format(0, "to_q").replace(".", "_"),
        "lora_te_text_model_encoder_layers_3_self_attn_v_proj",
    )
    tensors = kohya_tensors({unet: factors(rng, 320, 320, 2), text: factors(rng, 768, 768, 2)})
    return write(path, tensors | {text + ".diff_b": rng.standard_normal(768).astype(np.float32)})


@pytest.mark.parametrize("components", [("unet",), ("text_encoder",), ("unet", "text_encoder"), "unet"])
def test_components_keep_their_part_and_name_every_key_of_the_rest(tmp_path, components):
    paths = [both_parts(tmp_path / f"{role}.safetensors", seed) for seed, role in enumerate("cs")]
    fusion = nplora.fuse(*map(nplora.load, paths), components=components)
    report = fusion.save(tmp_path / "f.safetensors")
    kept = {components} if isinstance(components, str) else set(components)
    assert {name.partition(".")[0] for name in fusion} == kept
    fused = nplora.load(tmp_path / "f.safetensors")
    assert set(fused.components) == kept
    assert len(fused.vectors) == ("text_encoder" in kept)
    marks = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    dropped = {key for key in read(paths[0])[0] if not key.startswith(tuple(marks[part] for part in kept))}
    assert {key for key in dropped if not any(key in named for named in report["left_out"])} == set()
    assert report["keys"]["left out"] == 2 * len(dropped)


def test_an_unknown_component_is_refused_with_the_known_ones(tmp_path):
    paths = [both_parts(tmp_path / f"{role}.safetensors", seed) for seed, role in enumerate("cs")]
    with pytest.raises(UsageError) as error:
        nplora.fuse(*map(nplora.load, paths), components=["vae"])
    assert str(error.value) == "no component is called vae: expected text_encoder or unet. Check --components."


def test_different_bases_are_refused_in_one_line_with_module_shapes_and_bases(tmp_path):
    rng = np.random.default_rng(11)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    paths = [
        write(tmp_path / f"{role}.safetensors", kohya_tensors({name: factors(rng, 320, width, 2)}))
        for role, width in (("c", 768), ("s", 1024))
    ]  # fmt: skip
    with pytest.raises(InputError) as error:
        nplora.fuse(*map(nplora.load, paths))
    assert str(error.value) == (
        "the two adapters are for different base models: unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k is "
        f"320x768 in {paths[0]} (Stable Diffusion 1.x) and 320x1024 in {paths[1]} (Stable Diffusion 2.x). Use two adapters of "
        "one base model."
    )
