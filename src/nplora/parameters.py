"""Parameters as data: name, range, default and one sentence, declared once.

The CLI option, the Python check, the recipe check, a slider or a node socket are all made from these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import UsageError

Value = object


@dataclass(frozen=True)
class Parameter:
    """One parameter: what it may be, what it is by default, and what it does in a sentence.

    ``kind`` is "number", "count" (a whole number, never below 0), "choice", "flag", "names", "order", "strengths",
    "overrides", "path" (a file or a folder) or "directions". ``low`` and ``high`` bound a number (both inclusive;
    ``high`` may be infinite, and then "inf" is a value). ``whole`` says that it holds for the whole file: it cannot be
    another in a part of the model.
    """

    name: str
    kind: str
    default: Value
    sentence: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    spelling: str = ""  # on the command line, where it is not the name's
    whole: bool = False

    @property
    def option(self) -> str:
        """The command-line spelling.

        >>> SUBJECT_STRENGTH.option
        '--subject-strength'
        """
        return self.spelling or "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.kind == "choice":
            return ", ".join(self.choices)
        if self.kind == "number":
            return f"a number {_interval(self.low, self.high)}"
        if self.kind == "count":
            least = f"a whole number from {max(self.low, 0):g}"
            return least if math.isinf(self.high) else f"{least} to {self.high:g}"
        return _KINDS[self.kind][1]

    def check(self, value: Value) -> Value:
        """The value in its proper type.

        Raises:
            UsageError: out of range or of another kind; the message names the range.

        >>> MU.check("inf"), MU.check(1)
        (inf, 1.0)
        """
        try:
            checked = (
                _number(self, value) if self.kind == "number" else _KINDS.get(self.kind, (_choice, ""))[0](self, value)
            )
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"{self.name} is out of range", expected=self.range, got=repr(value), hint=self.sentence
            ) from None
        return checked


def _interval(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "(any finite one)"
    return f"from {low:g} to {'inf' if math.isinf(high) else format(high, 'g')}"


def _number(parameter: Parameter, value: Value) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)  # type: ignore[arg-type]
    unbounded = math.isinf(parameter.low)
    if math.isnan(number) or not parameter.low <= number <= parameter.high or (unbounded and math.isinf(number)):
        raise ValueError
    return number


def _choice(parameter: Parameter, value: Value) -> str:
    if value not in parameter.choices:
        raise ValueError
    return str(value)


def _flag(parameter: Parameter, value: Value) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _names(parameter: Parameter, value: Value) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    names = tuple(item.strip() for item in items)
    if not all(names):
        raise ValueError
    return names


def _count(parameter: Parameter, value: Value) -> int:
    number = int(value) if isinstance(value, (int, str)) else float(value)  # type: ignore[arg-type]
    if isinstance(value, bool) or number != int(number) or not max(parameter.low, 0) <= number <= parameter.high:
        raise ValueError
    return int(number)


def _directions(parameter: Parameter, value: Value) -> Value:
    if value == "all":
        return "all"
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        value = float(value) if any(mark in value for mark in ".eE") else int(value)
    if isinstance(value, int) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise ValueError


def _order(parameter: Parameter, value: Value) -> str:
    groups = value.split(">") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    words = [group.split("=") if isinstance(group, str) else list(group) for group in groups]
    if not all(word.strip() for group in words for word in group) or not all(words):
        raise ValueError
    return " > ".join(" = ".join(word.strip() for word in group) for group in words)


def _path(parameter: Parameter, value: Value) -> str:
    path = os.fspath(value)  # type: ignore[call-overload]
    if not isinstance(path, str) or not path:
        raise TypeError
    return path


def _rules(parameter: Parameter, value: Value) -> tuple[str, ...]:
    """Rules ``WHO@WHERE=NUMBER`` (strengths) or ``PARAMETER@WHERE=VALUE`` (overrides) as texts."""
    strengths, rules = parameter.kind == "strengths", []
    for place, given in _places(value):
        what, mark, where = (word.strip() for word in place.partition("@"))
        if not what or (mark and not where) or "," in place:
            raise ValueError
        what = what if strengths else what.replace("-", "_")
        rules.append(f"{what}@{where or '*'}={repr(_number(parameter, given)) if strengths else word_of(given)}")
    if not rules:
        raise ValueError
    return tuple(rules)


def _places(value: Value) -> list[tuple[str, Value]]:
    """(what@where, value) from a text, from a mapping (nested, or a table with ``where``), or from several of them."""
    if isinstance(value, Mapping) and "where" in value:
        if not isinstance(value["where"], str) or not value["where"].strip():
            raise TypeError
        return [(f"{what}@{value['where']}", given) for what, given in value.items() if what != "where"]
    if isinstance(value, Mapping):
        found = []
        for what, inner in value.items():
            nested = inner.items() if isinstance(inner, Mapping) else ((None, inner),)
            found += [(str(what) if where is None else f"{what}@{where}", given) for where, given in nested]
        return found
    if isinstance(value, str):
        split = [text.rpartition("=") for text in value.split(",")]
        return [(place, given) for place, _, given in split]
    return [rule for item in value for rule in _places(item)]  # type: ignore[attr-defined]


def word_of(value: Value) -> str:
    """A value as a rule's text says it.

    >>> [word_of(value) for value in (2, 0.5, math.inf, True, "all")]
    ['2', '0.5', 'inf', 'yes', 'all']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        word = str(value).strip()
        if not word:
            raise ValueError
        return word
    return repr(float(value))  # type: ignore[arg-type]


