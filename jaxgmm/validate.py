"""The one checker of shapes, dtypes and ranges, and the words of every error.

Shapes and dtypes are known under any transformation and are always checked. Values are checked where they
are concrete; inside `jit` or `vmap` they are not, and there a fit's `status` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.compilation import is_traced
from jaxgmm.linalg import epsilon


def is_concrete(*values: Any) -> bool:
    """Whether the values can be looked at, that is, are not being traced."""
    return not is_traced(*values)


def _now(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function of arrays at once where they are concrete.

    Data that a user's `jit` closes over are concrete although a trace is under way; plain operations on them
    would be staged into it, and could not be looked at.
    """
    if not is_concrete(*values):
        return function(*values)
    with jax.ensure_compile_time_eval():
        return function(*values)


def _floating(value: ArrayLike, name: str, wanted: Any = None) -> Array:
    """Any real array as float32 or, where JAX allows it, float64; or in the dtype `wanted`."""
    if not isinstance(value, Array):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise TypeError(f"{name} must be an array of numbers; got ragged data ({error})") from None
        if value.dtype.kind not in "biuf" and not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name} must hold real numbers; got dtype {value.dtype}")
    dtype = value.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.issubdtype(dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must hold real numbers; got dtype {dtype}")
    if wanted is None:
        widest = jnp.result_type(float)
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4
        wanted = jnp.float32 if narrow else widest
    return _now(lambda a: jnp.asarray(a, wanted), value)


@jax.jit
def _first_bad(a: Array) -> tuple[Array, Array]:
    bad = ~jnp.isfinite(a).reshape(-1)
    return bad.any(), jnp.argmax(bad)


def _finite(a: Array, name: str, advice: str) -> None:
    if not is_concrete(a):
        return
    found, first = _now(_first_bad, a)
    if found:
        at = tuple(int(i) for i in np.unravel_index(int(first), a.shape))
        place = f"row {at[0]}, column {at[1]}" if a.ndim == 2 else f"index {at[0] if len(at) == 1 else at}"
        raise ValueError(f"{name} must be finite; got {np.asarray(a)[at]} at {place}. {advice}")


def data(X: ArrayLike, *, n_features: int | None = None, name: str = "X") -> Array:
    """X as a floating array (N, D), N ≥ 1, D ≥ 1, finite where that can be seen."""
    x = _floating(X, name)
    if x.ndim != 2:
        hint = " A single feature is X[:, None]; a single sample is X[None, :]." if x.ndim == 1 else ""
        raise ValueError(f"{name} must be a 2-D array (n_samples, n_features); got shape {x.shape}.{hint}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} must have at least one sample and one feature; got shape {x.shape}")
    if n_features is not None and x.shape[1] != n_features:
        raise ValueError(
            f"{name} must have the {n_features} features of params, shape (n_samples, {n_features}); "
            f"got shape {x.shape}"
        )
    _finite(x, name, "Drop or impute such rows, or scale the data, before the fit.")
    return x


def weight(sample_weight: ArrayLike | None, x: Array) -> Array | None:
    """sample_weight as (N,) in X's dtype: finite, not negative, not all zero; None stays None."""
    if sample_weight is None:
        return None
    w = _floating(sample_weight, "sample_weight", x.dtype)
    if w.shape != x.shape[:1]:
        raise ValueError(
            f"sample_weight must have shape {x.shape[:1]}, one weight for each row of X {x.shape}; "
            f"got shape {w.shape}"
        )
    _finite(w, "sample_weight", "A weight of 0 leaves a row out.")
    if is_concrete(w):
        low, high = map(float, _now(lambda a: (a.min(), a.max()), w))
        if low < 0:
            raise ValueError(f"sample_weight must not be negative; got {low}")
        if not high > 0:
            raise ValueError("sample_weight must not be zero everywhere: no sample would be left")
    return w


def n_components(value: Any, n_samples: int | None = None) -> int:
    """A number of components: an integer from 1 to the number of samples."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"n_components must be an int; got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"n_components must be at least 1; got {value}")
    if n_samples is not None and value > n_samples:
        raise ValueError(f"n_components must not exceed n_samples = {n_samples}; got {value}")
    return int(value)


def sizes(value: Any, n_samples: int) -> tuple[int, ...]:
    """Several numbers of components."""
    if isinstance(value, str) or np.ndim(value) != 1:
        raise TypeError(f"n_components must be a sequence of ints, such as range(1, 10); got {value!r}")
    numbers = tuple(n_components(k, n_samples) for k in value)
    if not numbers:
        raise ValueError("n_components must name at least one number of components; got none")
    return numbers


def count(value: Any, name: str, minimum: int) -> int:
    """A static integer that is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int; got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return int(value)


def rank(value: int, n_features: int) -> None:
    """Raise unless a structure with that many factors has fewer of them than features."""
    if value >= n_features:
        raise ValueError(
            f"factor({value}) needs more than {value} features; got {n_features}. "
            "Use fewer factors, or covariance_type='full'."
        )


def step_limit(max_iter: Any) -> Array:
    """max_iter as an int32 scalar: an integer, not negative; it may be traced."""
    if is_concrete(max_iter):
        if isinstance(max_iter, Array | np.ndarray) and np.ndim(max_iter) == 0:
            max_iter = max_iter.item()
        count(max_iter, "max_iter", 0)
        return jnp.asarray(min(int(max_iter), np.iinfo(np.int32).max), jnp.int32)
    if max_iter.shape != () or not jnp.issubdtype(max_iter.dtype, jnp.integer):
        raise TypeError(
            f"max_iter must be an integer scalar; got shape {max_iter.shape}, dtype {max_iter.dtype}"
        )
    return jnp.asarray(max_iter, jnp.int32)


def not_negative(value: ArrayLike, name: str, dtype: Any) -> Array:
    """A real scalar ≥ 0 in the data's dtype; it may be traced."""
    if isinstance(value, str | bytes) or value is None:
        raise TypeError(f"{name} must be a number; got {value!r}")
    scalar = _floating(value, name, dtype)
    if scalar.shape != ():
        raise ValueError(f"{name} must be a scalar; got shape {scalar.shape}")
    if is_concrete(scalar) and not 0 <= float(scalar) < np.inf:
        raise ValueError(f"{name} must be finite and not negative; got {float(scalar)}")
    return scalar


def ratio(value: ArrayLike, dtype: Any) -> Array:
    """max_ratio as a scalar ≥ 1, possibly infinite; it may be traced."""
    if isinstance(value, str | bytes):
        raise TypeError(f"max_ratio must be a number; got {value!r}")
    scalar = _floating(value, "max_ratio", dtype)
    if scalar.shape != ():
        raise ValueError(f"max_ratio must be a scalar; got shape {scalar.shape}")
    if is_concrete(scalar) and not float(scalar) >= 1:
        raise ValueError(f"max_ratio must be at least 1; got {float(scalar)}")
    return scalar


def flag(value: Any, name: str) -> Array:
    """A boolean scalar; it may be traced."""
    if not isinstance(value, bool | np.bool_ | Array | np.ndarray) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be True or False; got {value!r}")
    if isinstance(value, Array | np.ndarray) and value.dtype != bool:
        raise TypeError(f"{name} must be True or False; got dtype {value.dtype}")
    return jnp.asarray(value)


def choice(value: Any, name: str, options: tuple[str, ...]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {list(options)}; got {value!r}")
    return value


def features(value: Any, n_features: int) -> tuple[int, ...]:
    """Different columns of the data, as non-negative ints in the order given; at least one."""
    values = [value] if isinstance(value, int | np.integer) else list(value)
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | np.integer):
            raise TypeError(f"features must be ints; got {v!r} of type {type(v).__name__}")
        if not -n_features <= v < n_features:
            raise ValueError(f"features must lie between {-n_features} and {n_features - 1}; got {int(v)}")
    columns = tuple(int(v) % n_features for v in values)
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"features must name at least one column, each once; got {values}")
    return columns


