"""Pictures: what is drawn is what the mixture says."""

import dataclasses
import importlib
import inspect
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy.stats import multivariate_normal, norm

import jaxgmm
from jaxgmm.components import gaussian, get_covariance
from jaxgmm.plot import (
    plot_boundaries,
    plot_classification,
    plot_criteria,
    plot_density,
    plot_directions,
    plot_ellipses,
    plot_fit,
    plot_fit_check,
    plot_history,
    plot_merging,
    plot_pairs,
    plot_ridgeline,
    plot_trim_curve,
    plot_uncertainty,
    plot_uncertainty_profile,
)
from jaxgmm.plot.picture import Picture
from tests.conftest import case

matplotlib.use("Agg")


def mixture_of(weights, means, covariances):
    """Float32 parameters of three components, by NumPy; all of one structure, so that programs are few."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(weights, np.float32))
    arrays = (np.asarray(means, np.float32), np.linalg.cholesky(covariances).astype(np.float32))
    return jaxgmm.GMMParams(log_weights, *arrays, gaussian(get_covariance("full")))


def two(first, second, variances=(1.0, 1.0)):
    """Two round components of equal weight, and one that is switched off."""
    identity = np.eye(len(first))
    covariances = np.stack([variances[0] * identity, variances[1] * identity, identity])
    return mixture_of([0.5, 0.5, 0.0], [first, second, first], covariances)


def mixture(n_features, seed=0, off=()):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(3, n_features)) * 4
    factors = np.tril(rng.normal(size=(3, n_features, n_features))) * 0.3
    factors += np.eye(n_features)
    weights = np.arange(1.0, 4)
    weights[list(off)] = 0
    return mixture_of(weights / weights.sum(), means, factors @ factors.transpose(0, 2, 1))


def parts(params):
    """Weights, means and covariances in float64."""
    factors = np.asarray(params.scale, float)
    weights = np.exp(np.asarray(params.log_weights, float))
    return weights / weights.sum(), np.asarray(params.means, float), factors @ factors.transpose(0, 2, 1)


def draw(params, n, seed=0):
    """Rows of a mixture, by NumPy."""
    rng = np.random.default_rng(seed)
    weights, means, covariances = parts(params)
    labels = rng.choice(len(weights), n, p=weights)
    noise = rng.normal(size=(n, params.n_features))
    return means[labels] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[labels], noise)


def densities(params, X):
    """(N, K) the components' shares of the density, by SciPy."""
    return np.stack(
        [w * multivariate_normal(m, c).pdf(X) for w, m, c in zip(*parts(params), strict=True)], -1
    )


def canvas():
    figure = Figure(layout="constrained")
    return figure, figure.add_subplot()


def rows(values):
    return [
        {"covariance_type": name, "n_components": k + 1, "bic": value}
        for name, column in values.items()
        for k, value in enumerate(column)
    ]


def ellipses(axes):
    return [patch for patch in axes.patches if isinstance(patch, Ellipse)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def ink(figure):
    """The picture as pixels, drawn at 100 dpi."""
    figure.set_dpi(100)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3]


def test_ellipses_lie_at_one_and_two_standard_deviations():
    params = mixture(2)
    _, axes = canvas()
    assert plot_density(params, draw(params, 50), ax=axes) is axes
    drawn = ellipses(axes)
    assert len(drawn) == 6
    for i, patch in enumerate(drawn):
        k, radius = i // 2, 1 + i % 2
        edge = patch.get_patch_transform().transform(
            np.column_stack([np.cos(np.linspace(0, 6, 50)), np.sin(np.linspace(0, 6, 50))])
        )
        _, means, covariances = parts(params)
        residual = edge - means[k]
        distance = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(covariances[k]), residual)
        np.testing.assert_allclose(np.sqrt(distance), radius, rtol=1e-4)


def test_shaded_regions_hold_what_the_key_says():
    params = mixture(2)
    _, axes = canvas()
    plot_density(params, ax=axes)
    levels = axes.collections[0].levels[:-1]
    density = densities(params, draw(params, 20_000)).sum(1)
    inside = [(density > level).mean() for level in levels]
    np.testing.assert_allclose(inside, [0.95, 0.8, 0.5], atol=0.02)


