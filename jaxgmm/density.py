"""Densities of a mixture: log-densities, responsibilities, labels, scores and samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm._host_arrays import padded
from jaxgmm.components.base import Component, Seen
from jaxgmm.components.gaussian import finite_length
from jaxgmm.data import Data, observe
from jaxgmm.kernels import observed
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.kept_share import amount, kept_shares
from jaxgmm.kernels.linalg import cholesky, einsum
from jaxgmm.kernels.programs import is_concrete, jit
from jaxgmm.mixture import GMMParams, cast, log_normaliser, scale_like

R = TypeVar("R")


def log_constants(params: GMMParams) -> tuple[Array, Array]:
    """log π_k and `log_normaliser` together (K,), less their largest (), and that one.

    It can be thousands of nats, of features of small scale: what all components share is added after the
    responsibilities are made, or it would round them.
    """
    constant = params.log_weights + log_normaliser(params)
    largest = lax.stop_gradient(constant.max())
    common = jnp.where(jnp.isfinite(largest), largest, 0)
    return constant - common, common


def shares_of(joint: Array) -> tuple[Array, Array, Array]:
    """The E-step's normalisation of log joint densities (K, B), of which in each column one is finite.

    Returns:
      Shares (K, B), exponentials that are not yet divided by their sums; these sums (B,), and the logarithm
      (B,) that was taken out: responsibilities are shares / total, and log p(x) = top + log(total).
    """
    top = lax.stop_gradient(joint.max(0))
    shares = jnp.exp(joint - top[None, :])
    return shares, shares.sum(0), top


def _exponents(params: GMMParams, x: Array, on: Array) -> tuple[Array, Array]:
    """The exponents of the components' densities (K, B) as relative (K, B) + offset (B,); see `Component`."""
    c = params.component
    return c.log_density(c, c.prepare(c, params.means, params.scale), x.T, on)


def joint(params: GMMParams, rows: Array | Data) -> tuple[Array, Array]:
    """log π_k f(x | μ_k, θ_k) = relative (K, B) + offset (B,), where relative never overflows to all −inf.

    Of rows (B, D), or of `Data`, with what is known of the components they come from.
    """
    if isinstance(rows, Data):
        known = rows.known(params.n_components)
        if not rows.is_complete:
            look = observed.viewer(params, rows).look(rows.rows)
            return look.joint(params.log_weights, known), look.offset
        relative, offset = joint(params, rows.x)
        return relative if known is None else relative + known, offset
    x = rows
    relative, offset = _exponents(params, x, params.log_weights > -jnp.inf)
    constant, common = log_constants(params)
    return constant[:, None] + relative, common + offset


def posterior(params: GMMParams, rows: Array | Data) -> tuple[Array, Array]:
    """The E-step of one block: resp (B, K) and log p(x) (B,)."""
    relative, offset = joint(params, rows)
    shares, total, top = shares_of(relative)
    return (shares / total[None, :]).T, top + jnp.log(total) + offset


def _component(params: GMMParams, rows: Array | Data) -> Array:
    if isinstance(rows, Data):
        if not rows.is_complete:
            look = observed.viewer(params, rows).look(rows.rows)
            return (look.relative + look.offset[None, :]).T
        rows = rows.x
    x = rows
    relative, offset = _exponents(params, x, jnp.ones(params.n_components, bool))
    return (log_normaliser(params)[:, None] + (relative + offset[None, :])).T


def check_mixture(params: GMMParams) -> None:
    """Raise unless it is one mixture whose arrays fit each other."""
    if not isinstance(params, GMMParams):
        hint = "; pass result.params" if isinstance(getattr(params, "params", None), GMMParams) else ""
        raise TypeError(f"params must be GMMParams; got {type(params).__name__}{hint}")
    if not all(
        hasattr(a, "shape") for a in (params.log_weights, params.means, *jax.tree.leaves(params.scale))
    ):
        raise TypeError("params must hold arrays; build them with make_params(weights, means, covariances)")
    like = scale_like(params.component, *params.means.shape) if params.means.ndim == 2 else None
    validate.single_mixture(params.log_weights, params.means, params.scale, like)


