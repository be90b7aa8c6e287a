"""Information, standard errors and intervals against textbooks, plain autodiff and simulation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.components import Family
from jaxgmm.inference._local_coordinates import entries
from tests.conftest import dense, overlapping, start_from, x64

pytestmark = pytest.mark.slow  # compilation, of many programs

X, LABELS = overlapping(240, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).integers(1, 4, size=len(X)).astype(float)
ONES = np.ones(len(X))
FIELDS = ("weights", "means", "covariances")


@functools.cache
def fitted(name, weighted=False):
    """A float64 fit to X, to its optimum."""
    with x64(True):
        start = start_from(X, LABELS, name, np.float64)
        w = WEIGHTS if weighted else ONES
        return jaxgmm.check(jaxgmm.fit(start, X, w, tol=1e-11, max_iter=5000, reg_covar=0.0)).params


def padded(params):
    """The same mixture with a component that is switched off, in the last place."""
    more = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), params)
    return dataclasses.replace(more, log_weights=more.log_weights.at[-1].set(-jnp.inf))


def same(a, b, **tolerance):
    for field in FIELDS:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), **tolerance)


def test_one_component_has_the_textbooks_standard_errors(double):
    x = X * np.array([1.0, 30.0]) + np.array([5.0, 1e4])
    cov = np.cov(x.T, bias=True)
    params = jaxgmm.make_params(np.ones(1), x.mean(0)[None], cov[None])
    errors = jaxgmm.inference.standard_errors(params, x)
    np.testing.assert_array_equal(errors.weights, 0)
    variances = np.diag(cov)
    np.testing.assert_allclose(errors.means[0], np.sqrt(variances / len(x)), rtol=1e-8)
    expected = np.sqrt((np.outer(variances, variances) + cov**2) / len(x))  # σ² √(2/n) on the diagonal
    np.testing.assert_allclose(errors.covariances[0], expected, rtol=1e-8)
    assert errors.valid
    assert errors.distance < 1e-6
    # The weight of the only component is certain.
    intervals = jaxgmm.inference.confidence_intervals(params, x)
    np.testing.assert_array_equal([intervals.lower.weights, intervals.upper.weights], 1)


@pytest.mark.parametrize(
    "name", ["full", "tied"]
)  # the others' charts are simpler, and their own tests check them
def test_information_is_the_hessian_in_the_documented_coordinates(name, double):
    params = fitted(name, weighted=True)
    # At a point that is no optimum too, where the score does not vanish.
    params = dataclasses.replace(params, means=params.means + 0.1)
    k, d = params.means.shape
    free, unravel = ravel_pytree(params.family.to_unconstrained(params.scale))
    start = jnp.concatenate([params.log_weights[:-1] - params.log_weights[-1], params.means.ravel(), free])

    @jax.jit
    def log_prob(phi):
        logits = jnp.concatenate([phi[: k - 1], jnp.zeros(1)])
        scale = params.family.from_unconstrained(unravel(phi[k - 1 + k * d :]), (k, d))
        means = phi[k - 1 : k - 1 + k * d].reshape(k, d)
        return jaxgmm.log_prob(jaxgmm.GMMParams(jax.nn.log_softmax(logits), means, scale, params.family), X)

    info = jaxgmm.inference.information(params, X, WEIGHTS)
    assert info.observed.shape == (jaxgmm.n_parameters(params),) * 2
    observed = -jax.jit(jax.hessian(lambda phi: (WEIGHTS * log_prob(phi)).sum()))(start)
    scores = np.asarray(jax.jit(jax.jacfwd(log_prob))(start))
    size = np.abs(observed).max()
    np.testing.assert_allclose(info.observed, observed, rtol=1e-9, atol=1e-12 * size)
    opg = np.einsum("n,np,nq->pq", WEIGHTS**2, scores, scores)
    np.testing.assert_allclose(info.opg, opg, rtol=1e-9, atol=1e-12 * size)
    np.testing.assert_allclose(info.score, WEIGHTS @ scores, rtol=1e-9, atol=1e-12 * size)
    step = np.linalg.solve(observed, info.score)
    np.testing.assert_allclose(info.distance, np.sqrt(info.score @ step), rtol=1e-8)


def test_standard_errors_follow_from_the_information_by_the_delta_method(double):
    params = fitted("full")
    info = jaxgmm.inference.information(params, X, ONES)
    k, d = params.means.shape
    free, unravel = ravel_pytree(params.family.to_unconstrained(params.scale))

    def covariances(phi):
        return params.family.to_covariance(params.family.from_unconstrained(unravel(phi), (k, d)), (k, d))

    inverse = np.linalg.inv(info.observed)
    sandwich = inverse @ info.opg @ inverse
    derivative = np.asarray(jax.jacfwd(covariances)(free)).reshape(k * d * d, -1)
    for kind, v in {"observed": inverse, "sandwich": sandwich}.items():
        errors = jaxgmm.inference.standard_errors(params, X, kind=kind)
        np.testing.assert_allclose(
            errors.means.ravel(), np.sqrt(np.diag(v)[k - 1 : k - 1 + k * d]), rtol=1e-8
        )
        w = float(params.weights[0])
        np.testing.assert_allclose(errors.weights, w * (1 - w) * np.sqrt(v[0, 0]), rtol=1e-8)
        cov = derivative @ v[k - 1 + k * d :, k - 1 + k * d :] @ derivative.T
        np.testing.assert_allclose(errors.covariances.ravel(), np.sqrt(np.diag(cov)), rtol=1e-8)


def test_weights_are_counts_for_the_information_but_not_for_the_sandwich(double):
    params = fitted("full", weighted=True)
    # The first half once more: the same by weights of 2 as by rows, in arrays of one shape.
    half = len(X) // 2
    twice = np.r_[np.full(half, 2.0), np.zeros(half)]
    with pytest.warns(RuntimeWarning, match="standard errors away"):
        by_weight = jaxgmm.inference.standard_errors(params, X, twice)
    with pytest.warns(RuntimeWarning, match="standard errors away"):
        by_rows = jaxgmm.inference.standard_errors(params, np.tile(X[:half], (2, 1)), ONES)
    same(by_weight, by_rows, rtol=1e-9)
    # Multiplying all weights is like more samples for one, and says nothing new for the other.
    by, more = (
        {k: jaxgmm.inference.standard_errors(params, X, w, kind=k).means for k in ("observed", "sandwich")}
        for w in (WEIGHTS, 4 * WEIGHTS)
    )
    np.testing.assert_allclose(more["observed"], by["observed"] / 2, rtol=1e-9)
    np.testing.assert_allclose(more["sandwich"], by["sandwich"], rtol=1e-9)


def test_rows_of_weight_zero_do_not_count_whatever_they_hold(double):
    params = fitted("full")
    x, w = X.copy(), ONES.copy()
    x[7], w[7] = 1e200, 0
    other = X.copy()
    other[7] = 0
    same(
        jaxgmm.inference.standard_errors(params, x, w),
        jaxgmm.inference.standard_errors(params, other, w),
        rtol=1e-10,
    )


def test_units_and_offsets_do_not_matter_in_float32():
    """With the data 1e3 widths from the origin, where a float32 rounds them to 1e-4 widths."""
    params = fitted("full")
    with x64(True):
        expected = jaxgmm.inference.standard_errors(params, X, ONES)
    by, to = np.array([1e-3, 1e2]), np.array([1.0, 1e5])
    weights, means, covariances = dense(params)
    parts = (weights, means * by + to, covariances * np.outer(by, by))
    there = jaxgmm.make_params(*(a.astype(np.float32) for a in parts))
    errors = jaxgmm.inference.standard_errors(
        there, (X * by + to).astype(np.float32), ONES.astype(np.float32)
    )
    assert errors.means.dtype == np.float32
    np.testing.assert_allclose(errors.weights, expected.weights, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(errors.means) / by, expected.means, rtol=1e-3)
    got = np.asarray(errors.covariances) / np.outer(by, by)
    np.testing.assert_allclose(got, expected.covariances, rtol=1e-3)


def test_blocks_of_rows_add_up(double):
    x = 2 * np.random.default_rng(3).normal(size=(6000, 1))
    params = jaxgmm.make_params([0.4, 0.6], [[-1.0], [1.0]], [1.0, 2.0], "spherical")
    whole = jaxgmm.inference.information(params, x)  # in three blocks of 2048 rows, of which two overlap
    parts = [
        jaxgmm.inference.information(params, p) for p in (x[:2000], x[2000:4000], x[4000:])
    ]  # one block each
    for field in ("observed", "opg", "score"):
        total = sum(getattr(p, field) for p in parts)
        np.testing.assert_allclose(getattr(whole, field), total, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("kind", ["no maximum", "twins"])
def test_a_mixture_without_positive_information_gives_nan_and_says_so(double, kind):
    params = fitted("full")
    if kind == "twins":
        params = jax.tree.map(lambda a: jnp.concatenate([a[:1], a[:1]]), params)
        params = dataclasses.replace(params, log_weights=jnp.full(2, -np.log(2)))
    else:
        params = dataclasses.replace(params, means=params.means[::-1] * 2)
    with pytest.warns(RuntimeWarning, match="not positive definite"):
        errors = jaxgmm.inference.standard_errors(params, X, ONES)
    assert not errors.valid
    assert all(np.isnan(getattr(errors, f)).all() for f in FIELDS)
    with pytest.warns(RuntimeWarning, match="not positive definite"):
        intervals = jaxgmm.inference.confidence_intervals(params, X, ONES)
    assert not intervals.valid
    assert all(np.isnan(a).all() for a in jax.tree.leaves((intervals.lower, intervals.upper)))
    with pytest.warns(RuntimeWarning, match="not positive definite"):
        assert np.isnan(jaxgmm.inference.takeuchi(params, X, ONES))
    assert not jaxgmm.inference.information(params, X, ONES).valid


def test_a_mixture_beside_the_maximum_is_told_how_far_it_is(double):
    params = fitted("full")
    errors = jaxgmm.inference.standard_errors(params, X, ONES)
    moved = dataclasses.replace(params, means=params.means.at[0, 0].add(1.5 * errors.means[0, 0]))
    with pytest.warns(RuntimeWarning, match="standard errors away"):
        beside = jaxgmm.inference.standard_errors(moved, X, ONES)
    assert beside.valid
    # No nearer than that entry alone tells, and farther in so far as the others would follow it.
    assert 1.4 < beside.distance < 4


def test_switched_off_components_change_nothing_else(double):
    params = fitted("full")
    off = padded(params)
    errors, expected = (jaxgmm.inference.standard_errors(p, X, ONES) for p in (off, params))
    np.testing.assert_allclose(errors.weights, np.r_[expected.weights, 0], rtol=1e-9)
    np.testing.assert_allclose(errors.means[:2], expected.means, rtol=1e-9)
    np.testing.assert_allclose(errors.covariances[:2], expected.covariances, rtol=1e-9)
    assert np.isnan(errors.means[2]).all()
    assert np.isnan(errors.covariances[2]).all()
    alone = jaxgmm.inference.information(params, X, ONES)
    dropped = jaxgmm.inference.information(off, X, ONES)
    np.testing.assert_allclose(dropped.observed, alone.observed, rtol=1e-12)
    # Inside jit they cannot be told, and have zeros. Logits are measured against the last that is on.
    kept = jax.jit(jaxgmm.inference.information)(off, X, ONES)
    rows = np.flatnonzero(np.diag(kept.observed))
    assert kept.observed.shape == (17, 17)
    np.testing.assert_allclose(np.asarray(kept.observed)[np.ix_(rows, rows)], alone.observed, rtol=1e-8)
    np.testing.assert_allclose([kept.least, kept.distance], [alone.least, alone.distance], atol=1e-8)


def test_vmap_is_the_loop_and_nothing_warns_inside(double):
    params = fitted("full")
    weights = np.stack([ONES, WEIGHTS, np.where(X[:, 0] > X[:, 0].mean(), ONES, 0.01)])
    together = jax.vmap(lambda w: jaxgmm.inference.standard_errors(params, X, w))(weights)
    alone = jaxgmm.inference.standard_errors(params, X, ONES)
    same(jax.tree.map(lambda a: a[0], together), alone, rtol=1e-9)


def test_standard_errors_are_differentiable(double):
    """Scaling the data scales the standard errors of the means."""

    def value(by):
        x = jnp.asarray(X) * by
        params = jaxgmm.make_params(jnp.ones(1), x.mean(0)[None], x.var(0)[None], "diag")
        return jaxgmm.inference.standard_errors(params, x).means.sum()

    size, slope = jax.value_and_grad(value)(1.0)
    np.testing.assert_allclose(slope, size, rtol=1e-9)


def test_intervals_are_symmetric_on_their_own_scales(double):
    params = fitted("full")
    errors = jaxgmm.inference.standard_errors(params, X, ONES)
    z = 1.6448536269514722
    intervals = jaxgmm.inference.confidence_intervals(params, X, ONES, level=0.9)
    low, high = intervals.lower, intervals.upper
    np.testing.assert_allclose(high.means - params.means, z * errors.means, rtol=1e-9)
    np.testing.assert_allclose(params.means - low.means, z * errors.means, rtol=1e-9)
    off = (0, 0, 1)
    np.testing.assert_allclose((high.covariances - low.covariances)[off], 2 * z * errors.covariances[off])
    variance, error = params.covariances[1, 1, 1], errors.covariances[1, 1, 1]
    np.testing.assert_allclose(high.covariances[1, 1, 1], variance * np.exp(z * error / variance), rtol=1e-9)
    np.testing.assert_allclose(low.covariances[1, 1, 1], variance * np.exp(-z * error / variance), rtol=1e-9)
    w, v = params.weights[0], errors.weights[0]
    logit = np.log(w / (1 - w)) + z * v / (w * (1 - w))
    np.testing.assert_allclose(high.weights[0], 1 / (1 + np.exp(-logit)), rtol=1e-9)
    # One weight's upper end is the other's lower end: they sum to 1.
    np.testing.assert_allclose(high.weights[0] + low.weights[1], 1, rtol=1e-9)


@pytest.mark.slow
def test_intervals_cover(double):
    """300 data sets; over three entries of a kind the standard error of a coverage is at most 1.3 points."""
    truth = jaxgmm.make_params(
        np.array([0.4, 0.6]), np.array([[0.0, 0.0], [3.5, 0.5]]), np.array([[1.0, 1.0], [0.6, 1.5]]), "diag"
    )

    @jax.jit
    def covered(keys):
        def one(key):
            x, _ = jaxgmm.sample(key, truth, 400)
            params = jaxgmm.fit(truth, x, reg_covar=0.0, options=EMOptions(history_size=1)).params
            intervals = jaxgmm.inference.confidence_intervals(params, x)
            return jax.tree.map(
                lambda low, true, high: (low <= true) & (true <= high),
                intervals.lower, entries(truth), intervals.upper,
            )  # fmt: skip

        return jax.lax.map(one, keys)

    inside = covered(jax.random.split(jax.random.key(5), 300))
    variances = np.einsum("nkdd->nkd", inside.covariances)
    for got in (inside.weights, inside.means, variances):
        assert 0.91 < np.asarray(got).mean() < 0.98


def test_takeuchi_penalises_by_the_trace(double):
    params = fitted("full", weighted=True)
    info = jaxgmm.inference.information(params, X, WEIGHTS)
    total = float((WEIGHTS * jaxgmm.log_prob(params, X)).sum())
    penalty = np.trace(np.linalg.solve(info.observed, info.opg))
    np.testing.assert_allclose(
        jaxgmm.inference.takeuchi(params, X, WEIGHTS), -2 * total + 2 * penalty, rtol=1e-10
    )


def test_what_does_not_fit_is_refused(double):
    params = fitted("full")
    with pytest.raises(ValueError, match=r"kind must be one of \['observed', 'sandwich'\]; got 'robust'"):
        jaxgmm.inference.standard_errors(params, X, kind="robust")
    with pytest.raises(ValueError, match="level must be strictly between 0 and 1; got 95"):
        jaxgmm.inference.confidence_intervals(params, X, level=95)
    with pytest.raises(ValueError, match="X must have the 2 features"):
        jaxgmm.inference.information(params, X[:, :1])
    fields = {**params.family._asdict(), "name": "mine", "to_unconstrained": None}
    with pytest.raises(ValueError, match="'mine' has no free coordinates"):
        jaxgmm.inference.standard_errors(dataclasses.replace(params, family=Family(**fields)), X)
