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
from jaxgmm.kernels import programs
from jaxgmm.kernels.program_store import is_one_cpu
from tests.conftest import overlapping, start_from, x64
from tests.problems import D, K, N, few_structures
from tests.quick import quick_jit

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
    "fit_components": lambda v: jaxgmm.fit_components(
        v.key, v.X, v.sizes, covariance_type="spherical", n_init=2, **v.options
    ),
    "em_step": lambda v: jaxgmm.em_step(v.params, v.X, v.w, reg_covar=v.options["reg_covar"]),
    "m_step": lambda v: jaxgmm.m_step(v.resp, v.X, sample_weight=v.w, reg_covar=v.options["reg_covar"]),
    "e_step": lambda v: jaxgmm.e_step(v.params, v.X),
    "log_prob": lambda v: jaxgmm.log_prob(v.params, v.X),
    "predict": lambda v: jaxgmm.predict(v.params, v.X),
    "score": lambda v: jaxgmm.score(v.params, v.X, v.w),
    "elbo": lambda v: jaxgmm.elbo(v.params, v.resp, v.X, v.w),
    "sample": lambda v: jaxgmm.sample(v.key, v.params, N),
    "kmeans": lambda v: jaxgmm.init.kmeans(v.key, v.X, K, v.w),
    "bic": lambda v: jaxgmm.bic(v.params, v.X, v.w),
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


def test_a_first_fit_compiles_three_programs():
    X = np.random.default_rng(0).normal(size=(71, 2)).astype(np.float32)  # of a shape that no other test has

    def first():
        params = jaxgmm.make_params([0.3, 0.3, 0.4], X[:3], np.ones((3, 2)), "diag")
        result = jaxgmm.fit(params, X, max_iter=5)
        return jaxgmm.predict(result.params, X)

    assert compilations(first) <= 3


LARGE = ("fit", "fit with a prior", "fit_components", "em_step", "m_step", "kmeans")


@pytest.mark.parametrize(
    "calls", [*([c] for c in LARGE), [c for c in CALLS if c not in LARGE]], ids=[*LARGE, "the others"]
)
def test_other_values_of_the_same_shape_compile_nothing(calls):
    first, second, third = (values(seed) for seed in range(3))
    for call in calls:
        jax.block_until_ready(CALLS[call](first))
        assert compilations(lambda call=call: CALLS[call](second)) == 0, call
        assert compilations(lambda call=call: CALLS[call](third)) == 0, call


@pytest.mark.skipif(not is_one_cpu(), reason="rows are padded on one CPU device")
def test_other_numbers_of_rows_find_a_program_and_give_what_they_give_alone(double):
    names = ("fit", "em_step", "e_step", "log_prob", "predict", "score")
    v = values(0)
    v.X, v.w, v.params = jax.tree.map(lambda a: np.asarray(a, np.float64), (v.X, v.w, v.params))

    def results(X, w):
        given = types.SimpleNamespace(**(vars(v) | {"X": X, "w": w}))
        return {name: CALLS[name](given) for name in names}

    jax.block_until_ready(results(v.X, v.w))
    few, weight = v.X[:-5], v.w[:-5]
    assert compilations(lambda: results(few, weight)) == 0
    traced = quick_jit(results)(few, weight)  # rows that are traced are as they are
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), results(few, weight), traced
    )
    unweighted = jaxgmm.fit(v.params, few, max_iter=5)
    alone = quick_jit(lambda X: jaxgmm.fit(v.params, X, max_iter=5))(few)
    np.testing.assert_allclose(unweighted.params.means, alone.params.means, rtol=1e-9)