def check_gaussian(params: GMMParams, what: str) -> None:
    """Raise unless it is one mixture of Gaussian components, which `what` needs."""
    check_mixture(params)
    if not params.component.is_gaussian:
        raise ValueError(f"{what} needs Gaussian components; params have {params.component.name!r}")


def inputs(params: GMMParams, X: ArrayLike) -> tuple[GMMParams, Array]:
    """One checked mixture and its complete rows (N, D), both in the data's dtype."""
    check_mixture(params)
    x = validate.data(X, n_features=params.n_features)
    return cast(params, x.dtype), x


def data_of(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None
) -> tuple[GMMParams, Data]:
    """One checked mixture, and rows that it can be fitted to or evaluated at, in one dtype."""
    check_mixture(params)
    data = get_data(X, sample_weight, n_features=params.n_features)
    check_accepts(data, params.component, params.n_components)
    return cast(params, data.x.dtype), data


def get_data(
    X: ArrayLike | Data, sample_weight: ArrayLike | None = None, *, n_features: int | None = None
) -> Data:
    """Rows and weights, checked. `Data` has been checked by `observe`, and brings its own weights."""
    if not isinstance(X, Data):
        x = validate.data(X, n_features=n_features)
        return Data(x, validate.weight(sample_weight, x))
    if sample_weight is not None:
        raise TypeError("sample_weight belongs to the data: give it to observe(X, sample_weight=...)")
    if n_features is not None and X.n_features != n_features:
        raise ValueError(f"X must have the {n_features} features of params; got Data of {X.n_features}")
    return X


_IN_WORDS = {"missing": "missing entries", "noise": "noise", "projection": "projections"}


def check_component(component: Component, *given: str) -> None:
    """Raise where a component has no density for rows with what is given: words of `Component.accepts`."""
    for what in given:
        if what not in component.accepts:
            words = f"{component.name!r} has no density for rows with {_IN_WORDS[what]}"
            raise ValueError(f"{words}; use Gaussian components")


def check_accepts(data: Data, component: Component, n_components: int | None = None) -> None:
    """Raise where a component has no density for such rows, or the labels do not fit its number."""
    given = zip(_IN_WORDS, data.view, strict=True)
    check_component(component, *(what for what, array in given if array is not None))
    if n_components is not None:
        check_labels(data, n_components)


def check_labels(data: Data, n_components: int) -> None:
    """Raise where what is known of the labels is not of so many components."""
    if data.log_prior is not None and data.log_prior.shape[1] != n_components:
        raise ValueError(
            f"log_prior must have a column for each of {n_components} components; "
            f"got {data.log_prior.shape[1]}"
        )
    if data.label is not None and is_concrete(data.label):
        largest = int(np.asarray(data.label).max())
        if largest >= n_components:
            raise ValueError(f"labels must be below n_components = {n_components}; got {largest}")


def check_ungrouped(data: Data, what: str) -> None:
    """Raise where rows are in groups, of which `what` knows nothing."""
    if data.group is not None:
        raise ValueError(f"rows in groups are not for {what}: leave groups out of observe")


def check_sizes(data: Data, sizes: Sequence[int]) -> None:
    """Raise where numbers of components do not fit the labels, or starts cannot be made of the rows."""
    for n_components in sizes:
        check_labels(data, n_components)
    if data.view.projection is not None:
        raise ValueError(
            "no starts can be made of projected rows: fit from parameters of your own, by fit(params, data) "
            "or fit_restarts(..., init=params)"
        )


def padded_data(data: Data) -> Data:
    """Rows and their weights; few rows with zeros below, of weight 0. As they are, where more is known."""
    x, w = data.x, data.weight
    if not data.is_plain:
        return data
    below = x if w is not None and not is_concrete(w) else padded(x)
    if below is x:
        return data
    weight = np.ones(x.shape[0], x.dtype) if w is None else np.asarray(w)
    placed: Data = jax.device_put(Data(below, padded(weight)))
    return placed


