"""JAX's debugging tools report nothing in what is healthy.

So do other tests, of programs that they have compiled: of fits with a prior, gradients and restarts.
"""

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import jaxgmm
from tests.conftest import overlapping, soft_labels
from tests.quick import quick_jit

# Of these data an extrapolation of "diag" leaves the domain on the way, and is rejected.
X64, LABELS = overlapping(120, 2, 4, seed=9, separation=0.5)
X = X64.astype(np.float32)
KEY = jax.random.key(0)


def start(x=X):
    """The M-step from soft labels."""
    resp, x = soft_labels(LABELS, 4), x.astype(float)
    n = resp.sum(0)
    means = resp.T @ x / n[:, None]
    variances = np.einsum("nk,nkd->kd", resp, (x[:, None] - means) ** 2) / n[:, None]
    parts = (np.log(n / n.sum()), means, np.sqrt(variances))
    return jaxgmm.GMMParams(*(a.astype(np.float32) for a in parts), jaxgmm.components.get_component("diag"))


@quick_jit
def variational(x):
    resp = jaxgmm.e_step(start(), x)[0]
    return jaxgmm.fit_variational(resp, x, covariance_type="diag", max_iter=20)


HEALTHY = {
    "make_params": lambda: jaxgmm.make_params([0.5, 0.5], X[:2], np.stack([np.eye(2)] * 2)),
    "density": lambda: (jaxgmm.log_prob(start(), X), jaxgmm.predict(start(), X)),
    "sample": lambda: jaxgmm.sample(KEY, start(), 10),
    "step": lambda: jaxgmm.em_step(start(), X),
    "variational": lambda: variational(X),
}


@pytest.mark.parametrize("what", HEALTHY)
def test_debug_nans_reports_nothing(what):
    with jax.debug_nans(True):
        result = HEALTHY[what]()
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(result))


def test_checkify_finds_nothing_in_a_fit():
    def fit(begin, x, max_iter):
        return jaxgmm.fit(begin, x, max_iter=max_iter), jaxgmm.log_prob(begin, x)

    checked = quick_jit(checkify.checkify(fit, errors=checkify.float_checks))
    far = X + np.float32(1e4)
    for x, max_iter in ((X, 1000), (X, 0), (far, 1000)):
        error, (result, _) = checked(start(x), x, np.int32(max_iter))
        error.throw()
        assert not any(np.isnan(a).any() for a in jax.tree.leaves(result))
        assert result.status == (jaxgmm.Status.CONVERGED if max_iter else jaxgmm.Status.MAX_ITER)
