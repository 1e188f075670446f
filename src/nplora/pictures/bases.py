"""Find the base model to paint with: a local diffusers folder, or the world, the miniature that nplora ships with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError

WORLD = "NPLORA_WORLD"  # the environment variable that says where the world lies
REPOSITORY = Path(__file__).resolve().parents[3]  # of a checkout; of an installed wheel this is no world's place


@dataclass(frozen=True)
class Base:
    """A pipeline folder and how pictures are made with it where nothing else is asked for.

    Attributes:
        folder: holds ``model_index.json``.
        name: what people call it.
        steps, guidance: defaults; None leaves them to the pipeline.
        world: the world's own folder (LoRAs, judges, true pictures), or None for another base.
    """

    folder: Path
    name: str
    steps: int | None = None
    guidance: float | None = None
    world: Path | None = None

    @property
    def index(self) -> Mapping[str, Any]:
        """The pipeline's ``model_index.json``."""
        return _index(self.folder)


def find_base(name: str | os.PathLike[str]) -> Base:
    """The base of that name: "world", or the path of a diffusers folder. Nothing is looked up on a network.

    Raises:
        UsageError: no world is found; InputError: the path is no diffusers pipeline.
    """
    if os.fspath(name) == "world":
        return _world(find_world())
    folder = Path(name)
    if not folder.exists():
        raise InputError(
            "no such folder", file=folder,
            hint="--base takes the word world or a local diffusers folder; nothing is fetched from a hub.",
        )  # fmt: skip
    if folder.is_file():
        raise InputError(
            "a single file is no pipeline", file=folder, expected="a diffusers folder (it holds model_index.json)",
            hint="Convert the checkpoint with diffusers' from_single_file and save_pretrained.",
        )  # fmt: skip
    if _is_world(folder):
        return _world(folder)
    _index(folder)
    if folder.name == "model" and _is_world(folder.resolve().parent):
        return _world(folder.resolve().parent)
    return Base(folder, folder.resolve().name)


def find_world() -> Path:
    """The world's folder: ``$NPLORA_WORLD``, else ``world/`` here or in a folder above, else the checkout's.

    Raises:
        UsageError: there is none, or the variable names a folder that is not a world.
    """
    given = os.environ.get(WORLD)
    if given:
        if _is_world(Path(given)):
            return Path(given)
        raise UsageError(
            f"{WORLD} does not name a world", key=given, expected="a folder that holds model/model_index.json",
            hint="Point it to the folder world of nplora's repository.",
        )  # fmt: skip
    for folder in _candidates():
        if _is_world(folder):
            return folder
    raise UsageError(
        "the world was not found", expected="a folder world/ here, in a folder above, or named by " + WORLD,
        hint="The wheel does not carry it: clone nplora's repository, or give --base the path of a diffusers folder.",
    )  # fmt: skip


def _candidates() -> Iterator[Path]:
    here = Path.cwd()
    for folder in (here, *here.parents, REPOSITORY):
        yield folder / "world"


def _is_world(folder: Path) -> bool:
    return (folder / "model" / "model_index.json").is_file() and (folder / "loras").is_dir()


def _world(folder: Path) -> Base:
    return Base(folder / "model", "world", steps=20, guidance=2.0, world=folder)


def _index(folder: Path) -> Mapping[str, Any]:
    file = folder / "model_index.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "no diffusers pipeline", file=folder, expected="a folder that holds model_index.json",
            hint="Name the folder that save_pretrained wrote.",
        ) from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=file, hint="Save the pipeline again.") from None
    if not isinstance(found, dict):
        raise InputError("does not describe a pipeline", file=file, hint="Save the pipeline again.")
    return found
