"""What compiles, and how often. Only shapes, families and sizes that are documented as static may compile."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import full, spherical
from jaxgmm.data import summarise
from jaxgmm.em_map import evaluate
from jaxgmm.kernels import programs
from tests.conftest import costly, every_name_at_a_cost, overlapping, start_from, times_used, x64

N, D, K = 40, 2, 3
COMPILED = []


def _listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(duration)


# There is no public way to stop listening, so it listens once, for all of the tests.
jax.monitoring.register_event_duration_secs_listener(_listen)


def compilations(call):
    before = len(COMPILED)
    jax.block_until_ready(call())
    return len(COMPILED) - before


def values(seed):
    """Everything that may change from call to call: other numbers of the same shapes and types."""
    X, labels = overlapping(N, D, K, seed=seed)
    X = X.astype(np.float32)
    rng = np.random.default_rng(seed)
    resp = rng.dirichlet(np.ones(K), size=N).astype(np.float32)
    return types.SimpleNamespace(
        X=X,
        w=rng.uniform(0.5, 2, size=N).astype(np.float32),
        resp=resp,
        params=start_from(X, labels, "full", np.float32),
        key=jax.random.key(seed),
        options={
            "tol": 10.0 ** -(3 + seed),
            "max_iter": 20 + seed,
            "reg_covar": 10.0 ** -(5 + seed),
            "accelerate": bool(seed % 2),
        },
        prior=jaxgmm.default_prior(X, K, strength=0.1 + seed, weight_concentration=1.0 + seed),
        sizes=[(1, 2, 3), (2, 3, 1), (3, 3, 2)][seed],
    )


CALLS = {
    "fit": lambda v: jaxgmm.fit(v.params, v.X, v.w, **v.options),
    "fit with a prior": lambda v: jaxgmm.fit(v.params, v.X, v.w, prior=v.prior, **v.options),
    "default_prior": lambda v: jaxgmm.default_prior(v.X, K, sample_weight=v.w),
    "log_prior": lambda v: jaxgmm.log_prior(v.params, v.prior),
    "fit_restarts": lambda v: jaxgmm.fit_restarts(v.key, v.X, K, n_init=2, **v.options),
    "fit_components": lambda v: jaxgmm.fit_components(v.key, v.X, v.sizes, n_init=2, **v.options),
    "fit_components with default priors": lambda v: jaxgmm.fit_components(
        v.key, v.X, v.sizes, n_init=2, prior="default", **v.options
    ),
    "em_step": lambda v: jaxgmm.em_step(v.params, v.X, v.w, reg_covar=v.options["reg_covar"]),
    "m_step": lambda v: jaxgmm.m_step(v.resp, v.X, sample_weight=v.w, reg_covar=v.options["reg_covar"]),
    "from_responsibilities": lambda v: jaxgmm.init.from_responsibilities(v.resp, v.X, sample_weight=v.w),
    "e_step": lambda v: jaxgmm.e_step(v.params, v.X),
    "log_prob": lambda v: jaxgmm.log_prob(v.params, v.X),
    "component_log_prob": lambda v: jaxgmm.component_log_prob(v.params, v.X),
    "predict": lambda v: jaxgmm.predict(v.params, v.X),
    "score": lambda v: jaxgmm.score(v.params, v.X, v.w),
    "elbo": lambda v: jaxgmm.elbo(v.params, v.resp, v.X, v.w),
    "sample": lambda v: jaxgmm.sample(v.key, v.params, N),
    "kmeans_plusplus": lambda v: jaxgmm.init.kmeans_plusplus(v.key, v.X, K, v.w),
    "kmeans": lambda v: jaxgmm.init.kmeans(v.key, v.X, K, v.w),
    "random_points": lambda v: jaxgmm.init.random_points(v.key, v.X, K, v.w),
    "random_resp": lambda v: jaxgmm.init.random_resp(v.key, v.X, K),
    "aic": lambda v: jaxgmm.aic(v.params, v.X, v.w),
    "bic": lambda v: jaxgmm.bic(v.params, v.X, v.w),
    "icl": lambda v: jaxgmm.icl(v.params, v.X, v.w),
    "make_params": lambda v: jaxgmm.make_params(v.params.weights, v.params.means, v.params.covariances),
}


def counting(family):
    """The family, with an `update` that counts how often it is traced; each time a new one."""
    traces = []

    def update(*arguments):
        traces.append(None)
        return family.update(*arguments)

    return family._replace(update=update), traces


def wide(program):
    """The 64-bit arrays of a program; scalars may be constants that have not met their array yet."""
    return re.findall(r"f64\[\d.*?\]", str(program))


def test_the_count_sees_a_compilation_and_only_that():
    double = jax.jit(lambda a: a * 2 + 1)
    assert compilations(lambda: double(np.ones(17, np.float32))) >= 1
    assert compilations(lambda: double(np.zeros(17, np.float32))) == 0
    assert compilations(lambda: double(np.zeros(18, np.float32))) >= 1


# With a prior, what compiles is the same loop with more arrays in it.
_SLOW = ("fit with a prior", "fit_components with default priors")


@pytest.mark.parametrize("call", [costly(c, quick=set(CALLS) - set(_SLOW)) for c in CALLS])
def test_other_values_of_the_same_shape_compile_nothing(call):
    first, second, third = (values(seed) for seed in range(3))
    jax.block_until_ready(CALLS[call](first))
    assert compilations(lambda: CALLS[call](second)) == 0
    assert compilations(lambda: CALLS[call](third)) == 0


def test_numpy_lists_and_jax_arrays_share_the_loop():
    v = values(0)
    CALLS["fit"](v)
    before = jaxgmm.em._fit._cache_size()
    for kind in (jnp.asarray, np.ndarray.tolist, lambda a: a.astype(np.float64), np.asfortranarray):
        others = types.SimpleNamespace(**vars(v))
        others.X, others.w = kind(v.X), kind(v.w)
        CALLS["fit"](others)
    assert jaxgmm.em._fit._cache_size() == before


def test_options_of_any_number_type_share_the_loop():
    v = values(0)
    CALLS["fit"](v)
    before = jaxgmm.em._fit._cache_size()
    for options in (
        {"tol": np.float64(0.5), "max_iter": np.int64(4), "reg_covar": 0},
        {"tol": jnp.asarray(1e-2), "max_iter": jnp.asarray(5, jnp.int32), "reg_covar": np.float32(1e-3)},
        {"tol": 1, "max_iter": np.int32(6), "reg_covar": 0.0, "accelerate": jnp.asarray(False)},
    ):
        jaxgmm.fit(v.params, v.X, v.w, **options)
    assert jaxgmm.em._fit._cache_size() == before


def test_all_numbers_of_components_share_the_trace_of_one_loop():
    v = values(0)
    alone, of_alone = counting(spherical)
    jax.eval_shape(lambda k: jaxgmm.fit_components(k, v.X, (9,), n_init=1, covariance_type=alone), v.key)
    family, traces = counting(spherical)
    jaxgmm.fit_components(v.key, v.X, range(1, 10), n_init=1, covariance_type=family)
    assert len(traces) == len(of_alone)
    # As many others, with the same largest, use the same program.
    other = (9, 1, 1, 5, 4, 4, 2, 8, 3)
    assert (
        compilations(lambda: jaxgmm.fit_components(v.key, v.X, other, n_init=1, covariance_type=family)) == 0
    )
    assert len(traces) == len(of_alone)


def test_a_fit_traces_its_loop_once_whatever_it_is_given():
    family, traces = counting(spherical)
    first, second = values(0), values(1)
    start = jaxgmm.m_step(first.resp, first.X, covariance_type=family)
    traces.clear()
    jaxgmm.fit(start, first.X, **first.options)
    once = len(traces)
    assert 1 <= once <= 2  # JAX may trace a loop's body twice to settle its types
    jaxgmm.fit(start, second.X, **second.options)
    assert len(traces) == once


def test_equal_families_share_a_compilation():
    v = values(0)
    call = functools.partial(jaxgmm.fit_restarts, v.key, v.X, K, n_init=2)
    jax.block_until_ready(call(covariance_type="full"))
    assert compilations(lambda: call(covariance_type=full)) == 0
    assert compilations(lambda: call(covariance_type=full._replace())) == 0


@pytest.mark.parametrize("name", ["full", "diag"])
def test_a_fit_inside_jit_is_one_program_without_64_bit_numbers_for_float32_data(name):
    # Under x64 a constant without a dtype is float64: the strict promotion of the tests would raise, and
    # a conversion would show in the program.
    with x64(True):
        X, labels = overlapping(N, D, K)
        X = X.astype(np.float32)
        start = start_from(X, labels, name, np.float32)
        program = jax.make_jaxpr(functools.partial(jaxgmm.fit, max_iter=3))(start, X)
        assert "while" in str(program)
        assert not wide(program)
        prior = jaxgmm.default_prior(X, K, name, weight_concentration=2.0)
        assert not wide(jax.make_jaxpr(functools.partial(jaxgmm.fit, max_iter=3, prior=prior))(start, X))
        result = jaxgmm.fit(start, X, max_iter=3)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(result)}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}


@pytest.mark.parametrize("init", ["kmeans++", "kmeans", "random_points", "random_resp"])
def test_float32_restarts_stay_float32_under_x64(init):
    with x64(True):
        X = overlapping(N, D, K)[0].astype(np.float32)

        def run(key, X):
            return jaxgmm.fit_restarts(key, X, K, n_init=2, init=init)

        assert not wide(jax.make_jaxpr(run)(jax.random.key(0), X))


@every_name_at_a_cost
def test_other_functions_of_float32_stay_float32_under_x64(name):
    with x64(True):
        X, labels = overlapping(N, D, K)
        X = X.astype(np.float32)
        params = start_from(X, labels, name, np.float32)
        resp = np.eye(K, dtype=np.float32)[labels]

        def everything(params, X, resp):
            return (
                jaxgmm.e_step(params, X), jaxgmm.component_log_prob(params, X), jaxgmm.predict(params, X),
                jaxgmm.score(params, X), jaxgmm.elbo(params, resp, X), jaxgmm.em_step(params, X),
                jaxgmm.m_step(resp, X, covariance_type=name), jaxgmm.sample(jax.random.key(0), params, N),
                jaxgmm.bic(params, X), jaxgmm.aic(params, X), jaxgmm.icl(params, X),
                params.weights, params.covariances,
            )  # fmt: skip

        assert not wide(jax.make_jaxpr(everything)(params, X, resp))


@pytest.mark.parametrize("name", ["full", "tied"])
def test_a_step_inverts_its_factors_once_and_its_images_once(name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
    params = start_from(x, np.arange(40) % 2, name, np.float32)
    f = summarise(x, None, jnp.asarray(1e-6, jnp.float32))
    program = jax.make_jaxpr(lambda p: evaluate(40, p, (x, None, f)))(params)
    assert times_used("triangular_solve", program) == 2


def doubled():
    """A small program of ours."""

    def function(a, *, many):
        return 2 * a

    return programs.jit(function, static_argnames="many")


def test_a_program_may_stand_in_anothers_whatever_it_is_given():
    # Options of a part would raise; a part of concrete arguments is one too.
    program = doubled()
    one = jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(lambda a: a + program(one, many=False))(one), 3)
    np.testing.assert_array_equal(jax.jit(lambda a: program(a, many=False))(one), 2)
    in_lanes = jax.vmap(lambda a: program(a, many=False) + program(one[0], many=False))
    np.testing.assert_array_equal(in_lanes(one), 4)
    np.testing.assert_array_equal(jax.grad(lambda a: program(a, many=False).sum())(one), 2)


def test_a_program_called_alone_has_options_and_inside_another_none():
    program = doubled()
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere there are no options")
    program(jnp.ones(3), many=False)
    assert (program._program()._cache_size(), program._part._cache_size()) == (1, 0)
    program(jnp.ones(3), many=True)
    assert program._cache_size() == 2


def test_options_that_this_xla_does_not_know_are_done_without(monkeypatch):
    programs.options.cache_clear()
    try:
        monkeypatch.setattr(programs, "CPU_OPTIONS", {"xla_cpu_no_such_option": True})
        assert programs.options("cpu") is None
        program = doubled()
        np.testing.assert_array_equal(program(jnp.ones(3), many=False), 2)
        assert programs.options("gpu") is None
        programs.options.cache_clear()
        monkeypatch.setitem(programs.CPU_OPTIONS, "xla_backend_optimization_level", 1)
        assert programs.options("cpu") in ({"xla_backend_optimization_level": 1}, None)
    finally:
        programs.options.cache_clear()
