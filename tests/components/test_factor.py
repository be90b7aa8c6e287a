"""Factor analysers: a dense oracle of their own; what holds of every structure is in test_families."""

import functools
import pickle
import re

import jax
import numpy as np
import pytest
from scipy import stats

import jaxgmm
from jaxgmm import GMMParams, Status
from jaxgmm.components import factor, gaussian, get_covariance
from tests.quick import quick_jit

K, D, Q, N = 2, 7, 2, 300


def planted(wide=1.0):
    """X float64 (N, D) from two factor analysers, and their means and dense covariances."""
    rng = np.random.default_rng(0)
    loadings, noise = rng.normal(size=(K, D, Q)), rng.uniform(0.4, 1.2, size=(K, D))
    loadings[:, :, 0] *= wide
    means = 0.8 * rng.normal(size=(K, D))
    labels = rng.integers(K, size=N)
    latent = np.einsum("ndq,nq->nd", loadings[labels], rng.normal(size=(N, Q)))
    X = means[labels] + latent + noise[labels] * rng.normal(size=(N, D))
    cov = np.einsum("kdq,keq->kde", loadings, loadings) + np.einsum("kd,de->kde", noise**2, np.eye(D))
    return X, means, cov


X, MEANS, COV = planted()


def mixture(dtype, wide=1.0):
    """Some parameters, not far from those of `planted`."""
    rng = np.random.default_rng(0)
    loadings, noise = rng.normal(size=(K, D, Q)), rng.uniform(0.5, 1.5, size=(K, D))
    loadings[:, :, 0] *= wide
    loadings += 0.3 * np.random.default_rng(1).normal(size=(K, D, Q))
    arrays = np.log([0.3, 0.7]), MEANS + 0.1, {"loadings": loadings, "noise": noise}
    return GMMParams(*jax.tree.map(lambda a: a.astype(dtype), arrays), gaussian(factor(Q)))


def dense(params):
    """weights, means and covariances in float64."""
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    loadings, noise = wide.scale["loadings"], wide.scale["noise"]
    low = np.einsum("kdq,keq->kde", loadings, loadings)
    return np.exp(wide.log_weights), wide.means, low + np.einsum("kd,de->kde", noise**2, np.eye(D))


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


quick_fit = quick_jit(jaxgmm.fit)


@quick_jit
def step(params, x, w, ridge):
    """The log-likelihood, one EM step, and what `update` says is the squared length of its change."""
    new, moments = jaxgmm.em_step(params, x, w, reg_covar=0.1)
    mean = moments.first / moments.weight[:, None]
    _, change = params.covariance.update(params.scale, moments.weight, mean, moments.second, ridge)
    return moments.log_likelihood, new, change