def of_rows(program: Callable[[GMMParams, Data], R], params: GMMParams, X: ArrayLike | Data) -> R:
    """What a program gives of each row. Few are padded, so that other numbers of them compile nothing."""
    params, data = data_of(params, X)
    data = dataclasses.replace(data, weight=None, pattern=None, patterns=None)
    x = data.x
    below = padded(x) if is_concrete(params) and data.is_plain else x
    found = program(params, dataclasses.replace(data, x=below))
    if below is x:
        return found
    # Slices of a JAX array are programs of their own.
    kept: R = jax.tree.map(lambda a: jax.device_put(np.asarray(a)[: x.shape[0]]), found)
    return kept


def _map(body: Callable[[Data], R], params: GMMParams, data: Data) -> R:
    """A function of a block of rows, over all of them."""
    if data.is_complete:
        rows = block_rows(data.x.shape[0], *params.means.shape)
    else:
        rows = observed.rows_for(data, params.covariance, params.n_components)
    found: R = map_rows(body, data, block_size=rows)
    return found


def groups(params: GMMParams, data: Data) -> tuple[Array, Array, Array]:
    """The E-step of groups of rows, by number: resp (N, K), log p (N,), and which groups there are (N,).

    A row of weight 0 counts for nothing.
    """
    assert data.group is not None
    n = data.x.shape[0]
    rows = dataclasses.replace(data.by_row(), group=None, weight=None)
    flat = dataclasses.replace(params, log_weights=jnp.where(params.log_weights > -jnp.inf, 0, -jnp.inf))
    each = _map(lambda b: _sum_of(joint(flat, b)), flat, rows)
    counts = jnp.ones(n, bool) if data.weight is None else data.weight > 0
    each = jnp.where(counts[:, None], each, 0)
    total = jax.ops.segment_sum(each, data.group, n) + params.log_weights[None, :]
    exists = jax.ops.segment_sum(counts.astype(jnp.int32), data.group, n) > 0
    shares, sums, top = shares_of(jnp.where(exists[:, None], total, params.log_weights[None, :]).T)
    return (shares / sums[None, :]).T, jnp.where(exists, top + jnp.log(sums), 0), exists


def _sum_of(parts: tuple[Array, Array]) -> Array:
    return (parts[0] + parts[1][None, :]).T


@jit
def posterior_of(params: GMMParams, data: Data) -> tuple[Array, Array]:
    """The E-step of all rows, a block at a time; log_weights need not sum to 1."""
    if data.group is not None:
        resp, log_prob, _ = groups(params, data)
        size = jax.ops.segment_sum(jnp.ones_like(log_prob), data.group, log_prob.shape[0])
        return resp[data.group], (log_prob / jnp.maximum(size, 1))[data.group]
    return _map(lambda rows: posterior(params, rows), params, data)


@jit
def _log_prob(params: GMMParams, data: Data) -> Array:
    if data.group is not None:
        return posterior_of(params, data)[1]
    return _map(lambda rows: posterior(params, rows)[1], params, data)


@jit
def _score(params: GMMParams, data: Data) -> Array:
    w, values = data.weight, _log_prob(params, dataclasses.replace(data, weight=None))
    if w is None:
        return values.mean()
    # A sample of weight 0 may be so far away that its log-density is −inf.
    return (w * jnp.where((w > 0) | jnp.isfinite(values), values, 0)).sum() / w.sum()


@jit
def _predict(params: GMMParams, data: Data) -> Array:
    if data.group is not None:
        return jnp.argmax(posterior_of(params, data)[0], axis=1).astype(jnp.int32)

    def labels(rows: Data) -> Array:
        return jnp.argmax(joint(params, rows)[0], axis=0).astype(jnp.int32)

    return _map(labels, params, data)


@jit
def _component_log_prob(params: GMMParams, data: Data) -> Array:
    return _map(lambda rows: _component(params, rows), params, data)


