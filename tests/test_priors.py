"""Maximum a posteriori fits: against mclust, the closed forms, and the penalised gradient."""

import dataclasses
import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxgmm
from jaxgmm import Prior, Status
from jaxgmm.components import gaussian
from tests.conftest import case, soft_labels
from tests.problems import LABELS, D, K, N, X
from tests.quick import quick_jit

# mclust's models, and ours of the same prior.
MODELS = {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical"}


def a_prior(name="full", dtype=np.float64, **changes):
    """A prior that is strong enough to matter everywhere."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(D, D))
    parts = {
        "mean": np.array([0.5, -1.0, 2.0]),
        "strength": 3.0,
        "dof": 6.0,
        "scale": root @ root.T + np.eye(D) if name in ("full", "tied") else 2.5,
        "weight_concentration": np.array([2.0, 1.5, 4.0]),
    } | changes
    return Prior(**{k: None if v is None else np.asarray(v, dtype) for k, v in parts.items()})


_fit = quick_jit(jaxgmm.fit)


def quick_fit(start, prior, reg_covar=0.0, tol=1e-5, max_iter=1000, accelerate=True):
    """`fit` to X, always with the same arguments, which are one program."""
    return _fit(start, X, prior=prior, reg_covar=reg_covar, tol=tol, max_iter=max_iter, accelerate=accelerate)


def _objective(params, x, prior):
    """The total log-likelihood plus the prior, per sample."""
    return jaxgmm.score(params, x) + jaxgmm.log_prior(params, prior) / len(x)


objective = quick_jit(_objective)


@functools.partial(quick_jit, static_argnames="name")
def m_step(resp, x, w, prior, name):
    """Weights, means and covariances of an M-step without a ridge."""
    options = {"covariance_type": name, "sample_weight": w, "reg_covar": 0.0}
    params = jaxgmm.m_step(resp, x, prior=prior, **options)
    return params.weights, params.means, params.covariances


@quick_jit
def em_step(params, x, prior):
    """The log-likelihood per sample, and weights, means and covariances before and after a step."""
    after, _ = jaxgmm.em_step(params, x, reg_covar=0.0, prior=prior)
    return jaxgmm.score(params, x), *((p.weights, p.means, p.covariances) for p in (params, after))


def mixture(weights, means, cov, name="full"):
    """A mixture of dense covariances (K, D, D) in float64, in NumPy arrays."""
    scale = {
        "full": lambda: np.linalg.cholesky(cov),
        "tied": lambda: np.linalg.cholesky(cov[0]),
        "diag": lambda: np.sqrt(np.einsum("kdd->kd", cov)),
        "spherical": lambda: np.sqrt(cov[:, 0, 0]),
    }[name]()
    return jaxgmm.GMMParams(np.log(weights), np.asarray(means), scale, gaussian(name))


def start_of(x=X, labels=LABELS):
    groups = [x[labels == k] for k in range(K)]
    weights = np.bincount(labels) / len(labels)
    return mixture(weights, [g.mean(0) for g in groups], np.stack([np.cov(g.T) for g in groups]))


def finite(tree):
    return all(np.isfinite(a).all() for a in jax.tree.leaves(tree))


# Outside numbers


@pytest.mark.parametrize("model", MODELS)
def test_mclusts_fits_are_fixed_points(mclust, double, model):
    """mclust stops within about 1e-6 of its own fixed point; so a step of ours moves no farther than that."""
    reference, name = mclust["iris"]["prior_fits"][f"{model},3"], MODELS[model]
    x, theirs, parts = np.array(mclust["iris"]["X"]), reference["prior"], reference["parameters"]
    prior = Prior(*(np.asarray(theirs[part], float) for part in ("mean", "shrinkage", "dof", "scale")))
    params = mixture(parts["pro"], parts["mean"], np.array(parts["sigma"]), name)
    score, before, after = jax.tree.map(np.asarray, em_step(params, x, prior))
    assert abs(len(x) * score - reference["loglik"]) < 1e-5
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # It does matter: with one that says next to nothing the step is longer than that.
    nothing = jax.tree.map(lambda a: np.asarray(1e-6 * a), prior)
    assert np.abs(em_step(params, x, nothing)[2][2] - before[2]).max() > 1e-3


@pytest.mark.parametrize("data", ["iris", "faithful"])
def test_the_default_prior_is_mclusts(mclust, double, data):
    x, n = np.array(mclust[data]["X"]), len(mclust[data]["X"])
    for model, k in itertools.product(MODELS, (2, 3)):
        theirs = mclust[data]["prior_fits"][f"{model},{k}"]["prior"]
        default = jaxgmm.default_prior(x, k, MODELS[model])
        np.testing.assert_allclose(default.mean, theirs["mean"], rtol=1e-12)
        # Its covariance of the data is over N − 1.
        np.testing.assert_allclose(default.scale * (n / (n - 1)), theirs["scale"], rtol=1e-12, atol=1e-14)
        assert (default.strength, default.dof) == (theirs["shrinkage"], theirs["dof"])


@pytest.mark.parametrize("data", ["iris", "faithful"])
def test_where_mclust_departs_from_the_paper(mclust, data):
    """Its EII forgets the scale; its EEI does not shrink the means, and leaves K out of the divisor.

    So the divisors are those that its own parameters imply, all in NumPy: EII is our prior with scale 0, and
    EEI is not the mode of anything, for its scatter still has the term of a mean that was shrunk.
    """
    x = np.array(mclust[data]["X"])
    n, d = x.shape
    for model, k in itertools.product(("EII", "EEI"), (2, 3)):
        fit = mclust[data]["prior_fits"][f"{model},{k}"]
        weights, means = (np.array(fit["parameters"][p]) for p in ("pro", "mean"))
        variances = np.diagonal(np.array(fit["parameters"]["sigma"])[0])
        joint = np.log(weights) - 0.5 * (np.square(x[:, None] - means) / variances).sum(-1)
        resp = np.exp(joint - joint.max(1, keepdims=True))
        resp /= resp.sum(1, keepdims=True)
        counts = resp.sum(0)
        plain = resp.T @ x / counts[:, None]
        prior = types.SimpleNamespace(**fit["prior"])
        m, kappa, dof = np.array(prior.mean), prior.shrinkage, prior.dof
        within = np.einsum("nk,nkd->d", resp, np.square(x[:, None] - plain))
        scatter = within + (kappa * counts / (kappa + counts)) @ np.square(plain - m)
        shrunk = (counts[:, None] * plain + kappa * m) / (counts + kappa)[:, None]
        if model == "EII":
            np.testing.assert_allclose(means, shrunk, atol=1e-6)
            np.testing.assert_allclose(scatter.sum() / variances, d * n + d * k + dof + 2, rtol=1e-8)
        else:
            np.testing.assert_allclose(means, plain, atol=1e-8)
            np.testing.assert_allclose((prior.scale + scatter) / variances, n + dof + 2, rtol=1e-8)


# The M-step


def m_step_by_hand(resp, x, w, name, prior):
    """The closed forms of Fraley and Raftery's table, in float64."""
    m, kappa, dof, scale, alpha = (np.asarray(a, float) for a in dataclasses.astuple(prior))
    r = resp * w[:, None]
    n, (d, k) = r.sum(0), (x.shape[1], resp.shape[1])
    plain = r.T @ x / n[:, None]
    means = (n[:, None] * plain + kappa * m) / (n + kappa)[:, None]
    gaps, off = x[:, None] - plain, plain - m
    scatter = np.einsum("nk,nkd,nke->kde", r, gaps, gaps)
    scatter += (kappa * n / (kappa + n))[:, None, None] * off[:, :, None] * off[:, None, :]
    variances = np.einsum("kdd->kd", scatter)
    if name == "full":
        cov = (scale + scatter) / (n + dof + d + 2)[:, None, None]
    elif name == "tied":
        cov = np.broadcast_to((scale + scatter.sum(0)) / (n.sum() + dof + d + k + 1), scatter.shape)
    elif name == "diag":
        cov = np.stack([np.diag(v) for v in (scale + variances) / (n + dof + 3)[:, None]])
    else:
        spread = (scale + variances.sum(1)) / (d * n + dof + d + 2)
        cov = spread[:, None, None] * np.eye(d)
    counts = n + alpha - 1
    return counts / counts.sum(), means, cov


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, "float64") for n in ("full", "tied", "diag", "spherical")] + [("full", "float32")],
    indirect=["dtype"],
)
def test_the_m_step_is_the_closed_form_also_far_from_the_origin(name, dtype):
    resp = soft_labels(LABELS, K, dtype)
    w = np.random.default_rng(0).integers(0, 4, size=N).astype(dtype)
    prior = a_prior(name, dtype)
    # 1024 is exact in float32, and so are the differences of what is rounded there.
    far = X.astype(dtype) + dtype.type(1024)
    near = far - dtype.type(1024)
    got = jax.tree.map(np.asarray, m_step(resp, near, w, prior, name))
    expected = m_step_by_hand(resp.astype(float), near.astype(float), w.astype(float), name, prior)
    tolerance = 30 * float(np.finfo(dtype).eps)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    moved = dataclasses.replace(prior, mean=prior.mean + dtype.type(1024))
    _, means, covariances = jax.tree.map(np.asarray, m_step(resp, far, w, moved, name))
    np.testing.assert_allclose(means - 1024, got[1], atol=2e-4 if dtype == np.float32 else 1e-11)
    np.testing.assert_allclose(covariances, got[2], rtol=1e-4, atol=1e-4)


