"""Orthonormal bases of factors, and what is done on the small cores between them.

A sum of updates ``[B_1 .. B_K] [A_1; ..; A_K]`` has rank R = sum r_k. With ``B = Q_b R_b`` and ``A^T = Q_a R_a`` every
question about it is one about R x R matrices. Functions take arrays of any array API library; those that say so take
leading axes as a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .factors import Array, namespace, numerical_rank, transpose

Factors = tuple[Array, Array]  # up (out, r) and down (r, n) of an update up @ down
MAX_CONDITION = 1e5  # of a Gram matrix (columns scaled to length 1) that replaces a QR: orthonormal to 1e5 * 2^-53


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis Q (..., m, k) of the columns of F (..., m, R): ``F = Q R`` with ``R`` (..., k, R).

    Q is ``columns @ inverse``, or ``columns`` itself where ``inverse`` is None: forming it would cost a long product.
    Without columns Q is ``inverse`` or the identity.
    """

    columns: Array | None
    R: Array
    inverse: Array | None = None

    def lift(self, X: Array) -> Array:
        """``Q @ X`` (..., m, .) for small coordinates X (..., k, .)."""
        small = X if self.inverse is None else self.inverse @ X
        return small if self.columns is None else self.columns @ small


def basis(F: Array) -> Basis:
    """An orthonormal basis of the columns of F (..., m, R).

    By a square root of ``F^T F`` where that is well conditioned (many times faster than a QR), by QR elsewhere. Where F
    is no longer than wide, any basis does: the unit vectors.
    """
    xp = namespace(F)
    if 0 < F.shape[-2] <= F.shape[-1]:
        return Basis(None, F)
    if F.shape[-1] > 0:
        root = gram_root(transpose(F) @ F)
        if bool(xp.all(root.condition < MAX_CONDITION)):
            return Basis(F, root.R, root.inverse)
    Q, R = xp.linalg.qr(F)
    return Basis(Q, R)


@dataclass(frozen=True)
class Root:
    """``G = R^T R`` with R (..., k, k), its inverse, and the condition (...,) of G with its diagonal scaled to 1.

    The condition is infinite, and the rest of no use, where G is not the Gram matrix of independent finite columns.
    """

    R: Array
    inverse: Array
    condition: Array


def gram_root(G: Array) -> Root:
    """A square root of Gram matrices G (..., k, k): for ``G = F^T F`` the columns of ``F R^-1`` are orthonormal.

    They are so to about ``condition * 2^-53``. By Cholesky, or by eigenvalues where one of a batch does not allow it.
    """
    xp = namespace(G)
    norms = xp.sqrt(xp.abs(xp.linalg.diagonal(G)))
    good = xp.all((norms > 0) & xp.isfinite(norms), axis=-1)[..., None]
    norms = xp.where(good, norms, xp.ones_like(norms))
    eye = xp.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    unit = xp.where(good[..., None], G / norms[..., :, None] / norms[..., None, :], eye)
    try:
        root = transpose(xp.linalg.cholesky(unit))
        inverse = xp.linalg.inv(root)
        condition = G.shape[-1] * xp.sum(inverse * inverse, axis=(-2, -1))  # or less: trace times trace of the inverse
    except (ValueError, RuntimeError):  # what libraries raise for a matrix that is not positive definite
        w, W = xp.linalg.eigh(unit)
        positive = xp.where(w > 0, w, xp.ones_like(w))
        root, inverse = transpose(W * xp.sqrt(positive)[..., None, :]), W / xp.sqrt(positive)[..., None, :]
        condition = xp.where(w[..., 0] > 0, w[..., -1] / positive[..., 0], xp.full_like(w[..., 0], xp.inf))
    known = good[..., 0] & xp.isfinite(condition)
    return Root(
        root * norms[..., None, :],
        inverse / norms[..., :, None],
        xp.where(known, condition, xp.full_like(condition, xp.inf)),
    )


