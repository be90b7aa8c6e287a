"""Linear algebra: products that are safe in float32, and the only calls of LAPACK's routines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.kernels.manual_axes import varying_like

# An accelerator's default may be TF32 or bfloat16, whose three digits are fewer than a covariance needs.
PRECISION = lax.Precision.HIGHEST


def epsilon(dtype: Any) -> float:
    """The dtype's rounding unit as a Python number: NumPy's own scalars would promote what they multiply."""
    return float(jnp.finfo(dtype).eps)


# Matrices of up to so many rows are multiplied by elementwise products and sums, which XLA fuses with what
# stands around them; its own products take 1 µs each for 4 × 4 on a CPU.
_TINY = 8
# Identities and masks of up to so many rows are written into a program as constants: one operation, not four.
_CONSTANT = 16


def einsum(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` with full-precision products, and fast ones of many tiny matrices."""
    inputs, _, output = subscripts.partition("->")
    labels = inputs.split(",")
    if len(operands) == 1 or not _are_tiny(labels, output, operands):
        return jnp.einsum(subscripts, *operands, precision=PRECISION)
    result, named = operands[0], labels[0]
    for i in range(1, len(operands)):
        last = i == len(operands) - 1
        wanted = output if last else _kept(named + labels[i], "".join(labels[i + 1 :]) + output)
        result, named = _times(named, labels[i], wanted, result, operands[i]), wanted
    return result


def _kept(these: str, needed: str) -> str:
    """Which of these labels are needed later; "..." always, in front."""
    letters = dict.fromkeys(c for c in these.replace("...", "") if c in needed)
    return ("..." if "..." in these else "") + "".join(letters)


def _are_tiny(labels: list[str], output: str, operands: tuple[Array, ...]) -> bool:
    """Whether all is small but the axes that every operand and the result have."""
    sizes: dict[str, int] = {}
    for text, a in zip(labels, operands, strict=True):
        letters = text.replace("...", "")
        if len(set(letters)) < len(letters):
            return False
        sizes |= dict(zip(letters, a.shape[a.ndim - len(letters) :], strict=True))
    return all(size <= _TINY or all(c in text for text in (*labels, output)) for c, size in sizes.items())


def _times(left: str, right: str, output: str, a: Array, b: Array) -> Array:
    """The product of two, of which `output` is left, as a sum of elementwise products."""
    kept = output.replace("...", "")
    summed = [c for c in dict.fromkeys((left + right).replace("...", "")) if c not in kept]
    order = [*kept[:-1], *summed, *kept[-1:]]  # the last axis of the result stays the fastest

    def spread(text: str, x: Array) -> Array:
        letters = text.replace("...", "")
        lead = x.ndim - len(letters)
        at = [letters.find(c) for c in order]
        x = x.transpose(*range(lead), *(lead + i for i in at if i >= 0))
        return jnp.expand_dims(x, [i - len(order) for i, found in enumerate(at) if found < 0])

    x, y = spread(left, a), spread(right, b)
    ndim = max(x.ndim, y.ndim)
    x, y = (z.reshape((1,) * (ndim - z.ndim) + z.shape) for z in (x, y))
    axes = [i - len(order) for i, c in enumerate(order) if c in summed]
    return (x * y).sum(axes)


def column_squares(matrices: Array) -> Array:
    """Sums of the squares of the columns of matrices: (..., E, D) -> (..., D)."""
    if max(matrices.shape[-2:]) <= _TINY:
        return einsum("...ed,...ed->...d", matrices, matrices)
    return jnp.square(matrices).sum(-2)


def weighted_squares(y: Array, weight: Array) -> Array:
    """(K, D) sums over B of the squares of y (K, D, B), weighted (K, B).

    As a product: of three arrays in one loop XLA's sum over the last axis runs number by number.
    """
    return einsum("kdb,kb->kd", y * y, weight)


def times_each(matrices: Array, vectors: Array) -> Array:
    """Matrices (K, D, D), or one for all (1, D, D), times (K, D, B).

    One for each, though it is the same: a product over (k, b) at once would transpose the vectors first, at
    several times the cost.
    """
    whole = jnp.broadcast_to(matrices, (vectors.shape[0], *matrices.shape[1:]))
    return einsum("kde,keb->kdb", whole, vectors)


def eye(size: int, dtype: Any, ndim: int = 2) -> Any:
    """The identity (1, …, size, size) with so many axes: a constant of the program, unless it is large."""
    matrix = (np if size <= _CONSTANT else jnp).eye(size, dtype=dtype)
    return matrix.reshape((1,) * (ndim - 2) + matrix.shape)


