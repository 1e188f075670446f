"""Names become blocks, and blocks stand in the model's order."""

from __future__ import annotations

import random
import re

import pytest

from nplora import layouts
from nplora.analysis.blocks import coarse_blocks, columns, model_order, role_order, split_block

ORDER = [
    "unet.conv_in", "unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.attentions.0.proj_in",
    "unet.down_blocks.0.resnets.1.conv1", "unet.down_blocks.0.downsamplers.0.conv", "unet.down_blocks.2.resnets.0.conv1",
    "unet.down_blocks.10.resnets.0.conv1", "unet.mid_block.resnets.0.conv1", "unet.mid_block.attentions.0.proj_in",
    "unet.mid_block.resnets.1.conv1", "unet.up_blocks.0.resnets.0.conv1", "unet.conv_out",
    "text_encoder.text_model.encoder.layers.2.mlp.fc1", "text_encoder.text_model.encoder.layers.10.mlp.fc1",
]  # fmt: skip


def test_the_model_s_order() -> None:
    shuffled = random.Random(1).sample(ORDER, len(ORDER))
    assert sorted(shuffled, key=model_order) == ORDER
    names = ["transformer.single_transformer_blocks.0.proj_out", "transformer.transformer_blocks.18.attn.to_q",
             "transformer.x_embedder", "transformer.proj_out"]  # fmt: skip
    assert sorted(names, key=model_order) == [names[2], names[1], names[0], names[3]]


@pytest.mark.parametrize(
    ("name", "block", "role"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj", "unet.mid_block.attentions.0.transformer_blocks.3", "ff.net.0.proj"),
        ("unet.up_blocks.1.upsamplers.0.conv", "unet.up_blocks.1.upsamplers.0", "conv"),
        ("transformer.single_transformer_blocks.7.attn.to_q", "transformer.single_transformer_blocks.7", "attn.to_q"),
        ("text_encoder.text_model.encoder.layers.11.self_attn.q_proj", "text_encoder.text_model.encoder.layers.11", "self_attn.q_proj"),
        ("transformer.blocks.3.ffn.net.2", "transformer.blocks.3", "ffn.net.2"),
        ("unet.conv_in", "unet", "conv_in"),
        ("model", "", "model"),
    ],
)  # fmt: skip
def test_block_and_role(name: str, block: str, role: str) -> None:
    assert split_block(name) == (block, role)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "flux1", "qwen-image", "wan-14b", "sd3-medium"])
def test_every_model_falls_into_few_coarse_blocks_and_every_order_is_total(base: str) -> None:
    layout = layouts.load(base)
    names = [f"{component}.{name}" for component in layout.components for name in layout.modules(component)]
    found = coarse_blocks(names)
    assert found.keys() == set(names)
    assert len(set(found.values())) <= 16
    assert all(name.startswith(re.sub(r"\d+-\d+$", "", block)) for name, block in found.items())
    assert len(sorted(names, key=model_order)) == len(names)


def test_blocks_that_are_many_and_alike_are_taken_together() -> None:
    layout = layouts.load("flux1")
    names = [f"transformer.{name}" for name in layout.modules("transformer")]
    found = list(dict.fromkeys(coarse_blocks(names).values()))
    assert "transformer.transformer_blocks.0-3" in found
    assert found[-1].startswith("transformer.single_transformer_blocks.")
    assert len(found) == 16
    layers = [f"unknown.model.layers.{index}.self_attn.q_proj" for index in (14, 15, 16)]
    assert set(coarse_blocks(layers).values()) == {f"unknown.model.layers.{index}" for index in (14, 15, 16)}


def test_a_layer_of_a_unet_is_one_column() -> None:
    block = "unet.down_blocks.1"
    found = columns([f"{block}.resnets.0", f"{block}.attentions.0", f"{block}.attentions.0.transformer_blocks.0",
                     f"{block}.attentions.0.transformer_blocks.1", f"{block}.downsamplers.0"])  # fmt: skip
    first, second = (f"{block}.attentions.0.transformer_blocks.{index}" for index in (0, 1))
    assert found == {f"{block}.resnets.0": first, f"{block}.attentions.0": first, first: first, second: second,
                     f"{block}.downsamplers.0": second}  # fmt: skip
    assert columns(["transformer.blocks.3"]) == {"transformer.blocks.3": "transformer.blocks.3"}


def test_roles_stand_as_data_flows() -> None:
    roles = ["proj_out", "ff_context.net.0.proj", "attn.to_v", "attn.to_k", "attn.to_q", "attn.to_out.0", "norm.linear"]
    assert sorted(roles, key=role_order) == [
        "norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff_context.net.0.proj", "proj_out"
    ]  # fmt: skip
    layers = ["mlp.down_proj", "self_attn.o_proj", "self_attn.v_proj", "self_attn.k_proj", "self_attn.q_proj"]
    assert sorted(layers, key=role_order) == layers[::-1]
