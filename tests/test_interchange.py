"""Mixtures that go to other libraries and come back: the densities agree, and nothing is lost."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn.mixture import BayesianGaussianMixture
from sklearn.mixture import GaussianMixture as Theirs

import jaxgmm
from jaxgmm import interchange
from jaxgmm.sklearn import GaussianMixture as Ours
from tests.closed import build
from tests.conftest import case, given, overlapping, x64
from tests.quick import quick_jit

CORE = ["diag", "full", "spherical", "tied"]
X, LABELS = overlapping(120, 3, 3)


MEANS = np.stack([X[k == LABELS].mean(0) for k in range(3)])
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3, 3)))[0]
LETTERS = {"full": "VVV", "full-equal": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}
# With "VEE" every letter of mclust's names at every place; and a name with an end that mclust does not know.
NAMES = [*CORE, "EVI", "EEV", "full-equal"]


@functools.cache
def numbers_of(name):
    """Weights, means and covariances (K, D, D) of the volume, shape and orientation of a structure."""
    volume, shape, axes = LETTERS.get(name, name)
    volumes = np.array({"E": [1, 1, 1], "V": [1, 2, 0.5]}[volume])
    even, odd = [2, 1, 0.5], [4, 0.5, 0.5]
    shapes = np.array({"I": [[1, 1, 1]] * 3, "E": [even] * 3, "V": [even, odd, [1, 4, 0.25]]}[shape])
    rotations = {"I": np.stack([np.eye(3)] * 3), "E": AXES[[0, 0, 0]], "V": AXES}[axes]
    covariances = np.einsum("k,kij,kj,klj->kil", volumes, rotations, shapes, rotations)
    weights = np.full(3, 1 / 3) if name == "full-equal" else np.array([0.2, 0.3, 0.5])
    return weights, MEANS, covariances


@functools.cache
def mixture_of(name):
    """One mixture of a structure, float64."""
    weights, means, covariances = numbers_of(name)
    with x64(True):
        structure = jaxgmm.components.get_model(name).covariance
        return jaxgmm.make_params(weights, means, given(structure, covariances), structure)


def with_one_off(dtype):
    """Three components of one feature, of which the second has no weight."""
    with np.errstate(divide="ignore"):
        return build("spherical", [0.5, 0, 0.5], [[0], [1], [9]], np.array([1.0, 1, 2])[:, None, None], dtype)


def density(weights, means, covariances, x):
    """log p(x) by SciPy."""
    parts = zip(weights, means, covariances, strict=True)
    return np.log(sum(w * stats.multivariate_normal(m, c).pdf(x) for w, m, c in parts))


# scikit-learn


def test_scikit_learns_estimator_computes_the_same(double):
    for name in [*CORE, "EEV"]:
        with case(name):
            params = mixture_of(name)
            mixture = interchange.to_sklearn(params)
            assert isinstance(mixture, Theirs)
            assert mixture.covariance_type == (name if name in CORE else "full")
            log_density = density(*numbers_of(name), X)
            assert_allclose(mixture.score_samples(X), log_density, rtol=1e-9)
            assert mixture.sample(10)[0].shape == (10, 3)
            if name in CORE:
                bic = -2 * log_density.sum() + jaxgmm.n_parameters(params) * np.log(len(X))
                assert_allclose(mixture.bic(X), bic, rtol=1e-9)
                back = interchange.from_sklearn(mixture)
                assert back.covariance == params.covariance
                for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
                    assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_any_fitted_estimator_gives_its_mixture(double):
    theirs = BayesianGaussianMixture(
        n_components=2, covariance_type="tied", random_state=0, max_iter=500
    ).fit(X)
    params = interchange.from_sklearn(theirs)
    assert params.model.name == "tied"
    lower = np.asarray(params.scale)
    assert_allclose(lower @ lower.T, theirs.covariances_, rtol=1e-8)
    ours = Ours.from_params(mixture_of("EEV"))
    assert interchange.from_sklearn(ours).model.name == "EEV"


def test_float32_is_what_jax_has_by_default():
    params = interchange.from_sklearn(Theirs(2, random_state=0).fit(X))
    assert params.means.dtype == jnp.float32
    again = interchange.from_sklearn(interchange.to_sklearn(params))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert_allclose(a, b, rtol=1e-7)


def test_what_is_off_is_left_out(double):
    params = with_one_off(np.float64)
    mixture = interchange.to_sklearn(params)
    assert mixture.means_.tolist() == [[0.0], [9.0]]
    assert interchange.to_mclust(params)["mean"].tolist() == [0.0, 9.0]


def test_what_is_no_fitted_mixture():
    for estimator, error, match in [
        (Theirs(2), ValueError, "not fitted"),
        ("full", TypeError, "got str"),
        (Theirs(2).fit(X), ValueError, "precisions_cholesky_"),
    ]:
        with case(error, match):
            if match == "precisions_cholesky_":
                estimator.precisions_cholesky_ = np.eye(3)
            with pytest.raises(error, match=match):
                interchange.from_sklearn(estimator)


# mclust


def test_mclusts_fits_have_the_likelihood_that_mclust_reports(mclust, double):
    iris = mclust["iris"]
    fit = iris["fits"]["VVV,3"]
    p = fit["parameters"]
    # R's arrays have the component last.
    variance = {"modelName": ["VVV"], "sigma": np.moveaxis(np.asarray(p["sigma"]), 0, 2).tolist()}
    given = {"pro": p["pro"], "mean": np.transpose(p["mean"]).tolist(), "variance": variance}
    params = interchange.from_mclust(json.loads(json.dumps({"parameters": given, "modelName": ["VVV"]})))
    assert params.covariance == jaxgmm.components.get_covariance("VVV")
    weights, means, lower = (np.asarray(a) for a in jax.tree.leaves(params))
    found = density(np.exp(weights), means, lower @ lower.transpose(0, 2, 1), np.asarray(iris["X"]))
    assert_allclose(found.sum(), fit["loglik"], rtol=1e-6)


def test_mclusts_parameters_come_back(double):
    for name in NAMES:
        with case(name):
            sent = interchange.to_mclust(mixture_of(name))
            variance = sent["variance"]
            names = {"tied": "EEE", "diag": "VVI", "spherical": "VII"}
            assert variance["modelName"] == names.get(name, name if len(name) == 3 else "VVV")
            again = interchange.to_mclust(interchange.from_mclust(sent))
            weights, means, covariances = numbers_of(name)
            for mixture in (sent, again):
                sigma = np.moveaxis(mixture["variance"]["sigma"], 2, 0)
                for a, b in ((mixture["pro"], weights), (mixture["mean"].T, means), (sigma, covariances)):
                    assert_allclose(a, b, rtol=1e-6, atol=1e-8)

            check_parts(variance, covariances)


def test_an_orientation_that_components_share_is_found():
    covariances = numbers_of("VEE")[2]
    check_parts({"modelName": "VEE"} | interchange.mclust._details("VEE", covariances), covariances)


def check_parts(variance, covariances):
    """The parts that mclust's own functions read are those of its sigma."""
    if "cholsigma" in variance:
        u = np.moveaxis(variance["cholsigma"], 2, 0)
        assert_allclose(np.swapaxes(u, 1, 2) @ u, covariances, rtol=1e-9)
    elif "cholSigma" in variance:
        assert_allclose(variance["cholSigma"].T @ variance["cholSigma"], variance["Sigma"], rtol=1e-9)
    else:
        scale = np.broadcast_to(variance["scale"], 3)
        assert_array_equal(scale, variance.get("sigmasq", scale))
        shape = variance.get("shape", np.ones(3))
        shape = np.broadcast_to(shape if shape.ndim == 2 else shape[:, None], (3, 3))
        axes = variance.get("orientation", np.eye(3))
        axes = np.broadcast_to(axes if axes.ndim == 3 else axes[:, :, None], (3, 3, 3))
        assert_allclose(np.prod(shape, 0), 1, rtol=1e-9)
        for k in range(3):
            built = scale[k] * axes[:, :, k] @ np.diag(shape[:, k]) @ axes[:, :, k].T
            assert_allclose(built, covariances[k], rtol=1e-6, atol=1e-8)
        volume, form, turn = variance["modelName"]
        assert np.ndim(variance["scale"]) == (volume == "V")
        assert np.ndim(variance.get("shape", 0)) == {"I": 0, "E": 1, "V": 2}[form]
        assert np.ndim(variance.get("orientation", 0)) == {"I": 0, "E": 2, "V": 3}[turn]


