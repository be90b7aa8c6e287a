"""Maximum a posteriori fits: against mclust, the closed forms, the penalised gradient and refits."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Prior, Status
from jaxgmm.components import get_family
from tests.components.test_families import USERS
from tests.conftest import dense, overlapping, soft_labels, start_from

pytestmark = pytest.mark.slow  # compilation, of many programs

N, D, K = 150, 3, 3
X, LABELS = overlapping(N, D, K)
# mclust's models, and what of its prior has to be replaced for ours to be the same one.
MODELS = {"VVV": ("full", {}), "EEE": ("tied", {}), "VVI": ("diag", {}), "VII": ("spherical", {})}


def a_prior(name, dtype=np.float64, **changes):
    """A prior that is strong enough to matter everywhere."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(D, D))
    scales = {"full": root @ root.T + np.eye(D), "tied": root @ root.T + np.eye(D)}
    parts = {
        "mean": np.array([0.5, -1.0, 2.0]),
        "strength": 3.0,
        "dof": 6.0,
        "scale": scales.get(name, 2.5),
        "weight_concentration": np.array([2.0, 1.5, 4.0]),
    } | changes
    return Prior(**{k: None if v is None else jnp.asarray(v, dtype) for k, v in parts.items()})


def objective(params, x, prior, w=None):
    """The total log-likelihood plus the prior, and that per unit of sample weight."""
    total = len(x) if w is None else jnp.sum(w)
    return jaxgmm.score(params, x, w) + jaxgmm.log_prior(params, prior) / total


# Outside numbers


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("data", ["iris", "faithful"])
@pytest.mark.parametrize("model", MODELS)
def test_fits_of_mclust(mclust, double, data, model, k):
    name, changes = MODELS[model]
    reference = mclust[data]["prior_fits"][f"{model},{k}"]
    x, labels = np.array(mclust[data]["X"]), np.array(mclust[data]["hc_labels"][str(k)])
    theirs = reference["prior"]
    prior = Prior(theirs["mean"], theirs["shrinkage"], theirs["dof"], theirs["scale"])
    prior = dataclasses.replace(prior, **changes)
    # Three columns also for two components: both share a program, and no prior counts what is off.
    options = {"reg_covar": 0.0, "prior": prior}
    start = jaxgmm.init.from_responsibilities(np.eye(3)[labels], x, covariance_type=name, **options)
    result = jaxgmm.check(jaxgmm.fit(start, x, tol=1e-9, **options))
    assert abs(float(result.log_likelihood) * len(x) - reference["loglik"]) < 1e-5
    np.testing.assert_allclose(result.params.weights[:k], reference["parameters"]["pro"], atol=1e-5)
    np.testing.assert_allclose(result.params.means[:k], reference["parameters"]["mean"], atol=1e-4)
    default = jaxgmm.default_prior(x, k, name)
    np.testing.assert_allclose(default.mean, theirs["mean"], rtol=1e-12)
    # Its covariance of the data is over N − 1.
    np.testing.assert_allclose(
        default.scale * (len(x) / (len(x) - 1)), theirs["scale"], rtol=1e-12, atol=1e-14
    )
    assert (default.strength, default.dof) == (theirs["shrinkage"], theirs["dof"])


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("data", ["iris", "faithful"])
def test_where_mclust_departs_from_the_paper(mclust, data, k):
    """Its EII forgets the scale; its EEI does not shrink the means, and leaves K out of the divisor.

    So the divisors are those that its own parameters imply, all in NumPy: EII is our prior with scale 0, and
    EEI is not the mode of anything, for its scatter still has the term of a mean that was shrunk.
    """
    x = np.array(mclust[data]["X"])
    n, d = x.shape
    for model in ("EII", "EEI"):
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


