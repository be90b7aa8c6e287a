"""`GaussianMixtureClassifier` and `GaussianMixtureRegressor`."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.linear_model import LinearRegression

from jaxgmm import select
from jaxgmm.sklearn import GaussianMixture, GaussianMixtureClassifier, GaussianMixtureRegressor
from tests.conftest import case

IRIS, SPECIES = datasets.load_iris(return_X_y=True)
RNG = np.random.default_rng(0)
# Six clumps in a row, of two classes by turns: no single Gaussian for each class tells them apart. Each class
# has the shape of iris, and so takes its program.
CLUMP = np.arange(300) % 6
ROW = 5.0 * CLUMP[:, None] * np.eye(4)[0] + RNG.normal(size=(300, 4))
SIDE = np.array(["even", "odd"])[CLUMP % 2]
# A hundred of each class, of four clumps and of two: both are searched by one program.
_SOME = np.flatnonzero((CLUMP >= 4) | (np.arange(300) < 150))
SEARCHED = ROW[_SOME], np.where(CLUMP[_SOME] < 4, "several", "two")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("VVV", "float32"), ("VVV", "float64"), ("EEE", "float32")],
    indirect=["dtype"],
)
def test_edda_is_bayes_rule_with_the_maximum_likelihood_gaussians(name, dtype):
    model = GaussianMixtureClassifier("EDDA", covariance_type=name, reg_covar=0).fit(IRIS, SPECIES)
    groups = [IRIS[c == SPECIES] for c in range(3)]
    covariances = [np.cov(g.T, bias=True) for g in groups]
    if name == "EEE":
        covariances = [np.mean(covariances, 0)] * 3
    means = [g.mean(0) for g in groups]
    joint = [multivariate_normal(m, s).logpdf(IRIS) for m, s in zip(means, covariances, strict=True)]
    tol = 1e-4 if dtype == np.float32 else 1e-9
    assert_allclose(model.predict_proba(IRIS), softmax(np.stack(joint, 1), axis=1), atol=tol)
    assert_array_equal(model.predict(IRIS), model.classes_[np.argmax(joint, 0)])
    assert model.score(IRIS, SPECIES) > 0.97
    assert model.mixture_.covariance_type == name


def test_mixtures_tell_apart_what_single_gaussians_do_not():
    plain = GaussianMixtureClassifier(n_components=1, random_state=0, max_iter=0).fit(ROW, SIDE)
    mixed = GaussianMixtureClassifier(n_components=3, random_state=0, max_iter=500).fit(ROW, SIDE)
    assert mixed.score(ROW, SIDE) > 0.93 > 0.8 > plain.score(ROW, SIDE)
    assert mixed.classes_.tolist() == ["even", "odd"]
    assert_allclose(mixed.predict_proba(ROW).sum(1), 1, atol=1e-6)
    assert_allclose(np.exp(mixed.predict_log_proba(ROW)), mixed.predict_proba(ROW))


def test_the_summary_of_a_classifier_is_that_of_its_predictions():
    names = np.array(["setosa", "versicolor", "virginica"])
    model = GaussianMixtureClassifier("EDDA", covariance_type="VEV", reg_covar=0).fit(IRIS, names[SPECIES])
    found = model.summary(IRIS, names[SPECIES])
    assert found.error_rate == pytest.approx(0.02)  # of mclust 6.1.3 for the same model
    predicted, shares = model.predict(IRIS), model.predict_proba(IRIS)
    brier = np.square(shares - np.eye(3)[SPECIES]).sum() / 300  # as mclust's BrierScore
    assert found.brier_score == pytest.approx(brier)
    wanted = [[np.sum((i == SPECIES) & (predicted == name)) for name in names] for i in range(3)]
    assert_array_equal(found.confusion, wanted)
    assert (found.covariance_types, found.n_components) == (("VEV",) * 3, (1, 1, 1))
    line, *table = str(found).splitlines()
    assert line == f"ClassifierSummary(EDDA, 3 classes: error rate 0.0200, Brier score {brier:.4f})"
    assert table[2].split() == ["setosa", "50", "VEV", "1"]
    assert table[-1] == "3 of 150 misclassified"
    assert found._repr_html_().count("<table>") == 2
    with pytest.raises(ValueError, match=r"y must have labels of the classes .*; got \['rose'\]"):
        model.summary(IRIS, ["rose"] * 150)
    with pytest.raises(ValueError, match=r"shape \(150,\), one label for each sample; got \(3,\)"):
        model.summary(IRIS, names)


def test_the_summary_has_each_class_and_leaves_out_unlabelled_samples():
    model = GaussianMixtureClassifier(
        n_components=[1, 3], covariance_type=["tied", "full"], random_state=0, max_iter=0
    ).fit(ROW, SIDE)
    found = model.summary(ROW, SIDE)
    assert (found.covariance_types, found.n_components) == (("tied", "full"), (1, 3))
    assert found.error_rate == pytest.approx(1 - model.score(ROW, SIDE))
    y = np.where(np.arange(150) % 3 == 0, -1, SPECIES)
    partly = GaussianMixtureClassifier("EDDA", unlabelled=-1, max_iter=0).fit(IRIS, y)
    assert partly.summary(IRIS, y).n_samples.tolist() == np.bincount(y[y >= 0]).tolist()


def test_each_class_may_have_its_own_components_structure_and_probability():
    model = GaussianMixtureClassifier(
        n_components=[1, 2], covariance_type=["tied", "full"], class_prior=[0.9, 0.1], random_state=0,
        max_iter=0,
    ).fit(ROW, SIDE)  # fmt: skip
    assert [m.n_components for m in model.estimators_] == [1, 2]
    assert [m.covariances_.shape for m in model.estimators_] == [(4, 4), (2, 4, 4)]
    densities = [m.score_samples(ROW) for m in model.estimators_]
    joint = np.stack(densities, 1) + np.log([0.9, 0.1])
    assert_allclose(model.predict_proba(ROW), softmax(joint, axis=1), atol=1e-6)


def test_weights_of_the_classifier_are_as_good_as_repetition():
    counts = np.random.default_rng(1).integers(0, 3, size=150)
    for settings in ({"n_components": 1, "max_iter": 0}, {"model_type": "EDDA"}):
        by_weight = GaussianMixtureClassifier(**settings).fit(IRIS, SPECIES, sample_weight=counts)
        repeated = GaussianMixtureClassifier(**settings).fit(
            np.repeat(IRIS, counts, axis=0), np.repeat(SPECIES, counts)
        )
        assert_allclose(by_weight.class_prior_, repeated.class_prior_)
        assert_allclose(by_weight.predict_proba(IRIS), repeated.predict_proba(IRIS), atol=1e-5)


def test_what_does_not_fit_the_classes_is_named():
    for parameters, words in [
        ({"model_type": "LDA"}, "'model_type'"),
        ({"n_components": [1, 2, 3]}, "one for each of the 2 classes"),
        ({"model_type": "EDDA", "n_components": 2}, "n_components=1"),
        ({"n_components": 200}, "class 'even'.*n_samples >= n_components"),
        ({"n_components": 1, "class_prior": [0.9, 0.9]}, "normalized"),
        ({"n_components": 0}, "'n_components' parameter"),
    ]:
        with case(parameters, words), pytest.raises(ValueError, match=words):
            GaussianMixtureClassifier(**parameters).fit(ROW, SIDE)


def test_one_component_is_linear_regression_even_far_from_zero():
    X, Y = IRIS[:, :2] + 1e3, IRIS[:, 2:] - 1e3
    line = LinearRegression().fit(X, Y)
    model = GaussianMixtureRegressor(reg_covar=0).fit(X, Y)
    assert_allclose(model.predict(X), line.predict(X), rtol=1e-6)
    mean, covariance = model.predict(X, return_cov=True)
    residuals = Y - mean
    assert_allclose(covariance[0], residuals.T @ residuals / len(X), rtol=1e-3)
    _, std = model.predict(X, return_std=True)
    assert_allclose(std, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), rtol=1e-6)


def test_the_regressor_is_regress_of_its_mixture():
    joint = GaussianMixture(3, random_state=0).fit(IRIS)
    model = GaussianMixtureRegressor(3, random_state=0).fit(IRIS[:, :3], IRIS[:, 3])
    assert_allclose(model.mixture_.means_, joint.means_)
    by_hand = np.zeros(150)
    log_prob = np.stack(
        [
            np.log(w) + multivariate_normal(m[:3], s[:3, :3]).logpdf(IRIS[:, :3])
            for w, m, s in zip(joint.weights_, joint.means_, joint.covariances_, strict=True)
        ],
        1,
    )
    for r, m, s in zip(softmax(log_prob, 1).T, joint.means_, joint.covariances_, strict=True):
        by_hand += r * (m[3] + (IRIS[:, :3] - m[:3]) @ np.linalg.solve(s[:3, :3], s[:3, 3]))
    assert_allclose(model.predict(IRIS[:, :3]), by_hand, atol=1e-4)
    assert model.predict(IRIS[:, :3], return_std=True)[1].shape == (150,)
    with pytest.raises(ValueError, match="At most one"):
        model.predict(IRIS[:, :3], return_std=True, return_cov=True)


def test_a_class_without_weight_is_refused_by_name():
    X = np.random.default_rng(0).normal(size=(12, 2))
    labels = np.repeat(["in", "out"], 6)
    with pytest.raises(ValueError, match="class out has no sample of positive weight"):
        GaussianMixtureClassifier().fit(X, labels, sample_weight=(labels == "in").astype(float))


def test_masked_entries_are_refused_by_their_place():
    masked, labels = np.ma.masked_array(IRIS, IRIS > 7), np.arange(len(IRIS)) % 3
    place = r"masked array, and entry \(102, 0\) is masked"
    weight = np.ma.masked_array(np.ones(len(IRIS)), np.arange(len(IRIS)) == 7)
    classifier = GaussianMixtureClassifier(n_components=1, max_iter=0).fit(IRIS, SPECIES)
    regressor = GaussianMixtureRegressor(max_iter=0).fit(IRIS[:, :3], IRIS[:, 3])
    for call in (
        lambda: GaussianMixtureClassifier().fit(masked, labels),
        lambda: classifier.predict(masked),
        lambda: GaussianMixtureRegressor().fit(masked, IRIS[:, 0]),
        lambda: regressor.predict(masked[:, :3]),
    ):
        with pytest.raises(ValueError, match=place):
            call()
    for call in (
        lambda: GaussianMixtureClassifier().fit(IRIS, labels, sample_weight=weight),
        lambda: GaussianMixtureRegressor().fit(IRIS, IRIS[:, 0], sample_weight=weight),
        lambda: GaussianMixtureClassifier().fit(IRIS, np.ma.masked_array(labels, np.arange(len(IRIS)) == 7)),
    ):
        with pytest.raises(ValueError, match=r"entry \(7,\) is masked"):
            call()


def test_the_number_of_components_of_each_class_is_chosen_by_bic():
    row, y = SEARCHED
    model = GaussianMixtureClassifier(covariance_type="EII", missing="nan", random_state=0).fit(row, y)
    assert [mixture.n_components for mixture in model.estimators_] == [4, 2]
    assert [choice.best_row["n_components"] for choice in model.selections_] == [4, 2]
    for name, mixture, choice in zip(model.classes_, model.estimators_, model.selections_, strict=True):
        assert_allclose(mixture.bic(row[y == name]), choice.best_row["bic"], rtol=1e-6)
    assert model.score(row, y) > 0.97
    gaps = np.where(np.arange(4) == 1, np.nan, row[:5])
    assert_array_equal(model.predict(gaps), y[:5])  # what tells the classes apart is the first feature
    assert np.isfinite(model.estimators_[0].score_samples(gaps)).all()
    with pytest.raises(ValueError, match="n_components must be None or whole numbers; got 'all'"):
        GaussianMixtureClassifier(n_components="all").fit(row, y)


def test_by_default_bic_chooses_among_mclusts_grid_for_each_class(monkeypatch):
    asked = []

    class EnoughError(Exception):
        pass

    def small(key, rows, sizes, *, covariance_types, **options):
        asked.append((list(sizes), covariance_types))
        if len(sizes) < 5:
            raise EnoughError
        return select(key, rows, sizes, covariance_types=("EII",), **options)

    monkeypatch.setattr("jaxgmm.sklearn._classifier.select", small)
    GaussianMixtureClassifier(missing="nan", random_state=0).fit(*SEARCHED)
    assert asked == [([1, 2, 3, 4, 5], None)] * 2
    few = np.flatnonzero(np.arange(150) % 50 < 4)
    with pytest.raises(EnoughError):
        GaussianMixtureClassifier(random_state=0).fit(IRIS[few], SPECIES[few])
    assert asked[2:] == [([1, 2, 3, 4], None)]
    model = GaussianMixtureClassifier(n_components=1, max_iter=0).fit(IRIS, SPECIES)
    assert [mixture.covariance_type for mixture in model.estimators_] == ["full"] * 3
    assert len(asked) == 3
