"""Starts: a function of the key alone, weighted, and where the data are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

import jaxgmm
from jaxgmm.components import get_model
from jaxgmm.data import Data, summarise
from jaxgmm.init import kmeans, random_resp
from jaxgmm.init._starts import start
from tests import problems
from tests.conftest import overlapping
from tests.quick import quick_jit

N, D, K = 60, 2, 4
N_KEYS = 2000
CORNERS = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0], [40.0, 40.0]])
LABELS = np.arange(N) % K
RNG = np.random.default_rng(0)
APART = CORNERS[LABELS] + RNG.normal(size=(N, D))  # four clusters, 15 rows each, 40 widths apart
TOGETHER = overlapping(N, D, K, seed=1)[0]
WEIGHTS = RNG.integers(0, 4, size=N).astype(float)
ONES = np.ones(N)
SEEDERS = {
    "kmeans_plusplus": jaxgmm.init.kmeans_plusplus,
    "kmeans": kmeans,
    "random_points": jaxgmm.init.random_points,
    "random_resp": random_resp,
}
each = pytest.mark.parametrize("seeder", SEEDERS)
centres_only = pytest.mark.parametrize("seeder", ["kmeans_plusplus", "kmeans", "random_points"])
rows_only = pytest.mark.parametrize("seeder", ["kmeans_plusplus", "random_points"])
KEYS = functools.cache(lambda: jax.random.split(jax.random.key(7), N_KEYS))


@functools.cache
def _many(seeder):
    one = functools.partial(SEEDERS[seeder], n_components=K)
    return quick_jit(jax.vmap(lambda k, X, w: one(k, X, sample_weight=w), (0, None, None)))


def many(seeder, X, w):
    """The seeds of 2000 keys at once (2000, K, D), in float32."""
    return np.asarray(_many(seeder)(KEYS(), X.astype(np.float32), w.astype(np.float32)))


def squared_distances(X, centres):
    return ((X[:, None, :] - centres[None, :, :]) ** 2).sum(2)


def in_order(centres):
    centres = np.asarray(centres, np.float64)
    return centres[np.lexsort(centres.T)]


@each
def test_the_key_alone_decides(seeder):
    seeds = many(seeder, TOGETHER, WEIGHTS)
    assert seeds.dtype == np.float32
    assert seeds.shape == (N_KEYS, *((N, K) if seeder == "random_resp" else (K, D)))
    np.testing.assert_array_equal(seeds, many(seeder, TOGETHER, WEIGHTS))
    assert len(np.unique(seeds, axis=0)) > 30
    # The unit of the weights does not matter.
    np.testing.assert_array_equal(seeds, many(seeder, TOGETHER, 8 * WEIGHTS))


@pytest.mark.parametrize("seeder", ["kmeans_plusplus", "random_points", "random_resp"])
def test_vmap_is_a_loop_and_no_weights_are_ones(seeder):
    X, key = TOGETHER.astype(np.float32), KEYS()[0]
    one = SEEDERS[seeder](key, X, K, WEIGHTS.astype(np.float32))
    np.testing.assert_allclose(many(seeder, TOGETHER, WEIGHTS)[0], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(SEEDERS[seeder](key, X, K), SEEDERS[seeder](key, X, K, np.ones(N, "f4")))


@rows_only
def test_seeds_are_rows_of_x_and_never_a_row_of_weight_zero(seeder):
    X = TOGETHER.copy()
    X[::2] += 1e4  # where k-means++ would look first
    on = np.arange(N) % 2 == 1
    seeds = many(seeder, X, on).reshape(-1, D)
    rows = X[on].astype(np.float32)
    assert squared_distances(np.unique(seeds, axis=0), rows).min(1).max() == 0
    assert len(np.unique(seeds, axis=0)) > 25  # and many rows have their turn


@centres_only
def test_fewer_rows_with_weight_than_components_are_all_seeds_and_nothing_else_is(seeder):
    on = np.isin(np.arange(N), [3, 20])
    for one in many(seeder, APART, on)[:50]:
        np.testing.assert_allclose(
            np.unique(one, axis=0), np.unique(APART[on].astype(np.float32), axis=0), rtol=1e-6
        )


def test_random_points_are_different_rows():
    seeds = many("random_points", np.stack([np.arange(N), np.zeros(N)], 1), ONES)
    assert (np.diff(np.sort(seeds[:, :, 0], axis=1), axis=1) > 0).all()


@rows_only
def test_the_first_seed_is_drawn_in_proportion_to_the_weights(seeder):
    w = np.zeros(N)
    w[[4, 9, 30, 59]] = [1, 2, 3, 4]
    rows = many(seeder, np.stack([np.arange(N), np.zeros(N)], 1), w)[:, 0, 0].astype(int)
    counts = np.bincount(rows, minlength=N)
    expected = N_KEYS * w / w.sum()
    chi_square = ((counts - expected)[w > 0] ** 2 / expected[w > 0]).sum()
    assert counts[w == 0].sum() == 0
    assert chi_square < 16.3  # three degrees of freedom: exceeded once in a thousand keys


def test_kmeanspp_finds_one_seed_in_each_cluster_where_random_points_do_not():
    def share_that_has_all(seeder):
        nearest = squared_distances(many(seeder, APART, ONES).reshape(-1, D), CORNERS).argmin(1)
        return (np.sort(nearest.reshape(-1, K), axis=1) == np.arange(K)[None]).all(1).mean()

    assert share_that_has_all("kmeans_plusplus") > 0.97
    assert share_that_has_all("kmeans") > 0.97
    assert share_that_has_all("random_points") < 0.3  # 4! / 4⁴ is 0.1


def test_kmeanspp_draws_by_squared_distance():
    # One heavy row at 0 is the first seed. Of rows at 1, of weight 3, and at 3, of weight 1, the second is
    # drawn with odds 3 : 9 a trial. A seed at 1 leaves a potential of 4, one at 3 of 3: the first stays only
    # if all three trials drew it.
    X = np.zeros((N, D))
    X[1, 0], X[2, 0] = 1, 3
    w = np.zeros(N)
    w[:3] = [1e6, 3, 1]
    second = many("kmeans_plusplus", X, w)[:, 1, 0]
    share, expected = (second == 1).mean(), 0.25**3
    assert set(np.unique(second)) == {1, 3}
    assert abs(share - expected) < 4 * np.sqrt(expected / N_KEYS)


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_cluster():
    for centres in many("kmeans", TOGETHER, WEIGHTS)[:20].astype(float):
        nearest = squared_distances(TOGETHER, centres).argmin(1)
        means = [np.average(TOGETHER[nearest == k], axis=0, weights=WEIGHTS[nearest == k]) for k in range(K)]
        np.testing.assert_allclose(centres, means, rtol=2e-5, atol=2e-5)


def test_kmeans_lowers_the_potential_of_its_seeds():
    def potential(seeds):
        return (WEIGHTS * squared_distances(TOGETHER, seeds).min(1)).sum()

    ends, seeds = (many(seeder, TOGETHER, WEIGHTS)[:20] for seeder in ("kmeans", "kmeans_plusplus"))
    assert all(potential(a) < 0.95 * potential(b) for a, b in zip(ends, seeds, strict=True))


@centres_only
def test_a_row_of_weight_zero_may_lie_anywhere(seeder):
    moved = APART.copy()
    moved[WEIGHTS == 0] = [1e6, -1e6]
    np.testing.assert_array_equal(many(seeder, APART, WEIGHTS), many(seeder, moved, WEIGHTS))


@pytest.mark.parametrize("n_distinct", [1, 2])
def test_fewer_distinct_points_than_components_still_give_seeds(n_distinct):
    X = CORNERS[np.arange(N) % n_distinct] + 0.3
    for seeder in ("kmeans_plusplus", "kmeans"):
        for one in many(seeder, X, ONES)[:50]:
            np.testing.assert_allclose(np.unique(one, axis=0), np.unique(X, axis=0), rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5])
def test_an_offset_in_float32_hides_no_cluster_and_weights_are_counts(offset):
    means = np.stack([np.average(APART[k == LABELS], axis=0, weights=WEIGHTS[k == LABELS]) for k in range(K)])
    found = many("kmeans", APART + offset, WEIGHTS)
    atol = 1e-5 + 2e-7 * offset
    right = [np.allclose(in_order(c), in_order(means + offset), rtol=0, atol=atol) for c in found]
    assert np.mean(right) > 0.97


def test_random_resp_are_uniform_on_the_simplex():
    resp = many("random_resp", TOGETHER, ONES)[:500].reshape(-1, K).astype(float)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=4 * np.finfo(np.float32).eps)
    assert (resp > 0).all()
    # Dirichlet(1, 1, 1, 1): mean 1/4, second moments 2/20 and 1/20; means of 30,000, known to 0.0012.
    np.testing.assert_allclose(resp.mean(0), 1 / 4, atol=0.006)
    np.testing.assert_allclose(resp.T @ resp / len(resp), (1 + np.eye(K)) / 20, atol=0.004)


def test_a_partition_gives_the_clusters_own_moments(double):
    for kind in (float, int, bool):
        # Of the shape that the other tests give the M-step.
        labels, x = problems.LABELS, problems.X
        params = jaxgmm.init.from_responsibilities(np.eye(problems.K)[labels].astype(kind), x, reg_covar=0)
        groups = [x[k == labels] for k in range(problems.K)]
        np.testing.assert_allclose(params.means, [g.mean(0) for g in groups], rtol=1e-12)
        scale = np.asarray(params.scale)
        moments = [np.cov(g.T, bias=True) for g in groups]
        np.testing.assert_allclose(scale @ scale.swapaxes(1, 2), moments, rtol=1e-10)


# The named starts of fit_restarts, without the fit.

NAMES = ["kmeans++", "kmeans", "random_points", "random_resp", "hierarchical"]
named = pytest.mark.parametrize("init", NAMES)


@functools.partial(quick_jit, static_argnames="init")
def _starts(keys, X, w, n_active, init):
    f = summarise(Data(X, w), jnp.zeros((), X.dtype))
    options = {"model": get_model("diag"), "n_components": K, "block_size": N, "init": init}
    return jax.vmap(lambda k: start(k, n_active, Data(X, w), f, None, **options))(keys)


def starts(X, w, init, seed=0, n_active=K):
    """Three starts."""
    keys = jax.random.split(jax.random.key(seed), 3)
    found = _starts(keys, X.astype(np.float32), w.astype(np.float32), np.int32(n_active), init=init)
    return jax.tree.map(np.asarray, found)


@named
def test_named_starts_are_good_mixtures_whose_key_alone_decides(init):
    params = starts(TOGETHER, WEIGHTS, init)
    assert params.means.shape == (3, K, D)
    np.testing.assert_allclose(np.exp(params.log_weights).sum(1), 1, rtol=1e-5)
    assert (params.scale > 0).all()
    jax.tree.map(np.testing.assert_array_equal, params, starts(TOGETHER, WEIGHTS, init))
    other = starts(TOGETHER, WEIGHTS, init, seed=1)
    drawn = np.unique(np.concatenate([params.means, other.means]), axis=0)
    assert (len(drawn) == 1) == (init == "hierarchical")
    # Fewer components than there is room for.
    fewer = starts(TOGETHER, WEIGHTS, init, n_active=2)
    np.testing.assert_array_equal(np.isneginf(fewer.log_weights), [[False, False, True, True]] * 3)
    np.testing.assert_allclose(np.exp(fewer.log_weights).sum(1), 1, rtol=1e-5)


@named
def test_multiplying_features_by_powers_of_two_multiplies_the_starts(init):
    by = np.array([2.0**9, 2.0**-9])
    here, there = starts(TOGETHER, WEIGHTS, init), starts(TOGETHER * by, WEIGHTS, init)
    np.testing.assert_allclose(there.log_weights, here.log_weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there.means, np.asarray(here.means) * by, rtol=1e-5)
    np.testing.assert_allclose(there.scale, np.asarray(here.scale) * by, rtol=1e-4, atol=1e-7)


@named
def test_a_row_of_weight_zero_may_hold_nan_inside_jit(init):
    bad = np.where((WEIGHTS > 0)[:, None], TOGETHER, np.nan)
    clean = starts(TOGETHER, WEIGHTS, init)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    got = starts(bad, WEIGHTS, init)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, clean)


def test_random_points_start_at_rows_as_wide_as_the_data():
    params = starts(TOGETHER, ONES, "random_points")
    np.testing.assert_allclose(np.exp(params.log_weights), 1 / K, rtol=1e-6)
    np.testing.assert_allclose(
        params.scale, np.broadcast_to(TOGETHER.std(0), (3, K, D)), rtol=1e-4, atol=1e-6
    )
    distance = squared_distances(np.asarray(params.means, float).reshape(-1, D), TOGETHER).min(1)
    assert distance.max() < 1e-10


@pytest.mark.parametrize("init", ["kmeans++", "kmeans", "hierarchical"])
def test_clusters_that_are_apart_are_found_before_the_first_step(init):
    params = starts(APART + 1e4, ONES, init)
    means = np.stack([APART[k == LABELS].mean(0) for k in range(K)]) + 1e4
    found = [np.allclose(in_order(m), in_order(means), rtol=0, atol=5e-3) for m in params.means]
    assert np.mean(found) >= 2 / 3


def test_a_hierarchical_start_is_at_the_means_of_wards_clusters():
    # Standardised, and the principal axes divided by the square roots of their spread.
    z = (TOGETHER - TOGETHER.mean(0)) / TOGETHER.std(0)
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    tree = linkage(z @ vectors / values**0.25, "ward")
    for n_active in (1, 2, 4):
        means = starts(TOGETHER, ONES, "hierarchical", n_active=n_active).means[0, :n_active]
        labels = fcluster(tree, n_active, "maxclust")
        expected = [TOGETHER[labels == k].mean(0) for k in range(1, n_active + 1)]
        np.testing.assert_allclose(in_order(means), in_order(expected), rtol=1e-5, atol=1e-5)
