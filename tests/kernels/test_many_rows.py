"""Sums over more rows than 16,384, where JAX 0.10.2 is silently wrong on a CPU (jax issue 39103).

It compiles `vmap` of a matrix–vector product followed by a sum wrongly in float64. That release is excluded;
this is what tells of the next one: the package's functions beside NumPy, called directly, inside the user's
own `jit`, and by `vmap` over rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm

D, K = 3, 2
RNG = np.random.default_rng(0)
WEIGHTS = np.array([0.4, 0.6])
MEANS = np.array([[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])
ROOTS = np.array(
    [[[1.0, 0, 0], [0.3, 0.8, 0], [0.1, -0.2, 0.9]], [[0.7, 0, 0], [-0.2, 1.1, 0], [0.4, 0.1, 0.6]]]
)
COVARIANCES = ROOTS @ ROOTS.swapaxes(1, 2)


def log_joint(X):
    """log π_k N(x | μ_k, Σ_k), (N, K)."""
    y = np.stack([(X - m) @ np.linalg.inv(r).T for m, r in zip(MEANS, ROOTS, strict=True)], 1)
    constant = np.log(WEIGHTS) - 0.5 * D * np.log(2 * np.pi) - np.log(np.linalg.det(ROOTS))
    return constant - 0.5 * np.square(y).sum(-1)


@pytest.fixture
def X(double):
    return RNG.normal(size=(16_385, D))


@pytest.fixture
def params(double):
    return jaxgmm.make_params(WEIGHTS, MEANS, COVARIANCES)


def every_way(function, per_row, X):
    """Called directly, inside the user's jit, and by vmap over rows inside it; each also as a sum."""
    by_row = jax.vmap(per_row)
    yield function(X), function(X).sum(0)
    # One after the other: whether a sum follows in the same program is what matters.
    yield jax.jit(function)(X), jax.jit(lambda x: function(x).sum(0))(X)
    yield jax.jit(by_row)(X), jax.jit(lambda x: by_row(x).sum(0))(X)


def test_densities(X, params):
    joint = log_joint(X)
    expected = np.logaddexp(joint[:, 0], joint[:, 1])
    rows = lambda x: jaxgmm.log_prob(params, x)  # noqa: E731
    for values, total in every_way(rows, lambda x: jaxgmm.log_prob(params, x[None])[0], jnp.asarray(X)):
        np.testing.assert_allclose(values, expected, rtol=1e-11)
        np.testing.assert_allclose(total, expected.sum(), rtol=1e-11)


def test_one_em_step(X, params):
    joint = log_joint(X)
    resp = np.exp(joint - np.logaddexp(joint[:, :1], joint[:, 1:]))
    n = resp.sum(0)
    means = resp.T @ X / n[:, None]
    gaps = X[:, None, :] - means
    covariances = np.einsum("nk,nkd,nke->kde", resp, gaps, gaps) / n[:, None, None]

    def step(x):
        return jaxgmm.em_step(params, x, reg_covar=0.0)[0]

    for new in (jax.jit(step)(X), jax.jit(jax.vmap(step))(X[None])):
        new = jax.tree.map(lambda a, like: np.asarray(a).reshape(like.shape), new, params)
        np.testing.assert_allclose(np.exp(new.log_weights), n / len(X), rtol=1e-9)
        np.testing.assert_allclose(new.means, means, rtol=1e-8, atol=1e-10)
        factors = new.scale
        np.testing.assert_allclose(factors @ factors.swapaxes(1, 2), covariances, rtol=1e-8, atol=1e-10)


def test_conditionals(X, params):
    slopes = COVARIANCES[:, 1:, :1] / COVARIANCES[:, :1, :1]
    expected = MEANS[:, 1:] + np.einsum("kde,nke->nkd", slopes, X[:, None, :1] - MEANS[:, :1])

    def of_row(x):
        return jaxgmm.distributions.condition(params, (0,), x[:1]).means

    found, total = jax.jit(lambda x: (jax.vmap(of_row)(x), jax.vmap(of_row)(x).sum(0)))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(total, expected.sum(0), rtol=1e-10)