def tril(matrices: Array, k: int = 0) -> Array:
    """`jnp.tril` of square matrices (..., D, D); of small ones, one operation with a constant."""
    size = matrices.shape[-1]
    if size > _CONSTANT:
        return jnp.tril(matrices, k)
    kept = np.tri(size, k=k, dtype=bool).reshape((1,) * (matrices.ndim - 2) + (size, size))
    return jnp.where(kept, matrices, jnp.zeros((), matrices.dtype))


def embed_diagonal(values: Array) -> Array:
    """Diagonal matrices (..., D, D) of values (..., D)."""
    return values[..., None] * eye(values.shape[-1], values.dtype, values.ndim + 1)


# LAPACK's batched routines in jaxlib 0.10 divide their work among XLA's threads and wait for them: without
# end where as many of them run at once as there are threads, on a machine with two cores, say. They divide it
# from some number of multiplications on, and never a single matrix. Of six calls at once on two cores, of B
# matrices of 8 × 8 and of 24 × 24, those with B = 256 and 4 ended (triangular solves, inverses, eigenvalues),
# 256 and 1 (eigenvectors), 64 and 16 (singular values); those with 1024 and 16, 1024 and 4, 256 and 64 did
# not, nor did Cholesky factors of 32 of 48 × 48. So every routine takes as many matrices at a time as have
# this many multiplications, of which `cost` says how many it takes; triangular inverses of more are products.
_FEW = 120_000


def few_at_once(routine: Callable[[Array], Any], cost: int) -> Callable[[Array], Any]:
    """A routine of LAPACK's for matrices (..., D, E), without a derivative, that its threads cannot block.

    `cost` says how many times D·E·min(D, E) multiplications it takes.
    """

    def alone(matrices: Array) -> Any:
        rows, columns = matrices.shape[-2:]
        few = max(1, _FEW // (cost * rows * columns * min(rows, columns) + 8))
        flat = matrices.reshape(-1, rows, columns)
        if len(flat) <= few or jax.default_backend() != "cpu":
            return routine(matrices)
        parts = lax.map(routine, flat, batch_size=few if few > 1 else None)
        return jax.tree.map(lambda a: a.reshape(*matrices.shape[:-2], *a.shape[1:]), parts)

    # How many are taken at a time depends on how many there are, with those that `vmap` adds.
    any_number = jax.custom_batching.custom_vmap(alone)

    @any_number.def_vmap
    def many(axis_size: int, in_batched: list[bool], matrices: Array) -> tuple[Any, Any]:
        found = any_number(matrices)
        return found, jax.tree.map(lambda _: True, found)

    whole: Callable[[Array], Any] = any_number
    return whole


_BLOCK = 32  # rows of the blocks of which larger triangular matrices are made


def _doubled_inverse(lower: Array) -> Array:
    """Inverses of lower triangular (..., D, D): of their blocks of 1, 2, 4, … rows on the diagonal, in turn.

    [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [−C⁻¹ B A⁻¹, C⁻¹]], as accurate as substitution (Higham 2002, chapter 14):
    X − X B X, where X holds the inverses of the smaller blocks and B what the larger ones have beside them.
    """
    size = lower.shape[-1]
    at = np.arange(size, dtype=np.int32)
    row, column = at[:, None], at[None, :]
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)

    def double(level: Array, inverse: Array) -> Array:
        beside = (row >> level == (column >> level) + 1) & (row >> level + 1 == column >> level + 1)
        beside = jnp.broadcast_to(beside, lower.shape)
        corner = jnp.where(beside, lower, jnp.zeros((), lower.dtype))
        return inverse - einsum("...de,...ef,...fg->...dg", inverse, corner, inverse)

    levels = jnp.asarray(max(size - 1, 0).bit_length(), jnp.int32)
    return lax.fori_loop(jnp.asarray(0, jnp.int32), levels, double, embed_diagonal(1 / diagonal))


