"""Clusters out of components: pairs of components merged one after the other, until one cluster is left.

What is merged are labels. The mixture, and with it the density, stays as it is: a cluster is a mixture of its
components, and its responsibility for a row is the sum of theirs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import entr
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.density import check_ungrouped, data_of, responsibilities
from jaxgmm.distributions._modes import modes
from jaxgmm.kernels.blocked_sum import block_rows, sum_rows
from jaxgmm.kernels.linalg import einsum
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams

METHODS = ("entropy", "overlap", "modes")
ELBOWS = ("ratio", "lines")
# Nats per row: falls of the entropy below the first are nothing, and mergers that are not made count as the
# second. Two Gaussians of one width have as much 7.2 and 4.9 standard deviations apart.
_NOTHING, _SOMETHING = 0.0005, 0.02
_CLEAR = 2.0  # the least ratio of two falls that is an elbow


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("labels", "entropies", "merged", "merges", "overlaps", "n_clusters"),
    meta_fields=("by", "elbow"),
)
@dataclasses.dataclass(frozen=True)
class Merging:
    """Components merged into clusters, one pair after the other. Row c − 1 of a table is of c clusters.

    Attributes:
      labels: (K, K) int32, the cluster of each component, from 0, in the order of their first components. −1
        for components that are switched off, and in rows of numbers of clusters that there are not.
      entropies: (K,) −Σ_n w_n Σ_c r_nc log r_nc of the clusters' responsibilities, in nats; inf in such rows.
      merged: (K,) how many rows the mergers from c clusters on concern, cumulated from the last one: the
        abscissa of Baudry's rescaled entropy plot. inf in such rows.
      merges: (K − 1, 2) int32, the pairs in the order in which they were merged, each cluster named by its
        first component; −1 where nothing is left to merge.
      overlaps: (K − 1,) of these pairs, by "overlap" the larger probability that a row of one is taken for
        the other's; else by how many nats the entropy fell.
      n_clusters: () int32, the number of clusters that is chosen.
      by: how pairs were chosen; static.
      elbow: how their number was, by "entropy"; static.
    """

    labels: Array
    entropies: Array
    merged: Array
    merges: Array
    overlaps: Array
    n_clusters: Array
    by: str
    elbow: str

    def __repr__(self) -> str:
        """One line: how many components and clusters."""
        known = validate.is_concrete(self.n_clusters) and np.ndim(self.n_clusters) == 0
        number = int(self.n_clusters) if known else "?"
        return f"Merging(by {self.by}: {np.shape(self.labels)[-1]} components, {number} clusters)"

    def labels_of(self, n_clusters: int | None = None) -> Array:
        """(K,) int32 the cluster of each component, for one of the numbers of clusters; None for the chosen.

        Raises:
          ValueError, TypeError: for a number of clusters that there is not.
        """
        return self.labels[self._number(n_clusters) - 1]

    def responsibilities(
        self, params: GMMParams, X: ArrayLike | Data, n_clusters: int | None = None
    ) -> Array:
        """(N, n_clusters) the probabilities of the clusters: sums of their components'.

        Args:
          params: the mixture whose components were merged.
          X: (N, D), or `Data`.
          n_clusters: how many clusters; None for the chosen number.

        Raises:
          ValueError, TypeError: for another number of components, or of clusters.
        """
        if params.n_components != np.shape(self.labels)[-1]:
            merged = np.shape(self.labels)[-1]
            raise ValueError(f"{merged} components were merged; got params of {params.n_components}")
        number = self._number(n_clusters)
        return shares_of_clusters(responsibilities(params, X), self.labels[number - 1], n_clusters=number)

    def predict(self, params: GMMParams, X: ArrayLike | Data, n_clusters: int | None = None) -> Array:
        """(N,) int32 the cluster of the largest probability.

        Args:
          params: as in `responsibilities`.
          X: as there.
          n_clusters: as there.
        """
        return self.responsibilities(params, X, n_clusters).argmax(1).astype(jnp.int32)

    def _number(self, n_clusters: int | None) -> int:
        if not validate.is_concrete(self.labels, self.n_clusters):
            raise TypeError("inside jit the number of clusters is not known: look at labels instead")
        number = int(self.n_clusters) if n_clusters is None else validate.count(n_clusters, "n_clusters", 1)
        there = np.flatnonzero(np.isfinite(np.asarray(self.entropies))) + 1
        if number not in there:
            raise ValueError(f"n_clusters must be from {there[0]} to {there[-1]}; got {number}")
        return number


@functools.partial(jit, static_argnames="n_clusters")
def shares_of_clusters(resp: Array, labels: Array, *, n_clusters: int) -> Array:
    """(N, n_clusters) sums of responsibilities (N, K) over the components of each cluster."""
    return einsum("nk,kc->nc", resp, jax.nn.one_hot(labels, n_clusters, dtype=resp.dtype))


class _State(NamedTuple):
    resp: Array  # (N, K) of the clusters, each in the column of its first component; 0 elsewhere
    cluster: Array  # (K,) int32 the first component of the cluster of each; −1 if switched off
    free: Array  # (K,) bool: first components of clusters that may be merged
    drop: Array  # (K, K) by how much the entropy falls if two are merged


def _drops(resp: Array, weight: Array | None, i: Array) -> Array:
    """(K,) Σ_n w_n [h(r_i) + h(r_j) − h(r_i + r_j)] for every j, h(t) = −t log t: no term is negative."""

    def block(w: Array, r: Array) -> Array:
        own = r[:, i, None]
        total = own + r
        safe = jnp.where(total > 0, total, 1)
        return (w[:, None] * total * (entr(own / safe) + entr(r / safe))).sum(0)

    return sum_rows(block, weight, resp, block_size=block_rows(resp.shape[0], resp.shape[1], 4))


def _confusion(resp: Array, weight: Array | None) -> tuple[Array, Array]:
    """Σ_n w_n r_ni where row n is taken for j's (K, K), and Σ_n w_n of the rows taken for j's (K,)."""
    k = resp.shape[1]

    def block(w: Array, r: Array) -> tuple[Array, Array]:
        taken = w[:, None] * jax.nn.one_hot(r.argmax(1), k, dtype=r.dtype)
        return einsum("ni,nj->ij", r, taken), taken.sum(0)

    return sum_rows(block, weight, resp, block_size=block_rows(resp.shape[0], k, 4))


def _numbered(cluster: Array) -> Array:
    """Labels from 0 for clusters that are named by their first components; −1 stays."""
    first = cluster == jnp.arange(len(cluster), dtype=jnp.int32)
    return jnp.where(cluster < 0, -1, (jnp.cumsum(first).astype(jnp.int32) - 1)[cluster])


def _largest_ratio(entropies: Array, there: Array, total: Array) -> Array:
    """() int32 the number of clusters from which on mergers remove least, compared with those before.

    Largest (fall before + τ) / (fall after + τ) from two clusters on, with τ the fall that counts as nothing.
    Where no ratio is clear, all components.
    """
    fall = jnp.where(there[1:] & there[:-1], jnp.diff(jnp.where(there, entropies, 0)), 0)
    before = jnp.where(jnp.append(there[2:], False), jnp.append(fall[1:], 0), _SOMETHING * total)
    nothing = _NOTHING * total
    ratio = jnp.where(there[1:] & there[:-1], (before + nothing) / (fall + nothing), 0)
    last = jnp.max(jnp.where(there, jnp.arange(1, len(there) + 1, dtype=jnp.int32), 0))
    return jnp.where((ratio >= _CLEAR).any(), jnp.argmax(ratio).astype(jnp.int32) + 2, last)


def _break(x: Array, y: Array, there: Array) -> Array:
    """() int32 the number of clusters at the break of two lines, fitted to the points that are there.

    Both lines are fitted to the point where they meet. Of fewer than three points it is the last.
    """
    n = jnp.arange(len(x), dtype=jnp.int32)
    x, y = (jnp.where(there, a, 0) for a in (x, y))
    x, y = (a / jnp.maximum(a.max(), float(jnp.finfo(a.dtype).tiny)) for a in (x, y))

    def residual(side: Array) -> Array:
        w = (side & there).astype(x.dtype)
        total = jnp.maximum(w.sum(), 1)
        u, v = (w * (a - (w * a).sum() / total) for a in (x, y))
        slope = (u * v).sum() / jnp.where((u > 0).any(), (u * u).sum(), 1)
        return jnp.square(v - slope * u).sum()

    def at(b: Array) -> Array:
        inner = (there & (n < b)).any() & (there & (n > b)).any() & there[b]
        return jnp.where(inner, residual(n <= b) + residual(n >= b), jnp.inf)

    loss = jax.vmap(at)(n)
    last = jnp.max(jnp.where(there, n, 0))
    return jnp.where(jnp.isfinite(loss).any(), jnp.argmin(loss).astype(jnp.int32), last) + 1


@functools.partial(jit, static_argnames=("by", "elbow", "has_background"))
def _merge(
    resp: Array,
    weight: Array | None,
    log_weights: Array,
    modes_of: Array | None,
    threshold: Array,
    *,
    by: str,
    elbow: str,
    has_background: bool,
) -> Merging:
    n, k = resp.shape
    each = jnp.arange(k, dtype=jnp.int32)
    on = log_weights > -jnp.inf
    free = on & (each < k - 1) if has_background else on
    drop = lax.map(lambda i: _drops(resp, weight, i), each)
    begin = _State(resp, jnp.where(on, each, -1), free, drop)

    def step(s: _State, _: None) -> tuple[_State, _Merger]:
        pairs = s.free[:, None] & s.free[None, :] & (each[:, None] < each[None, :])
        taken, counts = _confusion(s.resp, weight)
        score, same = s.drop, jnp.zeros_like(pairs)
        if by == "overlap":
            mass = (s.resp if weight is None else weight[:, None] * s.resp).sum(0)
            error = taken / jnp.maximum(mass, float(jnp.finfo(mass.dtype).tiny))[:, None]
            score = jnp.maximum(error, error.T)
        if modes_of is not None:
            same = pairs & (modes_of[:, None] == modes_of[None, :])
            pairs = jnp.where(same.any(), same, pairs)
        best = jnp.argmax(jnp.where(pairs, score, -jnp.inf)).astype(jnp.int32)
        i, j, some = best // k, best % k, pairs.any()
        resp = s.resp.at[:, i].add(s.resp[:, j]).at[:, j].set(0)
        row = _drops(resp, weight, i)
        drop = s.drop.at[i].set(row).at[:, i].set(row)
        after = _State(resp, jnp.where(s.cluster == j, i, s.cluster), s.free.at[j].set(False), drop)
        after = jax.tree.map(lambda new, old: jnp.where(some, new, old), after, s)
        told = _Merger(
            some,
            jnp.stack([i, j]),
            score[i, j],
            s.drop[i, j],
            counts[i] + counts[j],
            same.any(),
            after.cluster,
        )
        return after, told

    end, m = lax.scan(step, begin, None, length=k - 1)
    rest = sum_rows(
        lambda w, r: (w[:, None] * entr(r)).sum(), weight, end.resp, block_size=block_rows(n, k, 2)
    )
    clusters = jnp.concatenate([begin.cluster[None], m.cluster])

    def from_here_on(amount: Array) -> Array:
        """(K,) sums over the mergers that come after so many of them."""
        own = jnp.where(m.some, amount, 0)
        return jnp.append(jnp.cumsum(own[::-1])[::-1], jnp.zeros((), own.dtype))

    n_all, n_mergers = on.sum().astype(jnp.int32), m.some.sum().astype(jnp.int32)
    before = n_all - 1 - each  # how many mergers lead to each + 1 clusters
    there = (before >= 0) & (before <= n_mergers)
    before = jnp.clip(before, 0, n_mergers)
    labels = jnp.where(there[:, None], jax.vmap(_numbered)(clusters[before]), -1)
    entropies = jnp.where(there, rest + from_here_on(m.drop)[before], jnp.inf)
    merged = jnp.where(there, from_here_on(m.rows)[before], jnp.inf)
    if by == "entropy":
        if elbow == "lines":
            n_clusters = _break(merged, entropies, there)
        else:
            total = jnp.asarray(n, resp.dtype) if weight is None else weight.sum()
            n_clusters = _largest_ratio(entropies, there, total)
    elif by == "overlap":
        n_clusters = n_all - jnp.cumprod(m.some & (m.score >= threshold)).sum().astype(jnp.int32)
    else:
        n_clusters = n_all - (m.some & m.same).sum().astype(jnp.int32)
    merges = jnp.where(m.some[:, None], m.pair, -1)
    return Merging(labels, entropies, merged, merges, jnp.where(m.some, m.score, 0), n_clusters, by, elbow)


class _Merger(NamedTuple):
    """What is known of one merger; (K − 1, ...) of all."""

    some: Array  # () bool: whether a pair was left
    pair: Array  # (2,)
    score: Array  # ()
    drop: Array  # () of the entropy
    rows: Array  # () that were taken for one of the two
    same: Array  # () bool: the two have one mode
    cluster: Array  # (K,) after it


def merge_components(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    by: str = "entropy",
    elbow: str = "ratio",
    threshold: ArrayLike = 0.025,
) -> Merging:
    """Merge the components into clusters, one pair after the other, and choose how many clusters there are.

    Several components often describe one cluster that is not Gaussian. The mixture stays as it is; its
    components get the labels of clusters, whose responsibilities are the sums of their components'.

    - "entropy" merges the two whose union lowers the entropy of the rows' labels most, by
      Σ_n w_n [h(r_ni) + h(r_nj) − h(r_ni + r_nj)], h(t) = −t log t. The number of clusters is at the elbow of
      the entropies, see `elbow`.
    - "overlap" merges the two of which rows are most often taken for the other's: the larger of
      Σ_n r_ni [row n is taken for j's] / Σ_n r_ni and the same of (j, i), until it is below `threshold`.
    - "modes" merges first the components whose means lead to one mode of the density (see
      `jaxgmm.distributions.modes`). The number of clusters is that of the modes. Among these, and after them,
      pairs are chosen as by "entropy".

    All three go on to one cluster, so that every number of clusters can be looked at. A uniform background is
    a cluster of its own: it is never merged. "entropy" and "overlap" need responsibilities alone, and take
    every component family and all `Data` but groups.

    Args:
      params: the mixture, most often one that BIC has chosen.
      X: (N, D), or `Data`.
      sample_weight: (N,) or None for ones.
      by: "entropy", "overlap" or "modes".
      elbow: of "entropy", the rule for the number of clusters. "ratio": the number c at which the fall of the
        entropy by the merger to c clusters is largest relative to that by the merger to c − 1; a fall below
        0.0005 nats per row counts as that, and a merger that is not made as 0.02. It lies between 2 and K.
        It is K where nothing overlaps, and where no fall is twice the next: then there is no elbow, and
        nothing is merged.
        "lines": where two lines break that are fitted by least squares to the entropies over the cumulated
        numbers of rows merged, as the paper proposes. It lies between 2 and K − 1, and often too high where
        clusters are chains of components: smaller pieces overlap more, which bends the upper line. From
        entropies alone one cluster is never chosen.
      threshold: of "overlap", between 0 and 1: the probability of an error below which clusters are apart.

    Returns:
      `Merging`: the labels for every number of clusters, the entropies, and the chosen number.

    Raises:
      ValueError, TypeError: as `responsibilities`; for another word, a threshold outside (0, 1), or rows in
        groups.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.selection import merge_components
      >>> means = [[0.0], [1.5], [3.0], [20.0]]
      >>> params = jaxgmm.make_params([0.25] * 4, means, [1.0] * 4, "spherical")
      >>> X, _ = jaxgmm.sample(jax.random.key(0), params, 200)
      >>> merging = merge_components(params, X)
      >>> merging
      Merging(by entropy: 4 components, 2 clusters)
      >>> merging.labels_of().tolist(), merging.labels_of(3).tolist()
      ([0, 0, 0, 1], [0, 0, 1, 2])
      >>> merging.entropies.round().tolist(), merging.predict(params, [[2.0], [19.0]]).tolist()
      ([0.0, 0.0, 47.0, 94.0], [0, 1])

    References:
      Baudry, Raftery, Celeux, Lo & Gottardo (2010), Combining mixture components for clustering, Journal of
      Computational and Graphical Statistics 19; Hennig (2010), Methods for merging Gaussian mixture
      components, Advances in Data Analysis and Classification 4, for the overlap ("directly estimated
      misclassification probabilities") and its threshold.
    """
    validate.choice(by, "by", METHODS)
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "merge_components")
    resp = responsibilities(params, data)
    return merge(params, resp, data.weight, by=by, elbow=elbow, threshold=threshold)


def merge(
    params: GMMParams,
    resp: Array,
    weight: Array | None,
    *,
    by: str,
    elbow: str = "ratio",
    threshold: ArrayLike = 0.025,
) -> Merging:
    """`merge_components` of responsibilities (N, K) that are known."""
    validate.choice(elbow, "elbow", ELBOWS)
    limit = validate.fraction(threshold, "threshold", resp.dtype)
    return _merge(
        resp,
        weight,
        params.log_weights,
        modes(params).labels if by == "modes" else None,
        limit,
        by=by,
        elbow=elbow,
        has_background=params.component.has_background,
    )
