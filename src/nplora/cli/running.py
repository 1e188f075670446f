"""From errors to one message on stderr and an exit status; never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ..errors import NploraError
from .group import invoke
from .text import printable

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(words: Sequence[str]) -> int:
    """Run a command; say what went wrong, if anything did.

    Args:
        words: the arguments.

    Returns:
        The exit status, see `nplora.cli.main`.
    """
    try:
        return invoke(words)
    except NploraError as error:
        return _say(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        return _say(f"{error.ctx.command_path} needs arguments. {_help(error)}" if error.ctx else str(error), 2)
    except click.ClickException as error:
        return _say(f"{error.format_message().rstrip('.')}. {_help(error)}".rstrip(), 2)
    except click.Abort:
        return _say("interrupted; nothing was changed.", INTERRUPTED)
    except MemoryError:
        return _say("out of memory; nothing was changed. Close other programs, or fuse on a larger machine.", UNEXPECTED)
    except Exception as error:
        if os.environ.get("NPLORA_TRACEBACK"):
            raise
        return _say(
            f"unexpected {type(error).__name__} ({error}); nothing was changed. This is a fault of nplora: please report it "
            "with what NPLORA_TRACEBACK=1 shows.", UNEXPECTED,
        )  # fmt: skip


def _help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See `{context.command_path} --help`." if context is not None else ""


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"nplora: {printable(message)}\n")
    return status
