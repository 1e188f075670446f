"""From errors to one message on stderr and an exit status; never a traceback."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence

import click

from ..errors import NploraError, OutputError
from ..memory import keep_memory
from . import COMMANDS
from .group import invoke
from .text import printable

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NEAR = 0.7  # how alike a wrong and a right option must be
UNSAYABLE = (errno.ENOSPC, errno.EBADF, errno.EIO)  # of stdout: a full disk, a closed file, a lost terminal


def prepare_streams() -> None:
    """Have stdout and stderr take every character, whatever their encoding, and be there although they were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run(words: Sequence[str]) -> int:
    """Run a command; say what went wrong, if anything did.

    Args:
        words: the arguments.

    Returns:
        The exit status, see `nplora.cli.main`.
    """
    gc.disable()  # a command is short and makes no cycles worth collecting
    keep_memory()
    prepare_streams()
    try:
        return _guarded(words)
    finally:
        gc.enable()
        gc.freeze()  # Python would search everything once more when it ends


def _guarded(words: Sequence[str]) -> int:
    try:
        status = invoke(words)
        sys.stdout.flush()  # what cannot be written is said here, not by Python when it ends
    except NploraError as error:
        return _say(str(error), error.exit_code)
    except click.ClickException as error:
        return _say(f"{_click_said(error)} {_where(words)}", 2)
    except click.Abort:
        return _say("interrupted; no half-written file was left.", INTERRUPTED)
    except OSError as error:
        if error.filename is None and error.errno in UNSAYABLE:
            return _say(f"stdout: cannot be written ({error.strerror}).", OutputError.exit_code)
        return _unexpected(error)
    except MemoryError:
        return _say(
            "out of memory; nothing was changed. Close other programs, or fuse on a larger machine.", UNEXPECTED
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, no traceback for a person
        return _unexpected(error)
    return status


def _click_said(error: click.ClickException) -> str:
    """What click found wrong, with the nearest option or with what is missing and an example."""
    if isinstance(error, click.NoSuchOption):
        import difflib

        near = difflib.get_close_matches(error.option_name, error.possibilities or (), 1, NEAR)
        return f"No such option '{error.option_name}'." + (f" Did you mean {near[0]}?" if near else "")
    if isinstance(error, click.MissingParameter) and error.param is not None:
        named = isinstance(error.param, click.Option)
        what = error.param.opts[-1] if named else error.param.metavar or str(error.param.name).upper()
        examples = getattr(getattr(error.ctx, "command", None), "examples", ())
        return f"{what} is missing." + (f" For example: {examples[0]}." if examples else "")
    message = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'}"


def _unexpected(error: Exception) -> int:
    if os.environ.get("NPLORA_TRACEBACK"):
        raise error
    return _say(
        f"unexpected {type(error).__name__} ({error}). This is a fault of nplora: please report it with what "
        "NPLORA_TRACEBACK=1 shows.", UNEXPECTED,
    )  # fmt: skip


def _where(words: Sequence[str]) -> str:
    command = f" {words[0]}" if words[0] in COMMANDS else ""
    return f"See `nplora{command} --help`."


def _say(message: str, status: int) -> int:
    sys.stderr.write(wrapped(f"nplora: {printable(message)}") + "\n")
    return status


def wrapped(message: str) -> str:
    """A message in lines that break between words on a terminal; one line into a file or a pipe."""
    if not sys.stderr.isatty():
        return message
    import shutil
    import textwrap

    columns = shutil.get_terminal_size((80, 24)).columns
    return textwrap.fill(message, columns, break_long_words=False, break_on_hyphens=False)
