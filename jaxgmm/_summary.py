"""Summaries: what `summary` prints of a fit, as text and as HTML tables."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm._display import Table, as_html, as_text
from jaxgmm.data import Data
from jaxgmm.density import data_of
from jaxgmm.em import e_step
from jaxgmm.mixture import GMMParams, components, kind
from jaxgmm.result import FitResult, ending, in_words
from jaxgmm.selection._criteria import REMEDIES, n_parameters
from jaxgmm.selection._grid import Selection

_MOST = (100, 100)  # components and features
_MOST_FITS = 50


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """Lines and tables, in order; it prints as text, and a notebook shows it as HTML.

    Attributes:
      parts: paragraphs of text, and a table, which prints and has HTML, for each table.
    """

    parts: tuple[str | Table, ...]

    def __str__(self) -> str:
        """Paragraphs and tables, with a blank line between them."""
        return "\n\n".join(as_text(part) if isinstance(part, Table) else part for part in self.parts)

    def __repr__(self) -> str:
        """The text: what one wants to see at a prompt."""
        return str(self)

    def _repr_html_(self) -> str:
        return "\n".join(
            as_html(part) if isinstance(part, Table) else f"<pre>{html.escape(part)}</pre>"
            for part in self.parts
        )


def summary(
    fit: GMMParams | FitResult | Selection,
    X: ArrayLike | Data | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> Summary:
    """What was fitted: weights, means ± standard deviations, how the fit ended, and what it says of data.

    Args:
      fit: a mixture; a `FitResult`, of several fits too; or a `Selection`, of which the best is summed up.
      X: (N, D) data to evaluate, or `Data`, or None. With them come the number of samples of each component,
        Σ_n r_nk, the log-likelihood, AIC, BIC and ICL; of `Data` also the share of missing entries.
      columns: names of the D features; None for those of X, if it is a data frame, or x0, x1, ….
      sample_weight: (N,) counts of the samples of X, or None for ones.

    Returns:
      A `Summary`: print it, or let a notebook show it. Concrete fits only, outside `jit`.

    Raises:
      TypeError: for anything else, or what is being traced.
      ValueError: for a batch of mixtures without their results, names that are not D, data that do not fit,
        or data with a batch of fits.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.25, 0.75], [[0.0, 5.0], [3.0, 1.0]], [1.0, 4.0], "spherical")
      >>> print(jaxgmm.summary(params, columns=["height", "width"]))
      spherical, K = 2, D = 2, float32: 7 free parameters
      <BLANKLINE>
      component            0            1
      ───────────────────────────────────
      weight          0.2500       0.7500
      height     0.00 ± 1.00  3.00 ± 2.00
      width      5.00 ± 1.00  1.00 ± 2.00
    """
    if isinstance(fit, Selection):
        best = () if fit.best is None else summary(fit.best, X, sample_weight, columns=columns).parts
        return Summary((str(fit), *best))
    params = fit.params if isinstance(fit, FitResult) else fit
    if not isinstance(params, GMMParams):
        raise TypeError(f"summary takes GMMParams, a FitResult or a Selection; got {type(fit).__name__}")
    if not validate.is_concrete(fit):
        raise TypeError("summary needs a concrete fit; call it outside jit and vmap")
    columns = getattr(X, "columns", None) if columns is None else columns
    if columns is not None and len(columns) != params.n_features:
        raise ValueError(f"columns must name the {params.n_features} features; got {len(columns)} names")
    if isinstance(fit, FitResult) and np.ndim(fit.status):
        if X is not None:
            raise ValueError("X is for one fit, and these are several: take one with jaxgmm.best(results)")
        return _several(fit)
    validate.single_mixture(params.log_weights, params.means, params.scale)
    first = f"{kind(params)}: {n_parameters(params)} free parameters"
    if isinstance(fit, FitResult):
        first += f"\n{', '.join([*ending(fit), *fit._remarks()])}"
        remedy = REMEDIES.get(np.asarray(fit.status).item())
        first += f"\nThe fit {remedy}." if remedy else ""
    counts, last = (None, ()) if X is None else _evaluated(params, X, sample_weight)
    table = components(params, columns, counts, _MOST) or "The mixture is too large to be shown."
    return Summary((first, table, *last))


def evaluate(params: GMMParams, data: Data) -> dict[str, Any]:
    """Counts (K,), likelihood and criteria of one mixture on checked rows with their weights.

    Summed in float64 on the host.
    """
    resp, log_prob = (np.asarray(a, float) for a in e_step(params, data))
    w = np.ones(len(log_prob)) if data.weight is None else np.asarray(data.weight, float)
    deviance, free = -2 * (w @ log_prob), n_parameters(params)
    bic = deviance + free * np.log(w.sum())
    with np.errstate(divide="ignore"):
        icl = bic - 2 * (w @ np.log(resp.max(1)))
    return {
        "counts": w @ resp,
        "weight": w.sum(),
        "aic": deviance + 2 * free,
        "bic": bic,
        "icl": icl,
        "log_likelihood": deviance / -2,
    }


def _evaluated(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None
) -> tuple[Any, tuple[str]]:
    """Samples of each component (K,), and a paragraph of the criteria."""
    params, data = data_of(params, X, sample_weight)
    found = evaluate(params, data)
    n, total = found["weight"], found["log_likelihood"]
    what = f"{len(data.x)} samples" + ("" if data.weight is None else f" of weight {n:.6g}")
    if data.view.observed is not None:
        what += f" with {100 * (1 - np.asarray(data.view.observed).mean()):.3g} % of the entries missing"
    likelihood = f"On {what}: log-likelihood {total:.6g} ({total / n:.4f} per sample)"
    criteria = "   ".join(f"{name.upper()} {found[name]:.1f}" for name in ("aic", "bic", "icl"))
    return found["counts"], (f"{likelihood}\n{criteria}   (smaller is better)",)


def _several(fit: FitResult) -> Summary:
    """A table of a batch of fits."""
    status, steps, values = (np.asarray(a) for a in (fit.status, fit.n_iter, fit.log_likelihood))
    rows = tuple(
        (", ".join(map(str, i)), f"{values[i]:.4f}", str(steps[i]), in_words(status[i]))
        for i in np.ndindex(status.shape)
    )
    left_out = f"… {len(rows) - _MOST_FITS} more" if len(rows) > _MOST_FITS else ""
    said = f"{kind(fit.params)}\n{', '.join(ending(fit))}\nOne of them: jaxgmm.best(results)."
    return Summary((said, Table(("fit", "log-lik.", "EM steps", "ended"), rows[:_MOST_FITS], left_out)))
