"""Rows with gaps, noise, projections and labels: against brute force, and against what they reduce to."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t, norm

import jaxgmm
from jaxgmm import Status, observe
from jaxgmm.components import get_model, student_t
from jaxgmm.data import summarise
from jaxgmm.density import sample_as
from jaxgmm.init import _starts as starts
from jaxgmm.init._clusters import lloyd, squared_distances
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.selection._programs import certainty
from tests.conftest import case, on_host, start_from, x64
from tests.problems import LABELS, WEIGHT, D, K, N, X, largest_slope, quick_fit
from tests.quick import quick_jit

rng = np.random.default_rng(5)
SEEN = rng.random((N, D)) > 0.3
SEEN[:2] = False  # rows of which nothing is observed
GAPS = np.where(SEEN, X, np.nan)
NOISE = rng.uniform(0, 0.4, (N, D))
_mix = rng.normal(size=(N, D, D))
FULL_NOISE = 0.1 * np.einsum("nij,nkj->nik", _mix, _mix) + 0.05 * np.eye(D)
KNOWN = np.where(rng.random(N) < 0.1, LABELS, -1)
# Pairs of one cluster, and rows on their own.
_pairs = np.concatenate([np.flatnonzero(k == LABELS)[:20].reshape(10, 2) for k in range(K)])
GROUPS = np.full(N, -1)
GROUPS[_pairs] = np.arange(len(_pairs))[:, None] + 7
PROJECTION = rng.normal(size=(N, 2, D))
PROJECTED = np.einsum("ned,nd->ne", PROJECTION, X)

OBSERVATIONS = {
    "gaps": {"X": GAPS, "missing": "nan"},
    "noise": {"X": X, "noise": NOISE},
    "gaps and noise": {"X": GAPS, "missing": "nan", "noise": NOISE, "labels": KNOWN},
    "covariances": {"X": GAPS, "missing": "nan", "noise": FULL_NOISE},
    "projections": {"X": PROJECTED, "projection": PROJECTION, "noise": NOISE[:, :2]},
    "labels": {"X": X, "labels": KNOWN},
    "soft labels": {"X": X, "log_prior": np.log(rng.dirichlet(np.ones(K), N))},
    "weights": {"X": GAPS, "missing": "nan", "sample_weight": WEIGHT},
    "groups": {"X": GAPS, "missing": "nan", "groups": GROUPS},
}
# The narrowest component has a variance of 0.003. With more noise its likelihood is highest at 0, which EM
# approaches as slowly as it does any singular covariance.
EVERYTHING = (
    OBSERVATIONS["gaps and noise"]
    | {"sample_weight": WEIGHT, "noise": 0.002 * NOISE}
    | {"log_prior": OBSERVATIONS["soft labels"]["log_prior"]}
)

quick_step = quick_jit(jaxgmm.em_step)


@quick_jit
def density_and_slope(params, rows):
    """log p of the rows (N,), and the largest slope of their likelihood."""
    return jaxgmm.log_prob(params, rows), largest_slope(params, rows)


def data(name, dtype="float64"):
    """One of the observations, in a dtype."""
    return seen(OBSERVATIONS[name], dtype)


def seen(known, dtype="float64"):
    given = {k: v.astype(dtype) if k in ("X", "noise", "projection") else v for k, v in known.items()}
    return observe(given.pop("X"), **given)


@functools.cache
def begin(name, dtype="float64"):
    """A mixture of a structure, near the clusters."""
    return start_from(X, LABELS, name, dtype)


def by_scipy(params, known):
    """(N, K) log π_k + log f_k of what is observed of each row, one at a time."""
    x, n_features = known["X"], X.shape[1]
    covariances, means = np.asarray(params.covariances), np.asarray(params.means)
    log_weights = np.asarray(params.log_weights)
    dof = (
        np.asarray(params.scale["dof"]) if isinstance(params.scale, dict) and "dof" in params.scale else None
    )
    joint = np.zeros((len(x), K))
    for n, k in np.ndindex(joint.shape):
        r = known.get("projection", np.broadcast_to(np.eye(n_features), (len(x), n_features, n_features)))[n]
        noise = known.get("noise", np.zeros_like(x))[n]
        noise = np.diag(noise) if noise.ndim == 1 else noise
        at = np.flatnonzero(~np.isnan(x[n]))
        scatter = covariances[k] if dof is None else covariances[k] * (dof[k] - 2) / dof[k]
        total = (r @ scatter @ r.T + noise)[np.ix_(at, at)]
        if at.size:
            mean = (r @ means[k])[at]
            density = multivariate_normal(mean, total) if dof is None else multivariate_t(mean, total, dof[k])
            joint[n, k] = density.logpdf(x[n][at])
        joint[n, k] += log_weights[k]
        if "log_prior" in known:
            joint[n, k] += known["log_prior"][n, k]
        if known.get("labels", KNOWN * 0 - 1)[n] not in (-1, k):
            joint[n, k] = -np.inf
    if "groups" in known:  # of each row an equal part of its group's, but for a constant of the row
        alone = joint - log_weights
        for n, g in enumerate(known["groups"]):
            rows = [n] if g < 0 else np.flatnonzero(known["groups"] == g)
            whole = alone[rows].sum(0) + log_weights
            joint[n] = whole - logsumexp(whole) * (1 - 1 / len(rows))
    return joint


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_densities_are_scipys_row_by_row(name, double):
    params, known = begin("full"), OBSERVATIONS[name]
    joint = by_scipy(params, known)
    calls = [jaxgmm.e_step, jaxgmm.log_prob, jaxgmm.predict, jaxgmm.score]
    if not {"labels", "log_prior", "groups"} & set(known):
        calls.append(jaxgmm.component_log_prob)
    (resp, log_prob), again, labels, mean, *own = quick_jit(lambda *a: [f(*a) for f in calls])(
        params, data(name)
    )
    assert_allclose(log_prob, logsumexp(joint, axis=1), rtol=1e-12, atol=1e-12)
    assert_allclose(resp, np.exp(joint - logsumexp(joint, axis=1)[:, None]), rtol=1e-9, atol=1e-13)
    assert_allclose(again, log_prob, rtol=1e-13)
    assert (np.asarray(labels) == joint.argmax(1)).all()
    assert_allclose(mean, np.average(log_prob, weights=known.get("sample_weight")), rtol=1e-12)
    for of_each in own:
        assert_allclose(of_each, joint - np.asarray(params.log_weights), rtol=1e-11, atol=1e-11)


def test_a_students_marginal_is_a_students(double):
    params = begin("student_t(full)")
    for name in ("gaps", "labels"):
        expected = logsumexp(by_scipy(params, OBSERVATIONS[name]), axis=1)
        assert_allclose(jaxgmm.log_prob(params, data(name)), expected, rtol=1e-12, atol=1e-12)


# What other structures read of the second moments, the next test compares with "full".
@pytest.mark.parametrize("name", ["full", "VVE"])
def test_a_fit_ends_where_the_observed_likelihood_is_stationary(name, double):
    """Of every kind of observation at once; densities are SciPy's; no plain step lowers the likelihood."""
    rows = seen(EVERYTHING)
    plain = quick_fit(begin(name), rows, tol=0.0, max_iter=12, accelerate=False, reg_covar=0.0)
    history = np.asarray(plain.history[:12])
    assert np.diff(history).min() > -1e-13 * abs(history).max()
    result = quick_fit(begin(name), rows, tol=1e-10, max_iter=5000, reg_covar=0.0)
    assert result.status == Status.CONVERGED
    log_prob, slope = density_and_slope(result.params, rows)
    assert slope < 1e-8, slope
    expected = logsumexp(by_scipy(result.params, EVERYTHING), axis=1)
    assert_allclose(log_prob, expected, rtol=1e-12, atol=1e-12)