def test_m_step_is_the_closed_form(name, dtype):
    resp, x = soft_labels(LABELS, K, dtype), X.astype(dtype)
    w = np.random.default_rng(0).uniform(size=N).astype(dtype)
    prior = a_prior(name, dtype)
    got = jaxgmm.m_step(resp, x, covariance_type=name, sample_weight=w, reg_covar=0.0, prior=prior)
    expected = m_step_by_hand(resp.astype(float), x.astype(float), w.astype(float), name, prior)
    tolerance = 30 * float(np.finfo(dtype).eps)
    for a, b in zip(dense(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_em_step_is_m_step_after_e_step_also_far_from_the_origin(name, dtype):
    prior, x = a_prior(name, dtype), X.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    resp, _ = jaxgmm.e_step(start, x)
    by_hand = jaxgmm.m_step(resp, x, covariance_type=name, prior=prior)
    got, _ = jaxgmm.em_step(start, x, prior=prior)
    tolerance = 3e-5 if dtype == np.float32 else 1e-12
    for a, b in zip(dense(got), dense(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    # 1024 is exact in float32, and so are the differences of what is rounded there.
    far = (x + dtype.type(1024)).astype(dtype)
    back = (far - dtype.type(1024)).astype(dtype)
    moved = dataclasses.replace(prior, mean=prior.mean + 1024)
    here, there = (
        jaxgmm.m_step(resp, data, covariance_type=name, prior=p) for data, p in ((back, prior), (far, moved))
    )
    np.testing.assert_allclose(there.means - 1024, here.means, atol=2e-4 if dtype == np.float32 else 1e-11)
    np.testing.assert_allclose(there.covariances, here.covariances, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "spherical"])
def test_parts_that_are_absent_change_nothing(name, double):
    resp = soft_labels(LABELS, K)

    def step(prior):
        return jaxgmm.m_step(resp, X, covariance_type=name, reg_covar=0.0, prior=prior)

    plain, whole = step(None), step(a_prior(name))
    for a, b in zip(dense(step(Prior())), dense(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    only = a_prior(name, mean=None, strength=None, dof=None, scale=None)
    np.testing.assert_allclose(step(only).weights, whole.weights, rtol=1e-12)
    np.testing.assert_allclose(step(only).covariances, plain.covariances, rtol=1e-12, atol=1e-13)
    without = a_prior(name, mean=None, strength=None)
    np.testing.assert_allclose(step(without).means, plain.means, rtol=1e-12)
    # Λ + W over n + ν + D + 1: the mode of the inverse Wishart by itself.
    if name == "full":
        n = resp.sum(0)[:, None, None]
        np.testing.assert_allclose(
            step(without).covariances,
            (np.asarray(without.scale) + n * np.asarray(plain.covariances)) / (n + 6 + D + 1),
            rtol=1e-12,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "tied"])
def test_integer_weights_are_repetition_under_a_prior(name, double):
    dtype = double
    counts = np.random.default_rng(0).integers(0, 4, size=N)
    start, prior = start_from(X, LABELS, name, dtype), a_prior(name, dtype)
    weighted, _ = jaxgmm.em_step(start, X.astype(dtype), counts, prior=prior)
    repeated, _ = jaxgmm.em_step(start, np.repeat(X, counts, axis=0).astype(dtype), prior=prior)
    for a, b in zip(dense(weighted), dense(repeated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# What EM climbs


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("strength", [0.01, 30.0])
def test_the_penalised_objective_never_falls(name, dtype, accelerate, strength):
    x = X.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    prior = a_prior(name, dtype, strength=strength)
    climbed = []
    for steps in range(15):
        result = jaxgmm.fit(
            start, x, prior=prior, reg_covar=0.0, max_iter=steps, tol=0.0, accelerate=accelerate
        )
        assert result.status == Status.MAX_ITER
        np.testing.assert_allclose(result.objective, objective(result.params, x, prior), rtol=2e-6)
        climbed.append(float(result.objective))
    # Terms of either sign add up to the objective; each is rounded by itself.
    allowed = {"float32": 2e-6, "float64": 1e-14}[dtype.name] * max(1, abs(climbed[-1]))
    assert (np.diff(climbed) >= -allowed).all()
    assert jaxgmm.fit(start, x, prior=prior, reg_covar=0.0, accelerate=accelerate).status == Status.CONVERGED


@pytest.mark.slow
@pytest.mark.parametrize("concentrated", [False, True])
def test_the_gradient_of_the_penalised_objective_is_zero_at_the_fixed_point(name, double, concentrated):
    family = get_family(name)
    prior = a_prior(name) if concentrated else a_prior(name, weight_concentration=None)
    result = jaxgmm.fit(start_from(X, LABELS, name, double), X, prior=prior, reg_covar=0.0, tol=1e-11)

    def value(logits, means, free):
        scale = family.from_unconstrained(free, means.shape)
        return objective(
            jaxgmm.GMMParams(jax.nn.log_softmax(logits), means, scale, family), jnp.asarray(X), prior
        )

    p = jaxgmm.check(result).params
    gradient = jax.grad(value, argnums=(0, 1, 2))(p.log_weights, p.means, family.to_unconstrained(p.scale))
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradient)) < 1e-9


@pytest.mark.slow
def test_a_structure_written_by_a_user_has_the_mode_of_its_penalty(double):
    start = jaxgmm.m_step(soft_labels(LABELS, K), X, covariance_type=USERS)
    prior = a_prior("full")
    result = jaxgmm.check(jaxgmm.fit(start, X, prior=prior, reg_covar=0.0, tol=1e-11))
    gradient = jax.grad(
        lambda means, scale: objective(
            dataclasses.replace(result.params, means=means, scale=scale), jnp.asarray(X), prior
        ),
        argnums=(0, 1),
    )(result.params.means, result.params.scale)
    assert max(float(jnp.abs(a).max()) for a in gradient) < 1e-9


def test_without_a_prior_the_objective_is_the_likelihood(double):
    result = jaxgmm.fit(start_from(X, LABELS, "diag", double), X, max_iter=2)
    assert result.objective == result.log_likelihood


def test_log_prior_is_the_density_up_to_a_constant(double):
    """Against SciPy: differences between two mixtures."""
    from scipy import stats

    prior = a_prior("full")
    m, kappa, dof, scale, alpha = (np.asarray(a, float) for a in dataclasses.astuple(prior))
    mixtures = [start_from(X[i::2], LABELS[i::2], "full", double) for i in (0, 1)]

    def density(params):
        weights, means, cov = dense(params)
        normal = sum(
            stats.multivariate_normal(m, c / kappa).logpdf(mu) + stats.invwishart(float(dof), scale).logpdf(c)
            for mu, c in zip(means, cov, strict=True)
        )
        return normal + ((alpha - 1) * np.log(weights)).sum()

    expected = density(mixtures[0]) - density(mixtures[1])
    got = jaxgmm.log_prior(mixtures[0], prior) - jaxgmm.log_prior(mixtures[1], prior)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


# Limits, and components without data


@pytest.mark.slow
def test_a_strong_prior_has_its_way(name, dtype):
    x = X.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    prior = a_prior(name, dtype, strength=1e8, weight_concentration=1e8)
    result = jaxgmm.fit(start, x, prior=prior)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.params.means, np.tile(prior.mean, (K, 1)), atol=1e-4)
    np.testing.assert_allclose(result.params.weights, 1 / K, atol=1e-4)
    # A scale of s for each of ν degrees of freedom: every covariance is that.
    each = {"full": 1, "tied": 1, "diag": 1, "spherical": 1 / D}[name]
    target = np.asarray(prior.scale) * np.ones(()) * each
    sure = dataclasses.replace(prior, strength=prior.strength * 1e-8, dof=prior.dof * 0 + 1e8)
    sure = dataclasses.replace(sure, scale=prior.scale * 1e8)
    fitted = jaxgmm.fit(start, x, prior=sure)
    assert fitted.status == Status.CONVERGED
    wanted = target if target.ndim == 2 else target * np.eye(D)
    if name == "spherical":
        wanted = np.asarray(prior.scale) * np.eye(D)
    np.testing.assert_allclose(fitted.params.covariances, np.tile(wanted, (K, 1, 1)), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_no_prior_revives_a_component_that_is_off(name, dtype):
    x = X.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    off = dataclasses.replace(start, log_weights=start.log_weights.at[1].set(-jnp.inf))
    prior = a_prior(name, dtype, weight_concentration=5.0)
    result = jaxgmm.fit(off, x, prior=prior)
    assert result.status == Status.CONVERGED
    assert result.params.log_weights[1] == -np.inf
    np.testing.assert_array_equal(result.params.means[1], start.means[1])
    alone = jaxgmm.mixture.active(result.params)
    np.testing.assert_allclose(
        jaxgmm.log_prior(alone, prior), jaxgmm.log_prior(result.params, prior), rtol=1e-5
    )
    resp = soft_labels(LABELS, K, dtype)
    resp[:, 2] = 0
    again = jaxgmm.m_step(resp, x, covariance_type=name, prior=prior)
    np.testing.assert_array_equal(np.isneginf(again.log_weights), [False, False, True])


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [1.0, 3.0])
def test_a_component_without_data_is_where_the_prior_puts_it(name, dtype, concentration):
    """On, but so far away that no sample reaches it: responsibilities underflow to zero."""
    x = X.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    away = dataclasses.replace(start, means=start.means.at[1].add(1e4))
    prior = a_prior(name, dtype, weight_concentration=concentration)
    new, moments = jaxgmm.em_step(away, x, prior=prior)
    assert moments.weight[1] == 0
    np.testing.assert_allclose(new.means[1], prior.mean, atol=1e4 * 4 * float(np.finfo(dtype).eps))
    expected = {
        "full": lambda: np.asarray(prior.scale) / (6 + D + 2),
        "diag": lambda: np.asarray(prior.scale) / (6 + 3) * np.eye(D),
        "spherical": lambda: np.asarray(prior.scale) / (6 + D + 2) * np.eye(D),
    }
    if name in expected:
        np.testing.assert_allclose(new.covariances[1], expected[name](), rtol=2e-5, atol=1e-5)
    if concentration == 3.0:
        np.testing.assert_allclose(new.weights[1], 2 / (N + 6), rtol=1e-5)
    else:
        assert -np.inf < new.log_weights[1] < np.log(1e-35)
    result = jaxgmm.fit(away, x, prior=prior)
    assert result.status == Status.CONVERGED


@pytest.mark.slow
def test_a_concentration_below_one_empties_components(dtype):
    x = X.astype(dtype)
    resp = np.concatenate([soft_labels(LABELS, K), np.full((N, 1), 1e-3)], axis=1)
    start = jaxgmm.m_step((resp / resp.sum(1, keepdims=True)).astype(dtype), x)
    prior = a_prior("full", dtype, weight_concentration=0.5, strength=0.1)
    result = jaxgmm.fit(start, x, prior=prior)
    assert result.status == Status.CONVERGED
    np.testing.assert_array_equal(np.isneginf(result.params.log_weights), [False] * 3 + [True])


# Starts, restarts and several numbers of components


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied"])  # where one covariance counts the components that are on
def test_default_priors_of_several_numbers_of_components(name, double):
    """ "default" is default_prior(K) for each K, although all share a program padded to the largest."""
    together = jaxgmm.fit_components(
        jax.random.key(0), X, (1, 3), covariance_type=name, n_init=2, prior="default", tol=1e-8
    )
    for i, k in enumerate((1, 3)):
        lane = jax.tree.map(lambda a, i=i: a[i], together)
        prior = jaxgmm.default_prior(X, k, name)
        assert lane.status == Status.CONVERGED
        np.testing.assert_allclose(lane.objective, objective(lane.params, X, prior), rtol=1e-10)
        again = jaxgmm.fit(lane.params, X, prior=prior, tol=1e-8)
        np.testing.assert_allclose(again.objective, lane.objective, atol=1e-10)
        np.testing.assert_allclose(again.params.means[:k], lane.params.means[:k], atol=1e-6)


def test_best_goes_by_the_penalised_objective(double):
    result = jaxgmm.fit(start_from(X, LABELS, "diag", double), X, prior=a_prior("diag"))
    two = jax.tree.map(lambda a: jnp.stack([a, a]), result)
    two = dataclasses.replace(
        two, log_likelihood=two.log_likelihood + jnp.array([1.0, 0.0]), objective=jnp.array([-9.0, -8.0])
    )
    assert jaxgmm.best(two).objective == -8


HARD = {
    "far too many components": X[:40],
    "every point four times": np.repeat(X[:10], 4, axis=0),
    "three distinct points": np.repeat(X[[0, 50, 100]], 14, axis=0)[:40],
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", ["full"])
def test_the_default_prior_takes_singularities_away(name, dtype, case):
    results = jaxgmm.fit_restarts(
        jax.random.key(0), HARD[case].astype(dtype), 8, covariance_type=name, n_init=3, prior="default",
        reg_covar=0.0, max_iter=3000,
    )  # fmt: skip
    assert (results.status == Status.CONVERGED).all()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((results.params.means, results.params.scale)))


def test_points_that_are_all_equal_stay_degenerate(dtype):
    """Their covariance is zero, and so is the scale of the default prior."""
    same = np.full((40, D), 1.7, dtype)
    results = jaxgmm.fit_restarts(
        jax.random.key(0), same, 8, n_init=3, prior="default", reg_covar=0.0, max_iter=3000
    )
    assert (results.status == Status.DEGENERATE).all()


# Derivatives


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("which", ["full", "tied"])
def test_derivatives_with_respect_to_the_prior_agree_with_refits(double, which):
    start, prior, x = start_from(X, LABELS, which, double), a_prior(which), jnp.asarray(X)

    @jax.jit
    def total(p):
        result = jaxgmm.fit(start, x, prior=p, tol=1e-13, max_iter=5000)
        covariances = jnp.log1p(result.params.covariances**2).sum()
        return jnp.sin(result.params.means).sum() + result.params.weights[0] + covariances + result.objective

    gradient = jax.jit(jax.grad(total))(prior)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))
    for field, h in {
        "strength": 1e-4, "scale": 1e-4, "dof": 1e-4, "mean": 1e-5, "weight_concentration": 1e-4,
    }.items():  # fmt: skip
        value = getattr(prior, field)
        along = jnp.asarray(np.random.default_rng(3).uniform(0.5, 1.5, size=value.shape))
        along = (along + along.T) / 2 if value.ndim == 2 else along
        up, down = (total(dataclasses.replace(prior, **{field: value + s * h * along})) for s in (1, -1))
        slope = (getattr(gradient, field) * along).sum()
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6, err_msg=field)


