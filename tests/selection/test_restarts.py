"""Many fits at once are the fits one by one; padding a mixture changes nothing but its shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from jaxgmm.components import full
from tests.conftest import costly, overlapping, soft_labels

N, D, K = 90, 2, 3
X, LABELS = overlapping(N, D, K, seed=4, separation=3.0)
X32 = X.astype(np.float32)
SIZES = (1, 2, 3, 4, 5)
INITS = ["kmeans++", "kmeans", "random_points", "random_resp"]


def at_rows(key, X, n_components, sample_weight):
    """A start of one's own: means at rows that the key draws."""
    rows = jax.random.choice(key, X.shape[0], (n_components,), replace=False)
    covariances = jnp.broadcast_to(jnp.cov(X.T), (n_components, D, D)).astype(X.dtype)
    weights = jnp.full(n_components, 1 / n_components, X.dtype)
    return jaxgmm.make_params(weights, X[rows], covariances)


@functools.cache
def first_rows(name):
    """A start that ignores the key: means at the first rows, so that fewer begin like the first of more."""

    def init(key, X, n_components, sample_weight):
        variances = jnp.broadcast_to(X.var(0)[None, :], (n_components, D))
        covariances = {
            "full": jnp.eye(D, dtype=X.dtype)[None] * variances[:, :, None],
            "tied": jnp.eye(D, dtype=X.dtype) * variances[0][:, None],
            "diag": variances,
            "spherical": variances.mean(1),
        }[name]
        weights = jnp.full(n_components, 1 / n_components, X.dtype)
        return jaxgmm.make_params(weights, X[:n_components], covariances, name)

    return init


def lane(results, i):
    return jax.tree.map(lambda a: a[i], results)


def assert_same_fit(a, b, rtol, *, atol=None):
    assert int(a.status) == int(b.status)
    assert int(a.n_iter) == int(b.n_iter)
    atol = rtol if atol is None else atol
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a.params, b.params)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=rtol)


def test_every_lane_is_the_fit_from_its_own_start(double):
    key = jax.random.key(0)
    results = jaxgmm.fit_restarts(key, X, K, n_init=4, init=at_rows)
    assert (results.status == Status.CONVERGED).all()
    assert len(np.unique(np.asarray(results.params.means).round(3), axis=0)) > 1
    for i, k in enumerate(jax.random.split(key, 4)):
        alone = jaxgmm.fit(at_rows(k, jnp.asarray(X), K, None), X)
        assert_same_fit(lane(results, i), alone, 1e-7)


@functools.cache
def restarted(init, seed=1, **options):
    """Four starts in float32; one compilation for each kind of start."""
    return jaxgmm.fit_restarts(jax.random.key(seed), X32, K, init=init, n_init=4, **options)