@pytest.mark.parametrize(("name", "model"), [("EII", "E"), ("spherical", "V")])
def test_one_feature_in_mclust(name, model, double):
    variances = 2.0 if name == "EII" else np.array([1.0, 2.0, 3.0])
    params = jaxgmm.make_params([0.2, 0.3, 0.5], MEANS[:, :1], variances, name)
    sent = interchange.to_mclust(params)
    assert sent["variance"]["modelName"] == model
    assert sent["mean"].shape == (3,)
    assert np.ndim(sent["variance"]["sigmasq"]) == (model == "V")
    again = interchange.from_mclust(sent)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert_allclose(a, b, rtol=1e-12)


def test_mclusts_names_for_one_component(double):
    variance = {"modelName": "XXX", "sigma": 2 * np.eye(3)}
    params = interchange.from_mclust({"pro": 1, "mean": [1.0, 2.0, 3.0], "variance": variance})
    assert params.means.tolist() == [[1.0, 2.0, 3.0]]
    assert_allclose(params.scale @ np.eye(3), np.sqrt(2) * np.eye(3))


GOOD = {"pro": [0.5, 0.5], "mean": [[0.0, 1.0]], "variance": {"modelName": "V", "sigmasq": [1.0, 2.0]}}


def test_what_mclust_does_not_give():
    for change, error, match in [
        ({"pro": [0.5, 0.3, 0.2]}, ValueError, "noise component"),
        ({"Vinv": 0.1}, ValueError, "noise component"),
        ({"mean": None}, ValueError, "must have mean"),
        ({"variance": {"sigmasq": [1.0, 2.0]}}, ValueError, "model_name"),
        ({"variance": {"modelName": "V"}}, ValueError, "must have sigmasq"),
        (
            {"variance": {"modelName": "V", "sigmasq": [1.0, 2.0, 3.0]}},
            ValueError,
            "sigmasq must be one number",
        ),
        (
            {"variance": {"modelName": "VVV", "sigma": np.ones((2, 2, 2))}},
            ValueError,
            "sigma must have shape",
        ),
        ({"variance": {"modelName": "VVW", "sigmasq": 1.0}}, ValueError, "VVW"),
        ({"variance": None}, TypeError, "a mapping"),
    ]:
        with case(error, match), pytest.raises(error, match=match):
            interchange.from_mclust(GOOD | change)


