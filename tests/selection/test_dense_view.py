"""Mixtures of any structure as one kind: what is summed about them is what the structure's own would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.density import posterior
from jaxgmm.kernels.base import Statistics
from jaxgmm.selection._programs import alike, as_seen_by, factors
from tests.conftest import dense, soft_labels
from tests.problems import LABELS, D, K, X
from tests.quick import quick_jit

# One for each shape of the second moment, and a rotation.
NAMES = ("full", "tied", "diag", "spherical", "VVE")


@functools.partial(quick_jit, static_argnames="name")
def views(x, resp, name):
    """The dense factors; moments of residuals (K, D, B) by way of them, and the structure's own."""
    params = jaxgmm.m_step(soft_labels(LABELS, K, np.float32), x, covariance_type=name)
    residuals = x[:60].T[None] - params.means[:, :, None]
    scale, n = factors(params), resp.sum(1)
    white = jnp.einsum("kde,keb->kdb", scale.white, residuals, precision="highest")
    second = jnp.einsum("kb,kdb,keb->kde", resp, white, white, precision="highest")
    first = jnp.einsum("kb,kdb->kd", resp, white, precision="highest")
    got = as_seen_by(params, scale, Statistics(n, first, second, n.sum(), n.sum()))
    own = params.covariance.whitener(params.scale)(residuals)
    of_own = ((resp[:, None] * own).sum(-1), params.covariance.moments(params.scale, own, resp))
    return params, scale, (got.first, got.second), of_own


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_the_structures_own(name):
    """Also of a component that has fewer samples than features, or none."""
    resp = np.random.default_rng(0).uniform(size=(K, 60)).astype(np.float32)
    resp[1, 2:] = 0
    resp[2] = 0
    params, scale, got, own = jax.tree.map(np.asarray, views(X.astype("f4"), resp, name=name))
    cov = dense(params)[2]
    np.testing.assert_allclose(scale.colour @ scale.colour.swapaxes(1, 2), cov, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scale.white @ scale.colour, np.stack([np.eye(D)] * K), atol=1e-5)
    np.testing.assert_allclose(scale.log_det, np.linalg.slogdet(cov)[1], rtol=1e-5, atol=1e-5)
    for a, b in zip(got, own, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


def test_the_e_step_is_the_structures_own():
    @quick_jit
    def both(x):
        params = jaxgmm.m_step(soft_labels(LABELS, K, np.float32), x, covariance_type="diag")
        return posterior(alike(params, factors(params)), x), jaxgmm.e_step(params, x)

    (resp, log_prob), own = both(X.astype("f4"))
    np.testing.assert_allclose(log_prob, own[1], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(resp, own[0], atol=2e-5)


def test_thin_covariances_lose_nothing():
    """Standard deviations of 1 to 1e-4, turned: in float32 their covariances would not be definite."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    x = (X @ (turn * np.array([1, 1e-2, 1e-4]) @ turn.T)).astype("f4")
    _, _, got, own = jax.tree.map(np.asarray, views(x, np.ones((K, 60), np.float32), name="full"))
    # A residual is rounded by its length, up to 1e4 widths: 6e-4. By way of covariances it was 2e-3 and more.
    np.testing.assert_allclose(got[1], own[1], atol=6e-4 * np.abs(own[1]).max())
