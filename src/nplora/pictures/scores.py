"""Scores under the pictures: whatever can look at pictures and say a few numbers; the world's judges where they are."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UsageError
from .bases import Base
from .cells import Cell

if TYPE_CHECKING:
    from PIL.Image import Image


class Scorer(Protocol):
    """Looks at pictures and says a few numbers about each."""

    def __call__(self, pictures: Sequence[Image], cells: Sequence[Cell]) -> Sequence[Mapping[str, float]]:
        """Name -> number for each picture; `cells` say what the pictures were made with."""


def load_scorer(name: str) -> Scorer:
    """A scorer of your own: ``MODULE:NAME``, where NAME is a `Scorer`, found as Python finds modules.

    Raises:
        UsageError: there is none of that name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"no scorer is called {name!r}", expected="MODULE:NAME", hint="See docs/pictures.md.")
    try:
        found: Scorer = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the scorer cannot be imported ({error})", key=name, hint="See docs/pictures.md.") from None
    return found


def wanted_of(files: Sequence[Path]) -> dict[str, str]:
    """What the world's LoRA files say they show: kind -> name, from the .json beside each.

    >>> wanted_of([Path("unknown.safetensors")])
    {}
    """
    found = {}
    for file in files:
        try:
            facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            found[str(facts["kind"])] = str(facts["name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {kind: found[kind] for kind in ("subject", "style") if kind in found}


def world_scorer(base: Base, wanted: Mapping[str, str]) -> Scorer:
    """The world's judge, asked for the probability of a subject and of a style.

    Args:
        base: the world.
        wanted: {"subject": "fox", "style": "gold"} or one of the two.

    Raises:
        UsageError: the judge is not there, or knows no such subject or style.
    """
    if base.world is None:
        raise UsageError("only the world has a judge", hint="Use --scorer MODULE:NAME with another base.")
    judge, names, who = _judge(base.world)
    columns = {}
    for kind, name in wanted.items():
        if name not in names.get(kind, ()):
            known = ", ".join(names.get(kind, names))
            raise UsageError(f"the world's judge knows no {kind} {name!r}", expected=known)
        columns[kind] = names[kind].index(name)

    def score(pictures: Sequence[Image], cells: Sequence[Cell]) -> list[dict[str, float]]:
        import numpy as np

        verdict = judge.judge(who, np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        return [
            {wanted[kind]: float(getattr(verdict, kind)[index, column]) for kind, column in columns.items()}
            for index in range(len(pictures))
        ]

    return score


def _judge(world: Path) -> tuple[Any, dict[str, list[str]], Any]:
    """The world's own module of judges, the names that it can say, and one of them with weights and temperature."""
    weights = _weights(world)
    sys.path.insert(0, str(world.resolve().parent))
    try:
        package = world.resolve().name
        judge, subjects, styles = (importlib.import_module(f"{package}.{n}") for n in ("judge", "subjects", "styles"))
    except ImportError as error:
        raise UsageError(f"the world's judge cannot be used here ({error})", hint="See world/README.md.") from None
    finally:
        sys.path.pop(0)
    names = {"subject": [s.name for s in subjects.all_subjects()], "style": [s.name for s in styles.all_styles()]}
    network = judge.Recogniser(*map(len, names.values()))
    network.load_state_dict(_numbers(weights))
    temperature = json.loads(weights.with_suffix(".json").read_text("utf-8"))["temperature"]
    return judge, names, judge.Judge(network.eval(), temperature)


def _weights(world: Path) -> Path:
    """The judge's weights: shipped with the world, or in the folder of its training runs."""
    runs = Path(os.environ.get("NPLORA_WORLD_RUNS", world.parent / "runs"))
    for folder in (world / "judges", runs / "judges"):
        for file in sorted(folder.glob("judge-*.safetensors")):
            return file
    raise UsageError("the world's judge has not been trained", hint="See world/README.md.")


def _numbers(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()}
