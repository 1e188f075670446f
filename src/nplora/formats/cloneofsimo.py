"""cloneofsimo/lora: a numbered list of layers, ``unet:0:up``; names follow from the order of 2023's diffusers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from . import Description, Format, Place, Written, unspelled


@lru_cache(maxsize=1)
def order() -> dict[str, list[str]]:
    """Component -> canonical paths in the order of the list."""
    table: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table


def locate(module: str, suffix: str) -> Place | None:
    component, _, index = module.partition(":")
    if suffix not in (":up", ":down") or not index.isdigit():
        return None
    names = order().get(component, [])
    slot = {"unet": "denoiser", "text_encoder": "te1"}.get(component)
    return Place(slot, names[int(index)]) if int(index) < len(names) else Place(None, module)


def describe(written: Written) -> Description:
    """Its readers demand the rank of every entry."""
    return Description({f"{module}:rank": str(written.ranks[name]) for name, module in written.modules.items()})


FORMAT = Format(
    name="cloneofsimo",
    title="cloneofsimo/lora",
    example="unet:0:up",
    locate=locate,
    spell=unspelled,
    suffixes={"down": ":down", "up": ":up"},
    describe=describe,
    weight=1.5,
)
