"""Component families beside the Gaussian one: densities, M-steps, and what a fit of them keeps."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma

import jaxgmm
from jaxgmm import EMOptions, GMMParams
from jaxgmm.components import get_model, student_t
from jaxgmm.components.student_t import _degrees
from jaxgmm.plot import plot_fit
from jaxgmm.sklearn import GaussianMixture, GaussianMixtureClassifier
from tests.conftest import case, soft_labels, x64
from tests.problems import LABELS, WEIGHT, D, K, X, quick_fit
from tests.quick import quick_jit

RESP = soft_labels(LABELS, K)
HEAVY = X + 0.3 * np.random.default_rng(5).standard_t(2, X.shape)  # (N, D) with outliers


def start(name, x=HEAVY, dtype=np.float64):
    """A mixture of the labels' weights, means and variances, in NumPy arrays: nothing is compiled for it."""
    groups = [x[k == LABELS] for k in range(K)]
    variances = np.stack([g.var(0) for g in groups])
    model = get_model(name)
    letters = model.covariance.name
    scatter = {
        "full": np.sqrt(variances)[:, :, None] * np.eye(D),
        "tied": np.diag(np.sqrt(variances.mean(0))),
        "diag": np.sqrt(variances),
        "VVE": {"orientation": np.eye(D)[None], "width": np.sqrt(variances)},
        "EVV": {"width": np.ones((1, 1)), "factor": np.broadcast_to(np.eye(D), (K, D, D))},
    }[letters]
    scale = {"scatter": scatter, "dof": np.full(K, 20.0)} if "student_t" in name else scatter
    if "contaminated" in name:
        scale = {"scatter": scatter, "good": np.full(K, 0.9), "inflation": np.full(K, 10.0)}
    if name.startswith("background"):
        scale = {"inner": scale, "log_density": np.full(D, -4.0)}
    weights = np.bincount(LABELS) / len(LABELS)
    arrays = np.log(weights), np.stack([g.mean(0) for g in groups]), scale
    return GMMParams(*jax.tree.map(lambda a: np.asarray(a, dtype), arrays), *model)


unconstrained, constrained = map(quick_jit, (jaxgmm.gradients.unconstrained, jaxgmm.gradients.constrained))


@functools.cache
def fitted():
    """`fit` of t components at its fixed point, in float64."""
    result = quick_fit(start("student_t(diag)"), HEAVY, reg_covar=0.0, tol=1e-9, max_iter=20_000)
    assert result.status == jaxgmm.Status.CONVERGED
    return result


def test_a_t_density_is_scipys_and_a_gaussian_one_in_the_limit(double):
    params = start("student_t(full)")
    factors = np.array(params.scale["scatter"])
    factors[:, 1, 0] = 0.3
    for x, dof in ((HEAVY, [1.5, 4.0, 60.0]), (X, [1e13] * K)):
        scale = {"scatter": factors, "dof": np.array(dof)}
        ours = np.asarray(jaxgmm.component_log_prob(dataclasses.replace(params, scale=scale), x))
        for k in range(K):
            cov = factors[k] @ factors[k].T
            if dof[k] == 1e13:
                theirs = stats.multivariate_normal.logpdf(x, params.means[k], cov)
            else:
                theirs = stats.multivariate_t(params.means[k], cov, df=dof[k]).logpdf(x)
            np.testing.assert_allclose(ours[:, k], theirs, rtol=1e-12, atol=1e-8 if dof[k] == 1e13 else 1e-12)


def test_a_t_density_is_finite_far_away_and_keeps_its_tail():
    params = start("student_t(full, 3)", dtype=np.float32)
    params = dataclasses.replace(params, scale={**params.scale, "dof": np.full(K, 3, np.float32)})
    x = np.zeros((2, D), np.float32)
    x[:, 0] = [1e15, 1e30]
    resp, values = map(np.asarray, jaxgmm.e_step(params, x))
    # The density falls as |x|^−(ν + D).
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[0] - values[1], 6 * 15 * np.log(10), rtol=1e-5)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)