def test_a_step_of_restricted_covariances_has_the_averages_of_a_full_one(double):
    """From one mixture of equal spheres: the densities are equal, and so are the averages of the scatter."""
    rows, means = seen(EVERYTHING), np.asarray(begin("full").means)
    weights, variance = np.array([0.2, 0.3, 0.5]), 1.5
    steps = {}
    for name, shape in (("full", np.eye(D)), ("tied", np.eye(D)), ("diag", np.ones(D)), ("spherical", 1.0)):
        each = shape if name == "tied" else np.broadcast_to(shape, (K, *np.shape(shape)))
        start = jaxgmm.GMMParams(np.log(weights), means, variance**0.5 * each, *get_model(name))
        steps[name], _ = on_host(quick_step(start, rows, reg_covar=0.0))
    full = steps["full"]
    shares, covariances = np.exp(full.log_weights), full.scale @ full.scale.swapaxes(1, 2)
    variances = np.einsum("kdd->kd", covariances)
    close = functools.partial(assert_allclose, rtol=1e-10, atol=1e-12)
    for name in ("tied", "diag", "spherical"):
        with case(name):
            close(steps[name].log_weights, full.log_weights)
            close(steps[name].means, full.means)
    tied = steps["tied"].scale
    close(tied @ tied.T, np.einsum("k,kde->de", shares, covariances))
    close(steps["diag"].scale ** 2, variances)
    close(steps["spherical"].scale ** 2, variances.mean(1))


def test_a_background_and_students_with_gaps_end_at_a_stationary_point_too(double):
    for name, known in (("background(diag)", EVERYTHING), ("student_t(full)", OBSERVATIONS["weights"])):
        result = quick_fit(begin(name), seen(known), tol=1e-10, max_iter=5000, reg_covar=0.0)
        assert result.status == Status.CONVERGED
        params = result.params

        def likelihood(means, log_weights, params=params, known=known):
            log_weights = jax.nn.log_softmax(log_weights)
            p = dataclasses.replace(params, means=means, log_weights=log_weights)
            return jaxgmm.score(p, seen(known))

        slopes = quick_jit(jax.grad(likelihood, (0, 1)))(params.means, params.log_weights)
        assert max(float(jnp.abs(a).max()) for a in slopes) < 1e-7


def test_what_says_nothing_changes_nothing(double):
    """Also inside `jit`, where nobody can see that there are no gaps, no noise and no labels."""
    start, expected = begin("full"), quick_step(begin("full"), X)

    @quick_jit
    def step(x, noise, labels, log_prior):
        rows = observe(x, missing="nan", noise=noise, labels=labels, log_prior=log_prior)
        assert rows.observed is not None
        return jaxgmm.em_step(start, rows)

    found = step(X, np.zeros_like(X), np.full(N, -1), np.zeros((N, K)))
    assert_allclose(found[1].log_likelihood, expected[1].log_likelihood, rtol=1e-13)
    close = functools.partial(assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(close, found[0], expected[0])
    seen_at_once = observe(X, missing="nan", noise=0.0, labels=np.full(N, -1), log_prior=np.zeros((N, K)))
    assert seen_at_once.is_plain


def test_a_feature_that_is_never_observed_leaves_the_fit_of_the_others(double):
    """The fit's marginal mixture is a fixed point for the others' data, with the same likelihood."""
    kept, known = np.array([0, 2]), EVERYTHING | {"X": np.where(np.arange(D) == 1, np.nan, X)}
    found = quick_fit(begin("full"), seen(known), tol=1e-12, max_iter=5000, reg_covar=0.0)
    assert found.status == Status.CONVERGED
    marginal = jaxgmm.distributions.marginal(found.params, kept.tolist())
    others = seen({k: v[:, kept] if k in ("X", "noise") else v for k, v in known.items()})
    after, moments = quick_step(marginal, others, reg_covar=0.0)
    assert_allclose(found.log_likelihood, moments.log_likelihood / moments.total_weight, rtol=1e-10)
    close = functools.partial(assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, after, marginal)
    assert np.abs(np.asarray(marginal.means - begin("full").means[:, kept])).max() > 1e-2


def test_infinite_noise_is_a_missing_entry(double):
    infinite = observe(X, noise=np.where(SEEN, NOISE, np.inf))
    gaps = observe(GAPS, missing="nan", noise=NOISE)
    log_prob = jaxgmm.log_prob(begin("full"), infinite)
    assert_allclose(log_prob, jaxgmm.log_prob(begin("full"), gaps), rtol=1e-14)
    inside = quick_jit(lambda s: jaxgmm.log_prob(begin("full"), observe(X, noise=s)))
    assert_allclose(inside(np.where(SEEN, NOISE, np.inf)), log_prob, rtol=1e-13)


def test_rows_by_pattern_and_one_by_one_have_the_same_sums(double):
    some = {"X": np.tile(GAPS, (3, 1)), "missing": "nan", "sample_weight": np.tile(WEIGHT, 3)}
    alike = some | {"noise": np.array([0.1, 0.2, 0.3])}
    for name, known in (("full", some), ("factor(1)", alike)):
        rows = seen(known)
        tiled = in_tiles(rows, get_model(name).covariance)
        assert rows.pattern is not None
        assert tiled.tile
        assert_allclose(tiled.weight.sum(), rows.weight.sum(), rtol=1e-12)
        grouped, alone = (quick_step(begin(name), d) for d in (rows, rows.by_row()))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-9, atol=1e-9), grouped, alone)


