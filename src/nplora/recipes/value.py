"""A recipe as a value: which files, which method, which parameters, which output; or lists of them.

The fields are the YAML file's own. Anything that may be swept may be a list: the recipe then stands for every
combination.
"""

from __future__ import annotations

from typing import Any

import msgspec

Number = float | int | str  # "inf" is how YAML, JSON and the command line all say infinity


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One adapter: where it lies, which bytes it must hold, how strong it is.

    Attributes:
        path: a file or PEFT folder; a relative one is looked for beside the recipe.
        sha256: of the file; a run refuses another one.
        config_sha256: of a folder's ``adapter_config.json``.
        strength: its weight in the sum, or a list to sweep.
    """

    path: str
    sha256: str | None = None
    config_sha256: str | None = None
    strength: float | list[float] = 1.0


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where results go.

    Attributes:
        path: the file (or PEFT folder) of a recipe without lists.
        folder: the folder of a recipe with lists.
        name: file names there, from ``{subject}``, ``{style}``, ``{method}`` and any parameter; made from what varies
            if it is not given.
        format, dtype: as in `nplora.fuse`.
    """

    path: str | None = None
    folder: str | None = None
    name: str | None = None
    format: str = "auto"
    dtype: str = "same"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that a fusion depends on.

    Attributes:
        inputs: role -> adapter, in the order of priority (the last is the most protected); a path alone will do.
        method: one of `nplora methods`, or a list.
        parameters: name -> value or list; those of the method and of `nplora.fuse`.
        overrides: parameters in parts of the model: ``where``, and what holds there instead.
        output: where results go.
        nplora: the version that wrote the recipe; for people only.
    """

    inputs: dict[str, str | Input | list[str | Input]]
    output: Output
    method: str | list[str] = "np"
    parameters: dict[str, Any] = {}
    overrides: list[dict[str, Any]] = []
    nplora: str | None = None