def test_parts_that_are_absent_change_nothing(double):
    resp = soft_labels(LABELS, K)

    def step(prior):
        return jax.tree.map(np.asarray, m_step(resp, X, np.ones(N), prior, "full"))

    plain, whole = step(None), step(a_prior())
    for a, b in zip(step(Prior()), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    weights, _, covariances = step(a_prior(mean=None, strength=None, dof=None, scale=None))
    np.testing.assert_allclose(weights, whole[0], rtol=1e-12)
    np.testing.assert_allclose(covariances, plain[2], rtol=1e-12, atol=1e-13)
    without = a_prior(mean=None, strength=None)
    _, means, covariances = step(without)
    np.testing.assert_allclose(means, plain[1], rtol=1e-12)
    # Λ + W over n + ν + D + 1: the mode of the inverse Wishart by itself.
    n = resp.sum(0)[:, None, None]
    np.testing.assert_allclose(covariances, (without.scale + n * plain[2]) / (n + 6 + D + 1), rtol=1e-12)


def test_log_prior_is_the_density_up_to_a_constant(double):
    """Against SciPy: differences between two mixtures."""
    prior = a_prior()
    m, kappa, dof, scale, alpha = (np.asarray(a, float) for a in dataclasses.astuple(prior))
    mixtures = [start_of(X + i, np.roll(LABELS, i)) for i in (0, 1)]

    def density(params):
        weights, means = np.exp(params.log_weights), params.means
        cov = params.scale @ params.scale.swapaxes(1, 2)
        normal = sum(
            stats.multivariate_normal(m, c / kappa).logpdf(mu) + stats.invwishart(float(dof), scale).logpdf(c)
            for mu, c in zip(means, cov, strict=True)
        )
        return normal + ((alpha - 1) * np.log(weights)).sum()

    expected = density(mixtures[0]) - density(mixtures[1])
    got = jaxgmm.log_prior(mixtures[0], prior) - jaxgmm.log_prior(mixtures[1], prior)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


# Fits of one shape and one program: "full", with every part of a prior


@pytest.mark.parametrize("strength", [0.01, 30.0])
def test_the_penalised_objective_never_falls(double, strength):
    start, prior = start_of(), a_prior(strength=strength)
    for accelerate in (False, True):
        climbed = []
        for steps in range(15):
            result = quick_fit(start, prior, max_iter=steps, tol=0.0, accelerate=accelerate)
            assert result.status == Status.MAX_ITER
            climbed.append(float(result.objective))
        np.testing.assert_allclose(result.objective, objective(result.params, X, prior), rtol=1e-12)
        # Terms of either sign add up to the objective; each is rounded by itself.
        assert (np.diff(climbed) >= -1e-14 * max(1, abs(climbed[-1]))).all()


def test_the_gradient_of_the_penalised_objective_is_zero_at_the_fixed_point(double):
    prior = a_prior()
    p = jaxgmm.check(quick_fit(start_of(), prior, tol=1e-11)).params

    @quick_jit
    @jax.grad
    def gradient(theta):
        logits, means, free = theta
        scale = p.covariance.from_unconstrained(free, means.shape)
        params = jaxgmm.GMMParams(jax.nn.log_softmax(logits), means, scale, *p.model)
        return _objective(params, jnp.asarray(X), prior)

    slope = gradient((p.log_weights, p.means, quick_jit(p.covariance.to_unconstrained)(p.scale)))
    assert max(np.abs(np.asarray(a)).max() for a in jax.tree.leaves(slope)) < 1e-9


def test_a_strong_prior_has_its_way(double):
    start = start_of()
    prior = a_prior(strength=1e8, weight_concentration=np.full(K, 1e8))
    result = quick_fit(start, prior, reg_covar=1e-6)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.params.means, np.tile(prior.mean, (K, 1)), atol=1e-4)
    np.testing.assert_allclose(result.params.weights, 1 / K, atol=1e-4)
    # A scale of S for each of ν degrees of freedom: every covariance is that.
    target = np.asarray(prior.scale)
    sure = a_prior(strength=1.0, dof=1e8, scale=target * 1e8, weight_concentration=np.full(K, 1e8))
    fitted = quick_fit(start, sure, reg_covar=1e-6)
    assert fitted.status == Status.CONVERGED
    np.testing.assert_allclose(fitted.params.covariances, np.tile(target, (K, 1, 1)), rtol=1e-3, atol=1e-3)


