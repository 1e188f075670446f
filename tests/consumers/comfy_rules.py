"""Which keys of a file ComfyUI takes and what they add, by its rules as design notes describe them.

ComfyUI's loader is GPL and no package, so this is no copy of it: it is written from facts about names and formulas
(lora-formats.md: 1.3 to 1.6 for names, 2.1 for the order of suffixes, 2.3 for scales, 3.3). A key that no rule takes
is only logged by ComfyUI; here it is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from consumers.harness import Deltas, Product
from consumers.tiny import modules_of, tiny_pipeline
from consumers.writer import _FLUX_BLOCKS, _FLUX_TOP, _sgm_name

# (up, down, mid) in the order in which ComfyUI looks for them; the first pair that is there is the module's.
SUFFIXES = (
    (".lora_up.weight", ".lora_down.weight", ".lora_mid.weight"),
    ("_lora.up.weight", "_lora.down.weight", None),
    (".lora_B.weight", ".lora_A.weight", None),
    (".lora.up.weight", ".lora.down.weight", None),
    (".lora_B", ".lora_A", None),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight", None),
    (".lora_B.default.weight", ".lora_A.default.weight", None),
)


class Weight(NamedTuple):
    """What a module of a file changes: canonical modules in the order of their rows; halves in the other order."""

    parts: tuple[str, ...]
    swap: bool = False


@cache
def key_map(kind: str) -> dict[str, Weight]:
    """Module of a file -> weight, for a pipeline of `tiny.KINDS`: "sd15-wide", "sdxl-wide" or "flux1-wide"."""
    names = modules_of(tiny_pipeline(kind))
    rules = _flux if kind.startswith("flux1") else _unet
    return {module: weight for name in names for module, weight in (*rules(name, kind), *_text(name, kind))}


def _unet(name: str, kind: str) -> Iterator[tuple[str, Weight]]:
    component, _, path = name.partition(".")
    if component != "unet":
        return
    original = _original(name, kind)
    for spelling in (path, original):
        yield "lora_unet_" + spelling.replace(".", "_"), Weight((name,))
    yield "lycoris_" + path.replace(".", "_"), Weight((name,))
    yield "diffusion_model." + original, Weight((name,))
    for prefix in ("", "unet."):  # the names of diffusers' first scripts, which `unet.(...).to_q.lora_A` are not
        yield prefix + path.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out"), Weight((name,))


def _original(name: str, kind: str) -> str:
    original = _sgm_name(name).removeprefix("unet.")
    if kind.startswith("sd15") and original == "output_blocks.2.2.conv":
        return "output_blocks.2.1.conv"  # no attention stands between in SD1.5
    return original


def _text(name: str, kind: str) -> Iterator[tuple[str, Weight]]:
    component, _, path = name.partition(".")
    flat = path.replace(".", "_")
    prefixes = {
        "text_encoder": ("lora_te_", "lora_te1_"),
        "text_encoder_2": ("lora_te2_", "lora_te3_") if kind.startswith("flux1") else ("lora_te2_",),
    }
    for prefix in prefixes.get(component, ()):
        yield prefix + flat, Weight((name,))
    if ".encoder.layers." in name:  # CLIP's, under diffusers names too
        yield name, Weight((name,))


def _flux(name: str, kind: str) -> Iterator[tuple[str, Weight]]:
    component, _, path = name.partition(".")
    if component != "transformer":
        return
    weight = Weight((name,))
    yield f"transformer.{path}", weight
    for prefix in ("lora_transformer_", "lycoris_"):
        yield prefix + path.replace(".", "_"), weight
    if path == "norm_out.linear":
        yield "lora_unet_final_layer_adaLN_modulation_1", weight._replace(swap=True)
    elif path in _FLUX_TOP:
        yield f"lora_unet_{_FLUX_TOP[path]}", weight
    for (ours, theirs), bodies in _FLUX_BLOCKS.items():
        for body, parts in bodies.items():
            block, _, rest = path.removeprefix(f"{ours}.").partition(".")
            if path.startswith(f"{ours}.") and rest == parts.split()[0]:
                whole = tuple(f"transformer.{ours}.{block}.{part}" for part in parts.split())
                yield f"lora_unet_{theirs}_{block}_{body}", Weight(whole)


def read(kind: str, state: Mapping[str, torch.Tensor]) -> tuple[Deltas, list[str]]:
    """What ComfyUI adds to each weight of a model, and the keys that it leaves."""
    shapes, deltas, left = modules_of(tiny_pipeline(kind)), {}, set(state)
    for module, weight in key_map(kind).items():
        suffixes = next((found for found in SUFFIXES if module + found[0] in state), None)
        if suffixes is None:
            continue
        keys = [module + suffix if suffix else "" for suffix in (*suffixes, ".alpha")]
        delta = _delta(*map(state.get, keys))
        if _fits(delta, [shapes[part] for part in weight.parts]):  # else a message, and the module is skipped
            deltas |= _split(delta, weight, shapes)
            left.difference_update(keys)
    return deltas, sorted(left)


def _delta(up: torch.Tensor, down: torch.Tensor, mid: torch.Tensor | None, alpha: torch.Tensor | None) -> Product:
    assert mid is None, "nplora writes no Tucker core"
    scale = 1.0 if alpha is None else alpha.item() / len(down)
    return Product(scale * up.double().flatten(1).numpy(), down.double().flatten(1).numpy())


def _fits(delta: Product, shapes: list[tuple[int, ...]]) -> bool:
    return delta.shape == (sum(shape[0] for shape in shapes), int(np.prod(shapes[0][1:])))


def _split(delta: Product, weight: Weight, shapes: Mapping[str, tuple[int, ...]]) -> Deltas:
    up = np.roll(delta.up, len(delta.up) // 2, axis=0) if weight.swap else delta.up
    ends = np.cumsum([shapes[part][0] for part in weight.parts])[:-1]
    return {part: Product(rows, delta.down) for part, rows in zip(weight.parts, np.split(up, ends), strict=True)}
