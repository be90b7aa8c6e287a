"""The search for the best optimum: better than restarts of equal cost, and honest about what it found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import FitResult, Status
from jaxgmm.data import summarise
from jaxgmm.em_map import maximise
from jaxgmm.mixture import translate
from jaxgmm.selection import Spurious
from jaxgmm.selection import _continuation as continuation
from jaxgmm.selection._candidates import Field, _rank
from jaxgmm.selection._search import Tournament, plan
from jaxgmm.selection._split_merge import draw_exchange, draw_move, overlap, split_merge
from jaxgmm.selection._spurious import describe, spurious, total_factor
from tests.conftest import overlapping

N, D, K = 240, 2, 5
X = overlapping(N, D, K, seed=3, separation=2.0)[0]


@functools.cache
def found(name="full", seed=0, budget=300, dtype="float32"):
    return jaxgmm.fit_best(jax.random.key(seed), X.astype(dtype), K, covariance_type=name, budget=budget)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("budget", [100, 300, 2000, 7000, 20_000, 200_000])
def test_a_plan_spends_its_budget(budget, several):
    game = plan(budget, several=several)
    stages = round(np.log(game.n_starts) / np.log(3))
    spent = stages * game.n_starts * game.steps + game.rounds * 300
    assert abs(spent - budget) <= max(0.2 * budget, 150)
    assert game.n_starts % 3 == 0


@pytest.mark.parametrize("name", ["full"])
def test_the_winner_has_converged_and_says_its_own_likelihood(name):
    result = found(name)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.log_likelihood, jaxgmm.score(result.params, X.astype("f4")), rtol=1e-5)
    assert 1 <= int(result.n_agreed) <= int(result.n_finalists)
    assert int(result.n_steps) > 27
    again = jaxgmm.fit(result.params, X.astype("f4"))
    assert float(again.log_likelihood - result.log_likelihood) < 1e-5


def test_the_same_key_gives_the_same_bits():
    a = found()
    b = jaxgmm.fit_best(jax.random.key(0), X.astype("f4"), K, budget=300)
    same = jax.tree.map(lambda u, v: np.array_equal(u, v, equal_nan=True), a, b)
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_it_finds_better_optima_than_restarts_of_equal_cost():
    """On mixtures that restarts find hard: by the mean gap to the best that either has found."""
    gaps = []
    for seed in range(6):
        x = overlapping(300, 2, 8, seed=seed, separation=1.5)[0].astype("f4")
        best = jaxgmm.fit_best(jax.random.key(seed), x, 8, budget=1000)
        n = 10
        steps = int(best.n_steps) // n
        others = jaxgmm.fit_restarts(jax.random.key(seed), x, 8, n_init=n, max_iter=steps)
        other = jaxgmm.best(others)
        gaps.append(float(best.log_likelihood - other.log_likelihood))
    assert np.mean(gaps) > 1e-3
    assert min(gaps) > -0.02


@pytest.mark.slow
def test_weights_count_as_repetition(double):
    counts = np.random.default_rng(0).integers(1, 4, size=N).astype(float)
    weighted = jaxgmm.fit_best(jax.random.key(0), X, 3, counts, budget=300, covariance_type="diag")
    repeated = jaxgmm.score(weighted.params, np.repeat(X, counts.astype(int), axis=0))
    np.testing.assert_allclose(weighted.log_likelihood, repeated, rtol=1e-10)
    assert weighted.params.means.dtype == np.float64


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_fewer_than_three_components_have_no_moves_and_are_found(k):
    result = jaxgmm.fit_best(jax.random.key(0), X.astype("f4"), k, budget=500, covariance_type="spherical")
    assert result.status == Status.CONVERGED
    from_it = jaxgmm.fit(result.params, X.astype("f4"))
    assert float(from_it.log_likelihood) <= float(result.log_likelihood) + 1e-5
    assert int(result.n_agreed) >= 1


@pytest.mark.parametrize("init", ["kmeans", "random_resp"])
def test_any_start_will_do(init):
    result = jaxgmm.fit_best(jax.random.key(0), X.astype("f4"), K, budget=200, init=init)
    assert result.status == Status.CONVERGED


@pytest.mark.slow
def test_it_can_be_traced_and_differentiated():
    x = X[:80].astype("f4")

    def loss(x):
        return jaxgmm.fit_best(jax.random.key(0), x, 2, budget=100, covariance_type="diag").log_likelihood

    value, slope = jax.jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(value, loss(x), rtol=1e-5)
    # The likelihood of an optimum: only where the samples are matters, not where the optimum moves.
    params = jaxgmm.fit_best(jax.random.key(0), x, 2, budget=100, covariance_type="diag").params
    direct = jax.grad(lambda x: jaxgmm.score(params, x))(x)
    np.testing.assert_allclose(slope, direct, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be at least 1"),
        ({"budget": 1.5}, "budget must be an int"),
        ({"max_ratio": 0.5}, "max_ratio must be at least 1"),
        ({"max_ratio": "big"}, "max_ratio must be a number"),
        ({"init": "hclust"}, "init must be one of"),
        ({"covariance_type": "fulll"}, "did you mean 'full'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        jaxgmm.fit_best(jax.random.key(0), X, 2, **options)


def flags(params, n=100.0, ratio=1e5):
    parts = params.log_weights, params.means, params.covariances
    total = jnp.eye(params.n_features, dtype=params.means.dtype)
    return Spurious(int(spurious(*parts, jnp.asarray(n), total, jnp.asarray(ratio))))


def test_what_is_spurious():
    sound = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 2.0]], "diag")
    assert flags(sound) == 0
    few = jaxgmm.make_params([0.97, 0.03], [[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 2.0]], "diag")
    assert flags(few) == Spurious.FEW
    narrow = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 1e-6]], "diag")
    assert flags(narrow) == Spurious.NARROW
    assert flags(narrow, ratio=np.inf) == 0
    twins = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [0.05, 0.0]], [[1.0, 1.0], [1.0, 1.01]], "diag")
    assert flags(twins) == Spurious.TWINS
    off = jaxgmm.make_params([1.0, 0.0], [[0.0, 0.0], [0.05, 0.0]], [[1.0, 1.0], [1.0, 1e-9]], "diag")
    assert flags(off) == 0
    assert describe(Spurious.FEW | Spurious.NARROW | Spurious.TWINS) == "few samples, too narrow, twins"


@pytest.mark.slow
def test_narrowness_is_relative_to_the_data(double):
    """A direction in which all the data are narrow is not held against a component."""
    x = np.random.default_rng(0).normal(size=(500, 2)) * np.array([1.0, 1e-4]) @ np.array([[1, 1], [1, -1.0]])
    total = total_factor(jnp.asarray(x), None, 500)
    np.testing.assert_allclose(total @ total.T, np.cov(x.T, bias=True), rtol=1e-6)
    one = jaxgmm.fit_restarts(jax.random.key(0), x, 1, n_init=1, reg_covar=0.0).params
    one = jax.tree.map(lambda a: a[0], one)
    assert spurious(one.log_weights, one.means, one.covariances, 500.0, total, 10.0) == 0


def test_a_sound_optimum_wins_over_a_spurious_one_and_a_failed_one_over_none():
    likelihood = np.array([[1.0, 5.0, 4.0, np.nan, 9.0, 2.0]], np.float32)
    status = np.array([[Status.CONVERGED, 0, Status.MAX_ITER, 0, Status.DEGENERATE, 0]], np.int32)
    flags = np.array([[0, Spurious.FEW, 0, 0, 0, Spurious.TWINS]], np.int32)
    results = FitResult(None, likelihood, likelihood, status, status, None)
    for as_ in (np.asarray, jnp.asarray):
        field = jax.tree.map(as_, Field(results, flags, None))
        assert _rank(field, 5).tolist() == [[2, 0, 1, 5, 3]] or _rank(field, 5).tolist() == [[2, 0, 1, 5, 4]]
        assert jax.jit(lambda f: _rank(f, 4))(field).tolist() == [[2, 0, 1, 5]]


def with_a_trap(seed):
    """Two clusters, and three samples that nearly coincide: "full" finds its highest likelihood on these."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)) + np.repeat([[0.0, 0.0], [8.0, 0.0]], 30, axis=0)
    return np.concatenate([x, np.array([4.0, 6.0]) + 1e-3 * rng.normal(size=(3, 2))])


