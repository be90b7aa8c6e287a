"""The variational fit: its bound against evidence in closed form, its posterior against scikit-learn's."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.mixture
from numpy.testing import assert_allclose
from scipy.special import betaln, gammaln, logsumexp, multigammaln
from scipy.stats import multivariate_t

import jaxgmm
from jaxgmm.variational._bound import expected
from jaxgmm.variational._model import FAMILIES
from tests.conftest import CORE, costly, overlapping

TYPES = [costly(n, quick=["full"]) for n in CORE]
X, LABELS = overlapping(150, 4, 3)
RESP = np.eye(5)[np.random.default_rng(0).integers(0, 5, size=150)]
PRIORS = pytest.mark.parametrize(
    "stick_breaking", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["process", "dirichlet"]
)

# In the quick tests one precision: each fit compiles for seconds.
single = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True
)
double_precision = pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True
)


def fit(resp, x, dtype, name, **options):
    prior = options.pop("prior", None)
    if prior is None:
        stick_breaking = options.pop("stick_breaking", True)
        prior = jaxgmm.variational.variational_prior(
            x.astype(dtype), resp.shape[1], name, stick_breaking=stick_breaking
        )
    return jaxgmm.fit_variational(
        resp.astype(dtype), x.astype(dtype), prior=prior, covariance_type=name, **options
    )


def predictive(x, name, prior):
    """log p(x) of one Gaussian, as the product of the Student t densities of each row given those before."""
    m, beta, dof = np.asarray(prior.mean, float), float(prior.mean_precision), float(prior.dof)
    scale, d, total = np.asarray(prior.covariance, float), x.shape[1], 0.0
    for row in x:
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


def of_labels(labels, k, prior):
    """log p(z), the weights integrated out."""
    n, gamma = np.bincount(labels, minlength=k), float(prior.concentration)
    if not prior.stick_breaking:
        return gammaln(k * gamma) - gammaln(k * gamma + n.sum()) + (gammaln(gamma + n) - gammaln(gamma)).sum()
    later = n[::-1].cumsum()[::-1] - n
    # The last component has all that is left.
    return (betaln(1 + n, gamma + later) - betaln(1, gamma))[:-1].sum()


@pytest.mark.parametrize("name", TYPES)
@single
def test_with_one_component_the_bound_is_the_log_evidence(name, dtype):
    x = X[:40] + 50
    prior = jaxgmm.variational.variational_prior(
        x, 1, name, stick_breaking=False, mean_precision=0.3, dof=5.5, mean=np.full(4, 49.0)
    )
    result = fit(np.ones((40, 1)), x, dtype, name, prior=prior)
    rtol = 1e-10 if dtype == np.float64 else 2e-5
    assert_allclose(float(result.bound), predictive(x, name, prior), rtol=rtol)
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert int(result.n_iter) == 2
    # One component has all of the weight, however weights are drawn.
    broken = fit(np.ones((40, 1)), x, dtype, name, prior=dataclasses.replace(prior, stick_breaking=True))
    assert_allclose(float(broken.bound), predictive(x, name, prior), rtol=rtol)
    assert_allclose(broken.posterior.weights, [1.0])


@pytest.mark.slow
def test_the_evidence_of_the_normal_wishart_model_in_closed_form(double):
    n, d = X.shape
    prior = jaxgmm.variational.variational_prior(X, 1, stick_breaking=False)

    def log_z(dof, scale):
        return multigammaln(dof / 2, d) + dof * d / 2 * np.log(2) - dof / 2 * np.linalg.slogdet(scale)[1]

    before, after = np.cov(X.T), np.cov(X.T) + n * np.cov(X.T, bias=True)
    value = log_z(d + n, after) - log_z(d, before) - n * d / 2 * np.log(2 * np.pi) - d / 2 * np.log(1 + n)
    assert_allclose(float(fit(np.ones((n, 1)), X, double, "full", prior=prior).bound), value, rtol=1e-11)


@PRIORS
@pytest.mark.parametrize("name", [costly(n, quick=["spherical"]) for n in ("full", "diag", "spherical")])
@pytest.mark.slow
def test_where_labels_are_certain_the_bound_is_the_evidence_with_them(name, stick_breaking, double):
    """Clusters far apart: the only posterior mass is at one labelling, and the bound is exact there."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [10, 6, 4])
    x = np.array([[0.0, 0], [1e4, 0], [0, 1e4]])[labels] + rng.normal(size=(20, 2))
    prior = jaxgmm.variational.variational_prior(
        x, 3, name, stick_breaking=stick_breaking, concentration=0.7, mean_precision=1e-3,
        covariance={"full": 2 * np.eye(2), "diag": np.ones(2), "spherical": 1.5}[name],
    )  # fmt: skip
    result = fit(np.eye(3)[labels], x, double, name, prior=prior)
    groups = sum(predictive(x[labels == k], name, prior) for k in range(3))
    assert_allclose(float(result.bound), groups + of_labels(labels, 3, prior), rtol=1e-10)


