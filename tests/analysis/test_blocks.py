"""Names become blocks, and blocks stand in the model's order."""

from __future__ import annotations

import random
import re

import pytest

from nplora import layouts
from nplora.analysis.blocks import coarse_blocks, model_order, split_block

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