def log_prob(params: GMMParams, X: ArrayLike | Data) -> Array:
    """(N,) log p(x_n) = log Σ_k π_k f(x_n | μ_k, θ_k), in nats.

    Of `Data` with missing entries it is the density of the observed ones, with noise that of what is
    measured. With labels it is that of row and label, log π_k f(x_n | μ_k, θ_k) for label k.
    Differentiable in params and X; gradients are finite, also at switched-off components.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.log_prob(params, [[0.0]])[0]), 4)
      -0.9189
    """
    return of_rows(_log_prob, params, X)


def component_log_prob(params: GMMParams, X: ArrayLike | Data) -> Array:
    """(N, K) log N(x_n | μ_k, Σ_k), each component's own log-density, without its mixing weight.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.component_log_prob(params, [[0.0]]).round(4).tolist()
      [[-0.9189..., -1.4189...]]
    """
    return of_rows(_component_log_prob, params, X)


def responsibilities(params: GMMParams, X: ArrayLike | Data) -> Array:
    """(N, K) posterior probabilities of the components; rows sum to 1. `e_step` without log_prob.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.responsibilities(params, [[0.0]]).tolist()
      [[0.5, 0.5]]
    """
    return of_rows(posterior_of, params, X)[0]


def predict(params: GMMParams, X: ArrayLike | Data) -> Array:
    """(N,) int32 labels: the component of the largest responsibility.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.predict(params, [[-3.0], [0.1]]).tolist()
      [0, 1]
    """
    return of_rows(_predict, params, X)


def score(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None) -> Array:
    """() the mean log-likelihood per unit of sample weight, Σ w_n log p(x_n) / Σ w_n, in nats.

    Args:
      params: the mixture.
      X: (N, D), or `Data`.
      sample_weight: (N,) or None for ones; a sample of weight 0 does not count, wherever it lies.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.score(params, [[0.0], [9.0]], [1.0, 0.0])), 4)
      -0.9189
    """
    params, data = data_of(params, X, sample_weight)
    data = dataclasses.replace(data, pattern=None, patterns=None)
    return _score(params, padded_data(data) if is_concrete(params) else data)


def _share(params: GMMParams, data: Data, which: int) -> Array:
    """(N,) Σ_k r_nk times the probability that a row of k is an outlier (which = 0), or is none (1)."""
    c, d = params.component, params.n_features

    def block(rows: Data) -> Array:
        if rows.is_complete:
            y = params.covariance.whitener(params.scatter)(observed.residuals_of(params.means, rows))
            length = finite_length(jnp.square(y).sum(1))
            seen = Seen(y, length, jnp.zeros_like(length), jnp.zeros_like(length[0]), None, float(d))
        else:
            seen = observed.viewer(params, rows).look(rows.rows).seen
        assert c.outlier is not None
        return (posterior(params, rows)[0].T * c.outlier(c, params.scale, seen)[which]).sum(0)

    return _map(block, params, data)


@jit
def _outliers(params: GMMParams, data: Data) -> Array:
    return _share(params, data, 0)


@jit
def inliers(params: GMMParams, data: Data) -> Array:
    """1 − `outliers`, without its rounding: rows far out still differ."""
    return _share(params, data, 1)


@jit
def _trimmed(params: GMMParams, data: Data, trim: Array) -> Array:
    log_density = _log_prob(params, dataclasses.replace(data, weight=None))
    return 1 - kept_shares(log_density, data.weight, trim)