# NumPyro, TensorFlow Probability, distrax

LIBRARIES = {
    "numpyro": ("numpyro.distributions", interchange.to_numpyro, interchange.from_numpyro),
    "tfp": ("tensorflow_probability.substrates.jax", interchange.to_tfp, interchange.from_tfp),
    "distrax": ("distrax", interchange.to_distrax, interchange.from_distrax),
}


# What these libraries call of JAX may be deprecated by now.
theirs = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=LIBRARIES)
def library(request):
    module, to, back = LIBRARIES[request.param]
    try:
        importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"{module} cannot be imported here: {error}")
    # These libraries promote ranks and dtypes silently.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield to, back


@theirs
def test_a_distribution_has_the_same_density_and_derivative_and_comes_back(library, double):
    to, back = library

    @quick_jit
    def computed(params):
        def sent(p):
            distribution = to(p)
            log_prob = distribution.log_prob(X)
            return log_prob.sum(), (log_prob, back(distribution))

        slopes, found = jax.grad(sent, has_aux=True)(params)
        return found, slopes, jax.grad(lambda p: jaxgmm.log_prob(p, X).sum())(params)

    params = mixture_of("full")
    (log_prob, again), theirs, ours = computed(params)
    assert_allclose(log_prob, density(*numbers_of("full"), X), rtol=1e-10)
    assert again.model.name == "full"
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert_allclose(theirs.means, ours.means, rtol=1e-8, atol=1e-10)
    assert_allclose(np.tril(theirs.scale), np.tril(ours.scale), rtol=1e-8, atol=1e-10)


@theirs
def test_a_component_that_is_off_stays_off(library):
    to, back = library
    again = np.asarray(quick_jit(lambda p: back(to(p)).log_weights)(with_one_off(np.float32)))
    assert_array_equal(again[1], -np.inf)
    assert_allclose(np.exp(again), [0.5, 0.0, 0.5], rtol=1e-6)


@jax.numpy_rank_promotion("allow")
def test_a_mixture_written_in_numpyro():
    dist = pytest.importorskip("numpyro.distributions", reason="NumPyro is not installed")
    probabilities = dist.Categorical(probs=np.array([0.25, 0.75], np.float32))
    one = dist.MixtureSameFamily(probabilities, dist.Normal(np.array([0.0, 4.0], np.float32), 2.0))
    params = interchange.from_numpyro(one)
    assert params.means.tolist() == [[0.0], [4.0]]
    assert_allclose(np.exp(params.log_weights), [0.25, 0.75], rtol=1e-6)
    assert params.model.name == "diag"
    assert_allclose(params.scale, np.full((2, 1), 2.0))
    shared = dist.MultivariateNormal(np.zeros((2, 1), np.float32), scale_tril=np.eye(1, dtype=np.float32))
    assert interchange.from_numpyro(dist.MixtureSameFamily(probabilities, shared)).scale.shape == (2, 1, 1)


def test_what_no_mixture_of_normals_is():
    dist = pytest.importorskip("numpyro.distributions", reason="NumPyro is not installed")
    half = dist.Categorical(probs=np.array([0.25, 0.75], np.float32))
    with pytest.raises(TypeError, match="MixtureSameFamily; got Normal"):
        interchange.from_numpyro(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match="Gumbel"):
        interchange.from_numpyro(dist.MixtureSameFamily(half, dist.Gumbel(np.zeros(2, np.float32), 1.0)))
    batch = dist.MixtureSameFamily(half, dist.Normal(np.zeros((5, 2), np.float32), 1.0))
    with pytest.raises(ValueError, match="one mixture"):
        interchange.from_numpyro(batch)


def test_what_is_not_one_mixture():
    for to in [interchange.to_sklearn, interchange.to_mclust, interchange.to_numpyro]:
        with case(to):
            with pytest.raises(TypeError, match="GMMParams"):
                to(3)
            with pytest.raises(ValueError, match="one mixture"):
                to(jax.tree.map(lambda a: np.stack([a, a]), mixture_of("full")))


def test_a_library_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise AttributeError("module 'jax' has no attribute 'old'")

    monkeypatch.setattr(interchange.distributions.importlib, "import_module", missing)
    with pytest.raises(ImportError, match="TensorFlow Probability does not work beside JAX"):
        interchange.to_tfp(mixture_of("full"))
