"""Influences against differences of refits, leaving one out against refits."""

import functools

import jax
import numpy as np
import pytest

from jaxgmm.inference import influence, leave_one_out, takeuchi
from tests.inference.optimum import APART as X
from tests.inference.optimum import FIELDS, apart, flat, log_prob, maximum, mixture, not_identified
from tests.problems import WEIGHT, K, N
from tests.quick import quick_jit

HALF = 12  # of the rows that are left out: the most influential, and as many others


_influence = quick_jit(influence)
_leave_one_out = quick_jit(lambda params, x, w, rows: leave_one_out(params, x, w, rows=rows))
_takeuchi = quick_jit(takeuchi)


@functools.cache
def influences():
    return _influence(apart(), X, WEIGHT)


def in_errors():
    """(N, P) what leaving out each row does to the first order, and (P,) the sandwich's standard errors."""
    linear = -WEIGHT[:, None] * flat(influences(), N)
    unit = np.linalg.norm(linear, axis=0)
    return linear, np.where(unit > 0, unit, 1)  # the entries beside the diagonal are fixed


@functools.cache
def left_out():
    """Rows, the real leave-one-out fits and their log p of the row, and `leave_one_out`'s answer."""
    linear, unit = in_errors()
    order = np.argsort(-np.linalg.norm(linear / unit, axis=1))
    rows = np.concatenate([order[:HALF], np.sort(order[HALF :: (N - HALF) // HALF])[:HALF]])
    real, log_probs = [], []
    for row in rows:
        refit = maximum(X, np.where(np.arange(N) == row, 0, WEIGHT), "diag", apart())
        real.append(flat(refit)[0])
        log_probs.append(log_prob(refit, X)[row])
    return rows, np.stack(real), np.array(log_probs), _leave_one_out(apart(), X, WEIGHT, rows)


def test_influence_is_the_derivative_of_the_fit_by_its_weights(double):
    """Central differences of refits, which know of no likelihood's curvature.

    Their error is about h² of the third derivative, and a refit's distance from its fixed point, below 1e-11,
    over h.
    """
    along, h = np.random.default_rng(2).normal(size=N), 1e-4
    up, down = (flat(maximum(X, WEIGHT + s * h * along, "diag", apart())) for s in (1, -1))
    moved = along @ flat(influences(), N)
    np.testing.assert_allclose(moved, ((up - down) / (2 * h))[0], rtol=1e-5, atol=1e-6)
    # The fit is where the weighted influences balance.
    assert np.abs(WEIGHT @ flat(influences(), N)).max() < 1e-8


def test_leaving_one_out_is_what_a_refit_gives(double):
    rows, real, log_probs, loo = left_out()
    linear, unit = in_errors()
    base = flat(apart())
    moved = (real - base) / unit

    def error(guess):
        return np.linalg.norm(guess - moved, axis=1) / np.linalg.norm(moved, axis=1)

    ours, first_order = error((flat(loo.params, len(rows)) - base) / unit), error(linear[rows] / unit)
    most, others = slice(None, HALF), slice(HALF, None)
    assert np.median(ours[others]) < 0.02
    assert np.median(ours[most]) < 0.03
    assert np.median(first_order[others]) < 0.05
    # Nearer than the influence function, also where that is worst.
    assert np.median(ours[most]) < 0.75 * np.median(first_order[most])
    before = log_prob(apart(), X)[rows]
    fall = np.asarray(loo.log_prob)[rows] - before
    assert (fall < 0).all()
    assert np.median(np.abs(fall / (log_probs - before) - 1)) < 0.02


def test_one_component_without_a_row_is_found_exactly(double):
    """Also an outlier, where a Newton step in logarithms of widths is off by its whole leverage."""
    x = X.copy()
    x[0] = x.mean(0) + 6 * x.std(0)
    rows = np.arange(2 * HALF)

    def fitted(w):
        mean = np.average(x, axis=0, weights=w)
        variance = np.average((x - mean) ** 2, axis=0, weights=w)
        return mixture([1.0, 0, 0], [mean] * 3, np.stack([np.diag(variance)] * 3), "diag")

    loo = jax.tree.map(np.asarray, _leave_one_out(fitted(WEIGHT), x, WEIGHT, rows))
    for i in (0, 5):
        real = fitted(np.where(np.arange(N) == i, 0, WEIGHT))
        np.testing.assert_allclose(loo.params.means[i, 0], real.means[0], rtol=1e-10)
        np.testing.assert_allclose(loo.params.scale[i, 0] ** 2, real.scale[0] ** 2, rtol=1e-4)
        np.testing.assert_allclose(loo.log_prob[i], log_prob(real, x)[i], rtol=1e-5)


def test_leverages_sum_to_takeuchis_penalty(double):
    loo = left_out()[3]
    # With s_i = −∇ log p and B = Σ w² s sᵀ, tr(H⁻¹ B) weighs each leverage once more.
    total = WEIGHT @ log_prob(apart(), X)
    penalty = (float(_takeuchi(apart(), X, WEIGHT)) + 2 * total) / 2
    np.testing.assert_allclose((WEIGHT * loo.leverage).sum(), penalty, rtol=1e-9)
    assert loo.valid


def test_failures_are_nan_and_arguments_are_checked(double):
    equal = not_identified(apart())
    assert all(np.isnan(a).all() for a in jax.tree.leaves(_influence(equal, X, WEIGHT)))
    loo = _leave_one_out(equal, X, WEIGHT, np.arange(2 * HALF))
    assert np.isnan(loo.log_prob).all()
    assert not loo.valid
    assert np.isnan(_takeuchi(equal, X, WEIGHT))
    assert all(np.isnan(getattr(loo.params, f)).all() for f in FIELDS[1:])
    assert loo.params.means.shape == (2 * HALF, K, 3)
    with pytest.raises(TypeError, match="function must take GMMParams; got int"):
        influence(apart(), X, function=3)
    with pytest.raises(ValueError, match="rows must be from 0 to 199; got 0 to 200"):
        leave_one_out(apart(), X, rows=[0, N])
    with pytest.raises(TypeError, match="rows must be a sequence of row indices"):
        leave_one_out(apart(), X, rows=[0.5])
