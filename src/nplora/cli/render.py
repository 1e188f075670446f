"""``nplora render``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OutputError, UsageError
from ..parameters import FUSE, WRITING
from .command import FILE, choice
from .fuse_options import METHOD, MethodCommand
from .options import given, with_parameters
from .progress import Progress
from .text import count, facts, paragraph, say

if TYPE_CHECKING:
    from ..pictures import Base, Opened, Scorer, Section, Sheet

CHOSEN = [p for p in FUSE if p not in WRITING and p.name not in ("components", "base", "dora")]

EXAMPLES = (
    'render cat.safetensors ink.safetensors --base models/sdxl --prompt "a sks cat, ink wash" -o cat-ink',
    'render cat.safetensors ink.safetensors --base models/sdxl --prompt "a sks cat" --columns mu=0,0.5,inf -o mu',
)


@click.command(
    cls=MethodCommand, examples=EXAMPLES, short_help="Paint grids of pictures with adapters on a local pipeline."
)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--base", type=FILE, required=True, metavar="world|PATH", help="The world, or a local diffusers folder.")
@click.option("--prompt", "prompts", multiple=True, required=True, metavar="TEXT", help="Several make several rows.")
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="Written as FILE.html and FILE.png.")
@click.option("--columns", multiple=True, metavar="AXIS=VALUES", help="For example mu=0,0.5,1,inf or method=all.")
@click.option("--rows", multiple=True, metavar="AXIS=VALUES", help="Several axes on one side are multiplied.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), metavar="NUMBER",
              help="Seed of the noise; several make several rows.  [default: 0]")  # fmt: skip
@click.option("--subject-prompt", metavar="TEXT", help="The prompt where the subject stands alone.")
@click.option("--style-prompt", metavar="TEXT", help="The prompt where the style stands alone.")
@METHOD
@with_parameters(CHOSEN)
@click.option("--steps", type=click.IntRange(1), metavar="NUMBER", help="Of the sampler; by default the base's own.")
@click.option("--guidance", type=float, metavar="NUMBER", help="Guidance scale; by default the base's own.")
@click.option("--negative", metavar="TEXT", help="Negative prompt, where the pipeline takes one.")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Of a picture; by default the base's own.")
@click.option(
    "--device",
    **choice("auto", "cpu", "cuda", "mps"),
    default="auto",
    help="[default: auto]",
)
@click.option("--dtype", **choice("auto", "fp32", "fp16", "bf16"), default="auto",
              help="Numbers to compute in: auto is fp32 on the CPU, else bf16 or fp16.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), metavar="NUMBER", help="Pictures at once; by default by their size.")
@click.option("--offload", is_flag=True, help="Keep only the part that computes on the GPU: slower, less memory.")
@click.option("--scorer", metavar="MODULE:NAME", help="Scores of your own under the pictures (docs/pictures.md).")
@click.option("--expect", multiple=True, metavar="KIND=NAME", help="What the world's judge looks for: subject=fox.")
@click.option("--cell", type=click.IntRange(16, 4096), metavar="PIXELS", help="Longer side of a picture in the PNG.")
@click.option("--each", type=FILE, metavar="FOLDER", help="Also write every picture there, as PNG.")
@click.option("--title", default="", metavar="TEXT", help="Stands above the pictures.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist already.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(files: Sequence[str], base: str, output: str, quiet: bool, **values: Any) -> None:
    """Paint pictures with adapters on a local pipeline (SD, SDXL, FLUX and whatever diffusers loads a LoRA into).

    Two FILEs are a subject and a style: the columns show each alone, their sum, the sum at strength 1/(1+mu), and the
    soft and the hard projection. One FILE stands beside the bare base. Axes: adapter, prompt, seed, strength, steps,
    guidance, method, and the numbers of nplora fuse (mu, subject-strength, style-strength ...). Nothing is fetched
    from a network.
    """
    from .. import load, pictures

    pictures.prepare_process()
    paths = [Path(file) for file in files]
    chosen = ("method", *pictures.fuse_parameters())
    parameters = given({name: values[name] for name in chosen if name in values})
    names = _outputs(output, values["overwrite"])
    grid = pictures.arrange(_asked(values, parameters), paths)
    for path in paths:
        load(path)  # a file that cannot be read is named before the work begins
    found = pictures.find_base(base)
    scorer, note = _scorer(found, paths, values["scorer"], values["expect"])
    projected = parameters.get("method", "np") == "np"
    words = pictures.pair_words(paths, float(parameters.get("mu", 0.5))) if projected else ()
    opened = pictures.open_pipeline(
        found, values["device"], values["dtype"], offload=values["offload"], size=_size(values["size"])
    )
    with Progress("painting (steps)", quiet=quiet) as progress:
        sheet = pictures.render(
            grid, paths, opened, negative=values["negative"], batch=values["batch"], scorer=scorer, progress=progress
        )
    told = pictures.facts(opened, paths, sheet, _shared(values) | parameters, _command_line())
    title = values["title"] or " + ".join(path.stem for path in paths)
    _write(names, title, pictures.Section("", words, sheet, told), values)
    if not quiet:
        say(
            paragraph(" ".join(words)),
            facts([("written", f"{names[0]}, {names[1]}{_and_each(values['each'], sheet)}"),
                   ("pictures", _made(opened, sheet)), *(("note", text) for text in (*sheet.notes, *note))]),
        )  # fmt: skip


def _asked(values: dict[str, Any], parameters: dict[str, Any]) -> Any:
    from ..pictures import Asked

    alone = {role: values[f"{role}_prompt"] for role in ("subject", "style") if values[f"{role}_prompt"]}
    same = {name: values[name] for name in ("prompts", "seeds", "rows", "columns", "steps", "guidance")}
    return Asked(**same, parameters=parameters, alone=alone)


def _outputs(output: str, overwrite: bool) -> tuple[Path, Path]:
    """The page and the picture; that neither exists is checked before the work begins."""
    given = Path(output)
    stem = given.with_suffix("") if given.suffix in (".html", ".png") else given
    names = stem.with_name(stem.name + ".html"), stem.with_name(stem.name + ".png")
    for name in names:
        if os.path.lexists(name) and not overwrite:
            raise OutputError("the output exists already", file=name, hint="Choose another name, or add --overwrite.")
    return names


def _scorer(
    base: Base, files: Sequence[Path], name: str | None, expected: Sequence[str]
) -> tuple[Scorer | None, list[str]]:
    """The scorer, and a note where there could have been one."""
    from ..pictures import load_scorer, wanted_of, world_scorer

    if name:
        return load_scorer(name), []
    if expected:
        pairs = [text.partition("=") for text in expected]
        if not all(value and kind in ("subject", "style") for kind, _, value in pairs):
            raise UsageError("--expect is out of range", expected="subject=NAME or style=NAME", got=", ".join(expected))
        return world_scorer(base, {kind: value for kind, _, value in pairs}), []
    wanted = wanted_of(files)
    if base.world is None or not wanted:
        return None, []
    try:
        return world_scorer(base, wanted), []
    except UsageError as error:  # nobody asked for scores
        return None, [f"no scores: {error.problem}"]


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = [int(side) for side in text.lower().split("x") if side.isdecimal()]
    if len(sides) != 2 or not all(side and side % 8 == 0 for side in sides):
        raise UsageError("--size is out of range", expected="WIDTHxHEIGHT in multiples of 8", got=text)
    return sides[0], sides[1]


def _shared(values: dict[str, Any]) -> dict[str, object]:
    """What holds for all pictures, or for those of one adapter."""
    named = ("subject_prompt", "style_prompt", "steps", "guidance", "negative")
    lone = {name: values[f"{name}s"][0] for name in ("prompt", "seed") if len(values[f"{name}s"]) == 1}
    return lone | {name: values[name] for name in named if values[name] is not None}


def _command_line() -> str:
    import sys

    return shlex.join(["nplora", *sys.argv[1:]])


def _write(names: tuple[Path, Path], title: str, section: Section, values: dict[str, Any]) -> None:
    from ..pictures import draw, save_page, save_png

    assert section.sheet is not None
    overwrite = values["overwrite"]
    if values["each"]:
        for row, label in enumerate(section.sheet.rows):
            for column, head in enumerate(section.sheet.columns):
                picture = section.sheet.pictures[row][column]
                assert picture is not None
                plain = "".join(c if c.isalnum() else "-" for c in f"{label} {head}".strip())[:80]
                file = Path(values["each"]) / f"{row + 1}-{column + 1}-{plain}.png"
                save_png(picture.image, file, overwrite=overwrite)
    save_png(draw(section.sheet, title, side=values["cell"]), names[1], overwrite=overwrite)
    save_page(names[0], title, [section], overwrite=overwrite)


def _and_each(folder: str | None, sheet: Sheet) -> str:
    return f", and {count(len(sheet.rows) * len(sheet.columns), 'picture')} in {folder}" if folder else ""


def _made(opened: Opened, sheet: Sheet) -> str:
    sides = f"{len(sheet.rows)} x {len(sheet.columns)} of {opened.width} x {opened.height} pixels"
    return f"{sides} on {opened.device} in {opened.dtype}, {sheet.seconds:.0f} s"
