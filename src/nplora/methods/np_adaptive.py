"""NP-LoRA with its own mu in each module: as much protection as a budget of leakage asks for, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

from ..algebra import transpose
from ..algebra.bases import energy, orthonormal_rows, stacked
from ..parameters import Parameter, attenuation
from . import Part, Product, merge, weighted

KAPPA = Parameter(
    "kappa", "number", 0.5,
    "Leakage budget: what remains of an adapter in the protected directions is at most kappa times what they carry.",
    low=0.0,
)  # fmt: skip
ETA = Parameter(
    "eta", "number", 0.0, "Content floor: at least this share of an adapter's energy stays, whatever the budget says.",
    low=0.0, high=1.0,
)  # fmt: skip
CHANCE = Parameter(
    "chance", "flag", False, "Scale mu by the overlap beyond chance, so that unrelated adapters are left alone."
)


@merge(
    "np-adaptive",
    title="Null-space projection with mu per module",
    reference="arXiv 2511.11051 with a closed-form mu",
    formula="1 + mu = max(1, ||dW_c V|| / (kappa ||dW_s||)), at most what leaves eta ||dW_c||^2; then as np",
    guarantee="||X V|| <= kappa ||dW_s|| in every module where eta and chance allow; kappa = inf is the exact sum",
    parameters=(KAPPA, ETA, CHANCE),
)
def np_adaptive(
    parts: Sequence[Part], *, seed: int = 0, kappa: float = 0.5, eta: float = 0.0, chance: bool = False
) -> Product:
    """Each adapter is projected away from the row spaces of all later ones, with a mu of its own in each module.

    Args:
        parts: the last is the most protected and passes as it is.
        seed: of no use here.
        kappa, eta, chance: see `mu_of`.

    >>> import numpy as np
    >>> subject, style = Part(np.eye(2), 4 * np.eye(2)), Part(np.eye(2)[:, :1], np.eye(2)[:1])
    >>> found = np_adaptive([subject, style], kappa=2.0)
    >>> found.up @ found.down
    array([[3., 0.],
           [0., 4.]])
    """
    factors = weighted(parts)
    done, facts, over = [], {}, False
    for index, (up, down) in enumerate(factors):
        later = [pair for pair in factors[index + 1 :] if energy(*pair) > 0]
        if later and energy(up, down) > 0:
            V = transpose(orthonormal_rows(later))
            AV = down @ V
            style = sum(energy(*pair) for pair in later)
            found = Overlap(energy(up, AV), energy(up, down), style, V.shape[1], V.shape[0])
            mu = mu_of(found, kappa, eta, chance)
            down = down - attenuation(mu) * AV @ transpose(V)  # noqa: PLW2901
            facts["mu" if len(factors) == 2 else f"mu {index + 1}"] = mu
            over = over or mu < mu_of(found, kappa, 0.0, chance)
        done.append((up, down))
    return Product(*stacked(done), facts=facts, note="eta keeps more than kappa allows" if over else "")


@dataclass(frozen=True)
class Overlap:
    """What mu depends on: energies of the content inside V, of all of it and of the style; V has k of n directions."""

    inside: float
    content: float
    style: float
    k: int
    n: int

    @property
    def rho(self) -> float:
        return min(self.inside / self.content, 1.0)


def mu_of(found: Overlap, kappa: float, eta: float, chance: bool) -> float:
    """The mu of one module in closed form.

    The budget asks for ``1 + mu >= ||dW_c V|| / (kappa ||dW_s||)``; `chance` multiplies mu by
    ``(rho - k/n) / (1 - k/n)``; the floor ``||X||^2 >= eta ||dW_c||^2`` allows ``(1 + mu)^-2 >= (eta - 1 + rho) / rho``
    and wins where both cannot be had.

    >>> mu_of(Overlap(inside=4.0, content=4.0, style=1.0, k=1, n=8), kappa=1.0, eta=0.0, chance=False)
    1.0
    """
    leaking = sqrt(found.inside / found.style)
    mu = max(0.0, leaking / kappa - 1) if kappa > 0 else inf if leaking > 0 else 0.0
    if chance:
        by_chance = found.k / found.n
        excess = (found.rho - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0
        mu = mu * excess if excess > 0 else 0.0
    needed = eta - 1 + found.rho
    if needed > 0:
        mu = min(mu, sqrt(found.rho / needed) - 1)
    return mu