def test_degrees_of_freedom_solve_their_equation_within_the_bounds(dtype):
    def left(dof):
        return digamma(dof / 2) - np.log(dof / 2)

    right = np.array([left(0.5), -1.5, -0.3, -0.02, left(300.0), 0.0, 1.0], dtype)
    exact = [brentq(lambda dof, r=r: left(dof) - r, 0.1, 1e4, xtol=1e-13) for r in right[:5].astype(float)]
    # The left side, −1 / ν, is a difference of numbers near log(ν / 2): at ν = 50 it is rounded by 160 eps.
    tolerance = 400 * np.finfo(dtype).eps
    found = np.asarray(jax.jit(_degrees)(right))
    np.testing.assert_allclose(found, [*np.clip(exact, 1, 200), 200, 200], rtol=tolerance)


def test_a_contaminated_density_is_a_mixture_of_two_gaussian_ones(double):
    params = start("contaminated(full)")
    scale = {**params.scale, "good": np.array([0.6, 0.9, 0.99]), "inflation": np.array([2.0, 30.0, 500.0])}
    params = dataclasses.replace(params, scale=scale)
    ours = np.asarray(jaxgmm.component_log_prob(params, HEAVY))
    for k in range(K):
        cov = params.scale["scatter"][k] @ params.scale["scatter"][k].T
        good, bad = (
            stats.multivariate_normal.pdf(HEAVY, params.means[k], by * cov)
            for by in (1, scale["inflation"][k])
        )
        share = scale["good"][k]
        np.testing.assert_allclose(ours[:, k], np.log(share * good + (1 - share) * bad), rtol=1e-11)
        np.testing.assert_allclose(
            params.covariances[k], (share + (1 - share) * scale["inflation"][k]) * cov, rtol=1e-12
        )
    far = np.zeros((2, D), np.float32)
    far[:, 0] = [1e15, 1e30]
    single = jax.tree.map(np.float32, params)
    resp, values = map(np.asarray, jaxgmm.e_step(single, far))
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)
    assert not np.isnan(values).any()
    drawn, labels = map(np.asarray, quick_jit(lambda: jaxgmm.sample(jax.random.key(0), params, 60_000))())
    np.testing.assert_allclose(np.cov(drawn[labels == 1].T), params.covariances[1], atol=0.5)


def test_a_contaminated_step_is_that_of_the_paper(double):
    """Punzo & McNicholas (2016), §3: the share, then the inflation about the old parameters, then μ and Σ."""
    params = start("contaminated(full)")
    new, _ = jaxgmm.em_step(params, HEAVY, WEIGHT, reg_covar=0.0)
    resp = np.asarray(jaxgmm.responsibilities(params, HEAVY)) * WEIGHT[:, None]
    for k in range(K):
        cov = params.scale["scatter"][k] @ params.scale["scatter"][k].T
        gap = HEAVY - params.means[k]
        length = np.einsum("nd,nd->n", gap @ np.linalg.inv(cov), gap)
        good = params.scale["good"][k] * np.exp(-0.5 * length)
        bad = (1 - params.scale["good"][k]) * 10.0 ** (-D / 2) * np.exp(-0.05 * length)
        v = good / (good + bad)
        r = resp[:, k]
        inflation = (r * (1 - v) * length).sum() / (D * (r * (1 - v)).sum())
        np.testing.assert_allclose(new.scale["good"][k], (r * v).sum() / r.sum(), rtol=1e-10)
        np.testing.assert_allclose(new.scale["inflation"][k], inflation, rtol=1e-10)
        u = r * (v + (1 - v) / inflation)
        mean = u @ HEAVY / u.sum()
        np.testing.assert_allclose(new.means[k], mean, rtol=1e-9)
        away = HEAVY - mean
        expected = (away * u[:, None]).T @ away / r.sum()
        factor = np.asarray(new.scale["scatter"][k])
        np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-9, atol=1e-10)


