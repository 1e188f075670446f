"""KnOTS: updates aligned by one SVD of all of them side by side, then merged (Stoica et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra import Array, namespace, numerical_rank, transpose
from ..algebra.bases import Factors, basis, fixed_signs, stacked, truncated, without_rounding
from ..algebra.blocks import keep, of_matrix
from ..algebra.entries import added, elected, largest
from ..parameters import AGREEING, DENSITY, ELECTION, RANK, SCALING, Parameter
from . import Part, Product, merge, weighted

INNER = Parameter(
    "inner", "choice", "ties", "How the aligned updates are merged; dare elects signs, as in the paper (DARE-TIES).",
    choices=("ties", "dare", "linear"),
)  # fmt: skip


@merge(
    "knots",
    title="KnOTS",
    reference="arXiv 2410.19735, Section 4",
    formula="[w_1 dW_1 .. w_K dW_K] = U S [V_1^T .. V_K^T]; D = scaling * U inner(S V_1^T, .., S V_K^T)",
    guarantee="exact from the factors: nothing of the weights' size is formed; linear is the exact sum",
    parameters=(INNER, replace(DENSITY, default=0.2), ELECTION, AGREEING, SCALING, RANK),
)
def knots(
    parts: Sequence[Part],
    *,
    seed: int = 0,
    inner: str = "ties",
    density: float = 0.2,
    election: str = "total",
    agreeing: str = "mean",
    scaling: float = 1.0,
    rank: int | None = None,
) -> Product:
    """Merge the ``S V_i^T`` (R, n) of the updates' common SVD, entry by entry, and put U back.

    The singular values stand on the right, as in the authors' code: what is trimmed is what adds least to the update.
    """
    left, aligned = align(weighted(parts))
    sources = [of_matrix(matrix) for matrix in aligned]
    if inner == "ties":
        merged = elected([largest(source, density) for source in sources], election, agreeing)
    elif inner == "dare":
        kept = [keep(source, density, (seed, index)) for index, source in enumerate(sources)]
        merged = elected(kept, election, agreeing)
    else:
        merged = added(sources)
    up, down = left, scaling * merged.whole()
    return Product(up, down) if rank is None else Product(*truncated(up, down, rank))


def align(factors: Sequence[Factors]) -> tuple[Array, list[Array]]:
    """``U`` (out, R) and each ``S V_i^T`` (R, n) of ``[dW_1 .. dW_K] = U S [V_1^T .. V_K^T]``, from factors.

    With ``[B_1 .. B_K] = Q_b R_b`` and ``A_i^T = Q_i R_i`` it is the SVD of ``R_b blkdiag(R_1^T .. R_K^T)``.
    """
    left = basis(stacked(factors)[0])
    rights = [basis(transpose(down)) for _, down in factors]
    xp, blocks, start = namespace(left.R), [], 0
    for (up, _), right in zip(factors, rights, strict=True):
        blocks.append(left.R[:, start : start + up.shape[1]] @ transpose(right.R))
        start += up.shape[1]
    u, s, vt = xp.linalg.svd(xp.concat(blocks, axis=1), full_matrices=False)
    k = max(1, numerical_rank(s, (factors[0][0].shape[0], sum(down.shape[1] for _, down in factors))))
    u, vt = fixed_signs(u[:, :k], vt[:k, :])
    aligned, start = [], 0
    for right in rights:
        coordinates = without_rounding(s[:k, None] * vt[:, start : start + right.R.shape[0]], s[0])
        aligned.append(transpose(right.lift(transpose(coordinates))))
        start += right.R.shape[0]
    return left.lift(u), aligned
