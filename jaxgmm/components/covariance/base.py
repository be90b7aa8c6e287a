"""The record `Covariance`: a covariance structure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.kernels.linalg import einsum, weighted_squares

Scale = Any  # a covariance's own pytree of arrays


class Collapse(NamedTuple):
    """How few samples, in general position, let a part of a structure's covariances become singular.

    Below these numbers the likelihood grows without bound as that part shrinks, or, where volumes are equal,
    its maximum lies at a singular shape. 0: that part cannot collapse, or not before another one that is
    listed. All 0: nothing can.

    Fields:
      each: samples that every component must have for what it does not share with the others.
      largest: samples that the largest component must have: for eigenvalues that all components share along
        axes of their own, which vanish only where every component is flat.
      pooled: samples that the components must have together, all but one for each component after the first:
        for what they share altogether.
      by_volume: components differ in no eigenvalue but by a common factor, their volume; shapes cannot
        collapse alone.
    """

    each: int = 0
    largest: int = 0
    pooled: int = 0
    by_volume: bool = False


def any_direction(n_features: int) -> Collapse:
    """A component is flat, in a direction of its own, on D samples or fewer."""
    return Collapse(each=n_features + 1)


@dataclasses.dataclass(frozen=True)
class Partial:
    """A function with its first argument filled in. Unlike `functools.partial`, two of the same are equal."""

    function: Callable[..., Any]
    first: Any

    def __call__(self, *arguments: Any) -> Any:
        """The function of the first argument and these."""
        return self.function(self.first, *arguments)


def compiled(function: Callable[..., Any], arrays: Any, *static: Any) -> Any:
    """A function as one program: outside of `jit`, where people call it, every operation would be one."""
    return jax.jit(function, static_argnums=tuple(range(1, 1 + len(static))))(arrays, *static)


class Covariance(NamedTuple):
    """A covariance structure: what EM, sampling and derivatives need to know of Σ_1 … Σ_K, and no more.

    It knows nothing of weights, priors and kernels. Every Σ_k = C_k C_kᵀ is known through an invertible
    factor C_k that need not be formed. `scale` is whatever pytree of arrays the structure keeps. Residuals
    r = x − μ_k and whitened residuals y = C_k⁻¹ r are laid out (K, D, B), rows of data last: that is the fast
    layout. To add a structure, fill in the record; only a name is registered, and nothing is subclassed.
    Build it once (at module level, or in a cached constructor) and of named functions: equal records share
    one compilation, functions are equal only when they are the same object, and a record of lambdas cannot be
    pickled.

    Fields:
      name: what error messages and saved files call it.
      covariance_shape: (K, D) -> shape of the covariances that `from_covariance` takes.
      whitener: scale -> a function residuals (K, D, B) -> y (K, D, B), with ‖y‖² the squared Mahalanobis
        distance. What it needs of `scale` (inverses) is computed once, outside the returned function.
      colour: (scale, y (K, D, B)) -> residuals (K, D, B); the inverse of whitening.
      log_det: (scale, (K, D)) -> (K,), log |Σ_k|.
      diagonal: (scale, (K, D)) -> (K, D), the variances, the diagonals of Σ_k.
      inverse_diagonal: (scale, (K, D)) -> (K, D), the diagonals of Σ_k⁻¹.
      second_moment: the part of Σ resp y yᵀ that `update` reads: "matrix" for all of it (K, D, D), "pooled"
        for its sum over components (D, D), "diagonal" for its diagonals (K, D), "trace" for its traces (K,);
        or a function (scale, y (K, D, B), resp (K, B)) -> pytree of sums over B, linear in resp. With a
        function there is no quadratic kernel, and no incremental or stepwise EM, which carry second moments
        from one mixture to the next. With "trace" every Σ_k is a multiple of I, with "diagonal" it is
        diagonal, and with "pooled" all are one.
      update: (scale, weight (K,), mean (K, D), second, ridge (D,)) -> (new scale, change (K,)). The M-step:
        the covariances that maximise the expected log-likelihood given Σ resp, the mean of y and the second
        moments of y about the *current* parameters, plus diag(ridge); and ‖C⁻¹ ΔΣ C⁻ᵀ‖²_F, the squared
        length of the change. A component of weight 0 keeps its covariance.
      to_covariance: (scale, (K, D)) -> dense (..., K, D, D); leading batch axes pass through.
      from_covariance: covariances of `covariance_shape` -> scale; NaN where one is not positive definite.
      from_variances: variances (K, D) -> the scale of diagonal covariances that the structure has nearest.
      n_parameters: (K, D) -> number of free covariance parameters; plain arithmetic, K may be traced.
      to_natural, from_natural: coordinates for extrapolation, about a reference scale and weights (K,):
        (reference, weights, scale, shift (K, D)) -> pytree, and (reference, weights, pytree) ->
        (scale, shift), with shift = C_ref⁻¹(μ − μ_ref). At the reference their Euclidean length is the
        Fisher length of a complete observation. Outside the domain the way back gives NaN. None: fits take
        plain EM steps.
      to_unconstrained, from_unconstrained: free coordinates, for fits by gradient and for standard errors:
        scale -> pytree of arrays that hold n_parameters(K, D) real numbers in all, and (pytree, (K, D)) ->
        scale. Any real numbers give a valid scale, and near a scale its covariances determine them. None:
        no gradient fits, no standard errors.
      prior: whose conventions a conjugate prior on the covariances follows, by mclust's letters: "VVV" with a
        matrix for its scale, "VVI" or "VII" for structures without correlations; "EEE", "EEI" or "EII"
        where all covariances are one and have one prior together. See `Prior`.
      free_volumes: whether each Σ_k alone may be multiplied by any number; otherwise all may by one.
      rescale: (scale, unit (D,)) -> the scale of the mixture in which feature j is multiplied by unit_j.
        None: data of extreme scale are fitted as they are.
      by_feature: whether the features may have different units there; otherwise all units are equal.
      collapse: D -> a `Collapse`, what of the covariances can become singular, on how few samples. It decides
        which optima of a search are `Spurious`. The default is that of "full": any component can, in any
        direction.
    """

    name: str
    covariance_shape: Callable[[int, int], tuple[int, ...]]
    whitener: Callable[[Scale], Callable[[Array], Array]]
    colour: Callable[[Scale, Array], Array]
    log_det: Callable[[Scale, tuple[int, int]], Array]
    diagonal: Callable[[Scale, tuple[int, int]], Array]
    inverse_diagonal: Callable[[Scale, tuple[int, int]], Array]
    second_moment: str | Callable[[Scale, Array, Array], Any]
    update: Callable[[Scale, Array, Array, Any, Array], tuple[Scale, Array]]
    to_covariance: Callable[[Scale, tuple[int, int]], Array]
    from_covariance: Callable[[Array], Scale]
    from_variances: Callable[[Array], Scale]
    n_parameters: Callable[[Any, int], Any]
    to_natural: Callable[[Scale, Array, Scale, Array], Any] | None = None
    from_natural: Callable[[Scale, Array, Any], tuple[Scale, Array]] | None = None
    to_unconstrained: Callable[[Scale], Any] | None = None
    from_unconstrained: Callable[[Any, tuple[int, int]], Scale] | None = None
    prior: str = "VVV"
    free_volumes: bool = False
    rescale: Callable[[Scale, Array], Scale] | None = None
    by_feature: bool = False
    collapse: Callable[[int], Collapse] = any_direction

    def __repr__(self) -> str:
        """Short, for the record's functions say nothing to a reader."""
        return f"Covariance({self.name!r})"

    @property
    def is_isotropic(self) -> bool:
        """Whether every Σ_k is a multiple of I: what `from_covariance` takes has no axis of features."""
        return 3 not in self.covariance_shape(2, 3)

    def moments(self, scale: Scale, y: Array, resp: Array) -> Any:
        """`second_moment` of whitened residuals y (K, D, B) with weights resp (K, B)."""
        if callable(self.second_moment):
            return self.second_moment(scale, y, resp)
        return _MOMENTS[self.second_moment](y, resp)

    def part_of(self, scale: Scale, second: Array) -> Any:
        """The structure's part of second moments of y, given as matrices (K, D, D) or diagonals (K, D)."""
        kind, d = self.second_moment, second.shape[-1]
        if kind in ("diagonal", "trace"):
            diagonal = second if second.ndim == 2 else jnp.diagonal(second, axis1=1, axis2=2)
            return diagonal if kind == "diagonal" else diagonal.sum(1)
        if kind == "matrix":
            return second
        if kind == "pooled":
            return second.sum(0)
        # A function of whitened residuals, linear in y yᵀ: a symmetric matrix is a sum of such products of
        # unit vectors and of sums of two of them.
        i, j = np.triu_indices(d, 1)
        unit = np.eye(d)
        columns = jnp.asarray(np.concatenate([unit, unit[:, i] + unit[:, j]], axis=1), second.dtype)
        alone = 2 * jnp.diagonal(second, axis1=1, axis2=2) - second.sum(2)
        shares = jnp.concatenate([alone, second[:, i, j]], axis=1)
        return self.moments(scale, jnp.broadcast_to(columns[None], (second.shape[0], *columns.shape)), shares)


