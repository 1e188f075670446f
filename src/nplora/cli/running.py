"""From errors to one message on stderr and an exit status; never a traceback."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import click

from ..errors import NploraError
from . import COMMANDS
from .group import invoke
from .text import printable

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_memory() -> None:
    """Have the C library keep freed batches instead of giving them back to the system after each.

    With glibc's defaults a fusion spends a third of its time in page faults. Elsewhere nothing happens.
    """
    try:
        from ctypes import CDLL

        mallopt = CDLL(None).mallopt
    except (ImportError, OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)


def run(words: Sequence[str]) -> int:
    """Run a command; say what went wrong, if anything did.

    Args:
        words: the arguments.

    Returns:
        The exit status, see `nplora.cli.main`.
    """
    gc.disable()  # a command is short and makes no cycles worth collecting
    keep_memory()
    try:
        return _guarded(words)
    finally:
        gc.enable()
        gc.freeze()  # Python would search everything once more when it ends


def _guarded(words: Sequence[str]) -> int:
    try:
        return invoke(words)
    except NploraError as error:
        return _say(str(error), error.exit_code)
    except click.ClickException as error:
        message = error.format_message()
        return _say(f"{message}{'' if message.endswith(('.', '?')) else '.'} {_where(words)}", 2)
    except click.Abort:
        return _say("interrupted; no half-written file was left.", INTERRUPTED)
    except MemoryError:
        return _say(
            "out of memory; nothing was changed. Close other programs, or fuse on a larger machine.", UNEXPECTED
        )
    except Exception as error:
        if os.environ.get("NPLORA_TRACEBACK"):
            raise
        return _say(
            f"unexpected {type(error).__name__} ({error}). This is a fault of nplora: please report it with what "
            "NPLORA_TRACEBACK=1 shows.", UNEXPECTED,
        )  # fmt: skip


def _where(words: Sequence[str]) -> str:
    command = f" {words[0]}" if words[0] in COMMANDS else ""
    return f"See `nplora{command} --help`."


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"nplora: {printable(message)}\n")
    return status
