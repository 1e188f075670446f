"""Pictures from adapters: a local diffusers pipeline paints grids, drawn as PNG and as one self-contained HTML page.

    base = find_base("world")                                  # or the path of a diffusers folder
    opened = open_pipeline(base)                               # one pipeline, device and numbers chosen
    grid = arrange(Asked(["a sks in stl style"]), files)       # axes are data: mu, strength, method, seed, prompt ...
    sheet = render(grid, files, opened)                        # one adapter on the pipeline at a time
    draw(sheet).save("grid.png")

torch, diffusers, Pillow and jinja2 (the extra ``pictures``) are imported where they are used.
"""

from .arranging import Asked, arrange
from .axes import Along, Axis, Grid, axes, parse_axis, span
from .bases import Base, find_base, find_world
from .cells import VARIANTS, Cell, Source, Variant, fuse_parameters
from .drawing import draw, save_png
from .mounting import adapter_on
from .pages import Section, page, save_page
from .pipelines import Opened, Shot, open_pipeline, paint, prepare_process
from .rendering import Picture, Sheet, render
from .scores import Scorer, load_scorer, wanted_of, world_scorer
from .telling import facts, pair_words

__all__ = [
    "VARIANTS",
    "Along",
    "Asked",
    "Axis",
    "Base",
    "Cell",
    "Grid",
    "Opened",
    "Picture",
    "Scorer",
    "Section",
    "Sheet",
    "Shot",
    "Source",
    "Variant",
    "adapter_on",
    "arrange",
    "axes",
    "draw",
    "facts",
    "find_base",
    "find_world", "fuse_parameters",
    "load_scorer",
    "open_pipeline",
    "page",
    "paint",
    "pair_words",
    "parse_axis",
    "prepare_process",
    "render",
    "save_page",
    "save_png",
    "span",
    "wanted_of",
    "world_scorer",
]  # fmt: skip