def balancing(up: Array, down: Array) -> tuple[Array, Array]:
    """Powers of two that make columns of up about as long as rows of down, from the lengths (..., k) of both.

    Returns:
        Factors (..., k) for up (down is divided by them), and where both lengths are above 0: there alone they matter.
    """
    xp = namespace(up)
    live = (up > 0) & (down > 0)
    one, other = (xp.where(live, length, xp.ones_like(length)) for length in (down, up))
    return 2.0 ** xp.round(xp.log2(one / other) / 2), live


def stacked(factors: Sequence[Factors]) -> Factors:
    """The sum of updates as one product: ``[B_1 .. B_K]`` and ``[A_1; ..; A_K]``; leading axes are a batch."""
    xp = namespace(factors[0][0])
    return xp.concat([up for up, _ in factors], axis=-1), xp.concat([down for _, down in factors], axis=-2)


@dataclass(frozen=True)
class Spectrum:
    """A thin SVD ``dW = U diag(s) V^T`` by coordinates: ``U = left.lift(u)`` and ``V = right.lift(v)``.

    Directions below the numerical rank are not in it (of a batch: below the largest one's); s (..., k) descends.
    """

    left: Basis
    right: Basis
    u: Array
    s: Array
    v: Array

    @property
    def U(self) -> Array:
        return self.left.lift(self.u)

    @property
    def V(self) -> Array:
        return self.right.lift(self.v)

    def product(self, s: Array, count: int) -> Factors:
        """``U diag(s) V^T`` of the first directions, as balanced factors: half of each singular value on both sides."""
        root = namespace(s).sqrt(s[..., None, :count])
        up, down = self.left.lift(self.u[..., :count] * root), self.right.lift(self.v[..., :count] * root)
        return up, transpose(down)


def spectrum(up: Array, down: Array) -> Spectrum:
    """The singular values and directions of ``up @ down`` above its numerical rank.

    Args:
        up, down: (..., out, r) and (..., r, n); leading axes are a batch.

    Returns:
        At least one direction, whatever its singular value, so that a zero update stays a product.
    """
    xp = namespace(up)
    left, right = basis(up), basis(transpose(down))
    u, s, vt = xp.linalg.svd(left.R @ transpose(right.R), full_matrices=False)
    size = max(up.shape[-2], *down.shape[-2:])
    noise = size * xp.finfo(s.dtype).eps * _size(left.R, transpose(right.R))[..., None]  # of ranks that cancel
    s = xp.where(s > noise, s, xp.zeros_like(s))
    k = max(1, numerical_rank(s, (up.shape[-2], down.shape[-1])))
    return Spectrum(left, right, u[..., :k], s[..., :k], transpose(vt)[..., :k])


def truncated(up: Array, down: Array, rank: int | None = None) -> tuple[Array, Array, Array]:
    """The best approximation of ``up @ down`` of a given rank (Eckart and Young), exact without one; also of a batch.

    Returns:
        Balanced factors up (out, k) and down (k, n), and the Frobenius error ``sqrt(sum of dropped s_i^2)``.

    >>> import numpy as np
    >>> up, down, error = truncated(np.diag([3.0, 4.0]), np.eye(2), 1)
    >>> up @ down, error
    (array([[0., 0.],
           [0., 4.]]), 3.0)
    """
    found = spectrum(up, down)
    count = found.s.shape[-1] if rank is None else min(rank, found.s.shape[-1])
    rest, xp = found.s[..., count:], namespace(up)
    error = xp.sqrt(xp.sum(rest * rest, axis=-1))
    return *found.product(found.s, count), error if error.ndim else float(error)


def _size(up: Array, down: Array) -> Array:
    """``sum_k |B_k| |A_k|``: what the rounding of a product is measured by."""
    xp = namespace(up)
    return xp.sum(xp.sqrt(xp.sum(up * up, axis=-2)) * xp.sqrt(xp.sum(down * down, axis=-1)), axis=-1)


