"""Fusion methods: each a pure function in its own file, found by scanning this folder.

There are two sorts. To add one, write one file with a function under one of the two decorators; nothing else changes.

- A *projection* (`method`) turns the Gram matrices of one module (or a batch) into coefficients ``C`` (r_c, r_s): the
  fused subject is ``A_c' = A_c - C A_s``, every other factor stays as it is. This is the general data-free operator
  ``X = D_c C_c (C_c + mu C_s)^-1`` with ``C_c = I`` and ``C_s`` in the span of the style's rows.
- A *merge* (`merge`) turns the updates of one module from any number of adapters into one low-rank product.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ..algebra import Array, Grams
from ..errors import UsageError
from ..parameters import CALIBRATE, PROTECT, SEED, SIDE, Parameter

Function = Callable[..., "Result"]
MergeFunction = Callable[..., "Product"]


@dataclass(frozen=True)
class Result:
    """What a method returns for a batch of modules.

    ``C`` (..., r_c, r_s) are the coefficients of ``A_c' = A_c - C A_s``; ``inside`` (...,) is
    ``||dW_c V||_F^2`` before scales, the subject's energy in the protected directions; ``protected``
    (...,) counts those directions. ``gain`` (...,), if a method has one, multiplies what is left of the subject.
    """

    C: Array
    inside: Array
    protected: Array
    gain: Array | None = None


@dataclass(frozen=True)
class Method:
    """A registered projection: its function, its parameters as data, its reference and what it promises.

    ``rewrites`` is False for a method that changes no factor and only looks at the overlap.
    ``linear`` says that ``C`` is ``g = mu/(1+mu)`` times what it is at mu = inf: then a live model turns mu for free.
    """

    name: str
    title: str
    reference: str
    parameters: tuple[Parameter, ...]
    function: Function
    formula: str = ""
    guarantee: str = ""
    rewrites: bool = True
    linear: bool = False
    aliases: tuple[str, ...] = ()  # what other programs call it

    @property
    def least(self) -> int:
        """How many adapters it needs."""
        return 2 if self.rewrites else 1

    @property
    def options(self) -> tuple[Parameter, ...]:
        """Its parameters and those that every projection has."""
        return (*self.parameters, SIDE, PROTECT, CALIBRATE) if self.rewrites else self.parameters

    def __call__(self, grams: Grams, **values: object) -> Result:
        return self.function(grams, **values)


def method(
    name: str,
    *,
    title: str,
    reference: str,
    parameters: tuple[Parameter, ...],
    formula: str = "",
    guarantee: str = "",
    rewrites: bool = True,
    linear: bool = False,
    aliases: tuple[str, ...] = (),
) -> Callable[[Function], Method]:
    """Register the decorated function as a projection; without a formula its docstring's first line is shown."""

    def register(function: Function) -> Method:
        shown = formula or (function.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        return Method(name, title, reference, parameters, function, shown, guarantee, rewrites, linear, aliases)

    return register


@dataclass(frozen=True)
class Part:
    """One adapter's share in one module: its update is ``dW = up @ down``, and ``weight`` is its strength.

    ``up`` (out, r) and ``down`` (r, n) hold the adapter's own scale (alpha / r) already; float64 unless the device
    has none. ``scale`` says what it was, for methods that reproduce what other programs do with stored factors.
    """

    up: Array
    down: Array
    weight: float = 1.0
    scale: float = 1.0


def weighted(parts: Sequence[Part]) -> list[tuple[Array, Array]]:
    """Factors with the strength in the up factor; parts of strength 0 are left out, unless all are (then the first)."""
    live = [part for part in parts if part.weight] or parts[:1]
    return [(part.up if part.weight == 1 else part.weight * part.up, part.down) for part in live]


@dataclass(frozen=True)
class Product:
    """What a merge returns for one module: ``dW = up @ down`` with ``up`` (out, k) and ``down`` (k, n).

    ``error`` is ``||dW - D||_F`` against the method's definition D: 0 where the factors are exact, the residual of the
    truncation elsewhere. ``facts`` are numbers that the method chose for this module, by name; ``note`` says, without
    the module's name, why it could not keep to what was asked for. Of a batch the first three have its leading axes.
    """

    up: Array
    down: Array
    error: Array = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Merge:
    """A registered merge: its function, its parameters as data, its reference and what it promises.

    ``cores`` says that it knows nothing of single entries or of the weight's size: with orthonormal Q and P,
    ``f(Q B_i, A_i P) = Q f(B_i, A_i) P``. Then it may be run on small cores of the updates in bases that they share.
    ``batches`` says that it takes leading axes (and needs no seed): many modules of equal shapes at once.
    """

    name: str
    title: str
    reference: str
    formula: str
    guarantee: str
    parameters: tuple[Parameter, ...]
    function: MergeFunction
    cores: bool = False
    batches: bool = False

    @property
    def least(self) -> int:
        """How many adapters it needs."""
        return 1

    @property
    def options(self) -> tuple[Parameter, ...]:
        """Its parameters and those that every merge has."""
        return (*self.parameters, SEED)

    def __call__(self, parts: Sequence[Part], *, seed: int = 0, **values: object) -> Product:
        """Merge one module.

        Args:
            parts: one for each adapter that changes the module, in the order given (the last is the most protected).
            seed: of this module (the caller mixes the run's seed and the module's name, so that results do not depend
                on the order of modules); methods without randomness take no notice.
            **values: the method's parameters.
        """
        return self.function(parts, seed=seed, **values)


def merge(
    name: str,
    *,
    title: str,
    reference: str,
    formula: str,
    guarantee: str,
    parameters: tuple[Parameter, ...] = (),
    cores: bool = False,
    batches: bool = False,
) -> Callable[[MergeFunction], Merge]:
    """Register the decorated function ``(parts, *, seed, **parameters) -> Product`` as a merge; see `Merge`."""

    def register(function: MergeFunction) -> Merge:
        return Merge(name, title, reference, formula, guarantee, parameters, function, cores, batches)

    return register


@lru_cache(maxsize=1)
def all_merges() -> dict[str, Merge]:
    """Every merge, by name."""
    return {value.name: value for value in _found() if isinstance(value, Merge)}


@lru_cache(maxsize=1)
def all_methods() -> dict[str, Method]:
    """Every projection, by name."""
    found = {value.name: value for value in _found() if isinstance(value, Method)}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "np", item[0])))  # the default comes first


