"""The search for the best optimum: better than restarts of equal cost, and honest about what it found."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

import jaxgmm
from jaxgmm import FitResult, Status
from jaxgmm.components import get_component
from jaxgmm.data import Data
from jaxgmm.kernels.program_store import _type_of
from jaxgmm.selection import Spurious
from jaxgmm.selection import _search as searching
from jaxgmm.selection._programs import draw_moves, overlaps
from jaxgmm.selection._search import Field, Tournament, best_of, plan
from tests.conftest import case, overlapping
from tests.quick import quick_jit

# One shape, structure and precision, and always weights: one set of programs.
N, D, K = 200, 2, 8
NAME = "spherical"
X = overlapping(N, D, K, seed=3, separation=2.0)[0].astype("f4")
ONES = np.ones(N, "f4")


def search(x, seed=0, weight=ONES, **options):
    return jaxgmm.fit_best(
        jax.random.key(seed), x.astype("f4"), K, weight, covariance_type=NAME, **{"budget": 200, **options}
    )


found = functools.cache(lambda: search(X))


def em_step(params, x, w):
    """The mean log-likelihood of a spherical mixture, and the mixture after a step of EM, in float64."""
    parts = (params.log_weights, params.means, params.scale)
    log_weights, means, widths = (np.asarray(a, float) for a in parts)
    squares = ((x[:, None] - means) ** 2).sum(2)
    joint = log_weights - D * np.log(widths * np.sqrt(2 * np.pi)) - 0.5 * squares / widths**2
    log_prob = logsumexp(joint, axis=1)
    resp = w[:, None] * np.exp(joint - log_prob[:, None])
    n = resp.sum(0)
    new = resp.T @ x / n[:, None]
    squares = ((x[:, None] - new) ** 2).sum(2)
    scale = np.sqrt((resp * squares).sum(0) / n / D + 1e-6)
    moved = dataclasses.replace(params, log_weights=np.log(n / n.sum()), means=new, scale=scale)
    return np.average(log_prob, weights=w), moved


def test_a_plan_spends_its_budget():
    for several in (False, True):
        for budget in (100, 300, 2000, 7000, 20_000, 200_000):
            n_starts, steps, rounds = plan(budget, several=several)
            stages = round(np.log(n_starts) / np.log(3))
            spent = stages * n_starts * steps + rounds * 300
            assert abs(spent - budget) <= max(0.2 * budget, 150)
            assert n_starts % 3 == 0


def test_the_winner_has_converged_and_says_its_own_likelihood_and_the_key_decides():
    result = found()
    assert result.status == Status.CONVERGED
    mean, _ = em_step(result.params, X, ONES)
    np.testing.assert_allclose(result.log_likelihood, mean, rtol=1e-5)
    assert 1 <= int(result.n_agreed) <= int(result.n_finalists)
    assert int(result.n_steps) > 27
    again = result.params
    for _ in range(100):
        _, again = em_step(again, X, ONES)
    assert em_step(again, X, ONES)[0] - mean < 1e-5
    same = jax.tree.map(lambda u, v: np.array_equal(u, v, equal_nan=True), result, search(X))
    assert all(jax.tree.leaves(same))


@quick_jit
def _ten_restarts(key, x, max_iter):
    return jaxgmm.fit_restarts(
        key, x, K, ONES, covariance_type=NAME, n_init=10, init="random_points", max_iter=max_iter
    )


def test_it_finds_better_optima_than_restarts_of_equal_cost():
    """By the mean gap to the best of ten restarts with as many steps."""
    gaps = []
    for seed in range(6):
        x = overlapping(N, D, K, seed=seed, separation=1.5)[0].astype("f4")
        best = search(x, seed, budget=1000)
        others = _ten_restarts(jax.random.key(seed), x, np.int32(int(best.n_steps) // 10))
        # A component of fewer than four samples is spurious in this structure, and does not count.
        sound = np.exp(others.params.log_weights).min(1) * N >= 4
        reached = np.asarray(others.log_likelihood)[sound]
        gaps += [float(best.log_likelihood - reached.max())] if sound.any() else []
    assert len(gaps) >= 4
    assert np.mean(gaps) > 1e-3
    assert min(gaps) > -0.02


def test_weights_count_as_repetition():
    """The same search, but for rounding, in which the same rows are drawn: by the weights' cumulated sums."""
    counts = np.repeat([2.0, 0.0], N // 2).astype("f4")
    result = search(X, weight=counts)
    assert result.status == Status.CONVERGED
    repeated, _ = em_step(result.params, np.repeat(X[: N // 2], 2, axis=0), ONES)
    np.testing.assert_allclose(result.log_likelihood, repeated, rtol=1e-5)
    moved = X.copy()
    moved[N // 2 :] = 1e6
    np.testing.assert_array_equal(search(moved, weight=counts).params.means, result.params.means)


def test_any_start_will_do():
    assert search(X, init="random_resp").status == Status.CONVERGED


def test_it_can_be_traced():
    result = jax.eval_shape(search, X)
    assert result.log_likelihood.shape == ()
    assert result.params.means.shape == (K, D)


def test_bad_arguments():
    for options, message in [
        ({"budget": 0}, "budget must be at least 1"),
        ({"budget": 1.5}, "budget must be an int"),
        ({"max_ratio": 0.5}, "max_ratio must be at least 1"),
        ({"max_ratio": "big"}, "max_ratio must be a number"),
        ({"init": "hclust"}, "init must be one of"),
        ({"covariance_type": "fulll"}, "did you mean 'full'"),
    ]:
        with case(options, message), pytest.raises((ValueError, TypeError), match=message):
            jaxgmm.fit_best(jax.random.key(0), X, 2, **options)


def test_a_sound_optimum_wins_over_a_spurious_one_and_a_failed_one_over_none():
    likelihood = np.array([[1.0, 5.0, 4.0, np.nan, 9.0, 2.0]], np.float32)
    status = np.array([[Status.CONVERGED, 0, Status.MAX_ITER, 0, Status.DEGENERATE, 0]], np.int32)
    flags = np.array([[0, Spurious.FEW, 0, 0, 0, Spurious.TWINS]], np.int32)
    results = FitResult(None, likelihood, likelihood, status, status, None)
    field = Field(results, flags, np.arange(6)[None])
    assert best_of(field, 5).factors.tolist() in ([[2, 0, 1, 5, 3]], [[2, 0, 1, 5, 4]])
    assert jax.jit(lambda f: best_of(f, 4))(field).factors.tolist() == [[2, 0, 1, 5]]


def test_a_search_that_finds_only_spurious_optima_goes_on(monkeypatch):
    """Seven clusters, and two samples that nearly coincide: one component may have these for itself."""
    corners = 8 * np.stack(np.divmod(np.arange(K - 1), 3), 1)
    x = corners[np.arange(N) % (K - 1)] + np.random.default_rng(1).normal(size=(N, D))
    x[-2:] = np.array([[20.0, 20.0], [20.0, 20.001]])
    for seed in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(searching, "_MORE", 0)
            before = search(x, seed)
        if Spurious(int(before.flags)) & Spurious.FEW:
            after = search(x, seed)
            assert int(after.n_steps) > int(before.n_steps)
            if int(after.flags) == 0 and after.status == Status.CONVERGED:
                return
    pytest.fail("no search was rescued")


def test_overlap_is_a_cosine():
    parts = (np.log([0.3, 0.3, 0.4]), [[0.0], [0.1], [50.0]], np.ones(3))
    params = jaxgmm.GMMParams(*(np.asarray(a, np.float32)[None] for a in parts), get_component(NAME))
    x = np.concatenate([np.random.default_rng(0).normal(size=(150, 1)), np.full((150, 1), 50.0)])
    c = np.asarray(overlaps(params, Data(x.astype("f4")), block_size=64))[0]
    np.testing.assert_allclose(c, c.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(c), 1, rtol=1e-5)
    assert c[0, 1] > 0.9
    assert c[0, 2] < 1e-3


def test_moves_merge_what_overlaps_and_split_another():
    closeness = np.array([[1, 0.9, 0.0, 0.0], [0.9, 1, 0.0, 0.0], [0, 0, 1, 0.0], [0, 0, 0, 1.0]], np.float32)
    keys = jax.random.split(jax.random.key(0), 200)

    def moves(weights):
        with np.errstate(divide="ignore"):
            lanes = (np.log(np.array(weights, np.float32)), closeness, np.int32(0))
        return draw_moves(keys, *(np.broadcast_to(a, (200, *a.shape)) for a in lanes), n_features=2)

    drawn = jax.tree.map(np.asarray, moves([0.3, 0.3, 0.4, 0.0]))
    assert ((drawn.first == 0) & (drawn.second == 1)).mean() > 0.95
    assert (drawn.third != drawn.first).all()
    assert (drawn.third != drawn.second).all()
    assert (drawn.third != 3).all()
    assert drawn.possible.all()
    # Fewer than three components have no moves.
    assert not np.asarray(moves([0.5, 0.5, 0.0, 0.0]).possible).any()


def test_a_stage_with_a_derivative_and_one_without_share_a_program(monkeypatch):
    class Seen(Exception):
        pass

    def look(self, *_):
        for with_, without in zip(*map(jax.tree.leaves, (self.settings, self.frozen)), strict=True):
            assert _type_of(with_) == _type_of(without)
        raise Seen

    monkeypatch.setattr(Tournament, "best", look)
    with pytest.raises(Seen):
        jaxgmm.fit_best(jax.random.key(0), X, 2)
