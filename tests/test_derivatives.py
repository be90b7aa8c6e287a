"""Derivatives of a fit, against finite differences of complete refits."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from tests.conftest import overlapping
from tests.quick import quick_jit

X, LABELS = overlapping(120, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, size=len(X))
ENOUGH = np.int32(5000)


def summary(result):
    """One number that every part of the result has a say in; components that are off have none."""
    p = result.params
    on = p.weights > 0
    means, cov = jnp.sin(p.means).sum(-1), jnp.log1p(p.covariances**2).sum((-2, -1))
    return jnp.where(on, means + cov, 0).sum() + p.weights[0] + result.log_likelihood


def total(start, x, w, reg, prior, limit):
    return summary(jaxgmm.fit(start, x, w, reg_covar=reg, tol=1e-13, max_iter=limit, prior=prior))


@quick_jit
def everything(start, x, w, reg, prior, limit):
    """The value and its derivatives by everything but the limit, in reverse mode.

    One program, which is most of what this file costs. Forward mode, of which this is the transpose, is for
    the trimmed fits of test_trimmed.py.
    """
    return jax.value_and_grad(total, argnums=(0, 1, 2, 3, 4))(start, x, w, reg, prior, limit)


def value(*arguments):
    return everything(*arguments)[0]


def gradient(*arguments):
    return everything(*arguments)[1]


def start_of(x, name, dtype="f8"):
    """The mixture of the labels' own moments."""
    cov = [np.atleast_2d(np.cov(x[k == LABELS].T)) for k in (0, 1)]
    scale = {"full": np.linalg.cholesky, "spherical": lambda c: np.sqrt(np.einsum("kdd->k", c) / len(c[0]))}
    means, log_weights = [x[k == LABELS].mean(0) for k in (0, 1)], np.log(np.bincount(LABELS) / len(LABELS))
    parts = (np.asarray(a, dtype) for a in (log_weights, means, scale[name](np.stack(cov))))
    return jaxgmm.GMMParams(*parts, jaxgmm.components.get_component(name))


def padded():
    """Two components and a third that is off."""
    start = start_of(X, "full")
    third = (np.array([-np.inf]), X[5:6], np.eye(2)[None])
    arrays = zip((start.log_weights, start.means, start.scale), third, strict=True)
    return jaxgmm.GMMParams(*map(np.concatenate, arrays), start.component)


def arguments():
    # Strong enough to be more than a ripple: by default the strength of a prior is 0.01.
    prior = jaxgmm.Prior(mean=X.mean(0), strength=2.0, dof=8.0, scale=np.cov(X.T) / 3)
    return X, WEIGHTS, np.float64(1e-3), jax.tree.map(np.asarray, prior)


def test_gradients_agree_with_refits(double):
    start, (x, w, reg, prior) = padded(), arguments()
    rng = np.random.default_rng(5)
    with jax.debug_nans(True):
        _, gradients = everything(start, x, w, reg, prior, ENOUGH)
    for_start, for_x, for_w, for_reg, for_prior = gradients

    def check(slope, h, moved):
        at = {"start": start, "x": x, "w": w, "reg": reg, "prior": prior}
        up, down = (value(*(at | moved(s * h)).values(), ENOUGH) for s in (1, -1))
        np.testing.assert_allclose(float(slope), (up - down) / (2 * h), rtol=1e-6)

    along_x, along_w = rng.normal(size=x.shape), rng.normal(size=len(x))
    for_x, for_w, for_prior = jax.tree.map(np.asarray, (for_x, for_w, for_prior))
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
    row = np.arange(len(x)) == 3
    absent = np.where(row, 0.0, w)
    below, (_, for_x, for_w, *_) = everything(start, x, absent, reg, prior, ENOUGH)
    assert np.isfinite(for_x).all()
    np.testing.assert_array_equal(for_x[3], 0)
    # The one-sided derivative at weight zero: what letting the sample in a little would do.
    h = 1e-6
    np.testing.assert_allclose(
        for_w[3], (value(start, x, np.where(row, h, w), reg, prior, ENOUGH) - below) / h, rtol=1e-4
    )
    # Where the row is missing, too, but for the derivative by its own weight.
    _, nan_x, nan_w, *_ = gradient(start, np.where(row[:, None], np.nan, x), absent, reg, prior, ENOUGH)
    np.testing.assert_allclose(np.delete(nan_w, 3), np.delete(for_w, 3), rtol=1e-8, atol=1e-11)
    assert np.isfinite(nan_w[3])
    assert nan_x[3].tolist() == [0, 0]
    # What is off may lie anywhere.
    elsewhere = dataclasses.replace(start, means=start.means + np.array([[0.0], [0.0], [3.0]]))
    _, other_x, other_w, *_ = gradient(elsewhere, x, absent, reg, prior, ENOUGH)
    np.testing.assert_allclose(other_x, for_x, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(other_w, for_w, rtol=1e-8, atol=1e-11)
    # And an unconverged fit has no gradient.
    assert np.isnan(gradient(start, x, w, reg, prior, np.int32(1))[1]).all()


def test_a_derivative_outside_jit_warns_where_it_is_nan(monkeypatch):
    """Without a callback, for there the status is seen; of a loop that has ended, not to compile it again."""
    x, start = X.astype("f4"), start_of(X, "spherical", "f4")
    for limit in (1, 500):
        ended = jaxgmm.fit(start, x, tol=1e-6, max_iter=limit)
        assert ended.status == (Status.MAX_ITER if limit == 1 else Status.CONVERGED)

        def loop(params, data, *_, ended=ended, **__):
            moved = dataclasses.replace(ended.params, means=ended.params.means + 0 * data.x[:2])
            return dataclasses.replace(ended, params=moved)

        monkeypatch.setattr("jaxgmm.em._fit", loop)
        slope = jax.grad(lambda x: jaxgmm.fit(start, x).params.means.sum())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            slope(x)
        monkeypatch.undo()
        words = ["the fit ended with status MAX_ITER, so that its derivatives are NaN"] if limit == 1 else []
        assert [str(w.message).partition(": ")[0] for w in said] == words


def late(function, *arguments):
    """Call, and wait for what the program has to say."""
    jax.block_until_ready(function(*arguments))
    jax.effects_barrier()


def test_a_float32_gradient_is_right_and_warns_where_it_is_asked_to():
    x, start, few, enough = X.astype("f4"), start_of(X, "spherical", "f4"), np.int32(1), np.int32(500)
    options = EMOptions(unconverged_gradient="warn")

    def of_x(x, limit):
        return jaxgmm.fit(start, x, tol=1e-6, max_iter=limit, options=options).params.means.sum()

    derivative = jax.grad(of_x)
    f = quick_jit(derivative)
    # A linear system is solved in the program of the derivative alone: nobody else pays for it.
    assert "linear_solve" in str(jax.jit(derivative).trace(x, enough).jaxpr)
    assert "linear_solve" not in str(jax.make_jaxpr(of_x)(x, enough))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late(f, x, enough)
    # Moving every sample by 1 moves every mean by 1.
    with jax.debug_nans(True):
        slope = np.asarray(f(x, enough))
    np.testing.assert_allclose(slope.sum(0), 2, rtol=1e-3)
    with pytest.warns(RuntimeWarning, match="has not converged was differentiated"):
        late(f, x, few)
    with pytest.raises(ValueError, match="unconverged_gradient must be one of"):
        EMOptions(unconverged_gradient="zero")