def key(value: Any) -> Array:
    """A single PRNG key, typed or raw."""
    typed = isinstance(value, Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = isinstance(value, Array | np.ndarray) and value.dtype == np.uint32 and value.shape == (2,)
    if not (typed and value.shape == ()) and not raw:
        got = f"shape {value.shape}" if typed else f"{value!r}" if np.ndim(value) == 0 else "an array"
        raise TypeError(f"key must be one JAX PRNG key, such as jax.random.key(0); got {got}")
    return value if typed else jax.random.wrap_key_data(jnp.asarray(value), impl="threefry2x32")


def responsibilities(resp: ArrayLike, x: Array) -> Array:
    """resp as (N, K) in X's dtype, finite and not negative where that can be seen."""
    r = _floating(resp, "resp", x.dtype)
    if r.ndim != 2 or r.shape[0] != x.shape[0] or r.shape[1] == 0:
        raise ValueError(
            f"resp must have shape ({x.shape[0]}, n_components), one row for each row of X {x.shape}; "
            f"got shape {r.shape}"
        )
    _finite(r, "resp", "Responsibilities are probabilities.")
    if is_concrete(r) and float(_now(jnp.min, r)) < 0:
        raise ValueError(f"resp must not be negative; got {float(_now(jnp.min, r))}")
    if is_concrete(r) and not float(_now(jnp.max, r)) > 0:
        raise ValueError("resp must not be zero everywhere: no component would be left")
    return r


def prior_parts(
    mean: Any,
    strength: Any,
    dof: Any,
    scale: Any,
    concentration: Any,
    *,
    shape: tuple[int, ...],
    scale_shapes: tuple[tuple[int, ...], ...],
    family_name: str,
    dtype: Any,
) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]:
    """The parts of a prior for K components in D dimensions, shape (K, D), in one dtype; None stays None."""
    for one, other, names in (
        (mean, strength, ("mean", "strength")),
        (dof, scale, ("dof", "scale")),
    ):
        if (one is None) != (other is None):
            given, missing = names if other is None else names[::-1]
            raise ValueError(f"prior.{given} needs prior.{missing} beside it; got None")

    def part(value: Any, name: str, shapes: tuple[tuple[int, ...], ...]) -> Array | None:
        if value is None:
            return None
        a = _floating(value, f"prior.{name}", dtype)
        if a.shape not in shapes:
            wanted = " or ".join(str(s) for s in shapes)
            raise ValueError(
                f"prior.{name} must have shape {wanted} for {shape[0]} components of {shape[1]} features and "
                f"covariance_type={family_name!r}; got shape {a.shape}"
            )
        _finite(a, f"prior.{name}", "A part of the prior that is not wanted is None.")
        return a

    m = part(mean, "mean", ((shape[1],),))
    lam = part(scale, "scale", scale_shapes)
    alpha = part(concentration, "weight_concentration", ((), (shape[0],)))
    if alpha is not None and is_concrete(alpha) and not (np.asarray(alpha) > 0).all():
        raise ValueError(f"prior.weight_concentration must be positive; got {np.asarray(alpha).min()}")
    if lam is not None and is_concrete(lam):
        _semidefinite(np.asarray(lam, np.float64), epsilon(dtype))
    return (
        m,
        None if strength is None else not_negative(strength, "prior.strength", dtype),
        None if dof is None else not_negative(dof, "prior.dof", dtype),
        lam,
        alpha,
    )


