"""Stepwise EM comes near the optimum in one pass, and goes on with more data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.kernels.exact import accumulate
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from tests.conftest import CORE, costly, dense, overlapping, start_from

X, LABELS = overlapping(8000, 2, 3, seed=4)
X = X.astype(np.float32)
N = 400  # rows of a step, everywhere: one program for a structure


@pytest.fixture(scope="module")
def away():
    """A start that is not the optimum."""
    return start_from(X + 20, LABELS, "full", np.float32)


@pytest.mark.slow
def test_one_pass_comes_near_the_optimum(away):
    start, best = away, jaxgmm.fit(away, X + 20, tol=1e-4, options=EMOptions(kernel="whitened"))
    state = jaxgmm.outofcore.fit_stepwise(start, X + 20, chunk_size=N)
    assert int(state.n_steps) == 20
    begun, ended = float(jaxgmm.score(start, X + 20)), float(jaxgmm.score(state.params, X + 20))
    optimum = float(best.log_likelihood)
    assert ended > optimum - 0.1 * (optimum - begun)
    more = jaxgmm.outofcore.fit_stepwise(start, X + 20, chunk_size=N, n_passes=5)
    assert optimum - float(jaxgmm.score(more.params, X + 20)) < 0.5 * (optimum - ended) + 1e-4
    np.testing.assert_allclose(state.log_likelihood, ended, atol=0.1)


def test_a_state_goes_on_where_it_was(away):
    whole = jaxgmm.outofcore.fit_stepwise(away, X + 20, chunk_size=N)
    half = jaxgmm.outofcore.fit_stepwise(away, X[:4000] + 20, chunk_size=N)
    jax.tree.map(
        np.testing.assert_array_equal, whole, jaxgmm.outofcore.fit_stepwise(half, X[4000:] + 20, chunk_size=N)
    )
    # By steps, and from an iterator that can be read only once.
    state = jaxgmm.outofcore.stepwise_init(away)
    for i in range(0, 4000, N):
        state = jaxgmm.outofcore.stepwise_step(state, X[i : i + N] + 20)
    np.testing.assert_allclose(state.params.means, half.params.means, rtol=1e-5)
    once = jaxgmm.outofcore.fit_stepwise(
        away, (X[i : i + 100] + 20 for i in range(0, 4000, 100)), chunk_size=N
    )
    jax.tree.map(np.testing.assert_array_equal, half, once)


def test_it_scans(away):
    blocks = (X[:4000] + 20).reshape(10, N, 2)
    start = jaxgmm.outofcore.stepwise_init(away)
    state, _ = jax.jit(
        lambda s, b: jax.lax.scan(lambda s, x: (jaxgmm.outofcore.stepwise_step(s, x), None), s, b)
    )(start, jnp.asarray(blocks))
    step = jaxgmm.outofcore.fit_stepwise(away, X[:4000] + 20, chunk_size=N)
    np.testing.assert_allclose(state.params.means, step.params.means, rtol=1e-4)


@pytest.mark.parametrize("name", ["full", *(costly(n, quick=[]) for n in ("tied", "VEV"))])
def test_a_step_of_size_one_is_an_em_step(double, name):
    start = start_from(X[:N], LABELS[:N], name, np.float64)
    state = jaxgmm.outofcore.stepwise_init(start, reg_covar=0.0)
    # (0 + 1)^(−1) = 1: all of the past is forgotten.
    state = jaxgmm.outofcore.stepwise_step(state, X[:N].astype(np.float64), decay=1.0, delay=1.0)
    wanted, _ = jaxgmm.em_step(start, X[:N].astype(np.float64), reg_covar=0.0)
    for a, b in zip(dense(state.params), dense(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    # And its moments are those of these rows about the new parameters.
    resp = jaxgmm.responsibilities(start, X[:N].astype(np.float64))
    fresh = accumulate(
        state.relative, jnp.asarray(X[:N], jnp.float64), None, resp=resp, shift=state.shift, block_size=N
    )
    np.testing.assert_allclose(state.moments.first, fresh.first / N, atol=1e-9)
    for a, b in zip(jax.tree.leaves(state.moments.second), jax.tree.leaves(fresh.second), strict=True):
        np.testing.assert_allclose(a, b / N, atol=1e-9)


@pytest.mark.parametrize("name", [costly(n, quick=["diag"]) for n in [*CORE, "VEV"]])
def test_what_a_mixture_expects_of_itself_changes_nothing(double, name):
    params = start_from(X[:N], LABELS[:N], name, np.float64)
    new, length = jaxgmm.em_map.maximise(
        params, change_of_reference.expected(params, params.weights), jnp.zeros(2, jnp.float64)
    )
    assert float(length) < 1e-20
    for a, b in zip(dense(params), dense(new), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_a_component_without_rows_keeps_its_shape(away):
    state = jaxgmm.outofcore.stepwise_init(away)
    far = dataclasses.replace(away, means=away.means.at[2].set(jnp.asarray([500.0, 500.0])))
    state = jaxgmm.outofcore.stepwise_init(far)
    for i in range(150):
        state = jaxgmm.outofcore.stepwise_step(state, X[(i % 20) * N : (i % 20 + 1) * N] + 20, decay=0.51)
    assert float(state.params.weights[2]) < 1e-6
    np.testing.assert_allclose(state.params.means[2], [500, 500], rtol=1e-4)
    np.testing.assert_allclose(state.params.covariances[2], far.covariances[2], rtol=1e-2)


def test_rows_that_cannot_be_learnt_from_change_nothing_under_jit(away):
    state = jaxgmm.outofcore.stepwise_init(away)
    bad = jnp.full((N, 2), jnp.nan, jnp.float32)
    after = jax.jit(jaxgmm.outofcore.stepwise_step)(state, bad)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    with pytest.raises(ValueError, match="X must be finite"):
        jaxgmm.outofcore.stepwise_step(state, bad)
    with pytest.raises(ValueError, match="array 1, row 0, column 0: must be finite"):
        jaxgmm.outofcore.fit_stepwise(state, [X, np.asarray(bad)], chunk_size=N)


def test_arguments_are_checked(away):
    start = away
    for wrong, kind, said in [
        ({"decay": 0.5}, ValueError, "decay must be above 0.5"),
        ({"decay": 1.1}, ValueError, "decay must be above 0.5"),
        ({"delay": 0}, ValueError, "delay must be positive"),
        ({"n_passes": 0}, ValueError, "n_passes must be at least 1"),
        ({"columns": [0]}, ValueError, "2 features of params; it has 1"),
        ({"reg_covar": -1}, ValueError, "reg_covar must be"),
    ]:
        with pytest.raises(kind, match=said):
            jaxgmm.outofcore.fit_stepwise(start, X, **wrong)
    with pytest.raises(TypeError, match="can be read once"):
        jaxgmm.outofcore.fit_stepwise(start, iter([X]), n_passes=2)
    with pytest.raises(TypeError, match="state must be a StepwiseState"):
        jaxgmm.outofcore.stepwise_step(start, X)
    Y = np.column_stack([X, X[:, :1] * 2 + X[:, 1:] ** 2])
    with pytest.raises(ValueError, match=r"stepwise EM needs .* 'factor\(1\)' keeps others"):
        jaxgmm.outofcore.stepwise_init(start_from(Y[:N], LABELS[:N], "factor(1)", np.float32))


PRIOR = jaxgmm.Prior(
    mean=np.array([20.0, 21.0]), strength=40.0, dof=60.0, scale=np.array([[30.0, 5.0], [5.0, 20.0]]),
    weight_concentration=np.array([90.0, 5.0, 1.0]),
)  # fmt: skip


def test_a_step_of_size_one_is_an_em_step_under_the_same_prior(double):
    """The prior counts against the rows' weights, though the state holds averages of them."""
    x = X[:N].astype(np.float64) + 20
    w = np.linspace(0.5, 3.0, N)
    start = start_from(x, LABELS[:N], "full", np.float64)
    state = jaxgmm.outofcore.stepwise_init(start, reg_covar=0.0, prior=PRIOR)
    state = jaxgmm.outofcore.stepwise_step(state, x, w, decay=1.0, delay=1.0)
    wanted, _ = jaxgmm.em_step(start, x, w, reg_covar=0.0, prior=PRIOR)
    for a, b in zip(dense(state.params), dense(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state.seen, w.sum())


def test_passes_over_the_same_rows_come_near_the_fit_with_a_prior(away):
    x = X[:4000] + 20
    best = jaxgmm.fit(away, x, tol=1e-4, prior=PRIOR, options=EMOptions(kernel="whitened")).params
    plain = jaxgmm.fit(away, x, tol=1e-4, options=EMOptions(kernel="whitened")).params
    # 0.15 was measured; the last steps of size 80^(−0.6) = 0.07 leave noise of some of their own length.
    state = jaxgmm.outofcore.fit_stepwise(away, x, chunk_size=N, n_passes=8, prior=PRIOR)
    assert float(state.seen) == 4000  # each row once, in however many passes
    found = state.params

    def apart(a, b):
        return float(jnp.abs(a.means - b.means).max() + jnp.abs(a.covariances - b.covariances).max())

    assert apart(found, best) < 0.25 * apart(plain, best)
    # It goes on with the prior that it has, and takes no second one.
    assert jaxgmm.outofcore.stepwise_step(state, x[:N]).prior is not None
    with pytest.raises(ValueError, match="prior must be None where params is a StepwiseState"):
        jaxgmm.outofcore.fit_stepwise(state, x, prior=PRIOR)
    with pytest.raises(ValueError, match=r"prior\.mean must have shape"):
        jaxgmm.outofcore.stepwise_init(away, prior=dataclasses.replace(PRIOR, mean=np.zeros(3)))
