"""Modes and ridgelines: against SciPy's optimiser, known bimodality, and the equations."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import optimize
from scipy.special import logsumexp

import jaxgmm
from jaxgmm.components import background, contaminated
from jaxgmm.distributions import modes, ridgeline
from tests.closed import build, dense
from tests.quick import quick_jit

K, D = 5, 2


def padded(weights, means, variances):
    """A float32 mixture of round components, and more that are switched off: one program for all of them."""
    off = [(0, K - len(weights))]
    with np.errstate(divide="ignore"):
        covariances = np.pad(variances, off, constant_values=1)[:, None, None] * np.eye(D)
        return build("full", np.pad(weights, off), np.pad(means, [*off, (0, 0)]), covariances, np.float32)


def mixture(seed=0, spread=1.5, dtype=np.float32):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(K, D, D))
    covariances = a @ a.transpose(0, 2, 1) / D + 0.2 * np.eye(D)
    return build("full", rng.dirichlet(np.full(K, 3.0)), spread * rng.normal(size=(K, D)), covariances, dtype)


def log_density(params, x):
    """log p at x (D,), in NumPy and float64."""
    w, mu, cov = dense(params)
    gap = x - mu
    length = np.einsum("kd,kde,ke->k", gap, np.linalg.inv(cov), gap)
    return logsumexp(-0.5 * length - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1], b=w)


def summit(params, start):
    """Where SciPy's optimiser arrives."""
    start = np.asarray(start, float)
    found = optimize.minimize(lambda x: -log_density(params, x), start, method="BFGS", options={"gtol": 1e-7})
    return found.x


def test_every_mean_climbs_to_where_an_optimiser_arrives():
    numbers = []
    for seed in range(4):
        params = mixture(seed)
        found = jax.tree.map(np.asarray, modes(params))
        assert found.converged.all()
        for k in range(K):
            np.testing.assert_allclose(found.points[k], summit(params, params.means[k]), atol=2e-3)
            np.testing.assert_allclose(found.log_prob[k], log_density(params, found.points[k]), rtol=1e-5)
        same = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1) < 0.01
        np.testing.assert_array_equal(same, found.labels[:, None] == found.labels[None, :])
        assert set(found.labels) == set(range(int(found.n_modes)))
        numbers.append(int(found.n_modes))
    assert min(numbers) < max(numbers) < K  # some climb to one hill, and not all


def test_small_units_far_away_change_no_mode():
    params, unit = mixture(2), np.float32(2.0**-20)
    moved = dataclasses.replace(params, means=unit * (params.means + 64), scale=unit * params.scale)
    a, b = modes(params), modes(moved)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert np.asarray(b.converged).all()
    np.testing.assert_allclose(np.asarray(b.points) / unit - 64, a.points, atol=2e-3)


def test_two_round_gaussians_have_two_modes_from_two_widths_on():
    # Of equal weights and variances: well known. Then a ridgeline has a valley.
    for gap, number in ((1.9, 1), (2.2, 2)):
        params = padded([0.5, 0.5], [[3.0, 1.0], [3.0 + gap, 1.0]], [1.0, 1.0])
        found, line = modes(params), ridgeline(params, 0, 1)
        assert int(found.n_modes) == number
        assert found.labels.tolist() == [0, number - 1, -1, -1, -1]
        assert bool(line.depth > 0) == bool(np.isfinite(line.valley)) == (number == 2)
    np.testing.assert_allclose(line.valley, 0.5, atol=0.01)
    # Down from the summits to the middle.
    depth = float(found.log_prob[0]) - log_density(params, np.array([3.0 + gap / 2, 1.0]))
    np.testing.assert_allclose(line.depth, depth, atol=1e-5)


def test_a_mean_on_a_saddle_leaves_it_and_a_climb_that_ends_too_soon_says_so():
    # Between two narrow hills, the wide component's mean is where the density is stationary, and no mode.
    params = padded([0.1, 0.45, 0.45], [[0.0, 0.0], [3.0, 0.0], [-3.0, 0.0]], [9.0, 0.5, 0.5])
    found = modes(params)
    assert int(found.n_modes) == 2
    assert abs(found.points[0, 0]) > 2.5
    assert found.converged.tolist() == [True] * 3 + [False] * 2
    assert not modes(params, max_iter=1).converged[0]