def _semidefinite(scale: np.ndarray, eps: float) -> None:
    """Raise unless the prior's scale, a matrix or the diagonal of one, is positive semi-definite."""
    diagonal = np.diagonal(scale) if scale.ndim == 2 else scale
    if (diagonal < 0).any():
        raise ValueError(f"prior.scale must not be negative; got {diagonal.min()}")
    if scale.ndim < 2:
        return
    widths = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    correlation = scale / widths[:, None] / widths[None, :]
    if (np.abs(correlation - correlation.T) > 1e-4).any():
        raise ValueError("prior.scale must be a symmetric matrix; got one that is not")
    lowest = float(np.linalg.eigvalsh(correlation).min())
    if lowest < -16 * len(widths) * eps:
        raise ValueError(
            f"prior.scale must be positive semi-definite; got a correlation of eigenvalue {lowest}"
        )


def mixture_parts(weights: ArrayLike, means: ArrayLike) -> tuple[Array, Array]:
    """weights (K,) that sum to 1, and means (K, D), in one dtype."""
    mu = _floating(means, "means")
    w = _floating(weights, "weights")
    if mu.ndim != 2 or 0 in mu.shape:
        raise ValueError(f"means must be a 2-D array (n_components, n_features); got shape {mu.shape}")
    if w.shape != mu.shape[:1]:
        raise ValueError(
            f"weights must have shape {mu.shape[:1]}, one for each row of means {mu.shape}; got {w.shape}"
        )
    _finite(mu, "means", "Give every component a place.")
    _finite(w, "weights", "Weights are probabilities.")
    if is_concrete(w):
        values = np.asarray(w)
        if (values < 0).any():
            raise ValueError(f"weights must not be negative; got {values.min()}")
        if abs(values.sum() - 1) > 1e-3:
            raise ValueError(f"weights must sum to 1; got {values.sum()}")
    dtype = jnp.promote_types(mu.dtype, w.dtype)
    return w.astype(dtype), mu.astype(dtype)


