"""What the overlap of a pair means, in numbers and in a sentence.

rho is the share of the subject's energy that lies in the style's row space. Adapters trained from one seed share
their down factors: then rho is near 1 and the projection only lowers the subject's strength to 1/(1+mu). From
different seeds rho is near chance, k/n, and the projection is nearly plain addition.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..parameters import attenuation
from .jobs import Overlap

SHARED = 0.9  # public pairs lie above .98 or below .01; nothing was seen between
NEAR_CHANCE = 3.0  # rho up to this multiple of chance (or below SMALL) counts as unrelated
SMALL = 0.02


@dataclass(frozen=True)
class Summary:
    """The overlap of a whole pair: energies summed over modules, never averaged."""

    rho: float
    chance: float
    subject: float  # energies
    style: float
    modules: int

    @property
    def regime(self) -> str:
        """One of "shared", "unrelated", "mixed", or "none" where nothing meets."""
        if not self.modules or self.subject <= 0 or self.style <= 0:
            return "none"
        if self.rho >= SHARED:
            return "shared"
        return "unrelated" if self.rho <= max(NEAR_CHANCE * self.chance, SMALL) else "mixed"


def summarise(overlaps: Iterable[Overlap]) -> Summary:
    """The file-level overlap: numerators and denominators are summed over modules, but for those that hold NaN."""
    found = finite(overlaps)
    subject = sum(overlap.subject for overlap in found)
    inside = sum(min(max(overlap.inside, 0.0), overlap.subject) for overlap in found)
    chance = sum(overlap.chance * overlap.subject for overlap in found)
    style = sum(overlap.style for overlap in found)
    share = subject if subject > 0 else 1.0
    return Summary(inside / share, chance / share, subject, style, len(found))


def finite(overlaps: Iterable[Overlap]) -> list[Overlap]:
    """Those of modules that hold no NaN."""
    return [overlap for overlap in overlaps if math.isfinite(overlap.subject) and math.isfinite(overlap.style)]


def kept_strength(mu: float) -> float:
    """What mu is worth as a plain subject strength where the row spaces are equal: ``1/(1+mu)``."""
    return 1.0 - attenuation(mu)


def matched_strength(rho: float, mu: float) -> float:
    """The strength at which plain addition keeps as much of the subject's norm: ``sqrt(1 - rho + rho/(1+mu)^2)``.

    >>> matched_strength(1.0, 1.0), matched_strength(0.0, 1.0)
    (0.5, 1.0)
    """
    return math.sqrt(max(1.0 - rho + rho * kept_strength(mu) ** 2, 0.0))


def change(rho: float, mu: float) -> float:
    """How far the projection moves the subject: ``||X - dW_c|| / ||dW_c|| = g sqrt(rho)``."""
    return attenuation(mu) * math.sqrt(rho)


def mu_at(overlap: Overlap, mu: float) -> float:
    """The mu of one module: its own, or that of the fusion."""
    return float(dict(overlap.values).get("mu", mu))  # type: ignore[arg-type]


def total_change(overlaps: Sequence[Overlap], mu: float) -> float:
    """`change` of a whole file whose modules may have a mu of their own."""
    found = finite(overlaps)
    whole = sum(overlap.subject for overlap in found)
    moved = sum(attenuation(mu_at(overlap, mu)) ** 2 * overlap.rho * overlap.subject for overlap in found)
    return math.sqrt(moved / whole) if whole > 0 else 0.0


def total_kept(overlaps: Sequence[Overlap], mu: float, calibrate: float | None = None) -> float:
    """What is left of a file's norm where modules may have a mu and (unless it is None) a calibration of their own.

    >>> apart = [Overlap("a", 1.0, 1.0, 1.0, 1, 8), Overlap("b", 1.0, 1.0, 1.0, 1, 8, values=(("mu", 0.0),))]
    >>> round(total_kept(apart, mu=math.inf) ** 2, 6)
    0.5
    """
    whole = left = 0.0
    for overlap in finite(overlaps):
        kept = matched_strength(overlap.rho, mu_at(overlap, mu))
        limit = 1.0 if calibrate is None else float(dict(overlap.values).get("calibrate", calibrate))  # type: ignore[arg-type]
        whole += overlap.subject
        left += overlap.subject * (min(1.0, kept * limit) if kept else 0.0) ** 2
    return math.sqrt(left / whole) if whole > 0 else 1.0


def overlap_sentence(summary: Summary, overlaps: Sequence[Overlap] = (), role: str = "subject") -> str:
    """The overlap of one adapter with what it meets, in a sentence that holds whatever the method."""
    who, whose = (f"the {role}", "the style's" if role == "subject" else "the subject's")
    if role not in ("subject", "style"):
        who, whose = role, "the protected"
    found = f"{percent(summary.rho)} overlap, chance is {percent(summary.chance)}"
    if summary.regime == "none":
        return "The two adapters have no module in common." if not summary.modules else "One of the two is zero."
    if summary.regime == "shared":
        return f"Shared initialisation ({percent(summary.rho)} overlap): {who} lies in {whose} directions."
    if summary.regime == "unrelated":
        return f"Unrelated runs ({found}): {who} has next to nothing in {whose} directions."
    names = ", ".join(overlap.name for overlap in leading(overlaps))
    return f"Mixed ({found}): {who} lies in part in {whose} directions" + (f", most in {names}." if names else ".")


def sentence(
    summary: Summary,
    mu: float,
    overlaps: Sequence[Overlap] = (),
    role: str = "subject",
    calibrate: float = 1.0,
    shown: str = "",
) -> str:
    """What NP-LoRA did to one adapter, in a sentence that a person can act on.

    Args:
        summary: of the adapter's overlaps. mu: the protection. overlaps: module by module.
        role: the adapter. calibrate: how far what is left of it was scaled up.
        shown: mu in words, where parts of the model have another one.
    """
    pair = role in ("subject", "style")
    who = f"the {role}" if pair else role
    shown = shown or f"{mu:g}"
    if any(overlap.values for overlap in overlaps):
        return _in_parts(summary, mu, overlaps, who, calibrate, shown)
    if summary.regime == "none":
        if not summary.modules:
            return "The two adapters have no module in common: nothing is projected, the result is plain addition."
        other = ("the style" if role == "subject" else "the subject") if pair else "what it would give way to"
        if summary.subject <= 0 and summary.style <= 0:
            return "Both are zero in every common module: nothing is projected."
        zero = who if summary.subject <= 0 else other
        return f"{zero[0].upper()}{zero[1:]} is zero in every common module: nothing is projected."
    if summary.regime == "shared":
        if not math.isinf(mu) and calibrate > 1 and min(1.0, kept_strength(mu) * calibrate) == 1.0:
            return (
                f"Shared initialisation ({percent(summary.rho)} overlap): calibration gives back what mu = {shown} "
                f"takes from {who}; the result is plain addition."
            )
        if math.isinf(mu):
            strength = f"{role} strength" if pair else "strength"
            return (
                f"Shared initialisation ({percent(summary.rho)} overlap): mu = inf deletes {who} in the common "
                f"modules; use a finite mu, or addition with a lower {strength}."
            )
        kept = f"{min(1.0, kept_strength(mu) * calibrate):.2f}"
        strength = f"{role} strength {kept}" if pair else f"strength {kept} of {role}"
        return (
            f"Shared initialisation ({percent(summary.rho)} overlap): mu = {shown} acts as {strength}; plain addition "
            "at that strength gives the same."
        )
    found = f"{percent(summary.rho)} overlap, chance is {percent(summary.chance)}"
    if summary.regime == "unrelated":
        return (
            f"Unrelated runs ({found}): mu = {shown} changes {who} by {percent(change(summary.rho, mu))}; the "
            "result is nearly plain addition."
        )
    norm = percent(min(1.0, matched_strength(summary.rho, mu) * calibrate))
    text = f"Mixed ({found}): mu = {shown} keeps {norm} of {who}'s norm"
    most = leading(overlaps)
    return f"{text}; it acts most in {_names(most)}." if most else text + "."


def _in_parts(summary: Summary, mu: float, overlaps: Sequence[Overlap], who: str, calibrate: float, shown: str) -> str:
    """The sentence where modules have parameters of their own; its numbers are summed over modules."""
    found, kept = f"{percent(summary.rho)} overlap", percent(total_kept(overlaps, mu, calibrate))
    if summary.regime == "none":
        return "One of the two is zero in every common module: nothing is projected."
    if summary.regime == "shared":
        return (
            f"Shared initialisation ({found}): mu = {shown} is a strength of its own in each part, and keeps {kept} of "
            f"{who}'s norm; strengths for parts of the model (--strength) give the same by plain addition."
        )
    found += f", chance is {percent(summary.chance)}"
    if summary.regime == "unrelated":
        return (
            f"Unrelated runs ({found}): mu = {shown} changes {who} by {percent(total_change(overlaps, mu))}; the "
            "result is nearly plain addition."
        )
    text = f"Mixed ({found}): mu = {shown} keeps {kept} of {who}'s norm"
    acting = sorted(finite(overlaps), key=lambda overlap: -_taken(overlap, mu))
    most = [overlap for overlap in acting[:3] if _taken(overlap, mu) > 0]
    return f"{text}; it acts most in {_names(most)}." if most else f"{text}."


def _names(overlaps: Iterable[Overlap]) -> str:
    """Module names in a sentence, without the component where nobody knows it: words for --strength all the same."""
    return ", ".join(overlap.name.removeprefix("unknown.") for overlap in overlaps)


def _taken(overlap: Overlap, mu: float) -> float:
    """The energy that a module loses."""
    return (1.0 - kept_strength(mu_at(overlap, mu)) ** 2) * overlap.inside


def advice(summary: Summary) -> str:
    """What to do with mu, given the regime."""
    if summary.regime == "shared":
        return "mu is only a subject strength here: choose it by eye between 0 and 1, and keep away from inf."
    if summary.regime == "unrelated":
        return "mu hardly matters here: set the balance with --subject-strength and --style-strength."
    if summary.regime == "mixed":
        return "mu acts in some modules only (nplora compare --modules lists them); 0.5 is a sensible start."
    return "There is nothing to project: use the strengths."


def advice_of_many(regimes: Collection[str]) -> str:
    """What to do with mu where several adapters give way, given the regime of each."""
    met = set(regimes) - {"none"}
    if met == {"shared"}:
        return "mu is only a strength here: keep away from inf, or set the balance with --strength a=0.8."
    if met == {"unrelated"}:
        return "mu hardly matters here: set the balance with --strength, such as --strength a=0.8."
    if met:
        return "mu acts on some of them only: set the balance with --strength, such as --strength a=0.8."
    return "There is nothing to project: use the strengths."


def leading(overlaps: Sequence[Overlap], count: int = 3) -> list[Overlap]:
    """The modules in which most of the subject's energy lies inside the style's directions."""
    ranked = sorted(overlaps, key=lambda overlap: -overlap.inside)
    return [overlap for overlap in ranked[:count] if overlap.inside > 0]


def percent(share: float) -> str:
    """A share as a percentage with the digits that matter.

    >>> percent(0.5), percent(0.0213), percent(0.00041)
    ('50 %', '2.1 %', '0.041 %')
    """
    number = 100 * share
    return f"{number:.0f} %" if number >= 10 else f"{number:.2g} %"