def outliers(params: GMMParams, X: ArrayLike | Data, *, trim: ArrayLike | None = None) -> Array:
    """(N,) how much each row is an outlier, from 0 to 1: Σ_k r_nk times what component k says of it.

    With a uniform background it is the probability of coming from there. A contaminated component gives the
    probability that the row is one of its bad ones. Gaussian and t components know of no outliers: there it
    is the probability that a row of N(μ_k, Σ_k) lies nearer to the centre, with the scatter matrix Σ_k of a
    t, so that of rows from a Gaussian mixture a share of 1 % is above 0.99. Incomplete rows are judged by
    their observed entries.

    With `trim` it says instead which rows a trimmed fit leaves out: 1 for the rows of lowest density of the
    mixture, 0 for the others, and a part for rows of equal density at the threshold or where a sample weight
    is trimmed in part. Then `1 - outliers(params, X, trim=α)` is a `sample_weight` of the kept rows for
    `score`, `bic` and the functions of `jaxgmm.inference`.

    Args:
      params: the mixture.
      X: (N, D), or `Data`, whose weights count with trim.
      trim: None, or the share of the rows that is trimmed, as in `fit`.

    Raises:
      ValueError, TypeError: as `log_prob`; for a component of one's own that does not say what an outlier is.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> jaxgmm.outliers(params, [[0.0], [1.96], [5.0]]).round(3).tolist()
      [0.0, 0.95, 1.0]
      >>> jaxgmm.outliers(params, [[0.0], [1.96], [5.0]], trim=0.3).tolist()
      [0.0, 0.0, 1.0]

    References:
      Banfield & Raftery (1993) for the background; Punzo & McNicholas (2016) for contaminated components;
      Peel & McLachlan (2000), §7, for t components; García-Escudero et al. (2008) for trimming.
    """
    check_mixture(params)
    if trim is not None:
        params, data = data_of(params, X)
        weight = amount(trim, data)
        below = padded_data(data) if is_concrete(params) else data
        found = _trimmed(params, dataclasses.replace(below, pattern=None, patterns=None), weight)
        return found if below is data else jax.device_put(np.asarray(found)[: data.x.shape[0]])
    if params.component.outlier is None:
        raise ValueError(f"components {params.component.name!r} do not say what an outlier is")
    return of_rows(_outliers, params, X)


@functools.partial(jit, static_argnames="n_samples")
def _sample(key: Array, params: GMMParams, n_samples: int) -> tuple[Array, Array]:
    n_components, n_features = params.means.shape
    component, scatter = params.component, params.scatter
    key_label, key_normal = jax.random.split(key)
    labels = jax.random.categorical(key_label, params.log_weights, shape=(n_samples,)).astype(jnp.int32)
    normal = jax.random.normal(key_normal, (n_samples, n_features), params.means.dtype)
    if component.normal_factor is not None:
        key_factor = jax.random.fold_in(key_normal, 1)
        normal = normal * component.normal_factor(component, key_factor, params.scale, labels)[:, None]

    def block(label: Array, z: Array) -> Array:
        # Every component colours the whole block: K times the arithmetic, but no (n, D, D) array of factors.
        tiled = jnp.broadcast_to(z.T[None], (n_components, n_features, z.shape[0]))
        coloured = params.covariance.colour(scatter, tiled) + params.means[:, :, None]
        return jnp.take_along_axis(coloured, label[None, None, :], axis=0)[0].T

    rows = block_rows(n_samples, n_components, n_features)
    return map_rows(block, labels, normal, block_size=rows), labels


def sample(key: Array, params: GMMParams, n_samples: int) -> tuple[Array, Array]:
    """Draw from the mixture: a component for each sample by its weight, then a point from that component.

    Args:
      key: a JAX PRNG key.
      params: the mixture.
      n_samples: how many; static.

    Returns:
      X (n_samples, D), labels (n_samples,) int32.

    Example:
      >>> import jax, jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-9.0], [9.0]], [1.0, 1.0], "spherical")
      >>> X, labels = jaxgmm.sample(jax.random.key(0), params, 100)
      >>> bool(((X[:, 0] > 0) == (labels == 1)).all())
      True
    """
    check_mixture(params)
    return _sample(validate.key(key), params, validate.count(n_samples, "n_samples", 1))


def check_drawable(data: Data, what: str) -> None:
    """Raise where new rows like these cannot be drawn, which `what` needs: see `sample_as`."""
    check_ungrouped(data, what)
    if data.weight is not None:
        raise ValueError(f"sample_weight must be None for {what}, which draws its own samples")
    if data.log_prior is not None:
        raise ValueError(f"log_prior must be None for {what}: what was drawn has no such probabilities")


