"""The variational fit: its bound against evidence in closed form, its posterior against scikit-learn's."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
from numpy.testing import assert_allclose
from scipy.special import betaln, gammaln, logsumexp, multigammaln
from scipy.stats import multivariate_t

import jaxgmm
from jaxgmm.variational import variational_prior
from jaxgmm.variational._ascent import ascend
from jaxgmm.variational._bound import expected
from tests.conftest import case
from tests.problems import LABELS, D, K, N, X
from tests.quick import quick_jit

ONES = np.ones(N)
RESP = np.eye(K)[np.random.default_rng(0).integers(0, K, size=N)]
# Each is a program: every structure, and both kinds of weights.
KINDS = pytest.mark.parametrize(
    ("name", "stick_breaking"),
    [("full", True), ("full", False), ("tied", False), ("diag", True), ("spherical", False)],
    ids=lambda value: {True: "process", False: "dirichlet"}.get(value, value),
)


_fit = quick_jit(jaxgmm.fit_variational, static_argnames="covariance_type")


def fit(resp, x, prior, name="full", weight=ONES, dtype=np.float64, tol=1e-3, max_iter=1000, reg_covar=0.0):
    """`fit_variational`, always with the same arguments and of one shape: most tests share programs."""
    arrays = [np.asarray(a, dtype) for a in (resp, x, weight)]
    return _fit(*arrays, prior=prior, covariance_type=name, tol=tol, max_iter=max_iter, reg_covar=reg_covar)


_weights = quick_jit(lambda q: q.weights)


def weights_of(q):
    """Expected mixing weights."""
    return np.asarray(_weights(q))


@functools.cache
def t_density(rows, name, prior):
    """log p(x) of one Gaussian, as the product of the Student t densities of each row given those before."""
    m, beta, dof = np.asarray(prior.mean, float), float(prior.mean_precision), float(prior.dof)
    scale, d, total = np.asarray(prior.covariance, float), len(prior.mean), 0.0
    for row in map(np.array, rows):
        gap, widen = row - m, (beta + 1) / beta
        if name == "diag":
            one = [multivariate_t(m[j], scale[j] * widen / dof, df=dof).logpdf(row[j]) for j in range(d)]
            total += sum(one)
            scale = scale + gap**2 / widen
        elif name == "spherical":
            total += multivariate_t(m, np.eye(d) * scale * widen / dof, df=d * dof).logpdf(row)
            scale = scale + (gap @ gap) / widen / d
        else:
            free = dof - d + 1
            total += multivariate_t(m, scale * widen / free, df=free).logpdf(row)
            scale = scale + np.outer(gap, gap) / widen
        m, beta, dof = (beta * m + row) / (beta + 1), beta + 1, dof + 1
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """A prior that can be a key of a cache: by identity."""

    mean: np.ndarray
    mean_precision: float
    dof: float
    covariance: np.ndarray


def numbers(prior):
    return Numbers(prior.mean, prior.mean_precision, prior.dof, prior.covariance)


def predictive(x, name, prior):
    return t_density(tuple(map(tuple, x)), name, prior)


def tied_predictive(x, labels, prior):
    """log p(x | z) with one covariance for all components."""
    beta, dof = float(prior.mean_precision), K * float(prior.dof)
    scale, m, value = (
        K * np.asarray(prior.covariance),
        np.asarray(prior.mean),
        -x.size / 2 * np.log(2 * np.pi),
    )

    def log_z():
        return multigammaln(dof / 2, D) - dof / 2 * np.linalg.slogdet(scale / 2)[1]

    value -= log_z()
    for k in range(K):
        own = x[labels == k]
        n, gap = len(own), own.mean(0) - m
        scale = scale + n * np.cov(own.T, bias=True) + beta * n / (beta + n) * np.outer(gap, gap)
        value += D / 2 * np.log(beta / (beta + n))
    dof += len(x)
    return value + log_z()


def of_labels(labels, prior):
    """log p(z), the weights integrated out."""
    n, gamma = np.bincount(labels, minlength=K), float(prior.concentration)
    if not prior.stick_breaking:
        return gammaln(K * gamma) - gammaln(K * gamma + n.sum()) + (gammaln(gamma + n) - gammaln(gamma)).sum()
    later = n[::-1].cumsum()[::-1] - n
    # The last component has all that is left.
    return (betaln(1 + n, gamma + later) - betaln(1, gamma))[:-1].sum()


@KINDS
def test_where_labels_are_certain_the_bound_is_the_evidence_with_them(name, stick_breaking, double):
    """Clusters far apart: the only posterior mass is at one labelling, and the bound is exact there."""
    x = X + np.array([[0.0, 0, 0], [1e4, 0, 0], [0, 1e4, 0]])[LABELS]
    prior = variational_prior(
        x, K, name, stick_breaking=stick_breaking, concentration=0.7, mean_precision=1e-3, dof=4.5,
        covariance={"diag": 2 * np.ones(D), "spherical": 1.5}.get(name, 2 * np.eye(D)),
    )  # fmt: skip
    result = fit(np.eye(K)[LABELS], x, prior, name)
    if name == "tied":
        groups = tied_predictive(x, LABELS, prior)
    else:
        groups = sum(
            predictive(x[labels], name, numbers(prior)) for labels in (k == LABELS for k in range(K))
        )
    assert_allclose(float(result.bound), groups + of_labels(LABELS, prior), rtol=1e-10)
    assert int(result.status) == jaxgmm.Status.CONVERGED


@pytest.mark.parametrize(("name", "stick_breaking"), [("full", True), ("spherical", False)])
def test_the_bound_is_below_the_evidence_summed_over_all_labels(name, stick_breaking, double):
    """Of six samples; the others weigh nothing."""
    n = 6
    weight = (np.arange(N) < n).astype(float)
    prior = variational_prior(X, K, name, weight, stick_breaking=stick_breaking)
    labellings = [np.array(z) for z in itertools.product(range(K), repeat=n)]
    # Every row is in one of the components.
    assert_allclose(logsumexp([of_labels(z, prior) for z in labellings]), 0, atol=1e-12)
    known, x = numbers(prior), X[:n]
    terms = np.array(
        [of_labels(z, prior) + sum(predictive(x[z == k], name, known) for k in range(K)) for z in labellings]
    )
    starts = [int(terms.argmax()), *range(0, len(terms), 100)]
    padded = [np.concatenate([labellings[i], np.zeros(N - n, int)]) for i in starts]
    bounds = [float(fit(np.eye(K)[z], X, prior, name, weight).bound) for z in padded]
    assert max(bounds) < logsumexp(terms)
    # A labelling by itself is a posterior too, and the fit begins there.
    assert (bounds > terms[starts]).all()


@KINDS
def test_the_bound_never_falls(name, stick_breaking, double):
    prior = variational_prior(X, K, name, ONES, stick_breaking=stick_breaking)
    for reg_covar in (0.0, 0.1):
        result = fit(RESP, X, prior, name, reg_covar=reg_covar, tol=1e-5)
        history = np.asarray(result.history)[: int(result.n_iter)]
        assert int(result.status) == jaxgmm.Status.CONVERGED
        assert len(history) > 5
        assert np.diff(history).min() > -64 * np.finfo(float).eps * np.abs(history).max()


@quick_jit
def _looked_at(q):
    """Weights and covariances of a posterior, and its E-step."""
    return q.weights, q.to_params().covariances, *jaxgmm.e_step(expected(q, jnp.zeros(())), X)


@pytest.mark.parametrize(("name", "stick_breaking"), [("full", True), ("full", False), ("tied", False)])
def test_the_posterior_is_scikit_learns(name, stick_breaking, double):
    theirs = sklearn.mixture.BayesianGaussianMixture(
        n_components=K, covariance_type=name, tol=1e-6, max_iter=1000, random_state=0, reg_covar=0,
        weight_concentration_prior_type="dirichlet_process" if stick_breaking else "dirichlet_distribution",
    ).fit(X)  # fmt: skip
    start = sklearn.cluster.KMeans(K, n_init=1, random_state=0).fit(X).labels_
    prior = variational_prior(X, K, name, ONES, stick_breaking=stick_breaking)
    if stick_breaking:
        prior = dataclasses.replace(prior, last_stick_free=True)
    ours = fit(np.eye(K)[start], X, prior, name, tol=1e-6)
    q = ours.posterior
    weights, covariances, resp, log_prob = map(np.asarray, _looked_at(q))
    assert int(ours.n_iter) == theirs.n_iter_
    assert_allclose(weights, theirs.weights_, rtol=1e-9)
    assert_allclose(q.means, theirs.means_, rtol=1e-8, atol=1e-9)
    assert_allclose(q.mean_precision, theirs.mean_precision_, rtol=1e-9)
    assert_allclose(q.dof, np.broadcast_to(theirs.degrees_of_freedom_, K), rtol=1e-9)
    known = theirs.covariances_ if name == "full" else np.stack([theirs.covariances_] * K)
    assert_allclose(covariances, known, rtol=1e-7, atol=1e-9)
    assert_allclose(resp, theirs.predict_proba(X), atol=1e-9)
    # The one Wishart distribution of "tied" has K times the degrees of freedom that scikit-learn takes.
    ahead = log_prob - theirs.score_samples(X)
    assert_allclose(ahead, ahead[0] if name == "tied" else 0, atol=1e-8)


@pytest.mark.parametrize(("name", "stick_breaking"), [("full", True), ("spherical", False)])
def test_weights_are_as_good_as_repetition(name, stick_breaking, double):
    """Every other row twice, and of the same number of rows in all."""
    counts, rows = np.arange(N) % 2 * 2.0, np.repeat(np.arange(1, N, 2), 2)
    prior = variational_prior(X, K, name, counts, stick_breaking=stick_breaking)
    again = variational_prior(X[rows], K, name, ONES, stick_breaking=stick_breaking)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12, atol=1e-14), prior, again)
    by_weight = fit(RESP, X, prior, name, counts, max_iter=10, tol=0.0)
    repeated = fit(RESP[rows], X[rows], prior, name, max_iter=10, tol=0.0)
    assert_allclose(by_weight.bound, repeated.bound, rtol=1e-9)
    assert_allclose(by_weight.posterior.means, repeated.posterior.means, rtol=1e-8, atol=1e-9)


def test_it_vmaps_over_starts_and_stops_each_by_itself(double):
    prior = variational_prior(X, K, "diag")
    starts = np.stack([np.roll(RESP, i, axis=0) for i in range(3)])

    def run(resp):
        return jaxgmm.fit_variational(resp, X, ONES, prior=prior, covariance_type="diag")

    together = jax.tree.map(np.asarray, quick_jit(jax.vmap(run))(starts))
    assert len(set(np.asarray(together.n_iter).tolist())) > 1
    for i, start in enumerate(starts):
        alone = fit(start, X, prior, "diag")
        assert int(alone.n_iter) == int(together.n_iter[i])
        assert_allclose(together.bound[i], alone.bound, rtol=1e-10)
        assert_allclose(together.posterior.means[i], alone.posterior.means, rtol=1e-11)


def test_components_that_are_not_needed_lose_their_weight(double):
    x = np.random.default_rng(0).normal(size=(N, D)) + np.where(np.arange(N) < N // 2, 0, 9)[:, None]
    posterior = fit(RESP, x, variational_prior(x, K, "full", ONES), max_iter=500).posterior
    weights = np.sort(weights_of(posterior))
    assert weights[0] < 0.02
    assert weights[1] > 0.4


def test_an_offset_changes_nothing_but_the_means(dtype):
    near, far = (
        fit(RESP, x, variational_prior(x.astype(dtype), K, "full", ONES), dtype=dtype, tol=1e-2)
        for x in (X, X + 1e3)
    )
    tol = 1e-8 if dtype == np.float64 else 1e-3
    assert_allclose(far.bound, near.bound, rtol=tol)
    assert_allclose(weights_of(far.posterior), weights_of(near.posterior), atol=10 * tol)
    assert_allclose(np.asarray(far.posterior.means) - dtype.type(1e3), near.posterior.means, atol=100 * tol)


def test_a_prior_that_does_not_fit_is_named(double):
    for change, words in [
        ({"dof": 2.0}, "prior.dof must be greater than 2"),
        ({"mean_precision": 0.0}, "prior.mean_precision"),
        ({"concentration": -1.0}, "prior.concentration"),
        ({"mean": np.zeros(2)}, "prior.mean must have shape"),
        ({"covariance": np.zeros((3, 3))}, "positive definite"),
        ({"covariance": np.ones(3)}, r"prior.covariance must have shape \(3, 3\)"),
    ]:
        with case(change, words):
            prior = dataclasses.replace(variational_prior(X, K), **change)
            with pytest.raises(ValueError, match=words):
                jaxgmm.fit_variational(RESP, X, prior=prior)


def test_what_it_has_no_prior_for_is_refused(double):
    with pytest.raises(ValueError, match="must be one of 'full', 'tied', 'diag', 'spherical'"):
        variational_prior(X, K, "VVE")
    with pytest.raises(TypeError, match="strength"):
        variational_prior(X, K, strength=1.0)
    with pytest.raises(TypeError, match="VariationalPrior"):
        jaxgmm.fit_variational(RESP, X, prior=jaxgmm.Prior())


def test_nothing_traced_compiles_anew(double):
    sizes = set()
    for i in range(3):
        prior = variational_prior(X, K, "diag", ONES, concentration=0.1 + i, mean_precision=1.0 + i)
        jaxgmm.fit_variational(
            RESP,
            X,
            ONES,
            prior=prior,
            covariance_type="diag",
            tol=10.0**-i,
            max_iter=5 + i,
            reg_covar=0.1 * i,
        )
        sizes.add(ascend._cache_size())
    assert len(sizes) == 1


_observed = quick_jit(
    lambda resp, rows, prior, name: jaxgmm.fit_variational(
        resp, rows, prior=prior, covariance_type=name, tol=0.0, max_iter=60
    ),
    static_argnames="name",
)


def test_the_bound_of_rows_with_gaps_is_just_below_their_evidence(double):
    """Of one Gaussian with independent features, each feature's entries have an evidence of their own."""
    seen = np.random.default_rng(0).random((N, D)) > 0.3
    rows = jaxgmm.Data(jnp.where(seen, X, 0), jnp.ones(N), jnp.asarray(seen), jnp.zeros((N, D)))
    prior = variational_prior(rows, 1, "diag")
    evidence = sum(
        predictive(
            X[seen[:, j], j : j + 1],
            "diag",
            Numbers(prior.mean[j : j + 1], prior.mean_precision, prior.dof, prior.covariance[j : j + 1]),
        )
        for j in range(D)
    )
    found = _observed(np.ones((N, 1)), rows, prior, "diag")
    # Less by what the factorised posterior does not know: how a missing entry depends on the parameters.
    assert evidence - 0.02 * (~seen).sum() < found.bound < evidence
    noisy = dataclasses.replace(rows, noise=jnp.ones((N, D)))
    history = np.asarray(_observed(np.ones((N, 1)), noisy, prior, "diag").history[:60])
    assert np.diff(history).min() > -1e-8


def test_the_bound_rises_with_gaps_noise_and_labels(double):
    draw = np.random.default_rng(0)
    x = np.where(draw.random((N, D)) < 0.3, np.nan, X)
    known = np.where(draw.random(N) < 0.2, LABELS, -1)
    rows = jaxgmm.observe(x, missing="nan", noise=draw.uniform(0, 0.1, (N, D)), labels=known)
    found = _observed(np.eye(K)[LABELS], rows, variational_prior(rows, K), "full")
    assert np.diff(np.asarray(found.history[:60])).min() > -1e-8
    resp = jaxgmm.responsibilities(found.posterior.to_params(), rows)
    assert (np.asarray(resp).argmax(1) == LABELS).mean() > 0.8
    assert (np.asarray(resp)[known >= 0, known[known >= 0]] == 1).all()


def test_rows_in_groups_are_refused():
    rows = jaxgmm.observe(X, groups=np.arange(N) // 2)
    with pytest.raises(ValueError, match="rows in groups are not for fit_variational"):
        jaxgmm.fit_variational(RESP, rows)
