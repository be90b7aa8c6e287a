"""Base class of the mixture estimators: fits from several starts, evaluation, sampling."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxgmm import _validate as validate
from jaxgmm.components.weights import Model
from jaxgmm.data import Data
from jaxgmm.density import posterior_of
from jaxgmm.kernels.programs import in_float64
from jaxgmm.mixture import GMMParams
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _conversion as conversion
from jaxgmm.sklearn._conversion import CollapsedError
from jaxgmm.sklearn._data import (
    Host,
    Rows,
    check_observed,
    check_weight,
    compute_dtype,
    fits_float32,
    in_blocks,
    load,
    rows_with_gaps,
)
from jaxgmm.sklearn._em_loop import CHUNK
from jaxgmm.sklearn._init import INIT_PARAMS

_EVALUATED = 1 << 16  # rows evaluated at a time


class Trial(NamedTuple):
    """One fit from one start, as it ended."""

    state: Any
    bound: float
    bounds: list[float]
    n_iter: int
    converged: bool


class BaseMixture(DensityMixin, BaseEstimator):
    """The common part of the estimators; theirs are a start, a compiled loop, and the fitted attributes.

    An estimator must have:
      _given(X, sample_weight): what the parameters say about the start, or of the prior, checked against the
        data.
      _begin(rows, X, random_state, given): a state to start from.
      _resume(rows): the state of the fitted attributes.
      _advance(state, rows, bound, limit): up to `limit` iterations, as a `Climb`.
      _keep(state, offset, dtype): set the fitted attributes from a state for data less an offset.
      _mixture(): log_weights (K,), means (K, D), scale and model, float64; the weights need not sum to 1.
    """

    _constraints: ClassVar[dict[str, checks.Check]] = {
        "n_components": checks.integer(1),
        "tol": checks.number(),
        "reg_covar": checks.number(),
        "max_iter": checks.integer(0),
        "n_init": checks.integer(1),
        "init_params": checks.option(*INIT_PARAMS),
        "warm_start": checks.FLAG,
        "verbose": checks.VERBOSE,
        "verbose_interval": checks.integer(1),
    }

    # Fitting.

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BaseMixture:
        """Fit the mixture, n_init times, and keep the fit of the highest bound.

        Args:
          X: array-like or data frame (n_samples, n_features).
          y: ignored.
          sample_weight: array-like (n_samples,) or None for ones; a weight of 0 leaves the sample out.

        Returns:
          The estimator itself.
        """
        self._fit(X, sample_weight)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Host:
        """Fit as `fit` does, and label the same data, (n_samples,); equal to fit(X).predict(X)."""
        data = self._fit(X, sample_weight)
        return self._shares(data).argmax(1)

    def _fit(self, X: Any, sample_weight: Any) -> Host:
        checks.check_parameters(self, self._constraints)
        random_state = check_random_state(self.random_state)
        data = checks.data(self, X, missing=self._takes_gaps(), ensure_min_samples=2)
        self._fit_data(data, check_weight(sample_weight, data), random_state)
        return data

    def _takes_gaps(self) -> bool:
        """Whether NaN in X are missing entries."""
        return False

    def _fit_data(self, data: Host, weight: Host | None, random_state: Any) -> None:
        """Fit validated data."""
        if len(data) < self.n_components:
            found = f"n_components = {self.n_components}, n_samples = {len(data)}"
            raise ValueError(f"Expected n_samples >= n_components but got {found}")
        check_observed(data, weight)
        given = self._given(data, weight)
        drawn = random_state.get_state()
        if compute_dtype(data.dtype) == np.float64 or fits_float32(data, weight):
            rows = load(data, weight)
            try:
                self._search(rows, data, random_state, given, data.dtype)
                return
            except CollapsedError:
                if rows.x.dtype == np.float64:
                    raise
        # What float32 cannot tell from a point, float64 can: sentinel values, outliers far away.
        random_state.set_state(drawn)
        with in_float64():
            double = data.astype(np.float64)
            self._search(load(double, weight), double, random_state, given, data.dtype)

    def _search(self, rows: Rows, X: Host, random_state: Any, given: Any, dtype: Any) -> None:
        """The best of several trials, into the attributes, in a dtype."""
        warm = self.warm_start and hasattr(self, "converged_")
        if warm and self.means_.shape != (self.n_components, X.shape[1]):
            found = f"n_components = {self.n_components} and {X.shape[1]} features"
            raise ValueError(f"warm_start goes on from means_ of shape {self.means_.shape}; got {found}")
        best = None
        for trial in range(1 if warm else self.n_init):
            try:
                ended = self._try(trial, rows, X, None if warm else random_state, given)
            except CollapsedError:
                if rows.x.dtype != np.float64:
                    raise  # it may be the best of them in float64
            else:
                best = ended if best is None or ended.bound > best.bound else best
        if best is None:
            raise CollapsedError
        if not best.converged and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase "
                "max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._take(best, rows.offset, dtype)

    def _take(self, trial: Trial, offset: Host | float, dtype: Any) -> None:
        """Set everything that a fit says of itself."""
        self._keep(trial.state, offset, dtype)
        self.lower_bound_, self.lower_bounds_ = trial.bound, trial.bounds
        self.converged_, self.n_iter_ = trial.converged, trial.n_iter

    def _try(self, trial: int, rows: Rows, X: Host, random_state: Any, given: Any) -> Trial:
        """One fit, from a start that `random_state` draws, or from the attributes if it is None."""
        began = time.perf_counter()
        if self.verbose:
            print(f"Initialization {trial}")
        if random_state is None:
            return self._climb(self._resume(rows), float(self.lower_bound_), rows, began)
        return self._climb(self._begin(rows, X, random_state, given), -np.inf, rows, began)

    def _climb(self, state: Any, bound: float, rows: Rows, began: float) -> Trial:
        """Iterations from a state, of which the bound is known, or −inf, to the end of the fit."""
        before = began
        every = self.verbose_interval if self.verbose else CHUNK
        bounds: list[float] = []
        converged = False
        while len(bounds) < self.max_iter and not converged:
            limit = min(CHUNK, every - len(bounds) % every, self.max_iter - len(bounds))
            climbed = self._advance(state, rows, bound, limit)
            if not climbed.sound:
                raise CollapsedError
            new = np.asarray(climbed.bounds, np.float64)[: int(climbed.n_iter)].tolist()
            previous = ([bound, *new])[-2]
            bounds += new
            state, bound, converged = climbed.params, new[-1], bool(climbed.converged)
            if self.verbose and len(bounds) % every == 0:
                now = time.perf_counter()
                told = f"\t time lapse {now - before:.5f}s\t ll change {bound - previous:.5f}"
                print(f"  Iteration {len(bounds)}" + (told if self.verbose >= 2 else ""))
                before = now
        if self.verbose and self.max_iter > 0:
            seconds = time.perf_counter() - began
            told = f" time lapse {seconds:.5f}s\t lower bound {bound:.5f}." if self.verbose >= 2 else ""
            print(f"Initialization {'converged' if converged else 'did not converge'}.{told}")
        return Trial(state, bound if self.max_iter else -np.inf, bounds, len(bounds), converged)

    # The attributes.

    def _set(
        self, weights: Host, means: Host, scale: Any, model: Model, dtype: Any, lower: Any = None
    ) -> None:
        """Set the mixture; `lower` (K, D, D) are the factors of a structure that scikit-learn has not."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            shapes = conversion.shapes_of(model, scale if lower is None else lower)
        # Of extreme scale, float32 data have covariances that only float64 can hold.
        info = np.finfo(dtype)
        if any(not info.tiny <= np.abs(a).max() <= info.max for a in shapes):
            dtype = np.float64
        self.weights_ = (weights / weights.sum()).astype(dtype)
        self.means_ = means.astype(dtype)
        self.covariances_, self.precisions_, self.precisions_cholesky_ = (a.astype(dtype) for a in shapes)
        self._model = model
        # What the attributes do not determine to the last digit, of structures that scikit-learn has not.
        self._scale = None if model in conversion.SHAPED else scale

    def _structure(self) -> Model:
        """The fitted structure; of an estimator whose attributes were set by hand, the parameter's."""
        return getattr(self, "_model", None) or conversion.gaussian_model(self.covariance_type)

    # Evaluating.

    def _params(self, dtype: Any, offset: Host) -> GMMParams:
        """The fitted mixture for data less an offset."""
        log_weights, means, scale, model = self._mixture()
        return conversion.to_device(log_weights, means - offset, scale, model, dtype)

    def _evaluated(self, X: Host) -> tuple[Host, Host]:
        """Responsibilities (N, K) and log-densities (N,) of validated data, in its dtype."""
        dtype = compute_dtype(X.dtype)
        means = np.asarray(self.means_, np.float64)
        offset = np.zeros(means.shape[1]) if dtype == np.float64 else np.asarray(self.weights_) @ means
        if dtype != np.float64 and not (self._is_wide(means - offset) and fits_float32(X)):
            with in_float64():
                resp, log_prob = self._evaluated(X.astype(np.float64))
            return resp.astype(X.dtype), log_prob.astype(X.dtype)
        log_weights, means, scale, model = self._mixture()
        # Arrays of the host: a compiled program takes them in less time than `device_put`.
        params = GMMParams(*conversion.host((log_weights, means - offset, scale), dtype), *model)
        data_of: Any = rows_with_gaps if np.isnan(X).any() else Data
        resp, log_prob = in_blocks(lambda x: posterior_of(params, data_of(x)), X, offset, dtype, _EVALUATED)
        return resp, log_prob

    def _shares(self, X: Host) -> Host:
        """What `predict_proba` gives of validated data: the responsibilities (N, K)."""
        return self._evaluated(X)[0]

    def _is_wide(self, means: Host) -> bool:
        """Whether float32 residuals from the means (K, D) have digits left at the scale of the components."""
        factors = np.asarray(self.precisions_cholesky_, np.float64)
        if self._structure() not in (conversion.DIAG, conversion.SPHERICAL):
            factors = np.linalg.norm(factors, axis=-1)  # the square roots of the diagonals of the precisions
        factors = factors.reshape(-1, factors.shape[-1] if self._structure() != conversion.SPHERICAL else 1)
        return bool(
            (factors * np.abs(means) * (conversion.MARGIN * float(np.finfo(np.float32).eps)) < 1).all()
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "means_")

    def _new(self, X: Any) -> Host:
        check_is_fitted(self)
        return checks.data(self, X, missing=self._takes_gaps(), reset=False)

    def score_samples(self, X: Any) -> Host:
        """The log-density of each sample, (n_samples,)."""
        return self._evaluated(self._new(X))[1]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean log-density per sample, or per unit of sample weight.

        Args:
          X: array-like (n_samples, n_features).
          y: ignored.
          sample_weight: array-like (n_samples,) or None for ones.
        """
        data = self._new(X)
        values = self._evaluated(data)[1]
        return float(np.average(values, weights=check_weight(sample_weight, data)))

    def predict(self, X: Any) -> Host:
        """The label of each sample, (n_samples,): the component of the largest responsibility."""
        return self._shares(self._new(X)).argmax(1)

    def predict_proba(self, X: Any) -> Host:
        """Responsibilities, (n_samples, n_components); rows sum to 1."""
        return self._shares(self._new(X))

    def sample(self, n_samples: int = 1) -> tuple[Host, Host]:
        """Draw from the fitted mixture, component by component.

        Returns:
          X (n_samples, n_features) float64, and the components (n_samples,) that its rows came from.

        Raises:
          ValueError: for n_samples < 1.
        """
        check_is_fitted(self)
        if validate.count(n_samples, "n_samples", -sys.maxsize) < 1:
            raise ValueError(
                f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample."
            )
        rng = check_random_state(self.random_state)
        weights = np.asarray(self.weights_, np.float64)
        counts = rng.multinomial(n_samples, weights / weights.sum())
        structure = self._structure()
        diagonal = structure in (conversion.DIAG, conversion.SPHERICAL)
        factors = conversion.scale_from_cholesky(structure, self.precisions_cholesky_)
        if structure == conversion.TIED:
            factors = np.broadcast_to(factors, (len(counts), *factors.shape))
        X = rng.standard_normal((n_samples, self.means_.shape[1]))
        for z, mean, factor in zip(np.split(X, counts.cumsum()[:-1]), self.means_, factors, strict=True):
            z[:] = mean + (z * factor if diagonal else z @ factor.T)
        return X, np.repeat(np.arange(len(counts)), counts)