def test_one_dimension_is_the_density():
    params = mixture(1)
    X = draw(params, 50)
    _, axes = canvas()
    plot_density(params, X, ax=axes, columns=["height"])
    total, *shares = axes.lines
    grid = total.get_xdata()
    wanted = densities(params, grid[:, None]).sum(1)
    np.testing.assert_allclose(total.get_ydata(), wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(sum(line.get_ydata() for line in shares), total.get_ydata(), rtol=1e-12)
    assert axes.get_xlabel() == "height"
    assert texts(axes) == ["0", "1", "2"]


def test_a_narrow_component_is_not_stepped_over():
    params = two([0.0], [500.0], (1e-4, 1e4))
    _, axes = canvas()
    plot_density(params, ax=axes)
    assert axes.lines[0].get_ydata().max() == pytest.approx(0.5 / (0.01 * np.sqrt(2 * np.pi)), rel=1e-3)


def test_histogram_uses_the_weights():
    params = two([0.0], [10.0])
    X = np.repeat([[0.0], [10.0]], 25, axis=0)
    _, axes = canvas()
    plot_density(params, X, ax=axes, sample_weight=np.repeat([3.0, 1.0], 25))
    outline = axes.patches[0].get_path().vertices
    left, right = (outline[outline[:, 0] < 5, 1].max(), outline[outline[:, 0] > 5, 1].max())
    assert left / right == pytest.approx(3)


def test_switched_off_components_are_not_drawn_and_keep_the_others_numbers():
    params = mixture(2, off=(1,))
    _, axes = canvas()
    plot_density(params, draw(params, 50), ax=axes)
    assert len(ellipses(axes)) == 4
    assert texts(axes) == ["0", "2"]


def test_rows_without_weight_are_not_drawn():
    params = mixture(2)
    X = np.concatenate([draw(params, 50), [[1e6, 1e6]]])
    _, axes = canvas()
    plot_density(params, X, ax=axes, sample_weight=np.append(np.ones(50), 0))
    assert sum(len(points.get_offsets()) for points in axes.collections[1:]) == 50
    assert axes.get_xlim()[1] < 1e5


def test_rows_with_gaps_are_drawn_where_they_are_known():
    params = two([0.0, 0.0], [9.0, 9.0])
    X = np.array([[0.1, 0.2], [np.nan, 0.4], [9.1, np.nan], [9.3, 8.8], [50.0, 50.0]], np.float32)
    data = jaxgmm.observe(X, missing="nan", sample_weight=[1, 2, 1, 1, 0])
    picture = Picture(params, data, None, None, 100)
    # Of a row with a gap the colour is by what it has.
    assert picture.labels.tolist() == [0, 0, 1, 1]
    axes = plot_density(params, data)
    drawn = np.concatenate([np.ma.filled(c.get_offsets(), np.nan) for c in axes.collections[-2:]])
    np.testing.assert_allclose(np.sort(drawn[np.isfinite(drawn).all(1), 0]), [0.1, 9.3], rtol=1e-6)
    assert axes.get_legend().get_title().get_text() == "2 rows are incomplete: shown where values are known"
    assert axes.get_xlim()[1] < 15
    marginal = Figure().subplots()
    picture.draw_marginal(marginal, 1)
    heights, edges = marginal.patches[0].get_data()[:2]
    shares = heights * np.diff(edges)
    # Weights 1, 2 and 1 at 0.2, 0.4 and 8.8; the row without the second feature does not count.
    np.testing.assert_allclose([shares[edges[1:] < 5].sum(), shares.sum()], [0.75, 1], rtol=1e-5)


def test_rows_that_are_not_the_features_are_refused():
    params = two([0.0, 0.0], [9.0, 9.0])
    with pytest.raises(ValueError, match="without noise or projection"):
        plot_density(params, jaxgmm.observe(np.ones((5, 2)), noise=1.0))
    with pytest.raises(TypeError, match="sample_weight belongs to the data"):
        plot_density(params, jaxgmm.observe(np.ones((5, 2))), sample_weight=np.ones(5))


def test_many_points_are_sampled_and_said_so():
    params = mixture(2)
    _, axes = canvas()
    plot_density(params, draw(params, 80), ax=axes, max_points=50)
    assert sum(len(points.get_offsets()) for points in axes.collections[1:]) == 50
    assert "50 of 80 rows" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_points_have_the_colour_of_their_likeliest_component():
    params = mixture(2)
    X = draw(params, 50)
    _, axes = canvas()
    plot_density(params, X, ax=axes)
    labels = densities(params, X).argmax(1)
    scatters = axes.collections[-3:]
    assert [len(points.get_offsets()) for points in scatters] == np.bincount(labels, minlength=3).tolist()
    assert len({points.get_facecolor()[0].tobytes() for points in scatters}) == 3


def test_pairs_are_a_triangle_of_panels_each_of_which_is_the_marginal():
    params = mixture(3)
    figure, alone = Figure(), canvas()[1]
    columns = ["alpha", "beta", "gamma"]
    assert plot_pairs(params, figure=figure, columns=columns) is figure
    assert len(figure.axes) == 6
    assert [axes.get_xlabel() for axes in figure.axes[-3:]] == columns
    weights, means, covariances = parts(params)
    plot_density(mixture_of(weights, means[:, :2], covariances[:, :2, :2]), ax=alone)
    panel = figure.axes[1]
    np.testing.assert_allclose(panel.collections[0].levels[:-1], alone.collections[0].levels[:-1], rtol=1e-3)


def test_many_features_show_those_that_separate_best():
    useful, means = [1, 2, 3, 5, 7, 8, 10, 11], np.zeros((2, 12))
    means[1, useful] = np.random.default_rng(0).uniform(4, 9, 8)
    figure = Figure()
    plot_pairs(two(*means), figure=figure)
    assert len(figure.axes) == 36
    assert [axes.get_xlabel() for axes in figure.axes[-8:]] == [f"x{j + 1}" for j in useful]
    assert figure.legends[0].get_title().get_text().startswith("the 8 of 12 features")
    few = Figure()
    plot_pairs(two(*means), figure=few, max_features=2)
    assert len(few.axes) == 3


def test_criteria_are_drawn_above_the_best():
    table = rows({"full": [900.0, 512.0, 530.0], "diag": [950.0, 600.0, 500.0]})
    _, axes = canvas()
    assert plot_criteria(table, ax=axes) is axes
    full, diag, ring = axes.lines
    np.testing.assert_allclose(full.get_ydata(), [400, 12, 30])
    np.testing.assert_allclose(diag.get_ydata(), [450, 100, 0])
    assert ring.get_xydata().tolist() == [[3, 0]]
    assert "best: diag, K = 3" in texts(axes)
    assert {"full", "diag"} <= set(texts(axes))
    assert axes.get_ylabel() == "BIC above the best (log above 10)"
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_failed_fits_leave_a_gap():
    _, axes = canvas()
    plot_criteria(rows({"full": [3.0, np.nan, 1.0], "diag": [np.inf, -np.inf, np.nan]}), ax=axes)
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]
    assert len(axes.lines) == 2
    with pytest.raises(ValueError, match="no finite bic"):
        plot_criteria(rows({"full": [np.nan]}), ax=axes)