@quick_jit
def parts_of_moments(params, y):
    """What a structure reads of Σ y yᵀ, y (K, D, D): of the matrices, and of the residuals themselves."""
    matrices = jnp.einsum("kdb,keb->kde", y, y)
    return params.covariance.part_of(params.scatter, matrices), params.covariance.moments(
        params.scatter, y, jnp.ones((K, D))
    )


def test_a_structures_part_of_a_matrix_is_that_of_residuals_with_this_sum(double):
    y = np.linalg.cholesky(np.stack([np.cov(r) for r in np.random.default_rng(0).normal(size=(K, D, 9))]))
    for name in ("full", "tied", "diag", "spherical", "factor(1)"):
        with case(name):
            of_matrices, of_residuals = parts_of_moments(begin(name), y)
            close = functools.partial(assert_allclose, rtol=1e-12, atol=1e-12)
            jax.tree.map(close, of_matrices, of_residuals)


def deconvolve(weights, means, covariances, x, noise, projection, n_steps):
    """Extreme deconvolution (Bovy, Hogg & Roweis 2011, equations 16-20) in plain NumPy."""
    for _ in range(n_steps):
        total = np.einsum("ned,kdf,ngf->nkeg", projection, covariances, projection)
        total += np.stack([np.diag(s) for s in noise])[:, None]
        gap = x[:, None] - np.einsum("ned,kd->nke", projection, means)
        inverse = np.linalg.inv(total)
        length = np.einsum("nke,nkef,nkf->nk", gap, inverse, gap)
        joint = np.log(weights) - 0.5 * (length + np.linalg.slogdet(2 * np.pi * total)[1])
        resp = np.exp(joint - logsumexp(joint, axis=1)[:, None])
        gain = np.einsum("kde,nfe,nkfg->nkdg", covariances, projection, inverse)
        inner = means + np.einsum("nkdg,nkg->nkd", gain, gap)
        spread = covariances - np.einsum("nkdg,nge,kef->nkdf", gain, projection, covariances)
        counts = resp.sum(0)
        weights = counts / counts.sum()
        means = np.einsum("nk,nkd->kd", resp, inner) / counts[:, None]
        off = inner - means
        products = np.einsum("nkd,nke->nkde", off, off) + spread
        covariances = np.einsum("nk,nkde->kde", resp, products) / counts[:, None, None]
    return weights, means, covariances