def covariances(value: ArrayLike, shape: tuple[int, ...], family_name: str, dtype: Any) -> Array:
    """covariances of the shape that a family asks for; matrices symmetric, all of it finite."""
    cov = _floating(value, "covariances", dtype)
    if cov.shape != shape:
        raise ValueError(
            f"covariances must have shape {shape} for covariance_type={family_name!r}; got shape {cov.shape}"
        )
    _finite(cov, "covariances", "Give every component a spread.")
    if is_concrete(cov) and cov.ndim >= 2 and len(shape) >= 2 and shape[-1] == shape[-2]:
        matrices = np.asarray(cov)
        widths = np.sqrt(np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)))
        gap = np.abs(matrices - np.swapaxes(matrices, -1, -2))
        if (
            family_name.removesuffix("-equal") != "diag"
            and (gap > 1e-4 * widths[..., :, None] * widths[..., None, :]).any()
        ):
            raise ValueError("covariances must be symmetric matrices; got matrices that are not")
    return cov


def positive_definite(scale: Any, *, shared: bool) -> None:
    """Raise where a family's `from_covariance` gave NaN, naming the component."""
    for leaf in jax.tree.leaves(scale):
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf)).all():
            bad = np.flatnonzero(~np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(1))
            which = "the shared covariance" if shared else f"component {bad[0]}"
            raise ValueError(
                f"covariances must be positive definite; {which} is not. "
                "Add a small multiple of the identity, or use fewer parameters (covariance_type='diag')."
            )


def single_mixture(log_weights: Array, means: Array, scale: Any, like: Any = None) -> None:
    """Raise unless the arrays are those of one mixture, finite where that can be seen.

    `like` is what the family's own arrays should look like (`jax.eval_shape`), or None.
    """
    if means.ndim != 2 or log_weights.shape != means.shape[:1]:
        raise ValueError(
            "params must hold one mixture, log_weights (K,) and means (K, D); got shapes "
            f"{log_weights.shape} and {means.shape}. Use jax.vmap for a batch, or best(results) to pick one."
        )
    if like is not None:
        wanted, got = ([a.shape for a in jax.tree.leaves(t)] for t in (like, scale))
        if wanted != got:
            raise ValueError(
                f"params.scale must have shapes {wanted} for params.means of shape {means.shape}; got {got}"
            )
    for leaf, name in [(means, "params.means"), *((s, "params.scale") for s in jax.tree.leaves(scale))]:
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"{name} must be finite; build params with make_params, which checks them")
    if is_concrete(log_weights):
        lw = np.asarray(log_weights)
        if np.isnan(lw).any() or not (lw > -np.inf).any() or (lw == np.inf).any():
            raise ValueError(f"params.log_weights must be log-probabilities, not all -inf; got {lw}")


def fraction(value: ArrayLike, name: str, dtype: Any) -> Array:
    """A real scalar strictly between 0 and 1; it may be traced."""
    scalar = not_negative(value, name, dtype)
    if is_concrete(scalar) and not 0 < float(scalar) < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1; got {float(scalar)}")
    return scalar


def rows(value: Any, n_samples: int) -> Array:
    """Row indices (M,) as int32, from 0 to N − 1 where that can be seen."""
    index = value if isinstance(value, Array) else np.asarray(value)
    if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"rows must be a sequence of row indices; got {value!r}")
    if is_concrete(index) and index.size and not 0 <= int(index.min()) <= int(index.max()) < n_samples:
        raise ValueError(
            f"rows must be from 0 to {n_samples - 1}; got {int(index.min())} to {int(index.max())}"
        )
    return jnp.asarray(index, jnp.int32)