def test_trim_curves_are_the_totals_over_the_share():
    total = np.array([[-9.0, -4.0, -2.0], [-5.0, np.nan, -1.0]])
    curve = jaxgmm.selection.TrimCurve((1, 2), (0.2, 0.0, 0.1), total, np.full(3, 8.0), None)
    figure, axes = canvas()
    assert plot_trim_curve(curve, ax=axes) is axes
    one, two_ = axes.lines
    np.testing.assert_array_equal(one.get_xydata(), [[0, -4], [0.1, -2], [0.2, -9]])
    assert np.isnan(two_.get_ydata()).tolist() == [True, False, False]
    assert texts(axes) == ["K = 2", "K = 1"] or texts(axes) == ["K = 1", "K = 2"]
    assert axes.get_xlabel() == "trimmed share α"
    ink(figure)
    with pytest.raises(ValueError, match="every fit of the curve has failed"):
        plot_trim_curve(dataclasses.replace(curve, total=total * np.nan), ax=axes)


def test_any_range_of_criteria_draws():
    for column in ([5.0], [5.0, 5.0], [0.0, 1e-7], [-3.0, 2.0, 8.0], [1e9, 1.0], [0.0, 9.99999, 10.00001]):
        figure, axes = canvas()
        plot_criteria(rows({"full": column}), ax=axes)
        ink(figure)
        assert axes.get_yticks().min() >= 0


def test_labels_do_not_overlap():
    figure, axes = canvas()
    figure.set_size_inches(3.5, 3)
    plot_criteria(rows({f"s{i}": [500.0, 20.0 + i / 100] for i in range(6)}), ax=axes)
    ink(figure)
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("s")]
    middles = np.sort([0.5 * (box.y0 + box.y1) for box in boxes])
    assert len(boxes) == 6
    assert np.diff(middles).min() > 0.9 * 7 * 100 / 72


def test_the_label_of_the_best_stays_within_the_axes():
    for best in (0, 3, 6):
        column = [50.0] * 7
        column[best] = 0
        figure, axes = canvas()
        figure.set_size_inches(2.4, 2.4)
        plot_criteria(rows({"spherical": column}), ax=axes)
        ink(figure)
        label = next(text for text in axes.texts if text.get_text().startswith("best")).get_window_extent()
        frame = axes.get_window_extent()
        assert label.x0 > frame.x0 - 8
        assert label.x1 < frame.x1 + 8
        assert label.y0 > frame.y0 - 3


