"""The table of styles, filled by importing every file of this folder."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from world.drawings import Drawing

_STYLES: dict[str, "Style"] = {}


@dataclass(frozen=True)
class Style:
    """A way to paint a drawing.

    Attributes
    ----------
    name : str
        The word used in prompts.
    kind : str
        line, texture, palette, light or medium: the file that defines it.
    held_out : bool
        True when the base model must never see it.
    paint : callable
        The function itself: `Drawing` in, RGB float array [128, 128, 3] out.
    """

    name: str
    kind: str
    held_out: bool
    paint: Callable[[Drawing], np.ndarray]


def style(*, base: bool) -> Callable:
    """Register the decorated function as a style of the base (`base=True`) or as a held-out one."""

    def register(paint: Callable[[Drawing], np.ndarray]) -> Callable[[Drawing], np.ndarray]:
        _STYLES[paint.__name__] = Style(paint.__name__, paint.__module__.rsplit(".", 1)[-1], not base, paint)
        return paint

    return register


def all_styles() -> tuple[Style, ...]:
    """Return every style, the base's first, otherwise by name."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"world.styles.{module.name}")
    return tuple(sorted(_STYLES.values(), key=lambda s: (s.held_out, s.name)))


def style_named(name: str) -> Style:
    """Return the style called `name`; a KeyError names the ones that exist."""
    known = {s.name: s for s in all_styles()}
    if name not in known:
        raise KeyError(f"no style {name!r}; known: {', '.join(known)}")
    return known[name]
