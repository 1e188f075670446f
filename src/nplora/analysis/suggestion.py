"""Where to start with a pair: method, mu and strengths, each with its reason. Eyes decide, not this."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from ..fusion.overlap import Summary, kept_strength

BALANCE = 1.5  # how many times as strong one side may be before it is lowered
FLOOR = 0.85  # a sum that grew is lowered no further than this


@dataclass(frozen=True)
class Suggestion:
    """Parameters of `fuse` to begin with, and why."""

    method: str
    mu: float
    subject_strength: float
    style_strength: float
    reason: str

    def as_data(self) -> dict[str, Any]:
        """The suggestion with the options that say it on the command line."""
        options = [f"--method {self.method}", f"--mu {self.mu:g}"]
        options += [
            f"--{role}-strength {value:g}"
            for role, value in (("subject", self.subject_strength), ("style", self.style_strength))
            if value != 1.0
        ]
        return {**asdict(self), "options": " ".join(options)}


def suggest(summary: Summary, together: float) -> Suggestion:
    """A start for this pair.

    Args:
        summary: the overlap of the pair, with both energies over the common modules.
        together: the energy of their plain sum, there.

    >>> suggest(Summary(0.004, 0.004, 1.0, 1.0, 128), 2.0).as_data()["options"]
    '--method np --mu 0.5 --subject-strength 0.85 --style-strength 0.85'
    """
    subject, style = sqrt(max(summary.subject, 0.0)), sqrt(max(summary.style, 0.0))
    if summary.regime == "none":
        return Suggestion("np", 0.0, 1.0, 1.0, "nothing meets: both pass through, set the strengths by eye.")
    if summary.regime == "shared":
        mu = min(max(round(subject / style - 1.0, 2), 0.0), 1.0)
        if mu:
            why = (
                f"mu is a plain subject strength here, and {kept_strength(mu):.2f} brings the subject, "
                f"{subject / style:.1f} times as strong, towards the style."
            )
        else:
            why = "mu is a plain subject strength here, and the subject is not the stronger one: nothing is taken away."
        return Suggestion("np", mu, 1.0, 1.0, why)
    reasons = []
    subject_strength = style_strength = 1.0
    if subject > BALANCE * style:
        subject_strength = BALANCE * style / subject
        reasons.append(f"the subject is {subject / style:.1f} times as strong and would drown the style")
    elif style > BALANCE * subject:
        style_strength = BALANCE * subject / style
        reasons.append(f"the style is {style / subject:.1f} times as strong and would drown the subject")
    strongest = max(subject * subject_strength, style * style_strength)
    inner = (together - summary.subject - summary.style) / 2
    size = sqrt(
        max(
            (subject_strength * subject) ** 2
            + (style_strength * style) ** 2
            + 2 * subject_strength * style_strength * inner,
            0.0,
        )
    )
    factor = max(min(strongest / size, 1.0), FLOOR) if size > 0 else 1.0
    if factor < 0.995:
        subject_strength, style_strength = subject_strength * factor, style_strength * factor
        reasons.append(
            f"together they are {size / strongest:.2f} times as large as the stronger alone, which can burn pictures"
        )
    mattering = "mu acts in some modules" if summary.regime == "mixed" else "mu hardly matters"
    why = f"{mattering}; {'; '.join(reasons) or 'the two are balanced'}."
    return Suggestion("np", 0.5, round(subject_strength, 2), round(style_strength, 2), why)