def test_ten_steps_are_those_of_extreme_deconvolution(double):
    known, start = OBSERVATIONS["projections"], begin("full")
    arguments = map(np.asarray, (start.weights, start.means, start.covariances))
    expected = deconvolve(*arguments, known["X"], known["noise"], known["projection"], 10)
    found = jaxgmm.fit(
        start, data("projections"), tol=0.0, max_iter=10, accelerate=False, reg_covar=0.0
    ).params
    for a, b in zip((found.weights, found.means, found.covariances), expected, strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_noisy_rows_recover_the_mixture_they_come_from(double):
    n = 5000
    draw = np.random.default_rng(0)
    truth = jaxgmm.make_params([0.4, 0.6], [[-1.5, 0.0], [1.5, 1.0]], [[1.0, 1.0], [0.5, 0.8]], "diag")
    z = np.asarray(jaxgmm.sample(jax.random.key(0), truth, n)[0])
    noise = draw.uniform(0.1, 1.0, (n, 2))
    rows = observe(z + np.sqrt(noise) * draw.normal(size=z.shape), noise=noise)
    result = quick_fit(truth, rows)
    errors = quick_jit(jaxgmm.inference.standard_errors)(result.params, rows)
    for field in ("weights", "means", "covariances"):
        away = np.asarray(getattr(result.params, field)) - np.asarray(getattr(truth, field))
        assert (np.abs(away) < 3 * np.asarray(getattr(errors, field)) + 1e-12).all(), field
    blind = quick_fit(truth, observe(rows.x, noise=1e-9 * noise))
    assert np.asarray(blind.params.covariances)[0, 0, 0] > 1.3  # the noise would be taken for spread


def numbers_after(iterate, start):
    """Numbers of a mixture after `iterate`, and their derivatives by rows, noise and weights: one program."""

    def value(x, noise, weight):
        rows = observe(x, missing="nan", noise=noise, sample_weight=weight, labels=KNOWN[:80])
        params = iterate(start, rows)
        return (params.means**2).sum() + params.covariances.sum() + params.weights[0]

    return quick_jit(jax.value_and_grad(value, argnums=(0, 1, 2)))


@functools.cache
def fit_with_slopes():
    def iterate(start, rows):
        return jaxgmm.fit(start, rows, tol=1e-13, max_iter=5000).params

    return numbers_after(iterate, begin("diag"))


@functools.cache
def step_with_slopes():
    """A step's derivatives are what those of a fit are made of."""
    return numbers_after(lambda start, rows: jaxgmm.em_step(start, rows)[0], begin("full"))


@pytest.mark.parametrize("program", [fit_with_slopes, step_with_slopes], ids=["fit, diag", "step, full"])
def test_derivatives_by_rows_noise_and_weights_are_differences(program, double):
    value_and_slopes = program()
    draw = np.random.default_rng(0)
    given = [a[:80] for a in (GAPS, 0.002 * NOISE + 0.001, WEIGHT)]
    directions = [draw.normal(size=a.shape) * s for a, s in zip(given, (1.0, 0.01, 0.2), strict=True)]
    step = 2e-5
    ahead, back = (
        float(value_and_slopes(*(a + t * b for a, b in zip(given, directions, strict=True)))[0])
        for t in (step, -step)
    )
    slopes = map(np.asarray, value_and_slopes(*given)[1])
    slope = sum(np.nansum(a * b) for a, b in zip(slopes, directions, strict=True))
    assert_allclose(slope, (ahead - back) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("program", [fit_with_slopes, step_with_slopes], ids=["fit, diag", "step, full"])
def test_a_derivative_by_noise_that_is_zero_is_one_sided(program, double):
    noise = np.where(np.arange(80)[:, None] % 2 == 0, 0.0, 0.01 * NOISE[:80])
    value_and_slopes = program()
    slope = np.asarray(value_and_slopes(X[:80], noise, WEIGHT[:80])[1][1])
    assert np.isfinite(slope).all()
    direction = (noise == 0).astype(float)
    step = 1e-6
    ahead = [float(value_and_slopes(X[:80], noise + i * step * direction, WEIGHT[:80])[0]) for i in range(3)]
    difference = (-3 * ahead[0] + 4 * ahead[1] - ahead[2]) / (2 * step)
    assert_allclose((slope * direction).sum(), difference, rtol=1e-4)


def test_float32_keeps_its_digits_at_an_offset():
    offset = np.float32(1000.0)
    known = EVERYTHING | {"noise": NOISE}
    shifted = known | {"X": GAPS.astype(np.float32) + offset}
    start = begin("full", "float32")
    moved = dataclasses.replace(start, means=start.means + offset)
    near = quick_fit(start, seen(known, "float32"), tol=0.0, max_iter=20)
    far = quick_fit(moved, seen(shifted, "float32"), tol=0.0, max_iter=20)
    # The rows themselves are rounded by 1000 ε/2 = 3e-5.
    assert_allclose(np.asarray(far.params.means) - offset, near.params.means, atol=2e-4)
    assert_allclose(far.params.covariances, near.params.covariances, atol=5e-4)
    with x64(True):
        double = quick_fit(begin("full"), seen(known), tol=0.0, max_iter=20)
        covariances = np.asarray(double.params.covariances)
    assert_allclose(near.params.covariances, covariances, rtol=2e-4, atol=1e-4)


def test_labels_of_all_rows_are_one_m_step(double):
    resp = np.eye(K)[LABELS]
    expected = jaxgmm.m_step(resp, X, reg_covar=0.0)
    found, _ = jaxgmm.em_step(begin("full"), observe(X, labels=LABELS), reg_covar=0.0)
    assert_allclose(found.means, expected.means, rtol=1e-9)
    assert_allclose(found.covariances, expected.covariances, rtol=1e-8, atol=1e-10)
    resp, _ = jaxgmm.e_step(found, observe(X, labels=LABELS))
    assert (np.asarray(resp) == np.eye(K)[LABELS]).all()


def test_soft_labels_of_certainty_are_labels(double):
    with np.errstate(divide="ignore"):
        soft = np.where(KNOWN[:, None] < 0, 0.0, np.log(np.eye(K)[np.maximum(KNOWN, 0)]))
    a, b = (jaxgmm.em_step(begin("full"), d) for d in (observe(X, log_prior=soft), data("labels")))
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-12), a, b)


def test_a_weight_is_a_repetition(double):
    counts = np.random.default_rng(0).integers(0, 3, N)
    counts[np.cumsum(counts) > N] = 0
    rows = np.append(np.repeat(np.arange(N), counts), np.zeros(N - counts.sum(), int))  # one program for both
    known = EVERYTHING | {"noise": NOISE}
    weighted = seen(known | {"sample_weight": counts})
    repeated = {k: v if k == "missing" else v[rows] for k, v in known.items()}
    repeated = seen(repeated | {"sample_weight": np.arange(N) < counts.sum()})
    a, b = (quick_step(begin("full"), rows, reg_covar=0.0) for rows in (weighted, repeated))
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-10, atol=1e-12), a, b)


def test_imputed_entries_are_conditional_means_and_draws_have_their_spread(double):
    params = begin("full")
    filled = np.asarray(jaxgmm.impute(params, GAPS))
    assert (filled[SEEN] == X[SEEN]).all()
    assert_allclose(filled[0], np.asarray(params.weights @ params.means), rtol=1e-12)  # nothing observed
    n = int(np.flatnonzero((SEEN == [True, False, True]).all(1))[0])
    given = jaxgmm.distributions.condition(params, [0, 2], X[n, [0, 2]])
    mean, square = (np.asarray(given.weights @ v) for v in (given.means, given.means**2))
    assert_allclose(filled[n, 1], mean[0], rtol=1e-12)
    draws = jaxgmm.impute(params, np.repeat(GAPS[n : n + 1], 40_000, 0), jax.random.key(0))
    assert (np.asarray(draws)[:, [0, 2]] == X[n, [0, 2]]).all()
    variance = float(given.weights @ given.covariances[:, 0, 0] + square[0] - mean[0] ** 2)
    assert_allclose(np.asarray(draws)[:, 1].mean(), mean[0], atol=5 * (variance / 40_000) ** 0.5)
    assert_allclose(np.asarray(draws)[:, 1].var(), variance, rtol=0.05)