_KINDS: Mapping[str, tuple[Callable[[Parameter, Value], Value], str]] = {
    "count": (_count, "a whole number"),
    "path": (_path, "a file or a folder"),
    "flag": (_flag, "yes or no"),
    "strengths": (_rules, "WHO@WHERE=NUMBER, or several with commas between them, such as style@up=1,style@*=0"),
    "overrides": (_rules, "PARAMETER@WHERE=VALUE, or several with commas between them, such as mu@up=2,rank@down=8"),
    "order": (_order, 'names with > between them, the most protected first, and = between equals, such as "c > b = a"'),
    "names": (_names, "names separated by commas"),
    "directions": (_directions, '"all", a count such as 4, or a share of the energy such as 0.95'),
}


def attenuation(mu: float) -> float:
    """``g = mu / (1 + mu)``, the share that is taken away in a protected direction.

    >>> attenuation(0.5), attenuation(math.inf)
    (0.3333333333333333, 1.0)
    """
    return 1.0 if math.isinf(mu) else mu / (1.0 + mu)


MU = Parameter(
    "mu", "number", 0.5,
    "How strongly the style's directions are protected: 0 is plain addition, inf the hard projection.", low=0.0,
)  # fmt: skip
DIRECTIONS = Parameter(
    "directions", "directions", "all",
    "Which of the style's directions are protected: all, the top k, or as many as hold a share of its energy.",
)  # fmt: skip
SIDE = Parameter(
    "side", "choice", "input",
    "Project on the input side (the method) or on the output side (the paper's ablation).", choices=("input", "output"),
)  # fmt: skip
CALIBRATE = Parameter(
    "calibrate", "number", 1.0,
    "How far what is left of a projected adapter may be scaled up to get its norm back: 1 is not at all, inf wholly.",
    low=1.0,
)  # fmt: skip
PROTECT = Parameter(
    "protect", "order", None,
    'Who is protected from whom, such as "c > b = a"; by default each adapter from all that are named before it.',
    whole=True,
)  # fmt: skip
SEED = Parameter(
    "seed", "count", 0,
    "Seed of methods with randomness; each module's own follows from it and the module's name.", low=0, whole=True,
)  # fmt: skip
SUBJECT_STRENGTH = Parameter(
    "subject_strength",
    "number",
    1.0,
    "Strength of the subject; 0 leaves it out, negative values subtract it.",
    whole=True,
)  # fmt: skip
STYLE_STRENGTH = Parameter(
    "style_strength", "number", 1.0, "Strength of the style; 0 leaves it out, negative values subtract it.",
    whole=True,
)  # fmt: skip
STRENGTHS = Parameter(
    "strengths", "strengths", None,
    "Strengths in parts of the model, such as style@up=0 or cat@*.attn1.*=0.8; the first that means a module counts.",
    spelling="--strength", whole=True,
)  # fmt: skip
OVERRIDES = Parameter(
    "overrides", "overrides", None,
    "Parameters in parts of the model, such as mu@up=2 or rank@attention=8; the first that means a module counts.",
    spelling="--override", whole=True,
)  # fmt: skip
COMPONENTS = Parameter(
    "components", "names", None,
    "Only these parts of the model, for example unet,text_encoder; the rest is left out and named in the report.",
    whole=True,
)  # fmt: skip
FORMAT = Parameter(
    "format", "choice", "auto",
    "How the output is named: auto is the inputs' common format, else the subject's.",
    choices=("auto", "same", "kohya", "diffusers", "peft"), whole=True,
)  # fmt: skip
DTYPE = Parameter(
    "dtype", "choice", "same",
    "Number type of the output: same keeps each module's own (the wider of the two where they differ).",
    choices=("same", "fp32", "fp16", "bf16"), whole=True,
)  # fmt: skip
DEVICE = Parameter(
    "device",
    "choice",
    "cpu",
    "Where to compute; anything but cpu needs the torch extra.",
    choices=("cpu", "cuda", "mps"),
    whole=True,
)
BASE = Parameter(
    "base", "path", None,
    "The base model (a checkpoint or a diffusers folder), for kinds whose update depends on it: DoRA, OFT, BOFT, IA3, "
    "GLoRA. Only the weights that are needed are read.", whole=True,
)  # fmt: skip
DORA = Parameter(
    "dora", "choice", "exact",
    "What becomes of DoRA's magnitudes: exact keeps them and needs --base; ignore uses the direction alone.",
    choices=("exact", "ignore"), whole=True,
)  # fmt: skip
STRICT = Parameter("strict", "flag", False, "Make every key that would be left out an error.", whole=True)
ALLOW_NONFINITE = Parameter(
    "allow_nonfinite", "flag", False, "Go on although an input holds NaN or infinity.", whole=True
)