def _blockwise_inverse(lower: Array) -> Array:
    """Inverses of lower triangular (..., D, D) in products: substitution by blocks of rows.

    A block of rows of the inverse X is L_ii⁻¹ (I_i − Σ_{j<i} L_ij X_j).
    """
    size, lead = lower.shape[-1], lower.shape[:-2]
    if size <= _BLOCK:
        return _doubled_inverse(lower)
    n_blocks = -(-size // _BLOCK)
    whole = n_blocks * _BLOCK
    unit = jnp.eye(whole, dtype=lower.dtype)
    filled = jnp.broadcast_to(unit, (*lead, whole, whole)).at[..., :size, :size].set(tril(lower))
    blocks = filled.reshape((*lead, n_blocks, _BLOCK, n_blocks, _BLOCK))
    own = _doubled_inverse(jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3))

    def substitute(i: Array, inverse: Array) -> Array:
        rows = [lax.dynamic_slice_in_dim(a, i * _BLOCK, _BLOCK, a.ndim - 2) for a in (unit, filled)]
        rest = rows[0].reshape((1,) * len(lead) + rows[0].shape)
        rest = rest - einsum("...de,...ef->...df", rows[1], inverse)
        new = einsum(
            "...de,...ef->...df", lax.dynamic_index_in_dim(own, i, own.ndim - 3, keepdims=False), rest
        )
        return lax.dynamic_update_slice_in_dim(inverse, new, i * _BLOCK, inverse.ndim - 2)

    first, last = jnp.asarray(0, jnp.int32), jnp.asarray(n_blocks, jnp.int32)
    inverse = lax.fori_loop(first, last, substitute, varying_like(jnp.zeros_like(filled), filled))
    return inverse[..., :size, :size]


@jax.custom_batching.custom_vmap
def _inverse(lower: Array) -> Array:
    if math.prod(lower.shape[:-2]) * (lower.shape[-1] ** 3 + 8) > _FEW:
        return _blockwise_inverse(lower)
    unit = jnp.broadcast_to(eye(lower.shape[-1], lower.dtype, lower.ndim), lower.shape)
    return lax.linalg.triangular_solve(lower, unit, left_side=True, lower=True)


@_inverse.def_vmap
def _inverses(axis_size: int, in_batched: list[bool], lower: Array) -> tuple[Array, bool]:
    return _inverse(lower), True  # which of the two it is depends on how many there are


@jax.custom_jvp
def lower_inverse(factors: Array) -> Array:
    """Inverse of lower triangular matrices (..., D, D); what stands above the diagonal is not read."""
    return _inverse(factors)


@lower_inverse.defjvp
def _lower_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = lower_inverse(*primals)
    return inverse, -einsum("...de,...ef,...fg->...dg", inverse, tril(tangents[0]), inverse)


def look_lapack_up() -> None:
    """Have jaxlib look LAPACK's functions up, which it does when it lowers the first program that calls one.

    A compiled program that is loaded from a file before that would call null pointers.
    """
    jax.jit(lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), np.float32))


@jax.custom_jvp
def cholesky(matrices: Array) -> Array:
    """Lower Cholesky factors of symmetric (..., D, D), NaN where one is not positive definite.

    Only the lower triangle is read, and the derivative is that of the symmetric matrix which it stands for.
    """
    factors: Array = _factors(matrices)
    return factors


_factors = few_at_once(functools.partial(lax.linalg.cholesky, symmetrize_input=False), cost=1)
_any_inverse = few_at_once(jnp.linalg.inv, cost=2)
_eigenvalues = few_at_once(jnp.linalg.eigvalsh, cost=10)
_eigen = few_at_once(lambda matrices: tuple(jnp.linalg.eigh(matrices)), cost=10)
_singular = few_at_once(lambda m: tuple(jnp.linalg.svd(m, full_matrices=False)), cost=20)
_upper = few_at_once(lambda matrices: jnp.linalg.qr(matrices, mode="r"), cost=10)


def eigvalsh(matrices: Array) -> Array:
    """Eigenvalues (..., D) of symmetric (..., D, D), the smallest first; they have no derivative here."""
    values: Array = _eigenvalues(lax.stop_gradient(matrices))
    return values


