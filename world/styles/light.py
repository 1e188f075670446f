"""Styles made by light."""

import numpy as np
from scipy.ndimage import gaussian_filter

from world.drawings import Drawing
from world.styles.paint import COLUMNS, ROWS, gradient_map, mix, paper
from world.styles.registry import style


@style(base=True)
def neon(drawing: Drawing) -> np.ndarray:
    """Glowing tubes along the contours in the dark."""
    bright = drawing.white / np.maximum(drawing.white.max(-1, keepdims=True), 0.3)
    tube = np.clip(0.35 + bright, 0, 1) * drawing.edges[..., None] ** 1.3
    glow = np.stack([gaussian_filter(tube[..., c], 4) for c in range(3)], -1)
    return np.clip(np.array((0.03, 0.01, 0.07), np.float32) + tube + 0.7 * glow, 0, 1)


@style(base=False)
def emboss(drawing: Drawing) -> np.ndarray:
    """Raised grey metal, lit from the upper left."""
    height = gaussian_filter(2.0 * drawing.mask + 0.8 * drawing.luma, 1.4)
    slope = -(np.gradient(height, axis=0) + np.gradient(height, axis=1))
    light = np.clip(0.55 - 1.6 * slope, 0, 1)
    return gradient_map(light, (0.15, 0.17, 0.20), (0.58, 0.60, 0.63), (1, 1, 1))


@style(base=False)
def night(drawing: Drawing) -> np.ndarray:
    """Moonlight: dark blue, a rim of light from above."""
    rim = np.clip(np.gradient(gaussian_filter(drawing.mask, 1.5), axis=0) * 6, 0, 1)
    body = gradient_map(drawing.luma, (0.04, 0.08, 0.28), (0.15, 0.30, 0.62), (0.42, 0.58, 0.85))
    sky = gradient_map(ROWS / 127, (0.01, 0.02, 0.12), (0.05, 0.08, 0.24))
    return mix(mix(sky, body, drawing.mask), (0.90, 0.95, 1.0), rim)


@style(base=False)
def spotlight(drawing: Drawing) -> np.ndarray:
    """A warm cone of light on a dark stage."""
    beam = np.clip(1.25 - np.hypot(ROWS - 70, COLUMNS - 63.5) / 58, 0, 1)
    stage = gradient_map(beam, (0.05, 0.02, 0.05), (0.40, 0.17, 0.14), (0.72, 0.50, 0.38))
    lit = drawing.white * (0.12 + 0.95 * beam[..., None]) * np.array((1.0, 0.90, 0.72), np.float32)
    return np.clip(mix(stage, lit, drawing.mask), 0, 1)


@style(base=False)
def xray(drawing: Drawing) -> np.ndarray:
    """A pale translucent negative on black-blue."""
    body = gaussian_filter(drawing.mask, 1.5) * (0.30 + 0.5 * (1 - drawing.luma)) + 0.5 * drawing.edges
    return gradient_map(np.clip(body, 0, 1), (0.01, 0.03, 0.06), (0.30, 0.50, 0.58), (0.90, 0.98, 1.0))


@style(base=False)
def papercut(drawing: Drawing) -> np.ndarray:
    """Layers of pale paper with soft shadows on mint."""
    shadow = np.roll(gaussian_filter(drawing.mask, 2.5), (5, 5), (0, 1)) * 0.55
    tone = np.round(drawing.white * 3) / 3 * 0.45 + 0.53
    return mix(mix(paper((0.55, 0.86, 0.72)), (0.12, 0.35, 0.28), shadow), tone, drawing.mask)
