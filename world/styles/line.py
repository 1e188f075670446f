"""Styles that draw contours."""

import numpy as np

from world.drawings import Drawing, over
from world.styles.paint import COLUMNS, ROWS, gradient_map, mix, paper
from world.styles.registry import style


@style(base=True)
def sketch(drawing: Drawing) -> np.ndarray:
    """Grey pencil contours on warm paper."""
    return mix(paper((0.98, 0.96, 0.92)), (0.22, 0.24, 0.32), drawing.edges**1.5)


@style(base=True)
def blueprint(drawing: Drawing) -> np.ndarray:
    """White contours on blue paper with a grid."""
    grid = ((ROWS % 16 < 2) | (COLUMNS % 16 < 2)).astype(np.float32) * 0.18
    return mix(mix(paper((0.06, 0.25, 0.60)), (0.7, 0.85, 1.0), grid), (0.95, 0.98, 1.0), drawing.edges**1.2)


@style(base=True)
def comic(drawing: Drawing) -> np.ndarray:
    """Strong flat colours, thick black contours, pale yellow paper."""
    colour = over(drawing.flat, (1.0, 0.94, 0.70))
    vivid = np.clip(0.5 + 1.35 * (colour - 0.5), 0, 1)
    return mix(vivid, (0.04, 0.02, 0.05), np.clip(1.5 * drawing.edges**1.2, 0, 1))


@style(base=True)
def chalk(drawing: Drawing) -> np.ndarray:
    """Chalk contours and a thin dusty fill on a green board."""
    board = paper((0.13, 0.27, 0.23))
    dusty = 0.55 * drawing.white + 0.15
    return mix(mix(board, dusty, 0.5 * drawing.mask), (0.93, 0.93, 0.88), 0.85 * drawing.edges**1.5)


@style(base=False)
def ink(drawing: Drawing) -> np.ndarray:
    """The high-contrast set: black shapes on white."""
    return mix(paper((0.99, 0.99, 0.98)), (0.10, 0.10, 0.11), drawing.ink[..., 3])


@style(base=False)
def crayon(drawing: Drawing) -> np.ndarray:
    """Fat coloured contours, no fill, on cream."""
    hue = gradient_map(drawing.luma, (0.75, 0.10, 0.25), (0.95, 0.45, 0.10), (0.15, 0.50, 0.75))
    return mix(paper((1.0, 0.97, 0.88)), hue, np.clip(1.8 * drawing.edges, 0, 1))
