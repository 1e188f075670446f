"""Vector drawings to pixels: reads the Fluent icon packages and rasterises one drawing at one placement.

The three sets draw one geometry (flat, glossy, high contrast), so the true picture of any subject in any style
exists. The packages are needed to build the data set only; none of their files ships.
"""

import io
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_gradient_magnitude

SETS = {"flat": "fluent-emoji-flat", "glossy": "fluent-emoji", "ink": "fluent-emoji-high-contrast"}
CANVAS = 128  # styles are applied at twice the final size, then box-averaged


@dataclass(frozen=True)
class Placement:
    """Where a drawing sits: `scale` of the canvas it fills, and its centre's shift as a share of the canvas."""

    scale: float
    dx: float
    dy: float


@dataclass(frozen=True)
class Drawing:
    """One subject at one placement, as straight-alpha RGBA float arrays [CANVAS, CANVAS, 4] in 0..1."""

    flat: np.ndarray
    glossy: np.ndarray
    ink: np.ndarray

    @cached_property
    def white(self) -> np.ndarray:
        """The flat drawing on white paper, RGB."""
        return over(self.flat, (1, 1, 1))

    @cached_property
    def luma(self) -> np.ndarray:
        """Brightness of the flat drawing on white."""
        return luma(self.white)

    @property
    def mask(self) -> np.ndarray:
        """Coverage of the flat drawing."""
        return self.flat[..., 3]

    @cached_property
    def edges(self) -> np.ndarray:
        """Strength of colour edges and of the outline, 0..1."""
        channels = [*np.moveaxis(self.white, -1, 0), self.mask]
        return np.clip(1.6 * np.max([gaussian_gradient_magnitude(c, 1.4) for c in channels], axis=0) / 0.28, 0, 1)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return Rec. 601 brightness of an RGB array."""
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def over(rgba: np.ndarray, paper) -> np.ndarray:
    """Composite a straight-alpha RGBA array over a colour or an RGB picture."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + np.asarray(paper, np.float32) * (1 - alpha)


@cache
def _icons(icons: Path, package: str) -> dict:
    path = icons / package / "package" / "icons.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}; run `python -m world.packages` first")
    return json.loads(path.read_text())["icons"]


def _raster(body: str, place: Placement) -> np.ndarray:
    side = 32 / place.scale  # the placement is a choice of view box, so edges stay crisp
    x, y = (16 - side * (0.5 + place.dx), 16 - side * (0.5 + place.dy))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x:.3f} {y:.3f} {side:.3f} {side:.3f}">{body}</svg>'
    import resvg_py  # here, for only those who rebuild the data set need it

    png = resvg_py.svg_to_bytes(svg_string=svg, width=CANVAS, height=CANVAS)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), np.float32) / 255


def draw(icons: Path, slug: str, place: Placement) -> Drawing:
    """Rasterise the subject `slug` from the packages under `icons` at one placement."""
    return Drawing(**{name: _raster(_icons(icons, package)[slug]["body"], place) for name, package in SETS.items()})