def without_rounding(matrix: Array, size: Array) -> Array:
    """Entries that are only the rounding of numbers of a given size become 0: signs of nothing must not vote."""
    xp = namespace(matrix)
    noise = 16 * sum(matrix.shape) * xp.finfo(matrix.dtype).eps * size
    return matrix * xp.astype(abs(matrix) > noise, matrix.dtype)


# ------------------------------------------------------------------------------------------ cores


@dataclass(frozen=True)
class Cores:
    """Updates in bases that they share (Core Space): ``dW_i = U_B M_i V_A`` without loss."""

    left: Basis  # of all up factors
    right: Basis  # of all down factors, transposed
    factors: tuple[Factors, ...]  # of each core, as small as it is

    @property
    def matrices(self) -> list[Array]:
        """Each M_i, in which what is only rounding is 0."""
        return [without_rounding(up @ down, _size(up, down)) for up, down in self.factors]

    def lift(self, M: Array) -> Factors:
        """``U_B M V_A`` as factors."""
        xp = namespace(M)
        if M.shape[0] <= M.shape[1]:
            return self.left.lift(xp.eye(M.shape[0], dtype=M.dtype, device=M.device)), transpose(
                self.right.lift(transpose(M))
            )
        eye = xp.eye(M.shape[1], dtype=M.dtype, device=M.device)
        return self.left.lift(M), transpose(self.right.lift(eye))


def cores(factors: Sequence[Factors]) -> Cores:
    """The shared bases of updates, and each update's core in them.

    The bases are the singular directions of the stacks ``[B_1 .. B_K]`` and ``[A_1; ..; A_K]`` as in the paper, with
    signs fixed: methods that look at single entries of a core depend on the choice.
    """
    up, down = stacked(factors)
    left, right = _principal(up), _principal(transpose(down))
    small, start = [], 0
    for B, _ in factors:
        part = slice(start, start + B.shape[1])
        small.append((left.R[:, part], transpose(right.R[:, part])))
        start += B.shape[1]
    return Cores(left, right, tuple(small))


def _principal(F: Array) -> Basis:
    """The left singular vectors of F as its basis; dead directions dropped, signs fixed."""
    xp = namespace(F)
    found = basis(F)
    x, s, yt = xp.linalg.svd(found.R, full_matrices=False)
    k = max(1, numerical_rank(s, (F.shape[0], F.shape[1])))
    x, yt = fixed_signs(x[:, :k], yt[:k, :])
    inverse = x if found.inverse is None else found.inverse @ x
    live = xp.astype(xp.any(F != 0, axis=0), F.dtype)  # a column of zeros has no coordinates, not even rounding
    return Basis(found.columns, s[:k, None] * yt * live[None, :], inverse)


def fixed_signs(u: Array, vt: Array) -> tuple[Array, Array]:
    """Pairs of singular vectors with a sign that does not depend on the library: the rows of vt sum to 0 or more.

    >>> import numpy as np
    >>> fixed_signs(np.eye(1), np.array([[-2.0, 1.0]]))
    (array([[-1.]]), array([[ 2., -1.]]))
    """
    xp = namespace(u)
    sums = xp.sum(vt, axis=1)
    signs = xp.copysign(xp.ones_like(sums), sums)
    return u * signs[None, :], vt * signs[:, None]


# ------------------------------------------------------------------------------------------ unions


def orthonormal_rows(factors: Sequence[Factors]) -> Array:
    """An orthonormal basis (k, n) of the row spaces of updates together, above their numerical ranks.

    Without any direction (all updates are zero) it has one row of an arbitrary basis: ask `energy` before.
    """
    xp = namespace(factors[0][0])
    V = xp.concat([spectrum(up, down).V for up, down in factors], axis=1)
    if len(factors) > 1:
        V = spectrum(V, xp.eye(V.shape[1], dtype=V.dtype, device=V.device)).U
    return transpose(V)


def energy(up: Array, down: Array) -> float:
    """``||up @ down||_F^2`` from Gram matrices; where ranks cancel its rounding may fall below 0, which counts as 0."""
    return max(float(namespace(up).sum((transpose(up) @ up) * (down @ transpose(down)))), 0.0)
