"""Blocks of a model: which one a module belongs to, which role it plays there, and the model's own order."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A block is the path down to the last numbered container; what follows is the role: "attn1.to_out.0", "proj_in".
_CONTAINER = r"\w*(?:blocks?|layers?|resnets|attentions|samplers|refiner|transformer\.h)"
_BLOCK = re.compile(rf"^(.*\.{_CONTAINER}\.\d+)\.(.+)$")
_MIDDLE = re.compile(r"^(.*\.(?:mid_block|encoder))\.(.+)$")
_UNET = re.compile(r"^(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|\w+samplers)\.(\d+)(.*)$")
_DIGITS = re.compile(r"(\d+)")

# Where a path's first word stands in its model; words that are not listed stand in the middle.
_FIRST = ("conv_in", "x_embedder", "img_in", "context_embedder", "txt_in", "time_embedding", "time_text_embed",
          "add_embedding", "pos_embed", "patch_embedding", "condition_embedder")  # fmt: skip
_STAGES = {"down_blocks": 2, "mid_block": 3, "up_blocks": 4, "transformer_blocks": 2, "single_transformer_blocks": 3}
_LAST = ("norm_out", "conv_norm_out", "proj_out", "conv_out", "text_projection")
_KINDS = {"resnets": 0, "attentions": 1}  # one after the other in each layer of a UNet block; samplers close it
COARSE = 16  # blocks up to which a summary shows them one by one


def split_block(name: str) -> tuple[str, str]:
    """The block of a canonical module and its role there.

    >>> split_block("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0")
    ('unet.down_blocks.1.attentions.0.transformer_blocks.1', 'attn1.to_out.0')
    >>> split_block("transformer.proj_out")
    ('transformer', 'proj_out')
    """
    match = _BLOCK.match(name) or _MIDDLE.match(name)
    if match:
        return match[1], match[2]
    component, _, path = name.partition(".")
    return (component, path) if path else ("", name)


def model_order(name: str) -> tuple[object, ...]:
    """A key that sorts canonical modules (or blocks) as data flows through the model; the denoiser comes first.

    >>> sorted(["unet.up_blocks.1.resnets.0.conv1", "unet.mid_block.attentions.0.proj_in",
    ...         "unet.down_blocks.10.resnets.0.conv1", "unet.down_blocks.2.resnets.1.conv1"], key=model_order)[0]
    'unet.down_blocks.2.resnets.1.conv1'
    """
    component, _, path = name.partition(".")
    text = component.startswith("text_encoder")
    first = path.partition(".")[0]
    stage = 0 if first in _FIRST else 9 if first in _LAST else _STAGES.get(first, 2)
    match = _UNET.match(path)
    if match:
        block, kind, index, rest = match.groups()
        sampler = kind not in _KINDS
        return text, component, stage, _natural(block), sampler, int(index), _KINDS.get(kind, 2), _natural(rest)
    return text, component, stage, _natural(path), False, 0, 0, ()


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Numbers sort as numbers, words as words."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(text) if part)


def coarse_blocks(names: Iterable[str], most: int = COARSE) -> dict[str, str]:
    """Module -> a block coarse enough that there are at most `most` of them, in the model's order.

    >>> coarse_blocks(["unet.down_blocks.0.a.x", "unet.down_blocks.1.a.x"])["unet.down_blocks.1.a.x"]
    'unet.down_blocks.1'
    """
    listed = sorted(names, key=model_order)
    found: dict[str, str] = {}
    for pattern in (r"^[^.]+\.[^.]+(?:\.\d+)?", r"^[^.]+\.[^.]+", r"^[^.]+"):
        matches = ((name, re.match(pattern, name)) for name in listed)
        found = {name: match[0] if match else name for name, match in matches}
        if len(set(found.values())) <= most:
            break
    return found
