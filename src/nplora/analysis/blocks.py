"""Blocks of a model: which one a module belongs to, which role it plays there, and the model's own order."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A block is the path down to the last numbered container; what follows is the role: "attn1.to_out.0", "proj_in".
_CONTAINER = r"\w*(?:blocks?|layers?|resnets|attentions|samplers|refiner|transformer\.h)"
_STAGED = re.compile(rf"^(.*?\.{_CONTAINER})\.\d+(?:\.|$)")
_BLOCK = re.compile(rf"^(.*\.{_CONTAINER}\.\d+)\.(.+)$")
_MIDDLE = re.compile(r"^(.*\.(?:mid_block|encoder))\.(.+)$")
_UNET = re.compile(r"^(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|\w+samplers)\.(\d+)(.*)$")
_DIGITS = re.compile(r"(\d+)")

# Where a path's first word stands in its model; words that are not listed stand in the middle.
_FIRST = ("conv_in", "x_embedder", "img_in", "context_embedder", "txt_in", "time_embedding", "time_text_embed",
          "add_embedding", "pos_embed", "patch_embedding", "condition_embedder")  # fmt: skip
_STAGES = {"down_blocks": 2, "mid_block": 3, "up_blocks": 4, "transformer_blocks": 2, "single_transformer_blocks": 3}
_LAST = ("norm_out", "conv_norm_out", "proj_out", "conv_out", "text_projection")
# Roles in a block, in the order in which data flows; the first pattern that is found counts.
_ROLES = (
    r"^(conv_in|img_in|txt_in|x_embedder)", r"^conv1|in_layers", r"time_emb_proj|emb_layers", r"^conv2|out_layers",
    r"conv_shortcut|skip", r"^conv$", r"^proj_in", r"^norm", r"add_[qkv]_proj|add_out",
    r"attn1|self_attn|^attention|^attn\b|qkv", r"attn2|cross_attn",
    r"^(ff|ffn|mlp|proj_mlp|feed_forward|ff_context|img_mlp|txt_mlp)\b", r"^proj_out",
)  # fmt: skip
_PARTS = (r"(to_|add_|self_attn\.|\b)q(_proj|uery)?(_proj)?$", r"(to_|add_|self_attn\.|\b)k(_proj|ey)?(_proj)?$",
          r"(to_|add_|self_attn\.|\b)v(_proj|alue)?(_proj)?$", r"to_out|out_proj|to_add_out|\bo(_proj)?$")  # fmt: skip
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


def role_order(role: str) -> tuple[int, int, str]:
    """A key that sorts the modules of one block as data flows through it: q, k, v, out; attention, then feed-forward.

    >>> sorted(["ff.net.2", "attn2.to_k", "attn1.to_out.0", "attn1.to_k", "attn1.to_q", "proj_in"], key=role_order)
    ['proj_in', 'attn1.to_q', 'attn1.to_k', 'attn1.to_out.0', 'attn2.to_k', 'ff.net.2']
    """
    place = next((i for i, pattern in enumerate(_ROLES) if re.search(pattern, role)), len(_ROLES))
    part = next((i for i, pattern in enumerate(_PARTS) if re.search(pattern, role)), len(_PARTS))
    return place, part, role


def columns(blocks: Iterable[str]) -> dict[str, str]:
    """Block -> the one that it shares a column of a map with: a UNet's layer is a ResNet, its transformer, a sampler.

    >>> columns(["unet.up_blocks.0.resnets.1", "unet.up_blocks.0.attentions.1.transformer_blocks.0"])
    {'unet.up_blocks.0.resnets.1': 'unet.up_blocks.0.attentions.1.transformer_blocks.0', \
'unet.up_blocks.0.attentions.1.transformer_blocks.0': 'unet.up_blocks.0.attentions.1.transformer_blocks.0'}
    """
    listed = sorted(set(blocks), key=lambda block: model_order(f"{block}.x"))
    layers: dict[tuple[str, str], list[str]] = {}
    stages: dict[str, list[str]] = {}
    for block in listed:
        stage, kind, index, _ = _split(block)
        if kind in _KINDS:
            layers.setdefault((stage, index), []).append(block)
            stages.setdefault(stage, []).append(block)
    found = {}
    for block in listed:
        stage, kind, index, rest = _split(block)
        if kind in _KINDS and not rest:
            found[block] = max(layers[stage, index], key=lambda other: (other.count("."), -listed.index(other)))
        else:
            found[block] = block
    for block in listed:
        stage, kind, _, _ = _split(block)
        if kind.endswith("samplers") and stage in stages:  # it closes the stage
            found[block] = next(other for other in reversed(stages[stage]) if found[other] == other)
    return found


def _split(block: str) -> tuple[str, str, str, str]:
    """Stage, kind, number and rest of a UNet's block; of another one the block alone."""
    component, _, path = block.partition(".")
    match = _UNET.match(path)
    return (f"{component}.{match[1]}", match[2], match[3], match[4]) if match else (block, "", "", "")