def off_and_away():
    """A component that is switched off; and one that is on, but so far away that no sample reaches it."""
    start = start_of()
    return (
        dataclasses.replace(start, log_weights=np.where(np.arange(K) == 1, -np.inf, start.log_weights)),
        dataclasses.replace(start, means=start.means + 1e4 * np.eye(K)[1][:, None]),
    )


def test_no_prior_revives_a_component_that_is_off(double):
    off, prior = off_and_away()[0], a_prior(weight_concentration=np.full(K, 5.0))
    result = quick_fit(off, prior, reg_covar=1e-6)
    assert result.status == Status.CONVERGED
    assert result.params.log_weights[1] == -np.inf
    np.testing.assert_array_equal(result.params.means[1], off.means[1])
    alone = jaxgmm.mixture.active(jax.tree.map(np.asarray, result.params))
    without = dataclasses.replace(prior, weight_concentration=prior.weight_concentration[:2])
    np.testing.assert_allclose(
        jaxgmm.log_prior(alone, without), jaxgmm.log_prior(result.params, prior), rtol=1e-10
    )
    resp = np.eye(K)[LABELS % 2]
    weights, *_ = m_step(resp, X, np.ones(N), prior, "full")
    np.testing.assert_array_equal(np.asarray(weights) == 0, [False, False, True])


