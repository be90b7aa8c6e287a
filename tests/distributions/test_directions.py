"""Directions that separate components, against their definition, invariances and discriminant analysis."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import linalg

import jaxgmm
from jaxgmm.distributions import directions, marginal, project
from tests.closed import dense
from tests.distributions.test_operations import D, K, mixture, of_family
from tests.quick import quick_jit


def moved(params, a, b):
    """The mixture of a x + b."""
    scale = np.linalg.cholesky(a @ dense(params)[2] @ a.T)
    return dataclasses.replace(params, means=params.means @ a.T + b, scale=scale)


def test_they_solve_scruccas_eigenproblem_and_follow_linear_maps(double):
    params = mixture()
    found = directions(params)
    w, mu, cov = dense(params)
    gaps, pooled = mu - w @ mu, np.einsum("k,kde->de", w, cov)
    first = np.einsum("k,kd,ke->de", w, gaps, gaps)
    whole = pooled + first
    of_means = first @ np.linalg.inv(whole) @ first
    second = sum(a * (c - pooled) @ np.linalg.inv(whole) @ (c - pooled) for a, c in zip(w, cov, strict=True))
    values, vectors = linalg.eigh(of_means + second, whole)
    np.testing.assert_allclose(found.eigenvalues, values[::-1], rtol=1e-10)
    v = np.asarray(found.directions)
    np.testing.assert_allclose(np.abs(v), np.abs(vectors[:, ::-1]), rtol=1e-8)
    np.testing.assert_allclose(v.T @ whole @ v, np.eye(D), atol=1e-12)
    np.testing.assert_allclose(found.by_means, np.einsum("dn,de,en->n", v, of_means, v), rtol=1e-9)
    a = np.random.default_rng(1).normal(size=(D, D))
    again = directions(moved(params, a, np.arange(4.0)))
    np.testing.assert_allclose(again.eigenvalues, found.eigenvalues, rtol=1e-9)
    turned = a.T @ np.asarray(again.directions)
    np.testing.assert_allclose(
        turned * np.sign((turned * v).sum(0) / (v * v).sum(0)), v, rtol=1e-7, atol=1e-9
    )
    one = directions(params, 1)
    np.testing.assert_allclose(one.directions, found.directions[:, :1])
    off = np.array([0, 1, 2, 0])
    padded = jaxgmm.mixture.take(params, off)
    padded = dataclasses.replace(padded, log_weights=np.where(np.arange(4) < 3, padded.log_weights, -np.inf))
    np.testing.assert_allclose(directions(padded).eigenvalues, found.eigenvalues, rtol=1e-9)


def test_of_common_covariances_they_are_fishers(double):
    params = mixture("tied")
    found = directions(params)
    w, mu, cov = dense(params)
    gaps = mu - w @ mu
    values, vectors = linalg.eigh(np.einsum("k,kd,ke->de", w, gaps, gaps), cov[0])
    fisher = vectors[:, ::-1][:, : K - 1]
    ratio = np.asarray(found.directions)[:, : K - 1] / fisher
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-8)
    np.testing.assert_allclose(found.eigenvalues[K - 1 :], 0, atol=1e-12)
    np.testing.assert_allclose(found.by_means, found.eigenvalues, atol=1e-12)
    # Of all variance along a direction the share λ/(1 + λ) lies between means.
    between = values[::-1][: K - 1] / (1 + values[::-1][: K - 1])
    np.testing.assert_allclose(found.eigenvalues[: K - 1], between**2, rtol=1e-9)


@pytest.mark.parametrize("name", ["full", "student_t(full)", "contaminated(tied)"])
def test_a_projection_is_the_mixture_of_the_new_features(name, double):
    params = mixture() if name == "full" else of_family(name)
    flipped = np.eye(D)[:, [3, 1]]
    x = np.random.default_rng(0).normal(size=(5, 2))
    got = jaxgmm.log_prob(project(params, flipped), x)
    np.testing.assert_allclose(got, jaxgmm.log_prob(marginal(params, [3, 1]), x), rtol=1e-12)
    v = np.random.default_rng(1).normal(size=(D, 2))
    new = project(params, v)
    np.testing.assert_allclose(new.covariances, v.T @ np.asarray(params.covariances) @ v, rtol=1e-11)
    np.testing.assert_allclose(new.means, params.means @ v, rtol=1e-12)
    if name != "full":
        return
    found = directions(params, 2)
    np.testing.assert_allclose(project(params, found).means, params.means @ np.asarray(found.directions))
    first = quick_jit(
        jax.value_and_grad(lambda m: directions(dataclasses.replace(params, means=m)).eigenvalues[0])
    )
    step = np.zeros((K, D))
    step[1, 2] = 1e-5
    (_, slope), (up, _), (down, _) = (first(params.means + s) for s in (0 * step, step, -step))
    np.testing.assert_allclose(slope[1, 2], (up - down) / 2e-5, rtol=1e-6)


def test_what_has_no_directions_is_refused():
    params = mixture(dtype=np.float32)
    with pytest.raises(ValueError, match="n_directions must not exceed"):
        directions(params, D + 1)
    with pytest.raises(ValueError, match="directions must have shape"):
        project(params, np.eye(3))
    with pytest.raises(ValueError, match="uniform background"):
        directions(of_family("background(student_t(full))"))
