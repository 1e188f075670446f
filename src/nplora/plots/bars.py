"""Before and after a fusion, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import COLOURS, CYCLE
from .modules import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def norms(axes: Axes, found: Mapping[str, Any]) -> None:
    """Norms of the inputs, their plain sum and the fused update in each block.

    Args:
        axes: where to draw.
        found: from `nplora.analysis.outcome`.
    """
    blocks, kinds = found["blocks"], [*found["roles"], "sum", "fused"]
    places, width = np.arange(len(blocks)), 0.84 / len(kinds)
    for index, kind in enumerate(kinds):
        label = "plain sum" if kind == "sum" else kind
        values = [block[kind] for block in blocks]
        middle = places + (index - (len(kinds) - 1) / 2) * width
        axes.bar(middle, values, 0.94 * width, color=_colour(kind, index), label=label)
    _name(axes, blocks)
    axes.set_title("Size of the change, before and after")
    axes.set_ylabel("norm")
    axes.legend(fontsize=8, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, 1.0))
    axes.set_ylim(0, 1.25 * max((max(block[kind] for kind in kinds) for block in blocks), default=1) or 1)
    axes.grid(axis="y")


def kept(axes: Axes, found: Mapping[str, Any]) -> None:
    """How much of each input the fused update holds in each block: 1 is all of it."""
    blocks, roles = found["blocks"], found["roles"]
    places, width = np.arange(len(blocks)), 0.8 / max(len(roles), 1)
    for index, role in enumerate(roles):
        values = [np.nan if block[f"{role}_kept"] is None else block[f"{role}_kept"] for block in blocks]
        middle = places + (index - (len(roles) - 1) / 2) * width
        axes.bar(middle, values, 0.94 * width, color=_colour(role, index), label=role)
    axes.axhline(1.0, color="#333333", linewidth=1, linestyle=":")
    _name(axes, blocks)
    axes.set_title("How much of each is in the result")
    axes.set_ylabel("strength")
    low, high = axes.get_ylim()
    axes.set_ylim(low, 1.25 * high)
    axes.legend(fontsize=8, ncols=len(roles), loc="upper center", bbox_to_anchor=(0.5, 1.0))
    axes.grid(axis="y")


def _colour(kind: str, index: int) -> str:
    return COLOURS.get(kind) or CYCLE[index % len(CYCLE)]


def _name(axes: Axes, blocks: Sequence[Mapping[str, Any]]) -> None:
    names = [short(block["block"]) for block in blocks]
    axes.set_xticks(range(len(blocks)), names, rotation=40, ha="right", fontsize=8)
    axes.set_axisbelow(True)
