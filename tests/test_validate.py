"""Bad input raises from our own code, naming the argument; good input of any type gives the same numbers."""

import dataclasses
import functools
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.init import from_responsibilities
from jaxgmm.parallel.engines import LocalEngine, fit_engine
from tests.conftest import x64

N, D, K = 8, 2, 2
PACKAGE = pathlib.Path(jaxgmm.__file__).parent

# Whole numbers, exact in every floating type down to bfloat16.
WHOLE = np.array([[0, 1], [1, 3], [2, 0], [1, 1], [9, 8], [8, 9], [7, 9], [9, 6]])
RESP = np.repeat(np.eye(K), N // K, axis=0) * 0.5 + 0.25
EYE = np.eye(D)
COVARIANCES = {
    "full": np.stack([EYE, [[2.0, 0.5], [0.5, 1.0]]]),
    "tied": np.array([[2.0, 0.5], [0.5, 1.0]]),
    "diag": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "spherical": np.array([1.0, 2.0]),
}
MEANS = np.array([[1.0, 1.0], [8.0, 8.0]])


def some_params(name="full"):
    return jaxgmm.make_params([0.5, 0.5], MEANS, COVARIANCES[name], name)


QUICK = "spherical"  # the family that compiles fastest


def quick():
    return some_params(QUICK)


def key():
    return jax.random.key(0)


# Each public function of X: with the parameters it needs, and its own other arguments already right.
OF_PARAMS = {
    "fit": lambda X, **o: jaxgmm.fit(quick(), X, **o),
    "em_step": lambda X, **o: jaxgmm.em_step(quick(), X, **o),
    "e_step": lambda X: jaxgmm.e_step(quick(), X),
    "log_prob": lambda X: jaxgmm.log_prob(quick(), X),
    "component_log_prob": lambda X: jaxgmm.component_log_prob(quick(), X),
    "responsibilities": lambda X: jaxgmm.responsibilities(quick(), X),
    "predict": lambda X: jaxgmm.predict(quick(), X),
    "score": lambda X, **o: jaxgmm.score(quick(), X, **o),
    "elbo": lambda X, **o: jaxgmm.elbo(quick(), RESP, X, **o),
    "aic": lambda X, **o: jaxgmm.aic(quick(), X, **o),
    "bic": lambda X, **o: jaxgmm.bic(quick(), X, **o),
    "icl": lambda X, **o: jaxgmm.icl(quick(), X, **o),
}
OF_RESP = {
    "m_step": lambda X, **o: jaxgmm.m_step(RESP, X, covariance_type=QUICK, **o),
    "from_responsibilities": lambda X, **o: from_responsibilities(RESP, X, covariance_type=QUICK, **o),
}
OF_KEY = {
    "fit_restarts": lambda X, n=K, **o: jaxgmm.fit_restarts(
        key(), X, n, n_init=1, covariance_type=QUICK, **o
    ),
    "fit_components": lambda X, n=K, **o: jaxgmm.fit_components(
        key(), X, (n,), n_init=1, covariance_type=QUICK, **o
    ),
    "kmeans_plusplus": lambda X, n=K, **o: jaxgmm.init.kmeans_plusplus(key(), X, n, **o),
    "kmeans": lambda X, n=K, **o: jaxgmm.init.kmeans(key(), X, n, **o),
    "random_points": lambda X, n=K, **o: jaxgmm.init.random_points(key(), X, n, **o),
    "random_resp": lambda X, n=K, **o: jaxgmm.init.random_resp(key(), X, n, **o),
}
OF_X = OF_PARAMS | OF_RESP | OF_KEY
UNWEIGHTED = {"e_step", "log_prob", "component_log_prob", "responsibilities", "predict"}
WEIGHTED = {n: f for n, f in OF_X.items() if n not in UNWEIGHTED}
FITS = {n: OF_X[n] for n in ("fit", "fit_restarts", "fit_components")}
RIDGED = FITS | {n: OF_X[n] for n in ("em_step", "m_step", "from_responsibilities")}

each = pytest.mark.parametrize("call", OF_X)


@pytest.fixture
def refuses():
    """Asserts that a call raises an error of our own making, whose message has all the words."""

    def check(error, words, call):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        inner = traceback.extract_tb(caught.value.__traceback__)[-1].filename
        assert PACKAGE in pathlib.Path(inner).parents, f"raised by {inner}"
        message = str(caught.value)
        for word in words:
            assert word in message, f"{word!r} is not in {message!r}"

    return check


def with_bad(value):
    X = WHOLE.astype(np.float32)
    X[3, 1] = value
    return X


@each
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_x_that_is_not_finite_is_refused_with_its_place(call, value, refuses):
    refuses(ValueError, ["X", str(value), "row 3, column 1"], lambda: OF_X[call](with_bad(value)))


@each
@pytest.mark.parametrize("shape", [(0, D), (N, 0), (N,), (1, N, D), ()], ids=str)
def test_x_of_the_wrong_shape_is_refused_with_the_shape(call, shape, refuses):
    refuses(ValueError, ["X", f"got shape {shape}"], lambda: OF_X[call](np.zeros(shape, np.float32)))


@each
@pytest.mark.parametrize(
    "X",
    [
        WHOLE.astype(np.complex64),
        jnp.asarray(WHOLE, jnp.complex64),
        WHOLE.astype(object),
        WHOLE.astype(str),
        WHOLE.astype("datetime64[s]"),
        [[1.0, 2.0], [3.0]],
        [[1.0, None]] * N,
        "data.csv",
        None,
    ],
    ids=["complex", "jax complex", "object", "strings", "times", "ragged", "missing", "a path", "None"],
)
def test_x_that_is_not_real_numbers_is_refused(call, X, refuses):
    refuses(TypeError, ["X", "numbers"], lambda: OF_X[call](X))


@pytest.mark.parametrize("call", OF_PARAMS)
@pytest.mark.parametrize("width", [1, 3])
def test_x_of_another_width_than_params_is_refused_with_both(call, width, refuses):
    X = np.zeros((N, width), np.float32)
    refuses(ValueError, ["X", "(n_samples, 2)", f"({N}, {width})"], lambda: OF_PARAMS[call](X))


@pytest.mark.parametrize("call", [n for n in OF_X if n != "fit_components"])
def test_shapes_are_checked_under_jit_at_trace_time(call):
    for shape, words in [((N,), r"X must be a 2-D array .* \(8,\)"), ((0, D), r"X must have at least one")]:
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(OF_X[call], jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("call", OF_PARAMS)
def test_the_width_is_checked_under_vmap(call):
    with pytest.raises(ValueError, match=r"X must have the 2 features .* \(8, 3\)"):
        jax.eval_shape(jax.vmap(OF_PARAMS[call]), jax.ShapeDtypeStruct((4, N, 3), jnp.float32))


@pytest.mark.parametrize("call", WEIGHTED)
def test_values_that_cannot_be_seen_do_not_break_tracing(call):
    X, w = jax.ShapeDtypeStruct((N, D), jnp.float32), jax.ShapeDtypeStruct((N,), jnp.float32)
    jax.eval_shape(lambda X, w: OF_X[call](X, sample_weight=w), X, w)


@pytest.mark.parametrize("call", OF_X)
def test_arrays_that_a_jitted_function_closes_over_are_data_like_any(call):
    # They are concrete, but what is computed from them inside jit is traced.
    X, w = jnp.asarray(WHOLE, jnp.float32), jnp.ones(N, jnp.float32)
    options = {} if call in UNWEIGHTED else {"sample_weight": w}
    jax.eval_shape(lambda: OF_X[call](X, **options))
    bad = X.at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="X must be finite"):
        jax.eval_shape(lambda: OF_X[call](bad, **options))


@pytest.mark.parametrize("call", RIDGED)
def test_a_traced_ridge_of_the_wrong_shape_is_refused(call):
    with pytest.raises(ValueError, match=r"reg_covar must be a scalar; got shape \(2,\)"):
        jax.eval_shape(lambda r: OF_X[call](WHOLE, reg_covar=r), jax.ShapeDtypeStruct((2,), jnp.float32))


def leaves(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


@each
def test_integers_bools_lists_and_numpy_give_the_numbers_of_floats(call):
    run = OF_X[call]
    expected = leaves(run(jnp.asarray(WHOLE, jnp.float32)))
    kinds = [
        WHOLE,
        WHOLE.astype(np.uint8),
        WHOLE.tolist(),
        WHOLE.astype(np.float64),
        WHOLE.astype(np.float16),
    ]
    for X in [*kinds, jnp.asarray(WHOLE, jnp.bfloat16), jnp.asarray(WHOLE, jnp.int32)]:
        for got, want in zip(leaves(run(X)), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    bits = WHOLE > 2
    for got, want in zip(leaves(run(bits)), leaves(run(bits.astype(np.float32))), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float32])
def test_narrow_floats_become_float32_under_x64_and_the_rest_float64(kind):
    with x64(True):
        narrow = jnp.asarray(WHOLE, kind)
        assert jaxgmm.init.random_points(key(), narrow, K).dtype == np.float32
        assert jaxgmm.m_step(RESP, narrow, covariance_type=QUICK).means.dtype == np.float32
        for wide in (WHOLE, WHOLE > 2, WHOLE.astype(np.float64), WHOLE.tolist()):
            assert jaxgmm.init.random_points(key(), wide, K).dtype == np.float64
            assert jaxgmm.m_step(RESP, wide, covariance_type=QUICK).means.dtype == np.float64


@pytest.mark.parametrize("call", OF_PARAMS)
def test_params_of_one_precision_work_with_x_of_the_other_and_follow_x(call):
    with x64(True):
        of_params = {np.float64: quick()}
        of_params[np.float32] = jax.tree.map(lambda a: a.astype(jnp.float32), quick())
        for dtype, other in [(np.float32, np.float64), (np.float64, np.float32)]:
            params = of_params[other]
            arguments = (RESP,) if call == "elbo" else ()
            got = getattr(jaxgmm, call)(params, *arguments, WHOLE.astype(dtype))
            floating = [a for a in leaves(got) if a.dtype.kind == "f"]
            assert {a.dtype for a in floating} <= {np.dtype(dtype)}


# Options


@pytest.mark.parametrize("call", WEIGHTED)
@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (-np.ones(N), ["negative", "-1"]),
        (np.full(N, np.nan), ["finite", "index 0"]),
        (np.full(N, np.inf), ["finite", "index 0"]),
        (np.zeros(N), ["zero everywhere"]),
        (np.ones(N - 1), [f"({N},)", f"({N}, {D})", f"got shape ({N - 1},)"]),
        (np.ones((N, 1)), [f"({N},)", f"({N}, {D})", f"got shape ({N}, 1)"]),
        (2.0, [f"({N},)", "got shape ()"]),
    ],
    ids=["negative", "nan", "inf", "zero", "short", "column", "scalar"],
)
def test_bad_weights_are_refused(call, weight, words, refuses):
    refuses(ValueError, ["sample_weight", *words], lambda: WEIGHTED[call](WHOLE, sample_weight=weight))