def test_contaminated_components_find_share_and_inflation_of_their_outliers(double):
    rng = np.random.default_rng(0)
    bad = rng.random(4000) < 0.05
    x = rng.normal(size=(4000, 2)) * np.where(bad, 20**0.5, 1)[:, None]
    begin = jaxgmm.make_params([1.0], np.zeros((1, 2)), [np.eye(2)], "contaminated(full)")
    result = quick_fit(begin, x)
    assert result.status == jaxgmm.Status.CONVERGED
    assert abs(float(result.params.scale["good"][0]) - 0.95) < 0.01
    assert abs(float(result.params.scale["inflation"][0]) - 20) < 4
    np.testing.assert_allclose(
        result.params.scale["scatter"][0] @ result.params.scale["scatter"][0].T, np.eye(2), atol=0.07
    )
    found = np.asarray(jaxgmm.outliers(result.params, x)) > 0.5
    precision, recall = (found & bad).sum() / found.sum(), (found & bad).sum() / bad.sum()
    assert 2 * precision * recall / (precision + recall) > 0.8


CLIMB = 60


@quick_jit
def climb(params):
    """EM steps without acceleration: the last mixture, and the log-likelihoods."""

    def iterate(params, _):
        new, statistics = jaxgmm.em_step(params, HEAVY, WEIGHT, reg_covar=0.0)
        return new, statistics.log_likelihood

    return jax.lax.scan(iterate, params, length=CLIMB)


def test_a_step_of_a_t_mixture_never_lowers_its_likelihood(double):
    """Volumes that are free, and not; degrees of freedom of each component, common and fixed."""
    names = [
        "student_t(diag)",
        "student_t(diag, common)",
        "student_t(diag, 3)",
        "student_t(tied)",
        "student_t(EVV)",
    ]
    last, params = {}, {}
    for name in names:
        begin = start(name)
        if name.endswith("3)"):
            begin = dataclasses.replace(begin, scale={**begin.scale, "dof": np.full(K, 3.0)})
        params[name], history = jax.tree.map(np.asarray, climb(begin))
        assert (np.diff(history) >= -1e-13 * np.abs(history[0])).all()
        assert history[-1] > history[0] + 1
        last[name] = history[-1]
    own, common, fixed = (params[name] for name in names[:3])
    assert np.ptp(common.scale["dof"]) == 0
    assert 1 <= common.scale["dof"][0] < 200
    assert (fixed.scale["dof"] == 3).all()
    assert [int(jaxgmm.n_parameters(p)) for p in (fixed, common, own)] == [20, 21, 23]
    # More freedom, more likelihood.
    assert max(last[names[1]], last[names[2]]) <= last[names[0]] + 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "contaminated(full)",
        "contaminated(tied)",
        "contaminated(diag)",
        "contaminated(VVE)",
        "contaminated(EVV)",
    ],
)
def test_a_step_of_a_contaminated_mixture_never_lowers_its_likelihood(name, double):
    params, history = jax.tree.map(np.asarray, climb(start(name)))
    assert (np.diff(history) >= -1e-13 * np.abs(history[0])).all()
    assert history[-1] > history[0] + 1
    assert (params.scale["good"] >= 0.5).all()
    assert (params.scale["inflation"] > 1).all()
    assert (
        int(jaxgmm.n_parameters(params)) == int(jaxgmm.n_parameters(start(name.split("(")[1][:-1]))) + 2 * K
    )


@quick_jit
def gradient(params, rows):
    theta = jaxgmm.gradients.unconstrained(params)
    return jax.grad(jaxgmm.gradients.negative_log_likelihood)(theta, params, rows)


def test_the_gradient_is_zero_at_a_contaminated_fit_with_gaps(double):
    gaps = np.where(np.random.default_rng(0).random(HEAVY.shape) < 0.2, np.nan, HEAVY)
    rows = jaxgmm.observe(gaps, missing="nan")
    result = quick_fit(start("contaminated(diag)"), rows, reg_covar=0.0, tol=1e-10, max_iter=20_000)
    assert result.status == jaxgmm.Status.CONVERGED
    slopes = jax.tree.map(np.array, gradient(result.params, rows))
    good = np.asarray(result.params.scale["good"])
    inside = (good < 0.9985) & (good > 0.5005)
    slopes["extra"][~inside] = 0
    assert inside.any()
    assert max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(slopes)) < 1e-7


