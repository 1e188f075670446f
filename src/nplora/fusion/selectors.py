"""Words for parts of a model: block names, components, beginnings of module names, globs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path


@cache
def block_names() -> Mapping[str, tuple[str, ...]]:
    """Block -> globs on canonical module names, from ``block_names.json``."""
    table = json.loads(Path(__file__).with_name("block_names.json").read_bytes())
    return {name: tuple(globs) for name, globs in table.items()}


def selects(word: str, name: str) -> bool:
    """Whether a word means this module.

    Args:
        word: a block ("up", "attention"), a component ("unet"), the beginning of a module's name with or without its
            component ("up_blocks.1"), or a glob on the whole name ("*.attn1.*").
        name: canonical.

    >>> name = "unet.up_blocks.1.attentions.0.proj_in"
    >>> [selects(word, name) for word in ("up", "unet", "up_blocks.1", "*.proj_in", "*", "down", "up_blocks.10")]
    [True, True, True, True, True, False, False]
    """
    globs = block_names().get(word)
    if globs is not None:
        return any(fnmatchcase(name, glob) for glob in globs)
    if any(mark in word for mark in "*?["):
        return fnmatchcase(name, word)
    path = name.partition(".")[2]
    return any(whole == word or whole.startswith(word + ".") for whole in (name, path))


def words_for(names: Iterable[str]) -> list[str]:
    """The blocks and components that mean one of these modules or more.

    >>> words_for(["unet.up_blocks.1.attentions.0.proj_in"])
    ['up', 'unet']
    """
    known = list(names)
    blocks = [word for word in block_names() if any(selects(word, name) for name in known)]
    return blocks + list(dict.fromkeys(name.partition(".")[0] for name in known))
