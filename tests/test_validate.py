"""Bad input raises from our own code, naming the argument; good input of any type gives the same numbers.

A test has one rule, and looks at every public function that the rule is for; a failure names the function.
"""

import dataclasses
import functools
import pathlib
import traceback

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm import _validate as validate
from jaxgmm._host_arrays import host_array
from jaxgmm.init import from_responsibilities
from jaxgmm.parallel.engines import LocalEngine, fit_engine
from tests.conftest import case, x64

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
QUICK = "spherical"  # the structure that compiles fastest
each_shape = pytest.mark.parametrize("name", COVARIANCES)


@functools.cache
def some_params(name="full"):
    # One program in place of one for each small operation.
    make = jax.jit(functools.partial(jaxgmm.make_params, covariance_type=name))
    return make(np.array([0.5, 0.5]), MEANS, COVARIANCES[name])


def on_device(values, kind=np.float32):
    """A JAX array that nothing is compiled for."""
    return jax.device_put(np.asarray(values).astype(kind))


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


def raised(call, *arguments, **options):
    """The exception of a call, or None."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return error
    return None


def refused(error, words, calls, *arguments, **options):
    """Each of the calls raises an error of our own making, whose message has all the words."""
    for name, call in calls.items():
        caught = raised(call, *arguments, **options)
        assert type(caught) is error, f"{name} of {arguments} {options}: {caught!r}"
        inner = traceback.extract_tb(caught.__traceback__)[-1].filename
        assert PACKAGE in pathlib.Path(inner).parents, f"{name}: raised by {inner}"
        for word in words:
            assert word in str(caught), f"{name}: {word!r} is not in {str(caught)!r}"


def refuse(error, words, call):
    refused(error, words, {"the function": call})


# X


def test_x_that_is_not_finite_is_refused_with_its_place():
    for value in [np.nan, np.inf, -np.inf]:
        with case(value):
            X = WHOLE.astype(np.float32)
            X[3, 1] = value
            refused(ValueError, ["X", str(value), "row 3, column 1"], OF_X, X)


def test_x_of_the_wrong_shape_is_refused_with_the_shape():
    for shape in [(0, D), (N, 0), (N,), (1, N, D), ()]:
        with case(shape):
            refused(ValueError, ["X", f"got shape {shape}"], OF_X, np.zeros(shape, np.float32))


NOT_NUMBERS = {
    "complex": WHOLE.astype(np.complex64),
    "complex in JAX": on_device(WHOLE, np.complex64),
    "objects": WHOLE.astype(object),
    "strings": WHOLE.astype(str),
    "times": WHOLE.astype("datetime64[s]"),
    "ragged": [[1.0, 2.0], [3.0]],
    "missing": [[1.0, None]] * N,
    "a path": "data.csv",
    "None": None,
}


def test_x_that_is_not_real_numbers_is_refused():
    for X in NOT_NUMBERS.values():
        refused(TypeError, ["X", "numbers"], OF_X, X)


def test_x_of_another_width_than_params_is_refused_with_both():
    for width in (1, 3):
        X = np.zeros((N, width), np.float32)
        refused(ValueError, ["X", "(n_samples, 2)", f"({N}, {width})"], OF_PARAMS, X)


def traced(call, *shapes):
    """The call, with arrays of which only the shapes are known."""
    return lambda: jax.eval_shape(call, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def test_shapes_are_checked_under_jit_and_vmap():
    for name, call in OF_X.items():
        if name != "fit_components":
            refuse(ValueError, ["X must be a 2-D array", "(8,)"], traced(call, (N,)))
            refuse(ValueError, ["X must have at least one"], traced(call, (0, D)))
    for call in OF_PARAMS.values():
        refuse(ValueError, ["X must have the 2 features", "(8, 3)"], traced(jax.vmap(call), (4, N, 3)))
    for call in RIDGED.values():
        ridged = functools.partial(lambda r, call: call(WHOLE, reg_covar=r), call=call)
        refuse(ValueError, ["reg_covar must be a scalar; got shape (2,)"], traced(ridged, (2,)))


# Two of the fits are left out: tracing them takes longer than all the others.
TRACED = {n: f for n, f in OF_X.items() if n not in ("fit_restarts", "fit_components")}


def test_a_symbolic_size_is_refused_and_one_row_under_vmap_is_exported():
    params = jaxgmm.make_params([0.5, 0.5], MEANS, [1.0, 1.0], QUICK)
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 2"), np.float32)
    calls = (
        lambda x: jaxgmm.fit(params, x),
        lambda x: jaxgmm.e_step(params, x),
        lambda x: jaxgmm.fit_restarts(key(), x, 2),
        lambda x: jaxgmm.log_prob(params, jaxgmm.observe(x)),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"X must not have a symbolic size.*shape \(n, 2\)"):
            jax.export.export(jax.jit(call))(rows)
    one_by_one = jax.jit(jax.vmap(lambda row: jaxgmm.log_prob(params, row[None])[0]))
    exported = jax.export.export(one_by_one)(rows)
    x = WHOLE.astype(np.float32)
    np.testing.assert_allclose(exported.call(x), jaxgmm.log_prob(params, x), rtol=1e-5)


def test_values_that_cannot_be_seen_do_not_break_tracing():
    for name in TRACED.keys() & WEIGHTED.keys():
        traced(lambda X, w, call=TRACED[name]: call(X, sample_weight=w), (N, D), (N,))()


def test_arrays_that_a_jitted_function_closes_over_are_data_like_any():
    # They are concrete, but what is computed from them inside jit is traced.
    X, w = on_device(WHOLE), on_device(np.ones(N))
    bad = on_device(np.where(np.arange(N * D).reshape(N, D) == 0, np.nan, WHOLE))
    for name, call in TRACED.items():
        options = {} if name in UNWEIGHTED else {"sample_weight": w}
        jax.eval_shape(lambda call=call, options=options: call(X, **options))
        with pytest.raises(ValueError, match="X must be finite"):
            jax.eval_shape(lambda call=call, options=options: call(bad, **options))


def leaves(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


# One for each way in which a function takes its data; to run all of them would compile for twenty seconds.
TAKEN = {n: OF_X[n] for n in ("em_step", "log_prob", "bic", "elbo", "m_step", "random_points")}


@pytest.mark.parametrize("call", TAKEN)
def test_integers_bools_lists_and_numpy_give_the_numbers_of_floats(call):
    run = TAKEN[call]
    expected = leaves(run(on_device(WHOLE)))
    kinds = [
        WHOLE,
        WHOLE.astype(np.uint8),
        WHOLE.tolist(),
        WHOLE.astype(np.float64),
        WHOLE.astype(np.float16),
    ]
    for X in [*kinds, on_device(WHOLE, jnp.bfloat16), on_device(WHOLE, np.int32)]:
        for got, want in zip(leaves(run(X)), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    bits = WHOLE > 2
    for got, want in zip(leaves(run(bits)), leaves(run(bits.astype(np.float32))), strict=True):
        np.testing.assert_array_equal(got, want)


def test_narrow_floats_become_float32_under_x64_and_the_rest_float64():
    with x64(True):
        points = functools.partial(jaxgmm.init.random_points, n_components=K)
        for kind in (np.float16, jnp.bfloat16, np.float32, np.int64, np.bool_, np.float64):
            wanted = np.float32 if kind in (np.float16, jnp.bfloat16, np.float32) else np.float64
            assert jax.eval_shape(points, key(), on_device(WHOLE, kind)).dtype == wanted
        assert jax.eval_shape(lambda: points(key(), WHOLE.tolist())).dtype == np.float64


def test_params_of_one_precision_work_with_x_of_the_other_and_follow_x():
    with x64(True):
        for dtype, other in [(np.float32, np.float64), (np.float64, np.float32)]:
            params = jax.tree.map(lambda a, other=other: on_device(a, other), quick())
            X = jax.ShapeDtypeStruct((N, D), dtype)
            for name in OF_PARAMS.keys() - {"fit"}:  # tracing it takes as long as all the others
                before = (RESP,) if name == "elbo" else ()
                call = functools.partial(getattr(jaxgmm, name), params, *before)
                floats = {a.dtype for a in jax.tree.leaves(jax.eval_shape(call, X))} - {np.dtype("int32")}
                assert floats <= {np.dtype(dtype)}, name


# Options


def test_bad_weights_are_refused():
    for weight, words in [
        (-np.ones(N), ["negative", "-1"]),
        (np.full(N, np.nan), ["finite", "index 0"]),
        (np.full(N, np.inf), ["finite", "index 0"]),
        (np.zeros(N), ["zero everywhere"]),
        (np.ones(N - 1), [f"({N},)", f"({N}, {D})", f"got shape ({N - 1},)"]),
        (np.ones((N, 1)), [f"({N},)", f"({N}, {D})", f"got shape ({N}, 1)"]),
        (2.0, [f"({N},)", "got shape ()"]),
    ]:
        with case(weight, words):
            refused(ValueError, ["sample_weight", *words], WEIGHTED, WHOLE, sample_weight=weight)


def test_weights_that_are_not_numbers_are_refused():
    for weight in ("balanced", np.ones(N, complex), np.ones(N, object)):
        refused(TypeError, ["sample_weight", "real numbers"], WEIGHTED, WHOLE, sample_weight=weight)


def test_bad_ridges_and_tolerances_are_refused():
    for option, calls in [("reg_covar", RIDGED), ("tol", FITS)]:
        with case(option):
            for value in (-1e-6, np.nan, [1.0, 2.0], *([np.inf] if option == "reg_covar" else [])):
                refused(ValueError, [option], calls, WHOLE, **{option: value})
            for value in ("auto", 1j, *([None] if option == "reg_covar" else [])):
                refused(TypeError, [option], calls, WHOLE, **{option: value})


def test_bad_limits_of_iterations_and_switches_are_refused():
    for value in (-1, on_device(-1, np.int32)):
        refused(ValueError, ["max_iter", "-1"], FITS, WHOLE, max_iter=value)
    for value in (2.0, np.float32(2), "2", None, True, [2]):
        refused(TypeError, ["max_iter"], FITS, WHOLE, max_iter=value)
    for value in ("no", None, [True, False]):
        refused(TypeError, ["accelerate"], FITS, WHOLE, accelerate=value)
    for value in (None, {"kernel": "auto"}, "auto"):
        refused(TypeError, ["options must be", "EMOptions("], FITS, WHOLE, options=value)


def test_an_option_that_no_fit_understands_is_refused_when_it_is_written():
    for option, value, error, words in [
        ("block_size", 0, ValueError, "block_size must be at least 1; got 0"),
        ("block_size", 1.5, TypeError, "block_size must be an int"),
        ("history_size", -1, ValueError, "history_size must be at least 0; got -1"),
        ("history_size", True, TypeError, "history_size must be an int"),
        ("kernel", "fast", ValueError, "kernel must be one of"),
        ("unconverged_gradient", None, ValueError, "unconverged_gradient must be one of"),
    ]:
        with case(words), pytest.raises(error, match=words):
            EMOptions(**{option: value})


def test_an_option_without_use_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fit_stream does not use options\.block_size"):
        jaxgmm.fit_stream(ONE, WHOLE, options=EMOptions(block_size=4))
    with pytest.raises(ValueError, match=r"fit_best does not use options\.kernel"):
        jaxgmm.fit_best(key(), WHOLE, 2, options=EMOptions(kernel="whitened"))
    with pytest.raises(ValueError, match=r"does not use options\.unconverged_gradient"):
        jaxgmm.fit_restarts(key(), WHOLE, 2, options=EMOptions(unconverged_gradient="warn"))


def test_numbers_of_components_that_are_not_sensible_are_refused():
    for value in (0, -1, np.int64(0)):
        refused(ValueError, ["n_components", "at least 1", str(value)], OF_KEY, WHOLE, value)
    refused(ValueError, ["n_components", f"n_samples = {N}", str(N + 1)], OF_KEY, WHOLE, N + 1)
    for value in (2.0, True, "2", None, np.array(2), on_device(2, np.int32)):
        refused(TypeError, ["n_components", "int", type(value).__name__], OF_KEY, WHOLE, value)
    several = {"fit_components": lambda n: jaxgmm.fit_components(key(), WHOLE, n, n_init=1)}
    for value in (3, "123", None, np.array(2), on_device(2, np.int32)):
        refused(TypeError, ["n_components", "sequence"], several, value)
    refused(ValueError, ["n_components"], several, ())
    several = jax.eval_shape(lambda: jaxgmm.init.kmeans(key(), WHOLE, np.int64(K)))
    assert several.shape == (K, D)  # an int of NumPy is one


def test_counts_must_be_positive_ints():
    for value in (0, -1, 1.5, True, "2"):
        error = ValueError if type(value) is int else TypeError
        restarts = {
            "fit_restarts": lambda v: jaxgmm.fit_restarts(key(), WHOLE, K, n_init=v),
            "fit_components": lambda v: jaxgmm.fit_components(key(), WHOLE, (1, K), n_init=v),
        }
        refused(error, ["n_init"], restarts, value)
        refused(
            error, ["max_iter"], {"kmeans": lambda v: jaxgmm.init.kmeans(key(), WHOLE, K, max_iter=v)}, value
        )
        refused(error, ["n_samples"], {"sample": lambda v: jaxgmm.sample(key(), some_params(), v)}, value)


BAD_KEYS = {
    "int": lambda: 0,
    "None": lambda: None,
    "floats": lambda: on_device(np.zeros(2)),
    "signed": lambda: np.zeros(2, np.int64),
    "list": lambda: [0, 1],
    "batch": lambda: jax.random.split(jax.random.key(0), 3),
    "raw batch": lambda: np.zeros((3, 2), np.uint32),
}
TAKE_A_KEY = {
    "fit_restarts": lambda k: jaxgmm.fit_restarts(k, WHOLE, K),
    "fit_components": lambda k: jaxgmm.fit_components(k, WHOLE, (K,)),
    "kmeans_plusplus": lambda k: jaxgmm.init.kmeans_plusplus(k, WHOLE, K),
    "kmeans": lambda k: jaxgmm.init.kmeans(k, WHOLE, K),
    "random_points": lambda k: jaxgmm.init.random_points(k, WHOLE, K),
    "random_resp": lambda k: jaxgmm.init.random_resp(k, WHOLE, K),
    "sample": lambda k: jaxgmm.sample(k, some_params(), 5),
}


def test_anything_but_one_key_is_refused():
    for bad in BAD_KEYS:
        with case(bad):
            refused(TypeError, ["key", "jax.random.key(0)"], TAKE_A_KEY, BAD_KEYS[bad]())


def test_a_raw_key_is_the_typed_one():
    raw = jax.random.PRNGKey(0)
    expected = jaxgmm.init.random_points(key(), WHOLE, K)
    for same in (raw, np.asarray(raw)):
        np.testing.assert_array_equal(jaxgmm.init.random_points(same, WHOLE, K), expected)


TAKE_A_STRUCTURE = {
    "m_step": lambda f: jaxgmm.m_step(RESP, WHOLE, covariance_type=f),
    "from_responsibilities": lambda f: from_responsibilities(RESP, WHOLE, covariance_type=f),
    "fit_restarts": lambda f: jaxgmm.fit_restarts(key(), WHOLE, K, covariance_type=f),
    "fit_components": lambda f: jaxgmm.fit_components(key(), WHOLE, (K,), covariance_type=f),
    "make_params": lambda f: jaxgmm.make_params([0.5, 0.5], MEANS, EYE, f),
}


def test_unknown_covariance_types_are_refused_and_near_ones_suggested():
    for wrong, near in [("ful", "full"), ("diagonal", "diag"), ("sphere", "spherical")]:
        words = ["covariance_type", repr(wrong), f"did you mean {near!r}", "'tied'"]
        refused(ValueError, words, TAKE_A_STRUCTURE, wrong)
    refused(ValueError, ["covariance_type", "'xyz'", "'full'"], TAKE_A_STRUCTURE, "xyz")
    for wrong in (3, None, ["full"]):
        refused(TypeError, ["covariance_type", type(wrong).__name__], TAKE_A_STRUCTURE, wrong)


def test_unknown_starts_are_refused():
    calls = {n: OF_KEY[n] for n in ("fit_restarts", "fit_components")}
    for init in ("k-means", "", 3, None, np.zeros(2)):
        refused(ValueError, ["init", "'kmeans++'", "function"], calls, WHOLE, init=init)


# Responsibilities

TAKE_RESP = {
    "m_step": lambda r: jaxgmm.m_step(r, WHOLE, covariance_type=QUICK),
    "from_responsibilities": lambda r: from_responsibilities(r, WHOLE, covariance_type=QUICK),
    "elbo": lambda r: jaxgmm.elbo(some_params(), r, WHOLE),
}


def test_bad_responsibilities_are_refused():
    for resp, words in [
        (RESP[:3], [f"({N}, ", "got shape (3, 2)"]),
        (RESP[:, 0], [f"({N}, ", f"got shape ({N},)"]),
        (RESP[:, :0], [f"({N}, ", f"got shape ({N}, 0)"]),
        (RESP * np.nan, ["finite", "row 0, column 0"]),
        (-RESP, ["negative"]),
    ]:
        with case(resp, words):
            refused(ValueError, ["resp", *words], TAKE_RESP, resp)


def test_responsibilities_of_no_weight_or_of_another_number_of_components_are_refused():
    steps = {n: TAKE_RESP[n] for n in ("m_step", "from_responsibilities")}
    refused(ValueError, ["resp", "zero"], steps, 0 * RESP)
    words = ["resp", f"({N}, 2)", f"({N}, 3)"]
    refused(ValueError, words, {"elbo": TAKE_RESP["elbo"]}, np.full((N, 3), 1 / 3))


def test_responsibilities_must_sum_to_one_where_a_row_counts():
    resp = RESP.copy()
    resp[3] *= 0.5
    steps = {n: TAKE_RESP[n] for n in ("m_step", "from_responsibilities")}
    refused(ValueError, ["row 3 sums to 0.5"], steps, resp)
    for dtype in (jnp.float16, jnp.bfloat16):
        TAKE_RESP["m_step"](on_device(RESP, dtype))  # their sums are off by the rounding of the dtype
    weight = (np.arange(N) != 3).astype(float)
    expected, found = (
        jaxgmm.m_step(r, WHOLE, sample_weight=weight, covariance_type=QUICK) for r in (RESP, resp)
    )
    np.testing.assert_array_equal(found.means, expected.means)


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


@each_shape
def test_bad_covariances_are_refused(name):
    for i, bad in enumerate(BAD_COVARIANCES[name]):
        which = "the shared covariance" if name == "tied" else f"component {int(0 < i < 3)}"
        words = ["covariances", "positive definite", which]
        refuse(ValueError, words, lambda bad=bad: build(bad, name))
    right = COVARIANCES[name].shape
    for shape in {(), (2,), (3,), (2, 2), (2, 3), (2, 2, 2), (3, 2, 2), (1, 2, 2)} - {right}:
        words = ["covariances", f"shape {right}", f"got shape {shape}", repr(name)]
        refuse(ValueError, words, lambda s=shape: build(np.ones(s), name))
    refuse(ValueError, ["covariances", "finite"], lambda: build(COVARIANCES[name] * np.nan, name))
    refuse(TypeError, ["covariances", "real"], lambda: build(COVARIANCES[name].astype(complex), name))


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
def test_covariances_that_are_not_symmetric_are_refused(crooked):
    refuse(ValueError, ["covariances", "symmetric"], lambda: build(crooked, "tied"))
    refuse(ValueError, ["covariances", "symmetric"], lambda: build(np.stack([EYE, crooked]), "full"))
    # The other component's width does not matter.
    refuse(ValueError, ["covariances", "symmetric"], lambda: build(np.stack([1e12 * EYE, crooked]), "full"))


def test_symmetry_is_asked_for_up_to_rounding_only():
    a = np.array([[1e4, 3.3], [3.3, 1e-2]])
    a[0, 1] *= 1 + 1e-6
    assert np.isfinite(build(a, "tied").scale).all()


@pytest.mark.parametrize("name", ["diag", "EVI"])
def test_variances_of_as_many_components_as_features_are_no_matrix(name):
    variances = np.array([[1.0, 4.0], [2.0, 2.0]])
    covariances = jax.jit(lambda v: build(v, name).covariances)(variances)
    np.testing.assert_allclose(np.diagonal(covariances, axis1=1, axis2=2), variances, rtol=1e-6)


def test_weights_that_are_not_probabilities_of_the_components_are_refused():
    for weights, words in [
        ([0.5, 0.6], ["sum to 1", "1.1"]),
        ([0.0, 0.0], ["sum to 1", "0.0"]),
        ([-0.5, 1.5], ["negative", "-0.5"]),
        ([np.nan, 1.0], ["finite"]),
        ([1.0], ["(2,)", "(2, 2)", "(1,)"]),
        ([[0.5, 0.5]], ["(2,)", "(2, 2)", "(1, 2)"]),
    ]:
        with case(weights, words):
            refuse(ValueError, ["weights", *words], lambda w=weights: build(EYE, "tied", w))


def test_means_that_are_not_k_by_d_finite_numbers_are_refused():
    for means in (MEANS[0], MEANS[None], MEANS[:, :0], MEANS * np.nan):
        refuse(ValueError, ["means"], lambda means=means: build(EYE, "tied", means=means))


def test_params_under_jit_are_built_with_shapes_checked():
    build_all = jax.jit(functools.partial(jaxgmm.make_params, covariance_type="full"))
    got = build_all(np.array([0.5, 0.5]), MEANS, COVARIANCES["full"])
    eager = jaxgmm.make_params([0.5, 0.5], MEANS, COVARIANCES["full"], "full")
    for a, b in zip(leaves(got), leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for name in COVARIANCES:
        with pytest.raises(ValueError, match=r"covariances must have shape .* got shape \(5,\)"):
            jax.eval_shape(lambda c, name=name: build(c, name), jax.ShapeDtypeStruct((5,), jnp.float32))


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


def test_a_batch_of_params_is_refused_with_the_way_out():
    batch = jax.tree.map(lambda a: on_device([a, a]), some_params())
    refused(ValueError, ["params", "(2, 2)", "(2, 2, 2)", "vmap", "best"], TAKE_PARAMS, batch)
    refuse(ValueError, ["params", "vmap"], lambda: jaxgmm.n_parameters(batch))
    one = jaxgmm.n_parameters(some_params())
    np.testing.assert_array_equal(jax.jit(jax.vmap(jaxgmm.n_parameters))(batch), [one, one])


def test_params_that_are_not_numbers_are_refused():
    nan = np.nan
    refused(
        ValueError, ["params.means", "finite"], TAKE_PARAMS, changed(means=on_device(np.full((K, D), nan)))
    )
    refused(
        ValueError, ["params.scale", "finite"], TAKE_PARAMS, changed(scale=on_device(np.full((K, D, D), nan)))
    )
    for log_weights in ([nan] * K, [-np.inf] * K, [np.inf, 0.0]):
        refused(ValueError, ["params.log_weights"], TAKE_PARAMS, changed(log_weights=on_device(log_weights)))


def test_params_whose_arrays_do_not_fit_together_are_refused():
    p = some_params()
    refused(ValueError, ["params", "(2,)", "(1, 2)"], TAKE_PARAMS, changed(means=on_device(MEANS[:1])))
    # One component's factor would silently serve for all.
    words = ["params.scale", "(2, 2, 2)"]
    refused(ValueError, [*words, "(1, 2, 2)"], TAKE_PARAMS, changed(scale=on_device(np.asarray(p.scale)[:1])))
    wider = on_device([np.eye(3)] * K)
    refused(ValueError, [*words, "(2, 3, 3)"], TAKE_PARAMS, changed(scale=wider))


def test_something_else_than_params_is_refused():
    for wrong in (None, "full", (1, 2)):
        refused(TypeError, ["params", "GMMParams", type(wrong).__name__], TAKE_PARAMS, wrong)
    # Newcomers pass the whole result.
    result = jaxgmm.FitResult(some_params(), None, None, None, None, None)
    refused(TypeError, ["params", "FitResult", "result.params"], TAKE_PARAMS, result)
    lists = jaxgmm.GMMParams([0.0], [[0.0, 0.0]], [1.0], jaxgmm.components.gaussian("spherical"))
    refused(TypeError, ["make_params"], {n: TAKE_PARAMS[n] for n in ("log_prob", "fit")}, lists)


def test_the_values_of_a_condition_must_be_finite():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="values must be finite"):
            jaxgmm.distributions.condition(ONE, (0,), [value])


# Tables and precision

TIMES = 1.7e9 + np.arange(8.0)[:, None] * [1.0, 1e6] + [0.0, 3e9]


def test_a_cast_that_loses_digits_warns_once_with_the_feature_and_the_remedy():
    with x64(False):
        for call in (
            lambda: jaxgmm.m_step(RESP, TIMES, covariance_type=QUICK),
            lambda: jaxgmm.log_prob(quick(), TIMES),
            lambda: jaxgmm.init.random_points(key(), TIMES.astype(np.int64), K),
        ):
            with pytest.warns(
                UserWarning, match=r"feature 0 has .*X - X.mean\(0\).*jax_enable_x64"
            ) as caught:
                call()
            assert len(caught) == 1
            assert caught[0].filename == __file__  # where the user's code called
        jaxgmm.log_prob(quick(), TIMES - TIMES.mean(0))
        jaxgmm.log_prob(quick(), TIMES.astype(np.float32))  # the digits are not there to be lost
        jaxgmm.log_prob(quick(), np.full((8, 2), 1.7e9 + 1))  # nor do equal values have any
    with x64(True):
        jaxgmm.init.random_points(key(), TIMES, K)


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
    "a column of text after one with a gap": (
        lambda: frame(a=([1, None], "Int64"), b=(["x", "y"],)), TypeError, "column 'b' has dtype"
    ),
    "a Polars column of text": (
        lambda: polars(a=[1.0, 2.0], b=["x", "y"]), TypeError, "column 'b' has dtype"
    ),
    "a Polars column with a gap": (lambda: polars(a=[1, 2], b=[1.0, None]), ValueError, "column 'b'.*row 1"),
}  # fmt: skip


def test_a_table_that_is_no_matrix_of_numbers_is_refused_by_what_it_is():
    for table in BAD_TABLES:
        with case(table):
            make, error, words = BAD_TABLES[table]
            with pytest.raises(error, match=words):
                jaxgmm.log_prob(ONE, make())


def test_tables_that_are_numbers_are_taken():
    expected = jaxgmm.log_prob(ONE, np.array([[1.0, 3.0], [2.0, 4.0]]))
    nullable = frame(a=([1, 2], "Int64"), b=([3, 4], "Int64"))
    assert host_array(nullable, "X").dtype == np.float64
    mixed = frame(a=([1, 2], "Int64"), b=([3.0, 4.0], "Float64"))
    for table in (nullable, mixed, np.ma.masked_array(np.array([[1.0, 3.0], [2.0, 4.0]]), False)):
        np.testing.assert_array_equal(jaxgmm.log_prob(ONE, table), expected)
    expected = jaxgmm.log_prob(ONE, np.array([[1.5, 1.0], [2.5, 0.0]]))
    nullable = frame(a=([1.5, 2.5],), b=([True, False],))
    plain = nullable.astype({"a": float, "b": bool})
    for table in (nullable, plain, polars(a=[1.5, 2.5], b=[True, False])):
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


def test_a_masked_entry_is_refused_by_its_place_wherever_data_enter():
    for entry in MASK_IS_LOST:
        with case(entry), pytest.raises(ValueError, match=r"masked array, and entry \(4,"):
            MASK_IS_LOST[entry]()


def test_an_accelerators_data_that_a_users_jit_closes_over_are_looked_at(monkeypatch):
    """Such arrays are looked at by JAX, and concrete although a trace is under way."""
    monkeypatch.setattr(validate, "_seen", lambda a: a)
    start = some_params(QUICK)
    x = np.zeros((N, D))
    spoilt, resp = x.copy(), np.full((N, K), 1 / K)
    spoilt[3, 1] = np.nan
    resp[4] = 0.9
    x, spoilt, resp, negative = map(on_device, (x, spoilt, resp, -np.ones(N)))
    for call, message in (
        (lambda: jaxgmm.score(start, spoilt), "nan at row 3, column 1"),
        (lambda: jaxgmm.score(start, x, negative), "must not be negative"),
        (lambda: jaxgmm.m_step(resp, x), "row 4 sums to"),
    ):
        for function in (call, lambda call=call: jax.eval_shape(lambda _: call(), 0.0)):
            with pytest.raises(ValueError, match=message):
                function()