def test_the_gradient_is_zero_at_the_fit(double):
    """But for degrees of freedom that a fit left at their upper bound, 200, whose slope points beyond it."""
    params = fitted().params
    slopes = jax.tree.map(np.array, gradient(params, HEAVY))
    bound = np.asarray(params.scale["dof"]) > 199.9
    assert (slopes["extra"][bound] < 0).all()
    slopes["extra"][bound] = 0
    assert max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(slopes)) < 1e-7


def test_a_derivative_through_a_background_of_t_components_is_the_difference(double):
    begin = start("background(student_t(diag))")

    def numbers(log_weight):
        weight = WEIGHT * jnp.where(np.abs(HEAVY).max(1) > 4, jnp.exp(log_weight), 1)
        params = jaxgmm.fit(begin, HEAVY, weight, reg_covar=0.0, tol=1e-11, max_iter=20_000).params
        return jnp.stack([params.scale["inner"]["dof"][0], params.means[0, 0], params.weights[1]])

    value_and_slope = quick_jit(lambda at: jax.jvp(numbers, (at,), (1.0,)))
    h = 1e-4  # the fits are within 1e-11 of their fixed points, and the difference within h²
    (value, slope), (up, _), (down, _) = (map(np.asarray, value_and_slope(at)) for at in (0.0, h, -h))
    assert 1 < value[0] < 100
    assert (np.abs(slope) > [0.01, 1e-4, 1e-4]).all()
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-4)
    theta = jax.tree.map(np.asarray, unconstrained(begin))
    np.testing.assert_allclose(theta["extra"], np.log(begin.scale["inner"]["dof"]))
    again = constrained(theta, begin).scale["inner"]["dof"]
    np.testing.assert_allclose(again, begin.scale["inner"]["dof"])


def test_outliers_move_a_t_mixture_less_than_a_gaussian_one(double):
    rng = np.random.default_rng(2)
    truth = np.array([[-4.0] * D, [4.0] * D, [12.0] * D])
    x = truth[LABELS] + rng.normal(size=X.shape)
    x[:10] = rng.uniform(-60, 60, (10, D))
    fits = []
    for name in ("diag", "student_t(diag)"):
        begin = dataclasses.replace(start(name, x), means=truth)
        fits.append(quick_fit(begin, x, reg_covar=0.0, tol=1e-9, max_iter=20_000).params)
    plain, robust = (np.abs(np.asarray(p.means) - truth).max() for p in fits)
    assert robust < 0.5 < plain


def test_samples_of_a_t_mixture_have_its_covariance():
    scatter = np.array([[2.0, 0.5], [0.5, 1.0]], np.float32)
    scale = {"scatter": np.linalg.cholesky(scatter)[None], "dof": np.full(1, 8, np.float32)}
    params = GMMParams(np.zeros(1, np.float32), np.array([[1, 2]], np.float32), scale, student_t("full", 8))
    drawn = quick_jit(lambda: jaxgmm.sample(jax.random.key(0), params, 200_000)[0])()
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), params.covariances[0], atol=0.06)
    np.testing.assert_allclose(params.covariances[0], 8 / 6 * scatter, rtol=1e-5)


def test_a_background_takes_the_outliers_and_nothing_else():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 0.3, (180, 3)), rng.uniform(-5, 5, (20, 3))]).astype(np.float32)
    box = np.full(3, -np.log(10), np.float32)
    scale = {"inner": np.stack([0.3 * np.eye(3), np.eye(3)]), "log_density": box}
    arrays = np.log([0.9, 0.1]), np.zeros((2, 3)), scale
    begin = GMMParams(*jax.tree.map(np.float32, arrays), *get_model("background(full)"))
    result = quick_fit(begin, x)
    assert result.status == jaxgmm.Status.CONVERGED
    weight = float(result.params.weights[1])
    assert abs(weight - 0.1) < 0.03
    assert int(jaxgmm.n_parameters(result.params)) == 9 + 1
    resp, log_prob = map(np.asarray, jaxgmm.e_step(result.params, x))
    assert (resp[180:].argmax(1) == 1).mean() > 0.9
    known = resp[:, 1] > 1e-30
    density = np.log(resp[known, 1]) + log_prob[known] - np.log(weight)
    np.testing.assert_allclose(density, box.sum(), rtol=1e-6)
    far = jaxgmm.e_step(result.params, np.full_like(x, 1e20))[0]
    np.testing.assert_allclose(far, [[0, 1]] * len(x))


