"""JAX's debugging tools report nothing in what is healthy."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import jaxgmm
from tests.conftest import overlapping
from tests.quick import quick_jit

# Of these data an extrapolation of "diag" leaves the domain on the way, and is rejected.
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


def start(x=X):
    """The mixture of the labels' own moments."""
    groups = [x[k == LABELS] for k in range(4)]
    means, widths = (np.stack([f(g, axis=0) for g in groups]) for f in (np.mean, np.std))
    weights = (np.bincount(LABELS) / len(LABELS)).astype(np.float32)
    return jaxgmm.GMMParams(np.log(weights), means, widths, jaxgmm.components.get_component("diag"))


@quick_jit
def fit_restarts(x):
    return jaxgmm.fit_restarts(KEY, x, 3, covariance_type="diag", n_init=3, max_iter=20)


@quick_jit
def variational(x):
    resp = jaxgmm.e_step(start(), x)[0]
    return jaxgmm.fit_variational(resp, x, covariance_type="diag", max_iter=20)


@quick_jit
@functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
def fit_and_gradient(begin, x, max_iter):
    prior, options = jaxgmm.default_prior(x, 4, "diag"), jaxgmm.EMOptions(unconverged_gradient="ignore")
    result = jaxgmm.fit(begin, x, tol=1e-4, max_iter=max_iter, prior=prior, options=options)
    return result.params.means.sum(), result


far = X + np.float32(1e4)
HEALTHY = {
    "make_params": lambda: jaxgmm.make_params([0.5, 0.5], X[:2], np.stack([np.eye(2)] * 2)),
    "fits": lambda: [fit_and_gradient(start(x), x, np.int32(n)) for x, n in ((X, 1000), (X, 0), (far, 1000))],
    "density": lambda: (jaxgmm.log_prob(start(), X), jaxgmm.predict(start(), X)),
    "sample": lambda: jaxgmm.sample(KEY, start(), 10),
    "step": lambda: jaxgmm.em_step(start(), X),
    "fit_restarts": lambda: fit_restarts(X),
    "variational": lambda: variational(X),
}


@pytest.mark.parametrize("what", HEALTHY)
def test_debug_nans_reports_nothing(what):
    with debug_nans():
        result = HEALTHY[what]()
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(result))


def test_checkify_finds_nothing_in_a_fit():
    checked = checkify.checkify(
        lambda x: (jaxgmm.fit(start(), x), jaxgmm.log_prob(start(), x)), errors=checkify.float_checks
    )
    error, (result, _) = quick_jit(checked)(X)
    error.throw()
    assert result.status == jaxgmm.Status.CONVERGED