@pytest.mark.parametrize("call", WEIGHTED)
def test_weights_that_are_not_numbers_are_refused(call, refuses):
    for weight in ("balanced", np.ones(N, complex), np.ones(N, object)):
        refuses(
            TypeError,
            ["sample_weight", "real numbers"],
            lambda w=weight: WEIGHTED[call](WHOLE, sample_weight=w),
        )


@pytest.mark.parametrize("call", RIDGED)
def test_bad_ridges_are_refused(call, refuses):
    run = functools.partial(RIDGED[call], WHOLE)
    for value in (-1e-6, np.nan, np.inf, [1.0, 2.0]):
        refuses(ValueError, ["reg_covar"], lambda v=value: run(reg_covar=v))
    for value in ("auto", None, 1j):
        refuses(TypeError, ["reg_covar"], lambda v=value: run(reg_covar=v))


@pytest.mark.parametrize("call", FITS)
def test_bad_stopping_rules_are_refused(call, refuses):
    run = functools.partial(FITS[call], WHOLE)
    for value in (-1e-6, np.nan, [1e-3]):
        refuses(ValueError, ["tol"], lambda v=value: run(tol=v))
    for value in ("auto", None, 1j):
        refuses(TypeError, ["tol"], lambda v=value: run(tol=v))
    for value in (-1, jnp.asarray(-1)):
        refuses(ValueError, ["max_iter", "-1"], lambda v=value: run(max_iter=v))
    for value in (2.0, np.float32(2), "2", None, True, [2]):
        refuses(TypeError, ["max_iter"], lambda v=value: run(max_iter=v))