@pytest.mark.parametrize("n_features", [1, 3])
def test_a_page_has_the_criteria_where_there_was_a_choice(n_features):
    params = mixture(n_features)
    panels = n_features * (n_features + 1) // 2 if n_features > 2 else 1
    table = rows({"full": [900.0, 512.0, 530.0]})
    for used, more in ((table, 1), (table[:1], 0)):
        figure = Figure(layout="constrained")
        assert plot_fit(params, draw(params, 50), used, figure=figure) is figure
        assert len(figure.axes) == panels + more
    assert (ink(figure) < 200).any()


def test_the_names_of_lines_stay_off_the_next_panel():
    """Also where the figure that is given has no layout of its own."""
    table = rows({name: [900.0, 512.0] for name in ("VVV", "student_t(full)")})
    for figure in (Figure(), Figure(layout="constrained")):
        ink(plot_fit(mixture(2), None, table, figure=figure))
        left, right = (axes.get_tightbbox() for axes in figure.axes)
        assert left.x1 < right.x0


def test_numbers_of_components_with_one_mean_stay_apart():
    params = mixture_of([0.3, 0.3, 0.4], [[0.0], [0.1], [0.0]], np.ones((3, 1, 1)))
    figure, axes = canvas()
    plot_density(params, ax=axes)
    ink(figure)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_names_are_text_not_mathematics():
    figure, axes = canvas()
    plot_density(mixture(2), ax=axes, columns=["price $ (a$b)", r"x$\frac$_\q"])
    ink(figure)
    assert axes.get_xlabel() == "price $ (a$b)"


def test_collinear_and_constant_features_draw():
    covariances = np.array([[[1.0, 0.9999999], [0.9999999, 1.0]]] * 3)
    params = mixture_of([1.0, 0.0, 0.0], np.full((3, 2), 5.0), covariances)
    for X in (None, np.full((50, 2), 5.0)):
        figure, axes = canvas()
        plot_density(params, X, ax=axes)
        ink(figure)


def test_bad_arguments():
    for call, match in [
        (lambda p: plot_density(mixture(3)), "use plot_pairs"),
        (lambda p: plot_pairs(mixture(1)), "use plot_density"),
        (lambda p: plot_density(p, np.zeros((5, 3))), r"\(N, 2\), got \(5, 3\)"),
        (lambda p: plot_density(p, np.zeros(5)), r"\(N, 2\), got \(5,\)"),
        (lambda p: plot_density(p, np.zeros((5, 2)), sample_weight=np.ones(4)), r"shape \(5,\), got \(4,\)"),
        (lambda p: plot_density(p, columns=["a"]), "name 2 features, got 1"),
        (lambda p: plot_density(matrix_of(p)), "batch axes"),
    ]:
        with case(match), pytest.raises(ValueError, match=match):
            call(mixture(2))


def test_a_picture_of_samples_says_so_where_there_are_none():
    """Every function that takes X and has no default for it; and only these."""
    taking = [getattr(jaxgmm.plot, name) for name in dir(jaxgmm.plot) if name.startswith("plot_")]
    parameters = [inspect.signature(function).parameters.get("X") for function in taking]
    needing = [
        f for f, X in zip(taking, parameters, strict=True) if X and X.default is inspect.Parameter.empty
    ]
    assert len(needing) == 5
    for function in needing:
        for n_features in (1, 2):
            with pytest.raises(ValueError, match=rf"{function.__name__} needs samples: .*got None"):
                function(mixture(n_features), None)
    with pytest.raises(ValueError, match="plot_boundaries needs samples"):
        plot_boundaries(Votes(), None)


def matrix_of(params):
    """The same mixture twice, as `vmap` would give it."""
    arrays = (np.stack([a, a]) for a in (params.log_weights, params.means, params.scale))
    return jaxgmm.GMMParams(*arrays, params.component)


def test_no_global_state_is_touched():
    from matplotlib import pyplot

    settings, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    params = mixture(2)
    plot_fit(params, draw(params, 50), rows({"full": [3.0, 2.0]}), figure=Figure(layout="constrained"))
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == figures


