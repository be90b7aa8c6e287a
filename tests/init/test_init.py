"""Starts: a function of the key alone, weighted, and where the data are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import FAMILIES
from jaxgmm.data import summarise
from jaxgmm.init import kmeans, random_resp
from jaxgmm.init._starts import start
from tests.conftest import overlapping

N, D, K = 60, 2, 4
N_KEYS = 2000
CORNERS = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0], [40.0, 40.0]])
LABELS = np.arange(N) % K
NAMES = ["kmeans++", "kmeans", "random_points", "random_resp"]

SEEDERS = {
    "kmeans_plusplus": jaxgmm.init.kmeans_plusplus,
    "kmeans": kmeans,
    "random_points": jaxgmm.init.random_points,
    "random_resp": random_resp,
}
each = pytest.mark.parametrize("seeder", SEEDERS)
seeds_only = pytest.mark.parametrize("seeder", ["kmeans_plusplus", "random_points"])


def apart(seed=0):
    """Four clusters, 15 rows each, 40 widths apart."""
    return CORNERS[LABELS] + np.random.default_rng(seed).normal(size=(N, D))


def together():
    return overlapping(N, D, K, seed=1)[0]


def weights(seed=0):
    return np.random.default_rng(seed).integers(0, 4, size=N).astype(float)


@functools.cache
def some_keys():
    return jax.random.split(jax.random.key(7), N_KEYS)


@functools.cache
def _many(seeder, n_components):
    one = functools.partial(SEEDERS[seeder], n_components=n_components)
    return jax.jit(jax.vmap(lambda k, X, w: one(k, X, sample_weight=w), (0, None, None)))


def many(seeder, X, w, n_components=K):
    """The seeds of 2000 keys at once (2000, K, D)."""
    return np.asarray(_many(seeder, n_components)(some_keys(), X, w))


def cast(dtype, *arrays):
    return [jnp.asarray(a, dtype) for a in arrays]


def squared_distances(X, centres):
    return ((X[:, None, :] - centres[None, :, :]) ** 2).sum(2)


def in_order(centres):
    centres = np.asarray(centres, np.float64)
    return centres[np.lexsort(centres.T)]


@each
def test_the_key_alone_decides(seeder, dtype):
    X, w = cast(dtype, together(), weights())
    run = functools.partial(SEEDERS[seeder], X=X, n_components=K, sample_weight=w)
    first = run(jax.random.key(0))
    assert first.dtype == dtype
    assert first.shape == ((N, K) if seeder == "random_resp" else (K, D))
    np.testing.assert_array_equal(first, run(jax.random.key(0)))
    assert any((np.asarray(run(jax.random.key(i))) != np.asarray(first)).any() for i in range(1, 4))


@each
def test_jit_and_vmap_agree_with_eager(seeder):
    X, w = cast(np.float32, together(), weights())
    call = functools.partial(SEEDERS[seeder], n_components=K)
    keys = jax.random.split(jax.random.key(3), 3)
    eager = np.stack([call(k, X, sample_weight=w) for k in keys])
    jitted = jax.jit(lambda k, X, w: call(k, X, sample_weight=w))
    np.testing.assert_allclose(np.stack([jitted(k, X, w) for k in keys]), eager, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jitted, (0, None, None))(keys, X, w), eager, rtol=1e-5, atol=1e-6)


@each
def test_no_weights_are_ones_and_their_unit_does_not_matter(seeder):
    X, w = cast(np.float32, together(), weights())
    call = functools.partial(SEEDERS[seeder], jax.random.key(5), X, K)
    np.testing.assert_array_equal(call(), call(jnp.ones(N)))
    np.testing.assert_array_equal(call(w), call(8 * w))


@seeds_only
def test_seeds_are_rows_of_x_and_never_a_row_of_weight_zero(seeder, dtype):
    X = together()
    X[::2] += 1e4  # where k-means++ would look first
    on = np.arange(N) % 2 == 1
    seeds = many(seeder, *cast(dtype, X, on)).reshape(-1, D)
    rows = np.asarray(X[on], dtype)
    assert (seeds[:, None, :] == rows[None, :, :]).all(2).any(1).all()
    assert len(np.unique(seeds, axis=0)) > 25  # and many rows have their turn


@pytest.mark.parametrize("seeder", ["kmeans_plusplus", "random_points", "kmeans"])
def test_fewer_rows_with_weight_than_components_are_all_seeds_and_nothing_else_is(seeder):
    X, on = apart(), np.isin(np.arange(N), [3, 20])
    seeds = many(seeder, *cast(np.float32, X, on))
    for one in seeds[:50]:
        np.testing.assert_allclose(
            np.unique(one, axis=0), np.unique(X[on].astype(np.float32), axis=0), rtol=1e-6
        )


def test_random_points_are_different_rows():
    X = np.stack([np.arange(N), np.zeros(N)], 1)
    seeds = many("random_points", *cast(np.float32, X, np.ones(N)))
    assert (np.diff(np.sort(seeds[:, :, 0], axis=1), axis=1) > 0).all()


@seeds_only
def test_the_first_seed_is_drawn_in_proportion_to_the_weights(seeder):
    w = np.zeros(N)
    w[[4, 9, 30, 59]] = [1, 2, 3, 4]
    X = np.stack([np.arange(N), np.zeros(N)], 1)
    rows = many(seeder, *cast(np.float32, X, w), 1)[:, 0, 0].astype(int)
    counts = np.bincount(rows, minlength=N)
    expected = N_KEYS * w / w.sum()
    chi_square = ((counts - expected)[w > 0] ** 2 / expected[w > 0]).sum()
    assert counts[w == 0].sum() == 0
    assert chi_square < 16.3  # three degrees of freedom: exceeded once in a thousand keys


def test_kmeanspp_finds_one_seed_in_each_cluster_where_random_points_do_not():
    X, w = cast(np.float32, apart(), np.ones(N))

    def share_that_has_all(seeder):
        nearest = squared_distances(many(seeder, X, w).reshape(-1, D), CORNERS).argmin(1)
        return (np.sort(nearest.reshape(-1, K), axis=1) == np.arange(K)[None]).all(1).mean()

    assert share_that_has_all("kmeans_plusplus") > 0.97
    assert share_that_has_all("kmeans") > 0.97
    assert share_that_has_all("random_points") < 0.3  # 4! / 4⁴ is 0.1


def test_kmeanspp_draws_by_squared_distance():
    # One heavy row at 0 is the first seed. Of rows at 1 and 3, the second is drawn with odds 1 : 9 a trial. A
    # seed at 1 leaves a potential of 4, one at 3 of 1: the first stays only if both trials drew it.
    X = np.zeros((N, D))
    X[1, 0], X[2, 0] = 1, 3
    w = np.zeros(N)
    w[:3] = [1e5, 1, 1]
    second = many("kmeans_plusplus", *cast(np.float32, X, w), 2)[:, 1, 0]
    share = (second == 1).mean()
    assert set(np.unique(second)) == {1, 3}
    assert abs(share - 0.01) < 4 * np.sqrt(0.01 / N_KEYS)


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_cluster(dtype):
    X, w = together(), weights()
    for seed in range(5):
        centres = np.asarray(kmeans(jax.random.key(seed), *cast(dtype, X), K, *cast(dtype, w)), float)
        nearest = squared_distances(X, centres).argmin(1)
        for k in range(K):
            mine = nearest == k
            np.testing.assert_allclose(
                centres[k], np.average(X[mine], axis=0, weights=w[mine]), rtol=2e-5, atol=2e-5
            )


def test_kmeans_lowers_the_potential_of_its_seeds():
    X, w = together(), weights()
    arguments = cast(np.float32, X), cast(np.float32, w)
    for seed in range(5):
        key = jax.random.key(seed)
        potential = [
            (w * squared_distances(X, np.asarray(seeder(key, *arguments[0], K, *arguments[1]))).min(1)).sum()
            for seeder in (kmeans, jaxgmm.init.kmeans_plusplus)
        ]
        assert potential[0] < 0.95 * potential[1]


def test_kmeans_with_integer_weights_is_kmeans_on_repeated_rows():
    X, w = apart(), weights()
    repeated = np.repeat(X, w.astype(int), axis=0)
    labels = np.repeat(LABELS, w.astype(int))
    means = np.stack([repeated[labels == k].mean(0) for k in range(K)])
    weighted = kmeans(jax.random.key(0), *cast(np.float32, X), K, *cast(np.float32, w))
    np.testing.assert_allclose(in_order(weighted), in_order(means), rtol=1e-5, atol=1e-5)
    again = kmeans(jax.random.key(0), *cast(np.float32, repeated), K)
    np.testing.assert_allclose(in_order(again), in_order(means), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seeder", ["kmeans_plusplus", "kmeans", "random_points"])
def test_a_row_of_weight_zero_may_lie_anywhere(seeder):
    X, w = apart(), weights()
    moved = X.copy()
    moved[w == 0] = [1e6, -1e6]
    call = functools.partial(SEEDERS[seeder], jax.random.key(1))
    np.testing.assert_array_equal(
        call(*cast(np.float32, X), K, *cast(np.float32, w)),
        call(*cast(np.float32, moved), K, *cast(np.float32, w)),
    )


@pytest.mark.parametrize("n_distinct", [1, 2])
def test_fewer_distinct_points_than_components_still_give_seeds(n_distinct, dtype):
    X = CORNERS[np.arange(N) % n_distinct] + 0.3
    for seeder in ("kmeans_plusplus", "kmeans"):
        seeds = many(seeder, *cast(dtype, X, np.ones(N)))
        for one in seeds[:50]:
            np.testing.assert_allclose(np.unique(one, axis=0), np.unique(X, axis=0), rtol=1e-6)
    resp = random_resp(jax.random.key(0), *cast(dtype, X), K)
    assert np.isfinite(resp).all()


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5])
def test_an_offset_in_float32_hides_no_cluster(offset):
    X = apart()
    means = np.stack([X[k == LABELS].mean(0) for k in range(K)])
    found = many("kmeans", *cast(np.float32, X + offset, np.ones(N)))
    right = [np.allclose(in_order(c), in_order(means + offset), rtol=0, atol=2e-7 * offset) for c in found]
    assert np.mean(right) > 0.97


def test_random_resp_are_uniform_on_the_simplex(dtype):
    resp = np.asarray(random_resp(jax.random.key(0), jnp.zeros((20_000, D), dtype), 3), np.float64)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=4 * np.finfo(dtype).eps)
    assert (resp > 0).all()
    # Dirichlet(1, 1, 1): mean 1/3, second moments 2/12 and 1/12; the means of 20000 are known to 0.002.
    np.testing.assert_allclose(resp.mean(0), 1 / 3, atol=0.008)
    np.testing.assert_allclose(resp.T @ resp / len(resp), (1 + np.eye(3)) / 12, atol=0.005)


def test_from_responsibilities_is_the_m_step(name, dtype):
    X, w = cast(dtype, together(), weights())
    resp = np.random.default_rng(0).dirichlet(np.ones(K), size=N).astype(dtype)
    options = {"covariance_type": name, "sample_weight": w, "reg_covar": 1e-3}
    a = jaxgmm.init.from_responsibilities(resp, X, **options)
    b = jaxgmm.m_step(resp, X, **options)
    assert a.family == b.family
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_partition_gives_the_clusters_own_moments(double):
    X = apart()
    for kind in (float, int, bool):
        params = jaxgmm.init.from_responsibilities(np.eye(K)[LABELS].astype(kind), X, reg_covar=0)
        for k in range(K):
            mine = X[k == LABELS]
            np.testing.assert_allclose(params.means[k], mine.mean(0), rtol=1e-12)
            np.testing.assert_allclose(params.covariances[k], np.cov(mine.T, bias=True), rtol=1e-10)


# The named starts of fit_restarts, without the fit.


@functools.partial(jax.jit, static_argnames=("init", "name"))
def _starts(keys, X, w, init, name):
    f = summarise(X, w, jnp.zeros((), X.dtype))
    options = {"family": FAMILIES[name], "n_components": K, "block_size": N, "init": init}
    return jax.vmap(lambda k: start(k, X, w, f, **options))(keys)


def starts(X, w, *, init, name="full", seed=0):
    """Three starts."""
    return _starts(jax.random.split(jax.random.key(seed), 3), X, w, init=init, name=name)


@pytest.mark.parametrize("init", NAMES)
def test_named_starts_are_good_mixtures_whose_key_alone_decides(init):
    X, w = cast(np.float32, together(), weights())
    params = starts(X, w, init=init)
    assert params.means.shape == (3, K, D)
    np.testing.assert_allclose(params.weights.sum(1), 1, rtol=1e-5)
    assert (np.linalg.eigvalsh(params.covariances) > 0).all()
    jax.tree.map(np.testing.assert_array_equal, params, starts(X, w, init=init))
    other = starts(X, w, init=init, seed=1)
    for i in range(3):
        assert (params.means[i] != other.means[i]).any()
        assert (params.means[i] != params.means[i - 1]).any()


@pytest.mark.parametrize("init", NAMES)
def test_multiplying_features_by_powers_of_two_multiplies_the_starts(init):
    X, w = cast(np.float32, together(), weights())
    by = jnp.array([[2.0**9, 2.0**-9]], jnp.float32)
    here, there = starts(X, w, init=init), starts(X * by, w, init=init)
    np.testing.assert_allclose(there.weights, here.weights, rtol=1e-5)
    np.testing.assert_allclose(there.means, here.means * by[None], rtol=1e-5)
    np.testing.assert_allclose(there.scale, here.scale * by[None, :, :, None], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by"), [("tied", [512, 0.25]), ("diag", [512, 0.25]), ("spherical", [64, 64])]
)
def test_other_structures_starts_follow_the_units_they_can_express(name, by):
    X, w = cast(np.float32, together(), weights())
    by = jnp.asarray([by], jnp.float32)
    here, there = starts(X, w, init="kmeans++", name=name), starts(X * by, w, init="kmeans++", name=name)
    np.testing.assert_allclose(there.means, here.means * by[None], rtol=1e-5)
    scales = np.asarray(by[0])[:, None] * np.asarray(by[0])[None, :]
    np.testing.assert_allclose(
        there.covariances, np.asarray(here.covariances) * scales, rtol=1e-4, atol=1e-5 * scales.min()
    )


@pytest.mark.parametrize("init", NAMES)
def test_a_row_of_weight_zero_may_hold_nan_inside_jit(init):
    X, w = cast(np.float32, together(), weights())
    run = jax.jit(functools.partial(starts, init=init))
    bad = jnp.where((w > 0)[:, None], X, jnp.nan)
    clean = run(X, w)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(bad, w), clean)


def test_random_points_start_at_rows_as_wide_as_the_data():
    X = together()
    params = starts(*cast(np.float32, X, np.ones(N)), init="random_points")
    np.testing.assert_allclose(params.weights, 1 / K, rtol=1e-6)
    np.testing.assert_allclose(
        params.covariances, np.broadcast_to(np.diag(X.var(0)), (3, K, D, D)), rtol=1e-4, atol=1e-6
    )
    distance = squared_distances(np.asarray(params.means, float).reshape(-1, D), X).min(1)
    assert distance.max() < 1e-10


@pytest.mark.parametrize("init", ["kmeans++", "kmeans"])
def test_clusters_that_are_apart_are_found_before_the_first_step(init):
    X = apart()
    params = starts(*cast(np.float32, X + 1e4, np.ones(N)), init=init)
    means = np.stack([X[k == LABELS].mean(0) for k in range(K)]) + 1e4
    found = [np.allclose(in_order(m), in_order(means), rtol=0, atol=5e-3) for m in params.means]
    assert np.mean(found) >= 2 / 3
