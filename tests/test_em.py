"""What EM must conserve: the steps for every structure, the fits for a few."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import gaussian, get_covariance
from jaxgmm.solvers.squarem import RUNNING
from tests.conftest import EQUIVARIANCE, case, dense, on_host, soft_labels, takes_rows
from tests.problems import (
    LABELS,
    STRUCTURES,
    WEIGHT,
    D,
    K,
    N,
    X,
    every_structure,
    fitted,
)
from tests.quick import quick_jit

two = pytest.mark.parametrize(
    ("name", "dtype"), [("full", "float64"), ("tied", "float32")], indirect=["dtype"]
)
# The M-step of the one is a closed form, that of the other an iteration with a rotation.
closed_and_iterated = pytest.mark.parametrize("name", ["full", "VVE"])
one_of_each = pytest.mark.parametrize(
    ("name", "dtype"), [("full", "float64"), ("VVE", "float32")], indirect=["dtype"]
)
X32, W32 = X.astype(np.float32), WEIGHT.astype(np.float32)
EPS = float(np.finfo(np.float32).eps)


def tolerance(dtype, factor=30):
    return factor * float(np.finfo(dtype).eps)


def same(a, b, rtol, atol=None):
    for u, v in zip(dense(a), dense(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol if atol is None else atol)


_em_step = quick_jit(jaxgmm.em_step, static_argnames=("block_size",))


def step(params, x=X32, w=W32, **options):
    """One EM step without a ridge: for every structure one program, which the tests of steps share."""
    return _em_step(params, x, np.asarray(w, np.float32), **({"reg_covar": 0.0} | options))


@quick_jit
def spheres(variances):
    """The scale of every structure for these variances (K, D), as one program."""
    return {name: get_covariance(name).from_variances(variances) for name in STRUCTURES}


def begin(name, x=X32, labels=LABELS, n_steps=3):
    """A mixture of the structure, some EM steps from spheres about the means of the labels."""
    resp = soft_labels(labels, K, np.float32)
    means = (resp.T @ x / resp.sum(0)[:, None]).astype(np.float32)
    variances = np.broadcast_to(x.var(0) / 4, (K, D)).astype(np.float32)
    weights = np.log(np.full(K, 1 / K, np.float32))
    params = jaxgmm.GMMParams(weights, means, spheres(variances)[name], gaussian(get_covariance(name)))
    for _ in range(n_steps):
        params, _ = step(params, x)
    return params


def permuted(params, order):
    """The mixture with its components in another order."""
    params = on_host(params)
    leaves, tree = jax.tree.flatten(params.scale)
    rows = takes_rows(params.covariance, params.scale, K, D)
    scale = jax.tree.unflatten(tree, [a[order] if r else a for a, r in zip(leaves, rows, strict=True)])
    return dataclasses.replace(
        params, log_weights=params.log_weights[order], means=params.means[order], scale=scale
    )


# Steps, for every structure


@every_structure
def test_steps_climb_and_order_does_not_matter(name):
    start = begin(name, n_steps=0)
    params, values = start, []
    for _ in range(15):
        params, moments = step(params)
        values.append(float(moments.log_likelihood) / float(moments.total_weight))
    assert (np.diff(values) >= -4e-6).all()  # 30 roundings of 4 nats
    assert values[-1] > values[0] + 0.01

    order, rows = np.array([2, 0, 1]), np.random.default_rng(0).permutation(N)
    one, _ = step(params)
    other, _ = step(permuted(params, order))
    for u, v in zip(dense(one), dense(other), strict=True):
        np.testing.assert_allclose(u[order], v, rtol=30 * EPS, atol=30 * EPS)
    shuffled, _ = step(params, X32[rows], W32[rows])
    same(shuffled, one, 100 * EPS)


TRANSFORMS = {
    "affine": np.array([[2.0, 0.5, 0.0], [-1.0, 1.0, 0.3], [0.2, 0.0, 0.5]]),
    "axes": np.diag([2.0, 0.5, 8.0]),
    "similar": 4 * np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0],
}


@every_structure
def test_steps_follow_the_transformations_of_their_structure(name):
    """Affine, axis by axis or similarities, with a shift; see `EQUIVARIANCE`."""
    a, b = TRANSFORMS[EQUIVARIANCE[name]], np.array([3.0, -1.0, 2.0])
    if name == "EVE":  # which has several optima: from axes along the features to axes along the features
        a = 4 * np.eye(3)[[1, 2, 0]] * [-1, 1, 1]
    here = begin(name, n_steps=30)
    there = begin(name, (X @ a.T + b).astype(np.float32), n_steps=30)
    for _ in range(60):
        (here, one), (there, other) = step(here), step(there, (X @ a.T + b).astype(np.float32))
    # After 90 steps both are within 1e-3 of the same optimum.
    (w0, m0, c0), (w1, m1, c1) = dense(here), dense(there)
    np.testing.assert_allclose(w0, w1, atol=2e-3)
    np.testing.assert_allclose(m0 @ a.T + b, m1, atol=2e-2)
    np.testing.assert_allclose(a @ c0 @ a.T, c1, rtol=2e-3, atol=6e-2)
    shift = np.log(abs(np.linalg.det(a)))
    values = (float(m.log_likelihood) / float(m.total_weight) for m in (one, other))
    np.testing.assert_allclose(next(values) - shift, next(values), atol=1e-5)


def test_weights_are_repetition_and_what_is_off_stays_off():
    for name in STRUCTURES:
        with case(name):
            params = begin(name)
            rng = np.random.default_rng(0)
            counts = rng.multinomial(N, np.full(N, 1 / N))
            weighted, m_weighted = step(params, X32, counts)
            repeated, m_repeated = step(params, np.repeat(X32, counts, axis=0), np.ones(N))
            same(weighted, repeated, 100 * EPS)
            np.testing.assert_allclose(m_weighted.log_likelihood, m_repeated.log_likelihood, rtol=1e-5)
            # A row without weight may hold numbers whose squares overflow.
            huge = np.where(counts[:, None] == 0, np.float32(1e25), X32)
            same(step(params, huge, counts)[0], weighted, 100 * EPS)
            # The scale of the weights does not matter.
            for scale in (2.0**30, 2.0**-60):
                same(step(params, X32, counts * scale)[0], weighted, 30 * EPS)
            second = np.arange(K) == 1
            off = dataclasses.replace(
                params, log_weights=np.where(second, -np.inf, params.log_weights).astype("f")
            )
            # The others are as if the one that is off lay elsewhere.
            elsewhere = dataclasses.replace(
                off, means=np.asarray(off.means) + 5 * second.astype("f")[:, None]
            )
            for _ in range(5):
                off, elsewhere = step(off)[0], step(elsewhere)[0]
            assert off.log_weights[1] == -np.inf
            assert all(np.isfinite(a).all() for a in jax.tree.leaves((off.means, off.scale)))
            for u, v in zip(dense(off), dense(elsewhere), strict=True):
                np.testing.assert_array_equal(u[[0, 2]], v[[0, 2]])


# Steps, by hand


def m_step_by_hand(resp, x, name, w=None):
    """Weights, means and dense covariances in float64, by the textbook."""
    r = resp if w is None else resp * w[:, None]
    n = r.sum(0)
    means = r.T @ x / n[:, None]
    gaps = x[:, None, :] - means[None]
    cov = np.einsum("nk,nkd,nke->kde", r, gaps, gaps) / n[:, None, None]
    if name == "tied":
        cov = np.broadcast_to(np.einsum("k,kde->de", n / n.sum(), cov), cov.shape)
    elif name == "diag":
        cov = np.stack([np.diag(np.diag(c)) for c in cov])
    return n / n.sum(), means, cov


@two
def test_m_step_and_em_step_are_the_textbooks(name, dtype):
    x, w, resp = X.astype(dtype), WEIGHT.astype(dtype), soft_labels(LABELS, K, dtype)
    got = jaxgmm.m_step(resp, x, covariance_type=name, sample_weight=w, reg_covar=0.0)
    expected = m_step_by_hand(resp.astype(float), x.astype(float), name, w.astype(float))
    for a, b in zip(dense(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(dtype), atol=tolerance(dtype))
    after, moments = jaxgmm.em_step(got, x, w, reg_covar=0.0)
    resp, log_prob = (np.asarray(a, float) for a in jaxgmm.e_step(got, x))
    expected = m_step_by_hand(resp, x.astype(float), name, w.astype(float))
    for a, b in zip(dense(after), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(dtype, 100), atol=tolerance(dtype, 100))
    np.testing.assert_allclose(moments.log_likelihood, w @ log_prob, rtol=1e-5)
    np.testing.assert_allclose(moments.total_weight, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(moments.weight, w @ resp, rtol=1e-5)


def test_a_step_of_many_features_is_the_textbooks():
    """From 16 features on a CPU takes the components of a block one after another."""
    rng = np.random.default_rng(0)
    n, d = 150, 16
    x, w = rng.normal(size=(n, d)).astype(np.float32), rng.uniform(size=n).astype(np.float32)
    w[3] = 0
    roots = 0.3 * rng.normal(size=(K, d, d)) + 1.5 * np.eye(d)
    params = jaxgmm.make_params([0.2, 0.3, 0.5], 0.3 * rng.normal(size=(K, d)), roots @ roots.swapaxes(1, 2))
    weights, means, covariances = dense(params)
    gaps = x[:, None] - means
    distance = np.einsum("nkd,kde,nke->nk", gaps, np.linalg.inv(covariances), gaps)
    joint = np.log(weights) - 0.5 * (distance + np.linalg.slogdet(covariances)[1])
    resp = np.exp(joint - joint.max(1, keepdims=True))
    resp /= resp.sum(1, keepdims=True)
    expected = m_step_by_hand(resp, x.astype(float), "full", w.astype(float))
    found, _ = step(params, x, w, block_size=64)  # the last block overlaps
    for a, b in zip(dense(found), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=300 * EPS, atol=300 * EPS)


def test_the_ridge_is_absolute_above_unit_variance_and_relative_below(double):
    x, resp = X / X.std(0) * np.array([1e3, 1.0, 1e-3]), soft_labels(LABELS, K)
    plain, ridged = (
        np.asarray(jaxgmm.m_step(resp, x, sample_weight=np.ones(N), reg_covar=r).covariances)
        for r in (0.0, 0.1)
    )
    added = np.tile([0.1, 0.1, 0.1e-6], (K, 1))
    np.testing.assert_allclose(np.einsum("kdd->kd", ridged - plain), added, rtol=1e-6)


def test_blocks_sum_to_the_whole():
    params = begin("full")
    whole, m_whole = step(params)
    # The last of them overlaps: concrete rows are padded to 256, those inside `jit` are not.
    parts, m_parts = step(params, block_size=64)
    same(parts, whole, 30 * EPS)
    for a, b in zip(*map(jax.tree.leaves, (m_parts, m_whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=30 * EPS, atol=30 * N * EPS)


@one_of_each
def test_both_steps_climb_the_bound_and_each_is_the_best_for_the_other(name, dtype):
    """Coordinate ascent: e_step and m_step each raise the same function, which meets the likelihood."""
    x = X.astype(dtype)
    params = fitted(name, dtype.name).start
    slack = {"float32": 1e-6, "float64": 1e-13}[dtype.name] * 4 * N
    bound = -np.inf
    for _ in range(5):
        resp, log_prob = jaxgmm.e_step(params, x)
        after_e = float(jaxgmm.elbo(params, resp, x))
        np.testing.assert_allclose(after_e, np.asarray(log_prob, float).sum(), rtol=2e-6)
        assert after_e >= bound - slack
        params = jaxgmm.m_step(resp, x, covariance_type=name, reg_covar=0.0)
        bound = float(jaxgmm.elbo(params, resp, x))
        assert bound >= after_e - slack
    resp, _ = jaxgmm.e_step(params, x)
    best, rng = float(jaxgmm.elbo(params, resp, x)), np.random.default_rng(0)
    for _ in range(5):
        other = 0.8 * np.asarray(resp) + 0.2 * rng.dirichlet(np.ones(K), size=N)
        assert float(jaxgmm.elbo(params, other.astype(dtype), x)) < best


# Fits


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("full", "float32"), ("VVE", "float32"), ("full", "float64")],
    indirect=["dtype"],
)
def test_a_fit_climbs_to_where_plain_steps_end_and_says_what_it_has(name, dtype):
    x, start, quick = fitted(name, dtype.name)
    plain = jaxgmm.fit(start, x, accelerate=False)
    allowed = {"float32": 1e-6, "float64": 1e-13}[dtype.name]

    def mean_log_prob(params):
        return np.asarray(jaxgmm.e_step(params, x)[1], float).mean()

    first = mean_log_prob(start)
    # The default ridge is 1e-6 of variances of 1: it takes less than 1e-6 of the likelihood, but not 1e-13.
    for result in (quick, plain) if dtype == np.float32 else ():
        history = np.r_[first, np.asarray(result.history, float)]
        history = history[np.isfinite(history)]
        assert len(history) > 5
        assert (np.diff(history) >= -allowed * np.maximum(1, np.abs(history[1:]))).all()
    without = jaxgmm.fit(start, x, reg_covar=0.0)
    history = np.asarray(without.history, float)
    assert (np.diff(history[np.isfinite(history)]) >= -allowed * 10).all()
    assert {int(r.status) for r in (quick, plain, without)} == {Status.CONVERGED}
    # Between two points within tol of the optimum; in float32, within rounding of the likelihood.
    np.testing.assert_allclose(quick.log_likelihood, plain.log_likelihood, atol=2e-6)
    assert int(quick.n_iter) <= int(plain.n_iter) + 2
    few = jaxgmm.fit(start, x, max_iter=3)
    none = jaxgmm.fit(start, x, max_iter=0)
    for result in (quick, plain, few, none):
        score = mean_log_prob(result.params)
        np.testing.assert_allclose(result.log_likelihood, score, rtol=tolerance(dtype, 10))
    # A fixed number of steps is that many EM steps.
    result, params = jaxgmm.fit(start, x, max_iter=3, tol=0.0, accelerate=False), start
    for _ in range(3):
        resp, _ = jaxgmm.e_step(params, x)
        params = jaxgmm.m_step(resp, x, covariance_type=name)
    assert (result.n_iter, result.status) == (3, Status.MAX_ITER)
    if name != "VVE":  # whose M-step goes on from where it stands, and m_step starts elsewhere
        same(result.params, params, tolerance(dtype, 100))


def test_the_gradient_of_the_likelihood_is_zero_at_the_fixed_point(double):
    x, start, _ = fitted("full", "float64")
    result = jaxgmm.check(jaxgmm.fit(start, x, reg_covar=0.0, tol=1e-10))

    def likelihood(params):
        # Weights on the simplex: adding a constant to all logits must not count as a change.
        centred = dataclasses.replace(params, log_weights=jax.nn.log_softmax(params.log_weights))
        return jaxgmm.score(centred, x)

    gradient = quick_jit(jax.grad(likelihood))(result.params)
    gradient = on_host(dataclasses.replace(gradient, scale=np.tril(gradient.scale)))
    assert max(abs(a).max() for a in jax.tree.leaves(gradient)) < 1e-8


@closed_and_iterated
def test_fits_follow_the_transformations_of_their_structure(name):
    a, b = TRANSFORMS[EQUIVARIANCE[name]], np.array([3.0, -1.0, 2.0])
    moved = (X @ a.T + b).astype(np.float32)
    resp = soft_labels(LABELS, K, np.float32)
    results = [
        jaxgmm.fit(jaxgmm.m_step(resp, data, covariance_type=name, reg_covar=0.0), data, reg_covar=0.0)
        for data in (X32, moved)
    ]
    (w0, m0, c0), (w1, m1, c1) = (dense(r.params) for r in results)
    # Both are within tol (1e-5, Fisher length) of the same optimum; in float32, within rounding of it.
    np.testing.assert_allclose(w0, w1, atol=2e-3)
    np.testing.assert_allclose(m0 @ a.T + b, m1, atol=2e-2)
    np.testing.assert_allclose(a @ c0 @ a.T, c1, rtol=2e-3, atol=6e-2)
    shift = np.log(abs(np.linalg.det(a)))
    here, there = (float(r.log_likelihood) for r in results)
    np.testing.assert_allclose(there + shift, here, atol=5e-6)


def test_one_component_is_the_sample_mean_and_covariance(double):
    x, start, _ = fitted("full", "float64")
    alone = dataclasses.replace(start, log_weights=np.array([-np.inf, 0.0, -np.inf]))
    result = jaxgmm.fit(alone, x, reg_covar=0.0)
    expected = m_step_by_hand(np.ones((N, 1)), x, "full")
    assert result.status == Status.CONVERGED
    assert result.params.weights.tolist() == [0, 1, 0]
    for a, b in zip(dense(result.params), expected, strict=True):
        np.testing.assert_allclose(a[1], b[0], rtol=1e-12, atol=1e-12)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((result.params.means, result.params.scale)))


def stacked(*trees):
    """Mixtures as one with a leading axis, of NumPy arrays."""
    return jax.tree.map(lambda *a: np.stack(a), *map(on_host, trees))


def lane(results, i):
    return jax.tree.map(lambda a: a[i], results)


# Fits of two starts in one program, which a user's `jit` and `vmap` are around.
fit_two = quick_jit(jax.vmap(jaxgmm.fit, in_axes=(0, None, None)))


def two_starts():
    """Data, one start of `fitted`, and another that converges, too."""
    x, start, expected = fitted("full", "float64")
    start = on_host(start)
    other = dataclasses.replace(start, means=start.means[::-1], log_weights=start.log_weights[::-1])
    return x, start, other, expected


def test_jit_and_vmap_are_a_loop_and_a_bad_lane_leaves_the_other_alone(double):
    x, start, other, expected = two_starts()
    good = on_host(fit_two(stacked(start, other), x, np.ones(N)))
    for i, alone in enumerate((expected, jaxgmm.fit(other, x))):
        with case(i):
            assert good.status[i] == int(alone.status) == Status.CONVERGED
            # What is around a fit makes it another program: products are rounded in other places.
            np.testing.assert_allclose(good.log_likelihood[i], alone.log_likelihood, rtol=1e-13)
            same(lane(good.params, i), alone.params, 1e-9)
    spoilt = dataclasses.replace(start, means=start.means * np.nan)
    collapsing = dataclasses.replace(start, scale=start.scale * 0)
    for bad, statuses in (
        (spoilt, [Status.NONFINITE]),
        (collapsing, [Status.NONFINITE, Status.DEGENERATE]),
    ):
        mixed = on_host(fit_two(stacked(bad, other), x, np.ones(N)))
        assert mixed.status[0] in statuses
        chex.assert_trees_all_equal(lane(mixed, 1), lane(good, 1))


def test_inside_jit_rows_without_weight_are_left_out_whatever_they_hold(double):
    x, start, other, _ = two_starts()
    starts, ones = stacked(start, other), np.ones(N)
    # Inside jit the values are not looked at: a bad one is a status, and the start is kept.
    result = on_host(fit_two(starts, np.where(np.arange(N) == 7, np.nan, 0.0)[:, None] + x, ones))
    assert result.status.tolist() == [Status.NONFINITE] * 2
    assert result.n_iter.tolist() == [0, 0]
    chex.assert_trees_all_equal(result.params, starts)
    w = np.where(np.arange(N) < 50, 0.0, 1.0)
    zero, *others = (
        on_host(fit_two(starts, np.r_[np.full((50, D), value), x[50:]], w)) for value in (0.0, np.nan, 1e200)
    )
    for found in others:
        chex.assert_trees_all_equal(found, zero)
    # The same rows by weights of another kind: those of the last 50, half and half.
    halves = np.r_[np.ones(100), np.full(100, 0.5)]
    again = on_host(fit_two(starts, np.r_[x[50:150], x[150:], x[150:]], halves))
    np.testing.assert_allclose(zero.log_likelihood, again.log_likelihood, rtol=1e-13)
    for i in range(2):
        same(lane(zero.params, i), lane(again.params, i), 1e-9)


def test_data_that_a_users_jit_closes_over_are_checked():
    """Such data are concrete although a trace is under way."""
    x, start, _ = fitted("full")
    negative = -np.ones(N, np.float32)
    for function in (jaxgmm.fit, jaxgmm.em_step):
        with pytest.raises(ValueError, match="sample_weight must not be negative"):
            jax.eval_shape(lambda p, function=function: function(p, x, negative), start)


# The iteration in a loop of one's own


def test_steps_of_ones_own_are_those_of_a_fit():
    x, start, expected = fitted("full")
    state = jaxgmm.em.init(start, x)
    same(state.params, start, 30 * EPS)
    for _ in range(int(expected.n_iter) + 1):
        assert state.iteration.status == RUNNING
        state, info = jaxgmm.em.step(state, x)
    assert info.status == expected.status
    assert info.n_iter == expected.n_iter
    same(state.params, expected.params, 100 * EPS)
    again, _ = jaxgmm.em.step(state, x)  # the iteration has ended
    chex.assert_trees_all_equal(again, state)


def test_the_first_step_is_an_em_step_and_plain_ones_never_fall():
    x = X32 + np.float32(20)  # far enough from 0 for the data to be centred
    start = begin("full", x)
    state = jaxgmm.em.init(start, x)
    after, info = jaxgmm.em.step(state, x)
    expected, moments = step(start, x, np.ones(N), reg_covar=1e-6)
    same(after.params, expected, 30 * EPS)
    np.testing.assert_allclose(info.log_likelihood, float(moments.log_likelihood) / N, rtol=1e-5)
    climbs = []
    for number in range(1, 9):
        state, info = jaxgmm.em.step(state, x, tol=0.0, accelerate=False)
        climbs.append(float(info.log_likelihood))
        assert int(info.n_iter) == number
        assert not info.accelerated
    assert (np.diff(climbs) >= -64 * EPS * abs(climbs[0])).all()


def test_a_step_refuses_what_is_no_state_and_other_data():
    x, start, _ = fitted("full")
    state = jaxgmm.em.init(start, x)
    with pytest.raises(TypeError, match=r"state must be what jaxgmm\.em\.init gives"):
        jaxgmm.em.step(start, x)
    with pytest.raises(ValueError, match="features of params"):
        jaxgmm.em.step(state, x[:, :-1])
