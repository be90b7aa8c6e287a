"""Information, standard errors and intervals against textbooks and plain automatic differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from jax.flatten_util import ravel_pytree

import jaxgmm
from jaxgmm.inference import confidence_intervals, information, standard_errors
from tests.conftest import x64
from tests.inference.optimum import FIELDS, ONES, flat, mixture, not_identified, one_of_three, optimum
from tests.problems import WEIGHT, D, K, N, X
from tests.quick import quick_jit

_information = quick_jit(information)

pytestmark = pytest.mark.filterwarnings("ignore:the maximum of the likelihood is:RuntimeWarning")


def test_one_component_has_the_textbooks_standard_errors_and_switched_off_ones_have_none(double):
    x = X * np.array([1.0, 30.0, 1e-2]) + np.array([5.0, 1e4, 0.0])
    cov = np.cov(x.T, bias=True)
    params = one_of_three(x.mean(0), cov)
    errors = standard_errors(params, x, ONES)
    np.testing.assert_array_equal(errors.weights, 0)
    variances = np.diag(cov)
    np.testing.assert_allclose(errors.means[0], np.sqrt(variances / N), rtol=1e-8)
    expected = np.sqrt((np.outer(variances, variances) + cov**2) / N)  # σ² √(2/n) on the diagonal
    np.testing.assert_allclose(errors.covariances[0], expected, rtol=1e-8)
    assert errors.valid
    assert errors.distance < 1e-6
    assert np.isnan(errors.means[1:]).all()
    assert np.isnan(errors.covariances[1:]).all()
    # The weight of the only component is certain.
    intervals = confidence_intervals(params, x, ONES)
    np.testing.assert_array_equal([intervals.lower.weights, intervals.upper.weights], [[1, 0, 0]] * 2)


def test_blocks_of_rows_add_up_and_switched_off_components_have_zeros_inside_jit(double):
    """6000 rows are three blocks, of which two overlap; of one component all is known in closed form."""
    x, w = np.tile(X, (30, 1)), np.tile(WEIGHT, 30)
    mean, variance = (np.average(a, axis=0, weights=w) for a in (x, np.square(x - (w @ x) / w.sum())))
    params = mixture([1.0, 0, 0], [mean, mean + 1, mean - 1], np.stack([np.diag(variance)] * 3), "diag")
    info = jax.tree.map(np.asarray, _information(params, x, w))
    zero = ~info.observed.any(0)
    assert zero.sum() == (K - 1) * (1 + 2 * D)
    assert not zero[K - 1 : K - 1 + D].any()
    assert not info.opg[zero].any()
    at = np.s_[K - 1 : K - 1 + D, K - 1 : K - 1 + D]
    scores = (x - mean) / variance
    size = w.sum()
    np.testing.assert_allclose(info.observed[at], np.diag(size / variance), rtol=1e-8, atol=1e-10 * size)
    np.testing.assert_allclose(info.opg[at], (scores.T * w**2) @ scores, rtol=1e-8, atol=1e-10 * size)
    assert np.abs(info.score).max() < 1e-9 * size


def test_information_is_the_hessian_in_the_documented_coordinates(double):
    # At a point that is no optimum, where the score does not vanish.
    params = optimum()
    params = dataclasses.replace(params, means=np.asarray(params.means) + 0.1)
    covariance, shape = params.covariance, params.means.shape

    def log_prob(phi, unravel):
        logits = jnp.concatenate([phi[: K - 1], jnp.zeros(1)])
        scale = covariance.from_unconstrained(unravel(phi[K - 1 + K * D :]), shape)
        means = phi[K - 1 : K - 1 + K * D].reshape(shape)
        return jaxgmm.log_prob(
            jaxgmm.GMMParams(jax.nn.log_softmax(logits), means, scale, params.component), X
        )

    @quick_jit
    def derivatives(params):
        free, unravel = ravel_pytree(covariance.to_unconstrained(params.scale))
        logits = params.log_weights[:-1] - params.log_weights[-1]
        phi = jnp.concatenate([logits, params.means.ravel(), free])
        total = jax.hessian(lambda phi: -(WEIGHT * log_prob(phi, unravel)).sum())(phi)
        return total, jax.jacfwd(log_prob)(phi, unravel)

    observed, scores = map(np.asarray, derivatives(params))
    info = jax.tree.map(np.asarray, _information(params, X, WEIGHT))
    assert info.observed.shape == (jaxgmm.n_parameters(params),) * 2
    size = np.abs(observed).max()
    np.testing.assert_allclose(info.observed, observed, rtol=1e-9, atol=1e-12 * size)
    opg = np.einsum("n,np,nq->pq", WEIGHT**2, scores, scores)
    np.testing.assert_allclose(info.opg, opg, rtol=1e-9, atol=1e-12 * size)
    np.testing.assert_allclose(info.score, WEIGHT @ scores, rtol=1e-9, atol=1e-12 * size)
    step = np.linalg.solve(observed, info.score)
    np.testing.assert_allclose(info.distance, np.sqrt(info.score @ step), rtol=1e-8)


def test_standard_errors_follow_from_the_information_by_the_delta_method(double):
    params = optimum()
    info = jax.tree.map(np.asarray, _information(params, X, WEIGHT))

    @quick_jit
    def derivative(scale):
        free, unravel = ravel_pytree(params.covariance.to_unconstrained(scale))

        def covariances(phi):
            scale = params.covariance.from_unconstrained(unravel(phi), (K, D))
            return params.covariance.to_covariance(scale, (K, D)).ravel()

        return jax.jacfwd(covariances)(free)

    inverse = np.linalg.inv(info.observed)
    sandwich = inverse @ info.opg @ inverse
    # The weights' softmax, with the last logit fixed.
    w = np.exp(params.log_weights)
    softmax = (np.diag(w) - np.outer(w, w))[:, : K - 1]
    j, at = np.asarray(derivative(params.scale)), K - 1 + K * D
    for kind, v in {"observed": inverse, "sandwich": sandwich}.items():
        errors = jax.tree.map(np.asarray, standard_errors(params, X, WEIGHT, kind=kind))
        np.testing.assert_allclose(errors.means.ravel(), np.sqrt(np.diag(v)[K - 1 : at]), rtol=1e-8)
        weights = np.sqrt(np.diag(softmax @ v[: K - 1, : K - 1] @ softmax.T))
        np.testing.assert_allclose(errors.weights, weights, rtol=1e-8)
        np.testing.assert_allclose(
            errors.covariances.ravel(), np.sqrt(np.diag(j @ v[at:, at:] @ j.T)), rtol=1e-8
        )


def test_weights_are_counts_for_the_information_but_not_for_the_sandwich(double):
    params = optimum()
    # The first half once more: the same by weights of 2 as by rows, in arrays of one shape.
    half = N // 2
    twice = np.r_[np.full(half, 2.0), np.zeros(half)]
    by_weight = standard_errors(params, X, twice)
    by_rows = standard_errors(params, np.tile(X[:half], (2, 1)), ONES)
    np.testing.assert_allclose(flat(by_weight), flat(by_rows), rtol=1e-9)
    # Multiplying all weights is like more samples for one, and says nothing new for the other.
    by, more = (
        {k: np.asarray(standard_errors(params, X, w, kind=k).means) for k in ("observed", "sandwich")}
        for w in (WEIGHT, 4 * WEIGHT)
    )
    np.testing.assert_allclose(more["observed"], by["observed"] / 2, rtol=1e-9)
    np.testing.assert_allclose(more["sandwich"], by["sandwich"], rtol=1e-9)
    # A row of weight zero does not count, whatever it holds.
    w, x, other = WEIGHT.copy(), X.copy(), X.copy()
    w[7], x[7], other[7] = 0, 1e200, 0
    np.testing.assert_allclose(
        flat(standard_errors(params, x, w)), flat(standard_errors(params, other, w)), rtol=1e-10
    )


def test_units_and_offsets_do_not_matter_in_float32():
    """With the data 1e3 widths from the origin, where a float32 rounds them to 1e-4 widths."""
    params = optimum()
    with x64(True):
        expected = standard_errors(params, X, WEIGHT)
    by, to = np.array([1e-3, 1e2, 1.0]), np.array([1.0, 1e5, 0.0])
    means, factors = (np.asarray(a) for a in (params.means, params.scale))
    covariances = (factors @ factors.swapaxes(1, 2)) * np.outer(by, by)
    there = mixture(np.exp(params.log_weights), means * by + to, covariances)
    there = jax.tree.map(lambda a: np.asarray(a, np.float32), there)
    errors = quick_jit(standard_errors)(there, *(a.astype(np.float32) for a in (X * by + to, WEIGHT)))
    assert errors.means.dtype == np.float32
    np.testing.assert_allclose(errors.weights, expected.weights, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(errors.means) / by, expected.means, rtol=1e-3)
    got = np.asarray(errors.covariances) / np.outer(by, by)
    np.testing.assert_allclose(got, expected.covariances, rtol=1e-3)


@pytest.mark.parametrize("kind", ["no maximum", "equal components"])
def test_a_mixture_without_positive_information_gives_nan_and_says_so(double, kind):
    params = not_identified(optimum())
    if kind == "no maximum":
        params = dataclasses.replace(optimum(), means=np.asarray(optimum().means)[::-1] * 2)
    for function in (standard_errors, confidence_intervals):
        with pytest.warns(RuntimeWarning, match="not positive definite"):
            got = function(params, X, WEIGHT)
        assert not got.valid
        for field in FIELDS if function is standard_errors else ():
            assert np.isnan(getattr(got, field)).all()
        if function is confidence_intervals:
            assert all(np.isnan(a).all() for a in jax.tree.leaves((got.lower, got.upper)))
    assert not _information(params, X, WEIGHT).valid


@pytest.mark.filterwarnings("error")
def test_a_mixture_beside_the_maximum_is_told_how_far_it_is(double):
    params = optimum()
    errors = standard_errors(params, X, WEIGHT)
    means = np.array(params.means)
    means[0, 0] += 1.5 * np.asarray(errors.means)[0, 0]
    moved = dataclasses.replace(params, means=means)
    with pytest.warns(RuntimeWarning, match="standard errors away"):
        beside = standard_errors(moved, X, WEIGHT)
    assert beside.valid
    # No nearer than that entry alone tells, and farther in so far as the others would follow it.
    assert 1.4 < beside.distance < 4


def test_standard_errors_are_differentiable_and_nothing_warns_under_a_transformation(double):
    """Scaling the data scales the standard errors of the means."""

    def value(by):
        x = jnp.asarray(X[:, :1]) * by
        params = jaxgmm.make_params(jnp.ones(1), x.mean(0)[None], x.var(0), "spherical")
        return standard_errors(params, x).means.sum()

    by = np.array([1.0, 2.0])
    size, slope = quick_jit(jax.vmap(jax.value_and_grad(value)))(by)
    np.testing.assert_allclose(slope, size / by, rtol=1e-9)


def test_intervals_are_symmetric_on_their_own_scales(double):
    params = optimum()
    params, errors, intervals = (
        jax.tree.map(np.asarray, a)
        for a in (
            params,
            standard_errors(params, X, WEIGHT),
            confidence_intervals(params, X, WEIGHT, level=0.9),
        )
    )
    z = 1.6448536269514722
    low, high = intervals.lower, intervals.upper
    np.testing.assert_allclose(high.means - params.means, z * errors.means, rtol=1e-9)
    np.testing.assert_allclose(params.means - low.means, z * errors.means, rtol=1e-9)
    off = (0, 0, 1)
    np.testing.assert_allclose((high.covariances - low.covariances)[off], 2 * z * errors.covariances[off])
    variance, error = (params.scale[1, 1] ** 2).sum(), errors.covariances[1, 1, 1]
    np.testing.assert_allclose(high.covariances[1, 1, 1], variance * np.exp(z * error / variance), rtol=1e-9)
    np.testing.assert_allclose(low.covariances[1, 1, 1], variance * np.exp(-z * error / variance), rtol=1e-9)
    w, v = np.exp(params.log_weights), errors.weights
    logit = np.log(w / (1 - w)) + z * v / (w * (1 - w))
    np.testing.assert_allclose(high.weights, 1 / (1 + np.exp(-logit)), rtol=1e-9)


def test_what_does_not_fit_is_refused(double):
    params = optimum()
    with pytest.raises(ValueError, match=r"kind must be one of \['observed', 'sandwich'\]; got 'robust'"):
        standard_errors(params, X, kind="robust")
    with pytest.raises(ValueError, match="level must be strictly between 0 and 1; got 95"):
        confidence_intervals(params, X, level=95)
    with pytest.raises(ValueError, match="X must have the 3 features"):
        information(params, X[:, :1])
    mine = params.covariance._replace(name="mine", to_unconstrained=None)
    with pytest.raises(ValueError, match="'mine' has no free coordinates"):
        standard_errors(dataclasses.replace(params, component=jaxgmm.components.gaussian(mine)), X)


def test_errors_and_intervals_print_with_the_names_of_a_data_frame(double):
    params, frame = optimum(), pandas.DataFrame(X, columns=["a", "b c", "d"])
    errors, intervals = standard_errors(params, frame, WEIGHT), confidence_intervals(params, frame, WEIGHT)
    assert errors.columns == intervals.columns == ("a", "b c", "d")
    shown = []
    for record, wanted in [(errors, (errors,)), (intervals, (errors, intervals.lower, intervals.upper))]:
        lines = str(record).splitlines()
        assert lines[0] == repr(record)
        assert len(lines) == 3 + K * (1 + 2 * D) + 1
        row = next(
            line.removeprefix("1  mean b c").split() for line in lines if line.startswith("1  mean b c")
        )
        numbers = [float(a.means[1, 1]) for a in (errors.estimate, *wanted)]
        # Three digits of the standard error.
        np.testing.assert_allclose([float(text) for text in row], numbers, atol=0.006 * numbers[1])
        assert "<td" in record._repr_html_()
    assert jax.tree.map(lambda a: a, errors).columns == errors.columns
    # Nothing is looked at where it is traced.
    jax.eval_shape(lambda e: shown.append(str(e)) or e, errors)
    assert shown == ["StandardErrors()"]