# Loadings 100 times the noise cost float32 two digits, and not four.
@pytest.mark.parametrize(
    ("dtype", "wide"), [("float32", 1.0), ("float32", 100.0), ("float64", 1.0)], indirect=["dtype"]
)
def test_log_prob_is_scipys_and_a_step_is_the_dense_one(dtype, wide):
    x, w = planted(wide=wide)[0].astype(dtype), np.random.default_rng(2).uniform(0.5, 2, size=N).astype(dtype)
    params = mixture(dtype, wide=wide)
    ridge = 0.1 * np.minimum(1, np.cov(x.T.astype(float), aweights=w, bias=True).diagonal())
    log_likelihood, got, change = step(params, x, w, ridge.astype(dtype))
    weights, means, cov = dense(params)
    tolerance = 100 * wide * np.finfo(dtype).eps
    if wide == 1.0:
        parts = [stats.multivariate_normal.pdf(x, m, c) for m, c in zip(means, cov, strict=True)]
        np.testing.assert_allclose(log_likelihood, w @ np.log(weights @ parts), rtol=2 * tolerance)
    expected = dense_step(params, x.astype(float), w.astype(float), ridge)
    for a, b in zip(dense(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    # The change, and its length: that of a whitened matrix.
    root = np.linalg.cholesky(cov)
    whitened = np.linalg.solve(root, np.linalg.solve(root, expected[2] - cov).swapaxes(1, 2))
    np.testing.assert_allclose(change, np.square(whitened).sum((1, 2)), rtol=10 * tolerance)


def test_a_fit_climbs_faster_by_extrapolation_and_an_offset_costs_nothing():
    x, start = X.astype(np.float32), mixture(np.float32)
    quick, plain = (quick_fit(start, x, accelerate=a, max_iter=1000, tol=1e-5) for a in (True, False))
    for result in (quick, plain):
        assert result.status == Status.CONVERGED
        history = np.asarray(result.history)
        assert (np.diff(history[np.isfinite(history)]) > -40 * np.finfo(np.float32).eps).all()
    np.testing.assert_allclose(quick.log_likelihood, plain.log_likelihood, atol=5e-6)
    assert quick.n_iter < plain.n_iter
    far = GMMParams(start.log_weights, start.means + 1024, start.scale, *start.model)
    here, there = (
        quick_fit(p, (X + a).astype(np.float32), accelerate=True, max_iter=20, tol=0.0)
        for p, a in ((start, 0), (far, 1024))
    )
    # The data themselves are rounded to 1024 eps = 1.2e-4 there.
    np.testing.assert_allclose(there.log_likelihood, here.log_likelihood, atol=5e-4)
    np.testing.assert_allclose(dense(there.params)[2], dense(here.params)[2], atol=2e-2)


def test_from_covariance_is_exact_on_the_structure_and_nan_where_it_is_not_positive_definite(double):
    # Its fixed point is approached geometrically.
    from_covariance = quick_jit(factor(Q).from_covariance)
    params = GMMParams(np.zeros(K), MEANS, from_covariance(COV), gaussian(factor(Q)))
    np.testing.assert_allclose(dense(params)[2], COV, atol=1e-8, rtol=1e-8)
    scale = from_covariance(COV * np.array([1, -1])[:, None, None])
    assert np.isfinite(scale["noise"][0]).all()
    assert np.isnan(scale["noise"][1]).any()


def test_a_start_has_the_variances_it_is_given_and_loadings_to_grow_from():
    variances = np.arange(1.0, K * D + 1, dtype=np.float32).reshape(K, D)
    scale = jax.tree.map(np.asarray, quick_jit(factor(3).from_variances)(variances))
    total = np.square(scale["noise"]) + np.square(scale["loadings"]).sum(-1)
    np.testing.assert_allclose(total, variances, rtol=1e-6)
    unit = scale["loadings"] / scale["noise"][:, :, None]
    assert np.linalg.svd(unit)[1].min() > 0.1


def test_loadings_of_zero_and_components_without_weight_keep_values_and_gradients_finite():
    params, x = mixture(np.float32), X.astype(np.float32)
    zero = {**params.scale, "loadings": params.scale["loadings"] * np.float32([0, 1])[:, None, None]}
    off = GMMParams(np.float32([0, -np.inf]), params.means, zero, *params.model)
    gradient = quick_jit(jax.grad(lambda p: jaxgmm.log_prob(p, x).sum()))(off)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((gradient.means, gradient.scale)))
    _, after, _ = step(off, x, np.ones(N, np.float32), np.full(D, 0.1, np.float32))
    np.testing.assert_array_equal(after.scale["loadings"], zero["loadings"])
    np.testing.assert_array_equal(after.scale["noise"][1], zero["noise"][1])
    assert after.log_weights[1] == -np.inf


def test_nothing_of_size_d_by_d_is_ever_formed():
    n, d, k, q = 2000, 200, 8, 5
    x = jax.ShapeDtypeStruct((n, d), np.float32)
    start = jax.eval_shape(
        lambda v: GMMParams(v[:, 0], v, factor(q).from_variances(v), gaussian(factor(q))),
        jax.ShapeDtypeStruct((k, d), np.float32),
    )
    run = functools.partial(jaxgmm.fit_restarts, n_components=k, covariance_type=factor(q), n_init=1)
    key = jax.random.key(0)
    programs = [
        jax.make_jaxpr(run)(key, x),
        jax.make_jaxpr(jaxgmm.fit)(start, x),
        jax.make_jaxpr(jaxgmm.log_prob)(start, x),
        jax.make_jaxpr(lambda key, p: jaxgmm.sample(key, p, 300))(key, start),
    ]
    sizes = {tuple(map(int, s.split(","))) for p in programs for s in re.findall(r"\[([\d,]+\d)\]", str(p))}
    assert (k, d, q) in sizes
    assert not [s for s in sizes if s.count(d) > 1]


def test_parameters_are_counted_without_the_rotation():
    assert factor(2).n_parameters(3, 7) == 3 * (7 * 2 - 1 + 7)
    assert jaxgmm.n_parameters(mixture(np.float32)) == 1 + K * D + factor(Q).n_parameters(K, D)


def test_equal_ranks_are_equal_records_by_name_by_rank_from_a_pickle_and_from_a_file(tmp_path):
    assert get_covariance("factor(5)") is factor(5)
    assert factor(5) != factor(4)
    assert factor(5)._replace() == factor(5) == factor.__wrapped__(5)
    assert hash(factor(5)) == hash(factor.__wrapped__(5)) == hash(pickle.loads(pickle.dumps(factor(5))))
    params = mixture(np.float32)
    jaxgmm.save(tmp_path / "model.npz", params)
    back = jaxgmm.load(tmp_path / "model.npz")
    assert back.covariance is factor(Q)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_rank_is_a_positive_int_below_the_number_of_features():
    for rank in (0, -1, True, 1.5, "2"):
        with pytest.raises((ValueError, TypeError), match="rank must be"):
            factor(rank)
    for name in ("factor(0)", "factor()", "factor(x)", "factor(-1)", "factor"):
        with pytest.raises(ValueError, match=r"factor\(q\)"):
            get_covariance(name)
    for use in (
        lambda: jaxgmm.fit_restarts(jax.random.key(0), X, 2, covariance_type=factor(D)),
        lambda: jaxgmm.m_step(np.ones((N, 1)), X, covariance_type=factor(D + 1)),
        lambda: jaxgmm.make_params([1.0], np.zeros((1, 3)), np.eye(3)[None], "factor(3)"),
        lambda: factor(4).n_parameters(2, 4),
    ):
        with pytest.raises(ValueError, match=r"needs more than \d features"):
            use()