# Of the merges in `methods/`, several of which share a parameter.
DENSITY = Parameter("density", "number", 0.2, "Share of the entries that is kept.", low=0.0, high=1.0)
SCALING = Parameter("scaling", "number", 1.0, "Factor on the merged update, the papers' lambda.")
ELECTION = Parameter(
    "election", "choice", "total",
    "Which sign an entry gets: that of the sum (total), or the one that more adapters have (frequency).",
    choices=("total", "frequency"),
)  # fmt: skip
AGREEING = Parameter(
    "agreeing", "choice", "mean", "What becomes of the entries that have the elected sign.", choices=("mean", "sum")
)
VARIANT = Parameter(
    "variant", "choice", "linear", "Add what is kept (linear), or elect signs first (ties).", choices=("linear", "ties")
)
SPACE = Parameter(
    "space", "choice", "weights",
    "Work on the entries of the updates (the paper's method) or on those of their small shared cores (faster).",
    choices=("weights", "core"),
)  # fmt: skip
RANK = Parameter(
    "rank", "count", None,
    "Rank of the result in each module; by default as large as all the adapters' ranks together.", low=1,
)  # fmt: skip

ENERGY = Parameter(
    "energy", "number", None,
    "Compress each module to as few ranks as hold this share of its energy (its squared norm).", low=0.0, high=1.0,
)  # fmt: skip
ERROR = Parameter(
    "error", "number", None,
    "Compress each module to as few ranks as keep its relative Frobenius error within this.", low=0.0, high=1.0,
)  # fmt: skip
KEEP_STYLE = Parameter(
    "keep_style", "flag", False,
    "Compress only what lies outside the style's input directions, whose response stays as it is.",
)  # fmt: skip

# What `fuse` understands whatever the method, in the order in which help and reports show it.
COMMON = (
    SUBJECT_STRENGTH, STYLE_STRENGTH, STRENGTHS, OVERRIDES, COMPONENTS, BASE, DORA, RANK, ENERGY, ERROR, KEEP_STYLE,
    FORMAT, DTYPE, DEVICE, STRICT, ALLOW_NONFINITE,
)  # fmt: skip
PAIR_ONLY = (SUBJECT_STRENGTH, STYLE_STRENGTH)  # names of two adapters; of more, each has a letter
WRITING = (FORMAT, DTYPE, DEVICE, STRICT, ALLOW_NONFINITE)  # these change no number
# What it understands with the method np.
FUSE = (MU, DIRECTIONS, SIDE, PROTECT, CALIBRATE, *COMMON)


def check_all(parameters: tuple[Parameter, ...], values: Mapping[str, Value]) -> dict[str, Value]:
    """Every parameter's value: checked where given, its default elsewhere.

    Raises:
        UsageError: an unknown name (with the nearest known one) or a value out of range.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name in values:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(known)}."
            raise UsageError(f"unknown parameter {name!r}", hint=hint)
    return {
        name: parameter.check(values[name]) if values.get(name) is not None else parameter.default
        for name, parameter in known.items()
    }