BAD_OPTIONS = {
    "block_size": (0, ValueError, "block_size must be at least 1; got 0"),
    "block_size type": (1.5, TypeError, "block_size must be an int"),
    "history_size": (-1, ValueError, "history_size must be at least 0; got -1"),
    "history_size type": (True, TypeError, "history_size must be an int"),
    "kernel": ("fast", ValueError, "kernel must be one of"),
    "unconverged_gradient": (None, ValueError, "unconverged_gradient must be one of"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_an_option_that_no_fit_understands_is_refused_when_it_is_written(case):
    value, error, words = BAD_OPTIONS[case]
    with pytest.raises(error, match=words):
        EMOptions(**{case.partition(" ")[0]: value})


@pytest.mark.parametrize("call", FITS)
def test_options_are_an_em_options(call, refuses):
    run = functools.partial(FITS[call], WHOLE)
    for value in (None, {"kernel": "auto"}, "auto"):
        refuses(TypeError, ["options must be", "EMOptions("], lambda v=value: run(options=v))


def test_an_option_without_use_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fit_stream does not use options\.block_size"):
        jaxgmm.fit_stream(ONE, WHOLE, options=EMOptions(block_size=4))
    with pytest.raises(ValueError, match=r"fit_best does not use options\.kernel"):
        jaxgmm.fit_best(jax.random.key(0), WHOLE, 2, options=EMOptions(kernel="whitened"))
    with pytest.raises(ValueError, match=r"does not use options\.unconverged_gradient"):
        jaxgmm.fit_restarts(jax.random.key(0), WHOLE, 2, options=EMOptions(unconverged_gradient="warn"))


@pytest.mark.parametrize("call", FITS)
def test_accelerate_must_be_one_bool(call, refuses):
    run = functools.partial(FITS[call], WHOLE)
    for value in ("no", None, [True, False]):
        refuses(TypeError, ["accelerate"], lambda v=value: run(accelerate=v))


@pytest.mark.parametrize("call", OF_KEY)
def test_numbers_of_components_that_are_not_sensible_are_refused(call, refuses):
    run = functools.partial(OF_KEY[call], WHOLE)
    for value in (0, -1, np.int64(0)):
        refuses(ValueError, ["n_components", "at least 1", str(value)], lambda v=value: run(v))
    refuses(ValueError, ["n_components", f"n_samples = {N}", str(N + 1)], lambda: run(N + 1))
    for value in (2.0, True, "2", None, np.array(2), jnp.asarray(2)):
        refuses(TypeError, ["n_components", "int", type(value).__name__], lambda v=value: run(v))


def test_numpy_integers_are_numbers_of_components():
    assert jaxgmm.init.kmeans(key(), WHOLE, np.int64(K)).shape == (K, D)
    results = jaxgmm.fit_components(key(), WHOLE, np.array([K]), n_init=1, covariance_type=QUICK)
    assert results.params.means.shape == (1, K, D)


@pytest.mark.parametrize("value", [3, "123", None, np.array(2), jnp.asarray(2)], ids=repr)
def test_fit_components_needs_a_sequence(value, refuses):
    refuses(
        TypeError, ["n_components", "sequence"], lambda: jaxgmm.fit_components(key(), WHOLE, value, n_init=1)
    )


def test_fit_components_needs_at_least_one_number(refuses):
    refuses(ValueError, ["n_components"], lambda: jaxgmm.fit_components(key(), WHOLE, (), n_init=1))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_counts_must_be_positive_ints(value, refuses):
    error = ValueError if type(value) is int else TypeError
    refuses(error, ["n_init"], lambda: jaxgmm.fit_restarts(key(), WHOLE, K, n_init=value))
    refuses(error, ["n_init"], lambda: jaxgmm.fit_components(key(), WHOLE, (1, K), n_init=value))
    refuses(error, ["max_iter"], lambda: jaxgmm.init.kmeans(key(), WHOLE, K, max_iter=value))
    refuses(error, ["n_samples"], lambda: jaxgmm.sample(key(), some_params(), value))


BAD_KEYS = {
    "int": lambda: 0,
    "None": lambda: None,
    "floats": lambda: jnp.zeros(2),
    "signed": lambda: np.zeros(2, np.int64),
    "list": lambda: [0, 1],
    "batch": lambda: jax.random.split(jax.random.key(0), 3),
    "raw batch": lambda: np.zeros((3, 2), np.uint32),
}


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_anything_but_one_key_is_refused(bad, refuses):
    value = BAD_KEYS[bad]()
    for call in (
        lambda: jaxgmm.fit_restarts(value, WHOLE, K),
        lambda: jaxgmm.fit_components(value, WHOLE, (K,)),
        lambda: jaxgmm.init.kmeans_plusplus(value, WHOLE, K),
        lambda: jaxgmm.init.kmeans(value, WHOLE, K),
        lambda: jaxgmm.init.random_points(value, WHOLE, K),
        lambda: jaxgmm.init.random_resp(value, WHOLE, K),
        lambda: jaxgmm.sample(value, some_params(), 5),
    ):
        refuses(TypeError, ["key", "jax.random.key(0)"], call)


def test_a_raw_key_is_the_typed_one():
    raw = jax.random.PRNGKey(0)
    np.testing.assert_array_equal(
        jaxgmm.init.random_points(raw, WHOLE, K), jaxgmm.init.random_points(jax.random.key(0), WHOLE, K)
    )
    np.testing.assert_array_equal(
        jaxgmm.init.random_points(np.asarray(raw), WHOLE, K), jaxgmm.init.random_points(raw, WHOLE, K)
    )


TAKE_A_FAMILY = {
    "m_step": lambda f: jaxgmm.m_step(RESP, WHOLE, covariance_type=f),
    "from_responsibilities": lambda f: from_responsibilities(RESP, WHOLE, covariance_type=f),
    "fit_restarts": lambda f: jaxgmm.fit_restarts(key(), WHOLE, K, covariance_type=f),
    "fit_components": lambda f: jaxgmm.fit_components(key(), WHOLE, (K,), covariance_type=f),
    "make_params": lambda f: jaxgmm.make_params([0.5, 0.5], MEANS, EYE, f),
}


@pytest.mark.parametrize("call", TAKE_A_FAMILY)
def test_unknown_covariance_types_are_refused_and_near_ones_suggested(call, refuses):
    run = TAKE_A_FAMILY[call]
    for wrong, near in [("ful", "full"), ("diagonal", "diag"), ("sphere", "spherical")]:
        words = ["covariance_type", repr(wrong), f"did you mean {near!r}", "'tied'"]
        refuses(ValueError, words, lambda w=wrong: run(w))
    refuses(ValueError, ["covariance_type", "'xyz'", "'full'"], lambda: run("xyz"))
    for wrong in (3, None, ["full"]):
        refuses(TypeError, ["covariance_type", type(wrong).__name__], lambda w=wrong: run(w))


@pytest.mark.parametrize("call", ["fit_restarts", "fit_components"])
@pytest.mark.parametrize("init", ["k-means", "", 3, None, np.zeros(2)], ids=repr)
def test_unknown_starts_are_refused(call, init, refuses):
    refuses(ValueError, ["init", "'kmeans++'", "function"], lambda: OF_KEY[call](WHOLE, init=init))


# Responsibilities

RESP_CALLS = {"m_step": jaxgmm.m_step, "from_responsibilities": from_responsibilities, "elbo": jaxgmm.elbo}


@pytest.mark.parametrize("call", RESP_CALLS)
@pytest.mark.parametrize(
    ("resp", "words"),
    [
        (RESP[:3], [f"({N}, ", "got shape (3, 2)"]),
        (RESP[:, 0], [f"({N}, ", f"got shape ({N},)"]),
        (RESP[:, :0], [f"({N}, ", f"got shape ({N}, 0)"]),
        (RESP * np.nan, ["finite", "row 0, column 0"]),
        (-RESP, ["negative"]),
    ],
    ids=["rows", "1-D", "empty", "nan", "negative"],
)
def test_bad_responsibilities_are_refused(call, resp, words, refuses):
    arguments = (some_params(),) if call == "elbo" else ()
    refuses(ValueError, ["resp", *words], lambda: RESP_CALLS[call](*arguments, resp, WHOLE))


def test_responsibilities_of_another_number_of_components_than_params_are_refused(refuses):
    resp = np.full((N, 3), 1 / 3)
    refuses(ValueError, ["resp", f"({N}, 2)", f"({N}, 3)"], lambda: jaxgmm.elbo(some_params(), resp, WHOLE))


@pytest.mark.parametrize("call", OF_RESP)
def test_responsibilities_that_are_zero_everywhere_are_refused(call, refuses):
    refuses(ValueError, ["resp", "zero"], lambda: RESP_CALLS[call](0 * RESP, WHOLE))


# Parameters

BAD_COVARIANCES = {
    "full": [
        -np.stack([EYE, EYE]),
        np.stack([EYE, np.ones((2, 2))]),
        np.stack([EYE, [[1.0, 2.0], [2.0, 1.0]]]),
        np.zeros((2, 2, 2)),
    ],
    "tied": [-EYE, np.ones((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]]), 0 * EYE],
    "diag": [-np.ones((2, 2)), np.array([[1.0, 1.0], [1.0, 0.0]])],
    "spherical": [-np.ones(2), np.array([1.0, 0.0])],
}


def build(covariances, name, weights=(0.5, 0.5), means=MEANS):
    return jaxgmm.make_params(list(weights), means, covariances, name)


def test_covariances_that_are_not_positive_definite_are_refused_and_named(name, refuses):
    for i, bad in enumerate(BAD_COVARIANCES[name]):
        which = "the shared covariance" if name == "tied" else f"component {int(0 < i < 3)}"
        refuses(ValueError, ["covariances", "positive definite", which], lambda b=bad: build(b, name))


def test_covariances_of_the_wrong_shape_are_refused_with_both_shapes(name, refuses):
    right = COVARIANCES[name].shape
    for shape in {(), (2,), (3,), (2, 2), (2, 3), (2, 2, 2), (3, 2, 2), (1, 2, 2)} - {right}:
        words = ["covariances", f"shape {right}", f"got shape {shape}", repr(name)]
        refuses(ValueError, words, lambda s=shape: build(np.ones(s), name))


def test_covariances_that_are_not_finite_or_not_real_are_refused(name, refuses):
    refuses(ValueError, ["covariances", "finite"], lambda: build(COVARIANCES[name] * np.nan, name))
    refuses(TypeError, ["covariances", "real"], lambda: build(COVARIANCES[name].astype(complex), name))


@pytest.mark.parametrize(
    "crooked",
    [
        np.array([[1.0, 0.5], [0.0, 1.0]]),
        np.array([[1.0, 0.5], [-0.5, 1.0]]),
        # Beside a large variance a small covariance is still wrong.
        np.array([[1e8, 50.0], [-50.0, 1e-2]]),
    ],
    ids=["triangular", "antisymmetric", "scaled"],
)
def test_covariances_that_are_not_symmetric_are_refused(crooked, refuses):
    refuses(ValueError, ["covariances", "symmetric"], lambda: build(crooked, "tied"))
    refuses(ValueError, ["covariances", "symmetric"], lambda: build(np.stack([EYE, crooked]), "full"))
    # The other component's width does not matter.
    refuses(ValueError, ["covariances", "symmetric"], lambda: build(np.stack([1e12 * EYE, crooked]), "full"))


@pytest.mark.parametrize("name", ["diag", "EVI", "diag-equal", "diag-ratio(9)"])
def test_variances_of_as_many_components_as_features_are_no_matrix(name):
    variances = np.array([[1.0, 4.0], [2.0, 2.0]])
    params = jaxgmm.make_params([0.5, 0.5], np.zeros((2, 2)), variances, name)
    np.testing.assert_allclose(np.diagonal(params.covariances, axis1=1, axis2=2), variances, rtol=1e-6)


def test_symmetry_is_asked_for_up_to_rounding_only():
    a = np.array([[1e4, 3.3], [3.3, 1e-2]])
    a[0, 1] *= 1 + 1e-6
    assert np.isfinite(build(a, "tied").scale).all()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.5, 0.6], ["sum to 1", "1.1"]),
        ([0.0, 0.0], ["sum to 1", "0.0"]),
        ([-0.5, 1.5], ["negative", "-0.5"]),
        ([np.nan, 1.0], ["finite"]),
        ([1.0], ["(2,)", "(2, 2)", "(1,)"]),
        ([[0.5, 0.5]], ["(2,)", "(2, 2)", "(1, 2)"]),
    ],
)
def test_weights_that_are_not_probabilities_of_the_components_are_refused(weights, words, refuses):
    refuses(ValueError, ["weights", *words], lambda: build(EYE, "tied", weights))


