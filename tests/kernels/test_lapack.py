"""No public function hands LAPACK more matrices at once than one thread takes, or two calls can hang.

What is traced here is a jaxpr, so that nothing is compiled but for the last test.
"""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.distributions._wasserstein import squared_bures
from jaxgmm.kernels import linalg
from jaxgmm.selection import _programs as programs
from tests.conftest import lapack_calls, soft_labels, start_from
from tests.quick import quick_jit

N, D, K = 80, 24, 6
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
KEY = jax.random.key(0)
RESP = soft_labels(np.arange(N) % K, K, np.float32)
VVE = jax.eval_shape(lambda r, x: jaxgmm.m_step(r, x, covariance_type="VVE"), RESP, X)
VVE = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), VVE)
START = start_from(X, np.arange(N) % K, "full", np.float32, reg_covar=0.1)


def on_data(function, *arguments, **options):
    """The function of (X) that is traced."""
    return lambda x: function(*arguments, x, **options)


ENTRY_POINTS = {
    "fit_restarts": on_data(jaxgmm.fit_restarts, KEY, n_components=K, n_init=4, max_iter=2),
    "fit_best EEV": on_data(
        jaxgmm.fit_best, KEY, n_components=K, covariance_type="EEV", budget=30, max_iter=2
    ),
    "fit_variational": lambda x: jaxgmm.fit_variational(RESP, x, max_iter=2),
    "grad of fit": jax.grad(lambda x: jaxgmm.fit(START, x, max_iter=2).params.means.sum()),
    "fits of VVE": lambda x: jax.vmap(lambda a: jaxgmm.fit(VVE, a * x, max_iter=2).n_iter)(jnp.ones(3)),
    "hierarchical_labels": lambda x: jaxgmm.init.hierarchical_labels(x, K),
    "bootstrap": lambda x: jaxgmm.inference.bootstrap(KEY, START, x, n_replicates=4, max_iter=2),
    "l2_distance": lambda x: jaxgmm.distributions.l2_distance(START, moved(x)),
    "condition": jax.vmap(lambda row: jaxgmm.distributions.condition(START, (0, 1), row[:2])),
    "squared_bures": lambda x: squared_bures(START, moved(x)),
    "standard_errors": lambda x: several(jaxgmm.inference.standard_errors, x),
    "leave_one_out": lambda x: several(jaxgmm.inference.leave_one_out, x),
    "spurious flags": lambda x: flags(x),
}


def moved(x):
    return jaxgmm.mixture.translate(START, x[0])


def several(function, x):
    """Of three mixtures of six features at once, whose information is a matrix of 55 rows."""
    small = x[:, :6]
    start = start_from(X[:, :6], np.arange(N) % 2, "full", np.float32, reg_covar=0.1)
    starts = jax.tree.map(lambda a: jnp.stack([a, a, a]), start)
    return jax.vmap(lambda p: function(p, small))(starts)


def flags(x):
    settings, _ = programs.settings_of(x, None, 1e-5, 2, 1e-6, True, 1e5, (START.model,), in_units_of_x=False)
    covariances = jnp.broadcast_to(START.covariances, (40, K, D, D))
    return jax.vmap(
        lambda c: jaxgmm.selection._spurious.spurious(
            START.log_weights, x[:K], c, settings.n_effective, settings.total, settings.max_ratio
        )
    )(covariances)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_gives_lapack_few_matrices_at_once(name):
    calls = list(lapack_calls(jax.make_jaxpr(ENTRY_POINTS[name])(jnp.asarray(X))))
    assert all(call.is_undivided for call in calls), calls


def test_a_routine_divides_what_it_is_given_also_under_vmap_and_with_derivatives():
    matrices = jnp.zeros((3, 40, D, D))
    routines = (
        linalg.cholesky, linalg.inverse, linalg.lower_inverse, linalg.eigvalsh, linalg.eigh, linalg.svd,
        linalg.triangular_factor,
    )  # fmt: skip
    for routine in routines:
        for function in (routine, jax.vmap(routine)):
            programs = [jax.make_jaxpr(function)(matrices)]
            if routine not in (linalg.eigvalsh, linalg.svd):
                programs.append(
                    jax.make_jaxpr(jax.grad(lambda m, f=function: jax.tree.leaves(f(m))[0].sum()))(matrices)
                )
            calls = [call for program in programs for call in lapack_calls(program)]
            assert all(call.is_undivided for call in calls), (routine.__name__, calls)


def test_two_threads_that_fit_at_once_come_to_their_end():
    """A search of two structures stood still: both threads waited for LAPACK's, with 20 features."""
    data = np.random.default_rng(1).normal(size=(4, 60, 20)).astype(np.float32)
    start = start_from(data[0], np.arange(60) % K, "full", np.float32, reg_covar=0.1)
    fits = quick_jit(jax.vmap(lambda x: jaxgmm.fit(start, x, max_iter=20, reg_covar=0.1).n_iter))
    fits(data)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for n_iter in threads.map(fits, [jnp.asarray(data + i) for i in range(6)]):
            assert (n_iter > 0).all()
