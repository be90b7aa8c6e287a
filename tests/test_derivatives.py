"""Derivatives of a fit, against finite differences of complete refits."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from tests.conftest import overlapping, start_from
from tests.quick import quick_jit

X, LABELS = overlapping(120, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, size=len(X))
ENOUGH = jnp.asarray(5000, jnp.int32)


def summary(result):
    """One number that every part of the result has a say in; components that are off have none."""
    p = result.params
    on = p.weights > 0
    means, cov = jnp.sin(p.means).sum(-1), jnp.log1p(p.covariances**2).sum((-2, -1))
    return jnp.where(on, means + cov, 0).sum() + p.weights[0] + result.log_likelihood


def total(start, x, w, reg, prior, limit):
    return summary(jaxgmm.fit(start, x, w, reg_covar=reg, tol=1e-13, max_iter=limit, prior=prior))


value = quick_jit(total)
# With respect to everything: one program, which is most of what this file costs.
gradient = quick_jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))


def padded():
    """Two components and a third that is off."""
    start = start_from(X, np.where(np.arange(len(X)) == 5, 2, LABELS), "full", np.float64)
    return dataclasses.replace(start, log_weights=start.log_weights.at[2].set(-jnp.inf))


def arguments():
    # A prior strong enough to be more than a ripple: by default its strength is 0.01.
    x, w = jnp.asarray(X), jnp.asarray(WEIGHTS)
    return x, w, jnp.asarray(1e-3), jaxgmm.default_prior(x, 3, "full", w, strength=2.0, dof=8.0)


def test_gradients_agree_with_refits(double):
    start, (x, w, reg, prior) = padded(), arguments()
    rng = np.random.default_rng(5)
    for_start, for_x, for_w, for_reg, for_prior = gradient(start, x, w, reg, prior, ENOUGH)

    def check(slope, h, moved):
        at = {"start": start, "x": x, "w": w, "reg": reg, "prior": prior}
        up, down = (value(*(at | moved(s * h)).values(), ENOUGH) for s in (1, -1))
        np.testing.assert_allclose(float(slope), (up - down) / (2 * h), rtol=1e-6)

    along_x, along_w = jnp.asarray(rng.normal(size=x.shape)), jnp.asarray(rng.normal(size=len(x)))
    check((for_x * along_x).sum(), 1e-5, lambda h: {"x": x + h * along_x})
    check((for_w * along_w).sum(), 1e-5, lambda h: {"w": w + h * along_w})
    check(for_reg, 1e-6, lambda h: {"reg": reg + h})
    for field, h in (("strength", 1e-4), ("dof", 1e-4), ("scale", 1e-5)):
        number = getattr(prior, field)
        check(
            (getattr(for_prior, field) * number).sum(),
            h,
            lambda h, f=field, number=number: {"prior": dataclasses.replace(prior, **{f: number * (1 + h)})},
        )
    # The start has no gradient, nor has what is off.
    assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(for_start))


def test_rows_without_weight_and_components_that_are_off_have_the_gradient_that_they_should(double):
    start, (x, w, reg, prior) = padded(), arguments()
    absent = w.at[3].set(0.0)
    _, for_x, for_w, *_ = gradient(start, x, absent, reg, prior, ENOUGH)
    assert np.isfinite(for_x).all()
    np.testing.assert_array_equal(for_x[3], 0)
    # The one-sided derivative at weight zero: what letting the sample in a little would do.
    h = 1e-6
    up, down = (value(start, x, a, reg, prior, ENOUGH) for a in (absent.at[3].set(h), absent))
    np.testing.assert_allclose(for_w[3], (up - down) / h, rtol=1e-4)
    # Where the row is missing, too, but for the derivative by its own weight.
    _, nan_x, nan_w, *_ = gradient(start, x.at[3].set(jnp.nan), absent, reg, prior, ENOUGH)
    np.testing.assert_allclose(np.delete(nan_w, 3), np.delete(for_w, 3), rtol=1e-8, atol=1e-11)
    assert np.isfinite(nan_w[3])
    assert nan_x[3].tolist() == [0, 0]
    # What is off may lie anywhere.
    elsewhere = dataclasses.replace(start, means=start.means.at[2].add(3.0))
    _, other_x, other_w, *_ = gradient(elsewhere, x, absent, reg, prior, ENOUGH)
    np.testing.assert_allclose(other_x, for_x, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(other_w, for_w, rtol=1e-8, atol=1e-11)
    # And an unconverged fit has no gradient.
    assert np.isnan(gradient(start, x, w, reg, prior, jnp.asarray(1, jnp.int32))[1]).all()


def test_tangents_agree_with_refits(double):
    start, (x, w, *_) = start_from(X[:, :1], LABELS, "spherical", double), arguments()

    def of_reg(reg):
        return summary(jaxgmm.fit(start, x[:, :1], w, reg_covar=reg, tol=1e-13, max_iter=ENOUGH))

    refit = quick_jit(of_reg)
    forward = quick_jit(lambda reg: jax.jvp(of_reg, (reg,), (jnp.ones(()),))[1])
    h, reg = 1e-5, jnp.asarray(1e-2)
    np.testing.assert_allclose(forward(reg), (refit(reg + h) - refit(reg - h)) / (2 * h), rtol=1e-6)


def late(function, *arguments):
    """Call, and wait for what the program has to say."""
    jax.block_until_ready(function(*arguments))
    jax.effects_barrier()


def test_a_float32_gradient_is_right_and_warns_where_it_is_asked_to():
    x = jnp.asarray(X, jnp.float32)
    start = start_from(X, LABELS, "spherical", np.float32)
    options = EMOptions(unconverged_gradient="warn")

    def of_x(x, limit):
        return jaxgmm.fit(start, x, max_iter=limit, options=options).params.means.sum()

    f = quick_jit(jax.grad(of_x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late(f, x, jnp.asarray(500, jnp.int32))
    # Moving every sample by 1 moves every mean by 1.
    np.testing.assert_allclose(f(x, jnp.asarray(500, jnp.int32)).sum(0), 2, rtol=1e-3)
    with pytest.warns(RuntimeWarning, match="has not converged was differentiated"):
        late(f, x, jnp.asarray(1, jnp.int32))
    with pytest.raises(ValueError, match="unconverged_gradient must be one of"):
        EMOptions(unconverged_gradient="zero")


def test_nobody_pays_for_a_derivative_that_is_not_asked_for(double):
    """A linear system is solved in the program of the derivative alone."""
    start = start_from(X, LABELS, "spherical", double)

    def of_x(x):
        return jaxgmm.fit(start, x).params.means.sum()

    x = jnp.asarray(X)
    assert "custom_linear_solve" not in str(jax.make_jaxpr(of_x)(x))
    tangent = jax.make_jaxpr(lambda x: jax.jvp(of_x, (x,), (x,))[1])(x)
    assert "linear_solve" in str(tangent)
