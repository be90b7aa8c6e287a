"""Factor analysers: the generic checks of every structure, and a dense oracle of their own."""

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxgmm
from jaxgmm import GMMParams, Status
from jaxgmm.components import factor, get_family
from tests import test_degenerate, test_em, test_package
from tests.components import test_families
from tests.conftest import dense

# What holds of every structure, with factor(1) in the place of the table's names. Left out is what factor
# analysers do not promise: one M-step is not the maximum (below: a step of EM, by a dense oracle), a start is
# not quite diagonal, and natural coordinates are not linear in the precision.
test_whitening_gives_the_mahalanobis_distance = test_families.test_whitening_gives_the_mahalanobis_distance
test_colouring_undoes_whitening = test_families.test_colouring_undoes_whitening
test_update_never_gives_nan = test_families.test_update_never_gives_nan_where_a_covariance_vanishes
test_natural_coordinates = test_families.test_natural_coordinates_go_there_and_back
test_unconstrained_coordinates = (
    test_families.test_unconstrained_coordinates_are_minimal_and_go_there_and_back
)
test_unconstrained_identified = test_families.test_unconstrained_coordinates_are_identified
test_integer_weights_are_repetition = test_em.test_integer_weights_are_repetition
test_records_survive = test_package.test_records_survive_pickling_and_copying_and_keep_their_family
start, x = test_em.start, test_em.x

K, D, Q, N = 2, 7, 2, 300


@pytest.fixture
def name():
    return "factor(1)"


@pytest.fixture
def family():
    return factor(1)


@pytest.mark.slow
@pytest.mark.parametrize("case", test_degenerate.CASES)
def test_every_fit_is_finite_or_says_why_and_never_decreases(case):
    dtype = np.dtype("float32")
    test_degenerate.test_every_fit_is_finite_or_says_why_and_converged_means_it(case, "factor(1)", dtype)
    test_degenerate.test_em_on_any_of_these_data_never_decreases(case, "factor(1)", dtype)


def planted(n_samples=N, seed=0, separation=0.8, wide=1.0):
    """X float64 (N, D) from two factor analysers, and their means and dense covariances."""
    rng = np.random.default_rng(seed)
    loadings, noise = rng.normal(size=(K, D, Q)), rng.uniform(0.4, 1.2, size=(K, D))
    loadings[:, :, 0] *= wide
    means = separation * rng.normal(size=(K, D))
    labels = rng.integers(K, size=n_samples)
    latent = np.einsum("ndq,nq->nd", loadings[labels], rng.normal(size=(n_samples, Q)))
    X = means[labels] + latent + noise[labels] * rng.normal(size=(n_samples, D))
    cov = np.einsum("kdq,keq->kde", loadings, loadings) + np.einsum("kd,de->kde", noise**2, np.eye(D))
    return X, means, cov


X, MEANS, COV = planted()


def mixture(dtype, seed=0, wide=1.0):
    """Some parameters, not far from those of `planted`."""
    rng = np.random.default_rng(seed)
    loadings, noise = rng.normal(size=(K, D, Q)), rng.uniform(0.5, 1.5, size=(K, D))
    loadings[:, :, 0] *= wide
    loadings += 0.3 * np.random.default_rng(seed + 1).normal(size=(K, D, Q))
    scale = {"loadings": jnp.asarray(loadings, dtype), "noise": jnp.asarray(noise, dtype)}
    log_weights = jnp.log(jnp.asarray([0.3, 0.7], dtype))
    return GMMParams(log_weights, jnp.asarray(MEANS + 0.1, dtype), scale, factor(Q))


def dense_step(params, x, w, ridge):
    """One EM step in float64 with D × D matrices, after Rubin & Thayer (1982)."""
    pi, mu, cov = dense(params)
    loadings = np.asarray(params.scale["loadings"], np.float64)
    joint = np.stack([stats.multivariate_normal.logpdf(x, m, c) for m, c in zip(mu, cov, strict=True)], 1)
    joint += np.log(pi)
    r = np.exp(joint - joint.max(1, keepdims=True))
    r *= (w / r.sum(1))[:, None]
    n = r.sum(0)
    means = r.T @ x / n[:, None]
    gaps = x[:, None] - means[None]
    scatter = np.einsum("nk,nkd,nke->kde", r, gaps, gaps) / n[:, None, None] + np.diag(ridge)
    covs = []
    for s, c, old in zip(scatter, cov, loadings, strict=True):
        beta = old.T @ np.linalg.inv(c)
        latent = np.eye(Q) - beta @ old + beta @ s @ beta.T
        new = s @ beta.T @ np.linalg.inv(latent)
        covs.append(new @ new.T + np.diag(np.diag(s - new @ beta @ s)))
    return n / n.sum(), means, np.stack(covs)