@pytest.mark.parametrize("concentration", [1.0, 3.0])
def test_a_component_without_data_is_where_the_prior_puts_it(double, concentration):
    away, prior = off_and_away()[1], a_prior(weight_concentration=np.full(K, concentration))
    new, moments = jaxgmm.em_step(away, X, prior=prior)
    assert moments.weight[1] == 0
    np.testing.assert_allclose(new.means[1], prior.mean, atol=1e4 * 4 * np.finfo(float).eps)
    np.testing.assert_allclose(
        new.covariances[1], np.asarray(prior.scale) / (6 + D + 2), rtol=2e-5, atol=1e-5
    )
    if concentration == 3.0:
        np.testing.assert_allclose(new.weights[1], 2 / (N + 6), rtol=1e-5)
    else:
        assert -np.inf < new.log_weights[1] < np.log(1e-35)
    assert quick_fit(away, prior, reg_covar=1e-6).status == Status.CONVERGED


def test_a_concentration_below_one_empties_components(double):
    resp = np.where(np.arange(K) == 2, 1e-3, soft_labels(LABELS % 2, K))
    start = mixture(*m_step(resp / resp.sum(1, keepdims=True), X, np.ones(N), None, "full"))
    result = quick_fit(start, a_prior(weight_concentration=np.full(K, 0.5), strength=0.1), reg_covar=1e-6)
    assert result.status == Status.CONVERGED
    np.testing.assert_array_equal(np.isneginf(result.params.log_weights), [False, False, True])


def test_vmap_over_priors_is_a_loop(double):
    start = start_of()
    priors = [a_prior(strength=s) for s in (0.1, 10.0)]
    batch = jax.tree.map(lambda *a: np.stack(a), *priors)
    together = quick_jit(jax.vmap(lambda p: jaxgmm.em_step(start, X, prior=p)[0].means))(batch)
    for one, prior in zip(together, priors, strict=True):
        np.testing.assert_allclose(one, jaxgmm.em_step(start, X, prior=prior)[0].means, rtol=1e-11)


# Several fits


