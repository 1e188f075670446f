"""Run merges on small cores: modules of equal shapes together, in bases that their updates share.

With ``[B_1 .. B_K] = Q_b R_b`` and ``[A_1; ..; A_K]^T = Q_a R_a`` update i is ``Q_b M_i Q_a^T`` with a small core
``M_i = (R_b)_i (R_a)_i^T``, (R, R) for R = sum r_i. A merge that knows nothing of single entries (`Merge.cores`) runs
on the cores. What it makes of them is lifted when it is written: ``up = Q_b u = sum_i B_i (R_b^-1 u)_i``. So the long
factors are read twice, once for their Gram matrices and once for the output, and nothing waits in a spool.

R_b and R_a come from Gram matrices in float64. A batch is left to the way of a single module (QR where needed) unless
every Gram matrix in it is certified, and with them every update and their sum to have full numerical rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..adapters import Combined, LowRank, Matrix
from ..algebra import Grams
from ..algebra.bases import Root, balancing, gram_root
from ..methods import Merge, Part, Product, find_method
from ..storage import cast_into, wider
from .fused import OBSERVED, FusedModule, Measure
from .jobs import Job, Overlap
from .measures import gram
from .projection import energies

Array = NDArray[np.float64]

# Orthonormal to 1e7 * 2^-53 = 1e-9, far below the rounding of a float32; files in float64 go module by module.
MAX_CORE_CONDITION = 1e7
MAX_GROWTH = 128.0  # of the summands over their sum, up to which float32 is enough for numbers of 16 bits
# The largest singular value over the least one, of each update and of the sum: a rank is lost above about 1e12.
MAX_SPREAD = 1e9


@dataclass(frozen=True, slots=True)
class Core:
    """A module that was merged on its core: what is written (None: its one member passes), and what was learned."""

    factors: tuple[Matrix, Matrix] | None
    measure: Measure
    overlap: Overlap | None


def batches_of_modules(modules: Sequence[FusedModule], elements: int) -> Iterator[list[FusedModule]]:
    """Modules that may be merged together, so many that the longest factors together have so many numbers."""
    groups: dict[object, list[FusedModule]] = {}
    for module in modules:
        groups.setdefault(_likeness(module), []).append(module)
    for group in groups.values():
        longest = max(sum(matrix.shape[0] * matrix.shape[1] for matrix in side) for side in _factors(group[0]))
        size = max(1, elements // max(longest, 1))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _likeness(module: FusedModule) -> object:
    """Equal for modules that may be merged together."""
    if not _may_run_on_cores(module):
        return module.name
    updates = [(member.role, member.strength, member.update) for member in module.members]
    settings = tuple(f"{name}={value!r}" for name, value in module.values.items())
    return settings, tuple((role, strength, u.scale, u.up.shape, u.down.shape) for role, strength, u in updates)  # type: ignore[union-attr]


def _may_run_on_cores(module: FusedModule) -> bool:
    """Whether the method is for cores, they are small, and no number has 64 bits."""
    assert isinstance(module.method, Merge)
    ups, downs = _factors(module)
    rank = sum(up.shape[1] for up in ups)
    small = 0 < 2 * rank <= min(ups[0].shape[0], downs[0].shape[1])
    return module.method.cores and small and wider(matrix.dtype for matrix in (*ups, *downs)) != "F64"


def _factors(module: FusedModule) -> tuple[list[Matrix], list[Matrix]]:
    updates = [member.update for member in module.members]
    return [u.up for u in updates if isinstance(u, LowRank)], [u.down for u in updates if isinstance(u, LowRank)]


def merge_cores(modules: Sequence[FusedModule]) -> list[Core] | None:
    """Merge modules that are alike on their cores; None where that would not be exact, or not possible."""
    first = modules[0]
    if not _may_run_on_cores(first):
        return None
    ups, downs = zip(*map(_factors, modules), strict=True)
    with np.errstate(all="ignore"):  # what is not finite is not certified
        G_b, G_a = _grams(ups, of_columns=True), _grams(downs, of_columns=False)
        left, right = gram_root(G_b), gram_root(G_a)
        if not _certified(left, right):
            return None
    edges = np.cumsum([0, *(up.shape[1] for up in ups[0])])
    spans = [slice(start, stop) for start, stop in pairwise(edges)]
    parts = [
        Part(own.scale * left.R[..., span], np.swapaxes(right.R[..., span], -1, -2), member.strength, own.scale)
        for member, span in zip(first.members, spans, strict=True)
        if isinstance(own := member.update, LowRank)
    ]
    product = _merged(modules, parts)
    if product is None:
        return None
    measures = gram(parts, product.up, product.down)
    passes = len(parts) == 1 and _is_part(product, parts[0])
    factor, live = balancing(np.linalg.norm(product.up, axis=-2), np.linalg.norm(product.down, axis=-1))
    u, gentle_up = _coordinates(left, product.up * factor[..., None, :])
    v, gentle_down = _coordinates(right, np.swapaxes(product.down / factor[..., None], -1, -2))
    overlaps = _overlaps(modules, spans, G_b, G_a)
    errors = np.broadcast_to(product.error, len(modules))
    found = []
    for index, module in enumerate(modules):
        kept = live[index]
        gentle = bool(gentle_up[index]), bool(gentle_down[index])
        factors = None if passes else _lifted(module, spans, u[index][:, kept], v[index][:, kept], gentle)
        rank = parts[0].down.shape[-2] if factors is None else factors[1].shape[0]
        roles = tuple(member.role for member in module.members)
        measure = Measure(module.name, rank, float(errors[index]), roles, measures[index])
        found.append(Core(factors, measure, overlaps[index]))
    return found


def _grams(stacks: Sequence[Sequence[Matrix]], *, of_columns: bool) -> Array:
    """Gram matrices (k, R, R) of the columns of each ``[B_1 .. B_K]``, or of the rows of each ``[A_1; ..; A_K]``."""
    edges = np.cumsum([0, *(factor.shape[1 if of_columns else 0] for factor in stacks[0])])
    G = np.empty((len(stacks), edges[-1], edges[-1]))
    copies = [np.empty(factor.shape) for factor in stacks[0]]
    rows = [copy.T if of_columns else copy for copy in copies]
    for index, factors in enumerate(stacks):  # one by one: the float64 copies stay in the cache
        for factor, copy in zip(factors, copies, strict=True):
            cast_into(factor.read(), copy)
        for i, one in enumerate(rows):
            for j, other in enumerate(rows[: i + 1]):
                G[index, edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = block = one @ other.T
                G[index, edges[j] : edges[j + 1], edges[i] : edges[i + 1]] = block.T
    return G


def _certified(left: Root, right: Root) -> bool:
    """Whether all bases are orthonormal enough, and all updates and sums have full numerical rank.

    With D scaling the rows of A to length 1, no singular value of ``B_i A_i``, nor of the sum, is below
    ``s_min(R_b D^-1) s_min(D R_a^T)``, and none is above the product of the norms.
    """
    if not (np.all(left.condition < MAX_CORE_CONDITION) and np.all(right.condition < MAX_CORE_CONDITION)):
        return False
    lengths = np.linalg.norm(right.R, axis=-2)[..., None, :]
    spread = 1.0
    for matrix in (
        left.R * lengths, left.inverse / np.swapaxes(lengths, -1, -2),
        right.R / lengths, right.inverse * np.swapaxes(lengths, -1, -2),
    ):  # fmt: skip
        spread = spread * np.linalg.norm(matrix, axis=(-2, -1))
    return bool(np.all(spread < MAX_SPREAD))


def _coordinates(root: Root, Q_u: Array) -> tuple[Array, Array]:
    """``F R^-1 u`` as coordinates ``R^-1 u`` in F, and where their summands are not much longer than their sum (k,)."""
    c = root.inverse @ Q_u
    lengths = np.linalg.norm(root.R, axis=-2)[..., None]
    summands, total = np.linalg.norm(lengths * c, axis=-2), np.linalg.norm(Q_u, axis=-2)
    return c, np.all(summands <= MAX_GROWTH * total, axis=-1)


def _merged(modules: Sequence[FusedModule], parts: Sequence[Part]) -> Product | None:
    """What the method makes of the cores: of all at once if it can; None where results differ in rank, or say more."""
    method = modules[0].method
    assert isinstance(method, Merge)
    if method.batches:
        return modules[0].product_of(parts)
    products = []
    for index, module in enumerate(modules):
        own = [Part(part.up[index], part.down[index], part.weight, part.scale) for part in parts]
        products.append(module.product_of(own))
    if len({product.up.shape for product in products}) > 1 or any(
        product.facts or product.note for product in products
    ):
        return None
    ups, downs, errors = zip(*((product.up, product.down, product.error) for product in products), strict=True)
    return Product(np.stack(ups), np.stack(downs), np.stack(errors))


def _is_part(product: Product, part: Part) -> bool:
    """Whether a merge gave one adapter back as it is, so that its bytes can be copied."""
    return np.array_equal(product.down, part.down) and np.array_equal(product.up, part.weight * part.up)


def _lifted(
    module: FusedModule, spans: Sequence[slice], u: Array, v: Array, gentle: tuple[bool, bool]
) -> tuple[Matrix, Matrix]:
    """The result by its coordinates u, v (R, k) in the stacked factors, as matrices that are computed when read."""
    ups, downs = _factors(module)
    if not u.shape[1]:  # a file holds no factor of rank 0
        u, v = np.zeros((u.shape[0], 1)), np.zeros((v.shape[0], 1))
    return (
        Combined(tuple(ups), tuple(u[span] for span in spans), module.name, False, gentle[0]),
        Combined(tuple(downs), tuple(v[span].T for span in spans), module.name, True, gentle[1]),
    )


def _overlaps(modules: Sequence[FusedModule], spans: Sequence[slice], G_b: Array, G_a: Array) -> list[Overlap | None]:
    """What the Gram matrices say about how a pair overlaps; None where that is measured elsewhere."""
    jobs = [job for module in modules if (job := _own_job(module)) is not None]
    if len(jobs) < len(modules):
        return [None] * len(modules)
    c, s = spans
    seen = Grams(G_a[:, c, s], G_a[:, s, s], G_b[:, s, s], G_a[:, c, c], G_b[:, c, c], np.ones(len(jobs), bool))
    return list(energies((seen, find_method("np")(seen, **OBSERVED)), jobs))  # type: ignore[arg-type]


def _own_job(module: FusedModule) -> Job | None:
    """The pair's projection, if it is between just the factors of its two members."""
    job = module.job
    if job is None or len(module.members) != 2 or job.side != "input":
        return None
    ups, downs = _factors(module)
    same = zip((*job.subject, *job.style), (ups[0], downs[0], ups[1], downs[1]), strict=True)
    return job if all(one is other for one, other in same) else None