def stage_of(name: str) -> str:
    """The part of the model that a module or block stands in: one of a UNet's blocks, or all blocks of one sort.

    >>> stage_of("unet.down_blocks.1.attentions.0.proj_in"), stage_of("transformer.blocks.7.attn.to_q")
    ('unet.down_blocks.1', 'transformer.blocks')
    """
    component, _, path = name.partition(".")
    if component.startswith("text_encoder"):
        return component
    match = re.match(r"(?:down|up)_blocks\.\d+|mid_block", path)
    if match:
        return f"{component}.{match[0]}"
    match = _STAGED.match(name)
    return match[1] if match else component


def coarse_blocks(names: Iterable[str], most: int = COARSE) -> dict[str, str]:
    """Module -> a block coarse enough that there are at most `most` of them, in the model's order.

    Blocks that are many and alike are taken together, a few neighbours at a time; a text encoder beside a denoiser is
    one block.

    >>> coarse_blocks(["unet.down_blocks.0.a.x", "unet.down_blocks.1.a.x"])["unet.down_blocks.1.a.x"]
    'unet.down_blocks.1'
    >>> sorted(set(coarse_blocks(f"transformer.blocks.{i}.attn.to_q" for i in range(40)).values()))[:2]
    ['transformer.blocks.0-2', 'transformer.blocks.12-14']
    """
    listed = sorted(names, key=model_order)
    beside = any(not name.startswith("text_encoder") for name in listed)
    places = {name: _place(name, beside) for name in listed}
    if len({stage for stage, _ in places.values()}) <= most:
        numbers = [number for _, number in places.values() if number is not None]
        for width in range(1, max(numbers, default=0) + 2):
            groups = {name: (stage, _group(number, width)) for name, (stage, number) in places.items()}
            if len(set(groups.values())) <= most:
                return _called(groups, places)
    coarser = {name: ".".join(name.split(".")[:2]) for name in listed}
    return coarser if len(set(coarser.values())) <= most else {name: name.partition(".")[0] for name in listed}


Place = tuple[str, int | None]


def _place(name: str, beside: bool) -> Place:
    """A module's stage and the number of its block there; None where the stage is one block."""
    stage = stage_of(name)
    if stage.startswith("text_encoder") and not beside and (match := _STAGED.match(name)):
        stage = match[1]
    number = re.match(r"\.(\d+)(?:\.|$)", name[len(stage) :])
    return stage, int(number[1]) if number else None


def _group(number: int | None, width: int) -> int | None:
    return None if number is None else number // width


def _called(groups: dict[str, Place], places: dict[str, Place]) -> dict[str, str]:
    """The name of each module's group: its stage, with the first and the last block that it holds."""
    held: dict[Place, list[int]] = {}
    for name, group in groups.items():
        held.setdefault(group, []).append(places[name][1] or 0)
    called = {}
    for (stage, number), blocks in held.items():
        first, last = min(blocks), max(blocks)
        numbered = f"{stage}.{first}" if first == last else f"{stage}.{first}-{last}"
        called[stage, number] = stage if number is None else numbered
    return {name: called[group] for name, group in groups.items()}
