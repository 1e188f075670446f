"""Strengths in parts of the model: what they mean, what they refuse, and that the recipe keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nplora
from making import CONVOLUTIONS, TEXT, make
from nplora import layouts
from nplora.checking.verify import verify
from nplora.errors import UsageError
from nplora.fusion.selectors import block_names, selects

UP = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
FF = "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
(HEAD,) = TEXT
NORM = "unet.up_blocks.3.resnets.0.norm2"
SHAPES = {UP: (1280, 1280), DOWN: (320, 768), FF: (2560, 320), **TEXT, **CONVOLUTIONS}


def files(folder: Path, count: int = 2) -> list[nplora.Adapter]:
    return [
        nplora.load(
            make(
                folder / f"{name}.safetensors",
                modules=SHAPES,
                seed=seed,
                rank=2 + seed,
                alpha=1.0,
                dtype="F32",
                norms={NORM: 320},
            )
        )
        for seed, name in zip(range(count), ("cat", "ink", "fog"), strict=False)
    ]


CASES: dict[str, tuple[Any, dict[str, float]]] = {
    "one block": ("style@up=0", {UP: 0, DOWN: 1, FF: 1, HEAD: 1}),
    "only one block": ("style@up=1,style@*=0", {UP: 1, DOWN: 0, FF: 0, HEAD: 0}),
    "only one block, as a mapping": ({"style": {"up": 1.0, "*": 0}}, {UP: 1, DOWN: 0, FF: 0, HEAD: 0}),
    "a component": (["style@text_encoder=0.5"], {UP: 1, DOWN: 1, FF: 1, HEAD: 0.5}),
    "a glob, by the file's name": ({"ink@*.attn1.*": 0.8}, {UP: 0.8, DOWN: 1, FF: 1, HEAD: 1}),
    "by number": (["2@attention=2", "2@unet=-1"], {UP: 2, DOWN: 2, FF: -1, HEAD: 2}),
    "a beginning": ({"b": {"down_blocks.0.attentions": 3}}, {UP: 1, DOWN: 3, FF: 3, HEAD: 1}),
    "everywhere": ({"style": 0.25}, {UP: 0.25, DOWN: 0.25, FF: 0.25, HEAD: 0.25}),
    "mlp and text": ("style@mlp=0.1, style@text=0.2", {UP: 1, DOWN: 1, FF: 0.1, HEAD: 0.2}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_is_the_strength_where_it_holds(case: str, tmp_path: Path) -> None:
    rules, wanted = CASES[case]
    cat, ink = files(tmp_path)
    fusion = nplora.fuse(cat, ink, mu=0, subject_strength=0.5, strengths=rules)
    out = tmp_path / "out.safetensors"
    fusion.save(out)
    back = nplora.load(out)
    for name, strength in wanted.items():
        exact = 0.5 * cat[name].delta() + strength * ink[name].delta()
        assert np.linalg.norm(back[name].delta() - exact) < 1e-5 * np.linalg.norm(exact)
    assert verify(out).passed
    assert not verify(out, strengths={"style": 0.123}).passed


def test_norms_and_biases_follow_the_rules_too(tmp_path: Path) -> None:
    cat, ink = files(tmp_path)
    out = tmp_path / "out.safetensors"
    nplora.fuse(cat, ink, mu=0, strengths="style@up=0.5").save(out)
    back = nplora.load(out)
    for key, vector in back.vectors.items():
        exact = cat.vectors[key].tensor.read() + 0.5 * ink.vectors[key].tensor.read()
        np.testing.assert_allclose(vector.tensor.read(), exact, rtol=1e-6)
    assert verify(out).passed


def test_a_style_of_strength_0_in_a_block_protects_nothing_there(tmp_path: Path) -> None:
    cat, ink = files(tmp_path)
    fusion = nplora.fuse(cat, ink, mu="inf", strengths="style@up=0")
    np.testing.assert_array_equal(fusion[UP].delta(), cat[UP].delta())
    assert fusion[UP].style is None
    keys = ink[UP].keys
    assert all(fusion.left_out[f"{key} (style)" if f"{key} (style)" in fusion.left_out else key] for key in keys)
    assert set(fusion.left_out.values()) == {"style strength is 0 here (2@up=0.0)"}


def test_rules_for_everybody_and_for_three(tmp_path: Path) -> None:
    adapters = files(tmp_path, 3)
    out = tmp_path / "out.safetensors"
    nplora.fuse(*adapters, method="linear", strengths={"*@up": 0.5, "fog": 2, "a@text": 0}).save(out)
    back = nplora.load(out)
    weights = {UP: (0.5, 0.5, 0.5), DOWN: (1, 1, 2), HEAD: (0, 1, 2)}
    for name, own in weights.items():
        exact = sum(w * adapter[name].delta() for w, adapter in zip(own, adapters, strict=True))
        assert np.linalg.norm(back[name].delta() - exact) < 1e-5 * np.linalg.norm(exact)
    assert verify(out).passed


WRONG = {
    "style@upp=0": "the style does not change anything that is called upp: expected one of down, up, attention, "
    'cross-attention, mlp, resnet, text, unet, text_encoder. A module\'s name, its beginning, or a glob such as "*.attn1.*" '
    "will do as well.",
    "style@*.xyz=0": "the style does not change anything that is called *.xyz: expected one of down, up, attention, "
    'cross-attention, mlp, resnet, text, unet, text_encoder. A module\'s name, its beginning, or a glob such as "*.attn1.*" '
    "will do as well.",
    "style@*=0,style@up=1": "the strength 2@up=1.0 is never reached: earlier ones decide about all that it means. "
    "The first that means a module counts: put the general ones last.",
    "paint@up=0": "no adapter is called paint: expected one of subject (number 1, cat.safetensors), style (number 2, "
    "ink.safetensors). A number says which one without doubt.",
    "style@up": "strengths is out of range: expected WHO@WHERE=NUMBER, or several with commas between them, such as "
    "style@up=1,style@*=0, got 'style@up'. Strengths in parts of the model, such as style@up=0 or cat@*.attn1.*=0.8; the "
    "first that means a module counts.",
}


@pytest.mark.parametrize("rules", WRONG)
def test_rules_that_make_no_sense(rules: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        nplora.fuse(*files(tmp_path), strengths=rules)
    assert str(caught.value) == WRONG[rules]


@pytest.mark.parametrize(
    "value", [{}, [], "", "=1", "@up=1", "style@=1", {"style": {"up": "much"}}, 3, {"style": float("inf")}]
)
def test_values_that_are_no_strengths(value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="strengths is out of range"):
        nplora.fuse(*files(tmp_path), strengths=value)


# ------------------------------------------------------------------------------------------ blocks


def modules(layout: str) -> list[str]:
    table = layouts.load(layout)
    return [f"{component}.{name}" for component in table.components for name in table.modules(component)]


def test_every_block_name_means_something_in_a_known_model() -> None:
    known = [name for layout in layouts.names() for name in modules(layout)]
    assert [word for word in block_names() if not any(selects(word, name) for name in known)] == []


@pytest.mark.parametrize("layout", layouts.names())
def test_blocks_share_no_module_that_they_should_not(layout: str) -> None:
    for name in modules(layout):
        for group in (("down", "mid", "up"), ("double", "single"), ("attention", "mlp"), ("attention", "resnet")):
            meant = [word for word in group if selects(word, name)]
            assert len(meant) < 2, (name, meant)


@pytest.mark.parametrize("layout", layouts.names())
def test_every_projection_of_a_transformer_block_is_attention_or_mlp(layout: str) -> None:
    """But for the two that FLUX's single blocks share between both."""
    table = layouts.load(layout)
    for component in table.components:
        for name in table.modules(component):
            shape = table.shape(component, name) or ()
            inside = any(
                f".{word}." in f".{name}."
                for word in ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
            )
            other = any(
                word in name for word in ("norm", "mod", "relative_attention_bias", "proj_in", "guidance_layer")
            )
            if len(shape) == 2 and inside and not other and not name.endswith("proj_out"):
                full = f"{component}.{name}"
                assert selects("attention", full) or selects("mlp", full), full