def test_draws_of_noisy_rows_have_the_features_own_distribution(double):
    """Rows from the mixture with noise: what is drawn given them is distributed as the mixture is."""
    params = begin("full")
    z = np.asarray(jaxgmm.sample(jax.random.key(3), params, 40_000)[0])
    noise = np.array([0.5, 1.0, 0.2])
    x = z + np.sqrt(noise) * np.random.default_rng(0).normal(size=z.shape)
    rows = observe(
        np.where(np.random.default_rng(1).random(z.shape) < 0.3, np.nan, x), missing="nan", noise=noise
    )
    drawn = np.asarray(jaxgmm.impute(params, rows, jax.random.key(4)))
    assert_allclose(np.cov(drawn.T), np.cov(z.T), atol=0.12)
    shrunk = np.asarray(jaxgmm.impute(params, rows))
    assert np.trace(np.cov(shrunk.T)) < 0.95 * np.trace(np.cov(z.T))


@quick_jit
def begun(rows):
    """The starts of the whole data, by each way to make them."""
    options = {"model": get_model("full"), "n_components": K, "block_size": N}
    return [
        starts.start(jax.random.key(0), K, rows, summarise(rows, 1e-6), None, init=i, **options)
        for i in ("kmeans++", "kmeans", "random_points", "random_resp")
    ]


def test_starts_look_at_observed_entries_only(double):
    """A value that stands in a missing entry's place is nowhere looked at."""
    rows = observe(GAPS, missing="nan", labels=KNOWN)
    other = dataclasses.replace(rows, x=np.where(rows.observed, rows.x, 77.0))
    for a, b in zip(begun(rows), begun(other), strict=True):
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12), a, b)
        assert np.isfinite(a.means).all()


def test_components_begin_at_their_labelled_rows(double):
    truth = np.stack([X[k == LABELS].mean(0) for k in range(K)])
    # Rows that might have gaps and have none, for one program.
    rows = observe(GAPS, missing="nan", labels=KNOWN)
    rows = dataclasses.replace(rows, x=X, observed=np.ones((N, D), bool))
    for start in begun(rows)[:3]:  # random responsibilities know of none
        away = np.linalg.norm(np.asarray(start.means)[:, None] - truth, axis=-1)
        assert (away.argmin(1) == np.arange(K)).all()
        assert np.diagonal(away).max() < 1.2


ENTRY_POINTS = {
    "em_step, trimmed": lambda rows, start, name: jaxgmm.em_step(start, rows, trim=0.1),
    "step": lambda rows, start, name: jaxgmm.em.step(jaxgmm.em.init(start, rows), rows)[1],
    "fit_restarts": lambda rows, start, name: jaxgmm.fit_restarts(
        jax.random.key(0), rows, K, covariance_type=name, n_init=2, max_iter=3
    ),
    "fit_restarts from starts": lambda rows, start, name: jaxgmm.fit_restarts(
        jax.random.key(0), rows, K, init=jax.tree.map(lambda a: jnp.stack([a, a]), start), max_iter=3
    ),
    "fit_components": lambda rows, start, name: jaxgmm.fit_components(
        jax.random.key(0), rows, (K, K + 1), covariance_type=name, n_init=2, max_iter=3
    ),
    "fit_best": lambda rows, start, name: jaxgmm.fit_best(
        jax.random.key(0), rows, K, covariance_type=name, budget=60, max_iter=5
    ),
    "select": lambda rows, start, name: (
        jaxgmm.select(
            jax.random.key(0), rows, (K,), covariance_types=("spherical",), budget=60, criterion="heldout"
        ).best
    ),
    "fit_sharded": lambda rows, start, name: jaxgmm.fit_sharded(
        start, rows, mesh=jax.sharding.Mesh(jax.devices(), ("rows",)), max_iter=3
    ),
    "fit_gradient": lambda rows, start, name: jaxgmm.fit_gradient(
        start, rows, optax.adam(1e-3), n_steps=2, batch_size=50, key=jax.random.key(0)
    ),
    "fit_unrolled": lambda rows, start, name: jaxgmm.gradients.fit_unrolled(start, rows, 2),
    "default_prior": lambda rows, start, name: jaxgmm.em_step(
        start, rows, prior=jaxgmm.default_prior(rows, K, name)
    ),
    "bootstrap": lambda rows, start, name: jaxgmm.inference.bootstrap(
        jax.random.key(0), start, rows, n_replicates=2, max_iter=2
    ),
    "information": lambda rows, start, name: jaxgmm.inference.information(start, rows).observed,
    "influence": lambda rows, start, name: jaxgmm.inference.influence(
        start, rows, function=lambda p: p.means
    ),
    "convergence_rate": lambda rows, start, name: jaxgmm.inference.convergence_rate(start, rows),
    "elbo": lambda rows, start, name: jaxgmm.elbo(start, jaxgmm.e_step(start, rows)[0], rows),
    "impute": lambda rows, start, name: jaxgmm.impute(start, rows),
    "gradient": lambda rows, start, name: jax.grad(
        lambda x: jaxgmm.fit(start, dataclasses.replace(rows, x=x), tol=1e-3).log_likelihood
    )(rows.x),
    "leave_one_out": lambda rows, start, name: jaxgmm.inference.leave_one_out(start, rows),
    "m_step": lambda rows, start, name: jaxgmm.m_step(np.ones((N, 1), np.float32), rows),
    "fit_variational": lambda rows, start, name: jaxgmm.fit_variational(
        np.full((N, K), 1 / K, np.float32), rows, covariance_type=name, max_iter=3
    ),
    "summary": lambda rows, start, name: str(jaxgmm.summary(start, rows)),
}
# Each kind of observation, with a component that has a way of its own through it, or none.
PAIRS = (
    ("full", "gaps and noise"),
    ("diag", "projections"),
    ("diag", "soft labels"),
    ("student_t(full)", "gaps"),
    ("background(spherical)", "weights"),
    ("spherical", "groups"),
)
# A summary with its criteria is computed for every pair, fits are above, and the
# others for one that compiles fast: test_what_goes_together.py goes through all pairs up to their first
# program, and how observations are summed does not depend on who asks.
ONE = (("diag", "gaps and noise"),)
SEVERAL = {"summary": PAIRS, "m_step": PAIRS}
# With gaps or noise these are computed elsewhere: derivatives, steps, leave_one_out, standard errors below;
# restarts in test_held.py; the search by the estimators of test_missing.py; fit_components by the command
# line.
ELSEWHERE = (
    "gradient",
    "step",
    "leave_one_out",
    "information",
    "fit_best",
    "fit_restarts",
    "fit_restarts from starts",
    "fit_components",
)
REFUSALS = (
    "no density for rows with",
    "no starts can be made of projected rows",
    "must have a column for each",
    "takes complete rows",
    "which this function does not take",
    "must be Gaussian",
    "Gaussian components",
    "without a background",
    "no conditional means",
    "prior must be",
    "needs complete rows",
    "free coordinates",
    "rows in groups are not for",
    "for a variational fit",
)


