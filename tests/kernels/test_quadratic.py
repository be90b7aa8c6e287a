"""The quadratic kernel: the same steps as the whitened one, and a hand-over that costs no accuracy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from jaxgmm.data import Data, summarise
from jaxgmm.kernels import exact as whitened
from jaxgmm.kernels import quadratic
from jaxgmm.mixture import translate
from tests.conftest import dense, on_host, soft_labels, start_from
from tests.problems import LABELS, WEIGHT, K, N, X, fitted

X32, W32 = X.astype(np.float32), WEIGHT.astype(np.float32)
EPS = float(np.finfo(np.float32).eps)
ONE_STEP = {"max_iter": 1, "tol": 0.0, "accelerate": False}


def fit(start, x, w, kernel="quadratic", **options):
    return jaxgmm.fit(start, x, np.asarray(w, np.float32), options=EMOptions(kernel=kernel), **options)


# With products of features, and with squares only.
@pytest.mark.parametrize("name", ["full", "diag"])
def test_one_step_is_an_em_step(name):
    start = on_host(start_from(X, LABELS, name, np.float32))
    off = np.where(np.arange(K) == 2, np.float32(-np.inf), start.log_weights)
    start = dataclasses.replace(start, log_weights=off)
    w = np.where(np.arange(N) < 40, 0, W32)
    for offset in (0.0, 100.0):
        x = (X + offset).astype(np.float32)
        here = dataclasses.replace(start, means=start.means + np.float32(offset))
        # Rows that do not count may hold numbers whose squares overflow.
        junk = np.where((np.arange(N) < 40)[:, None], np.float32(1e25), x)
        found = fit(here, junk, w, **ONE_STEP)
        expected, _ = jaxgmm.em_step(here, x, w.astype(np.float32))
        # Rounding grows with the squared distance in widths, here up to 100.
        for a, b in zip(dense(found.params), dense(expected), strict=True):
            np.testing.assert_allclose(
                a, b, rtol=200 * EPS, atol=(200 + offset) * EPS * max(1, np.abs(b).max())
            )


def test_a_fit_by_it_ends_where_the_whitened_one_does():
    start = fitted("full").start
    # Without a ridge, whose penalty the history does not count.
    expected = jaxgmm.fit(start, X32, W32, options=EMOptions(kernel="whitened"), reg_covar=0.0)
    result = fit(start, X32, W32, reg_covar=0.0)
    check_same_end(result, expected, X32, by_itself=True)


# Of the likelihoods that the quadratic kernel reports: squared distances of up to 100 in widths are rounded.
ROUNDING = 100 * EPS


def check_same_end(result, expected, x, by_itself=False):
    assert expected.status == result.status == Status.CONVERGED
    # Within tol of the optimum the likelihood is flat; what is left is the rounding of its terms. What the
    # quadratic kernel reports by itself has that kernel's own.
    allowed = {"rtol": 4e-6, "atol": ROUNDING if by_itself else 0.0}
    np.testing.assert_allclose(result.log_likelihood, expected.log_likelihood, **allowed)
    # It is the likelihood of what is returned, and the history is of one piece.
    np.testing.assert_allclose(result.log_likelihood, jaxgmm.score(result.params, x, W32), **allowed)
    history = np.asarray(result.history)
    known = history[: int(result.n_iter)]
    assert np.isfinite(known).all()
    assert (history[int(result.n_iter) :] == -np.inf).all()
    # Its first part is the quadratic kernel's in both cases, and its last one may be.
    assert np.diff(known).min() > -np.abs(known).max() * 4e-6 - (8 if by_itself else 1) * ROUNDING


def test_a_fit_by_both_ends_where_the_whitened_one_does_also_where_components_are_far_apart(monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 0)
    start = fitted("full").start
    whitened = functools.partial(jaxgmm.fit, options=EMOptions(kernel="whitened"))
    check_same_end(fit(start, X32, W32, "auto", reg_covar=0.0), whitened(start, X32, W32, reg_covar=0.0), X32)
    # The limit on steps is for both kernels together.
    for steps in (0, 1, 4, 7):
        options = {"max_iter": steps, "tol": 0.0, "accelerate": False}
        result = fit(start, X32, W32, "auto", **options)
        assert (result.status, result.n_iter) == (Status.MAX_ITER, steps)
        plain = whitened(start, X32, W32, **options)
        np.testing.assert_allclose(result.log_likelihood, plain.log_likelihood, rtol=4e-6)
    # A thousand widths apart: sums of squares lose all but a digit or none, the whitened ones nothing.
    labels = np.arange(N) % K
    far = np.random.default_rng(1).normal(size=X.shape)
    far[:, 0] += np.array([0.0, 1e3, 1e5])[labels]
    far = far.astype(np.float32)
    begin = jaxgmm.m_step(soft_labels(labels, K, np.float32).round(), far)
    expected, result = whitened(begin, far, np.ones(N, np.float32)), fit(begin, far, np.ones(N), "auto")
    assert result.status == expected.status
    np.testing.assert_allclose(result.log_likelihood, expected.log_likelihood, rtol=1e-5)
    for k in range(K):
        own = np.cov(far[labels == k].T.astype(float), ddof=0)
        np.testing.assert_allclose(result.params.covariances[k], own, atol=2e-2)


def test_the_bulk_of_the_second_moments_goes_without_rounding():
    """Three clusters 150 widths apart: whose sample is whose is certain, and the sums alone are rounded.

    A component has B/3 samples of a block. Where terms as large as S are added one by one, their sum is
    wrong by about ε S (B/3)^1.5/9, over N/B blocks by ε S B √N/45, and in the worst of 18 entries by twice
    that: 0.02 of ε S for each of the N/3 samples (seen: 0.01 to 0.035). A total that kept the bulk, or
    products of means that are rounded once, are wrong by the rounding of S itself: 0.17 and more, whatever N.
    """
    n, block_size = 1 << 16, 32
    centres = np.array([[100.0, 70.3, -30.7], [-91.3, 20.9, 50.1], [11.7, -83.3, -33.9]])
    x = np.random.default_rng(0).normal(size=(n, 3)) + centres[np.arange(n) % 3]
    params = jaxgmm.make_params(np.full(3, 1 / 3), centres.astype(np.float32), np.stack([np.eye(3)] * 3))

    @jax.jit  # at XLA's lowest level of optimisation the products are rounded once more
    def both(params, x):
        f = summarise(Data(x), jnp.asarray(1e-6, jnp.float32))
        c = quadratic.prepare(params.component, Data(x), f)
        relative = translate(params, -f.shift)
        one = whitened.sums(relative, Data(x), f.shift, block_size=block_size).second
        other = quadratic.sums(relative, Data(x), f.shift, c, block_size).second
        return one, other, quadratic.rounding(relative, c)

    exact, rough, rounding = map(np.asarray, both(params, x.astype(np.float32)))
    assert np.abs(rough - exact).max() / (n / 3) < 0.08 * rounding


def test_what_a_structure_cannot_have_is_refused():
    with pytest.raises(ValueError, match="kernel must be"):
        EMOptions(kernel="square")
    start = start_from(X, LABELS, "factor(1)", np.float32)
    with pytest.raises(ValueError, match="no quadratic kernel; use kernel="):
        fit(start, X32, W32)