def known_methods() -> dict[str, Method | Merge]:
    """Both sorts by name, the projections first."""
    return {**all_methods(), **all_merges()}


def find_method(name: str) -> Method | Merge:
    """The projection or merge of a name; only its own file is imported where that bears its name.

    Raises:
        UsageError: there is none; the message names the nearest.

    >>> find_method("np").title, find_method("cat").name
    ('Null-space projection (NP-LoRA)', 'linear')
    """
    found = _in_file(name.replace("-", "_")).get(name) if name.replace("-", "").isalnum() else None
    if found is None:
        known = known_methods()
        called = {alias: one for one in all_methods().values() for alias in one.aliases}
        if name in called:
            return called[name]
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"Did you mean {near[0]}?" if near else "nplora methods lists them."
            raise UsageError(f"no method is called {name}", expected=f"one of {', '.join(known)}", hint=hint)
        found = known[name]
    return found


def _in_file(file: str) -> dict[str, Method | Merge]:
    """The methods of one file of this folder, if there is one."""
    try:
        module = importlib.import_module(f"{__name__}.{file}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{file}":
            raise
        return {}
    return {value.name: value for value in vars(module).values() if isinstance(value, Method | Merge)}


def _found() -> Iterator[Method | Merge]:
    for info in pkgutil.iter_modules(__path__):
        yield from _in_file(info.name).values()
