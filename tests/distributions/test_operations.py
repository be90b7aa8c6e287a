"""Mixtures as distributions, against SciPy, integration on a grid, and sampling."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, optimize, stats

import jaxgmm
from jaxgmm.components import get_model
from jaxgmm.distributions._wasserstein import squared_bures
from jaxgmm.kernels.programs import jit
from tests.closed import CLOSED, build, dense
from tests.quick import quick_jit

RNG = np.random.default_rng(0)
K, D = 3, 4


def mixture(name="full", seed=0, dtype=np.float64, K=K, D=D):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(K, D, D))
    covariances = a @ a.transpose(0, 2, 1) / D + 0.3 * np.eye(D)
    return build(name, rng.dirichlet(np.full(K, 3.0)), rng.normal(size=(K, D)), covariances, dtype)


def padded(params):
    """With a component that is switched off, of a structure whose arrays all have a row for each."""
    arrays = (params.log_weights, params.means, params.scale)
    off, means, scale = (np.concatenate([a, a[:1]]) for a in arrays)
    off[-1] = -np.inf
    return dataclasses.replace(params, log_weights=off, means=means, scale=scale)


def density(params, x):
    w, mu, cov = dense(params)
    return sum(
        a * stats.multivariate_normal(m, c).pdf(x) for a, m, c in zip(w, mu, cov, strict=True) if a > 0
    )


@pytest.mark.parametrize("closed", CLOSED)
def test_marginals_are_rows_and_columns_and_keep_a_closed_family(closed, double):
    p = mixture(closed)
    m = jaxgmm.distributions.marginal(p, [2, 0])
    assert m.covariance is p.covariance
    w, mu, cov = dense(p)
    got = dense(m)
    np.testing.assert_allclose(got[0], w)
    np.testing.assert_allclose(got[1], mu[:, [2, 0]])
    np.testing.assert_allclose(got[2], cov[:, [2, 0]][:, :, [2, 0]], rtol=1e-12)


def test_conditionals_give_the_joint_and_the_moments_of_regression(double):
    p, x = padded(mixture()), RNG.normal(size=(5, D))
    observed, rest = [1, -4], [2, 3]  # the second is column 0
    given = quick_jit(jax.vmap(lambda v: jaxgmm.distributions.condition(p, observed, v)))(x[:, observed])
    marginal = density(jaxgmm.distributions.marginal(p, observed), x[:, observed])
    got = jaxgmm.distributions.regress(p, x[:, observed], observed)
    given, got = jax.tree.map(np.asarray, (given, got))
    for i in range(5):
        one = dataclasses.replace(
            given, log_weights=given.log_weights[i], means=given.means[i], scale=given.scale[i]
        )
        np.testing.assert_allclose(density(p, x[i]), marginal[i] * density(one, x[i, rest]), rtol=1e-10)
        w, mu, cov = dense(one)
        mean = w @ mu
        np.testing.assert_allclose(got.mean[i], mean, rtol=1e-10)
        second = np.einsum("k,kde->de", w, cov + mu[:, :, None] * mu[:, None, :])
        np.testing.assert_allclose(got.covariance[i], second - np.outer(mean, mean), rtol=1e-9, atol=1e-12)


OWN = {"dof": [3.5, 6.0, 40.0], "good": [0.6, 0.9, 0.97], "inflation": [3.0, 20.0, 8.0]}


def of_family(name, dof=OWN["dof"]):
    """A mixture of components that are not Gaussian, and what its components have of their own."""
    p, model = mixture("tied" if "tied" in name else "full"), get_model(name)
    own = (
        {"dof": np.asarray(dof)} if "student_t" in name else {k: np.array(OWN[k]) for k in OWN if k != "dof"}
    )
    scale = {"scatter": p.scale, **own}
    if "background" in name:
        scale = {"inner": scale, "log_density": np.array([-1.0, -2.0, -1.5, -0.5])}
    return jaxgmm.GMMParams(p.log_weights, p.means, scale, *model)


@pytest.mark.parametrize(
    "name",
    ["student_t(full)", "student_t(full, 5)", "contaminated(tied)", "background(student_t(full, common))"],
)
def test_marginals_and_conditionals_of_other_families_give_the_joint_and_its_moments(name, double):
    fixed = {"student_t(full, 5)": [5.0] * K, "background(student_t(full, common))": [4.0] * K}
    p, x, observed = of_family(name, fixed.get(name, OWN["dof"])), 2 * RNG.normal(size=(3, D)), [3, 0, 1]
    grid = np.sinh(np.linspace(-9, 9, 2001))  # of feature 2, whose tails are heavy
    step = np.cosh(np.linspace(-9, 9, 2001)) * 18 / 2000
    m = jaxgmm.distributions.marginal(p, observed)
    one = jaxgmm.distributions.condition(p, observed, x[0, observed])
    assert one.model.name == name.replace("tied", "full").replace("5", "8")  # 5 degrees of freedom and 3
    if "common" in name:
        np.testing.assert_allclose(one.scale["inner"]["dof"], 7)
    rest = jaxgmm.log_prob(one, grid[:, None])
    rows = np.repeat(x[:1], len(grid), 0)
    rows[:, 2] = grid
    joint = np.asarray(jaxgmm.log_prob(p, rows))
    alone = np.asarray(jaxgmm.log_prob(m, x[:, observed]))
    np.testing.assert_allclose(joint, alone[0] + np.asarray(rest), rtol=1e-11, atol=1e-11)
    if "background" in name:  # which has a density of its own along every feature
        return
    mass = np.exp(joint) * step
    np.testing.assert_allclose(alone[0], np.log(mass.sum()), rtol=1e-7, atol=1e-7)
    got = jaxgmm.distributions.regress(p, x[:, observed], observed)
    mean = mass @ grid / mass.sum()
    np.testing.assert_allclose(got.mean[0, 0], mean, rtol=1e-7)
    np.testing.assert_allclose(got.covariance[0, 0, 0], mass @ (grid - mean) ** 2 / mass.sum(), rtol=1e-6)


def test_a_marginal_of_t_components_is_scipys_and_in_the_limit_all_is_gaussian(double):
    p, x = of_family("student_t(full)"), RNG.normal(size=(4, D))
    m = jaxgmm.distributions.marginal(p, [2, 0])
    cov = p.scale["scatter"] @ p.scale["scatter"].transpose(0, 2, 1)
    two = np.ix_([2, 0], [2, 0])
    theirs = [stats.multivariate_t(p.means[k, [2, 0]], cov[k][two], OWN["dof"][k]) for k in range(K)]
    parts = [t.pdf(x[:, :2]) for t in theirs]
    np.testing.assert_allclose(
        jaxgmm.log_prob(m, x[:, :2]), np.log(np.exp(p.log_weights) @ parts), rtol=1e-12
    )
    limit, plain = of_family("student_t(full)", [1e13] * K), mixture()
    of_t, gaussian = (jaxgmm.distributions.condition(a, [1], [0.3]) for a in (limit, plain))
    for field in ("log_weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(of_t, field), getattr(gaussian, field), rtol=1e-8, atol=1e-8)


def test_conditioning_in_float32_keeps_small_variances():
    # Two features that agree to 1e-3: the Schur complement, by subtraction, would be rounding.
    gap = 1e-3
    lower = np.tile(np.array([[1, 0], [1, gap]], np.float32), (K, 1, 1))
    got = jaxgmm.distributions.condition(
        dataclasses.replace(mixture(D=2, dtype=np.float32), scale=lower), [1], [2.0]
    )
    np.testing.assert_allclose(dense(got)[2][:, 0, 0], 1 - 1 / (1 + gap**2), rtol=1e-3)


def test_far_away_a_conditional_is_still_a_mixture():
    got = jaxgmm.distributions.condition(mixture(D=2, dtype=np.float32), [1], [1e15])
    assert np.isfinite(got.means).all()
    np.testing.assert_allclose(dense(got)[0].sum(), 1, rtol=1e-6)


def test_entropy_lies_between_its_bounds(double):
    p = padded(mixture(D=1, seed=3))
    grid = np.linspace(-15, 15, 20001)
    values = density(p, grid[:, None])
    entropy = integrate.trapezoid(-values * np.log(np.maximum(values, 1e-300)), grid)
    lower, upper = jaxgmm.distributions.entropy_bounds(p)
    assert lower < entropy < upper
    one = padded(mixture(D=1, seed=3))  # of which one component is on
    one.log_weights[:], one.scale[:] = [0, *[-np.inf] * K], 2.0
    lower, upper = jaxgmm.distributions.entropy_bounds(one)
    np.testing.assert_allclose(upper, 0.5 * np.log(2 * np.pi * np.e * 4))
    np.testing.assert_allclose(lower, np.log(2 * np.sqrt(4 * np.pi)))


def test_l2_distance_is_the_integral(double):
    p, q = padded(mixture(D=1, seed=1)), padded(mixture(D=1, seed=2))
    grid = np.linspace(-20, 20, 40001)[:, None]
    square = integrate.trapezoid((density(p, grid) - density(q, grid)) ** 2, grid[:, 0])
    distance = quick_jit(jax.value_and_grad(jaxgmm.distributions.l2_distance))
    np.testing.assert_allclose(distance(p, q)[0], np.sqrt(square), rtol=1e-8)
    value, slope = distance(p, p)
    assert value < 1e-7
    assert np.isfinite(slope.means).all()


KEYS, DRAWN = 400, 2000
# The second mixture's weights, means and variances, beside 0.4 N(−0.5, 1) + 0.6 N(0.5, 0.8).
TAILS = {
    "heavier": ([0.5, 0.5], [2.0, 4.0], [4.0, 5.0]),  # the ratio of the densities has no variance
    "lighter": ([0.6, 0.4], [1.2, 1.5], [0.4, 0.6]),
}


def test_kl_divergence_and_its_gradient_are_calibrated(double):
    def pair(weights, means, variances):
        return build("spherical", weights, np.array(means)[:, None], np.array(variances)[:, None, None])

    p = pair([0.4, 0.6], [-0.5, 0.5], [1.0, 0.8])
    grid = np.linspace(-30.0, 30.0, 12001)[:, None]

    def exact(p, q):
        a, b = density(p, grid), density(q, grid)
        some = (a > 0) & (b > 0)
        values = np.where(some, a * np.log(np.where(some, a, 1) / np.where(some, b, 1)), 0)
        return values.sum() * (grid[1, 0] - grid[0, 0])

    def slopes_of(p, q):
        """By differences, of each number of both mixtures."""
        leaves, structure = jax.tree.flatten((p, q))
        for i, leaf in enumerate(leaves):
            slope = np.empty_like(leaf)
            for at in np.ndindex(leaf.shape):
                values = []
                for h in (1e-5, -1e-5):
                    moved = leaf.copy()
                    moved[at] += h
                    values.append(exact(*structure.unflatten([*leaves[:i], moved, *leaves[i + 1 :]])))
                slope[at] = (values[0] - values[1]) / 2e-5
            yield slope

    @jit  # the package's, for it takes longer to run than to compile
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def estimates(key, p, q):
        def value(p, q):
            got = jaxgmm.distributions.kl_divergence(key, p, q, DRAWN)
            return got.value, got.standard_error

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(p, q)

    for other in TAILS.values():
        q = pair(*other)
        (value, error), slopes = estimates(jax.random.split(jax.random.key(1), KEYS), p, q)
        wanted = exact(p, q)
        z = np.asarray((value - wanted) / error)
        # The mean of 400 has the standard error 0.05; the terms' skewness, up to 2.7, adds −2.7 / (2 √2000).
        assert abs(z.mean()) < 3.5 / KEYS**0.5 + 0.03
        # Of 400 intervals of 95 % each; 0.011 is the binomial standard error.
        assert abs((np.abs(z) < 1.96).mean() - 0.95) < 3.5 * (0.95 * 0.05 / KEYS) ** 0.5
        for found, e in zip(jax.tree.leaves(slopes), slopes_of(p, q), strict=True):
            gap = np.asarray(found).mean(0) - e
            assert (np.abs(gap) < 4 * np.asarray(found).std(0) / KEYS**0.5).all()


def test_kl_divergence_of_near_and_of_distant_mixtures_in_float32():
    def pair(by):
        return (build("spherical", [1], [[m]], np.ones((1, 1, 1)), np.float32) for m in (0.0, by))

    @quick_jit
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def divergence(p, q):
        got = jaxgmm.distributions.kl_divergence(jax.random.key(0), p, q, DRAWN)
        return got.value, got.standard_error

    p, q = pair(0.0)
    (value, error), _ = divergence(p, q)
    assert value == error == 0
    for by in (1e-2, 1.0, 30.0, 1e10):
        (found, _), slope = divergence(*pair(by))
        np.testing.assert_allclose(found, by**2 / 2, rtol=0.1)  # of which the first is 5e-5
        np.testing.assert_allclose(slope.means[0, 0], by, rtol=0.2)
    with pytest.raises(ValueError, match="n_samples must be at least 4"):
        jaxgmm.distributions.kl_divergence(jax.random.key(0), p, q, 3)


def test_the_bures_distance_is_the_textbooks(double):
    p, q = mixture(seed=6), mixture("tied", seed=7)
    got = quick_jit(squared_bures)(p, q)
    _, mu, cov = dense(p)
    _, nu, tau = dense(q)
    for i in range(K):
        for j in range(K):
            root = linalg.sqrtm(cov[i])
            inner = np.real(np.trace(linalg.sqrtm(root @ tau[j] @ root)))
            expected = ((mu[i] - nu[j]) ** 2).sum() + np.trace(cov[i]) + np.trace(tau[j]) - 2 * inner
            np.testing.assert_allclose(got[i, j], expected, rtol=1e-9)


def test_wasserstein_is_the_linear_programmes_optimum_and_its_gradient_is_right(double):
    p, q = mixture(seed=6), mixture("diag", seed=7)

    def value(t):
        moved = dataclasses.replace(
            p, log_weights=jax.nn.log_softmax(p.log_weights + t * np.array([0.5, -1.0, 0.2])),
            means=p.means + t * np.sin(p.means), scale=p.scale * jnp.sqrt(1 + t),
        )  # fmt: skip
        return jaxgmm.distributions.wasserstein(moved, padded(q)), squared_bures(moved, q)

    h = 1e-5
    slope = jax.vmap(jax.value_and_grad(value, has_aux=True))
    (values, costs), slopes = quick_jit(slope)(np.array([0, h, -h]))
    np.testing.assert_allclose(slopes[0], (values[1] - values[2]) / (2 * h), rtol=1e-6)
    equal = np.vstack([np.kron(np.eye(K), np.ones(K)), np.kron(np.ones(K), np.eye(K))])
    weights = np.exp(np.r_[p.log_weights, q.log_weights])
    best = optimize.linprog(np.ravel(costs[0]), A_eq=equal, b_eq=weights)
    np.testing.assert_allclose(values[0], np.sqrt(best.fun), rtol=1e-8)
    np.testing.assert_allclose(values[0], jaxgmm.distributions.wasserstein(p, q), rtol=1e-12)


def test_distances_of_equal_mixtures_in_float32_are_rounding_with_finite_gradients():
    p = mixture(dtype=np.float32)
    far = dataclasses.replace(p, means=p.means + np.float32(1e3))
    assert jaxgmm.distributions.wasserstein(far, far) < 1e-5
    np.testing.assert_allclose(jaxgmm.distributions.wasserstein(p, far), np.sqrt(D) * 1e3, rtol=1e-5)
    gradient = quick_jit(jax.grad(lambda a: jaxgmm.distributions.wasserstein(a, p)))(p)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    p = mixture(dtype=np.float32)
    with pytest.raises(ImportError, match=r"jaxgmm\[transport\]"):
        jaxgmm.distributions.wasserstein(p, p)


def test_bad_features_and_values_are_named():
    p = mixture(dtype=np.float32)
    for features in ([0, 0], [D], [], [-D - 1]):
        with pytest.raises(ValueError, match="features"):
            jaxgmm.distributions.marginal(p, features)
    with pytest.raises(TypeError, match="features"):
        jaxgmm.distributions.marginal(p, [0.5])
    with pytest.raises(ValueError, match="values must have shape"):
        jaxgmm.distributions.condition(p, [0, 1], [1.0])
    with pytest.raises(ValueError, match="not observed"):
        jaxgmm.distributions.condition(p, range(D), np.ones(D))
    with pytest.raises(ValueError, match="X_observed"):
        jaxgmm.distributions.regress(p, [[1.0, 2.0]], [0])
    with pytest.raises(ValueError, match="same features"):
        jaxgmm.distributions.l2_distance(p, mixture(D=2, dtype=np.float32))
