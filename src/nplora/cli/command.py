"""What all commands have in common: help in groups with examples, file names that a shell completes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

FILE = click.Path()  # no check: a missing file has a message of its own; it tells shells to complete names of files
GROUPS = {
    "Output": ("output", "format", "dtype", "overwrite", "report", "plot", "html", "json_", "quiet"),
    "Method": ("method", "mu", "directions", "side", "protect", "calibrate"),
    "Strengths": ("subject_strength", "style_strength"),
    "Parts of the model": ("strengths", "overrides", "components"),
    "Fewer ranks": ("rank", "energy", "error", "keep_style"),
    "Inputs": ("base", "dora", "device", "strict", "allow_nonfinite"),
}
OTHERS = "Options of other methods (nplora methods NAME)"
MARK = "energy"  # commands that have this have many options, and show them in groups


def choice(*words: str) -> dict[str, Any]:
    """Type and metavar of an option that takes one of these words.

    >>> choice("cpu", "cuda")["metavar"]
    'cpu|cuda'
    """
    return {"type": click.Choice(words), "metavar": "|".join(words)}


class Command(click.Command):
    """A command whose help has groups of options, and examples at its end.

    Args:
        examples: command lines without the program's name.
        recipe_decides: values that are not given come from a recipe, so that no default is shown.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), recipe_decides: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = [f"nplora {example}" for example in examples]
        self.recipe_decides = recipe_decides
        self.late: set[str] = set()  # parameters of methods that are not the default

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under the heading that they belong to."""
        params = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        grouped = any(param.name == MARK for param in params)
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in params:
            record = param.get_help_record(ctx)
            title = self._title(param) if grouped else "Options"
            if record is not None:
                sections.setdefault(title, []).append((record[0], _tidy(record[1], self.recipe_decides)))
        for title in ("Options", *GROUPS, OTHERS, "Help"):
            if title in sections:
                with formatter.section(title):
                    formatter.write_dl(sections[title])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Examples that can be copied."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def _title(self, param: click.Option) -> str:
        name = param.name or ""
        if name in self.late:
            return OTHERS
        if "--help" in param.opts:
            return "Help"
        return next((title for title, names in GROUPS.items() if name in names), "Options")


def _tidy(text: str, recipe_decides: bool) -> str:
    """Click's ranges in the words of the rest; without defaults where they are not what happens.

    >>> _tidy("Steps.  [default: 4]  [1<=x<=9]", False), _tidy("Mu.  [range: 0 to 1; default: 0.5]", True)
    ('Steps.  [default: 4; range: 1 to 9]', 'Mu.  [range: 0 to 1]')
    """
    text = re.sub(r"\[(\d+)<=x<=(\d+)\]", r"[range: \1 to \2]", text)
    text = re.sub(r"\[x>=(\d+)\]", r"[range: \1 and above]", text)
    text = re.sub(r"\[x>0\]", "[range: above 0]", text)
    text = re.sub(r"\[(default: [^\]]*)\] {1,2}\[(range: [^\]]*)\]", r"[\1; \2]", text)
    if recipe_decides:
        text = re.sub(r"  \[default: [^\]]*\]|; default: [^\];]*", "", text)
    return text