@pytest.mark.slow
def test_for_tied_covariances_as_well(double):
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [10, 6, 4])
    x = np.array([[0.0, 0], [1e4, 0], [0, 1e4]])[labels] + rng.normal(size=(20, 2))
    prior = jaxgmm.variational.variational_prior(
        x, 3, "tied", stick_breaking=False, mean_precision=1e-3, covariance=2 * np.eye(2)
    )
    result = fit(np.eye(3)[labels], x, double, "tied", prior=prior)
    scale, m, beta, dof = 3 * 2 * np.eye(2), np.asarray(prior.mean), 1e-3, 3 * 2.0
    value = -20 * np.log(2 * np.pi) + of_labels(labels, 3, prior)
    value -= multigammaln(dof / 2, 2) - dof / 2 * np.linalg.slogdet(scale / 2)[1]
    for k in range(3):
        own = x[labels == k]
        n, gap = len(own), own.mean(0) - m
        scale = scale + n * np.cov(own.T, bias=True) + beta * n / (beta + n) * np.outer(gap, gap)
        value += np.log(beta / (beta + n))
    dof += 20
    value += multigammaln(dof / 2, 2) - dof / 2 * np.linalg.slogdet(scale / 2)[1]
    assert_allclose(float(result.bound), value, rtol=1e-10)


@PRIORS
@pytest.mark.parametrize("name", ["full", pytest.param("spherical", marks=pytest.mark.slow)])
def test_the_bound_is_below_the_evidence_summed_over_all_labels(name, stick_breaking, double):
    x = np.random.default_rng(0).normal(size=(6, 2)) * 2
    prior = jaxgmm.variational.variational_prior(x, 2, name, stick_breaking=stick_breaking)
    labellings = [np.array(z) for z in itertools.product(range(2), repeat=6)]
    # Every row is in one of the two components.
    assert_allclose(logsumexp([of_labels(z, 2, prior) for z in labellings]), 0, atol=1e-12)
    terms = [
        of_labels(z, 2, prior) + sum(predictive(x[z == k], name, prior) for k in range(2)) for z in labellings
    ]
    evidence = logsumexp(terms)
    bounds = [float(fit(np.eye(2)[z], x, double, name, prior=prior).bound) for z in labellings[::5]]
    assert max(bounds) < evidence
    assert max(bounds) > max(terms)  # a cloud of labellings says more than the best one


@PRIORS
@pytest.mark.parametrize("name", TYPES)
@double_precision
def test_the_bound_never_falls(name, stick_breaking, dtype):
    for reg_covar in (0.0, 0.1):
        result = fit(
            RESP, X, dtype, name, stick_breaking=stick_breaking, reg_covar=reg_covar, tol=1e-5,
            history_size=1024,
        )  # fmt: skip
        history = np.asarray(result.history)[: int(result.n_iter)]
        assert int(result.status) == jaxgmm.Status.CONVERGED
        assert len(history) > 5
        eps = np.finfo(dtype).eps
        assert np.diff(history).min() > -64 * eps * np.abs(history).max()


@PRIORS
@pytest.mark.parametrize("name", [costly(n, quick=["full"]) for n in ("full", "tied")])
@pytest.mark.slow
def test_the_posterior_is_scikit_learns(name, stick_breaking, double):
    theirs = sklearn.mixture.BayesianGaussianMixture(
        n_components=5, covariance_type=name, tol=1e-6, max_iter=1000, random_state=0, reg_covar=0,
        weight_concentration_prior_type="dirichlet_process" if stick_breaking else "dirichlet_distribution",
    ).fit(X)  # fmt: skip
    start = sklearn.cluster.KMeans(5, n_init=1, random_state=0).fit(X).labels_
    prior = jaxgmm.variational.variational_prior(X, 5, name, stick_breaking=stick_breaking)
    prior = dataclasses.replace(prior, last_stick_free=True)
    ours = fit(np.eye(5)[start], X, double, name, prior=prior, tol=1e-6)
    q = ours.posterior
    assert int(ours.n_iter) == theirs.n_iter_
    assert_allclose(q.weights, theirs.weights_, rtol=1e-9)
    assert_allclose(q.means, theirs.means_, rtol=1e-8, atol=1e-9)
    assert_allclose(q.mean_precision, theirs.mean_precision_, rtol=1e-9)
    assert_allclose(q.dof, np.broadcast_to(theirs.degrees_of_freedom_, 5), rtol=1e-9)
    covariances = theirs.covariances_ if name == "full" else np.stack([theirs.covariances_] * 5)
    assert_allclose(q.to_params().covariances, covariances, rtol=1e-7, atol=1e-9)
    resp, log_prob = jax.jit(jaxgmm.e_step)(expected(q, jnp.zeros(())), X)
    assert_allclose(resp, theirs.predict_proba(X), atol=1e-9)
    # The one Wishart distribution of "tied" has K times the degrees of freedom that scikit-learn takes.
    ahead = np.asarray(log_prob) - theirs.score_samples(X)
    assert_allclose(ahead, ahead[0] if name == "tied" else 0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_weights_are_as_good_as_repetition(name, dtype):
    counts = np.random.default_rng(0).integers(0, 3, size=150)
    prior = jaxgmm.variational.variational_prior(X, 5, name, counts)
    again = jaxgmm.variational.variational_prior(np.repeat(X, counts, axis=0), 5, name)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), prior, again)
    by_weight = fit(RESP, X, dtype, name, prior=prior, sample_weight=counts, max_iter=10, tol=0)
    rows = np.repeat(np.arange(150), counts)
    repeated = fit(RESP[rows], X[rows], dtype, name, prior=prior, max_iter=10, tol=0)
    rtol = 1e-9 if dtype == np.float64 else 1e-4
    assert_allclose(by_weight.bound, repeated.bound, rtol=rtol)
    assert_allclose(by_weight.posterior.means, repeated.posterior.means, rtol=10 * rtol, atol=rtol)


