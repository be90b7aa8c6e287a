"""Argument checks: shapes, dtypes and ranges, and the words of every error.

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

from jaxgmm._host_arrays import host_array, warn_of_rounding
from jaxgmm.kernels.manual_axes import replicated
from jaxgmm.kernels.programs import is_concrete as is_concrete


def _now(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function of arrays at once where they are concrete.

    Data that a user's `jit` closes over are concrete although a trace is under way; plain operations on them
    would be staged into it, and could not be looked at.
    """
    if not is_concrete(*values):
        return function(*values)
    with jax.ensure_compile_time_eval():
        return function(*values)


def floating(value: ArrayLike, name: str, wanted: Any = None) -> Array:
    """Any real array as float32 or, where JAX allows it, float64; or in the dtype `wanted`."""
    value = replicated(value) if isinstance(value, Array) else host_array(value, name)
    if not all(isinstance(n, int) for n in value.shape):  # of `jax.export`
        raise ValueError(
            f"{name} must not have a symbolic size, for how rows are divided into blocks depends on it; got "
            f"shape {value.shape}. Export a fixed size, with rows of sample_weight 0 to fill it; or, of a "
            "density, one row under a vmap: vmap(lambda row: log_prob(params, row[None])[0])"
        )
    dtype = value.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.issubdtype(dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must hold real numbers; got dtype {dtype}")
    if wanted is None:
        widest = jnp.result_type(float)
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4
        wanted = jnp.float32 if narrow else widest
    if isinstance(value, np.ndarray):  # converted by NumPy, for which nothing is compiled
        with np.errstate(over="ignore"):
            return _now(jax.device_put, value.astype(jax.dtypes.canonicalize_dtype(wanted)))
    return _now(lambda a: jnp.asarray(a, wanted), value)


def _seen(a: Array) -> Any:
    """The numbers of a concrete array: as a NumPy array where that copies nothing between devices."""
    on_host = a.is_fully_addressable and all(d.platform == "cpu" for d in a.devices())
    return np.asarray(a) if on_host else a


def _first(is_bad: Callable[[Any], Any], values: Any) -> int | None:
    """The first place in a flattened array of which a function says that it is bad; None if there is none."""

    def found(values: Any) -> tuple[Any, Any]:
        bad = is_bad(values).reshape(-1)
        return bad.any(), bad.argmax()

    some, first = _now(found, values)
    return int(first) if some else None


def finite(a: Array, name: str, advice: str) -> None:
    """Raise where a number can be seen not to be finite, with its place and some advice."""
    if not is_concrete(a):
        return
    values = _seen(a)
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum that is finite has finite terms, and to make it takes no memory.
        if np.isfinite(float(_now(lambda v: v.sum(), values))):
            return
    first = _first(lambda v: ~(np if isinstance(v, np.ndarray) else jnp).isfinite(v), values)
    if first is not None:
        at = tuple(int(i) for i in np.unravel_index(first, a.shape))
        place = f"row {at[0]}, column {at[1]}" if a.ndim == 2 else f"index {at[0] if len(at) == 1 else at}"
        # Of an array over several processes only some of the numbers can be looked at.
        got = f"; got {np.asarray(a)[at]} at" if a.is_fully_addressable else ", and is not at"
        raise ValueError(f"{name} must be finite{got} {place}. {advice}")


def no_infinity(a: Array, name: str) -> None:
    """Raise where an entry can be seen to be infinite."""
    if is_concrete(a) and (first := _first(lambda v: abs(v) == np.inf, _seen(a))) is not None:
        at = tuple(int(i) for i in np.unravel_index(first, a.shape))
        raise ValueError(
            f"{name} must be finite or NaN; got an infinite entry at row {at[0]}, column {at[1]}"
        )


def observed(x: Array) -> Array | None:
    """(N, D) bool, which entries are not NaN; None where that can be seen to be all of them."""
    if not is_concrete(x):
        return ~jnp.isnan(x)
    seen = ~np.isnan(np.asarray(x))
    return None if seen.all() else jax.device_put(seen)


def noise(value: ArrayLike | None, x: Array) -> Array | None:
    """Variances (N, E) or covariances (N, E, E) of the errors in x; None where they can be seen to be 0."""
    if value is None:
        return None
    s, (n, e) = floating(value, "noise", x.dtype), x.shape
    if s.shape in ((), (e,)):
        s = _now(lambda a: jnp.broadcast_to(a, (n, e)), s)
    if s.shape not in ((n, e), (n, e, e)):
        raise ValueError(
            f"noise must be variances of shape {(n, e)}, or {(e,)} for all rows, or covariances of shape "
            f"{(n, e, e)}; got shape {s.shape}"
        )
    if not is_concrete(s):
        return s
    values = np.asarray(s)
    if np.isnan(values).any() or (s.ndim == 3 and not np.isfinite(values).all()):
        raise ValueError("noise must not be NaN, and covariances of noise must be finite")
    variances = values if s.ndim == 2 else np.diagonal(values, axis1=1, axis2=2)
    if (variances < 0).any():
        raise ValueError(f"noise must not be negative; got {variances.min()}")
    if s.ndim == 3:
        size = np.sqrt(variances[:, :, None] * variances[:, None, :])
        if (np.abs(values - values.swapaxes(1, 2)) > 1e-4 * size).any():
            raise ValueError("covariances of noise must be symmetric")
        least = np.linalg.eigvalsh(values.astype(np.float64))[:, 0]
        bad = np.flatnonzero(least <= 0)
        if (values != 0).any() and bad.size:
            raise ValueError(
                f"covariances of noise must be positive definite; that of row {bad[0]} is not. Exact entries "
                "have a variance of 0: give variances, or a small multiple of the identity"
            )
    return s if (values != 0).any() else None


def projection(value: ArrayLike | None, x: Array) -> Array | None:
    """Matrices (N, E, D) for x (N, E)."""
    if value is None:
        return None
    r, (n, e) = floating(value, "projection", x.dtype), x.shape
    if r.ndim == 2:
        r = _now(lambda a: jnp.broadcast_to(a[None], (n, *a.shape)), r)
    if r.ndim != 3 or r.shape[:2] != (n, e) or r.shape[2] == 0:
        raise ValueError(
            f"projection must have shape ({n}, {e}, n_features), or ({e}, n_features) for all rows, for X of "
            f"shape {x.shape}; got shape {r.shape}"
        )
    finite(r, "projection", "An entry that is not measured is NaN in X, with missing='nan'.")
    return r


def _integers(value: Any, x: Array, name: str, meaning: str) -> Any:
    """An integer for each row (N,), −1 with a meaning of its own."""
    given: Any = value if isinstance(value, Array) else np.asarray(value)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, -1 {meaning}; got dtype {given.dtype}")
    if given.shape != x.shape[:1]:
        raise ValueError(f"{name} must have shape {x.shape[:1]}, one for each row; got shape {given.shape}")
    return given


def labels(value: ArrayLike | None, x: Array) -> Array | None:
    """Labels (N,) int32, −1 for unknown; None where all can be seen to be."""
    if value is None:
        return None
    given = _integers(value, x, "labels", "where unknown")
    if not is_concrete(given):
        return given.astype(jnp.int32)
    known = np.asarray(given)
    if (known < -1).any():
        raise ValueError(f"labels must be at least -1, which stands for unknown; got {known.min()}")
    return None if (known < 0).all() else _now(jax.device_put, known.astype(np.int32))


def groups(value: ArrayLike | None, x: Array) -> Array | None:
    """Groups (N,) as int32 numbers of rows, a row's own where it is −1; None where all are on their own."""
    if value is None:
        return None
    given = _integers(value, x, "groups", "for a row on its own")
    if not is_concrete(given):
        raise TypeError("groups must be concrete: they are found before a fit is compiled")
    known, rows = np.asarray(given), np.arange(x.shape[0])
    _, first, inverse = np.unique(known, return_index=True, return_inverse=True)
    number = np.where(known < 0, rows, first[inverse.reshape(-1)])
    alone = (number == rows).all()
    return None if alone else _now(jax.device_put, number.astype(np.int32))


def log_prior(value: ArrayLike | None, x: Array) -> Array | None:
    """(N, K) what is added to log joint densities; None where it can be seen to be 0."""
    if value is None:
        return None
    a = floating(value, "log_prior", x.dtype)
    if a.ndim != 2 or a.shape[0] != x.shape[0] or a.shape[1] == 0:
        raise ValueError(f"log_prior must have shape ({x.shape[0]}, n_components); got shape {a.shape}")
    if not is_concrete(a):
        return a
    values = np.asarray(a)
    if np.isnan(values).any() or (values == np.inf).any():
        raise ValueError("log_prior must be logarithms: finite, or -inf where a component is ruled out")
    ruled_out = (values == -np.inf).all(1)
    if ruled_out.any():
        raise ValueError(f"log_prior rules every component out for row {int(ruled_out.argmax())}")
    return a if (values != 0).any() else None


_NOT_FINITE = "Give missing entries to observe(X, missing='nan'); drop other such rows, or scale the data."
_SUM = 1e-3  # how far from 1 probabilities may sum that were meant to, beside their rounding


def data(X: ArrayLike, *, n_features: int | None = None, name: str = "X", missing: bool = False) -> Array:
    """X as a floating array (N, D), N ≥ 1, D ≥ 1, finite where that can be seen, or NaN where `missing`."""
    if hasattr(X, "is_plain"):  # `Data`, whose module imports this one
        raise TypeError(
            f"{name} is what observe returned, which this function does not take: give it complete rows, as "
            "an array"
        )
    if missing and not isinstance(X, Array):
        X = host_array(X, name, missing=True)
    x = floating(X, name)
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
    if missing:
        no_infinity(x, name)
    else:
        finite(x, name, _NOT_FINITE)
    if not isinstance(X, Array) and not missing:
        warn_of_rounding(host_array(X, name), x, name)
    return x


def weight(sample_weight: ArrayLike | None, x: Array) -> Array | None:
    """sample_weight as (N,) in X's dtype: finite, not negative, not all zero; None stays None."""
    if sample_weight is None:
        return None
    w = floating(sample_weight, "sample_weight", x.dtype)
    if w.shape != x.shape[:1]:
        raise ValueError(
            f"sample_weight must have shape {x.shape[:1]}, one weight for each row of X {x.shape}; "
            f"got shape {w.shape}"
        )
    finite(w, "sample_weight", "A weight of 0 leaves a row out.")
    if is_concrete(w):
        low, high = map(float, _now(lambda a: (a.min(), a.max()), _seen(w)))
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
        return jax.device_put(np.int32(min(int(max_iter), np.iinfo(np.int32).max)))
    if max_iter.shape != () or not jnp.issubdtype(max_iter.dtype, jnp.integer):
        raise TypeError(
            f"max_iter must be an integer scalar; got shape {max_iter.shape}, dtype {max_iter.dtype}"
        )
    return jnp.asarray(max_iter, jnp.int32)


def not_negative(value: ArrayLike, name: str, dtype: Any) -> Array:
    """A real scalar ≥ 0 in the data's dtype; it may be traced."""
    if isinstance(value, str | bytes) or value is None:
        raise TypeError(f"{name} must be a number; got {value!r}")
    scalar = floating(value, name, dtype)
    if scalar.shape != ():
        raise ValueError(f"{name} must be a scalar; got shape {scalar.shape}")
    if is_concrete(scalar) and not 0 <= float(scalar) < np.inf:
        raise ValueError(f"{name} must be finite and not negative; got {float(scalar)}")
    return scalar


def below_one(value: ArrayLike, name: str, dtype: Any, shape: tuple[int, ...] = ()) -> Array:
    """Real numbers from 0 to below 1, one or several, in the data's dtype; they may be traced."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} must be a number from 0 to below 1; got {value!r}")
    share = floating(value, name, dtype)
    if share.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got {share.shape}")
    if is_concrete(share) and not ((np.asarray(share) >= 0) & (np.asarray(share) < 1)).all():
        raise ValueError(f"{name} must be from 0 to below 1: a share of the rows; got {np.asarray(share)}")
    return share


def ratio(value: ArrayLike, dtype: Any) -> Array:
    """max_ratio as a scalar ≥ 1, possibly infinite; it may be traced."""
    if isinstance(value, str | bytes):
        raise TypeError(f"max_ratio must be a number; got {value!r}")
    scalar = floating(value, "max_ratio", dtype)
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
    return value if isinstance(value, Array) else jax.device_put(np.asarray(value))


def tolerance(tol: ArrayLike | None, n_samples: int, dtype: Any) -> Array:
    """tol, or if None a hundredth of a standard error: 0.01 / √N."""
    return not_negative(0.01 / max(n_samples, 1) ** 0.5 if tol is None else tol, "tol", dtype)


def iteration(
    tol: ArrayLike | None, max_iter: Any, reg_covar: ArrayLike, accelerate: Any, dtype: Any, n_samples: int
) -> tuple[Array, Array, Array, Array]:
    """The numbers that every fit takes: tol, max_iter, reg_covar, accelerate."""
    return (
        tolerance(tol, n_samples, dtype),
        step_limit(max_iter),
        not_negative(reg_covar, "reg_covar", dtype),
        flag(accelerate, "accelerate"),
    )


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
    return value if typed else jax.random.wrap_key_data(value, impl="threefry2x32")


def responsibilities(resp: ArrayLike, x: Array, w: Array | None = None) -> Array:
    """resp as (N, K) in X's dtype: finite, not negative, and of sum 1 in each row, where that can be seen.

    Rows of weight 0 count for nothing, and their sums may be anything.
    """
    r = floating(resp, "resp", x.dtype)
    given = getattr(resp, "dtype", r.dtype)
    rounding = float(jnp.finfo(given).eps) if jnp.issubdtype(given, jnp.floating) else 0.0
    if r.ndim != 2 or r.shape[0] != x.shape[0] or r.shape[1] == 0:
        raise ValueError(
            f"resp must have shape ({x.shape[0]}, n_components), one row for each row of X {x.shape}; "
            f"got shape {r.shape}"
        )
    finite(r, "resp", "Responsibilities are probabilities.")
    if is_concrete(r):
        low, high = map(float, _now(lambda a: (a.min(), a.max()), _seen(r)))
        if low < 0:
            raise ValueError(f"resp must not be negative; got {low}")
        if not high > 0:
            raise ValueError("resp must not be zero everywhere: no component would be left")
    if is_concrete(r, w):
        # Each of K probabilities was rounded once, by half an ε of itself at most; their sum in the dtype of
        # x adds K ε of that.
        allowed = _SUM + rounding + r.shape[1] * float(jnp.finfo(r.dtype).eps)
        counts = True if w is None else _now(lambda a: a > 0, _seen(w))
        row = _first(lambda a: (abs(a.sum(1) - 1) > allowed) & counts, _seen(r))
        if row is not None:
            total = float(_now(lambda a: a[row].sum(), _seen(r)))
            raise ValueError(
                f"resp must sum to 1 in every row; row {row} sums to {total:.6g}. Divide by the "
                "sums: resp / resp.sum(1, keepdims=True). A row that is not to count has sample_weight 0."
            )
    return r


def mixture_parts(weights: ArrayLike, means: ArrayLike) -> tuple[Array, Array]:
    """weights (K,) that sum to 1, and means (K, D), in one dtype."""
    mu, w = floating(means, "means"), floating(weights, "weights")
    dtype = jnp.promote_types(mu.dtype, w.dtype)
    mu, w = floating(mu, "means", dtype), floating(w, "weights", dtype)
    if mu.ndim != 2 or 0 in mu.shape:
        raise ValueError(f"means must be a 2-D array (n_components, n_features); got shape {mu.shape}")
    if w.shape != mu.shape[:1]:
        raise ValueError(
            f"weights must have shape {mu.shape[:1]}, one for each row of means {mu.shape}; got {w.shape}"
        )
    finite(mu, "means", "Give every component a place.")
    finite(w, "weights", "Weights are probabilities.")
    if is_concrete(w):
        values = np.asarray(w)
        if (values < 0).any():
            raise ValueError(f"weights must not be negative; got {values.min()}")
        if abs(values.sum() - 1) > 1e-3:
            raise ValueError(f"weights must sum to 1; got {values.sum()}")
    return w, mu


def covariances(
    value: ArrayLike, shape: tuple[int, ...], structure: str, dtype: Any, *, matrices: bool
) -> Array:
    """Covariances of the shape that a structure asks for, symmetric if matrices, all of it finite."""
    cov = floating(value, "covariances", dtype)
    if cov.shape != shape:
        raise ValueError(
            f"covariances must have shape {shape} for covariance_type={structure!r}; got shape {cov.shape}"
        )
    finite(cov, "covariances", "Give every component a spread.")
    if is_concrete(cov) and matrices:
        values = np.asarray(cov)
        widths = np.sqrt(np.abs(np.diagonal(values, axis1=-2, axis2=-1)))
        gap = np.abs(values - np.swapaxes(values, -1, -2))
        if (gap > 1e-4 * widths[..., :, None] * widths[..., None, :]).any():
            raise ValueError("covariances must be symmetric matrices; got matrices that are not")
    return cov


def positive_definite(scale: Any, *, shared: bool) -> None:
    """Raise where a structure's `from_covariance` gave NaN, naming the component."""
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

    `like` is what the component's own arrays should look like (`jax.eval_shape`), or None.
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
    return index.astype(jnp.int32) if isinstance(index, Array) else jax.device_put(index.astype(np.int32))