@pytest.mark.parametrize("means", [MEANS[0], MEANS[None], MEANS[:, :0], MEANS * np.nan])
def test_means_that_are_not_k_by_d_finite_numbers_are_refused(means, refuses):
    refuses(ValueError, ["means"], lambda: build(EYE, "tied", means=means))


def test_params_under_jit_are_built_with_shapes_checked(name):
    build_all = jax.jit(functools.partial(jaxgmm.make_params, covariance_type=name))
    got = build_all(np.array([0.5, 0.5]), MEANS, COVARIANCES[name])
    np.testing.assert_allclose(got.covariances, some_params(name).covariances, rtol=1e-6)
    with pytest.raises(ValueError, match=r"covariances must have shape .* got shape \(5,\)"):
        build_all(np.array([0.5, 0.5]), MEANS, np.ones(5))


def changed(**fields):
    return dataclasses.replace(some_params(), **fields)


TAKE_PARAMS = {
    "fit": lambda p: jaxgmm.fit(p, WHOLE),
    "em_step": lambda p: jaxgmm.em_step(p, WHOLE),
    "e_step": lambda p: jaxgmm.e_step(p, WHOLE),
    "log_prob": lambda p: jaxgmm.log_prob(p, WHOLE),
    "component_log_prob": lambda p: jaxgmm.component_log_prob(p, WHOLE),
    "responsibilities": lambda p: jaxgmm.responsibilities(p, WHOLE),
    "predict": lambda p: jaxgmm.predict(p, WHOLE),
    "score": lambda p: jaxgmm.score(p, WHOLE),
    "elbo": lambda p: jaxgmm.elbo(p, RESP, WHOLE),
    "sample": lambda p: jaxgmm.sample(key(), p, 3),
    "aic": lambda p: jaxgmm.aic(p, WHOLE),
    "bic": lambda p: jaxgmm.bic(p, WHOLE),
    "icl": lambda p: jaxgmm.icl(p, WHOLE),
}
each_with_params = pytest.mark.parametrize("call", TAKE_PARAMS)


