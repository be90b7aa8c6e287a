"""Mixtures of any structure as one kind: what is summed about them is what the structure's own would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components.covariance.registry import STRUCTURES
from jaxgmm.components.gaussian import gaussian
from jaxgmm.density import posterior
from jaxgmm.selection._dense import alike, factors, one_of, own_params, start
from tests.conftest import dense, equations, soft_labels
from tests.problems import LABELS, D, K, X, quick_fit
from tests.quick import quick_jit

# One for each shape of the second moment, and a rotation.
NAMES = ("full", "tied", "diag", "spherical", "VVE")


@functools.partial(quick_jit, static_argnames="name")
def views(x, resp, name):
    """The dense factors; moments of residuals (K, D, B) by way of them, and the structure's own."""
    params = jaxgmm.m_step(soft_labels(LABELS, K, np.float32), x, covariance_type=name)
    residuals = x[:60].T[None] - params.means[:, :, None]
    scale = factors(params)
    white = jnp.einsum("kde,keb->kdb", scale.white, residuals, precision="highest")
    second = jnp.einsum("kb,kdb,keb->kde", resp, white, white, precision="highest")
    first = jnp.einsum("kb,kdb->kd", resp, white, precision="highest")
    own = params.covariance.whitener(params.scale)(residuals)
    of_own = ((resp[:, None] * own).sum(-1), params.covariance.moments(params.scale, own, resp))
    return params, scale, (first, params.covariance.part_of(params.scale, second)), of_own


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


# One for each part of second moments, and for each way in which a scale or its coordinates are laid out.
SOME = tuple(STRUCTURES[name] for name in ("full", "tied", "VEI", "spherical", "VEE", "VVE", "EEV"))


@quick_jit
def fitted_as_one_of(which, means, variances, x, n_steps):
    """Fits from several means, by a program that is told the structure when it runs."""
    component = gaussian(one_of(SOME))

    def one(means):
        scale = start(SOME, which, variances)
        p = jaxgmm.GMMParams(jnp.full(K, -jnp.log(K), x.dtype), means, scale, component)
        return jaxgmm.fit(p, x, tol=0, max_iter=n_steps)

    return jax.vmap(one)(means)


def test_one_of_several_structures_takes_each_ones_steps(double):
    """Starts, M-steps and extrapolation: nine accelerated steps, among which two are extrapolations."""
    x = X.astype(double)
    means = np.stack([x[:K], x[-K:]])
    variances = np.broadcast_to(x.var(0), (K, D))
    for i, structure in enumerate(SOME):
        results = fitted_as_one_of(np.int32(i), means, variances, x, 9)
        for j in range(2):
            scale = jax.tree.map(np.asarray, structure.from_variances(variances))
            begin = jaxgmm.GMMParams(np.full(K, -np.log(K)), means[j], scale, gaussian(structure))
            own = quick_fit(begin, x, tol=0.0, max_iter=9)
            found = jax.tree.map(lambda a, j=j: np.asarray(a[j]), results)
            params = own_params(found.params, structure)
            assert jax.tree.structure(params) == jax.tree.structure(own.params)
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(own.params), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7, err_msg=structure.name)
            np.testing.assert_allclose(found.log_likelihood, own.log_likelihood, rtol=1e-10)


def test_a_batch_computes_the_branch_of_its_structure_alone():
    """Batched with the mixtures, the index would turn the choice into a selection from all branches."""
    x = X.astype("f4")
    arguments = (np.zeros(2, np.int32), np.stack([x[:K]] * 2), np.ones((2, K, D), np.float32))

    def step(which, means, variances):
        p = jaxgmm.GMMParams(
            jnp.full(K, -jnp.log(K), x.dtype), means, start(SOME, which, variances), gaussian(one_of(SOME))
        )
        return jaxgmm.em_step(p, x)[0]

    branches = [
        len(e.params["branches"])
        for e in equations(jax.make_jaxpr(jax.vmap(step))(*arguments))
        if e.primitive.name == "cond"
    ]
    assert branches.count(len(SOME)) == 2
