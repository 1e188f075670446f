"""Small paint-box shared by the styles: gradient maps, ramps, fixed noise."""

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

from world.drawings import CANVAS

ROWS, COLUMNS = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)


def gradient_map(values: np.ndarray, *colours: tuple[float, float, float]) -> np.ndarray:
    """Colour a 0..1 array by a ramp of evenly spaced colours."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, stops, channel) for channel in zip(*colours, strict=True)], -1).astype(
        np.float32
    )


def mix(under: np.ndarray, above, amount: np.ndarray) -> np.ndarray:
    """Blend `above` (a colour or a picture) onto `under` by an [H, W] amount."""
    return under * (1 - amount[..., None]) + np.asarray(above, np.float32) * amount[..., None]


def paper(colour: tuple[float, float, float]) -> np.ndarray:
    """Return a plain sheet of one colour."""
    return np.broadcast_to(np.asarray(colour, np.float32), (CANVAS, CANVAS, 3)).copy()


@cache
def noise(seed: int, sigma: float) -> np.ndarray:
    """Smooth noise of unit spread; fixed for a seed, so that a texture belongs to its style."""
    raw = gaussian_filter(np.random.default_rng(seed).standard_normal((CANVAS, CANVAS)).astype(np.float32), sigma)
    return raw / raw.std()
