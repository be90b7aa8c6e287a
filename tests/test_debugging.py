"""JAX's debugging tools report nothing in what is healthy."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxgmm
from tests.conftest import overlapping, start_from
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


def start(name="diag", x=X):
    return start_from(x, LABELS, name, np.float32)


far = X + np.float32(1e4)
HEALTHY = {
    "make_params": lambda: jaxgmm.make_params([0.5, 0.5], X[:2], np.stack([np.eye(2)] * 2)),
    "fits": lambda: (
        jaxgmm.fit(start(), X),
        jaxgmm.fit(start(), X, max_iter=0),
        jaxgmm.fit(start(x=far), far),
    ),
    "prior": lambda: jaxgmm.fit(start(), X, prior=jaxgmm.default_prior(X, 4, "diag")),
    "density": lambda: (jaxgmm.log_prob(start(), X), jaxgmm.predict(start(), X)),
    "sample": lambda: jaxgmm.sample(KEY, start(), 10),
    "step": lambda: jaxgmm.em_step(start(), X),
    "fit_restarts": lambda: jaxgmm.fit_restarts(KEY, X, 3, covariance_type="diag", n_init=3, max_iter=20),
    "variational": lambda: jaxgmm.fit_variational(
        jaxgmm.e_step(start(), X)[0], X, covariance_type="diag", max_iter=20
    ),
}


@pytest.mark.parametrize("what", HEALTHY)
def test_debug_nans_reports_nothing(what):
    with debug_nans():
        result = HEALTHY[what]()
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(result))


def test_debug_nans_reports_nothing_in_a_gradient():
    gradient = quick_jit(jax.grad(lambda x: jaxgmm.fit(start(), x, tol=1e-4).params.means.sum()))
    with debug_nans():
        assert np.isfinite(gradient(jnp.asarray(X))).all()


def test_checkify_finds_nothing_in_a_fit():
    begin = start()
    checked = checkify.checkify(
        lambda x: (jaxgmm.fit(begin, x), jaxgmm.log_prob(begin, x)), errors=checkify.float_checks
    )
    error, (result, _) = quick_jit(checked)(jnp.asarray(X))
    error.throw()
    assert result.status == jaxgmm.Status.CONVERGED