@each_with_params
def test_a_batch_of_params_is_refused_with_the_way_out(call, refuses):
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), some_params())
    words = ["params", "(2, 2)", "(2, 2, 2)", "vmap", "best"]
    refuses(ValueError, words, lambda: TAKE_PARAMS[call](batch))


def test_n_parameters_of_a_batch_is_refused_with_the_way_out(refuses):
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), some_params())
    refuses(ValueError, ["params", "vmap"], lambda: jaxgmm.n_parameters(batch))
    one = jaxgmm.n_parameters(some_params())
    np.testing.assert_array_equal(jax.vmap(jaxgmm.n_parameters)(batch), [one, one])


@each_with_params
def test_params_that_are_not_numbers_are_refused(call, refuses):
    run = TAKE_PARAMS[call]
    nan = jnp.nan
    refuses(ValueError, ["params.means", "finite"], lambda: run(changed(means=some_params().means * nan)))
    refuses(ValueError, ["params.scale", "finite"], lambda: run(changed(scale=some_params().scale * nan)))
    for log_weights in (jnp.full(K, nan), jnp.full(K, -jnp.inf), jnp.array([jnp.inf, 0.0])):
        refuses(ValueError, ["params.log_weights"], lambda w=log_weights: run(changed(log_weights=w)))


