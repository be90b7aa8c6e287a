"""The quadratic kernel: the same moments as the whitened one, and a hand-over that costs no accuracy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from jaxgmm.components import FAMILIES, factor
from jaxgmm.data import summarise
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.exact import accumulate
from jaxgmm.mixture import translate
from tests.conftest import (
    NAMES,
    QUICK,
    costly,
    every,
    every_name_at_a_cost,
    overlapping,
    start_from,
    x64,
)

N, D, K = 300, 3, 4
X, LABELS = overlapping(N, D, K, seed=0)
WEIGHTS = np.random.default_rng(0).uniform(0, 2, size=N)


@jax.jit
def both(params, x, w):
    f = summarise(x, w, jnp.asarray(1e-6, x.dtype))
    relative = translate(params, -f.shift)
    c = quadratic.coordinates(params.family.quadratic, x, w, f.shift)
    one = accumulate(relative, x, w, shift=f.shift, block_size=64)
    other = quadratic.accumulate(relative, x, w, c, shift=f.shift, block_size=64)
    return one, other, quadratic.rounding(relative, c)


def moved(name, dtype, x):
    """A mixture that fits x, but not too well: a start from soft labels, with a component off."""
    start = start_from(x, LABELS, name, dtype)
    return dataclasses.replace(start, log_weights=start.log_weights.at[2].set(-jnp.inf))


@every
def test_both_kernels_give_the_same_moments(name, dtype):
    for offset in (0.0, 100.0):
        x = X + offset
        one, other, rounding = both(moved(name, dtype, x), x.astype(dtype), WEIGHTS.astype(dtype))
        # Sums of N terms, each to the rounding that `rounding` states (per sample, in widths).
        allowed = 8 * N * float(rounding)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=allowed)
        assert float(rounding) < 40 * np.finfo(dtype).eps


def test_rows_that_do_not_count_may_hold_anything(dtype):
    x, w = X.astype(dtype), WEIGHTS.astype(dtype)
    w[:40] = 0
    junk = x.copy()
    junk[:40] = [np.nan, np.inf, 1e30]
    params = moved("full", dtype, X)
    _, clean, _ = both(params, x, w)
    _, spoilt, _ = both(params, junk, w)
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)


@every_name_at_a_cost
def test_rounding_grows_with_the_squared_distance_in_widths(name):
    x = X.astype(np.float32)
    near = moved(name, np.float32, X)
    far = dataclasses.replace(near, means=near.means.at[0].add(1000.0))
    w = np.ones(N, np.float32)
    assert float(both(far, x, w)[2]) > 1e3 * float(both(near, x, w)[2])


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_the_bulk_of_the_second_moments_goes_without_rounding(structure):
    """Three clusters 150 widths apart: whose sample is whose is certain, and the sums alone are rounded.

    A component has B/3 samples of a block. Where terms as large as S are added one by one, their sum is
    wrong by about ε S (B/3)^1.5/9, over N/B blocks by ε S B √N/45, and in the worst of 18 entries by twice
    that: 0.02 of ε S for each of the N/3 samples (seen: 0.01 to 0.035). A total that kept the bulk, or
    products of means that are rounded once, are wrong by the rounding of S itself: 0.17 and more, whatever N.
    """
    rng = np.random.default_rng(0)
    n, d, block_size = 1 << 16, 3, 32
    far = np.array([[100.0, 70.3, -30.7], [-91.3, 20.9, 50.1], [11.7, -83.3, -33.9]])
    x = jnp.asarray(rng.normal(size=(n, d)) + far[np.arange(n) % 3], jnp.float32)
    own = np.broadcast_to(np.eye(d), (3, d, d)) if structure == "full" else np.ones((3, d))
    params = jaxgmm.make_params(np.full(3, 1 / 3, np.float32), np.float32(far), np.float32(own), structure)
    f = summarise(x, None, jnp.asarray(1e-6, jnp.float32))
    c = quadratic.coordinates(params.family.quadratic, x, None, f.shift)
    relative = translate(params, -f.shift)
    exact = accumulate(relative, x, None, shift=f.shift, block_size=block_size).second
    rough = quadratic.accumulate(relative, x, None, c, shift=f.shift, block_size=block_size).second
    error = float(jnp.abs(rough - exact).max()) / (n / 3)
    assert error < 0.08 * float(quadratic.rounding(relative, c))


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_squares_of_means_in_two_parts_are_exact(kind):
    means = (np.random.default_rng(0).normal(size=(5, 4)) * 30).astype(np.float32)
    product, left = (np.float64(part) for part in quadratic._squares_of_means(kind, jnp.asarray(means)))
    i, j = np.triu_indices(4) if kind == "dense" else (np.arange(4), np.arange(4))
    exact = np.float64(means)[:, i] * means[:, j]
    assert np.abs(product + left - exact).max() <= np.finfo(np.float32).eps ** 2 * np.abs(exact).max()


# Beyond the core, one for each kind of second moment.
@pytest.mark.parametrize(
    "name", [costly(n, quick=QUICK) for n in ("full", "tied", "diag", "spherical", "EVI", "VEV")]
)
@pytest.mark.parametrize("kernel", [pytest.param("quadratic", marks=pytest.mark.slow), "auto"])
def test_a_fit_ends_where_the_whitened_one_does(name, kernel, dtype, monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    x, w = X.astype(dtype), WEIGHTS.astype(dtype)
    start = start_from(X, LABELS, name, dtype)
    tol = 1e-5 if dtype == np.float32 else 1e-9
    # Without a ridge, whose penalty the history does not count.
    expected = jaxgmm.fit(start, x, w, options=EMOptions(kernel="whitened"), tol=tol, reg_covar=0.0)
    result = jaxgmm.fit(start, x, w, options=EMOptions(kernel=kernel), tol=tol, reg_covar=0.0)
    assert expected.status == result.status == Status.CONVERGED
    # Within tol of the optimum the likelihood is flat; what is left is the rounding of its terms. What the
    # quadratic kernel reports by itself has that kernel's own.
    near = 4e-6 if dtype == np.float32 else 1e-12
    rounding = float(both(result.params, x, w)[2])
    allowed = {"rtol": near, "atol": rounding if kernel == "quadratic" else 0}
    assert rounding < 2e4 * np.finfo(dtype).eps
    np.testing.assert_allclose(result.log_likelihood, expected.log_likelihood, **allowed)
    # It is the likelihood of what is returned, and the history is of one piece.
    np.testing.assert_allclose(result.log_likelihood, jaxgmm.score(result.params, x, w), **allowed)
    history = np.asarray(result.history)
    known = history[: int(result.n_iter)]
    assert np.isfinite(known).all()
    assert (history[int(result.n_iter) :] == -np.inf).all()
    assert np.diff(known).min() > -np.abs(known).max() * near - 8 * rounding


@pytest.mark.slow
def test_the_limit_on_steps_is_for_both_kernels_together(double, monkeypatch):
    # In float64, where the rounding of either kernel is far below what another number of steps would change,
    # and by plain steps: an extrapolation enlarges that rounding.
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    start = start_from(X, LABELS, "full", double)
    for steps in (0, 1, 4, 7):
        options = {"max_iter": steps, "tol": 0.0, "accelerate": False}
        result = jaxgmm.fit(start, X, **options)
        assert (result.status, result.n_iter) == (Status.MAX_ITER, steps)
        plain = jaxgmm.fit(start, X, options=EMOptions(kernel="whitened"), **options)
        np.testing.assert_allclose(result.log_likelihood, plain.log_likelihood, rtol=1e-10)


@pytest.mark.slow
def test_components_too_far_apart_for_it_are_fitted_all_the_same(monkeypatch):
    # A thousand widths apart: sums of squares lose all but a digit or none, the whitened ones nothing.
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    rng = np.random.default_rng(1)
    x = (np.repeat(np.array([[0.0], [1e3], [1e5]]), 100, 0) + rng.normal(size=(300, 2))).astype(np.float32)
    start = jaxgmm.init.from_responsibilities(np.eye(3, dtype=np.float32)[np.repeat(np.arange(3), 100)], x)
    expected = jaxgmm.fit(start, x, options=EMOptions(kernel="whitened"))
    result = jaxgmm.fit(start, x)
    assert result.status == expected.status
    np.testing.assert_allclose(result.log_likelihood, expected.log_likelihood, rtol=1e-5)
    for k in range(3):
        np.testing.assert_allclose(
            result.params.covariances[k],
            np.cov(x[100 * k : 100 * k + 100].T.astype(float), ddof=0),
            atol=2e-2,
        )


def test_data_that_overflow_say_so(monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    with x64(False):
        result = jaxgmm.fit(start_from(X, LABELS, "diag", np.float32), (X * 1e37).astype(np.float32))
        assert result.status == Status.NONFINITE
        assert jnp.isfinite(result.params.means).all()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_gradients_are_those_of_the_whitened_fit(double, monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    start = start_from(X, LABELS, "full", double)

    def value(x, kernel):
        return jnp.sin(
            jaxgmm.fit(start, x, tol=1e-11, max_iter=5000, options=EMOptions(kernel=kernel)).params.means
        ).sum()

    expected, *others = (jax.grad(value)(X, kernel) for kernel in ("whitened", "auto", "quadratic"))
    for gradient in others:
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_the_choice_is_by_size_family_and_wish():
    full = FAMILIES["full"]
    assert quadratic.choose("auto", full, 100, 3, 2) == "whitened"
    assert quadratic.choose("auto", full, 100_000, 16, 16) == "auto"
    assert quadratic.choose("auto", full, 100_000, 16, 128) == "whitened"
    assert quadratic.choose("auto", factor(2), 100_000, 16, 16) == "whitened"
    assert quadratic.choose("quadratic", full, 10, 2, 2) == "quadratic"
    with pytest.raises(ValueError, match="kernel must be"):
        quadratic.choose("square", full, 10, 2, 2)
    with pytest.raises(ValueError, match="no quadratic kernel; use kernel="):
        quadratic.choose("quadratic", factor(2), 10, 2, 2)
    assert all(FAMILIES[n].quadratic for n in NAMES)