def test_log_prob_is_scipys(dtype):
    params = mixture(dtype)
    weights, means, cov = dense(params)
    expected = np.log(
        sum(w * stats.multivariate_normal.pdf(X, m, c) for w, m, c in zip(weights, means, cov, strict=True))
    )
    np.testing.assert_allclose(
        jaxgmm.log_prob(params, X.astype(dtype)), expected, rtol=200 * np.finfo(dtype).eps
    )


def test_log_det_and_diagonals(dtype):
    params = mixture(dtype)
    cov, family, tolerance = dense(params)[2], params.family, 100 * float(np.finfo(dtype).eps)
    got = [f(params.scale, (K, D)) for f in (family.log_det, family.diagonal, family.inverse_diagonal)]
    diagonals = [np.einsum("kdd->kd", c) for c in (cov, np.linalg.inv(cov))]
    for a, b in zip(got, [np.linalg.slogdet(cov)[1], *diagonals], strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance)


def test_a_step_is_the_dense_one(dtype):
    check_step(dtype, 1.0)


def test_loadings_100_times_the_noise_cost_float32_two_digits_and_not_four():
    check_step(np.dtype("float32"), 100.0)


def check_step(dtype, wide):
    x, w = planted(wide=wide)[0].astype(dtype), np.random.default_rng(2).uniform(0.5, 2, size=N).astype(dtype)
    params = mixture(dtype, wide=wide)
    got, moments = jaxgmm.em_step(params, x, w, reg_covar=0.1)
    ridge = 0.1 * np.minimum(1, np.cov(x.T.astype(float), aweights=w, bias=True).diagonal())
    expected = dense_step(params, x.astype(float), w.astype(float), ridge)
    tolerance = 100 * wide * np.finfo(dtype).eps
    for a, b in zip(dense(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    # The change, and its length: that of a whitened matrix.
    family = params.family
    root = np.linalg.cholesky(dense(params)[2])
    whitened = np.linalg.solve(root, np.linalg.solve(root, expected[2] - dense(params)[2]).swapaxes(1, 2))
    mean = moments.first / moments.weight[:, None]
    _, change = family.update(params.scale, moments.weight, mean, moments.second, jnp.asarray(ridge, dtype))
    np.testing.assert_allclose(change, np.square(whitened).sum((1, 2)), rtol=10 * tolerance)


@pytest.mark.slow
def test_a_step_raises_the_expected_log_likelihood_and_stops_where_its_gradient_vanishes(double):
    start = mixture(double)
    result = jaxgmm.fit(start, X, reg_covar=0.0, tol=1e-10, max_iter=5000)
    assert result.status == Status.CONVERGED
    slope = jax.grad(lambda p: jaxgmm.score(p, X))(result.params)
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves((slope.means, slope.scale))) < 1e-8
    resp, _ = jaxgmm.e_step(start, X)
    after, moments = jaxgmm.em_step(start, X, reg_covar=0.0)
    assert jaxgmm.elbo(after, resp, X) > jaxgmm.elbo(start, resp, X) + 1
    # At the fixed point the step is nothing: not rounding of large terms, but nothing.
    _, moments = jaxgmm.em_step(result.params, X, reg_covar=0.0)
    mean = moments.first / moments.weight[:, None]
    family = start.family
    _, change = family.update(result.params.scale, moments.weight, mean, moments.second, jnp.zeros(D))
    assert float(jnp.sqrt(change).max()) < 1e-9


@pytest.mark.slow
def test_the_likelihood_never_falls_and_extrapolation_ends_where_em_does(dtype):
    quick, plain = (jaxgmm.fit(mixture(dtype), X.astype(dtype), accelerate=a) for a in (True, False))
    for result in (quick, plain):
        assert result.status == Status.CONVERGED
        history = np.asarray(result.history)
        assert (np.diff(history[np.isfinite(history)]) > -40 * np.finfo(dtype).eps).all()
    np.testing.assert_allclose(quick.log_likelihood, plain.log_likelihood, atol=5e-6)
    assert quick.n_iter < plain.n_iter


def test_an_offset_in_float32_costs_nothing():
    wide = jaxgmm.fit(mixture(np.float32), X.astype(np.float32), max_iter=20, tol=0.0)
    moved = GMMParams(*(getattr(mixture(np.float32), f) for f in ("log_weights", "means", "scale", "family")))
    there = jax.tree.map(lambda a: a, moved)
    there = GMMParams(there.log_weights, there.means + 1024, there.scale, there.family)
    far = jaxgmm.fit(there, (X + 1024).astype(np.float32), max_iter=20, tol=0.0)
    # The data themselves are rounded to 1024 eps = 1.2e-4 there.
    np.testing.assert_allclose(far.log_likelihood, wide.log_likelihood, atol=5e-4)
    np.testing.assert_allclose(far.params.covariances, wide.params.covariances, atol=2e-2)


@pytest.mark.slow
def test_planted_factors_are_found_from_a_cold_start(double):
    many, means, cov = planted(n_samples=4000, separation=2.0)
    results = jaxgmm.fit_restarts(jax.random.key(0), many, K, covariance_type="factor(2)", n_init=2)
    _, found, covs = dense(jaxgmm.check(jaxgmm.best(results)).params)
    order = np.argsort(np.square(found[:, None] - means[None]).sum(2).argmin(1))
    np.testing.assert_allclose(found[order], means, atol=0.25)
    widths = np.sqrt(np.einsum("kdd->kd", cov))
    np.testing.assert_allclose(
        covs[order] / widths[:, :, None] / widths[:, None, :],
        cov / widths[:, :, None] / widths[:, None, :],
        atol=0.1,
    )


def test_from_covariance_is_exact_on_the_structure_and_nan_where_it_is_not_positive_definite(dtype):
    # Its fixed point is approached geometrically: in float32 it stops some 1e3 roundings before it.
    scale = factor(Q).from_covariance(jnp.asarray(COV, dtype))
    close = 1e-8 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(factor(Q).to_covariance(scale, (K, D)), COV, atol=close, rtol=close)
    broken = jnp.asarray(COV, dtype).at[1].multiply(-1)
    scale = factor(Q).from_covariance(broken)
    assert np.isfinite(scale["noise"][0]).all()
    assert np.isnan(scale["noise"][1]).any()
    with pytest.raises(ValueError, match="component 1 is not"):
        jaxgmm.make_params([0.5, 0.5], MEANS, broken, "factor(2)")


def test_a_start_has_the_variances_it_is_given_and_loadings_to_grow_from(dtype):
    variances = jnp.asarray(np.arange(1.0, K * D + 1).reshape(K, D), dtype)
    scale = factor(3).from_variances(variances)
    np.testing.assert_allclose(factor(3).diagonal(scale, (K, D)), variances, rtol=1e-6)
    unit = scale["loadings"] / scale["noise"][:, :, None]
    assert np.linalg.svd(np.asarray(unit))[1].min() > 0.1


def test_loadings_of_zero_and_components_without_weight_keep_values_and_gradients_finite(double):
    params = mixture(double)
    zero = {**params.scale, "loadings": params.scale["loadings"].at[0].set(0.0)}
    off = GMMParams(jnp.array([0.0, -jnp.inf]), params.means, zero, params.family)
    gradient = jax.grad(lambda p: jaxgmm.log_prob(p, X).sum())(off)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((gradient.means, gradient.scale)))
    after, _ = jaxgmm.em_step(off, X)
    np.testing.assert_array_equal(after.scale["loadings"], zero["loadings"])
    np.testing.assert_array_equal(after.scale["noise"][1], zero["noise"][1])
    assert after.log_weights[1] == -np.inf


