"""Optional libraries: what is missing, and how to get it; no release is published, so extras come from the source."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from .errors import UsageError

PACKAGES = {"PIL": "pillow"}  # where a library is installed under another name than it is imported


def require(what: str, extra: str, *modules: str) -> None:
    """Make sure that libraries are installed, without importing them.

    Args:
        what: what needs them, with its verb ("plots need").
        extra: the extra of this package that brings them.
        *modules: their import names.

    Raises:
        UsageError: one is missing; the message names the extra and the library.

    >>> require("arrays need", "torch", "numpy")
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise lacking(what, extra, missing)


def lacking(what: str, extra: str, missing: Sequence[str]) -> UsageError:
    """The error that says what is missing.

    >>> print(lacking("plots need", "plots", ["matplotlib"]))
    plots need matplotlib. Install the extra, pip install ".[plots]" in nplora's folder, or pip install matplotlib.
    """
    packages = [PACKAGES.get(module, module) for module in missing]
    return UsageError(
        f"{what} {', '.join(packages)}",
        hint=f'Install the extra, pip install ".[{extra}]" in nplora\'s folder, or pip install {" ".join(packages)}.',
    )