def test_a_search_that_finds_only_spurious_optima_goes_on(double, monkeypatch):
    x, budget, spent = with_a_trap(0), 100, []
    plain = Tournament.advance

    def advance(self, params, steps):
        if steps is not None:
            spent.append(params.log_weights.shape[1] * steps)
        return plain(self, params, steps)

    monkeypatch.setattr(Tournament, "advance", advance)
    monkeypatch.setattr(continuation, "MORE", 0)
    before = jaxgmm.fit_best(jax.random.key(0), x, 3, budget=budget)
    assert Spurious(int(before.flags)) & Spurious.FEW
    first = sum(spent)
    monkeypatch.undo()
    monkeypatch.setattr(Tournament, "advance", advance)
    spent.clear()
    after = jaxgmm.fit_best(jax.random.key(0), x, 3, budget=budget)
    assert int(after.flags) == 0
    assert after.status == Status.CONVERGED
    assert first < sum(spent) <= first + budget
    assert int(after.n_steps) > int(before.n_steps)
    two = jaxgmm.fit_best(jax.random.key(0), x, 2, budget=budget)
    assert float(two.log_likelihood) < float(after.log_likelihood) < float(before.log_likelihood)


@pytest.mark.slow
def test_only_the_sizes_that_are_spurious_go_on(double, monkeypatch):
    x, sizes = with_a_trap(0), (1, 2, 3)
    options = {"covariance_types": ("full",), "budget": 100}
    after = jaxgmm.select(jax.random.key(0), x, sizes, **options)
    monkeypatch.setattr(continuation, "MORE", 0)
    before = jaxgmm.select(jax.random.key(0), x, sizes, **options)
    assert [bool(row["spurious"]) for row in before.table] == [False, False, True]
    assert [row["spurious"] for row in after.table] == [""] * 3
    assert after.table[:2] == before.table[:2]
    on = (np.asarray(after.results["full"].params.weights) > 0).sum(1)
    assert on.tolist() == [1, 2, 3]
    steps = [np.asarray(c.results["full"].n_steps) for c in (before, after)]
    assert (steps[1] > steps[0]).tolist() == [False, False, True]