@pytest.mark.slow
def test_gradients_are_finite_where_a_component_is_off_or_without_data(double):
    start, x = start_from(X, LABELS, "full", double), jnp.asarray(X)
    off = dataclasses.replace(start, log_weights=start.log_weights.at[1].set(-jnp.inf))
    away = dataclasses.replace(start, means=start.means.at[1].add(1e4))

    def value(prior, start, x):
        new, _ = jaxgmm.em_step(start, x, prior=prior)
        return jnp.sin(new.means).sum() + new.covariances.sum() + jaxgmm.log_prior(new, prior)

    for params in (off, away):
        gradient = jax.grad(value, argnums=(0, 1, 2))(a_prior("full"), params, x)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


def test_vmap_over_priors_is_a_loop(double):
    start = start_from(X, LABELS, "full", double)
    priors = [a_prior("full", strength=s) for s in (0.1, 10.0)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *priors)
    together = jax.vmap(lambda p: jaxgmm.em_step(start, X, prior=p)[0].means)(batch)
    for one, prior in zip(together, priors, strict=True):
        np.testing.assert_allclose(one, jaxgmm.em_step(start, X, prior=prior)[0].means, rtol=1e-11)


# What is refused


@pytest.mark.parametrize(("name", "changes", "words"), [
    ("full", {"mean": [0.0]}, ["prior.mean", "(3,)", "(1,)"]),
    ("full", {"scale": np.ones((2, 2))}, ["prior.scale", "(3, 3)", "(2, 2)"]),
    ("diag", {"scale": np.eye(3)}, ["prior.scale", "diag", "(3, 3)"]),
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
])  # fmt: skip
def test_a_prior_that_does_not_fit_is_refused(name, changes, words):
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