@pytest.mark.slow
def test_results_have_a_lane_for_each_start_and_the_dtype_of_x():
    results = restarted("kmeans++")
    assert results.status.shape == results.n_iter.shape == results.log_likelihood.shape == (4,)
    assert results.history.shape == (4, 256)
    assert results.params.means.shape == (4, K, D)
    assert results.params.covariances.shape == (4, K, D, D)
    assert results.params.weights.shape == (4, K)
    assert {a.dtype for a in jax.tree.leaves(results.params)} == {np.dtype("float32")}
    for i in range(4):
        score = jaxgmm.score(lane(results, i).params, X32)
        np.testing.assert_allclose(results.log_likelihood[i], score, rtol=3e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("init", [costly(i, quick=INITS[:1]) for i in INITS])
def test_every_named_start_reaches_an_optimum_that_sits_still(init):
    results = restarted(init)
    jax.tree.map(np.testing.assert_array_equal, results, restarted.__wrapped__(init))
    assert (np.asarray(restarted(init, seed=2).params.means) != np.asarray(results.params.means)).any()
    winner = jaxgmm.best(results)
    assert winner.status == Status.CONVERGED
    assert winner.log_likelihood == results.log_likelihood.max()
    moved, _ = jaxgmm.em_step(winner.params, X32)
    np.testing.assert_allclose(moved.means, winner.params.means, atol=2e-3)
    # The clusters that the data were drawn from are a start as good as any.
    assert float(winner.log_likelihood) > float(from_truth().log_likelihood) - 1e-4


@functools.cache
def from_truth():
    return jaxgmm.fit(jaxgmm.m_step(soft_labels(LABELS, K, np.float32), X32), X32)


@pytest.mark.slow
def test_rows_of_weight_zero_are_rows_left_out(double):
    w = (np.arange(N) % 5 != 0) * np.random.default_rng(0).uniform(0.5, 2, N)
    on = w > 0
    far = X.copy()
    far[~on] = 1e6

    def same_start(key, X, n_components, sample_weight):
        return jaxgmm.m_step(soft_labels(LABELS[on], K), X_on)

    X_on = X[on]
    a = jaxgmm.fit_restarts(jax.random.key(0), far, K, w, n_init=1, init=same_start)
    b = jaxgmm.fit_restarts(jax.random.key(0), X[on], K, w[on], n_init=1, init=same_start)
    assert a.status[0] == b.status[0] == Status.CONVERGED
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(a.params.means, b.params.means, rtol=1e-6)
    np.testing.assert_allclose(a.params.covariances, b.params.covariances, rtol=1e-5, atol=1e-8)


def test_a_start_of_ones_own_is_given_the_key_the_data_and_the_weights():
    seen = []

    def init(key, X, n_components, sample_weight):
        seen.append((key.shape, X.shape, n_components, sample_weight.shape))
        return at_rows(key, X, n_components, sample_weight)

    jax.eval_shape(
        lambda k, w: jaxgmm.fit_restarts(k, X32, K, w, n_init=2, init=init),
        jax.random.key(0), jnp.ones(N, jnp.float32),
    )  # fmt: skip
    assert set(seen) == {((), (N, D), K, (N,))}


@pytest.mark.slow
def test_a_family_of_ones_own_fits_like_the_one_it_copies():
    mine = full._replace(name="mine", to_natural=None, from_natural=None)
    options = {"max_iter": 3000, "tol": 1e-3}
    a = restarted("kmeans++", covariance_type=mine, **options)
    b = restarted("kmeans++", accelerate=False, **options)
    assert a.params.family.name == "mine"
    np.testing.assert_array_equal(a.status, b.status)
    np.testing.assert_allclose(a.n_iter, b.n_iter, atol=2)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(a.params.means, b.params.means, rtol=1e-3, atol=1e-3)


# Several numbers of components


@functools.cache
def padded(name):
    """fit_components in float64 from starts that are the same for every K, apart from how many are on."""
    return jaxgmm.fit_components(
        jax.random.key(0), X, SIZES, covariance_type=name, n_init=1, init=first_rows(name), tol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "k"),
    [("full", 3), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("full", 5), ("tied", 3)))],
)
def test_a_padded_fit_is_the_fit_without_padding(k, name, double):
    one = lane(padded(name), SIZES.index(k))
    start = first_rows(name)(None, jnp.asarray(X), k, None)
    alone = jaxgmm.fit(start, X, tol=1e-6)
    assert one.status == alone.status == Status.CONVERGED
    assert abs(int(one.n_iter) - int(alone.n_iter)) <= 3  # accelerated as much
    np.testing.assert_allclose(one.log_likelihood, alone.log_likelihood, rtol=0, atol=1e-10)
    active = jaxgmm.mixture.active(one.params)
    assert active.n_components == k
    np.testing.assert_allclose(active.weights, alone.params.weights, atol=1e-5)
    np.testing.assert_allclose(active.means, alone.params.means, atol=1e-4)
    np.testing.assert_allclose(active.covariances, alone.params.covariances, atol=1e-4)


def test_padding_stays_off_with_finite_arrays_and_gradients(name, double):
    results = padded(name)
    expected = np.arange(max(SIZES))[None, :] >= np.array(SIZES)[:, None]
    np.testing.assert_array_equal(np.asarray(results.params.log_weights) == -np.inf, expected)
    np.testing.assert_allclose(results.params.weights.sum(1), 1, rtol=1e-12)
    for leaf in jax.tree.leaves((results.params.means, results.params.scale)):
        assert np.isfinite(leaf).all()
    for i in range(len(SIZES)):
        params = lane(results.params, i)
        gradient = jax.grad(lambda p: jaxgmm.log_prob(p, X).sum())(params)
        for leaf in jax.tree.leaves(gradient):
            assert np.isfinite(leaf).all()
        off = expected[i]
        np.testing.assert_array_equal(np.asarray(gradient.means)[off], 0)
        assert (np.asarray(gradient.log_weights)[~off] != 0).all()


def test_padding_says_nothing_of_the_data(name, double):
    k = 3
    params = lane(padded(name).params, SIZES.index(k))
    alone = jaxgmm.mixture.active(params)
    np.testing.assert_allclose(jaxgmm.log_prob(params, X), jaxgmm.log_prob(alone, X), rtol=1e-12)
    assert (jaxgmm.responsibilities(params, X)[:, k:] == 0).all()
    assert int(jaxgmm.predict(params, X).max()) < k
    assert int(jaxgmm.sample(jax.random.key(0), params, 200)[1].max()) == k - 1
    assert jaxgmm.n_parameters(params) == jaxgmm.n_parameters(alone)