@pytest.mark.slow
def test_it_vmaps_over_starts_and_stops_each_by_itself():
    x = X.astype(np.float32)
    prior = jaxgmm.variational.variational_prior(x, 5)
    starts = np.stack([np.roll(RESP, i, axis=0) for i in range(3)]).astype(np.float32)

    def run(resp):
        return jaxgmm.fit_variational(resp, x, prior=prior)

    together = jax.vmap(run)(starts)
    for i, start in enumerate(starts):
        alone = run(start)
        assert abs(int(alone.n_iter) - int(together.n_iter[i])) <= 1
        assert_allclose(together.bound[i], alone.bound, rtol=1e-5)
        # Where it stops moves by a step of the float32 bound: 1.5e-4 was seen on another processor.
        assert_allclose(together.posterior.weights[i], alone.posterior.weights, atol=5e-4)


@pytest.mark.slow
def test_components_that_are_not_needed_lose_their_weight():
    x = np.random.default_rng(0).normal(size=(150, 4)) + np.where(np.arange(150) < 75, 0, 9)[:, None]
    weights = np.sort(fit(RESP, x, np.float32, "full", max_iter=500).posterior.weights)
    assert weights[:3].sum() < 0.02


@pytest.mark.slow
def test_an_offset_changes_nothing_but_the_means(dtype):
    near = fit(RESP, X, dtype, "full", tol=1e-2)
    far = fit(RESP, X + 1e3, dtype, "full", tol=1e-2)
    tol = 1e-8 if dtype == np.float64 else 1e-3
    assert_allclose(far.bound, near.bound, rtol=tol)
    assert_allclose(far.posterior.weights, near.posterior.weights, atol=10 * tol)
    assert_allclose(far.posterior.means - 1e3, near.posterior.means, atol=100 * tol)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dof": 3.0}, "prior.dof must be greater than 3"),
        ({"mean_precision": 0.0}, "prior.mean_precision"),
        ({"concentration": -1.0}, "prior.concentration"),
        ({"mean": np.zeros(3)}, "prior.mean must have shape"),
        ({"covariance": np.zeros((4, 4))}, "positive definite"),
        ({"covariance": np.ones(4)}, r"prior.covariance must have shape \(4, 4\)"),
    ],
)
def test_a_prior_that_does_not_fit_is_named(change, words):
    prior = dataclasses.replace(jaxgmm.variational.variational_prior(X, 5), **change)
    with pytest.raises(ValueError, match=words):
        fit(RESP, X, np.float32, "full", prior=prior)


def test_what_it_has_no_prior_for_is_refused():
    with pytest.raises(ValueError, match="must be one of 'full', 'tied', 'diag', 'spherical'"):
        jaxgmm.variational.variational_prior(X, 5, "VVE")
    with pytest.raises(TypeError, match="strength"):
        jaxgmm.variational.variational_prior(X, 5, strength=1.0)
    with pytest.raises(TypeError, match="VariationalPrior"):
        jaxgmm.fit_variational(RESP, X, prior=jaxgmm.default_prior(X, 5))
    assert [f.name for f in FAMILIES] == ["full", "tied", "diag", "spherical"]


@pytest.mark.slow
def test_nothing_traced_compiles_anew():
    from jaxgmm.variational._ascent import ascend

    x = X.astype(np.float32)
    sizes = set()
    for i in range(3):
        prior = jaxgmm.variational.variational_prior(x, 5, concentration=0.1 + i, mean_precision=1.0 + i)
        jaxgmm.fit_variational(
            RESP.astype(np.float32), x, prior=prior, tol=10.0**-i, max_iter=5 + i, reg_covar=0.1 * i
        )
        sizes.add(ascend._cache_size())
    assert len(sizes) == 1