def test_a_figure_of_its_own_is_one_that_a_notebook_shows():
    from matplotlib import pyplot

    try:
        for make in (
            lambda: plot_density(mixture(2)).figure,
            lambda: plot_pairs(mixture(2)),
            lambda: plot_criteria(rows({"full": [2.0, 1.0]})).figure,
            lambda: plot_fit(mixture(1)),
        ):
            assert make().number in pyplot.get_fignums()
    finally:
        pyplot.close("all")


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in [m for m in sys.modules if m.startswith(("jaxgmm.plot", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^jaxgmm.plot needs Matplotlib: pip install 'jaxgmm\[plot\]'"):
        importlib.import_module("jaxgmm.plot")


def test_uncertainty_sorts_the_points_by_it():
    params = two([-4.0, 0.0, 0.0], [4.0, 0.0, 0.0])
    sure, unsure = [[-4.0, 1.0, 0.0], [4.0, -1.0, 0.0]], [[0.0, 2.0, 0.0]]
    between = [[-0.25, 0.5, 0.0]]  # log-odds of −2: the other component has 0.12
    _, axes = canvas()
    assert plot_uncertainty(params, np.array(sure + unsure + between), features=(0, 1), ax=axes) is axes
    drawn = [collection.get_offsets().tolist() for collection in axes.collections]
    assert drawn == [[p[:2] for p in sure], [between[0][:2]], [unsure[0][:2]]]
    assert len(ellipses(axes)) == 4
    assert axes.get_xlabel() == "x1"
    with pytest.raises(ValueError, match="features must be two of the 3"):
        plot_uncertainty(params, np.array(sure), features=(0, 3), ax=axes)


def test_the_profile_sorts_the_uncertainties_and_marks_the_errors():
    params = two([-2.0], [2.0])
    x = np.array([[-3.0], [0.5], [2.5], [-0.2], [1.0]])
    odds = np.exp(-4 * np.abs(x[:, 0]))
    wanted = odds / (1 + odds)
    _, axes = canvas()
    truth = ["a", "a", "b", "b", "b"]  # rows 1 and 3 are on the other side
    assert plot_uncertainty_profile(params, x, truth, ax=axes) is axes
    order = np.argsort(wanted)
    curve = next(line for line in axes.lines if len(line.get_xdata()) == len(x))
    np.testing.assert_allclose(curve.get_ydata(), wanted[order], atol=1e-6)
    marks = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(marks, [[4, wanted[1]], [5, wanted[3]]], rtol=1e-4)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["misclassified: 2 of 5 (40.0 %)"]
    assert plot_uncertainty_profile(params, x, ax=canvas()[1]).get_legend() is None
    with pytest.raises(ValueError, match=r"truth must have shape \(5,\)"):
        plot_uncertainty_profile(params, x, truth[:4], ax=axes)


def test_directions_are_drawn_with_the_labels_of_all_features():
    params = mixture(4)
    x = draw(params, 60)
    _, axes = canvas()
    assert plot_directions(params, x, ax=axes, columns=["a", "b", "c", "d"]) is axes
    found = jaxgmm.distributions.directions(params, 2)
    v = np.asarray(found.directions)
    centres = np.array([e.get_center() for e in ellipses(axes)])[::2]
    means = np.asarray(params.means) @ v
    np.testing.assert_allclose(np.abs(centres), np.abs(means), rtol=1e-3, atol=1e-3)
    sign = np.sign((centres * means).sum(0))
    labels = densities(params, x).argmax(1)
    groups = [c.get_offsets() for c in axes.collections if len(c.get_offsets())][-3:]
    for k, group in enumerate(groups):
        np.testing.assert_allclose(np.sort(group, 0), np.sort((x @ v * sign)[labels == k], 0), atol=1e-4)
    text = axes.get_xlabel()
    assert text.startswith("direction 1: ")
    assert "% of the eigenvalues\n" in text
    assert text.endswith(" …")
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="complete rows"):
        plot_directions(params, jaxgmm.observe(x, missing="nan"), ax=axes)
    with pytest.raises(ValueError, match="at least 2 features"):
        plot_directions(two([0.0], [1.0]))


def test_a_rug_marks_the_samples_by_component():
    params = two([-2.0], [2.0])
    x = np.array([[-3.0], [2.5], [1.0]])
    _, axes = canvas()
    plot_density(params, x, ax=axes)
    rug = [c for c in axes.collections if type(c).__name__ == "LineCollection"]
    assert [[s[0][0] for s in c.get_segments()] for c in rug] == [[-3.0], [2.5, 1.0]]


def test_classification_draws_each_sample_with_its_component():
    params = two([-4.0, 0.0, 0.0], [4.0, 0.0, 0.0])
    left, right = [[-4.0, 1.0, 2.0], [-1.0, 0.0, 5.0]], [[4.0, -1.0, 3.0], [5.0, 1.0, 2.0]]
    _, axes = canvas()
    assert plot_classification(params, np.array(left + right), features=(0, 2), ax=axes) is axes
    drawn = [collection.get_offsets().tolist() for collection in axes.collections]
    assert drawn == [[[p[0], p[2]] for p in part] for part in (left, right)]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["0: 2", "1: 2"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x1", "x3")
    assert len(ellipses(axes)) == 4


def test_ellipses_go_on_top_of_what_is_there():
    params = mixture(3)
    _, axes = canvas()
    axes.plot([-50.0, 0.0], [0.0, 60.0])
    before = axes.get_xlim(), axes.get_ylim()
    assert plot_ellipses(params, features=(2, 1), ax=axes) is axes
    found = ellipses(axes)
    assert len(found) == 2 * params.n_components
    centres = {tuple(np.round(e.get_center(), 4)) for e in found}
    assert centres == {tuple(np.round([m[2], m[1]], 4)) for m in np.asarray(params.means, float)}
    assert axes.get_xlim()[0] <= before[0][0]
    assert axes.get_ylim()[1] >= before[1][1]
    with pytest.raises(ValueError, match="features must be two of the 3"):
        plot_ellipses(params, features=(1, 1))


def results_of(history, status):
    """As `fit_restarts` would return them: only what a picture of their history reads."""
    none = np.zeros(len(status))
    return jaxgmm.FitResult(None, none, none, none, np.asarray(status), np.asarray(history, np.float32))


def test_history_has_a_line_for_every_start_and_the_best_is_the_coloured_one():
    nan = np.nan
    history = [[-3.0, -2.5, -2.5, nan], [-3.0, -2.0, -1.5, -1.25], [-4.0, -1.0, nan, nan]]
    _, axes = canvas()
    ends = [jaxgmm.Status.CONVERGED, jaxgmm.Status.MAX_ITER, jaxgmm.Status.DEGENERATE]
    assert plot_history(results_of(history, [int(s) for s in ends]), ax=axes) is axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
    shorts = {tuple(np.round(line.get_ydata(), 5)) for line in lines}
    # What failed does not count as the best, and what is above it is drawn at the floor.
    assert shorts == {(1.75, 1.25, 1.25), (1.75, 0.75, 0.25, 0.0), (2.75, 0.0)}
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["the best", "1 other", "1 failed"]
    best = max(lines, key=lambda line: line.get_linewidth())
    np.testing.assert_array_equal(best.get_xdata(), [1, 2, 3, 4])
    one = results_of(history[1], [0])
    assert len([line for line in plot_history(one, ax=canvas()[1]).lines if len(line.get_xdata()) > 1]) == 1
    with pytest.raises(ValueError, match="history_size above 0"):
        plot_history(results_of(np.zeros((3, 0)), [0, 0, 0]), ax=axes)


def test_a_masked_entry_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"masked array, and entry \(1, 0\)"):
        plot_pairs(mixture(2), np.ma.masked_array(np.ones((3, 2)), [[0, 0], [1, 0], [0, 0]]))


def test_many_structures_have_a_legend_that_tells_them_apart():
    names = [f"structure {i}" for i in range(14)]
    rows = [
        {"covariance_type": name, "n_components": k, "bic": 100.0 * i + abs(k - 2)}
        for i, name in enumerate(names)
        for k in (1, 2, 3)
    ]
    axes = plot_criteria(rows, ax=Figure().add_subplot())
    lines = axes.get_legend().get_lines()
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == 14
    # From the top, as the lines end.
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names[::-1]
    assert plot_criteria(rows[:18], ax=Figure().add_subplot()).get_legend() is None


def merging_of(entropies, merged, n_clusters):
    """A record of which only what is drawn matters."""
    k = len(entropies)
    numbers = np.asarray(entropies, np.float32), np.asarray(merged, np.float32)
    empty = np.zeros((k, k), np.int32), np.zeros((k - 1, 2), np.int32), np.zeros(k - 1, np.float32)
    return jaxgmm.selection.Merging(
        empty[0], *numbers, *empty[1:], np.asarray(n_clusters, np.int32), "entropy", "ratio"
    )


def test_plot_merging_draws_entropies_over_both_axes_and_marks_what_is_chosen():
    # One component is switched off: there are no six clusters. A background: there is not one.
    merging = merging_of([np.inf, 1, 2, 30, 60, np.inf], [np.inf, 0, 50, 70, 80, np.inf], 3)
    for rescaled, x in ((False, [2, 3, 4, 5]), (True, [0, 50, 70, 80])):
        _, axes = canvas()
        assert plot_merging(merging, rescaled=rescaled, ax=axes) is axes
        lower, upper, line, mark = axes.get_lines()
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([x, [1, 2, 30, 60]]))
        np.testing.assert_allclose(mark.get_xydata(), [[x[1], 2]])
        np.testing.assert_allclose(lower.get_xydata(), np.column_stack([x[:2], [1, 2]]))
        slope, at = np.polyfit(x[1:], [2, 30, 60], 1)
        np.testing.assert_allclose(upper.get_ydata(), [slope * x[1] + at, slope * x[3] + at])
        assert [t.get_text() for t in axes.texts] == (["2", "3", "4", "5"] if rescaled else [])
        assert axes.get_legend().get_texts()[1].get_text() == "chosen by entropy: 3"
    plot_merging(merging_of([0.0], [0.0], 1), ax=canvas()[1])
    with pytest.raises(ValueError, match=r"got batch axes \(2,\)"):
        plot_merging(jaxgmm.selection.Merging(*[np.zeros((2, 3))] * 6, "entropy", "ratio"), ax=canvas()[1])


def test_plot_ridgeline_draws_the_density_by_length_and_the_valley():
    alpha = np.linspace(0, 1, 5)
    points = np.array([[0, 0], [3, 4], [3, 4], [6, 8], [6, 18.0]])  # 5, 0, 5 and 10 long
    heights = np.log([0.5, 0.1, 0.2, 0.4, 0.25])
    _, axes = canvas()
    line = jaxgmm.distributions.Ridgeline(alpha, points, heights, np.log(4), 0.25)
    assert plot_ridgeline(line, ax=axes) is axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [0, 0.25, 0.25, 0.5, 1])
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), np.array([5, 1, 2, 4, 2.5]) / 5)
    np.testing.assert_allclose(axes.get_lines()[1].get_xydata(), [[0.25, 0.2]])
    assert axes.get_legend().get_texts()[0].get_text() == "valley, 1.4 nats deep"
    _, axes = canvas()
    plot_ridgeline(line._replace(depth=0.0, valley=np.nan), ax=axes)
    assert len(axes.get_lines()) == 1
    assert axes.get_legend().get_texts()[0].get_text() == "no valley"