def test_every_way_to_fit_gives_the_fit(double):
    begin, one = start("student_t(diag)"), fitted()
    batch = jax.tree.map(lambda a: np.stack([a, a]), begin)
    near = dataclasses.replace(one.params, means=one.params.means + 0.1)  # a stream goes step by step
    run = functools.partial(jaxgmm.fit_restarts, n_components=K, reg_covar=0.0)
    restarts = quick_jit(lambda key: run(key, HEAVY, init=batch))(jax.random.key(0))
    for other in (
        jax.tree.map(lambda a: np.asarray(a)[0], restarts),
        jaxgmm.fit_stream(near, [HEAVY[:100], HEAVY[100:]], reg_covar=0.0),
    ):
        # Each stops within tol = 1e-5 of the fixed point in Fisher length; means in units of their widths.
        np.testing.assert_allclose(other.log_likelihood, one.log_likelihood, atol=2e-6)
        np.testing.assert_allclose(other.params.means, one.params.means, atol=3e-3)


def test_a_model_is_saved_printed_and_pickled_by_its_name(tmp_path):
    params = start("student_t(VVE, common)-equal", dtype=np.float32)
    jaxgmm.save(tmp_path / "model.npz", params)
    again = jaxgmm.load(tmp_path / "model.npz")
    assert again.model == params.model
    assert "student_t(VVE, common)-equal" in repr(again)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for model in (params.model, get_model("background(student_t(tied))"), get_model("full-ratio(3)")):
        assert pickle.loads(pickle.dumps(model)) == model
    assert "±" in str(params)


def of_t():
    return start("student_t(full)", dtype=np.float32)


def with_background():
    return start("background(full)", dtype=np.float32)


def key():
    return jax.random.key(0)


def test_what_a_component_cannot_do_is_refused_by_name():
    for call, message in [
        (lambda: student_t("full", "many"), "dof must be None"),
        (lambda: student_t("full", -1.0), "dof must be None"),
        (lambda: get_model("student_t(WWW)"), "must be one of"),
        (lambda: get_model(3), "covariance_type must be a name"),
        (lambda: jaxgmm.fit(of_t(), X, prior=jaxgmm.Prior(dof=5.0, scale=1.0)), "prior must be"),
        (lambda: jaxgmm.fit(of_t(), X, options=EMOptions(kernel="quadratic")), "no quadratic kernel"),
        (lambda: get_model("background(full, 3)"), "must be one of"),
        (lambda: jaxgmm.sample(key(), with_background(), 10), "cannot be sampled"),
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
        (lambda: jaxgmm.distributions.entropy_bounds(of_t()), "needs Gaussian components"),
        (lambda: jaxgmm.distributions.regress(with_background(), X[:, :1], [0]), "has no moments"),
        (lambda: jaxgmm.fit_stream(of_t(), [X], incremental=True), "second moments"),
        (lambda: jaxgmm.fit_variational(RESP, X, covariance_type="student_t(full)"), "for a variational"),
        (
            lambda: jaxgmm.fit_restarts(key(), X, 2, covariance_type=student_t(), prior="default"),
            "prior must be",
        ),
    ]:
        with case(message), pytest.raises((ValueError, TypeError), match=message):
            call()


