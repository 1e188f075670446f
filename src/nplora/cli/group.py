"""The click command ``nplora``, whose subcommands are loaded on demand."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

from ..version import __version__
from . import ABOUT, COMMANDS, OPTIONS, STATUS


class Commands(click.Group):
    """Subcommands are modules of this package; only the one that is called is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__package__}.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):  # from the table: click would import each command for its sentence
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Exit status"):
            formatter.write_dl(list(STATUS.items()))


@click.group(cls=Commands, name="nplora", help=ABOUT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="nplora %(version)s", help=OPTIONS["--version"])
def group() -> None:
    pass


def render(width: int = 80) -> str:
    """The help as click writes it, for the test that compares it with the quick one."""
    return (
        group.get_help(click.Context(group, info_name="nplora", terminal_width=width, **group.context_settings)) + "\n"
    )


def invoke(words: Sequence[str]) -> int:
    """Run a command line and return the status that the command asked for; errors go to the caller."""
    status = group.main(list(words), prog_name="nplora", standalone_mode=False)
    return status if isinstance(status, int) else 0