def test_a_fit_is_traced_once_whatever_kind_of_numbers_it_is_given():
    family, traces = counting(spherical)
    v = values(0)
    start = jaxgmm.m_step(v.resp, v.X, sample_weight=v.w, covariance_type=family)
    traces.clear()
    jaxgmm.fit(start, v.X, v.w, **v.options)
    once = len(traces)
    assert 1 <= once <= 2  # JAX may trace a loop's body twice to settle its types
    for kind in (jnp.asarray, np.ndarray.tolist, lambda a: a.astype(np.float64), np.asfortranarray):
        jaxgmm.fit(start, kind(v.X), kind(v.w), **v.options)
    for options in (
        {"tol": np.float64(0.5), "max_iter": np.int64(4), "reg_covar": 0},
        {"tol": jnp.asarray(1e-2), "max_iter": jnp.asarray(5, jnp.int32), "reg_covar": np.float32(1e-3)},
        {"tol": 1, "max_iter": np.int32(6), "reg_covar": 0.0, "accelerate": jnp.asarray(False)},
    ):
        jaxgmm.fit(start, v.X, v.w, **options)
    jaxgmm.fit(start, values(1).X, v.w)
    assert len(traces) == once


def test_all_numbers_of_components_share_the_trace_of_one_loop():
    v, counts = values(0), []
    for sizes in ((4,), (1, 2, 3, 4)):
        family, traces = counting(spherical)
        jax.eval_shape(
            lambda k, sizes=sizes, family=family: jaxgmm.fit_components(
                k, v.X, sizes, n_init=1, covariance_type=family
            ),
            v.key,
        )
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def test_equal_families_share_a_compilation():
    v = values(0)
    jax.block_until_ready(jaxgmm.m_step(v.resp, v.X, sample_weight=v.w, covariance_type="full"))
    for same in (full, full._replace()):
        call = functools.partial(jaxgmm.m_step, v.resp, v.X, sample_weight=v.w, covariance_type=same)
        assert compilations(call) == 0


def test_a_fit_is_one_program_without_64_bit_numbers_for_float32_data():
    # Under x64 a constant without a dtype is float64: the strict promotion of the tests would raise, and
    # a conversion would show in the program.
    with x64(True):
        X, labels = overlapping(N, D, K)
        X = X.astype(np.float32)
        start = start_from(X, labels, "full", np.float32)
        prior = jaxgmm.default_prior(X, K, "full", weight_concentration=2.0)
        for options in ({}, {"prior": prior}):
            program = jax.make_jaxpr(functools.partial(jaxgmm.fit, max_iter=3, **options))(start, X)
            assert "while" in str(program)
            assert not wide(program)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(jaxgmm.fit, start, X))}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}


def test_float32_restarts_stay_float32_under_x64():
    with x64(True):
        X = overlapping(N, D, K)[0].astype(np.float32)
        for init in ("kmeans++", "kmeans", "random_points", "random_resp"):

            def run(key, X, init=init):
                return jaxgmm.fit_restarts(key, X, K, covariance_type="spherical", n_init=2, init=init)

            assert not wide(jax.make_jaxpr(run)(jax.random.key(0), X)), init


@few_structures
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
        pytest.skip("only the CPU backend has compile options")
    program(jnp.ones(3), many=False)
    assert (program._cache_size(), program._part._cache_size()) == (1, 0)
    program(jnp.ones(3), many=True)
    assert program._cache_size() == 2


def test_small_work_is_compiled_with_less_optimisation(monkeypatch):
    monkeypatch.setattr(programs, "SMALL", 1e6)  # in the tests all of it is
    small, large = programs.options("cpu", small=True), programs.options("cpu")
    assert small == large | programs.SMALL_LEVEL
    program = doubled()
    program(jnp.ones(3), many=False)
    program(jnp.ones(10_000), many=False)
    assert {small for _, small in program._whole} == {True, False}


def test_options_that_this_xla_does_not_know_are_done_without(monkeypatch):
    monkeypatch.setattr(programs, "CPU_OPTIONS", {"xla_cpu_no_such_option": True} | programs.CPU_OPTIONS)
    monkeypatch.setattr(programs, "_unknown", set())
    assert "xla_cpu_no_such_option" in programs.options("cpu")
    np.testing.assert_array_equal(doubled()(jnp.ones(3), many=False), 2)
    assert "xla_cpu_no_such_option" not in programs.options("cpu")
    assert programs.options("gpu") is None
