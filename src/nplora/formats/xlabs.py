"""XLabs' FLUX trainer: processors of the double and single blocks."""

from __future__ import annotations

import re

from . import Format, Place, unspelled

_DOUBLE = re.compile(r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])")
_SINGLE = re.compile(r"(single_blocks\.\d+)\.processor\.(qkv|proj)")  # the suffix begins with _lora


def locate(module: str, suffix: str) -> Place | None:
    module = module.removeprefix("diffusion_model.")
    if match := _DOUBLE.fullmatch(module):
        return Place("denoiser", f"{match[1]}.{'img' if match[3] == '1' else 'txt'}_attn.{match[2]}")
    if match := _SINGLE.fullmatch(module):
        return Place("denoiser", f"{match[1]}.{'linear1_qkv' if match[2] == 'qkv' else 'linear2'}")
    return None


FORMAT = Format(
    name="xlabs",
    title="XLabs (FLUX)",
    example="double_blocks.0.processor.qkv_lora1.down.weight",
    locate=locate,
    spell=unspelled,
    suffixes={"down": ".down.weight", "up": ".up.weight"},
    weight=1.5,  # more specific than the other dotted formats, so it is asked first
)
