"""Thin linear algebra on low-rank updates: everything from factors, nothing of shape out x in.

An update is ``dW = B A`` with B (..., out, r) and A (..., r, n); leading axes are batches. The functions
take NumPy arrays, torch tensors or any array of the Python array API standard, and return the same kind.
Gram matrices and everything r x r are float64 (float32 where a device has no float64).

The Gram route squares the condition number. It is used only where `well_conditioned` certifies it;
elsewhere `orthonormal_form` rewrites the style by QR and SVD, and the same formulas hold with H = I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # an array of the array API standard; its namespace is asked for at run time

# The Gram matrix of A (rows scaled to unit norm) may be this ill-conditioned before its rounding shows: the
# projection's relative error is about condition * unit roundoff of the arithmetic (2^-24 for 16-bit files).
MAX_DOWN_CONDITION = 300.0
# A full-rank certificate for B: sqrt(300 * 1e13) < 1e8, so every s_i > 1e-8 s_1 >> max(out, n) * 2^-52 s_1. Half
# precision leaves rounding noise in unused ranks: a rank 128 file is around 1e10.
MAX_UP_CONDITION = 1e13
# Single directions come from G in float64, whose rounding they feel times about this: 1e7 * 2^-53 = 1e-9.
MAX_SPECTRUM_CONDITION = 1e7
# OpenBLAS multiplies matrices twice as fast without packing them first. It does so for products of at most this many
# multiplications, and of two different arrays only: a product with itself goes another, slower way.
SMALL_PRODUCT = 1_000_000
SHORTEST_PIECE = 256
SAMPLED_ROWS = 4  # rows of B that the certificate looks at, in multiples of the rank


def namespace(array: Array) -> Any:
    """The array API namespace of an array; array-api-compat is loaded only for arrays that need it (torch)."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    from array_api_compat import array_namespace

    return array_namespace(array)


def transpose(array: Array) -> Array:
    """Swap the last two axes."""
    return namespace(array).matrix_transpose(array)