def test_weights_that_are_fixed_stay_so_in_every_fit():
    """And equal ones: see tests/test_equal_weights.py."""
    x, wanted = X.astype(np.float32), [0.2, 0.3, 0.5]
    begin = start("full-fixed", X, np.float32)
    begin = dataclasses.replace(begin, log_weights=np.log(np.float32(wanted)))
    for accelerate in (True, False):
        np.testing.assert_allclose(
            quick_fit(begin, x, accelerate=accelerate).params.weights, wanted, rtol=1e-6
        )
    assert int(jaxgmm.n_parameters(begin)) == 27
    with x64(False):
        theta = unconstrained(begin)
    assert theta["logits"].size == 0
    np.testing.assert_allclose(constrained(theta, begin).weights, wanted, rtol=1e-6)


def test_outliers_are_what_each_family_takes_for_one(double):
    """The share of a Gaussian's rows that lie nearer, or the posterior probability."""
    x = HEAVY[:50]
    for name in ("full", "student_t(full)"):
        params = start(name)
        drawn, _ = quick_jit(lambda p=params: jaxgmm.sample(jax.random.key(0), p, 20_000))()
        one = jaxgmm.mixture.take(params, np.array([0]))
        rows = np.asarray(drawn)[np.asarray(jaxgmm.predict(params, drawn)) == 0][:1]
        gap = np.linalg.solve(np.asarray(one.scatter[0]), (rows - np.asarray(one.means)).T)
        share = float(jaxgmm.outliers(dataclasses.replace(one, log_weights=np.zeros(1)), rows)[0])
        length = float((gap**2).sum())
        assert abs(share - stats.chi2(D).cdf(length)) < 1e-10
    resp = np.asarray(jaxgmm.responsibilities(start("background(full)"), x))
    np.testing.assert_allclose(
        jaxgmm.outliers(start("background(full)"), x), resp[:, -1], rtol=1e-10, atol=1e-14
    )
    gaps = np.where(np.random.default_rng(0).random(x.shape) < 0.3, np.nan, x)
    for name in ("full", "student_t(diag)", "contaminated(full)", "background(diag)"):
        found = np.asarray(jaxgmm.outliers(start(name), jaxgmm.observe(gaps, missing="nan")))
        assert ((found >= 0) & (found <= 1)).all()
        whole = ~np.isnan(gaps).any(1)
        complete = np.asarray(jaxgmm.outliers(start(name), x))
        np.testing.assert_allclose(found[whole], complete[whole], rtol=1e-9, atol=1e-12)


def test_a_background_is_put_beside_a_mixture_with_the_density_of_its_box(double):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(0, 0.4, (360, 2)), rng.normal(4, 0.4, (360, 2)), rng.uniform(-6, 10, (80, 2))]
    )
    start = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [4.0, 4.0]], np.stack([np.eye(2)] * 2))
    sides = np.ptp(x, axis=0)
    for extent in (x, sides, sides.prod()):
        both = jaxgmm.mixture.with_background(start, extent, 0.1)
        density = np.asarray(jaxgmm.component_log_prob(both, x[:1]))[0, -1]
        np.testing.assert_allclose(density, -np.log(sides.prod()), rtol=1e-12)
        np.testing.assert_allclose(both.weights, [0.45, 0.45, 0.1], rtol=1e-12)
    result = quick_fit(jaxgmm.mixture.with_background(start, x), x)
    assert result.status == jaxgmm.Status.CONVERGED
    assert abs(float(result.params.weights[2]) - 0.1) < 0.02
    away = np.minimum(np.linalg.norm(x, axis=1), np.linalg.norm(x - 4, axis=1)) > 2
    labels = np.asarray(jaxgmm.predict(result.params, x))
    assert (labels[away] == 2).all()
    assert ((labels == 2) == (np.asarray(jaxgmm.outliers(result.params, x)) > 0.5)).mean() > 0.98
    for extent, words in ((x[:, :1], "extent must be"), (-1.0, "positive"), (np.zeros(2), "positive")):
        with pytest.raises(ValueError, match=words):
            jaxgmm.mixture.with_background(start, extent)
    with pytest.raises(ValueError, match="already"):
        jaxgmm.mixture.with_background(both, x)
    with pytest.raises(ValueError, match="cannot be held"):
        jaxgmm.mixture.with_background(jaxgmm.mixture.hold(start, means=True), x)
