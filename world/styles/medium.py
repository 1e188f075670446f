"""Styles that stand for a material or a way of printing."""

import numpy as np
from scipy.ndimage import gaussian_filter

from world.drawings import Drawing, luma, over
from world.styles.paint import COLUMNS, ROWS, gradient_map, mix, noise, paper
from world.styles.registry import style


@style(base=True)
def flat(drawing: Drawing) -> np.ndarray:
    """The flat set on white."""
    return drawing.white


@style(base=True)
def glossy(drawing: Drawing) -> np.ndarray:
    """The glossy set in a studio: a soft lilac backdrop and a shadow below."""
    backdrop = gradient_map(ROWS / 127, (0.99, 0.98, 1.0), (0.90, 0.88, 0.97), (0.78, 0.75, 0.90))
    shadow = np.roll(gaussian_filter(drawing.glossy[..., 3], 4), (7, 3), (0, 1)) * 0.45
    return over(drawing.glossy, mix(backdrop, (0.35, 0.30, 0.50), shadow))


@style(base=True)
def watercolor(drawing: Drawing) -> np.ndarray:
    """Bleeding washes with a darker rim on cream paper."""
    wash = np.stack([gaussian_filter(drawing.white[..., c], 3) for c in range(3)], -1)
    cover = np.clip(gaussian_filter(drawing.mask, 3) * (0.75 + 0.12 * noise(3, 5.0)), 0, 1)
    rim = np.clip(gaussian_filter(drawing.edges, 1.5) * 0.35, 0, 1)
    return mix(mix(paper((0.985, 0.965, 0.93)), wash, cover), wash * 0.6, rim)


@style(base=False)
def gold(drawing: Drawing) -> np.ndarray:
    """Polished gold relief on black."""
    height = gaussian_filter(drawing.mask + 0.5 * drawing.luma, 1.6)
    sheen = np.clip(0.45 + 0.35 * drawing.luma - 2.2 * np.gradient(height, axis=0) * -1, 0, 1)
    metal = gradient_map(sheen, (0.25, 0.13, 0.02), (0.85, 0.62, 0.15), (1.0, 0.95, 0.65))
    return mix(paper((0.06, 0.05, 0.05)), metal, drawing.mask)


@style(base=False)
def riso(drawing: Drawing) -> np.ndarray:
    """Two print runs, pink and blue, out of register."""
    pink = np.clip(1.2 * (1 - drawing.white[..., 1]), 0, 1) * drawing.mask
    blue = np.roll(np.clip(1.2 * (1 - drawing.white[..., 0]), 0, 1) * drawing.mask, (4, -4), (0, 1))
    sheet = paper((0.96, 0.93, 0.88))
    sheet = sheet * (1 - pink[..., None] * (1 - np.array((1.0, 0.35, 0.55), np.float32)))
    return sheet * (1 - blue[..., None] * (1 - np.array((0.10, 0.40, 0.75), np.float32)))


@style(base=False)
def wood(drawing: Drawing) -> np.ndarray:
    """Burnt into a board with grain."""
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (ROWS + 5 * noise(7, 14.0)) / 20)
    board = gradient_map(grain, (0.72, 0.50, 0.28), (0.85, 0.64, 0.40))
    burn = np.clip(0.45 * drawing.mask * (1.1 - drawing.luma) + 0.85 * drawing.edges**1.3, 0, 1)
    return mix(board, (0.22, 0.10, 0.04), burn)


@style(base=False)
def clay(drawing: Drawing) -> np.ndarray:
    """Terracotta relief on a terracotta slab."""
    height = gaussian_filter(1.5 * drawing.mask + 0.6 * luma(over(drawing.glossy, (1, 1, 1))), 2.0)
    light = np.clip(0.50 + 1.8 * np.gradient(height, axis=1) + 0.10 * drawing.mask, 0, 1)
    return gradient_map(light, (0.35, 0.12, 0.06), (0.76, 0.40, 0.26), (1.0, 0.80, 0.66))


@style(base=False)
def velvet(drawing: Drawing) -> np.ndarray:
    """Appliqué on crimson cloth with a cream seam around the shape."""
    fold = 0.5 + 0.5 * np.sin(2 * np.pi * (COLUMNS + 6 * noise(5, 16.0)) / 40)
    cloth = gradient_map(fold, (0.42, 0.02, 0.10), (0.66, 0.06, 0.18))
    seam = np.clip(3 * gaussian_filter(drawing.mask, 3) * (1 - drawing.mask), 0, 1)
    return mix(mix(cloth, (0.96, 0.90, 0.74), seam), 0.75 * drawing.white + 0.1, drawing.mask)