def test_one_component_is_the_sample_mean_and_covariance(name, double):
    params = lane(padded(name).params, 0)
    covariance = np.cov(X.T, bias=True)
    expected = {
        "full": covariance,
        "tied": covariance,
        "diag": np.diag(np.diag(covariance)),
        "spherical": np.eye(D) * np.trace(covariance) / D,
    }[name]
    np.testing.assert_allclose(params.means[0], X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(params.covariances[0], expected, rtol=1e-5, atol=1e-5)


@functools.cache
def searched():
    return jaxgmm.fit_components(jax.random.key(5), X32, SIZES, n_init=5)


@pytest.mark.slow
def test_more_components_never_fit_worse():
    assert (np.diff(searched().log_likelihood) >= -1e-4).all()
    assert float(searched().log_likelihood[2] - searched().log_likelihood[1]) > 0.05


@pytest.mark.slow
def test_the_number_that_was_drawn_has_the_smallest_bic():
    bics = jax.vmap(lambda p: jaxgmm.bic(p, X32))(searched().params)
    assert SIZES[int(bics.argmin())] == K


def test_sizes_may_come_in_any_order_and_a_key_gives_the_same_bits():
    run = functools.partial(jaxgmm.fit_components, X=X32, n_init=5)
    jax.tree.map(np.testing.assert_array_equal, run(jax.random.key(5), n_components=SIZES), searched())
    mixed = run(jax.random.key(5), n_components=[4, 5, 1, 3, 1])
    on = (np.asarray(mixed.params.log_weights) > -np.inf).sum(1)
    np.testing.assert_array_equal(on, [4, 5, 1, 3, 1])
    np.testing.assert_allclose(mixed.log_likelihood[2], mixed.log_likelihood[4], rtol=1e-5)
    np.testing.assert_allclose(mixed.log_likelihood[2], searched().log_likelihood[0], rtol=1e-5)


def test_of_several_starts_the_best_is_kept(double):
    key = jax.random.key(3)
    # After four steps no two of them are as far.
    several = jaxgmm.fit_components(key, X, (K,), n_init=4, init=at_rows, max_iter=4)
    each = [
        jaxgmm.fit(at_rows(k, jnp.asarray(X), K, None), X, max_iter=4).log_likelihood
        for k in jax.random.split(key, 4)
    ]
    assert max(each) - min(each) > 1e-3
    np.testing.assert_allclose(several.log_likelihood, [max(each)], rtol=1e-9)


@functools.cache
def given_starts():
    rng = np.random.default_rng(3)
    one = [
        jaxgmm.m_step(soft_labels(rng.integers(K, size=N), K, X.dtype), X, covariance_type="diag")
        for _ in range(3)
    ]
    return jax.tree.map(lambda *a: jnp.stack(a), *one)


@pytest.mark.parametrize("kernel", ["whitened", pytest.param("quadratic", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_starting_mixtures_that_are_given_are_where_the_fits_begin(double, kernel):
    starts = given_starts()
    options = {"max_iter": 6, "tol": 0.0, "options": EMOptions(kernel=kernel)}
    results = jaxgmm.fit_restarts(jax.random.key(0), X, K, init=starts, **options)
    assert results.params.family.name == "diag"
    for i in range(3):
        single = jaxgmm.fit(lane(starts, i), X, **options)
        assert_same_fit(lane(results, i), single, 1e-9)
    assert len(np.unique(results.log_likelihood)) == 3


def test_starting_mixtures_that_do_not_fit_are_refused(double):
    starts = given_starts()
    with pytest.raises(ValueError, match=r"leading axis.*\(n_init, 2, 2\).*got \(3, 3, 2\)"):
        jaxgmm.fit_restarts(jax.random.key(0), X, 2, init=starts)
    with pytest.raises(ValueError, match=r"must have a leading axis.*got \(3, 2\)"):
        jaxgmm.fit_restarts(jax.random.key(0), X, K, init=lane(starts, 0))
    uneven = jaxgmm.GMMParams(starts.log_weights[:2], starts.means, starts.scale, starts.family)
    with pytest.raises(ValueError, match=r"differ in their leading axis: \[2, 3\]"):
        jaxgmm.fit_restarts(jax.random.key(0), X, K, init=uneven)
    with pytest.raises(TypeError, match="give them to fit_restarts"):
        jaxgmm.fit_components(jax.random.key(0), X, SIZES, init=starts)
