"""Stepwise EM comes near the optimum in one pass, and goes on with more data."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special, stats
from sklearn.mixture import GaussianMixture

import jaxgmm
from jaxgmm.kernels.base import Statistics
from jaxgmm.outofcore import fit_stepwise, stepwise_init, stepwise_step
from jaxgmm.outofcore._change_of_reference import expected, rebase
from tests.closed import CLOSED, build, dense
from tests.conftest import case
from tests.outofcore import streams
from tests.outofcore.streams import assert_same_bits, gap, start
from tests.outofcore.test_stream import PRIOR
from tests.problems import WEIGHT, D, K, N, X
from tests.quick import quick_jit

ROWS = 50  # of a step, everywhere: one program for a structure
MANY = np.random.default_rng(0).permutation(X.repeat(20, 0))


def blocks(n):
    """Pairs of rows and weights, over and over."""
    for i in range(n):
        part = slice(i % 4 * ROWS, (i % 4 + 1) * ROWS)
        yield X[part], WEIGHT[part]


def joint(mixture, x):
    """(n, K) log π_k p_k(x), by SciPy."""
    columns = [
        np.log(w) + stats.multivariate_normal(m, c).logpdf(x) for w, m, c in zip(*mixture, strict=True)
    ]
    return np.stack(columns, 1)


@pytest.mark.parametrize("name", ["full", "diag"])
def test_a_step_is_the_recursion_of_cappe_and_moulines(double, name):
    """Against running averages of r, r x and r x xᵀ in float64."""
    params = build(name, [0.2, 0.3, 0.5], X[:K], np.eye(D) + 0.5 * np.eye(K)[:, :1, None] + 0.5)
    state, likelihood = stepwise_init(params, reg_covar=0.0), 0.0
    mixture = dense(params)
    weights, means, wide = mixture
    s0, s1 = weights, weights[:, None] * means
    s2 = weights[:, None, None] * (wide + means[:, :, None] * means[:, None, :])
    for t, (x, w) in enumerate(blocks(6)):
        state = stepwise_step(state, x, w, decay=0.7, delay=1.5)
        log_joint = joint(mixture, x)
        log_density = special.logsumexp(log_joint, 1)
        resp = np.exp(log_joint - log_density[:, None]) * w[:, None] / w.sum()
        size = min(1.0, (t + 1.5) ** -0.7)
        s0 = (1 - size) * s0 + size * resp.sum(0)
        s1 = (1 - size) * s1 + size * resp.T @ x
        s2 = (1 - size) * s2 + size * np.einsum("nk,nd,ne->kde", resp, x, x)
        share = size if t else 1.0
        likelihood = (1 - share) * likelihood + share * (w @ log_density / w.sum())
        means = s1 / s0[:, None]
        within = s2 / s0[:, None, None] - means[:, :, None] * means[:, None, :]
        if name == "diag":
            within = within * np.eye(D)
        mixture = (s0 / s0.sum(), means, within)
    for a, b in zip(mixture, dense(state.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(state.log_likelihood, likelihood, rtol=1e-12)
    np.testing.assert_allclose(state.seen, WEIGHT.sum() + WEIGHT[: 2 * ROWS].sum())
    assert int(state.n_steps) == 6


@pytest.mark.parametrize("name", CLOSED)
def test_moments_are_carried_to_other_parameters(double, name):
    """One structure for each kind of moments, against those that are computed anew."""
    rng = np.random.default_rng(0)
    resp = rng.dirichlet(np.ones(K), N)

    def some():
        root = rng.normal(size=(K, D, D))
        return build(name, rng.dirichlet(np.ones(K)), rng.normal(size=(K, D)), root @ root.swapaxes(1, 2))

    def about(params):
        _, means, covariances = dense(params)
        centred = (X[None] - means[:, None]).swapaxes(1, 2)
        y = np.linalg.solve(np.linalg.cholesky(covariances), centred)
        first, matrices = np.einsum("nk,kdn->kd", resp, y), np.einsum("nk,kdn,ken->kde", resp, y, y)
        variances = np.einsum("kdd->kd", matrices)
        second = {
            "full": matrices, "tied": matrices.sum(0), "diag": variances, "spherical": variances.sum(1)
        }[name]  # fmt: skip
        return Statistics(resp.sum(0), first, second, np.zeros(()), np.full((), float(N)))

    old, new = some(), some()
    assert gap(quick_jit(rebase)(about(old), old, new), about(new)) < 1e-10
    # Those that a mixture expects are about itself: no first moments, and second moments of unit matrices.
    weights = np.array([0.2, 0.3, 0.5])
    unit = {
        "full": weights[:, None, None] * np.eye(D), "tied": np.eye(D), "diag": weights[:, None] * np.ones(D),
        "spherical": weights * D,
    }[name]  # fmt: skip
    np.testing.assert_allclose(quick_jit(expected)(old, weights).second, unit, rtol=1e-12, atol=1e-12)


def test_one_pass_comes_near_the_optimum_and_more_come_nearer(double):
    weights, means, covariances = dense(start("float64"))
    theirs = GaussianMixture(
        K, covariance_type="diag", reg_covar=0, tol=1e-9, max_iter=10_000, weights_init=weights,
        means_init=means, precisions_init=1 / np.einsum("kdd->kd", covariances),
    )  # fmt: skip
    optimum = theirs.fit(X).score(X)

    def short_of_it(state):
        return optimum - special.logsumexp(joint(dense(state.params), X), 1).mean()

    begun = short_of_it(stepwise_init(start("float64")))
    once = fit_stepwise(start("float64"), MANY, chunk_size=ROWS)
    assert int(once.n_steps) == 80
    assert short_of_it(once) < 0.1 * begun
    more = fit_stepwise(start("float64"), MANY, chunk_size=ROWS, n_passes=5)
    assert short_of_it(more) < 0.5 * short_of_it(once)
    assert float(more.seen) == len(MANY)


def test_a_state_goes_on_where_it_was(double):
    begin, some = start("float64"), MANY[:400]
    whole = fit_stepwise(begin, some, chunk_size=ROWS)
    half = fit_stepwise(begin, some[:200], chunk_size=ROWS)
    assert_same_bits(whole, fit_stepwise(half, some[200:], chunk_size=ROWS))
    # By steps, and from an iterator that can be read only once.
    state = stepwise_init(begin)
    for i in range(0, 200, ROWS):
        state = stepwise_step(state, some[i : i + ROWS], np.ones(ROWS))
    assert_same_bits(half, state)
    assert_same_bits(half, fit_stepwise(begin, iter(np.split(some[:200], 8)), chunk_size=ROWS))


def test_it_scans_and_rows_that_cannot_be_learnt_from_change_nothing(double):
    begin = stepwise_init(start("float64"))
    x, w = (np.stack(a) for a in zip(*blocks(4), strict=True))
    x[1, 7, 2] = np.nan
    scan = quick_jit(lambda s, xw: jax.lax.scan(lambda s, xw: (stepwise_step(s, *xw), None), s, xw))
    scanned, _ = scan(begin, (x, w))
    state = begin
    for i in (0, 2, 3):
        state = stepwise_step(state, x[i], w[i])
    assert gap(state, scanned) < 1e-10
    with pytest.raises(ValueError, match="X must be finite"):
        stepwise_step(begin, x[1], w[1])
    with pytest.raises(ValueError, match="array 1, row 7, column 2: must be finite"):
        fit_stepwise(begin, list(x), chunk_size=ROWS)


def test_a_component_without_rows_keeps_its_place_and_shape(double):
    begin = start("float64")
    means = np.array(begin.means)
    means[2] = 500.0
    far = dataclasses.replace(begin, means=means)
    state = stepwise_init(far)
    for x, w in blocks(150):
        state = stepwise_step(state, x, w, decay=0.51)
    weights, means, covariances = dense(state.params)
    assert weights[2] < 1e-6
    np.testing.assert_allclose(means[2], np.full(D, 500.0), rtol=1e-4)
    np.testing.assert_allclose(covariances[2], dense(far)[2][2], rtol=1e-2)


def test_a_prior_counts_against_each_row_once(double):
    """Though the state holds averages of the rows, and however often they are passed over."""

    def passes(n, decay, delay):
        return fit_stepwise(
            start("float64"), (X, WEIGHT), chunk_size=len(X), n_passes=n, decay=decay, delay=delay,
            prior=PRIOR, reg_covar=0.0,
        )  # fmt: skip

    def em_step(params):
        return jaxgmm.em_step(params, X, WEIGHT, prior=PRIOR, reg_covar=0.0)[0]

    # (0 + 1)^(−1) = 1: all of the past is forgotten, and the step is one of EM.
    assert gap(em_step(start("float64")), passes(1, 1.0, 1.0).params) < 1e-10
    state = passes(300, 0.51, 1.0)
    np.testing.assert_allclose(state.seen, WEIGHT.sum())
    # Steps of the same rows end at the fixed point of EM with the prior.
    assert gap(em_step(state.params), state.params, 0.1) < 1e-5
    # A state goes on with the prior that it has, and takes no second one.
    assert stepwise_step(state, X, WEIGHT).prior is not None
    with pytest.raises(ValueError, match="prior must be None where params is a StepwiseState"):
        fit_stepwise(state, X, prior=PRIOR)
    with pytest.raises(ValueError, match=r"prior\.mean must have shape"):
        stepwise_init(start("float64"), prior=dataclasses.replace(PRIOR, mean=np.zeros(4)))


def test_arguments_are_checked(double):
    for wrong, kind, said in [
        ({"decay": 0.5}, ValueError, "decay must be above 0.5"),
        ({"decay": 1.1}, ValueError, "decay must be above 0.5"),
        ({"delay": 0}, ValueError, "delay must be positive"),
        ({"n_passes": 0}, ValueError, "n_passes must be at least 1"),
        ({"columns": [0]}, ValueError, "3 features of params; it has 1"),
        ({"reg_covar": -1}, ValueError, "reg_covar must be"),
        ({"source": iter([X]), "n_passes": 2}, TypeError, "can be read once"),
    ]:
        with case(wrong), pytest.raises(kind, match=said):
            fit_stepwise(**{"params": start("float64"), "source": X, **wrong})


def test_what_it_cannot_go_on_from_is_refused(double):
    begin = start("float64")
    with pytest.raises(TypeError, match="state must be a StepwiseState"):
        stepwise_step(begin, X)
    own = streams.own_moments(begin)
    with pytest.raises(ValueError, match=r"stepwise EM needs .* 'mine' keeps others"):
        stepwise_init(own)
