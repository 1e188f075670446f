"""The command line: thin, one small file per command, each loaded when it is called.

This file imports nothing that Python has not loaded already, and answers what needs no command by itself: click
alone would cost more than Python's own start.
"""

from __future__ import annotations

import os
import sys

# TYPE_CHECKING of typing, without the cost of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Command -> what it does, in the order of the help. Each is a module of this package that holds `command`.
COMMANDS = {
    "fuse": "Fuse a subject and a style into one file.",
    "inspect": "Say what an adapter is: base, format, ranks, scales, norms.",
    "compare": "Say how much two adapters overlap and what mu will do.",
    "convert": "Write an adapter in another format or number type.",
    "report": "Write a page on a fused file: what the fusion did, and why.",
    "verify": "Recompute an output from its sources and prove it right.",
    "run": "Make everything that a recipe says, none of it twice.",
    "recipe": "Print the recipe that a fused file carries.",
    "methods": "List the fusion methods with their parameters.",
    "compare-methods": "Fuse by every method and compare what comes out.",
    "render": "Paint grids of pictures with adapters on a local pipeline.",
    "train-lora": "Train a subject or a style LoRA of your own.",
}
ABOUT = "Fuse LoRA files exactly: the style keeps its directions, the subject the rest."
STATUS = {
    "0": "done",
    "1": "verify: the file is not what its recipe says",
    "2": "the command line does not make sense, or an extra is not installed",
    "3": "a file that was read cannot be used",
    "4": "the result cannot be written",
    "70": "a fault of nplora",
    "130": "interrupted; no half-written file is left",
}
OPTIONS = {"--version": "Show the version and exit.", "-h, --help": "Show this message and exit."}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        words: the arguments; those of the process by default.

    Returns:
        The exit status, one of `STATUS`.

    >>> main(["--version"])
    nplora 0.1.0
    0
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a thread per core, each with its own modules, is faster
    words = sys.argv[1:] if words is None else list(words)
    if "_NPLORA_COMPLETE" not in os.environ:
        if words in ([], ["--help"], ["-h"], ["help"]):
            return _tell(usage())
        if words in (["--version"], ["-V"]):
            from ..version import __version__

            return _tell(f"nplora {__version__}\n")
    try:
        from .running import run

        return run(words)
    except KeyboardInterrupt:
        sys.stderr.write("nplora: interrupted; no half-written file was left.\n")
        return 130


def _tell(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, AttributeError):  # a full disk; a stdout that was closed is None
        return 4
    return 0


def usage() -> str:
    """The help of the command without a subcommand; a test holds it equal to click's own.

    >>> print(usage().splitlines()[0])
    Usage: nplora [OPTIONS] COMMAND [ARGS]...
    """
    lines = ["Usage: nplora [OPTIONS] COMMAND [ARGS]...", "", "  " + ABOUT]
    for title, table in (("Options", OPTIONS), ("Commands", COMMANDS), ("Exit status", STATUS)):
        width = max(map(len, table))
        lines += ["", f"{title}:", *(f"  {name:{width}}  {text}" for name, text in table.items())]
    return "\n".join(lines) + "\n"
