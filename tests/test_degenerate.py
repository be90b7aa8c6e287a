"""Data that no mixture fits well: finite parameters or a status that says why, CONVERGED only if it is."""

import functools

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import dense, on_host
from tests.problems import few_structures
from tests.quick import quick_jit

N, D, K = 24, 3, 4
KEY = 3
REGS = (1e-6, 0.0)
FAILED = {Status.NONFINITE, Status.DECREASED, Status.DEGENERATE}


def two_clusters():
    X = np.random.default_rng(0).normal(size=(N, D))
    X[N // 2 :] += 6
    return X


def column(j, values):
    X = two_clusters()
    X[:, j] = values(X)
    return X


def outlier(value):
    X = two_clusters()
    X[3] = value
    return X


ALL = np.ones(N)
X = two_clusters()
# Each: X (N, D) and weights (N,); zero weights leave rows out, so that fewer rows need no other compilation.
CASES = {
    "easy": (X, ALL),
    "all points equal": (np.full((N, D), 1.7), ALL),
    "all points zero": (np.zeros((N, D)), ALL),
    "a constant feature": (column(1, lambda X: 3.3), ALL),
    "collinear features": (column(2, lambda X: X[:, 0] - 2 * X[:, 1]), ALL),
    "a feature twice": (column(2, lambda X: X[:, 0]), ALL),
    "one point": (X, np.arange(N) == 5),
    "fewer points than features": (X, np.isin(np.arange(N), [5, 20])),
    "fewer points than features, far apart": (1e3 * X, np.isin(np.arange(N), [5, 20])),
    "as many points as components": (X, np.arange(N) % 6 == 0),
    "fewer distinct points than components": (np.repeat(X[[0, 7, -1]], N // 3, axis=0), ALL),
    "every point twice": (np.repeat(X[::2], 2, axis=0), ALL),
    "an outlier at 1e8": (outlier(1e8), ALL),
    "an outlier at 1e15": (outlier(1e15), ALL),
    "values of 1e15": (X * 1e15, ALL),
    "values of 1e-15": (X * 1e-15, ALL),
    "features of 1e15, 1 and 1e-15": (X * np.array([1e15, 1, 1e-15]), ALL),
    "an offset of 1e6": (X + 1e6, ALL),
    "an offset of 1e15": (X + 1e15, ALL),
    "weights of 1e-20": (X, ALL * 1e-20),
    "weights of 1e20": (X, ALL * 1e20),
    "weights from 1e-15 to 1e15": (X, 10.0 ** np.linspace(-15, 15, N)),
}


def arrays(case, dtype):
    X, w = CASES[case]
    return X.astype(dtype), w.astype(dtype)


@functools.cache
def fitted(case, name, reg):
    """Two lanes in float32, the harder precision; all cases of a structure share the compilation."""
    X, w = arrays(case, np.float32)
    return on_host(
        jaxgmm.fit_restarts(
            jax.random.key(KEY), X, K, w, covariance_type=name, n_init=2, reg_covar=reg, max_iter=300
        )
    )


def lane(results, i):
    return jax.tree.map(lambda a: a[i], results)


def finite(params):
    good = all(np.isfinite(a).all() for a in jax.tree.leaves((params.means, params.scale)))
    return good and not np.isnan(params.log_weights).any()


def assert_honest(result, X, w, reg, tol=1e-5):
    """What a status promises, held against the public functions."""
    status, log_likelihood = Status(int(result.status)), float(result.log_likelihood)
    assert finite(result.params) or status in FAILED
    if status in FAILED:
        return
    eps = float(np.finfo(X.dtype).eps)
    rounding = 2000 * eps * max(1, abs(log_likelihood))
    assert np.isfinite(log_likelihood)
    assert float(jaxgmm.score(result.params, X, w)) == pytest.approx(log_likelihood, abs=rounding)
    if status is Status.CONVERGED:
        after, _ = jaxgmm.em_step(result.params, X, w, reg_covar=reg)
        assert finite(after)
        # A mean is rounded where it lies: δ ≤ eps |μ| costs ½ δᵀΣ⁻¹δ nats, before the step and after it.
        _, means, covariances = dense(result.params)
        tightest = np.einsum("kdd->kd", np.linalg.inv(covariances))
        place = (0.5 * (eps * means) ** 2 * tightest).sum(-1).max()
        allowed = rounding + tol + 2 * place * means.shape[1]
        assert float(jaxgmm.score(after, X, w)) == pytest.approx(log_likelihood, abs=allowed)


@few_structures
def test_every_fit_is_finite_or_says_why_converged_means_it_and_none_decreases(name):
    # DECREASED is for updates that are wrong; none of the package's is.
    # Data of extreme scale are fitted in other units, by a program of their own: one structure will do.
    for case in CASES if name == "full" else [c for c in CASES if "1e15" not in c and "1e-15" not in c]:
        X, w = arrays(case, np.float32)
        for reg in REGS if name == "full" else REGS[1:]:
            results = fitted(case, name, reg)
            statuses = np.asarray(results.status).tolist()
            assert set(statuses) <= set(Status) - {Status.DECREASED}, case
            for i in range(2):
                assert_honest(lane(results, i), X, w, reg)
    assert (fitted("easy", name, 1e-6).status == Status.CONVERGED).all()


SPIKES = ["all points equal", "one point", "fewer points than features", "as many points as components"]


def test_points_are_degenerate_without_a_ridge_and_with_one_a_mixture_as_narrow():
    for case in SPIKES:
        results = fitted(case, "full", 0.0)
        assert (results.status == Status.DEGENERATE).all(), case
        assert finite(results.params)
        results = fitted(case, "full", 1e-6)
        assert (results.status == Status.CONVERGED).all(), case
        assert (np.linalg.eigvalsh(np.asarray(results.params.covariances, np.float64)) > 1e-7).all()


def test_a_flat_covariance_without_a_ridge_is_not_called_converged():
    for case in ("collinear features", "a feature twice", "a constant feature"):
        assert not (np.asarray(fitted(case, "full", 0.0).status) == Status.CONVERGED).any(), case
    # Without correlations, only the constant feature is flat.
    flat = fitted("a constant feature", "diag", 0.0)
    assert not (np.asarray(flat.status) == Status.CONVERGED).any()


def test_an_awkward_sample_still_has_a_usable_lane():
    usable = jaxgmm.best(fitted("every point twice", "full", 1e-6))
    assert int(usable.status) not in FAILED


# A lane that fails


@quick_jit
def _vmapped(starts, X, w, reg):
    return jax.vmap(lambda p: jaxgmm.fit(p, X, w, reg_covar=reg, max_iter=300))(starts)


@functools.cache
def four_starts(dtype):
    """Four starts (a leading axis) that all converge."""
    rng = np.random.default_rng(2)
    resp = rng.dirichlet(np.full(K, 0.3), size=(4, N)).astype(dtype)
    X = arrays("easy", dtype)[0]
    return on_host(quick_jit(jax.vmap(lambda r: jaxgmm.m_step(r, X, reg_covar=0.1)))(resp))


def spoiled(starts, what):
    """The four starts with lane 1 made to fail."""

    def at_1(a, values):
        return np.stack([a[0], values.astype(a.dtype), *a[2:]])

    parts = {
        "nan means": {"means": at_1(starts.means, starts.means[1] * np.nan)},
        "nan scale": {"scale": at_1(starts.scale, starts.scale[1] * np.nan)},
        "nan weights": {"log_weights": at_1(starts.log_weights, starts.log_weights[1] * np.nan)},
        "collapsed": {"scale": at_1(starts.scale, starts.scale[1] * 1e-30)},
        "far away": {"means": at_1(starts.means, starts.means[1] * 0 + 1e18)},
        "huge": {"scale": at_1(starts.scale, starts.scale[1] * 1e30)},
    }[what]
    return jaxgmm.GMMParams(
        parts.get("log_weights", starts.log_weights),
        parts.get("means", starts.means),
        parts.get("scale", starts.scale),
        *starts.model,
    )


def test_a_bad_lane_leaves_its_neighbours_alone():
    X, w = arrays("easy", np.float32)
    starts = four_starts(np.float32)
    reg = np.float32(1e-3)
    clean = on_host(_vmapped(starts, X, w, reg))
    for what in ("nan means", "nan scale", "nan weights", "collapsed", "far away", "huge"):
        check_neighbours(what, starts, clean, X, w, reg)


def check_neighbours(what, starts, clean, X, w, reg):
    mixed = on_host(_vmapped(spoiled(starts, what), X, w, reg))
    assert (clean.status == Status.CONVERGED).all()
    others = np.array([0, 2, 3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), mixed, clean)
    assert_honest(lane(mixed, 1), X, w, 1e-3)
    if what.startswith("nan"):
        # A scale of NaN is what the factor of a singular covariance is.
        assert mixed.status[1] == (Status.DEGENERATE if what == "nan scale" else Status.NONFINITE)
        assert np.isnan(mixed.log_likelihood[1])
    assert jaxgmm.best(mixed).status == Status.CONVERGED


# Inside jit, where values cannot be checked


def changed(a, at, value):
    """The array with one other number."""
    a = a.copy()
    a[at] = value
    return a


@functools.cache
def jitted():
    return quick_jit(
        lambda X, w, reg, tol: jaxgmm.fit_restarts(
            jax.random.key(KEY), X, K, w, n_init=2, reg_covar=reg, tol=tol, max_iter=50
        )
    )


def test_nan_and_infinite_data_inside_jit_are_nonfinite_never_converged():
    X, w = arrays("easy", np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        results = jitted()(changed(X, (5, 1), bad), w, 1e-6, 1e-5)
        assert (results.status == Status.NONFINITE).all()
        with pytest.raises(RuntimeError, match=r"NONFINITE.*fit 0"):
            jaxgmm.check(results)


def test_senseless_arguments_inside_jit_are_never_called_converged():
    X, w = arrays("easy", np.float32)
    for weights, reg, tol in [
        (w * np.float32(np.nan), 1e-6, 1e-5),
        (w * 0, 1e-6, 1e-5),
        (w, np.nan, 1e-5),
        (w, np.inf, 1e-5),
        (w, 1e-6, np.nan),
    ]:
        results = jitted()(X, weights, reg, tol)
        assert not (results.status == Status.CONVERGED).any()


def test_nan_in_a_row_of_weight_zero_does_not_matter():
    X, w = arrays("easy", np.float32)
    w = changed(w, 5, 0)
    clean = jitted()(X, w, 1e-3, 1e-5)
    dirty = jitted()(changed(X, (5, 1), np.nan), w, 1e-3, 1e-5)
    assert (clean.status == Status.CONVERGED).all()
    np.testing.assert_array_equal(dirty.status, clean.status)
    np.testing.assert_allclose(dirty.log_likelihood, clean.log_likelihood, rtol=1e-4)


# The boundary


def test_check_names_the_status_and_the_remedy():
    for case, remedy in (("one point", "reg_covar"), ("all points equal", "fewer components")):
        results = fitted(case, "full", 0.0)
        for of, whose in ((results, "fit 0"), (jaxgmm.best(results), "the fit")):
            with pytest.raises(RuntimeError, match=f"DEGENERATE.*{whose}.*{remedy}"):
                jaxgmm.check(of)
    good = fitted("easy", "full", 1e-6)
    assert jaxgmm.check(good) is good


def test_squares_out_of_range_are_nonfinite_where_the_data_cannot_be_looked_at():
    X, w = arrays("easy", np.float32)
    starts = four_starts(np.float32)
    for scale in (1e20, 1e36, 1e-18, 1e-36):
        by = np.float32(scale)
        p = jaxgmm.GMMParams(starts.log_weights, starts.means * by, starts.scale * by, *starts.model)
        results = _vmapped(p, X * by, w, np.float32(1e-6))
        assert (results.status == Status.NONFINITE).all()
        jax.tree.map(np.testing.assert_array_equal, results.params, p)


def test_fewer_samples_than_features_is_degenerate_and_the_remedies_are_named():
    for reg_covar in REGS:
        fits = fitted("fewer points than features, far apart", "full", reg_covar)
        assert (fits.status == Status.DEGENERATE).all()
        with pytest.raises(RuntimeError, match=r"'diag'.*factor\(q\).*prior=.*reg_covar"):
            jaxgmm.check(fits)