@each_with_params
def test_params_whose_arrays_do_not_fit_together_are_refused(call, refuses):
    run, p = TAKE_PARAMS[call], some_params()
    refuses(ValueError, ["params", "(2,)", "(1, 2)"], lambda: run(changed(means=p.means[:1])))
    # One component's factor would silently serve for all.
    refuses(ValueError, ["params.scale", "(2, 2, 2)", "(1, 2, 2)"], lambda: run(changed(scale=p.scale[:1])))
    wider = jnp.broadcast_to(jnp.eye(3), (K, 3, 3))
    refuses(ValueError, ["params.scale", "(2, 2, 2)", "(2, 3, 3)"], lambda: run(changed(scale=wider)))


@each_with_params
def test_something_else_than_params_is_refused(call, refuses):
    result = jaxgmm.FitResult(some_params(), None, None, None, None, None)
    for wrong in (None, "full", (1, 2)):
        words = ["params", "GMMParams", type(wrong).__name__]
        refuses(TypeError, words, lambda w=wrong: TAKE_PARAMS[call](w))
    # Newcomers pass the whole result.
    refuses(TypeError, ["params", "FitResult", "result.params"], lambda: TAKE_PARAMS[call](result))


TIMES = 1.7e9 + np.arange(50.0)[:, None] * [1.0, 1e6] + [0.0, 3e9]


