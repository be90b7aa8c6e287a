"""Reduction to fewer components: against a plain computation in NumPy, moments, and the divergence."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxgmm.components import STRUCTURES, gaussian, student_t
from jaxgmm.distributions import reduce
from tests.closed import CLOSED, build, dense
from tests.quick import quick_jit

K, D, LEFT = 6, 3, 3


def mixture(name="full", seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(K, D, D))
    covariances = a @ a.transpose(0, 2, 1) / D + 0.3 * np.eye(D)
    return build(name, rng.dirichlet(np.full(K, 3.0)), 2 * rng.normal(size=(K, D)), covariances, dtype)


def moments(weights, means, covariances):
    """Mean and covariance of the whole."""
    mean = weights @ means
    gaps = means - mean
    return mean, np.einsum("k,kde->de", weights, covariances + gaps[:, :, None] * gaps[:, None, :])


def by_hand(weights, means, covariances, left):
    """Runnalls' algorithm on dense matrices: the mixture, the sum of the costs, and who went where."""
    parts = [(w, m, c, [k]) for k, (w, m, c) in enumerate(zip(weights, means, covariances, strict=True))]
    bound = 0.0
    while len(parts) > left:
        options = []
        for i in range(len(parts)):
            for j in range(i):
                (v, a, s, p), (w, b, t, q) = parts[j], parts[i]
                total, mean = v + w, (v * a + w * b) / (v + w)
                cov = (v * s + w * t) / total + v * w / total**2 * np.outer(a - b, a - b)
                logs = [np.linalg.slogdet(c)[1] for c in (cov, s, t)]
                options.append(
                    (0.5 * (total * logs[0] - v * logs[1] - w * logs[2]), j, i, (total, mean, cov, p + q))
                )
        cost, j, i, merged = min(options, key=lambda o: o[0])
        bound += cost
        parts[j] = merged
        del parts[i]
    labels = np.empty(len(weights), int)
    for n, part in enumerate(parts):
        labels[part[3]] = n
    return *(np.stack([p[n] for p in parts]) for n in range(3)), bound, labels


def test_it_is_runnalls_algorithm_and_keeps_the_moments(double):
    params = mixture()
    found = reduce(params, LEFT)
    weights, means, covariances, bound, labels = by_hand(*dense(params), LEFT)
    got = dense(found.params)
    for a, b in zip(got, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.bound, bound, rtol=1e-10)
    np.testing.assert_array_equal(found.labels, labels)
    for a, b in zip(moments(*got), moments(*dense(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_below_the_bound(seed, double):
    params = mixture(seed=seed)
    found = reduce(params, LEFT)
    rng, (w, m, c) = np.random.default_rng(seed), dense(params)
    # The same number of points from each component, weighted: less variance.
    X = [rng.multivariate_normal(a, b, 4000) for a, b in zip(m, c, strict=True)]

    def log_density(x, parts):
        return np.log(sum(a * stats.multivariate_normal(b, s).pdf(x) for a, b, s in zip(*parts, strict=True)))

    terms = np.stack([log_density(x, (w, m, c)) - log_density(x, dense(found.params)) for x in X])
    divergence = w @ terms.mean(1)
    error = np.sqrt(w**2 @ terms.var(1) / 4000)
    assert 4 * error < divergence < float(found.bound) + 4 * error
    # It is no idle bound either.
    assert found.bound < 5


def test_variances_are_what_simpler_structures_hold(double):
    params = mixture()
    totals = np.diagonal(moments(*dense(params))[1])
    for name, held in (("diag", lambda v: v), ("spherical", np.sum)):
        found = reduce(params, LEFT, covariance_type=name)
        assert found.params.component == gaussian(STRUCTURES[name])
        mean, cov = moments(*dense(found.params))
        np.testing.assert_allclose(mean, moments(*dense(params))[0], rtol=1e-10)
        np.testing.assert_allclose(held(np.diagonal(cov)), held(totals), rtol=1e-10)


def test_it_maps_over_mixtures_in_float32_in_small_units_and_with_components_that_are_off():
    base, few = mixture(dtype=np.float32), mixture(seed=1, dtype=np.float32)
    unit = np.float32(2.0**-30)
    small = dataclasses.replace(base, means=unit * (base.means + 8), scale=unit * base.scale)
    few.log_weights[[0, 2, 3, 4]] = -np.inf  # fewer than are to be left
    stacked = jax.tree.map(lambda *a: np.stack(a), base, small, few)
    found = quick_jit(jax.vmap(functools.partial(reduce, n_components=LEFT)))(stacked)
    found = jax.tree.map(np.asarray, found)
    weights, means, covariances, bound, labels = by_hand(*dense(base), LEFT)
    for n, scale, shift in ((0, 1, 0), (1, unit, 8)):
        np.testing.assert_array_equal(found.labels[n], labels)
        np.testing.assert_allclose(found.bound[n], bound, rtol=1e-4)
        np.testing.assert_allclose(np.exp(found.params.log_weights[n]), weights, rtol=1e-5)
        np.testing.assert_allclose(found.params.means[n] / scale - shift, means, atol=1e-5)
        factors = found.params.scale[n] / scale
        np.testing.assert_allclose(factors @ factors.transpose(0, 2, 1), covariances, rtol=1e-4, atol=1e-4)
    assert found.bound[2] == 0
    np.testing.assert_array_equal(found.labels[2], [-1, 0, -1, -1, -1, 1])
    np.testing.assert_array_equal(found.params.log_weights[2], [*few.log_weights[[1, 5]], -np.inf])
    np.testing.assert_array_equal(found.params.means[2, :2], few.means[[1, 5]])
    np.testing.assert_allclose(found.params.scale[2, :2], few.scale[[1, 5]], rtol=1e-6, atol=1e-6)


def test_it_takes_every_structure_and_refuses_by_name():
    for name in CLOSED:
        found = jax.eval_shape(functools.partial(reduce, n_components=2), mixture(name, dtype=np.float32))
        assert found.params.component == gaussian("full")
    params = mixture(dtype=np.float32)
    with pytest.raises(ValueError, match="n_components must not exceed the 6 of params; got 7"):
        reduce(params, 7)
    with pytest.raises(
        ValueError, match="or 'spherical' covariances, which a merger leaves free; got 'tied'"
    ):
        reduce(params, 2, covariance_type="tied")
    scale = {"scatter": params.scale, "dof": np.full(K, 5, np.float32)}
    with pytest.raises(ValueError, match="reduce needs Gaussian components"):
        reduce(dataclasses.replace(params, scale=scale, component=student_t("full")), 2)
