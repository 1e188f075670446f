"""What a command writes beside its result: made sure of before the work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, UsageError

MOST = 150  # characters of a name that is made of others; file systems take 255 bytes
SUFFIXES = {"plot": (".png",), "page": (".html", ".htm")}


def require_free(path: str, others: Sequence[str], overwrite: bool, what: str = "report") -> None:
    """Make sure that a file may be written there.

    Raises:
        UsageError: it would replace an adapter, or its name says that it is something else;
        OutputError: there is a file already.
    """
    if any(os.path.abspath(path) == os.path.abspath(other) for other in others):  # noqa: PTH100 - paths as given
        raise UsageError(f"the {what} would replace an adapter", key=path, hint=f"Choose another name for the {what}.")
    known = SUFFIXES.get(what, ())
    if known and not path.lower().endswith(known):
        name = os.fspath(Path(path).with_suffix(known[0])) if Path(path).name else f"FILE{known[0]}"
        raise UsageError(f"a {what} is written as {known[0]}", key=path, hint=f"Name it {name}.")
    if os.path.exists(path) and not overwrite:  # noqa: PTH110 - False for a name too long
        raise OutputError(f"the {what} exists already", file=path, hint="Choose another name, or add --overwrite.")


def require_drawing(plot: str | None, html: str | None) -> None:
    """Make sure that what draws plots and pages is installed.

    Raises:
        UsageError: a library is missing.
    """
    if plot is None and html is None:
        return
    from ..extras import require

    require("plots need", "plots", "matplotlib") if html is None else require(
        "pages need", "plots", "matplotlib", "jinja2"
    )


def fused_name(adapters: Sequence[str], format: object) -> str:
    """A name for the fusion of adapters, in the current folder: their own names with hyphens between them.

    A folder where one will be written: of the PEFT format, or of a subject that is a folder itself.

    >>> fused_name(["loras/cat.safetensors", "ink.safetensors"], None), fused_name(["cat.safetensors", "ink"], "peft")
    ('cat-ink.safetensors', 'cat-ink')
    """
    names = [name_without_suffix(path) for path in adapters]
    folder = format == "peft" or (format in (None, "auto", "same") and Path(adapters[0]).is_dir())
    return "-".join(names)[:MOST] + ("" if folder else ".safetensors")


def name_without_suffix(path: str) -> str:
    """An adapter's name: its file's, or that of its folder.

    >>> name_without_suffix("loras/cat.v1.safetensors"), name_without_suffix("my-cat/adapter_model.safetensors")
    ('cat.v1', 'my-cat')
    """
    place = Path(path)
    if place.name in ("adapter_model.safetensors", "adapters.safetensors") and place.parent.name:
        place = place.parent
    return (place.resolve() if place.name in ("", "..") else place).name.removesuffix(".safetensors")


@contextmanager
def after_writing(output: str) -> Iterator[None]:
    """For what is written beside an output that is there already: an error says so.

    Raises:
        OutputError: as it was raised, but for what it says of the rest.
    """
    try:
        yield
    except OutputError as error:
        hint = (error.hint or "").removesuffix("Nothing was changed.").strip()
        kept = f"What was fused before it is there: {output}."
        raise OutputError(error.problem, file=error.file, key=error.key, hint=f"{hint} {kept}".strip()) from None