def test_best_goes_by_the_penalised_objective(double):
    result = quick_fit(start_of(), a_prior(), reg_covar=1e-6)
    two = jax.tree.map(lambda a: np.stack([a, a]), result)
    two = dataclasses.replace(
        two, log_likelihood=two.log_likelihood + np.array([1.0, 0.0]), objective=np.array([-9.0, -8.0])
    )
    assert jaxgmm.best(two).objective == -8


@quick_jit
def _of_default_priors(x):
    return jaxgmm.fit_components(
        jax.random.key(0), x, (2, 8), n_init=2, prior="default", reg_covar=0.0, max_iter=3000, tol=1e-8,
        init="random_points",
    )  # fmt: skip


HARD = {
    "far too many components": X[:40],
    "every point four times": np.repeat(X[:10], 4, axis=0),
    "three distinct points": np.repeat(X[[0, 50, 100]], 14, axis=0)[:40],
    "one point": np.full((40, D), 1.7),
}


@pytest.mark.parametrize("case", HARD)
def test_the_default_prior_of_each_number_of_components_takes_singularities_away(double, case):
    """ "default" is default_prior(K) for each K, although all share a program padded to the largest."""
    x = HARD[case]
    together = _of_default_priors(x)
    if case == "one point":
        # Its covariance is zero, and so is the scale of the default prior.
        assert (together.status == Status.DEGENERATE).all()
        return
    assert (together.status == Status.CONVERGED).all()
    assert finite((together.params.means, together.params.scale))
    # Three points lie in a plane: what the density is across it is rounding.
    for i, k in enumerate((2, 8) if case != "three distinct points" else ()):
        params = jax.tree.map(lambda a, i=i: np.asarray(a)[i], together.params)
        prior = jaxgmm.default_prior(x, k)
        np.testing.assert_allclose(together.objective[i], objective(params, x, prior), rtol=1e-10)


# What is refused


def test_a_prior_that_does_not_fit_is_refused():
    for name, changes, words in [
        ("full", {"mean": [0.0]}, ["prior.mean", "(3,)", "(1,)"]),
        ("full", {"scale": np.ones((2, 2))}, ["prior.scale", "(3, 3)", "(2, 2)"]),
        ("diag", {"scale": np.ones((4, 3))}, ["prior.scale", "diag", "(4, 3)"]),
        ("spherical", {"scale": np.ones(3)}, ["prior.scale", "spherical", "(3,)"]),
        ("full", {"scale": -np.eye(3)}, ["prior.scale", "negative"]),
        ("full", {"scale": np.triu(np.ones((3, 3)))}, ["prior.scale", "symmetric"]),
        ("full", {"scale": np.ones((3, 3)) * 2 - 3 * np.eye(3)}, ["prior.scale", "negative"]),
        ("full", {"scale": [[1, 2, 0], [2, 1, 0], [0, 0, 1]]}, ["prior.scale", "semi-definite"]),
        ("full", {"strength": -1.0}, ["prior.strength", "negative"]),
        ("full", {"dof": np.nan}, ["prior.dof", "finite"]),
        ("full", {"dof": None}, ["prior.scale", "prior.dof"]),
        ("full", {"strength": None}, ["prior.mean", "prior.strength"]),
        ("full", {"weight_concentration": 0.0}, ["prior.weight_concentration", "positive"]),
        ("full", {"weight_concentration": np.ones(2)}, ["prior.weight_concentration", "(3,)", "(2,)"]),
    ]:
        with case(words):
            prior = a_prior(name, np.float32, **changes)
            with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
                jaxgmm.m_step(soft_labels(LABELS, K, np.float32), X, covariance_type=name, prior=prior)


def test_what_is_no_prior_is_refused():
    resp = soft_labels(LABELS, K, np.float32)
    with pytest.raises(TypeError, match=r"prior must be a jaxgmm\.Prior or None; got float"):
        jaxgmm.m_step(resp, X, prior=0.1)
    with pytest.raises(TypeError, match="default_prior"):
        jaxgmm.m_step(resp, X, prior="default")
    with pytest.raises(ValueError, match=r"'default'.*'weak'"):
        jaxgmm.fit_restarts(jax.random.key(0), X, 2, prior="weak")
    with pytest.raises(TypeError, match="shrinkage"):
        jaxgmm.default_prior(X, 2, shrinkage=0.1)