def test_another_family_beside_a_background():
    base = mixture(1)
    inner = {
        "scatter": base.scale, "good": np.full(K, 0.8, np.float32), "inflation": np.full(K, 9, np.float32)
    }  # fmt: skip
    scale = {"inner": inner, "log_density": np.full(D, -3, np.float32)}
    params = dataclasses.replace(base, scale=scale, component=background(contaminated("full")))
    found = modes(params)
    np.testing.assert_array_equal(found.converged, [True] * (K - 1) + [False])
    assert found.labels[-1] == -1
    points = np.asarray(found.points)[:-1]
    around = np.concatenate(
        [points + 1e-3 * step for step in np.vstack([np.zeros(D), np.eye(D), -np.eye(D)])]
    )
    values = np.asarray(jaxgmm.log_prob(params, around.astype(np.float32))).reshape(-1, K - 1)
    np.testing.assert_allclose(found.log_prob[:-1], values[0], rtol=1e-5)
    assert (values[0] > values[1:]).all()
    # And hardly a slope is left, by central differences.
    assert np.abs(values[1 : 1 + D] - values[1 + D :]).max() < 1e-3


def test_points_have_the_derivative_of_a_fixed_point(double):
    params = mixture(dtype=np.float64)

    def ends(means):
        return modes(dataclasses.replace(params, means=means), tol=1e-10).points

    change = np.random.default_rng(0).normal(size=(K, D))
    program = quick_jit(lambda m: jax.jvp(ends, (m,), (change,)))
    (_, slope), (up, _), (down, _) = (program(params.means + step * change) for step in (0, 1e-5, -1e-5))
    np.testing.assert_allclose(slope, (np.asarray(up) - np.asarray(down)) / 2e-5, rtol=1e-4, atol=1e-6)
    assert jax.eval_shape(jax.vmap(ends), np.stack([params.means] * 3)).shape == (3, K, D)


def test_a_ridgeline_solves_its_equation_and_passes_the_modes():
    params = mixture(3, spread=3.0)
    i, j = 1, 4
    line = jax.tree.map(np.asarray, ridgeline(params, i, j))
    w, mu, cov = dense(params)
    pull = [np.linalg.solve(cov[k], (line.points - mu[k]).T).T for k in (i, j)]
    residual = (1 - line.alpha)[:, None] * pull[0] + line.alpha[:, None] * pull[1]
    np.testing.assert_allclose(residual, 0, atol=1e-4)
    np.testing.assert_allclose(line.points[[0, -1]], mu[[i, j]], atol=1e-5)
    pair = build("full", w[[i, j]], mu[[i, j]], cov[[i, j]])
    heights = [log_density(pair, x) for x in line.points]
    np.testing.assert_allclose(line.log_prob, heights, rtol=1e-4)
    # The summits of the two alone lie on it, and the valley between them is as deep as the density says.
    tops = [summit(pair, mu[k]) for k in (i, j)]
    gaps = np.linalg.norm(line.points[:, None] - np.array(tops)[None], axis=-1).min(0)
    assert gaps.max() < 0.05
    depth = min(log_density(pair, t) for t in tops) - min(heights)
    assert depth > 0.1
    np.testing.assert_allclose(line.depth, depth, rtol=1e-3)
    assert line.alpha[np.argmin(heights)] == line.valley


def test_they_refuse_by_name():
    params = mixture()
    own = params.component._replace(name="own", marginal=None)
    with pytest.raises(ValueError, match="modes needs components with a function `marginal`; 'own'"):
        modes(dataclasses.replace(params, component=own))
    with pytest.raises(ValueError, match="i and j must be two components of 0 to 4; got 1 and 1"):
        ridgeline(params, 1, 1)
    with pytest.raises(ValueError, match="of 0 to 4; got 0 and 5"):
        ridgeline(params, 0, 5)
    with pytest.raises(ValueError, match="n_points must be at least 3"):
        ridgeline(params, 0, 1, n_points=2)
