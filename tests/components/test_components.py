"""Component families beside the Gaussian one: densities, M-steps, and what a fit of them keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.components import background, gaussian, get_model, student_t
from jaxgmm.plot import plot_fit
from jaxgmm.sklearn import GaussianMixture, GaussianMixtureClassifier
from tests.conftest import dense, soft_labels, x64
from tests.problems import LABELS, WEIGHT, K, X

KEY, RESP = jax.random.key(0), soft_labels(LABELS, K)
HEAVY = X + 0.3 * np.random.default_rng(5).standard_t(2, X.shape)  # (N, D) with outliers


def start(name, x, weights_rule=""):
    """Starting parameters of a component family from soft labels."""
    return jaxgmm.m_step(soft_labels(LABELS, K, x.dtype), x, covariance_type=name + weights_rule)


def slope(params, x):
    """The largest entry of the negative log-likelihood's gradient per sample in free coordinates.

    Degrees of freedom that a fit left at their upper bound, 200, still have a slope, which points beyond it.
    """
    theta = jaxgmm.gradients.unconstrained(params)
    gradient = jax.grad(jaxgmm.gradients.negative_log_likelihood)(theta, params, x)
    if "extra" in gradient:
        bound = params.scale["dof"][: len(gradient["extra"])] > 199.9
        assert (jnp.where(bound, gradient["extra"], -1) < 0).all()
        gradient["extra"] = jnp.where(bound, 0, gradient["extra"])
    return max(float(jnp.abs(leaf).max(initial=0)) for leaf in jax.tree.leaves(gradient))


def test_a_t_density_is_scipys(double):
    params = start("student_t(full)", HEAVY)
    scale = {**params.scale, "dof": jnp.array([1.5, 4.0, 60.0])}
    params = dataclasses.replace(params, scale=scale)
    factors = np.tril(np.asarray(params.scatter))
    for k in range(K):
        theirs = stats.multivariate_t(
            np.asarray(params.means[k]), factors[k] @ factors[k].T, df=float(scale["dof"][k])
        ).logpdf(HEAVY)
        ours = jaxgmm.component_log_prob(params, HEAVY)[:, k]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_t_density_is_finite_far_away_and_keeps_its_tail():
    params = start("student_t(full, 3)", HEAVY.astype(np.float32))
    far = np.array([[1e15, 0, 0], [1e30, 0, 0]], np.float32)
    values = np.asarray(jaxgmm.log_prob(params, far))
    # The density falls as |x|^−(ν + D).
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[0] - values[1], 6 * 15 * np.log(10), rtol=1e-5)
    np.testing.assert_allclose(jaxgmm.responsibilities(params, far).sum(1), 1, rtol=1e-6)


def test_many_degrees_of_freedom_are_a_gaussian(double):
    one = start("full", X)
    other = dataclasses.replace(one, component=student_t("full", 1e9))
    other = dataclasses.replace(other, scale={"scatter": one.scale, "dof": jnp.full(K, 1e9)})
    np.testing.assert_allclose(jaxgmm.log_prob(other, X), jaxgmm.log_prob(one, X), atol=1e-6)


@pytest.mark.parametrize("name", ["full", "tied", "diag", "EII", "VVE", "EVV"])
def test_a_step_of_a_t_mixture_never_lowers_its_likelihood(name, double):
    params = start(f"student_t({name})", HEAVY)

    def iterate(params, _):
        new, statistics = jaxgmm.em_step(params, HEAVY, WEIGHT, reg_covar=0.0)
        return new, statistics.log_likelihood

    history = np.asarray(jax.lax.scan(iterate, params, length=25)[1])
    assert (np.diff(history) >= -1e-12 * np.abs(history[0])).all()
    assert history[-1] > history[0] + 1


@pytest.mark.parametrize("name", ["student_t(diag)", "background(diag)"])
def test_the_gradient_is_zero_at_the_fit_and_a_derivative_is_the_difference(name, double):
    x = HEAVY
    begin = start(name, x)
    result = jaxgmm.fit(begin, x, reg_covar=0.0, tol=1e-9, max_iter=20_000)
    assert result.status == jaxgmm.Status.CONVERGED
    if not name.startswith("background"):  # whose density has no free coordinates
        assert slope(result.params, x) < 1e-7

    def mean(by):
        fitted = jaxgmm.fit(begin, x * (1 + by), reg_covar=0.0, tol=1e-11, max_iter=20_000)
        return fitted.params.means[0, 0] + fitted.params.weights[1]

    h = 1e-4  # the fits are within 1e-11 of their fixed points, and the difference within h²
    by_difference = (mean(h) - mean(-h)) / (2 * h)
    np.testing.assert_allclose(jax.jvp(mean, (0.0,), (1.0,))[1], by_difference, rtol=1e-4)


def test_a_background_leaves_the_degrees_of_freedom_their_derivative(double):
    begin = start("background(student_t(diag))", HEAVY)
    begin = dataclasses.replace(begin, scale={**begin.scale, "log_density": jnp.asarray(-12.0)})

    def dof(log_weight):
        weight = WEIGHT * jnp.where(jnp.abs(HEAVY).max(1) > 4, jnp.exp(log_weight), 1)
        fitted = jaxgmm.fit(begin, HEAVY, weight, reg_covar=0.0, tol=1e-11, max_iter=20_000)
        return fitted.params.scale["inner"]["dof"][0]

    assert 1 < dof(0.0) < 100
    h = 1e-4  # the fits are within 1e-11 of their fixed points, and the difference within h²
    by_difference = (dof(h) - dof(-h)) / (2 * h)
    assert abs(by_difference) > 0.01
    np.testing.assert_allclose(jax.jvp(dof, (0.0,), (1.0,))[1], by_difference, rtol=1e-3)
    theta = jaxgmm.gradients.unconstrained(begin)
    np.testing.assert_allclose(theta["extra"], jnp.log(begin.scale["inner"]["dof"]))
    again = jaxgmm.gradients.constrained(theta, begin).scale["inner"]["dof"]
    np.testing.assert_allclose(again, begin.scale["inner"]["dof"])


def test_degrees_of_freedom_are_common_or_fixed_where_they_are_asked_to_be():
    x = HEAVY.astype(np.float32)
    common = jaxgmm.fit(start("student_t(diag, common)", x), x).params
    assert np.ptp(common.scale["dof"]) == 0
    assert 1 <= common.scale["dof"][0] < 200
    fixed = jaxgmm.fit(start("student_t(diag, 3)", x), x).params
    assert (fixed.scale["dof"] == 3).all()
    own = jaxgmm.fit(start("student_t(diag)", x), x).params
    counts = [int(jaxgmm.n_parameters(p)) for p in (fixed, common, own)]
    assert counts == [20, 21, 23]
    # More freedom, more likelihood.
    assert jaxgmm.score(fixed, x) <= jaxgmm.score(own, x) + 1e-5
    assert jaxgmm.score(common, x) <= jaxgmm.score(own, x) + 1e-5


def test_outliers_move_a_t_mixture_less_than_a_gaussian_one():
    rng = np.random.default_rng(2)
    clean = np.concatenate([rng.normal(-4, 1, (150, 3)), rng.normal(4, 1, (50, 3))]).astype(np.float32)
    x = np.concatenate([clean[:-10], rng.uniform(-60, 60, (10, 3))]).astype(np.float32)
    begin = jaxgmm.make_params([0.5, 0.5], [[-4.0] * 3, [4.0] * 3], np.ones((2, 3)), "diag")
    plain = jaxgmm.fit(begin, x).params
    robust = jaxgmm.fit(jaxgmm.make_params([0.5, 0.5], begin.means, np.ones((2, 3)), student_t("diag")), x)
    truth = np.array([[-4.0] * 3, [4.0] * 3])
    error = np.abs(robust.params.means - truth).max()
    assert error < 0.5 < np.abs(plain.means - truth).max()


def test_samples_of_a_t_mixture_have_its_covariance():
    params = jaxgmm.make_params([1.0], [[1.0, 2.0]], [[[2.0, 0.5], [0.5, 1.0]]], student_t("full", 8))
    drawn, _ = jaxgmm.sample(jax.random.key(0), params, 200_000)
    np.testing.assert_allclose(np.cov(drawn.T), params.covariances[0], atol=0.06)
    np.testing.assert_allclose(params.covariances[0], 8 / 6 * dense(params)[2][0], rtol=1e-5)


def test_a_background_takes_the_outliers_and_nothing_else():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 0.3, (180, 3)), rng.uniform(-5, 5, (20, 3))]).astype(np.float32)
    begin = jaxgmm.make_params(
        [0.9, 0.1], np.zeros((2, 3)), [0.1 * np.eye(3), np.eye(3)], background(gaussian("full"))
    )
    box = -3 * np.log(10)
    begin = dataclasses.replace(begin, scale={**begin.scale, "log_density": jnp.float32(box)})
    result = jaxgmm.fit(begin, x)
    assert result.status == jaxgmm.Status.CONVERGED
    assert abs(float(result.params.weights[1]) - 0.1) < 0.03
    assert (jaxgmm.predict(result.params, x)[180:] == 1).mean() > 0.9
    np.testing.assert_allclose(jaxgmm.component_log_prob(result.params, x)[:, 1], box, rtol=1e-6)
    assert int(jaxgmm.n_parameters(result.params)) == 9 + 1
    far = jaxgmm.responsibilities(result.params, np.full((1, 3), 1e20, np.float32))
    np.testing.assert_allclose(far, [[0, 1]])


@pytest.mark.parametrize("name", ["student_t(diag)"])
def test_every_way_to_fit_gives_the_fit(name):
    x = HEAVY.astype(np.float32)
    begin = start(name, x)
    one = jaxgmm.fit(begin, x)
    assert one.status == jaxgmm.Status.CONVERGED
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), begin)
    for other in (
        jax.tree.map(lambda a: a[0], jaxgmm.fit_restarts(jax.random.key(0), x, K, init=batch)),
        jaxgmm.fit_stream(begin, [x[:90], x[90:]]),
    ):
        # Each stops within tol = 1e-5 of the fixed point in Fisher length; means in units of their widths.
        np.testing.assert_allclose(other.log_likelihood, one.log_likelihood, atol=2e-6)
        np.testing.assert_allclose(other.params.means, one.params.means, atol=3e-3)


def test_a_model_is_saved_printed_and_pickled_by_its_name(tmp_path):
    import pickle

    params = start("student_t(VVE, common)", X.astype(np.float32), "-equal")
    jaxgmm.save(tmp_path / "model.npz", params)
    again = jaxgmm.load(tmp_path / "model.npz")
    assert again.model == params.model
    assert "student_t(VVE, common)-equal" in repr(again)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, params))
    assert pickle.loads(pickle.dumps(params)).model == params.model
    assert "±" in str(params)


def of_t():
    return start("student_t(full)", X)


def with_background():
    return start("background(full)", X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_t("full", "many"), "dof must be None"),
        (lambda: student_t("full", -1.0), "dof must be None"),
        (lambda: get_model("student_t(WWW)"), "must be one of"),
        (lambda: get_model(3), "covariance_type must be a name"),
        (lambda: jaxgmm.fit(of_t(), X, prior=jaxgmm.Prior(dof=5.0, scale=1.0)), "prior must be"),
        (lambda: jaxgmm.fit(of_t(), X, options=EMOptions(kernel="quadratic")), "no quadratic kernel"),
        (lambda: get_model("background(full, 3)"), "must be one of"),
        (lambda: jaxgmm.sample(KEY, with_background(), 10), "cannot be sampled"),
        (lambda: jaxgmm.inference.standard_errors(with_background(), X), "without a background"),
        (lambda: plot_fit(of_t(), X), "plot needs Gaussian components"),
        (lambda: GaussianMixture(2, covariance_type="student_t(diag)").fit(X), "estimators have Gaussian"),
        (
            lambda: GaussianMixture(2, covariance_type="background(diag)", n_init="auto").fit(X),
            "have Gaussian",
        ),
        (lambda: GaussianMixture.from_params(of_t()), "from_params needs Gaussian"),
        (
            lambda: GaussianMixtureClassifier(covariance_type="student_t(diag)", model_type="EDDA").fit(
                X, LABELS
            ),
            "estimators have Gaussian",
        ),
        (lambda: jaxgmm.distributions.marginal(of_t(), [0]), "needs Gaussian components"),
        (lambda: jaxgmm.fit_stream(of_t(), [X], incremental=True), "second moments"),
        (lambda: jaxgmm.fit_variational(RESP, X, covariance_type="student_t(full)"), "for a variational"),
        (
            lambda: jaxgmm.fit_restarts(KEY, X, 2, covariance_type=student_t(), prior="default"),
            "prior must be",
        ),
    ],
)
def test_what_a_component_cannot_do_is_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("rule", ["equal", "fixed"])
def test_a_rule_for_the_weights_holds_in_every_fit(rule):
    x = X.astype(np.float32)
    begin = jaxgmm.make_params(
        [0.2, 0.3, 0.5], start("full", x).means, np.stack([np.eye(3)] * 3), f"full-{rule}"
    )
    wanted = [1 / 3] * 3 if rule == "equal" else [0.2, 0.3, 0.5]
    for fitted in (jaxgmm.fit(begin, x).params, jaxgmm.fit(begin, x, accelerate=False).params):
        np.testing.assert_allclose(fitted.weights, wanted, rtol=1e-6)
    assert int(jaxgmm.n_parameters(begin)) == 27
    with x64(False):
        theta = jaxgmm.gradients.unconstrained(begin)
    assert theta["logits"].size == 0
    np.testing.assert_allclose(jaxgmm.gradients.constrained(theta, begin).weights, wanted, rtol=1e-6)