def sample_as(key: Array, params: GMMParams, data: Data) -> Data:
    """Rows drawn from the mixture and seen as these are: the same gaps, noise, projections and labelled rows.

    Which entries are missing, and of which rows the label is known, is taken as it is.
    """
    view, (n, e) = data.view, data.x.shape
    key_rows, key_noise = jax.random.split(key)
    x, labels = _sample(key_rows, params, n)
    if view.projection is not None:
        x = einsum("ned,nd->ne", view.projection, x)
    if view.noise is not None:
        errors = jax.random.normal(key_noise, (n, e), x.dtype)
        if view.noise.ndim == 2:
            x = x + jnp.sqrt(view.noise) * errors
        else:
            x = x + einsum("nef,nf->ne", cholesky(view.noise), errors)
    if view.observed is not None:
        x = jnp.where(view.observed, x, 0)
    label = None if data.label is None else jnp.where(data.label >= 0, labels, -1)
    return dataclasses.replace(data, x=x, label=label)


@jit
def _impute(params: GMMParams, data: Data, key: Array | None) -> Array:
    k, d = params.means.shape
    colour, (n, e) = observed.factors(params), data.x.shape
    drawn = None
    if key is not None:
        key_label, key_normal = jax.random.split(key)
        width = d + (0 if data.noise is None else e)
        normal = jax.random.normal(key_normal, (n, width), data.x.dtype)
        drawn = normal, jax.random.gumbel(key_label, (n, k), data.x.dtype)

    def block(rows: Data, drawn: tuple[Array, Array] | None) -> Array:
        view, residuals = rows.view, observed.residuals_of(params.means, rows)
        normal = None if drawn is None else jnp.broadcast_to(drawn[0].T[None], (k, *drawn[0].T.shape))
        found = observed.regress(colour, view, residuals[:, :, None], normal)
        y, relative = found.y[:, :, 0], joint(params, rows)[0]
        if drawn is None or found.draw is None:
            shares, total, _ = shares_of(relative)
            share = shares / total[None, :]
        else:
            y = y + found.draw
            chosen = jnp.argmax(relative + drawn[1].T, axis=0)
            share = jax.nn.one_hot(chosen, k, dtype=y.dtype, axis=0)
        each = params.means[:, :, None] + einsum("kde,keb->kdb", colour, y)
        complete = einsum("kb,kdb->bd", share, each)
        if view.noise is None and view.projection is None:
            return rows.x if view.observed is None else jnp.where(view.observed, rows.x, complete)
        return complete

    rows = min(n, max(16, observed.rows_for(data, params.covariance, k) // 2))
    filled: Array = map_rows(block, data, drawn, block_size=rows)
    return filled


def impute(params: GMMParams, X: ArrayLike | Data, key: Array | None = None) -> Array:
    """(N, D) the rows with what is not known of them filled in: conditional means, or draws.

    Without a key E[z_n | what is seen of row n] = Σ_k r_nk (μ_k + C_k E[y | row, k]). With a key one draw
    from that distribution for each row: several keys give multiple imputations. Observed entries without
    noise stay as they are. Of rows with noise or projections the result is the features themselves, z_n.

    Args:
      params: the mixture; for draws of Gaussian components.
      X: (N, D), NaN where an entry is missing; or `Data`.
      key: a JAX PRNG key, or None for means.

    Returns:
      (N, D), complete.

    Raises:
      ValueError, TypeError: as `observe` and `log_prob`; for draws from components that are not Gaussian.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
      >>> jaxgmm.impute(params, [[2.0, float("nan")]]).tolist()
      [[2.0, 1.0]]

    References:
      Little & Rubin (2002), Statistical Analysis with Missing Data, §11.2; Bovy, Hogg & Roweis (2011).
    """
    data = X if isinstance(X, Data) else observe(X, missing="nan")
    params, data = data_of(params, data)
    check_ungrouped(data, "impute")
    if key is not None:
        key = validate.key(key)
        if not params.component.is_gaussian:
            raise ValueError(f"draws need Gaussian components; params have {params.component.name!r}")
    elif params.component.has_background:
        raise ValueError("a uniform background has no conditional means; impute from the other components")
    if data.is_complete:
        return data.x
    return _impute(params, dataclasses.replace(data.by_row(), weight=None), key)
