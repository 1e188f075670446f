"""Draw a sheet as one picture: labels above and at the left, captions below the pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..storage import write_folder_file
from .rendering import Picture, Sheet

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST, LARGEST = 128, 256  # sides of a picture in the sheet
GAP, MARGIN, TEXT, TITLE = 8, 16, 15, 19  # pixels
INK, SOFT, PAPER = "#1c1c1c", "#6a6a6a", "#ffffff"


def draw(sheet: Sheet, title: str = "", foot: str = "", side: int | None = None) -> Image:
    """The sheet as one RGB picture.

    Args:
        sheet: from `render`.
        title: a line above the pictures; foot: lines below them.
        side: longer side of each picture in pixels; small pictures are enlarged in whole steps, so that their own
            pixels stay square.
    """
    from PIL import Image, ImageDraw

    pictures = [picture for row in sheet.pictures for picture in row if picture is not None]
    width, height = _cell(pictures, side)
    font, large = _font(TEXT), _font(TITLE)
    left = max((_width(label, font) for label in _wrapped(sheet.rows, font, 190)), default=0)
    left += GAP if left else 0
    heads = [_wrap(label, font, width) for label in sheet.columns]
    line = TEXT + 4
    head, below = max(len(lines) for lines in heads) * line, line if any(p.caption for p in pictures) else 0
    feet = [part for text in foot.splitlines() for part in _wrap(text, font, left + len(heads) * (width + GAP))]
    top = MARGIN + (TITLE + 14 if title else 0)
    size = (
        2 * MARGIN + left + len(heads) * (width + GAP) - GAP,
        top + head + GAP + len(sheet.rows) * (height + below + GAP) + len(feet) * line + MARGIN - GAP,
    )
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((MARGIN, MARGIN), title, INK, large)
    for column, lines in enumerate(heads):
        x = MARGIN + left + column * (width + GAP)
        _centred(pen, lines, x + width / 2, top + head - len(lines) * line, font)
    for row, (label, places) in enumerate(zip(sheet.rows, sheet.pictures, strict=True)):
        y = top + head + GAP + row * (height + below + GAP)
        lines = _wrap(label, font, 190)
        for number, text in enumerate(lines):
            pen.text((MARGIN, y + (height - len(lines) * line) / 2 + number * line), text, INK, font)
        for column, picture in enumerate(places):
            if picture is not None:
                x = MARGIN + left + column * (width + GAP)
                small = _fitted(picture.image, width, height)
                page.paste(small, (x + (width - small.width) // 2, y + (height - small.height) // 2))
                _centred(pen, [picture.caption], x + width / 2, y + height + 2, _fitting(picture.caption, width), SOFT)
    for number, text in enumerate(feet):
        pen.text((MARGIN, size[1] - MARGIN - (len(feet) - number) * line + 4), text, SOFT, font)
    return page


def save_png(image: Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a picture as PNG, whole or not at all.

    Raises:
        OutputError: it exists already, or cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target) and not overwrite:
        raise OutputError("the output exists already", file=target, hint="Choose another name, or add --overwrite.")
    write_folder_file(target, png_bytes(image))
    return target


def png_bytes(image: Image) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _cell(pictures: Sequence[Picture], side: int | None) -> tuple[int, int]:
    """Width and height of a place in the sheet."""
    width = max((picture.image.width for picture in pictures), default=SMALLEST)
    height = max((picture.image.height for picture in pictures), default=SMALLEST)
    longer = max(width, height)
    if side is None:
        side = longer * -(-SMALLEST // longer) if longer < SMALLEST else min(longer, LARGEST)
    return max(round(width * side / longer), 1), max(round(height * side / longer), 1)


def _fitted(image: Image, width: int, height: int) -> Image:
    from PIL import Image as Pillow

    scale = min(width / image.width, height / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    way = Pillow.Resampling.NEAREST if scale == int(scale) else Pillow.Resampling.LANCZOS
    return image.convert("RGB").resize(size, way)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)  # comes with Pillow: the same letters on every machine


def _width(text: str, font: Any) -> int:
    return -int(-font.getlength(text))


def _fitting(text: str, width: int) -> Any:
    """The largest font up to the usual size in which the text fits."""
    size = next((size for size in range(TEXT - 2, 8, -1) if _width(text, _font(size)) <= width), 8)
    return _font(size)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _wrapped(labels: Sequence[str], font: Any, width: int) -> list[str]:
    return [line for label in labels for line in _wrap(label, font, width)]


def _centred(pen: Any, lines: Sequence[str], middle: float, y: float, font: Any, colour: str = INK) -> None:
    for number, text in enumerate(lines):
        pen.text((middle, y + number * (TEXT + 4)), text, colour, font, anchor="ma")
