"""What a picture of a grid is made with, and the adapters that a grid compares, declared as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..fusion.options import check_options, numeric_options, options_of
from ..fusion.overlap import kept_strength
from ..fusion.overrides import fitting
from ..methods import find_method, known_methods
from ..parameters import MU, OVERRIDES, SUBJECT_STRENGTH, Parameter

Values = Mapping[str, object]


@dataclass(frozen=True)
class Source:
    """The adapter behind a picture: no file, one file, or the fusion of two.

    Attributes:
        files: places in the list of files that were given.
        parameters: of `nplora.fuse`, those that were set.
        strength: of the whole adapter, by the pipeline.
    """

    files: tuple[int, ...]
    parameters: tuple[tuple[str, object], ...] = ()
    strength: float = 1.0


@dataclass(frozen=True)
class Variant:
    """One way to use a subject and a style: its name, what a column is called, a sentence, and the adapter.

    ``title`` takes mu, or None where mu varies over the grid.
    """

    name: str
    title: Callable[[float | None], str]
    sentence: str
    source: Callable[[Values], Source]


def _fused(values: Values, **changed: object) -> Source:
    chosen = {**values, **changed}
    name = str(chosen.pop("method", "np"))
    method = find_method(name)
    # What another method understands and this one does not has no part in this picture.
    own = {parameter.name for parameter in method.options}
    of_any = {parameter.name for other in known_methods().values() for parameter in other.options}
    kept = {key: value for key, value in chosen.items() if key in own or key not in of_any}
    rules = fitting(kept.pop(OVERRIDES.name, None), {p.name for p in options_of(method)} - set(changed))
    kept |= {OVERRIDES.name: rules} if rules else {}
    return Source((0, 1), tuple(sorted({"method": name, **kept}.items())))


def mu_of(values: Values) -> float:
    """The protection that these parameters ask for."""
    return float(values.get("mu", MU.default))  # type: ignore[arg-type]


def _matched(values: Values) -> Source:
    strength = float(values.get("subject_strength", SUBJECT_STRENGTH.default))  # type: ignore[arg-type]
    return _fused(values, method="np", mu=0.0, subject_strength=strength * kept_strength(mu_of(values)))


def _alone(place: int, strength: str) -> Callable[[Values], Source]:
    return lambda values: Source((place,), strength=float(values.get(strength, 1.0)))  # type: ignore[arg-type]


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("none", lambda _: "no adapter", "the bare base", lambda _: Source(())),
        Variant("subject", lambda _: "subject alone", "the first file", _alone(0, "subject_strength")),
        Variant("style", lambda _: "style alone", "the second file", _alone(1, "style_strength")),
        Variant(
            "addition", lambda _: "addition", "both, plainly added (mu = 0)",
            lambda values: _fused(values, method="np", mu=0.0),
        ),
        Variant(
            "matched", lambda mu: "addition at " + ("1/(1+mu)" if mu is None else f"{kept_strength(mu):.2f}"),
            "plain addition with the subject at strength 1/(1+mu): all that mu does to a pair of one seed", _matched,
        ),
        Variant(
            "soft", lambda mu: "NP soft" + ("" if mu is None else f", mu {mu:g}"),
            "soft null-space projection at mu", lambda values: _fused(values, method="np"),
        ),
        Variant(
            "hard", lambda _: "NP hard", "hard null-space projection (mu = inf)",
            lambda values: _fused(values, method="np", mu=float("inf")),
        ),
        Variant("fused", lambda _: "fused", "the fusion as the axes and options say", _fused),
    )
}  # fmt: skip
OWN = ("seed", "base")  # of the picture, where a fusion has a parameter of the same name
PAIR = ("subject", "style", "addition", "matched", "soft", "hard")  # the default columns for two files


@dataclass(frozen=True)
class Cell:
    """Everything that one picture depends on.

    Attributes:
        adapter: a name of `VARIANTS`, or a file's number, counted from 1.
        prompt, seed: of the picture.
        strength: of the whole adapter, on top of those in ``parameters``.
        steps, guidance: None takes the base's default.
        parameters: of `nplora.fuse`, those that were set.
    """

    adapter: str
    prompt: str
    seed: int = 0
    strength: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    parameters: tuple[tuple[str, object], ...] = ()

    def fused_with(self, name: str, value: object) -> Cell:
        """The same with one parameter of `nplora.fuse` set."""
        return replace(self, parameters=tuple(sorted({**dict(self.parameters), name: value}.items())))

    def source(self, files: int) -> Source:
        """The adapter to put on the pipeline, given how many files there are.

        Raises:
            UsageError: the adapter is none of those that so many files allow, or the fusion has no such option.
        """
        if self.adapter not in adapters(files):
            raise UsageError(
                f"no adapter is called {self.adapter!r}", expected=", ".join(adapters(files)),
                hint="Two files are a subject and a style; of another number each has its own.",
            )  # fmt: skip
        if self.adapter.isdecimal():
            found = Source((int(self.adapter) - 1,))
        else:
            found = VARIANTS[self.adapter].source(dict(self.parameters))
        if len(found.files) == 2:
            found = replace(found, files=tuple(range(files)))
            values = dict(found.parameters)
            check_options(find_method(str(values.pop("method"))), values, files)
        return replace(found, strength=found.strength * self.strength)


def adapters(files: int) -> tuple[str, ...]:
    """What the axis ``adapter`` may hold for so many files.

    >>> adapters(1), adapters(2)[:4], adapters(3)
    (('none', '1'), ('none', 'subject', 'style', 'addition'), ('none', '1', '2', '3', 'fused'))
    """
    if files == 2:
        return tuple(VARIANTS)
    return ("none", *(str(number + 1) for number in range(files)), *(["fused"] if files > 2 else []))


def default_adapters(files: int, method: object = None) -> tuple[str, ...]:
    """The columns of a grid for which nothing was asked.

    >>> default_adapters(2, "ties")[-2:]
    ('hard', 'fused')
    """
    if files != 2:
        return adapters(files)
    return PAIR if method in (None, "np") else (*PAIR, "fused")


def fuse_parameters() -> dict[str, Parameter]:
    """Every parameter of `nplora.fuse` on which a picture can depend, by name."""
    every = (p for method in known_methods().values() for p in numeric_options(method))
    return {parameter.name: parameter for parameter in every if parameter.name not in OWN}