@jax.custom_jvp
def eigh(matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (..., D) of symmetric (..., D, D), the smallest first, and eigenvectors in columns.

    Where two values are equal their vectors have no derivative: it is then that of other vectors only.
    """
    found: tuple[Array, Array] = _eigen(matrices)
    return found


@eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    values, vectors = eigh(*primals)
    change = einsum("...di,...de,...ej->...ij", vectors, tangents[0], vectors)
    change = 0.5 * (change + change.swapaxes(-1, -2))
    gap = values[..., None, :] - values[..., :, None]
    turn = jnp.where(gap == 0, 0, change / jnp.where(gap == 0, 1, gap))
    slope = jnp.diagonal(change, axis1=-2, axis2=-1)
    return (values, vectors), (slope, einsum("...di,...ij->...dj", vectors, turn))


def svd(matrices: Array) -> tuple[Array, Array, Array]:
    """U (..., D, r), values (..., r) from the largest, Vᵀ (..., r, E) of (..., D, E); no derivative."""
    found: tuple[Array, Array, Array] = _singular(lax.stop_gradient(matrices))
    return found


@jax.custom_jvp
def triangular_factor(roots: Array) -> Array:
    """Lower L (..., d, d) with a positive diagonal and L Lᵀ = M Mᵀ, of M (..., d, n) with n ≥ d.

    By a QR factorisation: M Mᵀ is never formed, so that L has the digits of M.
    """
    upper: Array = _upper(roots.swapaxes(-1, -2))
    sign = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1, 1).astype(upper.dtype)
    return jnp.swapaxes(upper * sign[..., :, None], -1, -2)


@triangular_factor.defjvp
def _triangular_factor_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With P = L⁻¹M, whose rows are orthonormal: dL = L Φ(B + Bᵀ), B = L⁻¹ dM Pᵀ.
    factor = triangular_factor(*primals)
    inverse = lower_inverse(factor)
    rows = einsum("...de,...en->...dn", inverse, primals[0])
    inner = einsum("...de,...en,...fn->...df", inverse, tangents[0], rows)
    return factor, _lower_change(factor, inner + inner.swapaxes(-1, -2))


def _lower_change(factors: Array, inner: Array) -> Array:
    """L Φ(S) for symmetric S, where Φ keeps the lower triangle and halves the diagonal (Murray 2016)."""
    kept = tril(inner, -1) + 0.5 * inner * eye(inner.shape[-1], inner.dtype, inner.ndim)
    return einsum("...de,...ef->...df", factors, kept)


@jax.custom_jvp
def inverse(matrices: Array) -> Array:
    """Inverses of square matrices (..., D, D) that are far from singular."""
    found: Array = _any_inverse(matrices)
    return found


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    found = inverse(*primals)
    return found, -einsum("...de,...ef,...fg->...dg", found, tangents[0], found)


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dL = L Φ(L⁻¹ dA L⁻ᵀ).
    factors = cholesky(*primals)
    inverse = lower_inverse(factors)
    (change,) = tangents
    strict = tril(change, -1)
    symmetric = tril(change) + strict.swapaxes(-1, -2)
    return factors, _lower_change(factors, einsum("...de,...ef,...gf->...dg", inverse, symmetric, inverse))


def safe_cholesky(matrices: Array, jitter: Array) -> Array:
    """Lower Cholesky factors of (..., D, D); where a matrix is not positive definite, of it plus `jitter`.

    `jitter` (..., D) is added to the diagonal of the matrices that fail, and only of those. A matrix that
    still fails gives NaN. Only the factorisation that is returned is differentiated, so that the one that
    failed cannot poison a gradient.
    """
    first = cholesky(lax.stop_gradient(matrices))
    failed = ~jnp.isfinite(first).all((-2, -1))
    added = jnp.where(failed[..., None], jitter, jnp.zeros((), matrices.dtype))
    return cholesky(matrices + embed_diagonal(added))


def outlived(result: Array, *used: Array) -> Array:
    """`result`, so that arrays from which it was computed are in memory until it is there.

    XLA writes an elementwise result over an operand that nothing else needs, and its quicker code generator
    for CPUs then makes a loop that runs number by number: it has to allow for arrays that overlap in part.
    """
    if jax.default_backend() != "cpu":
        return result
    first = lax.stop_gradient(result).reshape(-1)[0]
    after = (first == jnp.inf).astype(jnp.int32)  # 0, but not before the result is known
    for a in used:
        number = lax.dynamic_index_in_dim(lax.stop_gradient(a).reshape(-1), after, keepdims=False)
        result = result + jnp.where(jnp.isnan(number), 0, jnp.minimum(jnp.abs(number), 0))
    return result


def transposed(x: Array, n_uses: int) -> Array:
    """Rows (B, D) as columns (D, B), for as many things that are computed from each of them.

    On a CPU it is made as a product with the identity: a mere transposition XLA fuses into what is computed
    from it, and makes the rows and reads them across once for every use.
    """
    n_features = x.shape[1]
    pays = (
        n_features * n_uses >= 64 and n_features <= 8 * n_uses
    )  # D² numbers against what is saved, D · uses
    if jax.default_backend() != "cpu" or not pays:
        return x.T
    unit = eye(n_features, x.dtype)
    return jnp.einsum("de,be->db", unit, x, precision=lax.Precision.HIGHEST)
