"""`GaussianMixtureClassifier`: discriminant analysis with mixtures, mclust's MclustDA and EDDA."""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any, ClassVar

import jax
import numpy as np
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from jaxgmm import priors
from jaxgmm.components.registry import ModelLike, fixed_weights
from jaxgmm.data import MISSING, Data, observe
from jaxgmm.kernels.programs import in_float64
from jaxgmm.mixture import GMMParams
from jaxgmm.selection import select
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _init as init
from jaxgmm.sklearn._classifier_summary import ClassifierSummary, of_predictions
from jaxgmm.sklearn._conversion import CollapsedError, gaussian_model, log, to_device
from jaxgmm.sklearn._data import Host, Rows, check_observed, check_weight, compute_dtype, fits_float32, load
from jaxgmm.sklearn._gaussian import GaussianMixture, shared_options

_MODELS = ("MclustDA", "EDDA")
_MOST = 5  # components of a class that are tried, as in mclust
# EM steps for each of them. With the 1000 of `select`, two of the six classes of iris and wine (four of its
# features) reach a smaller BIC, and iris takes twice the time.
_BUDGET = 200


class GaussianMixtureClassifier(ClassifierMixin, BaseEstimator):
    """Discriminant analysis: every class has a density, and Bayes' rule decides.

    "MclustDA": every class is a Gaussian mixture of its own, with its own number of components and its own
    structure. "EDDA": every class is one Gaussian, and one covariance structure holds across the classes, so
    that "EEE" is linear discriminant analysis, "VVV" quadratic, "EEI" and "VVI" those without correlations,
    and the rest of mclust's fourteen lie between. EDDA is also semi-supervised: rows whose class is not known
    (`unlabelled`) take part in the fit.

    Args:
      model_type: "MclustDA" or "EDDA".
      n_components: of every class, an int, or a list with one for each class, in the order of `classes_`.
        EDDA has one each. None, for MclustDA: for each class the number from 1 to 5 of smallest BIC, as
        mclust does it, by `jaxgmm.select`.
      covariance_type: a name or a `jaxgmm.components.Covariance`; for MclustDA also a list, one for each
        class. None: "full"; but where BIC chooses the number of components, for each class that of mclust's
        fourteen structures of smallest BIC. The first such fit compiles for some 20 s; fixed numbers of
        components and a structure, such as n_components=1 and "full", fit in a fraction of a second.
      tol: as in `GaussianMixture`, and so on down to `random_state`; where BIC chooses, `select` has its own
        tol, max_iter, n_init and init_params.
      reg_covar: added to the variances.
      max_iter: EM steps.
      n_init: starts for each class, or "auto".
      init_params: as in `GaussianMixture`.
      class_prior: probabilities of the classes, or None for their shares of the sample weight.
      prior: None, "default" (of the data of each class) or a `jaxgmm.Prior`.
      unlabelled: the value in y, such as −1, that says that the class of a sample is not known; None where
        all are known. For EDDA only. The fit is then by EM on `jaxgmm.observe(X, labels=...)`: a labelled
        sample counts for its class alone, another for every class by its posterior probability; tol,
        max_iter and init_params count.
      missing: "error" refuses NaN in X; "nan" takes NaN and masked entries for missing at random, in `fit`
        and in the predictions, as `GaussianMixture` does. EDDA of them is fitted by EM, also with all labels.
      random_state: int, `RandomState` or None.

    Attributes:
      classes_: the labels, without `unlabelled`.
      class_prior_: (n_classes,) probabilities; of a semi-supervised fit those that EM finds.
      estimators_: for MclustDA a fitted `GaussianMixture` for each class.
      selections_: where BIC chose, the `jaxgmm.Selection` of each class, which prints its table.
      mixture_: for EDDA one `GaussianMixture`, whose components are the classes.
      n_iter_: the most EM steps that a class took; 1 for EDDA with all labels and entries, which needs no
        more.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import GaussianMixtureClassifier
      >>> X = np.array([[0.0], [1.0], [9.0], [10.0], [4.0], [5.0], [6.0]])
      >>> y = np.array(["out", "out", "out", "out", "in", "in", "in"])
      >>> model = GaussianMixtureClassifier(n_components=[1, 2], random_state=0).fit(X, y)
      >>> model.predict([[0.4], [5.5]]).tolist()
      ['out', 'in']

    References:
      Hastie & Tibshirani (1996), Discriminant analysis by Gaussian mixtures; Bensmail & Celeux (1996),
      Regularized Gaussian discriminant analysis through eigenvalue decomposition; Fraley & Raftery (2002),
      Model-based clustering, discriminant analysis, and density estimation; Nigam, McCallum, Thrun & Mitchell
      (2000), Text classification from labeled and unlabeled documents using EM.
    """

    _constraints: ClassVar = {
        "model_type": checks.option(*_MODELS),
        "tol": checks.number(),
        "reg_covar": checks.number(),
        "max_iter": checks.integer(0),
        "missing": checks.option(*MISSING),
    }

    def __init__(
        self,
        model_type: str = "MclustDA",
        *,
        n_components: Any = None,
        covariance_type: Any = None,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int | str = 1,
        init_params: str = "kmeans",
        class_prior: Any = None,
        prior: priors.Prior | str | None = None,
        unlabelled: Any = None,
        missing: str = "error",
        random_state: Any = None,
    ) -> None:
        checks.set_parameters(**locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GaussianMixtureClassifier:
        """Fit the density of every class.

        Args:
          X: array-like or data frame (n_samples, n_features).
          y: labels (n_samples,), `unlabelled` where the class is not known.
          sample_weight: array-like (n_samples,) or None for ones; a weight of 0 leaves the sample out.

        Raises:
          ValueError: for parameters that do not fit the classes, or a class that its mixture does not fit.
        """
        checks.check_parameters(self, self._constraints)
        if self.unlabelled is not None and self.model_type != "EDDA":
            raise ValueError(
                f"unlabelled={self.unlabelled!r} needs model_type='EDDA', one component for each class; got "
                f"model_type={self.model_type!r}"
            )
        data, labels = checks.data(self, X, y, missing=self.missing == "nan", ensure_min_samples=2)
        check_classification_targets(labels)
        weight = check_weight(sample_weight, data)
        if weight is not None:
            lost = np.setdiff1d(labels[self._is_known(labels)], labels[weight > 0])
            if len(lost):
                raise ValueError(f"class {lost[0]} has no sample of positive weight; leave its samples out")
            data, labels, weight = data[weight > 0], labels[weight > 0], weight[weight > 0]
        check_observed(data)
        known = self._is_known(labels)
        if not known.any():
            raise ValueError(f"every label is {self.unlabelled!r}, which is unlabelled: no class is known")
        self.classes_, known_codes = np.unique(labels[known], return_inverse=True)
        codes = np.full(len(labels), -1)
        codes[known] = known_codes
        self.class_prior_ = self._class_prior(known_codes, None if weight is None else weight[known])
        if self.model_type == "EDDA":
            self._fit_edda(data, codes, weight)
        else:
            self._fit_each(data, codes, weight)
        return self

    def _is_known(self, labels: Host) -> Host:
        """(N,) bool, which samples have a class."""
        if self.unlabelled is None:
            return np.ones(len(labels), bool)
        return np.broadcast_to(np.asarray(labels != self.unlabelled, bool), len(labels))

    def _class_prior(self, codes: Host, weight: Host | None) -> Host:
        if self.class_prior is None:
            shares = np.bincount(codes, weights=weight)
            return shares / shares.sum()
        return checks.weights_init(self.class_prior, len(self.classes_))

    def _of_each(self, value: Any, name: str) -> list[Any]:
        """A parameter for every class."""
        n = len(self.classes_)
        if isinstance(value, ModelLike) or np.ndim(value) == 0:
            return [value] * n
        if len(value) != n:
            raise ValueError(f"{name} must be one, or one for each of the {n} classes; got {value!r}")
        return list(value)

    def _choose(self, data: Host, codes: Host, weight: Host | None) -> None:
        """The number of components and the structure of each class, by BIC."""
        types = self._of_each(self.covariance_type, "covariance_type")
        random_state = check_random_state(self.random_state)
        self.estimators_, self.selections_ = [], []
        for code, kind in enumerate(types):
            own = codes == code
            key = jax.random.key(random_state.randint(2**31 - 1))
            n = min(_MOST, int(own.sum()))
            kinds = None if kind is None else (kind,)
            with in_float64():
                rows = observe(
                    data[own], sample_weight=None if weight is None else weight[own], missing="nan"
                )
                choice = select(
                    key, rows, range(1, n + 1), covariance_types=kinds, budget=_BUDGET,
                    reg_covar=self.reg_covar, prior=self.prior, progress=False,
                )  # fmt: skip
                if choice.best is None:
                    which = f"every fit of class {self.classes_.tolist()[code]!r} failed"
                    raise ValueError(f"{which}:\n{choice}")
                options = shared_options(self) | {"missing": self.missing}
                mixture = GaussianMixture.from_params(choice.best.params, **options)
            mixture.n_iter_ = int(choice.best.n_iter)
            self.estimators_.append(mixture)
            self.selections_.append(choice)
        self.n_iter_ = max(mixture.n_iter_ for mixture in self.estimators_)

    def _fit_each(self, data: Host, codes: Host, weight: Host | None) -> None:
        if self.n_components is None:
            self._choose(data, codes, weight)
            return
        if isinstance(self.n_components, str):
            raise ValueError(f"n_components must be None or whole numbers; got {self.n_components!r}")
        sizes = self._of_each(self.n_components, "n_components")
        types = self._of_each(self._structure, "covariance_type")
        self.estimators_ = []
        random_state = check_random_state(self.random_state)
        for code, (size, kind) in enumerate(zip(sizes, types, strict=True)):
            own = codes == code
            mixture = GaussianMixture(
                size, covariance_type=kind, missing=self.missing, **shared_options(self)
            )
            checks.check_parameters(mixture, mixture._constraints)
            try:
                mixture._fit_data(data[own], None if weight is None else weight[own], random_state)
            except ValueError as error:
                which = f"the mixture of class {self.classes_.tolist()[code]!r}, with {own.sum()} samples"
                raise ValueError(f"{which}: {error}") from error
            mixture.n_features_in_ = data.shape[1]
            self.estimators_.append(mixture)
        self.n_iter_ = max(mixture.n_iter_ for mixture in self.estimators_)

    @property
    def _structure(self) -> Any:
        """The structure where BIC does not choose it."""
        return "full" if self.covariance_type is None else self.covariance_type

    def _fit_edda(self, data: Host, codes: Host, weight: Host | None) -> None:
        k = len(self.classes_)
        if np.ndim(self.n_components) > 0 or self.n_components not in (None, 1):
            raise ValueError(f"EDDA has n_components=1 for every class; got {self.n_components!r}")
        model = gaussian_model(self._structure)
        mixture = GaussianMixture(
            k, covariance_type=self._structure, missing=self.missing, **shared_options(self)
        )
        if (codes < 0).any() or np.isnan(data).any():
            self._fit_by_em(mixture, data, codes, weight)
            return
        rows = load(data, weight)
        prior = mixture._prior(rows)
        start = init.m_step(np.eye(k)[codes], rows, model, float(self.reg_covar), prior)
        params = to_device(log(self.class_prior_), start.means, start.scale, model, rows.x.dtype)
        mixture._keep(params, rows.offset, data.dtype)
        mixture.n_features_in_ = data.shape[1]
        self.mixture_, self.n_iter_ = mixture, 1

    def _fit_by_em(self, mixture: GaussianMixture, data: Host, codes: Host, weight: Host | None) -> None:
        """EM over samples without a label, of code −1, or with gaps; in float64 where that is needed."""
        checks.check_parameters(mixture, mixture._constraints)
        if mixture.n_init == "auto":
            raise ValueError(
                "with unlabelled samples or missing entries the labels make the start: n_init must not be "
                "'auto'"
            )
        fitted = False
        if compute_dtype(data.dtype) == np.float64 or fits_float32(data, weight):
            try:
                self._climb(mixture, load(data, weight), codes, data.dtype)
                fitted = True
            except CollapsedError:
                if compute_dtype(data.dtype) == np.float64:
                    raise
        if not fitted:
            with in_float64():
                self._climb(mixture, load(data.astype(np.float64), weight), codes, data.dtype)
        mixture.n_features_in_ = data.shape[1]
        if not mixture.converged_ and self.max_iter > 0:
            words = f"EM did not converge in max_iter={self.max_iter} steps; increase max_iter or tol"
            warnings.warn(words, ConvergenceWarning, stacklevel=4)
        self.mixture_, self.n_iter_ = mixture, mixture.n_iter_
        if self.class_prior is None:
            self.class_prior_ = np.asarray(mixture.weights_, np.float64)

    def _climb(self, mixture: GaussianMixture, rows: Rows, codes: Host, dtype: Any) -> None:
        """EM from the library's own start, where each class is at the mean of its labelled samples."""
        label = np.full(rows.x.shape[0], -1, np.int32)
        label[: len(codes)] = codes
        known = Data(rows.x, rows.weight) if rows.known is None else rows.known
        rows = rows._replace(known=dataclasses.replace(known, label=jax.device_put(label)))
        model, prior, k = gaussian_model(self._structure), mixture._prior(rows), mixture.n_components
        random_state = check_random_state(self.random_state)
        start = init.of_known(self.init_params, rows, model, k, float(self.reg_covar), prior, random_state)
        kept = model if self.class_prior is None else fixed_weights(self._structure)
        params = to_device(log(self.class_prior_), start.means, start.scale, kept, rows.x.dtype)
        trial = mixture._climb(params, -np.inf, rows, time.perf_counter())
        found = trial.state
        params = GMMParams(found.log_weights, found.means, found.scale, *model)
        mixture._take(trial._replace(state=params), rows.offset, dtype)

    def _log_joint(self, X: Any) -> Host:
        """(N, n_classes) log p(x, class) up to a constant of the row, in float64."""
        check_is_fitted(self)
        data = checks.data(self, X, missing=self.missing == "nan", reset=False)
        if self.model_type == "EDDA":
            return log(self.mixture_._evaluated(data)[0])
        densities = [mixture._evaluated(data)[1] for mixture in self.estimators_]
        return np.stack(densities, 1).astype(np.float64) + log(self.class_prior_)

    def predict(self, X: Any) -> Host:
        """The most probable class of each sample, (n_samples,)."""
        joint = self._log_joint(X)
        return self.classes_[joint.argmax(1)]

    def predict_log_proba(self, X: Any) -> Host:
        """Logarithms of `predict_proba`, (n_samples, n_classes)."""
        return log_softmax(self._log_joint(X), axis=1)

    def predict_proba(self, X: Any) -> Host:
        """Posterior probabilities of the classes, (n_samples, n_classes)."""
        return np.exp(self.predict_log_proba(X))

    def summary(self, X: Any, y: Any) -> ClassifierSummary:
        """The structure of each class, the confusion matrix, the error rate and the Brier score on (X, y).

        Args:
          X: array-like or data frame (n_samples, n_features).
          y: labels (n_samples,); samples that are `unlabelled` are left out.

        Returns:
          A `ClassifierSummary`, which prints as two tables.

        Raises:
          ValueError: for labels that are not those of `classes_`, or of another number than X has samples.

        Example:
          >>> import numpy as np
          >>> from jaxgmm.sklearn import GaussianMixtureClassifier
          >>> X, y = np.array([[0.0], [1.0], [3.0], [2.0], [5.0], [8.0]]), np.array(list("aaabbb"))
          >>> print(GaussianMixtureClassifier("EDDA").fit(X, y).summary(X, y))
          ClassifierSummary(EDDA, 2 classes: error rate 0.1667, Brier score 0.1434)
          class  samples  structure  components
          ─────────────────────────────────────
          a            3       full           1
          b            3       full           1
          <BLANKLINE>
          class  as a  as b
          ─────────────────
          a         3     0
          b         1     2
          1 of 6 misclassified
        """
        probabilities = self.predict_proba(X)
        labels = np.asarray(y)
        if labels.shape != (len(probabilities),):
            raise ValueError(
                f"y must have shape ({len(probabilities)},), one label for each sample; got {labels.shape}"
            )
        known = self._is_known(labels)
        if not known.any() or not np.isin(labels[known], self.classes_).all():
            found = np.unique(labels).tolist()
            raise ValueError(f"y must have labels of the classes {self.classes_.tolist()}; got {found}")
        if self.model_type == "EDDA":
            models = [(self.mixture_.covariance_type, 1)] * len(self.classes_)
        else:
            models = [(mixture.covariance_type, int(mixture.n_components)) for mixture in self.estimators_]
        structures = [(str(getattr(kind, "name", kind)), size) for kind, size in models]
        return of_predictions(self.model_type, self.classes_, structures, labels[known], probabilities[known])
