"""Incomplete and noisy rows: what the observed entries say of the whitened residuals, for each component.

A row x = R z + ε with ε ~ N(0, S) is seen in its observed entries; z = μ_k + C_k y with y ~ N(0, I). In y it
is a linear regression with the rows of A = R C_k as regressors: T = A Aᵀ + S, E[y] = Aᵀ T⁻¹ (x − R μ_k),
Cov[y] = I − Aᵀ T⁻¹ A, and log |T| and the squared distance (x − R μ_k)ᵀ T⁻¹ (x − R μ_k) give the density.
The entries are taken in one after the other, by a Gram–Schmidt process on the rows of [A, S^½] or, where S is
diagonal, of [A, I] with S as weights: T is never formed, so that it costs no digits. A missing entry is
passed over.

References: Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach; Bovy,
Hogg & Roweis (2011), Extreme deconvolution, Annals of Applied Statistics 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.components.base import Seen
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.gaussian import finite_length
from jaxgmm.data import Data, View
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.linalg import cholesky, einsum, eye, transposed
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import is_concrete, is_tracing
from jaxgmm.mixture import GMMParams

_TILES, _FILLED = (64, 32, 16, 8), 1.25  # rows of one pattern together; how many rows there may be for each
_LOG_2PI = float(np.log(2 * np.pi))
# Numbers that the factors of a block of rows may take, where every row has its own: a CPU's second cache.
_NUMBERS = 1 << 17


class Regression(NamedTuple):
    """The regression of y on what is seen, for each component and each of n rows or patterns."""

    y: Array  # (K, D, F, n)  E[y] for each of F columns of residuals
    z: Array | None  # (K, E, F, n)  their own whitened residuals; None where ‖z‖ = ‖y‖
    spread: Array  # (K, D, D, n)  Cov[y]
    log_det: Array  # (K, n)  log |T|, of the observed entries
    draw: Array | None  # (K, D, n)  of numbers u (K, W, n), the part that what is seen leaves free


class Look(NamedTuple):
    """A block of rows seen by every component, laid out (K, …, B)."""

    relative: Array  # (K, B)  log densities, less the offset and what is added for labels
    offset: Array  # (B,)
    exponent: Array  # (K, B)  −½ of the squared distances, and −∞ where a row cannot come from the component
    latent: Any  # what the component's `statistics` reads
    seen: Seen  # what the component was told
    hidden: Callable[[Array], Array]  # weighted responsibilities (K, B) -> sums that `Viewer.spread` reads

    def joint(self, log_weights: Array, known: Array | None) -> Array:
        """(K, B) log joint densities, less the offset."""
        joint = log_weights[:, None] + self.relative
        return joint if known is None else joint + known


def is_diagonal(covariance: Covariance) -> bool:
    """Whether every covariance of a structure is a diagonal matrix."""
    return covariance.second_moment in ("diagonal", "trace")


def by_entry(covariance: Covariance, view: View) -> bool:
    """Whether entries can be taken one by one: no covariance between any two of them."""
    errors = view.noise is None or view.noise.ndim == 2
    return is_diagonal(covariance) and view.projection is None and errors


def factors(params: GMMParams) -> Array:
    """C (K, D, D), dense."""
    k, d = params.means.shape
    unit = jnp.broadcast_to(eye(d, params.means.dtype, 3), (k, d, d))
    return params.covariance.colour(params.scatter, unit)


def regress(colour: Array, view: View, residuals: Array, free: Array | None = None) -> Regression:
    """The regression of y on the observed entries.

    Args:
      colour: (K, D, D) the factors C.
      view: of n rows or patterns.
      residuals: (K, E, F, n), columns x − R μ; what they hold of missing entries is not looked at.
      free: (K, W, n) standard normal numbers for draws of y, W = D, or D + E with noise; or None.
    """
    k, d = colour.shape[:2]
    e, _, n = residuals.shape[1:]
    if view.projection is None:
        rows = jnp.broadcast_to(colour[..., None], (k, e, d, n))
    else:
        rows = einsum("ned,kdc->kecn", view.projection, colour)
    noise, seen = view.noise, view.observed
    # Variances of noise are weights of the inner product: their roots would have no derivative at 0.
    metric = None
    if noise is not None:
        if noise.ndim == 2:
            root = eye(e, rows.dtype)[:, :, None]
            metric = jnp.concatenate([jnp.ones((d, n), rows.dtype), noise.T])[None]
        elif seen is None:
            root = cholesky(noise).transpose(1, 2, 0)
        else:
            # Of missing entries 1: their rows are not looked at, and the others' are those of their block.
            both = seen[:, :, None] & seen[:, None, :]
            root = cholesky(jnp.where(both, noise, eye(e, rows.dtype)[None])).transpose(1, 2, 0)
        rows = jnp.concatenate([rows, jnp.broadcast_to(root[None], (k, e, e, n))], axis=2)
    seen = jnp.ones((e, 1), bool) if seen is None else seen.T
    width = rows.shape[2]

    def weighted(a: Array) -> Array:
        """The first W numbers of (K, W + F, n) as an inner product takes them."""
        return a[:, :width] if metric is None else a[:, :width] * metric

    def take_in(row: Array, is_seen: Array, rest: Array) -> tuple[Array, Array, Array]:
        """One entry, its row and residuals (K, W + F, n): what is new in it, its log variance, and the rest.

        What is new has length 1 in the first W numbers, or is 0 for a missing entry.
        """
        length = jnp.sqrt(jnp.where(is_seen, (row[:, :width] * weighted(row)).sum(1), 1))  # (K, n)
        unit = row * jnp.where(is_seen, 1 / length, 0)[:, None]
        rest = rest - (rest[:, :, :width] * weighted(unit)[:, None]).sum(2, keepdims=True) * unit[:, None]
        return unit, 2 * jnp.log(length), rest

    # A residual of a missing entry may be anything, and enters nothing.
    rest = jnp.concatenate([rows, residuals], 2)

    def step(rest: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
        row = lax.dynamic_index_in_dim(rest, i, 1, keepdims=False)
        unit, log_variance, rest = take_in(row, lax.dynamic_index_in_dim(seen, i, 0), rest)
        return rest, (unit, log_variance)

    _, found = lax.scan(step, varying_like(rest, view), jnp.arange(e, dtype=jnp.int32))
    units, logs = (a.swapaxes(0, 1) for a in found)
    directions, z = units[:, :, :d], units[:, :, width:]
    unknown = eye(d, rows.dtype)[None, :, :, None]
    draw = None
    if free is not None:
        scaled = free if metric is None else free * jnp.sqrt(metric)
        along = (units[:, :, :width] * scaled[:, None]).sum(2)
        draw = free[:, :d] - (directions * along[:, :, None]).sum(1)
    return Regression(
        y=einsum("kidn,kifn->kdfn", directions, z),
        z=None if width == d else z,
        spread=unknown - einsum("kidn,kien->kden", directions, directions),
        log_det=logs.sum(1),
        draw=draw,
    )


class _Tables(NamedTuple):
    """The regression of every pattern, as matrices that turn residuals into E[y] and z."""

    y: Array  # (P, K, D, E)
    z: Array | None  # (P, K, E, E)
    spread: Array  # (P, K, D, D)
    log_det: Array  # (P, K)


def _tables(colour: Array, patterns: View, n_entries: int) -> _Tables:
    """The regressions of all patterns, in blocks."""
    k = colour.shape[0]

    def some(patterns: View) -> _Tables:
        n = jax.tree.leaves(patterns)[0].shape[0]
        each = jnp.broadcast_to(eye(n_entries, colour.dtype)[None, :, :, None], (k, n_entries, n_entries, n))
        found = regress(colour, patterns, each)
        first = (found.y, found.z, found.spread, found.log_det)
        return _Tables(*jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), first))

    tables: _Tables = map_rows(some, patterns, block_size=_block(colour, patterns, n_entries, n_entries))
    return tables


def _block(colour: Any, view: View, n_entries: int, n_columns: int) -> int:
    """Rows or patterns per block, where the regression of each is computed by itself."""
    n, (k, d) = jax.tree.leaves(view)[0].shape[0], colour.shape[:2]
    width = d + (0 if view.noise is None else n_entries)
    numbers = k * (n_entries * (width + n_columns) + d * (d + n_columns))
    most = _NUMBERS if jax.default_backend() == "cpu" else _NUMBERS << 9
    return min(n, max(16, 1 << max(most // numbers, 1).bit_length() - 1))


class Viewer(NamedTuple):
    """How a mixture sees rows: what depends on the parameters alone has been computed.

    Fields:
      look: a block of `Data.rows` less the shift -> `Look`.
      spread: the sums of `Look.hidden` over blocks -> Σ r Cov[y], matrices (K, D, D) or diagonals (K, D).
    """

    look: Callable[[Data], Look]
    spread: Callable[[Array], Array]


def viewer(params: GMMParams, data: Data) -> Viewer:
    """How a mixture, with means relative to the shift, sees rows such as these."""
    c, scatter, means = params.component, params.scatter, params.means
    k, d = means.shape
    patterns = data.patterns if data.tile else None
    simple = by_entry(c.covariance, data.view if patterns is None else patterns)

    def look(
        view: View, y: Array, length: Array, log_det: Array, hidden: Callable[[Array], Array], known: Any
    ) -> Look:
        seen = None if view.observed is None else view.observed.T
        count: Any = seen_of(view, y.shape[1], y.dtype)
        least = lax.stop_gradient(log_det.min(0))
        offset = -0.5 * (_LOG_2PI * count + least)
        length = finite_length(length)
        number = count if isinstance(count, float) else count[None, :]
        found = Seen(y, length, -0.5 * (log_det - least[None, :]), offset, seen, number)
        assert c.marginal is not None
        relative, latent = c.marginal(c, params.scale, found)
        exponent = -0.5 * length
        return Look(relative, offset, exponent if known is None else exponent + known, latent, found, hidden)

    def entry_by_entry(rows: Data) -> Look:
        # From variances C² of a feature and S of its error: gain C / (C² + S), and S / (C² + S) is left.
        view = view_of(rows, patterns)
        width = c.covariance.colour(scatter, jnp.ones((k, d, 1), means.dtype))
        residuals = transposed(rows.x, k)[None] - means[:, :, None]
        seen = None if view.observed is None else transposed(view.observed.astype(means.dtype), k)
        if seen is not None:
            residuals = residuals * seen[None]
        if view.noise is None:
            assert seen is not None
            y = residuals / width
            length = jnp.square(y).sum(1)
            log_det = 2 * einsum("kd,db->kb", jnp.log(width[:, :, 0]), seen)

            def hidden(resp: Array) -> Array:
                return einsum("db,kb->kd", 1 - seen, resp)

            return look(view, y, length, log_det, hidden, rows.known(k))
        noise = view.noise.T[None]
        total = jnp.square(width) + noise
        left, logs = noise / total, jnp.log(total)
        if seen is not None:
            left, logs = jnp.where(seen[None] > 0, left, 1), logs * seen[None]
        y = width * residuals / total

        def remaining(resp: Array) -> Array:
            return einsum("kdb,kb->kd", left, resp)

        length = (jnp.square(residuals) / total).sum(1)
        return look(view, y, length, logs.sum(1), remaining, rows.known(k))

    def row_by_row(rows: Data) -> Look:
        view = view_of(rows, patterns)
        found = regress(colour, view, residuals_of(means, rows)[:, :, None])
        y = found.y[:, :, 0]
        length = jnp.square(y if found.z is None else found.z[:, :, 0]).sum(1)

        def hidden(resp: Array) -> Array:
            return einsum("kdeb,kb->kde", found.spread, resp)

        return look(view, y, length, found.log_det, hidden, rows.known(k))

    def pattern_by_pattern(rows: Data) -> Look:
        tile, e = data.tile, data.x.shape[1]
        assert rows.pattern is not None
        which = rows.pattern[::tile]
        mine = jax.tree.map(lambda a: a[which], tables)
        # A missing entry's residual meets a column of zeros.
        residuals = transposed(rows.x, k)[None] - means[:, :, None]
        if patterns is not None and patterns.projection is not None:
            residuals = residuals_of(means, rows, patterns)
        apart = residuals.reshape(k, e, -1, tile).transpose(2, 0, 1, 3)

        def times(matrices: Array) -> Array:
            """(K, D, B), by one product for each component and tile."""
            found = jnp.einsum("tkde,tkeb->tkdb", matrices, apart, precision=lax.Precision.HIGHEST)
            return found.transpose(1, 2, 0, 3).reshape(k, matrices.shape[2], -1)

        y = times(mine.y)
        length = jnp.square(y if mine.z is None else times(mine.z)).sum(1)
        log_det = jnp.repeat(mine.log_det.T, tile, axis=1)

        def hidden(resp: Array) -> Array:
            # By pattern: (P, K), of which most are 0 in a block.
            of_tile = resp.reshape(k, -1, tile).sum(2)
            every = jnp.arange(tables.log_det.shape[0], dtype=jnp.int32)[:, None]
            return einsum("kt,pt->pk", of_tile, (which[None, :] == every).astype(resp.dtype))

        return look(view_of(rows, patterns), y, length, log_det, hidden, rows.known(k))

    if simple:
        return Viewer(entry_by_entry, _itself)
    colour = factors(params)
    if patterns is None:
        return Viewer(row_by_row, _itself)
    tables = _tables(colour, patterns, data.x.shape[1])
    return Viewer(pattern_by_pattern, lambda counts: einsum("pkde,pk->kde", tables.spread, counts))


def _itself(a: Array) -> Array:
    return a


def residuals_of(means: Array, rows: Data, patterns: View | None = None) -> Array:
    """(K, E, B) x − R μ, and 0 where an entry is missing, for means (K, D)."""
    view, centres = view_of(rows, patterns), means[:, :, None]
    if view.projection is not None:
        centres = einsum("bed,kd->keb", view.projection, means)
    residuals = rows.x.T[None] - centres
    return residuals if view.observed is None else jnp.where(view.observed.T[None], residuals, 0)


def seen_of(view: View, n_features: int, dtype: Any) -> Any:
    """How many entries are observed: (B,), or a number for all rows."""
    if view.observed is None:
        return float(n_features if view.projection is None else view.projection.shape[1])
    return view.observed.sum(1).astype(dtype)


def view_of(rows: Data, patterns: View | None) -> View:
    """How each row of a block shows the features."""
    if patterns is None:
        return View(rows.observed, rows.noise, rows.projection)
    view: View = jax.tree.map(lambda a: a[rows.pattern], patterns)
    return view


def in_tiles(data: Data, covariance: Covariance) -> Data:
    """The rows in groups of one pattern each, filled up with rows of weight 0, where that saves work.

    For sums over concrete rows: another order, and other rows. Elsewhere the rows as they are.
    """
    if data.tile:
        return data
    gains = data.patterns is not None and not by_entry(covariance, data.patterns)
    if not gains or is_tracing() or not is_concrete(data):
        # Without the patterns, or a program would be compiled for every number of them.
        return dataclasses.replace(data, pattern=None, patterns=None)
    pattern = np.asarray(data.pattern)
    counts = np.bincount(pattern, minlength=jax.tree.leaves(data.patterns)[0].shape[0])
    for tile in _TILES:
        tiles = -(-counts // tile)
        if tiles.sum() * tile <= _FILLED * len(pattern):
            break
    # Rows by pattern; of each pattern the last tile repeats its first row, with weight 0.
    order, begin = np.argsort(pattern, kind="stable"), np.cumsum(counts) - counts
    of_row = np.repeat(np.arange(len(counts)), tiles * tile)
    within = np.arange(len(of_row)) - np.repeat(np.cumsum(tiles * tile) - tiles * tile, tiles * tile)
    real = within < counts[of_row]
    index = order[begin[of_row] + np.where(real, within, 0)]
    weight = np.ones(len(pattern), data.x.dtype) if data.weight is None else np.asarray(data.weight)

    def taken(a: Array | None) -> Any:
        return None if a is None else np.asarray(a)[index]

    leaves: dict[str, Any] = {
        "x": taken(data.x),
        "weight": np.where(real, weight[index], 0).astype(data.x.dtype),
        "log_prior": taken(data.log_prior),
        "label": taken(data.label),
        "group": taken(data.group),
        "pattern": of_row.astype(np.int32),
    }
    return Data(**jax.device_put(leaves), patterns=data.patterns, tile=tile)


def rows_for(data: Data, covariance: Covariance, n_components: int, n_fits: int = 1) -> int:
    """Rows per block: as many as keep what is computed of them in a CPU's cache."""
    n, e, d = data.x.shape[0], data.x.shape[1], data.n_features
    patterns = data.patterns if data.tile else None
    view = View(data.observed, data.noise, data.projection) if patterns is None else patterns
    if patterns is not None or by_entry(covariance, view):
        rows = block_rows(n, n_components, 2 * d, n_fits)
        return min(n, max(rows, data.tile))
    colour = jax.ShapeDtypeStruct((n_components * n_fits, d, d), data.x.dtype)
    return _block(colour, view, e, 1)