@pytest.mark.parametrize("entry", [name for name in ENTRY_POINTS if name not in ELSEWHERE])
@pytest.mark.filterwarnings("ignore:the observed information", "ignore:the maximum of the likelihood")
def test_every_pair_of_an_observation_and_an_entry_point_works_or_is_refused_by_name(entry):
    worked, refused = 0, []
    for name, kind in SEVERAL.get(entry, ONE):
        rows, start = data(kind, "float32"), begin(name, "float32")
        call = functools.partial(ENTRY_POINTS[entry], name=name)
        try:
            found = call(rows, start)
        except (ValueError, TypeError) as error:
            refused.append((name, kind, str(error)))
            continue
        worked += 1
        if entry == "influence":  # the start is no maximum
            continue
        for a in jax.tree.leaves(found):
            if isinstance(a, jax.Array) and a.dtype.kind == "f":
                assert not np.isnan(a).any(), (name, kind)
    unnamed = [case for case in refused if not any(words in case[2] for words in REFUSALS)]
    assert not unnamed
    assert worked > 0 or entry == "m_step"


def test_what_cannot_be_observed_is_refused():
    for known, words in (
        ({"X": GAPS}, "observe"),
        ({"X": GAPS, "missing": "NaN"}, "missing must be one of"),
        ({"X": np.where(SEEN, X, np.inf), "missing": "nan"}, "infinite entry|got inf"),
        ({"X": X, "noise": NOISE[:5]}, "noise must be variances"),
        ({"X": X, "noise": -NOISE}, "must not be negative"),
        ({"X": X, "noise": NOISE * np.nan}, "must not be NaN"),
        ({"X": X, "noise": np.ones((N, D, D))}, "positive definite"),
        ({"X": X, "noise": np.triu(np.ones((N, D, D))) + 2 * np.eye(D)}, "symmetric"),
        ({"X": X, "projection": PROJECTION}, "projection must have shape"),
        ({"X": X, "labels": KNOWN[:3]}, "labels must have shape"),
        ({"X": X, "labels": KNOWN.astype(float)}, "integers"),
        ({"X": X, "labels": KNOWN - 5}, "at least -1"),
        ({"X": X, "log_prior": np.full((N, K), -np.inf)}, "rules every component out for row 0"),
        ({"X": X, "log_prior": np.full((N, K), np.nan)}, "must be logarithms"),
        ({"X": X, "log_prior": np.zeros(N)}, "log_prior must have shape"),
        ({"X": X, "sample_weight": -WEIGHT}, "must not be negative"),
        ({"X": X, "groups": GROUPS[:4]}, "groups must have shape"),
        ({"X": X, "groups": GROUPS * 0.5}, "integers"),
        ({"X": X, "groups": GROUPS, "sample_weight": WEIGHT}, "a group counts once"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            observe(**known)


def test_what_does_not_fit_the_mixture_is_refused(double):
    params = begin("full")
    for call, words in (
        (lambda: jaxgmm.fit(params, observe(X, labels=LABELS + 1)), "labels must be below n_components = 3"),
        (lambda: jaxgmm.fit(params, observe(X, log_prior=np.eye(N, 2))), "a column for each of 3"),
        (lambda: jaxgmm.fit(params, data("gaps"), WEIGHT), "sample_weight belongs to the data"),
        (lambda: jaxgmm.fit(params, observe(X[:, :2])), "must have the 3 features"),
        (lambda: jaxgmm.fit(begin("student_t(full)"), data("noise")), "no density for rows with noise"),
        (lambda: jaxgmm.log_prob(begin("background(full)"), data("projections")), "rows with projections"),
        (
            lambda: jaxgmm.fit(params, data("gaps"), options=jaxgmm.EMOptions(kernel="quadratic")),
            "complete rows",
        ),
        (lambda: jaxgmm.impute(begin("background(full)"), data("gaps")), "no conditional means"),
        (lambda: jaxgmm.impute(begin("student_t(full)"), GAPS, jax.random.key(0)), "Gaussian components"),
        (
            lambda: jaxgmm.fit_restarts(jax.random.key(0), data("gaps"), 2, init="hierarchical"),
            "complete rows",
        ),
        (lambda: jaxgmm.select(jax.random.key(0), data("labels"), (2, 3)), "labels must be below"),
        (
            lambda: jaxgmm.select(jax.random.key(0), data("groups"), (2,), criterion="cv"),
            "not for criterion='cv'",
        ),
        (lambda: jaxgmm.em_step(params, data("groups"), axis_name="rows"), "not for em_step with axis_name"),
        (
            lambda: jaxgmm.inference.bootstrap(jax.random.key(0), params, data("weights"), kind="parametric"),
            "sample_weight must be None for kind='parametric'",
        ),
        (
            lambda: jaxgmm.inference.bootstrap_likelihood_ratio(jax.random.key(0), data("soft labels"), K),
            "log_prior must be None for bootstrap_likelihood_ratio",
        ),
        (
            lambda: jaxgmm.inference.bootstrap_likelihood_ratio(jax.random.key(0), data("labels"), K - 1),
            "labels must be below n_components = 2",
        ),
        (
            lambda: jaxgmm.inference.leave_one_out(begin("student_t(full)"), data("gaps")),
            "leave_one_out of incomplete or noisy rows needs Gaussian components",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


def test_masked_arrays_and_frames_say_what_is_missing():
    pandas = pytest.importorskip("pandas")
    masked = observe(np.ma.masked_array(X, ~SEEN), missing="nan")
    frame = observe(pandas.DataFrame(GAPS).convert_dtypes(), missing="nan")
    for rows in (masked, frame):
        assert (np.asarray(rows.observed) == SEEN).all()
        assert_allclose(np.asarray(rows.x)[SEEN], X[SEEN], rtol=1e-6)


def test_degrees_of_freedom_are_found_with_gaps():
    draw = np.random.default_rng(0)
    radial = np.sqrt(4.0 / draw.chisquare(4.0, (4000, 1)))
    z = draw.normal(size=(4000, 3)) * radial
    gaps = np.where(draw.random(z.shape) < 0.3, np.nan, z).astype(np.float32)
    start = jaxgmm.make_params([1.0], np.zeros((1, 3)), np.ones((1, 3)), student_t("diag"))
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), start)
    fitted = quick_fit(start, observe(gaps, missing="nan")).params
    assert 3.2 < float(fitted.scale["dof"][0]) < 5.0
    assert_allclose(fitted.scale["scatter"][0] ** 2, 1, atol=0.1)


def test_data_are_shown_in_a_line(double):
    assert repr(data("gaps and noise")) == f"Data({N} × {D}, float64: missing entries, noise, labels)"
    assert repr(observe(X)) == f"Data({N} × {D}, float64)"
    inside = []
    jax.jit(lambda x: inside.append(repr(observe(x))) or x)(X)
    assert inside == [f"Data({N} × {D}, float64)"]
    assert repr(jax.tree.map(lambda _: None, observe(X))) == "Data(?, ?)"


def test_leaving_out_a_row_with_gaps_is_what_a_refit_gives(double):
    n, draw = 60, np.random.default_rng(0)
    x = draw.normal(size=(n, 2)) + np.where(np.arange(n) < 25, 4, 0)[:, None]
    seen_entries = draw.random((n, 2)) > 0.3
    seen_entries[0] = False
    start = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [4.0, 4.0]], [1.0, 1.0], "spherical")
    fit = functools.partial(quick_fit, tol=1e-12, max_iter=5000, reg_covar=0.0)
    some = np.arange(0, n, 8)
    leave_out = quick_jit(functools.partial(jaxgmm.inference.leave_one_out, rows=some))

    def numbers(params, log_prob):
        return np.concatenate([np.ravel(a) for a in (params.weights, params.means, params.scale, log_prob)])

    rows = dataclasses.replace(observe(np.where(seen_entries, x, np.nan), missing="nan"), weight=np.ones(n))
    rows = rows.by_row()
    whole = fit(start, rows).params
    left_out = leave_out(whole, rows)
    assert left_out.valid
    errors = []
    for i, row in enumerate(some):
        real = fit(whole, dataclasses.replace(rows, weight=(np.arange(n) != row).astype(float))).params
        guess = jax.tree.map(lambda a, i=i: a[i], left_out.params)
        before, after = (numbers(p, jaxgmm.log_prob(p, rows)[row]) for p in (whole, real))
        error = np.abs(numbers(guess, left_out.log_prob[row]) - after).max()
        errors.append(error / max(np.abs(after - before).max(), 1e-6))
    assert np.median(errors) < 0.02
    assert max(errors) < 0.2
    assert left_out.leverage[0] < 1e-20  # nothing is observed of it


