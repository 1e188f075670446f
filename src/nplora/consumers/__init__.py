"""What programs do with a file: which keys each one takes, which it drops and why, before anybody loads it.

A program is one small file with a table of rules; the first rule that applies to a key decides its fate. The facts
come from the programs' sources and from runs; `checked` says which. To add a program, write one file with
``PROGRAM = Program(...)``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from ..errors import UsageError
from ..formats import detect
from ..formats.keys import split
from ..reading.adapter import Adapter, Module

Effect = Literal["refused", "dropped", "changed"]


@dataclass(frozen=True, slots=True)
class Key:
    """One tensor of a file as the rules see it.

    ``module`` is its module's name in the file ("" where it belongs to none), ``format`` the naming that this is of,
    ``modules`` the canonical ones behind it (several for a fused projection, none for a bias alone).
    """

    key: str
    module: str
    role: str
    format: str
    modules: tuple[Module, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(module.name for module in self.modules)


@dataclass(frozen=True)
class File:
    """A file as the rules see it: its base ("" where it is not known), and all of its keys."""

    adapter: Adapter
    keys: tuple[Key, ...]

    @property
    def base(self) -> str:
        return self.adapter.layout.name if self.adapter.layout else ""

    @cached_property
    def alphas(self) -> dict[str, float]:
        """Module of the file -> its stored alpha."""
        assert self.adapter.file is not None
        tensors = self.adapter.file.tensors
        return {key.module: float(tensors[key.key].read().reshape(-1)[0]) for key in self.keys if key.role == "alpha"}

    @cached_property
    def names(self) -> frozenset[str]:
        """All keys."""
        return frozenset(key.key for key in self.keys)

    @cached_property
    def memory(self) -> dict[object, Any]:
        """What rules found out about the whole file, so that it is found out once and not for every key."""
        return {}

    def first(self, pattern: str) -> str | None:
        """The first key that a pattern is found in."""
        if pattern not in self.memory:
            found = re.compile(pattern)
            self.memory[pattern] = next((key.key for key in self.keys if found.search(key.key)), None)
        first: str | None = self.memory[pattern]
        return first


def _always(key: Key, file: File) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """What becomes of a key to which all of this applies.

    Args:
        effect: "refused" (the program loads nothing of the whole file), "dropped" (this key is not used) or
            "changed" (it is used, and does something else than the file says).
        why: to be read after "because"; ``{key}`` is the key that decides, for a refusal.
        bases: only for these base models; empty for all.
        formats: only for keys named in these ways; empty for all. roles: likewise.
        key: a pattern that is found in the key. unless: one that is not.
        when: whatever else must hold.
    """

    effect: Effect
    why: str
    bases: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    key: str = ""
    unless: str = "(?!)"
    when: Callable[[Key, File], bool] = _always

    def applies(self, key: Key, file: File) -> bool:
        """Whether the rule speaks of this key of this file."""
        return (
            (not self.bases or file.base in self.bases)
            and (not self.formats or key.format in self.formats)
            and (not self.roles or key.role in self.roles)
            and re.search(self.key, key.key) is not None
            and re.search(self.unless, key.key) is None
            and self.when(key, file)
        )


@dataclass(frozen=True)
class Program:
    """A program that loads adapters.

    Args:
        name: what the user types; title: what the user reads.
        rules: the first that applies decides.
        checked: how we know: versions that were run, sources that were read.
        wants_folder: whether it reads a folder with a config, not a file.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    checked: str
    wants_folder: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a program will do with a file.

    ``dropped`` and ``changed`` give the reason for each key; ``refused`` the reason for which nothing at all is
    loaded (then every key is dropped).
    """

    program: Program
    taken: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None

    @property
    def sentence(self) -> str:
        """The forecast in one sentence."""
        total, title = len(self.taken) + len(self.dropped), self.program.title
        if self.refused:
            return f"{title} loads nothing of this file, because {self.refused}."
        if not self.dropped:
            text = f"{title} takes all {total} keys"
        elif self.taken:
            text = f"{title} takes {len(self.taken)} of {total} keys and drops {len(self.dropped)}"
        else:
            text = f"{title} takes none of the {total} keys"
        return f"{text}; {len(self.changed)} of them act otherwise than the file says." if self.changed else f"{text}."

    def as_data(self) -> dict[str, Any]:
        """The forecast as plain data, keys grouped by reason."""
        return {
            "program": self.program.name, "sentence": self.sentence, "refused": self.refused,
            "keys": len(self.taken) + len(self.dropped), "taken": len(self.taken),
            "dropped": _by_reason(self.dropped), "changed": _by_reason(self.changed), "checked": self.program.checked,
        }  # fmt: skip


def _by_reason(fates: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, why in fates.items():
        found.setdefault(why, []).append(key)
    return found


@lru_cache(maxsize=1)
def all_programs() -> dict[str, Program]:
    """Every program by name."""
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.PROGRAM.name: module.PROGRAM for module in found}


def forecast(adapter: Adapter, program: str) -> Forecast:
    """Say in advance how many keys a program will take, and which it will drop and why.

    Args:
        adapter: from `load`.
        program: "diffusers", "peft", "comfyui" or "kohya".

    Raises:
        UsageError: no such program.

    >>> forecast(load("cat.safetensors"), "diffusers").sentence  # doctest: +SKIP
    'diffusers takes all 576 keys.'
    """
    programs = all_programs()
    if program not in programs:
        raise UsageError("no such program", got=program, expected=" or ".join(programs))
    chosen, file = programs[program], File(adapter, tuple(_keys(adapter)))
    if chosen.wants_folder and adapter.config is None:
        why = f"{chosen.title} reads a folder with adapter_config.json (write one with --format peft)"
        return _refusal(chosen, file, why)
    fates = {key.key: next((rule for rule in chosen.rules if rule.applies(key, file)), None) for key in file.keys}
    for key, rule in fates.items():
        if rule is not None and rule.effect == "refused":
            return _refusal(chosen, file, rule.why.format(key=key))
    return Forecast(
        chosen,
        tuple(key for key, rule in fates.items() if rule is None or rule.effect == "changed"),
        {key: rule.why for key, rule in fates.items() if rule is not None and rule.effect == "dropped"},
        {key: rule.why for key, rule in fates.items() if rule is not None and rule.effect == "changed"},
    )


def _refusal(program: Program, file: File, why: str) -> Forecast:
    return Forecast(program, (), {key.key: why for key in file.keys}, {}, why)


def _keys(adapter: Adapter) -> Iterator[Key]:
    """Every tensor of the file with its module, role and naming."""
    assert adapter.file is not None
    homes: dict[str, list[Module]] = {}
    formats: dict[str, str] = {}
    for module in adapter.values():
        homes.setdefault(module.origin.module, []).append(module)
        formats[module.origin.module] = module.origin.format
    for vector in adapter.vectors.values():
        formats.setdefault(vector.origin.module, vector.origin.format)
    for key in adapter.file.tensors:
        found = None if key in adapter.others else split(key)
        if found is None:
            yield Key(key, "", "", "", ())
            continue
        naming = formats.get(found.module)
        if naming is None:
            naming = detect({found.module: found.suffix}, adapter.path).format.name
        yield Key(key, found.module, found.role, naming, tuple(homes.get(found.module, ())))


def bases(*names: str) -> frozenset[str]:
    """Base models by the names of their tables."""
    return frozenset(names)


UNETS = bases("sd15", "sd2", "sdxl")
SD3 = bases("sd3-medium", "sd35-medium", "sd35-large")
FLUX = bases("flux1", "chroma")