@dataclass(frozen=True)
class Grams:
    """All that a files-only method needs to know of one module (or a batch of equal shapes), r x r and float64.

    With the subject ``B_c A_c`` and the style ``B_s A_s``: ``K = A_c A_s^T`` (r_c, r_s), ``H_s = A_s A_s^T``,
    ``G_s = B_s^T B_s``, ``H_c = A_c A_c^T``, ``G_c = B_c^T B_c``. Scales are not included.
    ``full_rank`` (...,) says where the style is certified to have full numerical rank and a Gram matrix that may be
    inverted. ``s`` (..., r) holds the style's singular values, descending, where the rows of A_s are its right
    singular vectors (`orthonormal_form`); else None.
    """

    K: Array
    H_s: Array
    G_s: Array
    H_c: Array
    G_c: Array
    full_rank: Array
    s: Array | None = None

    def take(self, index: int) -> Grams:
        """One module of the batch, as a batch of one."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        return Grams(**{name: array[(slice(index, index + 1), ...)] for name, array in arrays.items()})


def double(array: Array) -> Array:
    """The array in float64; MPS has none and keeps float32."""
    xp = namespace(array)
    if str(getattr(array, "device", "")).startswith("mps"):
        return xp.astype(array, xp.float32)
    return xp.astype(array, xp.float64)


def grams(B_c: Array, A_c: Array, B_s: Array, A_s: Array, up_condition: float = MAX_UP_CONDITION) -> Grams:
    """Gram matrices of a subject and a style of one module.

    Args:
        B_c, A_c: subject factors (..., out, r_c) and (..., r_c, n), float32 or float64.
        B_s, A_s: style factors (..., out, r_s) and (..., r_s, n).
        up_condition: how ill-conditioned B_s may be for the certificate of full rank.

    Returns:
        Float64 Gram matrices; products are accumulated in the inputs' dtype.
    """
    H_s, G_s = inner_products(A_s, A_s), inner_products(transpose(B_s), transpose(B_s))
    return Grams(
        K=inner_products(A_c, A_s),
        H_s=H_s,
        G_s=G_s,
        H_c=inner_products(A_c, A_c),
        G_c=inner_products(transpose(B_c), transpose(B_c)),
        full_rank=well_conditioned(H_s, G_s, B_s, up_condition),
    )


def inner_products(P: Array, Q: Array) -> Array:
    """``P Q^T`` (..., p, q) in float64 from long rows (..., p, n), (..., q, n); NumPy in pieces if that is faster."""
    xp, length = namespace(P), P.shape[-1]
    width = SMALL_PRODUCT // (P.shape[-2] * Q.shape[-2])
    if width < SHORTEST_PIECE or length == 0 or type(P).__module__ != "numpy":
        return double(P @ transpose(Q))
    width = -(-length // -(-length // width))  # pieces of equal length
    pieces = ((..., slice(start, start + width)) for start in range(0, length, width))
    return sum(double(P[piece] @ transpose(xp.asarray(Q[piece], copy=True))) for piece in pieces)


def inner(P: Array, Q: Array) -> Array:
    """Batched Frobenius inner product <P, Q> over the last two axes.

    ``||B A||_F^2 = inner(B^T B, A A^T)``.
    """
    return namespace(P).sum(P * Q, axis=(-2, -1))


def well_conditioned(H: Array, G: Array, B: Array, up_condition: float = MAX_UP_CONDITION) -> Array:
    """Which updates ``B A`` have full numerical row rank, certified cheaply; False where it is only not certain.

    With D scaling the rows of A to unit norm, ``s_min(BA) >= s_min(B D^-1) s_min(D A)``, and the smallest
    singular value of B is at least that of any selection of its rows: a few of them settle nearly every module.
    A module passes if the condition numbers are small enough that this bound is far above
    ``max(out, n) * 2^-52 * s_1``, and that ``H`` may be inverted without loss.

    Args:
        H: ``A A^T`` (..., r, r) float64. G: ``B^T B`` likewise, of which only the diagonal is used.
        B: (..., out, r), float32 or float64. up_condition: how ill-conditioned B may be.

    Returns:
        Booleans (...,).
    """
    xp = namespace(H)
    norms = xp.sqrt(xp.linalg.diagonal(H))
    live = xp.all((norms > 0) & xp.isfinite(norms), axis=-1)
    norms = xp.where(norms > 0, norms, xp.ones_like(norms))
    scaled_H = H / norms[..., :, None] / norms[..., None, :]
    step = max(1, B.shape[-2] // (SAMPLED_ROWS * B.shape[-1]))
    sample = double(B[..., ::step, :]) * norms[..., None, :]
    # The sample's largest singular value may be smaller than B's: the trace of all of G stands in for it.
    scaled_G = transpose(sample) @ sample
    growth = xp.sum(xp.linalg.diagonal(G) * norms * norms, axis=-1) / _trace(scaled_G)
    return live & (condition(scaled_H) < MAX_DOWN_CONDITION) & (condition(scaled_G) * growth < up_condition)


def condition(S: Array) -> Array:
    """Condition numbers of positive semidefinite matrices in the maximum-row-sum norm, capped near 1e15.

    It bounds the spectral condition number from above, and by at most a factor r.
    """
    xp = namespace(S)
    size = S.shape[-1]
    trace = _trace(S)
    good = xp.isfinite(trace) & (trace > 0)
    mean = xp.where(good, trace, xp.ones_like(trace)) / size
    eye = xp.eye(size, dtype=S.dtype, device=S.device)
    # The shift keeps an exactly singular matrix invertible; it then reports a huge condition number.
    unit = xp.where(good[..., None, None], S / mean[..., None, None], eye) + eye * (size * xp.finfo(S.dtype).eps)
    found = _row_sum_norm(unit) * _row_sum_norm(xp.linalg.inv(unit))
    return xp.where(good, found, xp.full_like(trace, xp.inf))


def _trace(S: Array) -> Array:
    xp = namespace(S)
    return xp.sum(xp.linalg.diagonal(S), axis=-1)


def _row_sum_norm(M: Array) -> Array:
    xp = namespace(M)
    return xp.max(xp.sum(xp.abs(M), axis=-1), axis=-1)


def frobenius(M: Array) -> Array:
    """Frobenius norm over the last two axes."""
    xp = namespace(M)
    return xp.sqrt(xp.sum(M * M, axis=(-2, -1)))


def thin_svd(B: Array, A: Array) -> tuple[Array, Array, Array]:
    """Exact thin SVD of ``B A`` from QR of both factors and an r x r core.

    Args:
        B: (out, r); A: (r, n). Any float dtype; computed in float64.

    Returns:
        U (out, r), s (r,) descending, V (n, r): ``B A = U diag(s) V^T``. Where r exceeds out or n the
        rank axis is the smaller one. Singular values are exact to about ``max(out, n, r) * 2^-52 * sum_k |B_k| |A_k|``
        (columns of B, rows of A); smaller ones are set to zero.
    """
    xp = namespace(B)
    B, A = double(B), double(A)
    Q_b, R_b = xp.linalg.qr(B)
    Q_a, R_a = xp.linalg.qr(transpose(A))
    u, s, vt = xp.linalg.svd(R_b @ transpose(R_a), full_matrices=False)
    # Ranks that cancel in the product leave rounding of their own size behind, whatever is left of the product.
    size = xp.sum(xp.sqrt(xp.sum(B * B, axis=0)) * xp.sqrt(xp.sum(A * A, axis=1)))
    noise = max(B.shape[0], *A.shape) * xp.finfo(s.dtype).eps * size
    return Q_b @ u, xp.where(s > noise, s, xp.zeros_like(s)), Q_a @ transpose(vt)


def numerical_rank(s: Array, size: tuple[int, int]) -> int:
    """How many singular values count: ``s_i > max(out, n) * 2^-52 * s_1`` (as NumPy's and MATLAB's rank).

    Of a batch s (..., k) the most that one of them has.
    """
    xp = namespace(s)
    if s.shape[-1] == 0:
        return 0
    tolerance = max(size) * xp.finfo(s.dtype).eps * s[..., :1]
    return int(xp.max(xp.sum(xp.astype(s > tolerance, xp.int64), axis=-1)))


def orthonormal_form(B: Array, A: Array) -> tuple[Array, Array, Array]:
    """The same update with orthonormal rows: ``B A = (U diag(s)) V^T``, dead directions dropped.

    Returns:
        ``U diag(s)`` (out, k), ``V^T`` (k, n) and s (k,) in float64, k the numerical rank of ``B A``.
    """
    U, s, V = thin_svd(B, A)
    k = numerical_rank(s, (B.shape[0], A.shape[1]))
    return U[:, :k] * s[None, :k], transpose(V[:, :k]), s[:k]


def product_norm(B: Array, A: Array) -> float:
    """``||B A||_F`` without the cancellation of Gram matrices (QR of both factors)."""
    xp = namespace(B)
    R_b = xp.linalg.qr(double(B))[1]
    R_a = xp.linalg.qr(transpose(double(A)))[1]
    return float(frobenius(R_b @ transpose(R_a)))