def test_rows_are_drawn_and_seen_as_those_of_the_data(double):
    n = 20_000
    params = begin("full")
    draw, draw_as = np.random.default_rng(0), quick_jit(sample_as)
    R, S = draw.normal(size=(2, D)), np.array([[0.5, 0.2], [0.2, 0.3]])
    labels = np.where(np.arange(n) % 2 == 0, 1, -1)
    rows = observe(np.zeros((n, 2)), projection=R, noise=np.broadcast_to(S, (n, 2, 2)), labels=labels)
    drawn = draw_as(jax.random.key(0), params, rows)
    assert ((np.asarray(drawn.label) >= 0) == (labels >= 0)).all()
    z = np.asarray(jaxgmm.sample(jax.random.key(1), params, 2 * n)[0])
    assert_allclose(np.cov(np.asarray(drawn.x).T), R @ np.cov(z.T) @ R.T + S, rtol=0.05, atol=0.1)
    shares = np.bincount(np.asarray(drawn.label)[::2]) / (n / 2)
    assert_allclose(shares, params.weights, atol=0.02)
    gaps = draw_as(jax.random.key(0), params, data("gaps and noise"))
    assert (np.asarray(gaps.x)[~SEEN] == 0).all()
    assert (np.asarray(gaps.x)[SEEN] != 0).all()


def test_a_summary_is_of_what_is_observed(double):
    params, rows = begin("full"), data("weights")
    said = str(jaxgmm.summary(params, rows))
    resp, log_prob = jaxgmm.e_step(params, rows)
    missing = 100 * (1 - SEEN.mean())
    assert f"On {N} samples of weight {WEIGHT.sum():.6g} with {missing:.3g} % of the entries missing" in said
    assert f"log-likelihood {WEIGHT @ np.asarray(log_prob):.6g} " in said
    values = [f(params, rows) for f in (jaxgmm.aic, jaxgmm.bic, jaxgmm.icl)]
    assert "AIC {:.1f}   BIC {:.1f}   ICL {:.1f} ".format(*map(float, values)) in said
    counts = r"\s+".join(f"{n:.1f}" for n in WEIGHT @ np.asarray(resp))
    assert re.search(r"samples\s+" + counts, said)
    with pytest.raises(TypeError, match="sample_weight belongs to the data"):
        jaxgmm.summary(params, rows, WEIGHT)
    assert "missing" not in str(jaxgmm.summary(params, data("labels")))


