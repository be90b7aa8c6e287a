"""Marginals to be drawn: one mixture and its data in one feature, or in two."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch

from jaxgmm._host_arrays import host_array, unmasked
from jaxgmm.data import Data
from jaxgmm.density import check_gaussian, responsibilities
from jaxgmm.mixture import GMMParams
from jaxgmm.plot.style import GREYS, HALO, PALETTE, STYLES, label, tidy

Array = np.ndarray[Any, Any]

MASS = (0.95, 0.8, 0.5)
MOST_MARKS = 500  # of a rug: more are a band


def needed(X: Any, caller: str) -> Any:
    """X of a picture that cannot be drawn without samples."""
    if X is None:
        raise ValueError(f"{caller} needs samples: X must be an array (N, D) or Data; got None")
    return X


class Picture:
    """What the panels share: the active components on the host in float64, the points, and the colours."""

    def __init__(
        self, params: GMMParams, X: Any, columns: Sequence[str] | None, sample_weight: Any, max_points: int
    ) -> None:
        if np.ndim(params.log_weights) != 1:
            axes = np.shape(params.log_weights)[:-1]
            raise ValueError(f"plot: params must be one mixture, got batch axes {axes}")
        check_gaussian(params, "plot")
        self.grid, self.font = 121, 9
        log_weights = np.asarray(params.log_weights, np.float64)
        # Numbers must be those of `params`, also where some component before is switched off.
        self.numbers = np.flatnonzero(log_weights > -np.inf)
        self.weights = np.exp(log_weights[self.numbers])
        self.means = np.asarray(params.means, np.float64)[self.numbers]
        self.covariances = np.asarray(params.covariances, np.float64)[self.numbers]
        self.n_features = self.means.shape[1]
        self.columns = [f"x{j + 1}" for j in range(self.n_features)] if columns is None else list(columns)
        if len(self.columns) != self.n_features:
            raise ValueError(f"plot: columns must name {self.n_features} features, got {len(self.columns)}")
        self.X: Array | None = None
        self.n_samples = self.incomplete = 0
        if X is None:
            return
        rows = X if isinstance(X, Data) else None
        if rows is not None:
            X, sample_weight = self._entries(rows, sample_weight), rows.weight
        data = np.asarray(host_array(X, "X"), np.float64)
        if data.ndim != 2 or data.shape[1] != self.n_features or not len(data):
            raise ValueError(f"plot: X must have shape (N, {self.n_features}), got {data.shape}")
        given = np.ones(len(data)) if sample_weight is None else unmasked(sample_weight, "sample_weight")
        weight = np.asarray(given, np.float64)
        if weight.shape != (len(data),):
            raise ValueError(f"plot: sample_weight must have shape ({len(data)},), got {weight.shape}")
        self.X, self.weight = data[weight > 0], weight[weight > 0]
        self.n_samples = len(self.X)
        # A fixed seed: the same call draws the same picture.
        shown = np.sort(np.random.default_rng(0).permutation(self.n_samples)[:max_points])
        self.points = self.X[shown]
        points: Any = self.points.astype(np.asarray(params.means).dtype)
        if rows is not None:
            taken = np.flatnonzero(weight > 0)[shown]
            known = dataclasses.replace(rows, weight=None, pattern=None, patterns=None)
            points = jax.device_put(jax.tree.map(lambda a: np.asarray(a)[taken], known))
            self.incomplete = int(np.isnan(self.X).any(1).sum())
        shares = np.asarray(responsibilities(params, points), np.float64)[:, self.numbers]
        self.labels, self.unsure = shares.argmax(1), 1 - shares.max(1)

    def _entries(self, rows: Data, sample_weight: Any) -> Array:
        """(N, D) the entries of `Data`, NaN where one is missing: no point is drawn there."""
        if sample_weight is not None:
            raise TypeError("sample_weight belongs to the data: give it to observe(X, sample_weight=...)")
        rows = rows.by_row()
        if rows.noise is not None or rows.projection is not None:
            raise ValueError("plot: X must be rows of the features themselves, without noise or projection")
        x = np.asarray(rows.x, np.float64)
        return x if rows.observed is None else np.where(np.asarray(rows.observed), x, np.nan)

    def two(self, caller: str, features: tuple[int, int]) -> tuple[int, int]:
        """The two features to draw, checked."""
        d, (i, j) = self.n_features, features
        if d < 2 or not (0 <= i < d and 0 <= j < d and i != j):
            raise ValueError(f"{caller}: features must be two of the {d} features, got {features}")
        return i, j

    def colour(self, k: int) -> str:
        """The colour of the k-th component that is on."""
        return PALETTE[self.numbers[k] % len(PALETTE)]

    def style(self, k: int) -> Any:
        """Its line style, which tells apart those that share a colour."""
        return STYLES[self.numbers[k] // len(PALETTE) % len(STYLES)]

    def limits(self, j: int) -> tuple[float, float]:
        """The range of feature j on the axes: the data and most ellipses, or the means ± 3 deviations."""
        sd = np.sqrt(self.covariances[:, j, j])
        values, _ = self.observed(j)
        if not len(values):
            low, high = (self.means[:, j] - 3 * sd).min(), (self.means[:, j] + 3 * sd).max()
        else:
            low, high = values.min(), values.max()
            reach = 0.15 * (high - low)
            low = max(min(low, (self.means[:, j] - 2.1 * sd).min()), low - reach)
            high = min(max(high, (self.means[:, j] + 2.1 * sd).max()), high + reach)
        margin = 0.04 * (high - low) or 1.0
        return float(low - margin), float(high + margin)

    def observed(self, j: int) -> tuple[Array, Array]:
        """The values of feature j that are there, and the weights of their rows."""
        if self.X is None:
            return np.empty(0), np.empty(0)
        there = ~np.isnan(self.X[:, j])
        return self.X[there, j], self.weight[there]

    def log_shares(self, j: int) -> tuple[Array, Array]:
        """A grid (G,) of feature j, and the log of each component's share of the density there (G, K)."""
        low, high = self.limits(j)
        means, sd = self.means[:, j], np.sqrt(self.covariances[:, j, j])
        # An even grid would step over a narrow component.
        grid = np.concatenate(
            [np.linspace(low, high, 401), (means + sd * np.linspace(-4, 4, 81)[:, None]).ravel()]
        )
        grid = np.unique(grid[(grid >= low) & (grid <= high)])
        z = (grid[:, None] - means) / sd
        return grid, np.log(self.weights) - np.log(sd) - 0.5 * z**2 - 0.5 * np.log(2 * np.pi)

    def draw_marginal(self, axes: Axes, j: int, numbered: bool = True) -> None:
        """The histogram, the density and each component's share of it, of one feature."""
        low, high = self.limits(j)
        grid, log_shares = self.log_shares(j)
        shares = np.exp(log_shares)
        means, sd = self.means[:, j], np.sqrt(self.covariances[:, j, j])
        values, weight = self.observed(j)
        if len(values):
            edges = np.histogram_bin_edges(values, bins=_n_bins(values))
            heights, _ = np.histogram(values, edges, weights=weight, density=True)
            axes.stairs(heights, edges, fill=True, color=GREYS[1])
        axes.plot(grid, shares.sum(1), color="black", lw=1.2, zorder=3)
        for k in range(len(means)):
            axes.fill_between(grid, shares[:, k], color=self.colour(k), alpha=0.3, lw=0)
            axes.plot(grid, shares[:, k], self.style(k), color=self.colour(k), lw=1)
        axes.set_xlim(low, high)
        axes.set_ylim(0, axes.get_ylim()[1])
        if numbered:
            self.number_curves(axes, means, 0.5 * self.weights / sd / np.sqrt(2 * np.pi))
        label(axes, self.columns[j], "density")
        tidy(axes)

    def number_curves(self, axes: Axes, x: Array, y: Array) -> None:
        """Write the components' numbers, each moved up until it is on none that is written."""
        (low, high), top = axes.get_xlim(), axes.get_ylim()[1]
        # A number is about so wide and high in a panel of the smallest size.
        width, height = 0.08 * (high - low), 0.12 * top
        written: list[tuple[float, float]] = []
        for k in np.argsort(y, kind="stable"):
            at = float(y[k])
            for across, up in sorted(written, key=lambda place: place[1]):
                if abs(x[k] - across) < width and abs(at - up) < height:
                    at = up + height
            if low < x[k] < high:
                written.append((float(x[k]), at))
                self.number(axes, int(k), float(x[k]), at)

    def draw_rug(self, axes: Axes, j: int) -> None:
        """A mark for each sample's value of feature j at the foot of the axes, coloured by its component."""
        if self.X is None:
            return
        for k in range(len(self.weights)):
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "zorder": 4}
            axes.vlines(self.marks(j, k), 0, 0.04, color=self.colour(k), lw=0.8, alpha=self.faint(), **place)

    def marks(self, j: int, k: int) -> Array:
        """Values of feature j of the samples of the k-th component, of no more than a rug can show."""
        mine = self.points[:MOST_MARKS, j][self.labels[:MOST_MARKS] == k]
        return mine[~np.isnan(mine)]

    def faint(self) -> float:
        """The opacity of a rug's marks: the more, the fainter."""
        return float(np.clip(100 / min(len(self.points), MOST_MARKS), 0.25, 0.8))

    def draw_pair(self, axes: Axes, i: int, j: int) -> None:
        """The density, the points and the components' ellipses, of feature i across and feature j up."""
        x, y = (np.linspace(*self.limits(feature), self.grid) for feature in (i, j))
        density = self.pair_density(i, j, x[None, :], y[:, None])
        levels = _mass_levels(density)
        if levels:
            axes.contourf(x, y, density, [*levels, np.inf], colors=GREYS[-len(levels) :], zorder=0)
        if self.X is not None:
            size = float(np.clip(2500 / len(self.points), 2, 9))
            for k in range(len(self.weights)):
                mine = self.points[self.labels == k]
                axes.scatter(mine[:, i], mine[:, j], size, self.colour(k), lw=0, alpha=0.55, rasterized=True)
        self.finish_pair(axes, i, j)

    def finish_pair(self, axes: Axes, i: int, j: int) -> None:
        """The components' ellipses, limits and labels, for feature i across and feature j up."""
        self.draw_ellipses(axes, i, j)
        axes.set_xlim(*self.limits(i))
        axes.set_ylim(*self.limits(j))
        label(axes, self.columns[i], self.columns[j])
        tidy(axes)

    def draw_ellipses(self, axes: Axes, i: int, j: int) -> None:
        """The components' ellipses at one and two standard deviations, and their numbers."""
        (x_low, x_high), (y_low, y_high) = self.limits(i), self.limits(j)
        for k, mean in enumerate(self.means):
            values, vectors = np.linalg.eigh(self.covariances[k][np.ix_([i, j], [i, j])])
            width, height = np.sqrt(np.maximum(values, 0))
            angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
            for radius, line in ((1, 1.3), (2, 0.8)):
                edge = Ellipse((mean[i], mean[j]), 2 * radius * width, 2 * radius * height, angle=angle)
                edge.set(fill=False, edgecolor=self.colour(k), linewidth=line, linestyle=self.style(k))
                axes.add_patch(edge)
            if x_low < mean[i] < x_high and y_low < mean[j] < y_high:
                self.number(axes, k, mean[i], mean[j])

    def pair_density(self, i: int, j: int, x: Array, y: Array) -> Array:
        """The marginal density of features i and j."""
        return np.asarray(np.exp(self.pair_log_shares(i, j, x, y)).sum(0))

    def pair_log_shares(self, i: int, j: int, x: Array, y: Array) -> Array:
        """The log of each component's share of the marginal density of features i and j, along axis 0."""
        shares = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            sd_x = np.sqrt(covariance[i, i])
            slope = covariance[i, j] / covariance[i, i]
            # What rounding leaves of var(y | x) must stay positive where the two features are collinear.
            sd_y = np.sqrt(max(covariance[j, j] - slope * covariance[i, j], 1e-12 * covariance[j, j]))
            u = (x - mean[i]) / sd_x
            v = (y - mean[j] - slope * (x - mean[i])) / sd_y
            shares.append(np.log(weight / (2 * np.pi * sd_x * sd_y)) - 0.5 * (u**2 + v**2))
        return np.stack(shares)

    def number(self, axes: Axes, k: int, x: float, y: float) -> None:
        """Write its number."""
        font: dict[str, Any] = {"fontsize": self.font, "weight": "bold", "path_effects": HALO}
        axes.text(x, y, str(self.numbers[k]), color=self.colour(k), ha="center", va="center", **font)

    def apart(self) -> Array:
        """(D,), the variance between the means over the mean variance within the components, by feature."""
        centre = self.weights @ self.means
        between = self.weights @ (self.means - centre) ** 2
        within = self.weights @ np.diagonal(self.covariances, axis1=1, axis2=2)
        return np.asarray(between / within)

    def note(self) -> str | None:
        """What the legend says of rows with gaps."""
        rows = f"{self.incomplete:,} row{'s are' if self.incomplete > 1 else ' is'} incomplete"
        return f"{rows}: shown where values are known" if self.incomplete else None

    def key(self) -> list[Any]:
        """The legend's entries."""
        n, every = 0 if self.X is None else len(self.points), f"{self.n_samples:,} rows"
        entries: list[Any]
        if self.n_features == 1:
            mixture = Line2D([], [], color="black", lw=1.4, label="mixture")
            shares = Line2D([], [], color="#666666", lw=1, label="its components, numbered")
            entries = [mixture, shares, Patch(color=GREYS[1], label=f"data, {every}")]
        else:
            regions = Patch(fc=GREYS[1], label="50, 80, 95 % of the density")
            edges = Line2D([], [], color="#666666", lw=1.2, label="1 and 2 standard deviations")
            rows = every if n == self.n_samples else f"{n:,} of {every}"
            entries = [regions, edges, Line2D([], [], color="#666666", marker="o", lw=0, ms=3, label=rows)]
        return entries if n else entries[:2]


def _n_bins(x: Array) -> int:
    """Freedman and Diaconis' number of bins, within what a small figure can show."""
    quarter, three = np.quantile(x, [0.25, 0.75])
    width = 2 * (three - quarter) / len(x) ** (1 / 3)
    return int(np.clip(np.ptp(x) / width, 12 if len(x) >= 50 else 5, 60)) if width > 0 else 30


def _mass_levels(density: Array) -> list[float]:
    """The levels above which a density on an even grid holds the shares `MASS` of its mass, rising."""
    ordered = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(ordered)
    if not mass[-1] > 0:
        return []
    levels = [float(ordered[np.searchsorted(mass, share * mass[-1])]) for share in MASS]
    return sorted({level for level in levels if 0 < level < ordered[0]})
