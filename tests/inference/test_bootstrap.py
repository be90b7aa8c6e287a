"""Refits: reproducible, matched, marked when they fail, and as uncertain as the information says."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxgmm
from jaxgmm import Status
from jaxgmm.inference._bootstrap import divergences, match
from tests.conftest import x64
from tests.inference.optimum import FIELDS, ONES, flat, maximum, natural, start_from
from tests.problems import LABELS, D, K, N, X
from tests.quick import quick_jit

REPLICATES = 400


@functools.cache
def three():
    """Well-identified components, of the shape of the other problems, and their float64 fit."""
    with x64(True):
        x = X + 6 * np.eye(D)[LABELS]
        return jax.tree.map(jnp.asarray, maximum(x, ONES, "full")), x


@functools.cache
def refits():
    params, x = three()
    with x64(True):
        run = functools.partial(jaxgmm.inference.bootstrap, n_replicates=REPLICATES, reg_covar=0.0)
        return quick_jit(run)(jax.random.key(1), params, x, ONES)


def difference(params):
    """A function of a mixture's own parameters."""
    return params.means[0] - params.means[1]


@quick_jit
def methods(r):
    """All that is asked of refits, in one program."""
    errors = r.standard_errors(), r.standard_errors(difference)
    return r.usable, r.values(), r.intervals(0.9), *errors


def test_standard_errors_are_those_of_400_refits(double):
    """A standard deviation of 400 draws is itself 3.5 % uncertain."""
    params, x = three()
    usable, _, _, errors, _ = methods(refits())
    assert usable.all()
    assert np.unique(np.asarray(refits().log_likelihood)).size == REPLICATES
    refitted = flat(errors)
    for kind in ("observed", "sandwich"):
        ratio = flat(jaxgmm.inference.standard_errors(params, x, ONES, kind=kind)) / refitted
        assert np.median(np.abs(ratio - 1)) < 0.1
        assert np.abs(np.median(ratio) - 1) < 0.1


def test_refits_print_as_a_table(double):
    r = refits()
    text, intervals = str(r), r.intervals()
    assert text.startswith(f"Bootstrap({REPLICATES} refits)\ncomponent ")
    assert re.search(r"std. error +2.5 % +97.5 %\n", text)
    ends = intervals.errors.weights[1], intervals.lower.weights[1], intervals.upper.weights[1]
    digits = [re.escape(f"{float(a):.3f}"[:4]) for a in (r.reference.weights[1], *ends)]
    assert re.search(r"\n1  weight +" + r"\d* +".join(digits), text), text
    assert "2.5 %</th>" in r._repr_html_()
    assert re.match(r"ConfidenceIntervals\(95 %\)\ncomponent", str(intervals))


def test_values_and_intervals_are_numpys_and_a_refit_that_fails_is_left_out(double):
    r = jax.tree.map(lambda a: np.array(a), refits())
    r.status[3] = int(Status.DEGENERATE)
    for a in jax.tree.leaves(r.params):
        a[3] = 300.0
    usable, values, intervals, errors, gap = methods(r)
    assert not usable[3]
    assert usable.sum() == REPLICATES - 1
    for field, own in zip(FIELDS, natural(r.params), strict=True):
        v = np.asarray(getattr(values, field))
        assert np.isnan(v[3]).all()
        v = np.delete(v, 3, axis=0)
        np.testing.assert_allclose(v, np.delete(own, 3, axis=0), rtol=1e-12)
        np.testing.assert_allclose(getattr(intervals.lower, field), np.quantile(v, 0.05, axis=0), rtol=1e-12)
        np.testing.assert_allclose(getattr(intervals.upper, field), np.quantile(v, 0.95, axis=0), rtol=1e-12)
        np.testing.assert_allclose(getattr(errors, field), v.std(0, ddof=1), rtol=1e-9, atol=1e-15)
    means = np.delete(r.params.means, 3, axis=0)
    np.testing.assert_allclose(gap, (means[:, 0] - means[:, 1]).std(0, ddof=1))


@pytest.mark.parametrize("kind", ["weighted", "parametric"])
def test_each_kind_on_one_component_in_float32(kind):
    """Weights carry through: rows of weight 0, wherever they lie, are never seen."""
    x = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    w = np.ones(200, np.float32)
    if kind == "weighted":
        x[::2], w[::2] = 1e6, 0
    inside = x[w > 0, 0]
    params = jaxgmm.make_params([1.0], [[inside.mean()]], [inside.var()], "spherical")
    given = None if kind == "parametric" else w
    run = functools.partial(jaxgmm.inference.bootstrap, n_replicates=200, kind=kind)
    r = quick_jit(run)(jax.random.key(2), params, x, given)
    assert r.usable.all()
    assert r.params.means.dtype == np.float32
    # A standard deviation of 200 draws is 5 % uncertain; four of these.
    expected = inside.std() / np.sqrt(len(inside))
    np.testing.assert_allclose(np.asarray(r.params.means).std(ddof=1), expected, rtol=0.2)
    np.testing.assert_allclose(
        np.asarray(r.params.means).mean(), inside.mean(), atol=4 * expected / np.sqrt(200)
    )


