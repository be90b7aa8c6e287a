"""JAX's debugging tools report nothing in what is healthy."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxgmm
from jaxgmm import EMOptions
from tests.conftest import overlapping, start_from

X64, LABELS = overlapping(120, 2, 4, seed=9, separation=0.5)
X = X64.astype(np.float32)
KEY = jax.random.key(0)


@contextlib.contextmanager
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    try:
        yield
    finally:
        jax.config.update("jax_debug_nans", False)


def start(name="full", x=X):
    return start_from(x, LABELS, name, np.float32)


def loss(x):
    result = jaxgmm.fit(start(), x, tol=1e-4)
    return result.log_likelihood + result.params.means.sum() + result.params.covariances.sum()


def steps():
    resp, _ = jaxgmm.e_step(start(), X)
    return jaxgmm.m_step(resp, X), jaxgmm.em_step(start(), X)


far = X + np.float32(1e4)
HEALTHY = {
    "make_params": lambda: jaxgmm.make_params([0.5, 0.5], X[:2], np.stack([np.eye(2)] * 2)),
    "whitened": lambda: jaxgmm.fit(start(), X, options=EMOptions(kernel="whitened")),
    "quadratic": lambda: jaxgmm.fit(start(), X, options=EMOptions(kernel="quadratic")),
    "auto": lambda: jaxgmm.fit(start(), X, options=EMOptions(kernel="auto")),
    "plain": lambda: jaxgmm.fit(start(), X, accelerate=False),
    "no steps": lambda: jaxgmm.fit(start(), X, max_iter=0),
    "offset": lambda: jaxgmm.fit(start(x=far), far),
    "prior": lambda: jaxgmm.fit(start(), X, prior=jaxgmm.default_prior(X, 4)),
    "density": lambda: (jaxgmm.log_prob(start(), X), jaxgmm.predict(start(), X)),
    "sample": lambda: jaxgmm.sample(KEY, start(), 10),
    "steps": steps,
    "fit_restarts": lambda: jaxgmm.fit_restarts(KEY, X, 3, n_init=3, max_iter=20),
    "fit_components": lambda: jaxgmm.fit_components(KEY, X, range(1, 3), n_init=2, max_iter=20),
    "unrolled": lambda: jaxgmm.gradients.fit_unrolled(start(), X, 3),
    "stepwise": lambda: jaxgmm.outofcore.stepwise_step(jaxgmm.outofcore.stepwise_init(start()), X),
    "variational": lambda: jaxgmm.fit_variational(jaxgmm.e_step(start(), X)[0], X, max_iter=20),
    "gradient": lambda: jax.grad(loss)(jnp.asarray(X)),
}


SLOW = ("auto", "plain", "no steps", "unrolled", "stepwise", "fit_components")


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow if w in SLOW else ()) for w in HEALTHY]
)
def test_debug_nans_reports_nothing(what):
    with debug_nans():
        result = HEALTHY[what]()
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(result))


def test_debug_nans_reports_a_derivative_that_cannot_be_trusted():
    def unconverged(x):
        return jaxgmm.fit(start(), x, max_iter=2).params.means.sum()

    with debug_nans(), pytest.raises(FloatingPointError):
        jax.grad(unconverged)(jnp.asarray(X))


# Of these data an extrapolation of "diag" leaves the domain on the way, and is rejected.
@pytest.mark.parametrize(("name", "kernel"), [("diag", "whitened"), ("full", "quadratic"), ("VEE", "auto")])
def test_checkify_finds_nothing_in_a_fit(name, kernel):
    begin = start(name)
    checked = checkify.checkify(
        lambda x: (jaxgmm.fit(begin, x, options=EMOptions(kernel=kernel)), jaxgmm.log_prob(begin, x)),
        errors=checkify.float_checks,
    )
    error, (result, _) = jax.jit(checked)(jnp.asarray(X))
    error.throw()
    assert result.status == jaxgmm.Status.CONVERGED


@pytest.mark.parametrize("name", ["full", "tied", "diag", "spherical", "VEE"])
def test_checkify_finds_nothing_in_a_trial_outside_the_domain(name):
    params = start(name)
    chart = jaxgmm.em_map.chart(params.family)
    here = chart.to(params, params)
    outside = (here[0], here[1] | {"precision": -here[1]["precision"]})
    error, trial = checkify.checkify(chart.back, errors=checkify.float_checks)(params, outside)
    error.throw()
    assert any(np.isnan(a).any() for a in jax.tree.leaves(trial))
