"""The one error family: what is wrong, where, what was expected, what was found, what to do next."""

from __future__ import annotations

import os


class NploraError(Exception):
    """Base of every error that a user can meet.

    Args:
        problem: one clause that says what is wrong ("the file ends inside its header").
        file: path of the file concerned.
        key: tensor or module name concerned.
        expected: what should have been there.
        got: what was there.
        hint: the next step that the user can take.

    >>> print(InputError("rank differs", file="a.safetensors", expected="4", got="2", hint="Re-export it."))
    a.safetensors: rank differs: expected 4, got 2. Re-export it.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        key: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else os.fspath(file)
        self.key = key
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(problem)

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.file, self.key, self.problem) if part)
        facts = []
        if self.expected is not None:
            facts.append(f"expected {self.expected}")
        if self.got is not None:
            facts.append(f"got {self.got}")
        if facts:
            text += ": " + ", ".join(facts)
        text = text.rstrip(".") + "."
        return f"{text} {self.hint}" if self.hint else text


class UsageError(NploraError):
    """The command or the call does not make sense (exit code 2)."""

    exit_code = 2


class InputError(NploraError):
    """A file that was read cannot be used (exit code 3)."""

    exit_code = 3


class OutputError(NploraError):
    """The result cannot be written (exit code 4)."""

    exit_code = 4