def jeffreys(p, q):
    """KL(p‖q) + KL(q‖p) of two Gaussian components."""
    (m, s), (n, t) = p, q
    gap = m - n
    inverse = np.linalg.inv(s) + np.linalg.inv(t)
    return 0.5 * (np.trace(np.linalg.solve(t, s) + np.linalg.solve(s, t)) + gap @ inverse @ gap) - len(m)


def test_components_are_matched_by_the_assignment_of_least_jeffreys_divergence(double):
    rng = np.random.default_rng(3)
    params = start_from(X, "full")
    # Unlike everything, and so without a right answer but that of least cost.
    other = dataclasses.replace(params, means=params.means[::-1] + rng.normal(size=(K, D)))
    cost = np.asarray(quick_jit(divergences)(params, other))
    parts = [list(zip(p.means, p.scale @ p.scale.swapaxes(1, 2), strict=True)) for p in (params, other)]
    np.testing.assert_allclose(cost, [[jeffreys(a, b) for b in parts[1]] for a in parts[0]], rtol=1e-12)
    matched = quick_jit(match)
    columns = linear_sum_assignment(cost)[1]
    np.testing.assert_allclose(matched(other, params).means, np.asarray(other.means)[columns])

    def shuffled(p):
        return jax.tree.map(lambda a: a[np.array([1, 2, 0])], p)

    back = matched(shuffled(params), params)
    np.testing.assert_allclose(flat(back), flat(params), rtol=1e-12)
    # Switched-off components go together.
    off = dataclasses.replace(params, log_weights=np.where(np.arange(K) == 1, -np.inf, params.log_weights))
    back = matched(shuffled(off), off)
    np.testing.assert_array_equal(back.log_weights, off.log_weights)
    np.testing.assert_array_equal(back.means, off.means)


def test_what_does_not_fit_is_refused(double):
    params, x = three()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"kind must be one of \[.*\]; got 'jackknife'"):
        jaxgmm.inference.bootstrap(key, params, x, kind="jackknife")
    with pytest.raises(ValueError, match="sample_weight must be None for kind='parametric'"):
        jaxgmm.inference.bootstrap(key, params, x, ONES, kind="parametric")
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        jaxgmm.inference.bootstrap(key, params, x, batch_size=0)
    with pytest.raises(ValueError, match="n_components must not exceed n_samples = 199; got 200"):
        jaxgmm.inference.bootstrap_likelihood_ratio(key, x, N)


def test_the_likelihood_ratio_tells_two_groups_from_one():
    """Also where entries are missing; of complete rows it is in the docstring."""
    run = functools.partial(
        jaxgmm.inference.bootstrap_likelihood_ratio, n_components=1, covariance_type="spherical",
        n_replicates=19, n_init=1, init="random_points",
    )  # fmt: skip
    for n_groups in (1, 2):
        draw = np.random.default_rng(0)
        x = draw.normal(size=(60, 2)).astype(np.float32)
        x[:30] += 6 * (n_groups == 2)
        x[draw.random(x.shape) < 0.3] = np.nan
        test = run(jax.random.key(1), jaxgmm.observe(x, missing="nan"))
        assert test.null.shape == (19,)
        assert (np.asarray(test.null) >= 0).all()
        gain = 2 * len(x) * (test.results.log_likelihood[1] - test.results.log_likelihood[0])
        np.testing.assert_allclose(test.statistic, max(float(gain), 0), rtol=1e-6)
        reached = (np.asarray(test.null) >= float(test.statistic)).sum()
        np.testing.assert_allclose(test.p_value, (1 + reached) / 20, rtol=1e-6)
        assert (test.p_value > 0.1) == (n_groups == 1)
        said = f"K = 1 against 2: statistic {test.statistic:.4g}, p = {test.p_value:.3g}, by 19 replicates"
        assert repr(test) == f"LikelihoodRatio({said})"
        data, median, tenth = (line.split() for line in str(test).splitlines()[3:6])
        assert data == ["data", f"{test.statistic:.2f}", f"{test.p_value:.3g}"]
        assert median == ["replicates", f"{np.median(test.null):.2f}", "0.5"]
        assert tenth == ["replicates", f"{np.quantile(test.null, 0.9):.2f}", "0.1"]
