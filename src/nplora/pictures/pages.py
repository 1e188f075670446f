"""A sheet as one HTML page that holds everything: pictures, labels, scores, settings. It fetches nothing."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..storage import write_folder_file
from ..version import __version__
from .drawing import png_bytes
from .rendering import Sheet

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSLESS = 128 * 128  # pixels up to which a picture is embedded as PNG; above it a JPEG is a tenth as large


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, paragraphs, a sheet, facts as (label, text)."""

    heading: str = ""
    paragraphs: tuple[str, ...] = ()
    sheet: Sheet | None = None
    facts: tuple[tuple[str, str], ...] = ()


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML text of a page.

    Args:
        title: its heading.
        sections: what it says, in order. All text is escaped.
    """
    return str(_template().render(title=title, sections=sections, version=__version__))


def save_page(
    path: str | os.PathLike[str], title: str, sections: Sequence[Section], *, overwrite: bool = False
) -> Path:
    """Write a page, whole or not at all.

    Raises:
        OutputError: it exists already, or cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target) and not overwrite:
        raise OutputError("the output exists already", file=target, hint="Choose another name, or add --overwrite.")
    write_folder_file(target, page(title, sections))
    return target


def embedded(image: Image) -> str:
    """A picture as a data URI.

    >>> from PIL import Image
    >>> embedded(Image.new("RGB", (2, 2)))[:22]
    'data:image/png;base64,'
    """
    if image.width * image.height <= LOSSLESS:
        kind, data = "png", png_bytes(image)
    else:
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=92, subsampling=0)
        kind, data = "jpeg", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["embedded"], environment.globals["zip"] = embedded, zip
    return environment.from_string(files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8"))