def test_overlap_is_a_cosine():
    params = jaxgmm.make_params([0.3, 0.3, 0.4], [[0.0], [0.1], [50.0]], [1.0, 1.0, 1.0], "spherical")
    x = jaxgmm.sample(jax.random.key(0), params, 300)[0]
    c = np.asarray(overlap(params, x, None, 64))
    np.testing.assert_allclose(c, c.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(c), 1, rtol=1e-5)
    assert c[0, 1] > 0.9
    assert c[0, 2] < 1e-3


def test_moves_merge_what_overlaps_and_split_another():
    closeness = jnp.array(
        [[1, 0.9, 0.0, 0.0], [0.9, 1, 0.0, 0.0], [0, 0, 1, 0.0], [0, 0, 0, 1.0]], jnp.float32
    )
    log_weights = jnp.log(jnp.array([0.3, 0.3, 0.4, 0.0], jnp.float32))
    draw = jax.jit(jax.vmap(lambda k: draw_move(k, log_weights, closeness, 2)))
    moves = draw(jax.random.split(jax.random.key(0), 200))
    assert ((moves.first == 0) & (moves.second == 1)).mean() > 0.95
    assert (moves.third != moves.first).all()
    assert (moves.third != moves.second).all()
    assert (moves.third != 3).all()
    assert moves.possible.all()
    two = draw_move(jax.random.key(0), jnp.log(jnp.array([0.5, 0.5], jnp.float32)), jnp.eye(2, dtype="f4"), 2)
    assert not two.possible


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("full", marks=pytest.mark.slow), "tied"])
def test_a_mixture_of_another_size_gains_or_loses_one_component(name):
    """A split shares the weight of one component between two; a merge adds the weights of two."""
    x = jnp.asarray(X, jnp.float32)
    # Four components, and room for a fifth.
    start = jaxgmm.fit_components(jax.random.key(0), x, (4, 5), covariance_type=name, n_init=1, max_iter=20)
    params = jax.tree.map(lambda a: a[0], start.params)
    resp = np.asarray(jaxgmm.responsibilities(params, x))
    surveyed = summarise(x, None, jnp.asarray(1e-6, x.dtype))
    closeness = overlap(params, x, None, N)
    for key in jax.random.split(jax.random.key(1), 5):
        for change in (-1, 1):
            move = draw_exchange(key, params.log_weights, closeness, change, D)
            assert move.possible
            moments = split_merge(move, params, x, None, surveyed.shift, N)
            moved = maximise(translate(params, -surveyed.shift), moments, surveyed.ridge)[0]
            assert int((moved.weights > 0).sum()) == 4 + change
            expected, got = resp.mean(0), np.asarray(moved.weights)
            i, j = int(move.first), int(move.second)
            np.testing.assert_allclose(got[i] + got[j], expected[i] + expected[j], rtol=1e-5)
            assert (got[j] == 0) == (change < 0)
            others = np.delete(np.arange(5), [i, j])
            np.testing.assert_allclose(got[others], expected[others], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_no_mixture_gains_components_beyond_its_size():
    """Also where its neighbours in the list of sizes are not its neighbours in number."""
    found = jaxgmm.select(
        jax.random.key(0), X.astype("f4"), (1, 2, 3, 5), covariance_types=("diag",), budget=600
    ).results["diag"]
    on = (np.asarray(found.params.weights) > 0).sum(1)
    assert on.tolist() == [1, 2, 3, 5]
    # With no neighbour below, nothing is lost: more components, more likelihood.
    assert (np.diff(np.asarray(found.log_likelihood)) > 0).all()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_sizes_that_help_one_another_end_higher():
    """The sum over sizes of the likelihoods, against searches of each size alone at the same budget."""
    gains = []
    for seed in range(3):
        x = overlapping(300, 2, 8, seed=seed, separation=1.5)[0].astype("f4")
        sizes = (6, 7, 8, 9)
        together = jaxgmm.select(jax.random.key(seed), x, sizes, covariance_types=("full",), budget=1000)
        alone = [jaxgmm.fit_best(jax.random.key(seed), x, k, budget=1000).log_likelihood for k in sizes]
        gains.append(float(together.results["full"].log_likelihood.sum() - sum(alone)))
    assert np.mean(gains) > 0
