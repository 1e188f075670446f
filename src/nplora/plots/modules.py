"""Heat maps: a metric of every module, blocks from left to right as data flows, roles from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.blocks import columns, model_order, role_order, split_block, stage_of
from . import ABSENT, PAPER, SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Value = Callable[[Mapping[str, Any]], float | None]
NARROW = 0.045  # of a map's width: a stage that is narrower has its name turned


def grid(rows: Rows, value: Value) -> tuple[list[str], list[str], np.ndarray]:
    """Roles, blocks and their values; NaN where a block has no such module.

    Args:
        rows: each with "module", the canonical name.
        value: of a row.

    >>> grid([{"module": "unet.mid_block.attentions.0.proj_in", "x": 2.0}], lambda row: row["x"])[:2]
    (['proj_in'], ['unet.mid_block.attentions.0'])
    """
    places = [(*split_block(row["module"]), value(row)) for row in rows]
    homes = columns(block for block, _, _ in places)
    blocks = sorted(set(homes.values()), key=lambda block: model_order(f"{block}.x"))
    first: dict[str, tuple[object, ...]] = {}  # the part of the model that a role is met in first
    for block, role, _ in places:
        part = model_order(f"{block}.x")[:2]
        first[role] = min(first.get(role, part), part)
    roles = sorted(first, key=lambda role: (first[role], role_order(role)))
    table = np.full((len(roles), len(blocks)), np.nan)
    across, down = {b: i for i, b in enumerate(blocks)}, {r: i for i, r in enumerate(roles)}
    for block, role, number in places:
        if number is not None:
            table[down[role], across[homes[block]]] = number
    return roles, blocks, table


def height(rows: Rows) -> float:
    """Inches that a heat map of these modules needs."""
    return 0.9 + 0.13 * len({split_block(row["module"])[1] for row in rows})


def heat(axes: Axes, rows: Rows, value: Value, title: str, unit: str, *, share: bool = False) -> None:
    """One heat map with a bar beside it that says what its colours mean; grey where there is no such module.

    Args:
        axes: where to draw.
        rows, value: as in `grid`.
        title, unit: words for the map and for its bar.
        share: the numbers are shares of one: the bar goes from 0 to 100 % whatever they are.
    """
    from matplotlib.ticker import PercentFormatter

    roles, blocks, table = grid(rows, value)
    largest = float(np.nanmax(table)) if np.isfinite(table).any() else 0.0
    top = 1.0 if share or not largest > 0 else largest
    image = axes.imshow(table, aspect="auto", cmap=SEQUENCE, interpolation="nearest", vmin=0, vmax=top)
    axes.set_facecolor(ABSENT)
    nothing = " (zero everywhere)" if np.isfinite(table).any() else " (not known)"
    axes.set_title(title if largest > 0 else title + nothing)
    axes.set_yticks(range(len(roles)), roles, fontsize=7)
    _name_stages(axes, blocks)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    beside = axes.inset_axes((1.012, 0.0, 0.014, 1.0))
    bar = axes.figure.colorbar(image, cax=beside, format=PercentFormatter(1.0, decimals=0) if share else None)
    bar.set_label(unit, fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)


def _name_stages(axes: Axes, blocks: Sequence[str]) -> None:
    """The model's stages below a map, each in the middle of its columns, with a line between two of them."""
    starts, names = stages(blocks)
    ends = [*starts[1:], len(blocks)]
    words = [_numbered(name, blocks[start:end]) for name, start, end in zip(names, starts, ends, strict=True)]
    tight = any(
        end - start < len(blocks) * max(NARROW, 0.0105 * len(word))
        for word, start, end in zip(words, starts, ends, strict=True)
    )
    axes.set_xticks(
        [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)], words, fontsize=7,
        rotation=40 if tight else 0, ha="right" if tight else "center", rotation_mode="anchor" if tight else "default",
    )  # fmt: skip
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=PAPER, linewidth=1.5)


def _numbered(name: str, blocks: Sequence[str]) -> str:
    """A stage's name with the numbers of its blocks, where these are numbered."""
    numbers = [block[len(name) + 1 :] for block in blocks]
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        return short(name)
    return f"{short(name)} {numbers[0]} to {numbers[-1]}"


def stages(blocks: Iterable[str]) -> tuple[list[int], list[str]]:
    """Where a new stage of the model begins, and its name.

    >>> stages(["unet.down_blocks.0.a.0", "unet.down_blocks.0.a.1", "unet.mid_block.a.0"])
    ([0, 2], ['unet.down_blocks.0', 'unet.mid_block'])
    """
    starts: list[int] = []
    names: list[str] = []
    for index, block in enumerate(blocks):
        if not names or stage_of(block) != names[-1]:
            starts.append(index)
            names.append(stage_of(block))
    return starts, names


def short(name: str) -> str:
    """A block's name that fits under a plot.

    >>> short("unet.down_blocks.1"), short("transformer.single_transformer_blocks.0-3"), short("text_encoder_2")
    ('down 1', 'single 0-3', 'text encoder 2')
    """
    component, _, path = name.partition(".")
    if component.startswith("text_encoder") and not path:
        return component.replace("_", " ")
    path = path.replace("single_transformer_blocks", "single").replace("transformer_blocks", "double")
    path = path.removeprefix("text_model.encoder.").removeprefix("model.").removeprefix("transformer.")
    return path.replace("_blocks", "").replace("_block", "").replace(".", " ") or component
