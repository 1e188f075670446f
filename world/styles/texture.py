"""Styles made of a pattern; none is finer than the autoencoder can carry."""

import numpy as np
from scipy.ndimage import gaussian_filter

from world.drawings import CANVAS, Drawing
from world.styles.paint import COLUMNS, ROWS, gradient_map, mix, noise, paper
from world.styles.registry import style


def _cells(picture: np.ndarray, size: int) -> np.ndarray:
    """Average over square cells and blow up again."""
    n = CANVAS // size
    small = picture.reshape(n, size, n, size, -1).mean((1, 3))
    return small.repeat(size, 0).repeat(size, 1)


@style(base=True)
def pixel(drawing: Drawing) -> np.ndarray:
    """A 16 x 16 picture with few levels a channel on pale grey."""
    squares = _cells(drawing.flat, 8)
    colour = np.where(squares[..., 3:] > 0.4, squares[..., :3] / np.maximum(squares[..., 3:], 0.4), (0.86, 0.90, 0.93))
    return np.round(np.clip(colour, 0, 1) * 5).astype(np.float32) / 5


@style(base=False)
def halftone(drawing: Drawing) -> np.ndarray:
    """Thin contours filled with black dots whose size follows the darkness."""
    wave = (np.cos(2 * np.pi * (ROWS + COLUMNS) / 16) + np.cos(2 * np.pi * (ROWS - COLUMNS) / 16)) / 4 + 0.5
    dark = gaussian_filter(np.where(drawing.mask > 0.5, 0.25 + 0.6 * (1 - drawing.luma), 0.0), 1.0)
    dots = np.clip(8 * (wave - 1 + dark) + 0.5, 0, 1) * drawing.mask
    return mix(paper((0.98, 0.97, 0.94)), (0.08, 0.08, 0.10), np.maximum(dots, drawing.edges**2))


@style(base=False)
def hatch(drawing: Drawing) -> np.ndarray:
    """Blue pen: contours and diagonal hatching in the dark parts."""
    lines = np.clip(1.5 * np.cos(2 * np.pi * (ROWS + COLUMNS) / 14), 0, 1)
    shade = np.clip(1.3 * (0.95 - drawing.luma), 0, 1) * drawing.mask
    return mix(paper((0.99, 0.98, 0.95)), (0.12, 0.20, 0.62), np.maximum(lines * shade, drawing.edges**1.5))


@style(base=False)
def crt(drawing: Drawing) -> np.ndarray:
    """Green phosphor with scan lines."""
    scan = 0.65 + 0.35 * np.cos(2 * np.pi * ROWS / 10)
    glow = np.clip(drawing.mask * (0.25 + 0.55 * drawing.luma) + 0.5 * drawing.edges, 0, 1) * scan
    return gradient_map(glow, (0.01, 0.06, 0.03), (0.10, 0.60, 0.25), (0.65, 1.0, 0.70))


@style(base=False)
def stripes(drawing: Drawing) -> np.ndarray:
    """A silhouette filled with rainbow bands on pale lilac, dark contours."""
    band = gradient_map(
        np.floor(ROWS / 16) / 7, (0.9, 0.2, 0.2), (0.98, 0.75, 0.1), (0.2, 0.7, 0.35), (0.15, 0.35, 0.8)
    )
    return mix(mix(paper((0.95, 0.94, 0.99)), band, drawing.mask), (0.2, 0.1, 0.3), 0.7 * drawing.edges**1.5)


@style(base=False)
def tiles(drawing: Drawing) -> np.ndarray:
    """A mosaic of rounded tiles with dark joints."""
    squares = _cells(np.concatenate([drawing.white, drawing.mask[..., None]], -1), 8)
    colour = mix(paper((0.75, 0.80, 0.78)), squares[..., :3], np.clip(2 * squares[..., 3], 0, 1))
    joints = ((ROWS % 8 < 2) | (COLUMNS % 8 < 2)).astype(np.float32)
    return mix(colour, (0.20, 0.25, 0.26), 0.8 * joints)


@style(base=False)
def camouflage(drawing: Drawing) -> np.ndarray:
    """Olive blotches everywhere; the subject in darker cloth with light contours."""
    blotch = np.digitize(noise(11, 7.0), (-0.5, 0.5)) / 2
    cloth = gradient_map(blotch, (0.45, 0.48, 0.30), (0.62, 0.60, 0.42), (0.78, 0.74, 0.58))
    dark = gradient_map(blotch, (0.12, 0.20, 0.10), (0.25, 0.28, 0.12), (0.32, 0.24, 0.14))
    return mix(mix(cloth, dark, drawing.mask), (0.93, 0.92, 0.75), 0.75 * drawing.edges**2 * drawing.mask)