def _matrix(y: Array, resp: Array) -> Array:
    return einsum("kdb,keb->kde", y * resp[:, None, :], y)


def _pooled(y: Array, resp: Array) -> Array:
    # The sum over k comes last: one product that sums over k and b would transpose y first, and take three
    # times as long.
    return _matrix(y, resp).sum(0)


def _trace(y: Array, resp: Array) -> Array:
    return einsum("kb,kb->k", jnp.square(y).sum(1), resp)


_MOMENTS = {"matrix": _matrix, "pooled": _pooled, "diagonal": weighted_squares, "trace": _trace}


@functools.lru_cache
def is_from_package(covariance: Covariance) -> bool:
    """Whether every function of a record is one of this package: such records are checked by its tests."""
    package = __package__.partition(".")[0] + "."
    modules = [getattr(field, "__module__", None) or "" for field in covariance if callable(field)]
    return all(module.startswith(package) for module in modules)


@functools.lru_cache
def check_record(c: Covariance, n_components: int, n_features: int, dtype: Any = jnp.float32) -> None:
    """Raise unless a record's functions give what the record promises of K components in D features.

    Nothing is computed: shapes and dtypes are inferred, of numbers in `dtype`.

    Raises:
      TypeError: naming the field, the shape and dtype that it should give, and those that it gives.
    """
    k, d, rows = n_components, n_features, 5
    functions: dict[str, Callable[..., Any]] = {
        "whitener": lambda scale, y: c.whitener(scale)(y),
        "second_moment": c.moments,
    }

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def refuse(what: str) -> TypeError:
        return TypeError(f"{c.name!r}: {what} (for K = {k}, D = {d})")

    def described(tree: Any) -> str:
        leaves = ", ".join(f"{a.dtype.name}{list(a.shape)}" for a in jax.tree.leaves(tree))
        return f"{leaves} as {jax.tree.structure(tree)}"

    def check(field: str, expected: Any, *arguments: Any, last: tuple[Any, ...] = ()) -> Any:
        function: Callable[..., Any] = functions.get(field, getattr(c, field))
        try:
            found = jax.eval_shape(lambda *a: function(*a, *last), *arguments)
        except Exception as error:
            raise refuse(f"{field} fails: {error}") from error
        if expected is not None and described(expected) != described(found):
            raise refuse(f"{field} must give {described(expected)}; it gives {described(found)}")
        return found

    if not callable(c.second_moment) and c.second_moment not in _MOMENTS:
        raise refuse(f"second_moment must be one of {list(_MOMENTS)} or a function; got {c.second_moment!r}")
    # A structure may refuse so many components or features here, in words of its own.
    scale = jax.eval_shape(c.from_variances, of(k, d))
    if any(a.dtype != dtype for a in jax.tree.leaves(scale)):
        wanted = jnp.dtype(dtype).name
        raise refuse(f"from_variances must give {wanted} for {wanted} variances; it gives {described(scale)}")
    y, shape = of(k, d, rows), ((k, d),)
    check("whitener", y, scale, y)
    check("colour", y, scale, y)
    check("log_det", of(k), scale, last=shape)
    check("diagonal", of(k, d), scale, last=shape)
    check("inverse_diagonal", of(k, d), scale, last=shape)
    check("to_covariance", of(k, d, d), scale, last=shape)
    second = check("second_moment", None, scale, y, of(k, rows))
    check("update", (scale, of(k)), scale, of(k), of(k, d), second, of(d))
    check("from_covariance", scale, of(*c.covariance_shape(k, d)))
    if c.to_natural is not None and c.from_natural is not None:
        natural = check("to_natural", None, scale, of(k), scale, of(k, d))
        check("from_natural", (scale, of(k, d)), scale, of(k), natural)
    if c.to_unconstrained is not None and c.from_unconstrained is not None:
        free = check("to_unconstrained", None, scale)
        given, number = sum(a.size for a in jax.tree.leaves(free)), c.n_parameters(k, d)
        if given != number:
            raise refuse(f"to_unconstrained must give n_parameters = {number} numbers; it gives {given}")
        check("from_unconstrained", scale, free, last=shape)
    if c.rescale is not None:
        check("rescale", scale, scale, of(d))
