"""Clusters out of components: the true partition, and each step against a plain computation in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

import jaxgmm
from jaxgmm.components import background, gaussian, student_t
from jaxgmm.selection import merge_components
from jaxgmm.selection._merging import _break, _largest_ratio
from tests.closed import build
from tests.conftest import x64
from tests.quick import quick_jit

N, K = 600, 8


def arc(rng, n, start, stop, radius=1.0):
    angle = np.sort(rng.uniform(start, stop, n))
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.08 * rng.normal(size=(n, 2))


def moons(rng):
    return [arc(rng, 300, 0, np.pi), arc(rng, 300, np.pi, 2 * np.pi) + np.array([1.0, 0.35])], [4, 4]


def ring(rng):
    return [arc(rng, 480, 0, 2 * np.pi, 3.0), 0.5 * rng.normal(size=(120, 2))], [6, 1]


def bananas(rng):
    x = [np.sort(rng.uniform(-2.5, 2.5, n)) for n in (300, 200)]
    bent = [
        np.stack([u, 0.5 * u**2 + 3 * i], 1) + 0.2 * rng.normal(size=(len(u), 2)) for i, u in enumerate(x)
    ]
    return [*bent, 0.5 * rng.normal(size=(100, 2)) + np.array([0.0, 9.0])], [4, 3, 1]


def letters(rng):
    along = np.sort(rng.uniform(-6, 6, (2, 300)))
    ells = np.stack([np.maximum(-along, 0), np.maximum(along, 0)], -1) + 0.35 * rng.normal(size=(2, 300, 2))
    return [ells[0], 8 - ells[1]], [4, 4]


@functools.cache
def fitted(make):
    """Rows, their clusters, those of the components, and EM from consecutive pieces of clusters, by NumPy."""
    clusters, pieces = make(np.random.default_rng(0))
    X = np.concatenate(clusters)
    truth = np.repeat(np.arange(len(clusters)), [len(c) for c in clusters])
    kind = np.repeat(np.arange(len(clusters)), pieces)
    n_on = sum(pieces)
    resp = np.repeat(
        np.eye(n_on),
        [len(part) for c, n in zip(clusters, pieces, strict=True) for part in np.array_split(c, n)],
        0,
    )
    for _ in range(30):
        weights, means = resp.mean(0), (resp.T @ X) / resp.sum(0)[:, None]
        covariances = [np.cov(X.T, aweights=r, ddof=0) for r in resp.T]
        parts = zip(weights, means, covariances, strict=True)
        resp = np.stack([w * multivariate_normal(m, c).pdf(X) for w, m, c in parts], 1)
        resp /= resp.sum(1, keepdims=True)
    off = [(0, K - n_on)]  # the others are switched off
    with np.errstate(divide="ignore"):
        params = build(
            "full",
            np.pad(weights, off),
            np.pad(means, [*off, (0, 0)]),
            np.concatenate([covariances, [np.eye(2)] * (K - n_on)]) if n_on < K else np.stack(covariances),
            np.float32,
        )
    return X.astype(np.float32), truth, np.pad(kind, off, constant_values=-1), params


def entropy(resp, weight):
    return -(weight * (resp * np.log(np.where(resp > 0, resp, 1))).sum(1)).sum()


def share(resp, clusters):
    return np.stack([resp[:, c].sum(1) for c in clusters], 1)


def taken_for(r, weight, i, j):
    """The share of i's rows that are taken for j's."""
    return (weight * r[:, i] * (r.argmax(1) == j)).sum() / (weight * r[:, i]).sum()


def by_hand(resp, weight, by):
    """Pairs, scores, entropies and rows of all mergers, each computed from nothing."""
    clusters = [[k] for k in range(resp.shape[1]) if resp[:, k].sum() > 0]
    pairs, scores, rows, entropies = [], [], [], [entropy(share(resp, clusters), weight)]
    while len(clusters) > 1:
        r, options = share(resp, clusters), []
        for i, j in itertools.combinations(range(len(clusters)), 2):
            rest = [c for n, c in enumerate(clusters) if n not in (i, j)]
            if by == "overlap":
                score = max(taken_for(r, weight, i, j), taken_for(r, weight, j, i))
            else:
                union = [*rest, clusters[i] + clusters[j]]
                score = entropies[-1] - entropy(share(resp, union), weight)
            options.append((score, i, j))
        score, i, j = max(options)
        pairs.append([clusters[i][0], clusters[j][0]])
        scores.append(score)
        rows.append(weight[np.isin(r.argmax(1), (i, j))].sum())
        clusters[i] = clusters[i] + clusters.pop(j)
        entropies.append(entropy(share(resp, clusters), weight))
    return pairs, scores, entropies[::-1], np.append(0, np.cumsum(rows[::-1]))


@pytest.mark.parametrize("make", [moons, ring, bananas, letters])
def test_the_true_partition_is_found_and_entropies_never_rise(make):
    X, truth, kind, params = fitted(make)
    merging = merge_components(params, X, np.ones(N, np.float32))
    assert int(merging.n_clusters) == truth.max() + 1
    np.testing.assert_array_equal(merging.labels_of(), kind)
    assert adjusted_rand_score(truth, merging.predict(params, X)) > 0.99
    on = int((kind >= 0).sum())
    entropies = np.asarray(merging.entropies)
    assert (np.diff(entropies[:on]) >= 0).all()
    assert np.isinf(entropies[on:]).all()
    resp = np.asarray(jaxgmm.responsibilities(params, X), float)
    pairs, scores, expected, rows = by_hand(resp, np.ones(N), "entropy")
    # Falls of next to nothing are rounding, and so is which of them is first.
    certain = np.asarray(scores) > 0.01
    np.testing.assert_array_equal(np.asarray(merging.merges)[: on - 1][certain], np.asarray(pairs)[certain])
    np.testing.assert_allclose(entropies[:on], expected, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(np.asarray(merging.overlaps)[: on - 1], scores, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(np.asarray(merging.merged)[:on], rows)


def test_merging_by_overlap_with_weights_is_what_errors_counted_by_hand_say():
    X, _, kind, params = fitted(ring)
    weight = np.random.default_rng(1).integers(0, 3, N).astype(np.float32)
    merging = merge_components(params, X, weight, by="overlap", threshold=0.002)
    resp = np.asarray(jaxgmm.responsibilities(params, X), float)
    pairs, errors, entropies, rows = by_hand(resp, weight, "overlap")
    np.testing.assert_array_equal(merging.merges[:6], pairs)
    np.testing.assert_allclose(merging.overlaps[:6], errors, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(merging.entropies[:7], entropies, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(merging.merged[:7], rows)
    assert min(errors[:5]) > 0.002 > errors[5]
    np.testing.assert_array_equal(merging.labels_of(), kind)
    unmerged = merge_components(params, X, weight, by="overlap", threshold=errors[0] + 0.01)
    assert int(unmerged.n_clusters) == 7


def test_labels_of_all_numbers_of_clusters_are_nested_and_shares_are_sums():
    X, _, _, params = fitted(moons)
    merging = merge_components(params, X, np.ones(N, np.float32))
    assert repr(merging) == "Merging(by entropy: 8 components, 2 clusters)"
    labels = np.asarray(merging.labels)
    np.testing.assert_array_equal(labels[-1], np.arange(K))
    for c in range(1, K):
        assert set(labels[c - 1]) == set(range(c))
        # What is together in c + 1 clusters is so in c.
        assert len(set(zip(labels[c], labels[c - 1], strict=True))) == c + 1
    resp = np.asarray(jaxgmm.responsibilities(params, X))
    shares = merging.responsibilities(params, X, 3)
    for c in range(3):
        np.testing.assert_allclose(shares[:, c], resp[:, labels[2] == c].sum(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(merging.predict(params, X, 3), np.argmax(shares, 1))


def test_by_modes_with_a_background_that_stays_apart_of_t_components_and_rows_with_gaps():
    X, _, _, params = fitted(bananas)
    # Wider, so that some hills become one; the last component gives way to the background.
    inner = {"scatter": 1.7 * params.scale, "dof": np.full(K, 30.0, np.float32)}
    scale = {"inner": inner, "log_density": np.full(2, -np.log(12.0), np.float32)}
    params = jaxgmm.GMMParams(params.log_weights, params.means, scale, background(student_t("full")))
    gaps = np.where(np.random.default_rng(2).random(X.shape) < 0.05, np.nan, X)
    data = jaxgmm.observe(gaps, missing="nan")
    merging = merge_components(params, data, by="modes")
    found = jaxgmm.distributions.modes(params)
    n_modes = int(found.n_modes)
    assert 2 < n_modes < K - 1
    assert int(merging.n_clusters) == n_modes + 1
    np.testing.assert_array_equal(merging.labels_of(), [*found.labels[:-1], n_modes])
    labels = np.asarray(merging.labels)
    assert (labels[0] == -1).all()
    np.testing.assert_array_equal(labels[1], [0] * (K - 1) + [1])
    assert (np.asarray(merging.merges)[-1] == -1).all()
    resp = np.asarray(jaxgmm.responsibilities(params, data), float)
    both = np.stack([resp[:, :-1].sum(1), resp[:, -1]], 1)
    np.testing.assert_allclose(merging.entropies[1], entropy(both, np.ones(N)), rtol=1e-4)
    with pytest.raises(ValueError, match="n_clusters must be from 2 to 8; got 1"):
        merging.labels_of(1)


def lines(x, y):
    """The break of two lines, tried one after the other."""
    loss = {}
    for c in range(2, len(x)):
        sides = (x[:c], y[:c]), (x[c - 1 :], y[c - 1 :])
        loss[c] = sum(np.square(b - np.polyval(np.polyfit(a, b, 1), a)).sum() for a, b in sides)
    return min(loss, key=loss.get)


def test_elbows():
    rng = np.random.default_rng(0)
    several = quick_jit(jax.vmap(_break))
    n = np.arange(2, 8, dtype=np.int32).repeat(5)
    x = np.cumsum(rng.uniform(0.5, 2, (len(n), 8)), 1).astype(np.float32)
    y = np.cumsum(rng.uniform(0, 3, (len(n), 8)) * rng.integers(1, 9, (len(n), 1)), 1).astype(np.float32)
    there = np.arange(8) < n[:, None] + 1
    far = np.where(there, 0, np.inf).astype(np.float32)
    found = several(x + far, y + far, there)
    assert found.tolist() == [
        lines(a[: k + 1].astype(float), b[: k + 1]) for k, a, b in zip(n, x, y, strict=True)
    ]
    # 1000 rows: 0.5 nats are nothing, 20 are something.
    ends = np.array([
        [0, 0.1, 0.2, 50, 120, 200],  # three clusters, of two components each
        [0, 3, 30, 60, 90, 130],  # two, that touch
        [0, 0, 0, 0, 0, 0.5],  # six that are apart
        [0, 40, np.inf, np.inf, np.inf, np.inf],  # one or two: two
        [0, *[np.inf] * 5],
        [0, 50, 108, np.inf, np.inf, np.inf],  # no elbow
        [np.inf, 30, 31, 32, 80, 130],  # a background, and three
    ], np.float32)  # fmt: skip
    chosen = quick_jit(jax.vmap(_largest_ratio, (0, 0, None)))(ends, np.isfinite(ends), np.float32(1000))
    assert chosen.tolist() == [3, 2, 6, 2, 1, 3, 4]


def test_it_traces_and_refuses_by_name():
    X, _, _, params = fitted(moons)
    for precision in ("float32", "float64"):
        with x64(precision == "float64"):
            found = jax.eval_shape(merge_components, params, jnp.asarray(X, precision))
        assert (found.labels.shape, found.n_clusters.dtype) == ((K, K), np.int32)
        assert found.entropies.dtype == precision
    with pytest.raises(ValueError, match="by must be one of"):
        merge_components(params, X, by="likelihood")
    with pytest.raises(ValueError, match="elbow must be one of"):
        merge_components(params, X, elbow="knee")
    with pytest.raises(ValueError, match="threshold must be strictly between 0 and 1"):
        merge_components(params, X, by="overlap", threshold=1.5)
    with pytest.raises(ValueError, match="rows in groups are not for merge_components"):
        merge_components(params, jaxgmm.observe(X, groups=np.arange(N) // 2))
    merging = merge_components(params, X, np.ones(N, np.float32))
    with pytest.raises(ValueError, match="n_clusters must be from 1 to 8; got 9"):
        merging.predict(params, X, 9)
    with pytest.raises(ValueError, match="8 components were merged; got params of 1"):
        merging.predict(build("full", [1.0], np.zeros((1, 2)), np.eye(2)[None], np.float32), X)
    with pytest.raises(TypeError, match="inside jit"):
        jax.eval_shape(lambda m: m.labels_of(2), merging)
    assert params.component == gaussian("full")