def test_a_cast_that_loses_digits_warns_once_with_the_feature_and_the_remedy():
    with x64(False):
        params = jaxgmm.make_params([1.0], [[1.7e9, 0.0]], [[1.0, 1.0]], "diag")
        for call in (
            lambda: jaxgmm.fit(params, TIMES, max_iter=1),
            lambda: jaxgmm.log_prob(params, TIMES),
            lambda: jaxgmm.fit_restarts(jax.random.key(0), TIMES.astype(np.int64), 1, n_init=1, max_iter=1),
        ):
            with pytest.warns(
                UserWarning, match=r"feature 0 has .*X - X.mean\(0\).*jax_enable_x64"
            ) as caught:
                call()
            assert len(caught) == 1
            assert caught[0].filename == __file__  # where the user's code called
        quiet = TIMES - TIMES.mean(0)
        jaxgmm.log_prob(params, quiet)
        jaxgmm.log_prob(params, TIMES.astype(np.float32))  # the digits are not there to be lost
        jaxgmm.log_prob(params, np.full((3, 2), 1.7e9 + 1))  # nor do equal values have any
    with x64(True):
        jaxgmm.log_prob(params, TIMES)


ONE = jaxgmm.make_params([1.0], [[0.0, 0.0]], [1.0], "spherical")


def frame(**columns):
    pandas = pytest.importorskip("pandas", reason="the extra test has it")
    return pandas.DataFrame({name: pandas.array(*value) for name, value in columns.items()})


def polars(**columns):
    return pytest.importorskip("polars", reason="the extra cli has it").DataFrame(columns)


