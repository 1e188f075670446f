"""What adapters are called: by role, by number, by the name of their file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError


def roles(count: int) -> tuple[str, ...]:
    """One adapter is the subject, two are subject and style, more have letters.

    >>> roles(2), roles(4), roles(28)[25:]
    (('subject', 'style'), ('a', 'b', 'c', 'd'), ('z', 'aa', 'ab'))
    """
    return ("subject", "style")[:count] if count <= 2 else tuple(_letters(index) for index in range(count))


def _letters(index: int) -> str:
    high, low = divmod(index, 26)
    return (_letters(high - 1) if high else "") + chr(ord("a") + low)


def role_of(word: str, paths: Mapping[str, str]) -> str:
    """The role that a word means: a number from 1 (always a place), a role, a letter, or a file's name.

    Args:
        word: as a person writes it.
        paths: role -> file or folder, in order.

    Raises:
        UsageError: no adapter is called so, or several are.

    >>> role_of("ink", {"subject": "cat.safetensors", "style": "ink.safetensors"})
    'style'
    """
    word, names = word.strip(), list(paths)
    if word.isdecimal():
        if not 1 <= int(word) <= len(names):
            raise UsageError(f"there is no adapter number {word}", expected=f"1 to {len(names)}")
        return names[int(word) - 1]
    found = [role for role in names if role == word]
    found += [role for role, letter in zip(names, roles(26 + len(names))[: len(names)], strict=True) if letter == word]
    found += [role for role, path in paths.items() if word in (Path(path).stem, Path(path).name)]
    meant = list(dict.fromkeys(found))
    if len(meant) == 1:
        return meant[0]
    shown = ", ".join(
        f"{role} (number {index}, {Path(path).name})" for index, (role, path) in enumerate(paths.items(), 1)
    )
    problem = f"{word} means several adapters" if meant else f"no adapter is called {word}"
    raise UsageError(problem, expected=f"one of {shown}", hint="A number says which one without doubt.")


def number_of(role: str, paths: Mapping[str, str]) -> str:
    """The word that always means this adapter.

    >>> number_of("style", {"subject": "cat", "style": "ink"})
    '2'
    """
    return str(list(paths).index(role) + 1)
