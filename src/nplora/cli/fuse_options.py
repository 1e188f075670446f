"""The options of ``nplora fuse`` and ``verify``: those of np at once, every method's where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..parameters import COMMON, Parameter
from .command import Command
from .options import Kind, facts_of, metavar

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from ..methods import known_methods

    return [CompletionItem(method.name, help=method.title) for method in known_methods().values()
            if method.name.startswith(incomplete)]  # fmt: skip


METHOD = click.option(
    "--method", metavar="NAME", shell_complete=_names, help="How to fuse; nplora methods lists them.  [default: np]"
)


class MethodCommand(Command):
    """A command whose methods' options are loaded when the line holds one that np has not, or asks for help.

    Loading every method takes a few milliseconds that a fusion by np does not need.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts} | set(ctx.help_option_names)
        asked = {word.partition("=")[0] for word in args if word.startswith("--") and word != "--"}
        if asked - known or asked & set(ctx.help_option_names) or set(args) & set(ctx.help_option_names):
            self._extend(known)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            self._extend({name for parameter in self.params for name in parameter.opts})
        return super().shell_complete(ctx, incomplete)

    def _extend(self, known: set[str]) -> None:
        """Options of all methods, before those that every method has."""
        found = [option for option in method_options() if option.opts[0] not in known]
        self.late |= {str(option.name) for option in found}
        place = next((i for i, param in enumerate(self.params) if param.name == COMMON[0].name), len(self.params))
        self.params[place:place] = found


def method_options() -> list[click.Option]:
    """One option for each parameter of any method, with the methods that have it."""
    from ..methods import known_methods

    users: dict[str, list[tuple[str, Parameter]]] = {}
    for method in known_methods().values():
        for parameter in method.options:
            users.setdefault(parameter.name, []).append((method.name, parameter))
    return [_option([name for name, _ in having], [p for _, p in having]) for having in users.values()]


def _option(methods: list[str], declared: list[Parameter]) -> click.Option:
    first = declared[0]
    one = all(parameter == first for parameter in declared)
    shown = "all merges" if first.name == "seed" else ", ".join(methods)
    text = f"{first.sentence}{facts_of(first) if one and first.kind != 'flag' else ''}  [methods: {shown}]"
    if first.kind == "flag":
        return click.Option([first.option, first.name], is_flag=True, default=None, help=text)
    kind: Any = Kind(first) if one else click.STRING  # ranges that differ are checked once the method is known
    return click.Option([first.option, first.name], type=kind, default=None, metavar=metavar(first), help=text)
