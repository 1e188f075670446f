"""Fusion methods: each a pure function in its own file, found by scanning this folder.

A method turns the Gram matrices of one module (or a batch) into coefficients ``C`` (r_c, r_s): the fused
subject is ``A_c' = A_c - C A_s``. This is the general data-free operator ``X = D_c C_c (C_c + mu C_s)^-1``
with ``C_c = I`` and ``C_s`` in the span of the style's rows; a new method supplies another ``C``.
To add one, write one file with a function decorated by `method`; nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ..algebra import Array, Grams
from ..parameters import Parameter

Function = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a method returns for a batch of modules.

    ``C`` (..., r_c, r_s) are the coefficients of ``A_c' = A_c - C A_s``; ``inside`` (...,) is
    ``||dW_c V||_F^2`` before scales, the subject's energy in the protected directions; ``protected``
    (...,) counts those directions.
    """

    C: Array
    inside: Array
    protected: Array


@dataclass(frozen=True)
class Method:
    """A registered method: its function, its parameters as data, its reference."""

    name: str
    title: str
    reference: str
    parameters: tuple[Parameter, ...]
    function: Function

    def __call__(self, grams: Grams, **values: object) -> Result:
        return self.function(grams, **values)


def method(name: str, *, title: str, reference: str, parameters: tuple[Parameter, ...]) -> Callable[[Function], Method]:
    """Register the decorated function as a fusion method."""

    def register(function: Function) -> Method:
        return Method(name, title, reference, parameters, function)

    return register


@lru_cache(maxsize=1)
def all_methods() -> dict[str, Method]:
    """Every method, by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, Method):
                found[value.name] = value
    return found
