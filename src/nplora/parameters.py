"""Parameters as data: name, range, default and one sentence, declared once.

The CLI option, the Python check, the recipe check, a slider or a node socket are all made from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import UsageError
from .ranges import Parameter as Parameter  # noqa: PLC0414 - methods find it beside those that they share
from .ranges import Value


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
