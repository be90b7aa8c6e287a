"""Mixtures of any structure as one kind: what it says of data is what the structure's own says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.density import posterior
from jaxgmm.init._starts import nearest
from jaxgmm.kernels.exact import accumulate
from jaxgmm.selection._dense_view import alike, as_seen_by, factors
from tests.conftest import every_name_at_a_cost, overlapping, start_from

N = 200
X, LABELS = overlapping(N, 3, 3)


@every_name_at_a_cost
def test_e_step_and_moments_are_the_structures_own(name):
    """Also of a partition, where a component may have fewer samples than features, or none."""
    x, params = X.astype("f4"), start_from(X, LABELS, name, "f4")
    common = alike(params, factors(params))
    np.testing.assert_allclose(posterior(common, x)[1], jaxgmm.log_prob(params, x), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(posterior(common, x)[0], jaxgmm.responsibilities(params, x), atol=2e-5)

    far = jnp.array([[0, 0, 0], [50, 50, 50], [90, 0, 0]], jnp.float32)
    apart = jaxgmm.GMMParams(params.log_weights, params.means + far, params.scale, params.family)
    for mixture, assign in ((params, None), (params, nearest), (apart, nearest)):
        reassign = None if assign is None else functools.partial(assign, mixture)
        scale = factors(mixture)
        own, seen = (
            accumulate(m, x, None, reassign=reassign, block_size=64) for m in (mixture, alike(mixture, scale))
        )
        got = as_seen_by(mixture, scale, seen)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", ["full", "VEV"])
def test_thin_covariances_lose_nothing(name):
    """Standard deviations of 1 to 1e-4, turned: in float32 their covariances would not be definite."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    x = (X @ (turn * np.array([1, 1e-2, 1e-4]) @ turn.T)).astype("f4")
    params = start_from(x, LABELS, name, "f4")
    own, seen = (accumulate(m, x, None, block_size=64) for m in (params, alike(params, factors(params))))
    got = as_seen_by(params, factors(params), seen)
    # A residual is rounded by its length, up to 1e4 widths: 6e-4. By way of covariances it was 2e-3 and more.
    np.testing.assert_allclose(got.weight, own.weight, rtol=6e-4)
    np.testing.assert_allclose(got.second, own.second, atol=6e-4 * float(jnp.abs(own.second).max()))
