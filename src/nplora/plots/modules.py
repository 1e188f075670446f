"""Heat maps: a metric of every module, blocks from left to right as data flows, roles from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.blocks import coarse_blocks, model_order, split_block
from . import SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]


def grid(rows: Rows, value: Callable[[Mapping[str, Any]], float | None]) -> tuple[list[str], list[str], np.ndarray]:
    """Roles, blocks and their values; NaN where a block has no such module.

    Args:
        rows: each with "module", the canonical name.
        value: of a row.

    >>> grid([{"module": "unet.mid_block.attentions.0.proj_in", "x": 2.0}], lambda row: row["x"])[:2]
    (['proj_in'], ['unet.mid_block.attentions.0'])
    """
    places = [(*split_block(row["module"]), value(row)) for row in rows]
    blocks = sorted({block for block, _, _ in places}, key=lambda block: model_order(f"{block}.x"))
    roles = sorted({role for _, role, _ in places})
    table = np.full((len(roles), len(blocks)), np.nan)
    across, down = {b: i for i, b in enumerate(blocks)}, {r: i for i, r in enumerate(roles)}
    for block, role, number in places:
        if number is not None:
            table[down[role], across[block]] = number
    return roles, blocks, table


def heat(axes: Axes, rows: Rows, value: Callable[[Mapping[str, Any]], float | None], title: str, unit: str) -> None:
    """One heat map with a bar that says what its colours mean."""
    roles, blocks, table = grid(rows, value)
    image = axes.imshow(table, aspect="auto", cmap=SEQUENCE, interpolation="nearest", vmin=0)
    axes.set_title(title)
    axes.set_yticks(range(len(roles)), roles, fontsize=7)
    starts, names = stages(blocks)
    axes.set_xticks(
        [start - 0.5 for start in starts], [short(name) for name in names], fontsize=7, rotation=40, ha="right"
    )
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="white", linewidth=1)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def stages(blocks: Iterable[str]) -> tuple[list[int], list[str]]:
    """Where a new stage of the model begins, and its name.

    >>> stages(["unet.down_blocks.0.a.0", "unet.down_blocks.0.a.1", "unet.mid_block.a.0"])
    ([0, 2], ['unet.down_blocks.0', 'unet.mid_block'])
    """
    listed = list(blocks)
    homes = coarse_blocks(listed)
    starts: list[int] = []
    names: list[str] = []
    for index, block in enumerate(listed):
        if not names or homes[block] != names[-1]:
            starts.append(index)
            names.append(homes[block])
    return starts, names


def short(name: str) -> str:
    """A block's name that fits under a plot.

    >>> short("unet.down_blocks.1"), short("transformer.single_transformer_blocks"), short("text_encoder.text_model")
    ('down 1', 'single', 'text_encoder')
    """
    component, _, path = name.partition(".")
    if component.startswith("text_encoder"):
        return component
    path = path.replace("single_transformer_blocks", "single").replace("transformer_blocks", "double")
    return path.replace("_blocks", "").replace("_block", "").replace(".", " ") or component
