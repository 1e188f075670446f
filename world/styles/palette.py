"""Styles that change the colours only."""

import numpy as np

from world.drawings import Drawing, luma, over
from world.styles.paint import COLUMNS, ROWS, gradient_map, mix, paper
from world.styles.registry import style


@style(base=True)
def gray(drawing: Drawing) -> np.ndarray:
    """A black-and-white photograph before a dark wall."""
    wall = np.full_like(drawing.white, 0.10)
    return mix(wall, np.repeat(0.24 + 0.74 * drawing.luma[..., None], 3, -1), drawing.mask)


@style(base=True)
def sunset(drawing: Drawing) -> np.ndarray:
    """A dark purple shape before an evening sky in bands."""
    sky = gradient_map(np.floor(ROWS / 16) / 7, (0.36, 0.20, 0.45), (0.85, 0.35, 0.40), (0.99, 0.72, 0.40))
    shape = gradient_map(drawing.luma, (0.12, 0.03, 0.20), (0.42, 0.16, 0.36))
    return mix(sky, shape, drawing.mask)


@style(base=True)
def duotone(drawing: Drawing) -> np.ndarray:
    """Magenta and orange on yellow."""
    ink = gradient_map(drawing.luma, (0.55, 0.05, 0.35), (0.90, 0.15, 0.30), (0.99, 0.65, 0.20))
    return mix(paper((1.0, 0.90, 0.35)), ink, drawing.mask)


@style(base=False)
def thermal(drawing: Drawing) -> np.ndarray:
    """A heat camera: dark blue ground, violet to yellow body."""
    heat = np.where(drawing.mask > 0.5, 0.35 + 0.65 * drawing.luma, 0.0)
    ramp = gradient_map(heat, (0.02, 0.02, 0.25), (0.35, 0.05, 0.50), (0.90, 0.25, 0.25), (1.0, 0.85, 0.25))
    return mix(paper((0.02, 0.02, 0.25)), ramp, drawing.mask)


@style(base=False)
def ice(drawing: Drawing) -> np.ndarray:
    """Blues and white, frosted contours."""
    cold = gradient_map(drawing.luma, (0.10, 0.35, 0.65), (0.40, 0.70, 0.92), (0.88, 0.97, 1.0))
    return mix(mix(paper((0.74, 0.89, 0.95)), cold, drawing.mask), (1, 1, 1), 0.8 * drawing.edges)


@style(base=False)
def sepia(drawing: Drawing) -> np.ndarray:
    """An old brown photograph with dark corners."""
    radius = np.hypot(ROWS - 63.5, COLUMNS - 63.5) / 90
    light = luma(over(drawing.flat, (0.88, 0.88, 0.88))) * np.clip(1.15 - 0.6 * radius**2, 0, 1)
    return gradient_map(light, (0.15, 0.08, 0.03), (0.58, 0.40, 0.22), (0.96, 0.87, 0.68))


@style(base=False)
def popart(drawing: Drawing) -> np.ndarray:
    """Four quarters, each with colours of its own."""
    quarter = (ROWS >= 64).astype(int) * 2 + (COLUMNS >= 64)
    grounds = np.array([(0.98, 0.85, 0.1), (0.1, 0.75, 0.85), (0.95, 0.35, 0.6), (0.55, 0.85, 0.3)], np.float32)
    darks = np.array([(0.8, 0.1, 0.4), (0.15, 0.1, 0.5), (0.1, 0.3, 0.7), (0.5, 0.1, 0.5)], np.float32)
    lights = np.array([(1, 0.6, 0.7), (0.95, 0.9, 0.5), (0.7, 0.95, 0.9), (1, 0.8, 0.4)], np.float32)
    body = mix(darks[quarter], lights[quarter], drawing.luma)
    return mix(grounds[quarter], body, drawing.mask)