@pytest.mark.exhaustive
@pytest.mark.slow
def test_gradients_of_a_fit_agree_with_refits(double):
    """Although turning the loadings makes I minus the map's Jacobian singular."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, Q)) @ rng.normal(size=(Q, D)) + rng.normal(size=(300, D))
    start = jaxgmm.m_step(np.ones((300, 1)), x, covariance_type=factor(Q))

    @jax.jit
    def value(w, reg):
        params = jaxgmm.fit(start, x, w, reg_covar=reg, tol=1e-11, max_iter=3000).params
        return jnp.sin(params.means).sum() + jnp.log1p(params.covariances**2).sum()

    w, reg = jnp.asarray(rng.uniform(0.5, 1.5, size=300)), jnp.asarray(0.05)
    along, h = jnp.asarray(rng.normal(size=300)), 1e-5
    for_w, for_reg = jax.jit(jax.grad(value, argnums=(0, 1)))(w, reg)
    slope = (value(w + h * along, reg) - value(w - h * along, reg)) / (2 * h)
    np.testing.assert_allclose((for_w * along).sum(), slope, rtol=1e-5)
    np.testing.assert_allclose(for_reg, (value(w, reg + h) - value(w, reg - h)) / (2 * h), rtol=1e-5)


@pytest.mark.slow
def test_nothing_of_size_d_by_d_is_ever_formed():
    n, d, k, q = 2000, 200, 8, 5
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n, q)) @ rng.normal(size=(q, d)) + rng.normal(size=(n, d))).astype(np.float32)
    run = functools.partial(
        jaxgmm.fit_restarts, n_components=k, covariance_type=factor(q), n_init=1, max_iter=3, tol=0.0
    )
    key = jax.random.key(0)
    params = jax.tree.map(lambda a: a[0], run(key, x).params)
    programs = [
        jax.make_jaxpr(run)(key, x),
        jax.make_jaxpr(jaxgmm.fit)(params, x),
        jax.make_jaxpr(jaxgmm.log_prob)(params, x),
        jax.make_jaxpr(lambda key: jaxgmm.sample(key, params, 300))(key),
    ]
    sizes = {tuple(map(int, s.split(","))) for p in programs for s in re.findall(r"\[([\d,]+\d)\]", str(p))}
    assert (k, d, q) in sizes
    assert not [s for s in sizes if s.count(d) > 1]
    result = run(key, x)
    history = np.asarray(result.history)[0, :3]
    assert (np.diff(history) > 0).all()


def test_parameters_are_counted_without_the_rotation():
    assert factor(2).n_parameters(3, 7) == 3 * (7 * 2 - 1 + 7)
    assert jaxgmm.n_parameters(mixture(np.float32)) == 1 + K * D + factor(Q).n_parameters(K, D)


def test_equal_ranks_are_equal_records_by_name_by_rank_and_from_a_pickle():
    assert get_family("factor(5)") is factor(5)
    assert factor(5) != factor(4)
    assert factor(5)._replace() == factor(5) == factor.__wrapped__(5)
    assert hash(factor(5)) == hash(factor.__wrapped__(5)) == hash(pickle.loads(pickle.dumps(factor(5))))


def test_saved_mixtures_come_back(tmp_path):
    params = mixture(np.float32)
    jaxgmm.save(tmp_path / "model.npz", params)
    back = jaxgmm.load(tmp_path / "model.npz")
    assert back.family is factor(Q)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("rank", [0, -1, True, 1.5, "2"])
def test_a_rank_is_a_positive_int(rank):
    with pytest.raises((ValueError, TypeError), match="rank must be"):
        factor(rank)


@pytest.mark.parametrize("name", ["factor(0)", "factor()", "factor(x)", "factor(-1)", "factor"])
def test_names_that_are_no_ranks(name):
    with pytest.raises(ValueError, match=r"factor\(q\)"):
        get_family(name)


def test_there_are_fewer_factors_than_features():
    for use in (
        lambda: jaxgmm.fit_restarts(jax.random.key(0), X, 2, covariance_type=factor(D)),
        lambda: jaxgmm.m_step(np.ones((N, 1)), X, covariance_type=factor(D + 1)),
        lambda: jaxgmm.make_params([1.0], np.zeros((1, 3)), np.eye(3)[None], "factor(3)"),
        lambda: factor(4).n_parameters(2, 4),
    ):
        with pytest.raises(ValueError, match=r"needs more than \d features"):
            use()