BAD_TABLES = {
    "sparse": (lambda: scipy.sparse.csr_matrix(WHOLE), TypeError, r"sparse csr_matrix; use X.toarray\(\)"),
    "masked": (lambda: np.ma.masked_array(WHOLE, WHOLE > 8), ValueError, r"entry \(4, 0\) is masked"),
    "a column of text": (
        lambda: frame(a=([1.0, 2.0],), b=(["x", "y"],)), TypeError, "column 'b' has dtype"
    ),
    "a nullable column with a gap": (
        lambda: frame(a=([1, 2], "Int64"), b=([1.0, None], "Float64")), ValueError, "column 'b'.*row 1"
    ),
    "a Polars column of text": (
        lambda: polars(a=[1.0, 2.0], b=["x", "y"]), TypeError, "column 'b' has dtype"
    ),
    "a Polars column with a gap": (lambda: polars(a=[1, 2], b=[1.0, None]), ValueError, "column 'b'.*row 1"),
}  # fmt: skip


@pytest.mark.parametrize("table", BAD_TABLES)
def test_a_table_that_is_no_matrix_of_numbers_is_refused_by_what_it_is(table):
    make, error, words = BAD_TABLES[table]
    with pytest.raises(error, match=words):
        jaxgmm.log_prob(ONE, make())


def test_tables_that_are_numbers_are_taken():
    expected = jaxgmm.log_prob(ONE, np.array([[1.0, 3.0], [2.0, 4.0]]))
    nullable = frame(a=([1, 2], "Int64"), b=([3.0, 4.0], "Float64"))
    for table in (nullable, np.ma.masked_array(np.array([[1.0, 3.0], [2.0, 4.0]]), False)):
        np.testing.assert_array_equal(jaxgmm.log_prob(ONE, table), expected)
    expected = jaxgmm.log_prob(ONE, np.array([[1.5, 1.0], [2.5, 0.0]]))
    for table in (frame(a=([1.5, 2.5],), b=([True, False],)), polars(a=[1.5, 2.5], b=[True, False])):
        np.testing.assert_array_equal(jaxgmm.log_prob(ONE, table), expected)


MASKED = np.ma.masked_array(WHOLE, WHOLE > 8)
MASKED_WEIGHT = np.ma.masked_array(np.ones(N), np.arange(N) == 4)
MASK_IS_LOST = {
    "sample_weight": lambda: jaxgmm.fit(ONE, WHOLE, MASKED_WEIGHT),
    "resp": lambda: jaxgmm.m_step(np.ma.masked_array(RESP, WHOLE > 8), WHOLE),
    "stream": lambda: jaxgmm.fit_stream(ONE, MASKED),
    "weights of a stream": lambda: jaxgmm.fit_stream(ONE, (WHOLE, MASKED_WEIGHT)),
    "engine": lambda: fit_engine(ONE, LocalEngine([MASKED])),
    "weights of an engine": lambda: fit_engine(ONE, LocalEngine([WHOLE], [MASKED_WEIGHT])),
}


@pytest.mark.parametrize("entry", MASK_IS_LOST)
def test_a_masked_entry_is_refused_by_its_place_wherever_data_enter(entry):
    with pytest.raises(ValueError, match=r"masked array, and entry \(4,"):
        MASK_IS_LOST[entry]()


def test_parameters_of_lists_are_refused():
    made = jaxgmm.GMMParams([0.0], [[0.0, 0.0]], [1.0], ONE.family)
    for function in (jaxgmm.log_prob, jaxgmm.fit):
        with pytest.raises(TypeError, match="make_params"):
            function(made, WHOLE)


def test_responsibilities_must_sum_to_one_where_a_row_counts():
    resp = RESP.copy()
    resp[3] *= 0.5
    with pytest.raises(ValueError, match=r"row 3 sums to 0\.5"):
        jaxgmm.m_step(resp, WHOLE)
    with pytest.raises(ValueError, match=r"row 3 sums to 0\.5"):
        from_responsibilities(resp, WHOLE)
    for dtype in (jnp.float16, jnp.bfloat16):
        jaxgmm.m_step(jnp.asarray(RESP, dtype), WHOLE)  # their sums are off by the rounding of the dtype
    weight = (np.arange(N) != 3).astype(float)
    expected = jaxgmm.m_step(RESP, WHOLE, sample_weight=weight)
    np.testing.assert_array_equal(jaxgmm.m_step(resp, WHOLE, sample_weight=weight).means, expected.means)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_condition_must_be_finite(value):
    with pytest.raises(ValueError, match="values must be finite"):
        jaxgmm.distributions.condition(ONE, (0,), [value])