def rug(axes):
    """The values that are marked, a list for each component."""
    marks = [c for c in axes.collections if type(c).__name__ == "LineCollection"]
    return [[segment[0][0] for segment in c.get_segments()] for c in marks]


def test_one_feature_is_classified_in_a_row_of_marks_for_each_component():
    params, x = two([-2.0], [2.0]), np.array([[-3.0], [2.5], [1.0]])
    _, axes = canvas()
    assert plot_classification(params, x, ax=axes, columns=["height"]) is axes
    assert rug(axes) == [[-3.0], [2.5, 1.0]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "1"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["0: 1", "1: 2"]
    for line, foot, mean in zip(axes.lines, (1, 0), (-2, 2), strict=True):
        peak = line.get_ydata().argmax()
        assert line.get_ydata()[peak] == pytest.approx(foot + 0.6)
        assert line.get_xdata()[peak] == pytest.approx(mean)
    assert axes.get_xlabel() == "height"


def test_the_uncertainty_in_one_feature_is_a_curve():
    params, x = two([-2.0], [2.0]), np.array([[-3.0], [2.5], [1.0]])
    _, axes = canvas()
    assert plot_uncertainty(params, x, ax=axes) is axes
    left, right = axes.lines
    grid = left.get_xdata()
    wanted = 1 / (1 + np.exp(4 * np.abs(grid)))
    np.testing.assert_allclose(np.fmax(left.get_ydata(), right.get_ydata()), wanted, rtol=1e-6)
    assert np.isnan(left.get_ydata()[grid > 0.1]).all()
    assert rug(axes) == [[-3.0], [2.5, 1.0]]


def test_the_fit_check_is_the_distribution_functions_and_the_quantiles():
    params, x = two([-2.0], [2.0]), np.array([[1.0], [-3.0], [2.5], [1.0]])
    data = jaxgmm.observe(np.append(x, [[np.nan]], axis=0), missing="nan")
    for given, weight in ((x, None), (data, None), (x[:3], [2, 1, 1])):
        figure = Figure(layout="constrained")
        assert plot_fit_check(params, given, figure=figure, sample_weight=weight) is figure
        left, right = figure.axes
        empirical, mixture = left.lines
        np.testing.assert_allclose(empirical.get_xydata()[1:-1], [[-3, 0.25], [1, 0.75], [2.5, 1]])
        at = mixture.get_xdata()[:, None]
        np.testing.assert_allclose(mixture.get_ydata(), norm.cdf(at - [-2, 2]).mean(1), atol=1e-6)
        # The largest distance is at −3 or 1, from above or below.
        f = norm.cdf(np.array([[-3.0], [1], [2.5]]) - [-2, 2]).mean(1)
        distance = np.abs(np.stack([f - [0.25, 0.75, 1], f - [0, 0.25, 0.75]])).max()
        assert left.get_legend().get_texts()[1].get_text() == f"mixture; largest distance {distance:.3f}"
        points = np.asarray(right.collections[0].get_offsets())
        middle = [0.125, 0.5, 0.875] if weight else [0.125, 0.375, 0.625, 0.875]
        np.testing.assert_allclose(points[:, 1], [-3, 1, 2.5] if weight else [-3, 1, 1, 2.5])
        np.testing.assert_allclose(norm.cdf(points[:, :1] - [-2, 2]).mean(1), middle, atol=1e-5)
    with pytest.raises(ValueError, match=r"one feature, got 2; choose one by .*marginal"):
        plot_fit_check(mixture_of([1, 0, 0], np.zeros((3, 2)), np.stack([np.eye(2)] * 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="all of X is missing"):
        plot_fit_check(params, jaxgmm.observe(np.full((3, 1), np.nan), missing="nan"))


def lines_of(axes):
    """The vertices of all boundaries that are drawn."""
    drawn = [c for c in axes.collections if type(c).__name__ == "QuadContourSet" and not c.filled]
    return np.concatenate([path.vertices for c in drawn for path in c.get_paths()])


def test_boundaries_of_a_mixture_are_where_two_components_are_as_likely():
    params = two([-4.0, 7.0, 0.0], [4.0, 7.0, 2.0])
    x = np.array([[-4.0, 7.0, 2.0], [-1.0, 8.0, -5.0], [4.0, 6.0, 3.0]])
    _, axes = canvas()
    assert plot_boundaries(params, x, features=(0, 2), ax=axes) is axes
    across, up = lines_of(axes).T
    np.testing.assert_allclose(8 * across + 2 * (up - 1), 0, atol=1e-4)  # through (0, 1)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["0: 2", "1: 1"]
    assert texts(axes) == ["0", "1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x1", "x3")
    one = mixture_of([1, 0, 0], np.zeros((3, 2)), np.stack([np.eye(2)] * 3))
    plot_boundaries(one, x[:, :2], ax=canvas()[1])
    for model, y, match in (
        (params, [0, 1, 1], "y is for a classifier"),
        (two([0.0], [1.0]), None, "two of"),
    ):
        with pytest.raises(ValueError, match=match):
            plot_boundaries(model, x if model is params else x[:, :1], y)
    with pytest.raises(TypeError, match="predict_proba and classes_; got ndarray"):
        plot_boundaries(x, x)


class Votes:
    """A classifier that has three votes for three classes, and equal ones in between."""

    classes_ = np.array(["left", "middle", "right"])
    n_features_in_ = 2
    feature_names_in_ = np.array(["height", "width"])

    def predict_proba(self, X):
        steps = np.stack([X[:, 0] < 1, np.abs(X[:, 0]) < 2, X[:, 0] > 1], 1) * 1.0
        return steps / steps.sum(1, keepdims=True)


def test_boundaries_of_a_classifier_leave_no_place_without_a_class():
    x = np.array([[-5.0, 0.0], [0.0, 1.0], [5.0, 2.0], [5.0, 1.0]])
    figure, axes = canvas()
    plot_boundaries(Votes(), x, ["left", "middle", "left", "?"], ax=axes)
    # Where two have equal votes the first has the place: left to 1, then middle to 2, then right.
    assert {round(float(v)) for v in lines_of(axes)[:, 0]} == {1, 2}
    entries = [t.get_text() for t in axes.get_legend().get_texts()]
    assert entries == ["left: 2", "middle: 1", "right: 0", "no class: 1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("height", "width")
    axes.collections[-1].remove()
    frame = axes.get_window_extent()
    pixels = ink(figure)[::-1][int(frame.y0) + 3 : int(frame.y1) - 3, int(frame.x0) + 3 : int(frame.x1) - 3]
    assert (pixels.min(2) < 250).mean() > 0.99
    assert [c.get_offsets().tolist() for c in axes.collections[-1:]] == [[]]
    predicted = plot_boundaries(Votes(), x, ax=canvas()[1])
    assert [t.get_text() for t in predicted.get_legend().get_texts()] == ["left: 2", "middle: 0", "right: 2"]
    with pytest.raises(ValueError, match=r"classifier of 2 features; got one of 2 and X of shape \(4, 1\)"):
        plot_boundaries(Votes(), x[:, :1])
    with pytest.raises(ValueError, match=r"y must have shape \(4,\)"):
        plot_boundaries(Votes(), x, ["left"])


def test_the_names_of_lines_stay_on_the_page():
    params, names = mixture(3), [f"student_t(structure {i})" for i in range(8)]
    for some in (names, names[:2]):
        figure = plot_fit(params, None, rows({name: [900.0, 512.0] for name in some}), figure=Figure())
        ink(figure)
        corner = figure.axes[-1]
        assert corner.get_tightbbox().x1 < figure.bbox.x1
        assert corner.get_position().width > 0.15
        label = corner.yaxis.label.get_window_extent()
        assert label.height < 1.2 * corner.get_window_extent().height