def test_a_stream_says_which_of_its_rows_cannot_be_taken():
    spoiled = GAPS.astype(np.float32)
    spoiled[5, 1] = np.inf
    start = begin("full", "float32")
    with pytest.raises(ValueError, match="row 5, column 1: must be finite in float32; got inf"):
        jaxgmm.fit_stream(start, spoiled, missing="nan")
    with pytest.raises(ValueError, match="row 0, column 0"):
        jaxgmm.fit_stream(start, GAPS.astype(np.float32))
    with pytest.raises(ValueError, match="quadratic"):
        jaxgmm.fit_stream(start, spoiled, missing="nan", options=jaxgmm.EMOptions(kernel="quadratic"))


def test_a_fit_of_groups_ends_where_their_likelihood_is_stationary(double):
    rows = data("groups")
    plain = quick_fit(begin("full"), rows, tol=0.0, max_iter=12, accelerate=False, reg_covar=0.0)
    assert np.diff(np.asarray(plain.history[:12])).min() > -1e-13
    result = quick_fit(begin("full"), rows, tol=1e-10, max_iter=2000, reg_covar=0.0)
    assert result.status == Status.CONVERGED
    assert largest_slope(result.params, rows) < 1e-8
    resp, _ = jaxgmm.e_step(result.params, rows)
    for g in range(7, 7 + len(_pairs)):
        one, other = np.asarray(resp)[g == GROUPS]
        assert (one == other).all()
    # The weights are the groups' shares: of 200 rows there are 30 pairs.
    _, first = np.unique(np.asarray(rows.group), return_index=True)
    assert_allclose(result.params.weights, np.asarray(resp)[first].mean(0), atol=1e-8)


def test_groups_of_one_row_are_no_groups_and_order_does_not_matter(double):
    assert observe(X, groups=np.arange(N)).group is None
    order = np.random.default_rng(0).permutation(N)
    moved = observe(GAPS[order], missing="nan", groups=GROUPS[order])
    once = functools.partial(quick_fit, tol=0.0, max_iter=1, accelerate=False)
    a, b = (once(begin("full"), d) for d in (data("groups"), moved))
    close = functools.partial(assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(close, (a.params, a.log_likelihood), (b.params, b.log_likelihood))


def test_rows_that_belong_together_tell_clusters_apart_that_overlap():
    draw = np.random.default_rng(0)
    labels = np.sort(draw.integers(K, size=N))
    centres = 1.2 * np.arange(K)[:, None] * np.ones(D)
    x = (draw.normal(size=(N, D)) + centres[labels]).astype(np.float32)
    groups = np.arange(N) // 8 + N * labels  # up to eight of one cluster
    start = jaxgmm.make_params(np.full(K, 1 / K), centres, np.stack([np.eye(D)] * K))
    rows = observe(x, groups=groups)
    found = np.asarray(jaxgmm.predict(quick_fit(start, rows).params, rows))
    # What the true mixture gets right of single rows: of the outer clusters 0.85, of the one between 0.70.
    alone = (4 * norm.cdf(1.2 * D**0.5 / 2) - 1) / 3
    assert np.mean(found == labels) > 0.97 > alone + 0.15


def test_groups_keep_the_digits_of_float32_at_an_offset():
    offset = np.float32(3e4)
    start = begin("full", "float32")
    moved = dataclasses.replace(start, means=start.means + offset)
    far = X.astype(np.float32) + offset
    near = far - offset  # exact: both fits see the same rows, and start at means that differ by rounding
    a, b = (
        quick_fit(p, observe(x, groups=GROUPS), tol=0.0, max_iter=60).params
        for p, x in ((start, near), (moved, far))
    )
    # Responsibilities about means that are rounded by the offset, 1e-3, would be off by 3e-4.
    assert_allclose(a.covariances, b.covariances, atol=5e-6)
    assert_allclose(a.weights, b.weights, atol=5e-6)


def test_the_certainty_of_groups_is_theirs(double):
    """What a search's `icl` takes from its `bic`, by the responsibilities of groups."""
    params, rows = begin("full"), data("groups")
    found = certainty(jax.tree.map(lambda a: np.asarray(a)[None], params), rows, None, block_size=N)[0]
    bic, icl = (float(f(params, rows)) for f in (jaxgmm.bic, jaxgmm.icl))
    assert_allclose(-2 * found, icl - bic, rtol=1e-6)
    alone = by_scipy(params, OBSERVATIONS["gaps"])
    assert abs(float(found) - (alone.max(1) - logsumexp(alone, axis=1)).sum()) > 1


def test_steps_with_gaps_are_those_of_the_fit(double):
    rows = seen(EVERYTHING)

    @quick_jit
    def four_steps(params):
        def step(state, _):
            return jaxgmm.em.step(state, rows, accelerate=False, tol=0.0)

        return jax.lax.scan(step, jaxgmm.em.init(params, rows), length=4)

    state, info = four_steps(begin("full"))
    expected = quick_fit(begin("full"), rows, accelerate=False, tol=0.0, max_iter=4)
    assert info.n_iter.tolist() == [1, 2, 3, 4]
    assert_allclose(state.params.means, expected.params.means, rtol=1e-9)
    assert_allclose(info.log_likelihood[1:], expected.history[:3], rtol=1e-12)


def test_distances_of_starts_are_those_of_the_observed_entries(double):
    centre = np.array([0.5, -1.0, 2.0])
    gap = np.where(SEEN, X - centre, 0)
    expected = (gap**2).sum(1) * D / np.maximum(SEEN.sum(1), 1)
    anything = np.where(SEEN, X, 1e3)
    assert_allclose(quick_jit(squared_distances)(anything, centre, SEEN), expected, rtol=1e-12)
    # Lloyd's centres are the means of what is observed in their clusters.
    centres = np.asarray(quick_jit(lloyd)(X[:K], anything, np.ones(N), 100, SEEN))
    distances = [np.where(SEEN, X - c, 0) ** 2 for c in centres]
    labels = np.stack([d.sum(1) for d in distances]).argmin(0)
    for k, d in np.ndindex(K, D):
        assert_allclose(centres[k, d], X[(labels == k) & SEEN[:, d], d].mean(), rtol=1e-10)
