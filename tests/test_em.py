"""What EM must conserve, over every structure and both precisions."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from jaxgmm.em import maximise
from jaxgmm.kernels import exact
from jaxgmm.kernels.exact import Moments, accumulate
from jaxgmm.solvers.squarem import RUNNING
from tests.conftest import (
    EQUIVARIANCE,
    dense,
    every,
    overlapping,
    soft_labels,
    start_from,
    takes_rows,
    times_used,
)

N, D, K = 300, 3, 3
X, LABELS = overlapping(N, D, K)


@pytest.fixture
def start(name, dtype):
    return start_from(X, LABELS, name, dtype)


@pytest.fixture
def x(dtype):
    return X.astype(dtype)


def tolerance(dtype, factor=30):
    return factor * float(np.finfo(dtype).eps)


def same(a, b, rtol, atol=None):
    for u, v in zip(dense(a), dense(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol if atol is None else atol)


def m_step_by_hand(resp, x, name, w=None, ridge=0.0):
    """Weights, means and dense covariances in float64, by the textbook."""
    w = np.ones(len(x)) if w is None else w
    r = resp * w[:, None]
    n = r.sum(0)
    means = r.T @ x / n[:, None]
    gaps = x[:, None, :] - means[None]
    cov = np.einsum("nk,nkd,nke->kde", r, gaps, gaps) / n[:, None, None]
    d = x.shape[1]
    if name == "tied":
        cov = np.broadcast_to(np.einsum("k,kde->de", n / n.sum(), cov), cov.shape)
    elif name == "diag":
        cov = np.stack([np.diag(np.diag(c)) for c in cov])
    elif name == "spherical":
        cov = np.stack([np.trace(c) / d * np.eye(d) for c in cov])
    return n / n.sum(), means, cov + ridge * np.eye(d)


def test_m_step_is_the_textbooks(name, dtype, x):
    resp = soft_labels(LABELS, K, dtype)
    w = np.random.default_rng(0).uniform(size=N).astype(dtype)
    got = jaxgmm.m_step(resp, x, covariance_type=name, sample_weight=w, reg_covar=0.0)
    expected = m_step_by_hand(resp.astype(float), x.astype(float), name, w.astype(float))
    for a, b in zip(dense(got), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(dtype), atol=tolerance(dtype))


def test_the_ridge_is_absolute_above_unit_variance_and_relative_below(name, double):
    scales = np.array([1e3, 1.0, 1e-3])
    x = X / X.std(0) * scales
    resp = soft_labels(LABELS, K)
    plain, ridged = (
        np.asarray(jaxgmm.m_step(resp, x, covariance_type=name, reg_covar=r).covariances) for r in (0.0, 0.1)
    )
    added = np.array([0.1, 0.1, 0.1e-6])
    if name == "spherical":
        added = np.full(3, added.mean())
    np.testing.assert_allclose(np.einsum("kdd->kd", ridged - plain), np.tile(added, (K, 1)), rtol=1e-6)


@every
def test_em_step_is_m_step_after_e_step(start, x, name, dtype):
    w = np.random.default_rng(1).uniform(size=N).astype(dtype)
    resp, log_prob = jaxgmm.e_step(start, x)
    by_hand = jaxgmm.m_step(resp, x, covariance_type=name, sample_weight=w)
    got, moments = jaxgmm.em_step(start, x, w)
    if name in ("VEI", "VEE", "EVE", "VVE", "VEV"):
        # One M-step is an iteration that goes on from where it stands, and m_step starts elsewhere.
        np.testing.assert_allclose(got.weights, by_hand.weights, rtol=1e-5)
        before, after = (float(jaxgmm.elbo(p, resp, x, w)) for p in (start, got))
        assert after >= before - 1e-6 * abs(before)
    else:
        same(got, by_hand, tolerance(dtype, 100))
    np.testing.assert_allclose(moments.log_likelihood, (w * log_prob).sum(), rtol=1e-5)
    np.testing.assert_allclose(moments.total_weight, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(moments.weight, w @ np.asarray(resp), rtol=1e-5)


@pytest.mark.parametrize("block_size", [32, 299])
def test_blocks_sum_to_the_whole(start, x, dtype, block_size):
    whole, m_whole = jaxgmm.em_step(start, x, block_size=N)
    parts, m_parts = jaxgmm.em_step(start, x, block_size=block_size)
    same(parts, whole, tolerance(dtype))
    for a, b in zip(*map(jax.tree.leaves, (m_parts, m_whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(dtype), atol=N * tolerance(dtype))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("full", "nothing"),
        pytest.param("full", "responsibilities", marks=pytest.mark.slow),
        ("full", "others"),
        ("tied", "nothing"),
        pytest.param("EEV", "others", marks=pytest.mark.slow),
    ],
)
def test_components_that_take_turns_have_the_same_moments(name, given, monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(70, 4)), jnp.float32)
    w = jnp.asarray(rng.uniform(size=70), jnp.float32).at[3].set(0)
    wide = np.stack([a @ a.T + np.eye(4) for a in rng.normal(size=(3, 4, 4))])
    params = jaxgmm.make_params([0.2, 0.3, 0.5], rng.normal(size=(3, 4)), wide, "full")
    if name != "full":
        params = jaxgmm.m_step(jaxgmm.e_step(params, x)[0], x, covariance_type=name)
    options = {
        "nothing": {},
        "responsibilities": {"resp": jnp.asarray(rng.dirichlet(np.ones(3), 70), jnp.float32)},
        "others": {"reassign": lambda shares, y, distance: shares[::-1] * jnp.cos(y).sum(1) + distance},
    }[given]

    several = jnp.stack([x, 2 * x, x + 1])

    def measured(turns):
        monkeypatch.setattr(exact, "_TURNS", turns)

        def found(x, w):
            return accumulate(params, x, w, shift=jnp.full(4, 0.5, x.dtype), block_size=32, **options)

        def value(x, w):
            return sum(jnp.sin(a / 10).sum() for a in jax.tree.leaves(found(x, w)))

        # One loop over blocks, and two over components for each of them.
        assert times_used("scan", jax.make_jaxpr(found)(x, w)) == (3 if turns == 1 else 1)
        pull = jax.grad(value, argnums=(0, 1))
        return jax.jit(lambda: (found(x, w), pull(x, w), jax.vmap(lambda x: found(x, w))(several)))()

    for a, b in zip(*(jax.tree.leaves(measured(turns)) for turns in (1, 1 << 30)), strict=True):
        # Sums of up to 70 terms of the size of the largest, in another order.
        rounding = 70 * np.finfo(np.float32).eps * float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=rounding)


def test_moments_add_and_zero_is_the_identity(start, x, dtype):
    w = jnp.ones(100, dtype)
    parts = [accumulate(start, jnp.asarray(x[i : i + 100]), w, block_size=100) for i in (0, 100, 200)]
    whole = accumulate(start, jnp.asarray(x), None, block_size=N)
    for a, b in zip(*map(jax.tree.leaves, (parts[0] + parts[1] + parts[2], whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(dtype), atol=N * tolerance(dtype))
    chex.assert_trees_all_equal(parts[0] + Moments.zero(start), parts[0])
    new, _ = maximise(start, whole * 0.5, jnp.zeros(D, dtype))
    again, _ = maximise(start, whole, jnp.zeros(D, dtype))
    same(new, again, tolerance(dtype))


@every
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_likelihood_never_falls(start, x, dtype, accelerate):
    allowed = {"float32": 1e-6, "float64": 1e-13}[dtype.name]
    result = jaxgmm.fit(start, x, reg_covar=0.0, accelerate=accelerate)
    history = np.r_[float(jaxgmm.score(start, x)), np.asarray(result.history, float)]
    history = history[np.isfinite(history)]
    assert len(history) > 5
    assert (np.diff(history) >= -allowed * np.maximum(1, np.abs(history[1:]))).all()
    assert result.status == Status.CONVERGED


@every
def test_both_steps_climb_the_bound(start, x, name, dtype):
    """Coordinate ascent: e_step and m_step each raise the same function, which meets the likelihood."""
    params = start
    slack = {"float32": 1e-6, "float64": 1e-13}[dtype.name] * 4 * N
    resp = jnp.full((N, K), 1 / K, dtype)
    bound = -np.inf
    for _ in range(5):
        resp, log_prob = jaxgmm.e_step(params, x)
        after_e = float(jaxgmm.elbo(params, resp, x))
        np.testing.assert_allclose(after_e, float(log_prob.sum()), rtol=2e-6)
        assert after_e >= bound - slack
        params = jaxgmm.m_step(resp, x, covariance_type=name, reg_covar=0.0)
        bound = float(jaxgmm.elbo(params, resp, x))
        assert bound >= after_e - slack


def test_each_step_is_the_best_for_the_other(name, double):
    start = start_from(X, LABELS, name, double)
    resp, _ = jaxgmm.e_step(start, X)
    # No other responsibilities have a higher bound at these parameters …
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = 0.95 * np.asarray(resp) + 0.05 * rng.dirichlet(np.ones(K), size=N)
        assert jaxgmm.elbo(start, other, X) < jaxgmm.elbo(start, resp, X)
    # … and the bound is flat in the parameters that m_step returns.
    new = jaxgmm.m_step(resp, X, covariance_type=name, reg_covar=0.0)
    gradient = jax.grad(jaxgmm.elbo)(new, resp, X)
    flat = dataclasses.replace(gradient, log_weights=gradient.log_weights - N * new.weights)
    if name in ("full", "tied"):
        flat = dataclasses.replace(flat, scale=jnp.tril(flat.scale))
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(flat)) < 1e-8 * N


def test_the_gradient_of_the_likelihood_is_zero_at_the_fixed_point(name, double):
    start = start_from(X, LABELS, name, double)
    result = jaxgmm.check(jaxgmm.fit(start, X, reg_covar=0.0, tol=1e-10))

    def likelihood(params):
        # Weights on the simplex: adding a constant to all logits must not count as a change.
        centred = dataclasses.replace(params, log_weights=jax.nn.log_softmax(params.log_weights))
        return jaxgmm.score(centred, X)

    gradient = jax.grad(likelihood)(result.params)
    if name in ("full", "tied"):
        gradient = dataclasses.replace(gradient, scale=jnp.tril(gradient.scale))
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradient)) < 1e-8


def test_the_likelihood_returned_is_that_of_the_parameters_returned(start, x, dtype):
    for options in ({}, {"max_iter": 3}, {"max_iter": 3, "accelerate": False}, {"max_iter": 0}):
        result = jaxgmm.fit(start, x, **options)
        np.testing.assert_allclose(
            result.log_likelihood, jaxgmm.score(result.params, x), rtol=tolerance(dtype, 10)
        )


def test_a_fixed_number_of_steps_is_that_many_em_steps(start, x, dtype):
    result = jaxgmm.fit(start, x, max_iter=3, tol=0.0, accelerate=False)
    params = start
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, x)
    assert result.n_iter == 3
    assert result.status == Status.MAX_ITER
    same(result.params, params, tolerance(dtype, 100))


@every
def test_acceleration_ends_where_em_ends(start, x, dtype):
    quick, plain = (jaxgmm.fit(start, x, accelerate=a) for a in (True, False))
    assert quick.status == plain.status == Status.CONVERGED
    # Between two points within tol of the optimum; in float32, within rounding of the likelihood.
    np.testing.assert_allclose(quick.log_likelihood, plain.log_likelihood, atol=2e-6)
    assert quick.n_iter <= plain.n_iter + 2


@every
def test_order_of_components_does_not_matter(start, x, dtype):
    order = np.array([2, 0, 1])
    one = jax.tree.map(lambda a: a[order], {"w": start.log_weights, "m": start.means})
    leaves, tree = jax.tree.flatten(start.scale)
    rows = takes_rows(start.family, start.scale, K, D)
    scale = jax.tree.unflatten(tree, [a[order] if r else a for a, r in zip(leaves, rows, strict=True)])
    shuffled = dataclasses.replace(start, log_weights=one["w"], means=one["m"], scale=scale)
    a, _ = jaxgmm.em_step(start, x)
    b, _ = jaxgmm.em_step(shuffled, x)
    for u, v in zip(dense(a), dense(b), strict=True):
        np.testing.assert_allclose(u[order], v, rtol=tolerance(dtype), atol=tolerance(dtype))


def test_order_of_samples_does_not_matter(start, x, dtype):
    a, _ = jaxgmm.em_step(start, x)
    b, _ = jaxgmm.em_step(start, x[np.random.default_rng(0).permutation(N)])
    same(a, b, tolerance(dtype))


TRANSFORMS = {
    "affine": np.array([[2.0, 0.5, 0.0], [-1.0, 1.0, 0.3], [0.2, 0.0, 0.5]]),
    "axes": np.diag([2.0, 0.5, 8.0]),
    "similar": 4 * np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0],
}


@every
def test_fits_follow_the_transformations_of_their_structure(name, dtype, x):
    """Affine, axis by axis or similarities, with a shift; see `EQUIVARIANCE`."""
    a, b = TRANSFORMS[EQUIVARIANCE[name]], np.array([3.0, -1.0, 2.0])
    moved = (X @ a.T + b).astype(dtype)
    resp = soft_labels(LABELS, K, dtype)
    results = [
        jaxgmm.fit(jaxgmm.m_step(resp, data, covariance_type=name, reg_covar=0.0), data, reg_covar=0.0)
        for data in (x, moved)
    ]
    (w0, m0, c0), (w1, m1, c1) = (dense(r.params) for r in results)
    # Both are within tol (1e-5, Fisher length) of the same optimum; in float32, within rounding of it.
    close = 2e-3 if dtype == np.float32 else 2e-4
    np.testing.assert_allclose(w0, w1, atol=close)
    np.testing.assert_allclose(m0 @ a.T + b, m1, atol=10 * close)
    np.testing.assert_allclose(a @ c0 @ a.T, c1, rtol=close, atol=30 * close)
    shift = np.log(abs(np.linalg.det(a)))
    np.testing.assert_allclose(results[1].log_likelihood + shift, results[0].log_likelihood, atol=5e-6)


def test_integer_weights_are_repetition(start, name, dtype, x):
    counts = np.random.default_rng(0).integers(0, 4, size=N)
    weighted, m_weighted = jaxgmm.em_step(start, x, counts)
    repeated, m_repeated = jaxgmm.em_step(start, np.repeat(x, counts, axis=0))
    same(weighted, repeated, tolerance(dtype, 100))
    np.testing.assert_allclose(m_weighted.log_likelihood, m_repeated.log_likelihood, rtol=1e-5)


def test_a_zero_weight_leaves_a_row_out_whatever_it_holds(start, x, dtype):
    w = np.ones(N, dtype)
    w[:50] = 0
    junk = x.copy()
    junk[:50] = np.nan
    kept = jaxgmm.fit(start, x[50:], max_iter=5, tol=0.0)
    left_out = jaxgmm.fit(start, x, w, max_iter=5, tol=0.0)
    same(kept.params, left_out.params, tolerance(dtype, 100))
    np.testing.assert_allclose(kept.log_likelihood, left_out.log_likelihood, rtol=1e-6)
    # Numbers whose squares overflow, too; the derivative is that of the other rows.
    huge = np.where(np.isnan(junk), 1e20 if dtype == np.float32 else 1e155, x)
    for kernel in ("whitened", "quadratic"):
        results = [
            jaxgmm.fit(start, d, w, max_iter=5, tol=0.0, options=EMOptions(kernel=kernel)) for d in (x, huge)
        ]
        same(*(r.params for r in results), tolerance(dtype, 100))
    if start.family.name == "full":

        def total(data):
            options = {"max_iter": 5, "tol": 0.0, "options": EMOptions(unconverged_gradient="ignore")}
            return jaxgmm.fit(start, data, w, **options).params.means.sum()

        slope, expected = (np.asarray(jax.grad(total)(jnp.asarray(d))) for d in (huge, x))
        np.testing.assert_allclose(slope[50:], expected[50:], rtol=1e-3, atol=1e-5)
        assert (slope[:50] == 0).all()
    if start.family.name != "full":
        return
    # Inside jit the values are not looked at, and such a row may even be missing.
    missing = jax.jit(lambda d: jaxgmm.fit(start, d, w, max_iter=5, tol=0.0))(junk)
    same(missing.params, left_out.params, tolerance(dtype, 100))


def test_weights_on_any_scale_give_the_same_fit(start, x, dtype):
    w = np.random.default_rng(0).uniform(0.5, 1.5, size=N).astype(dtype)
    a = jaxgmm.fit(start, x, w, max_iter=5, tol=0.0)
    for factor in (1024, 1e-20, 1e20):
        b = jaxgmm.fit(start, x, (w * factor).astype(dtype), max_iter=5, tol=0.0)
        same(a.params, b.params, tolerance(dtype))
        np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-6)


def test_vmap_is_a_loop_and_jit_is_eager(start, x, dtype):
    starts = [jaxgmm.em_step(start, x[i::2])[0] for i in (0, 1)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *starts)
    together = jax.vmap(lambda p: jaxgmm.fit(p, x))(batch)
    jitted = jax.jit(lambda p: jaxgmm.fit(p, x))
    for i, s in enumerate(starts):
        alone = jitted(s)
        eager = jaxgmm.fit(s, x)
        lane = jax.tree.map(lambda a, i=i: a[i], together)
        # The compiler's options are another program's: sums of products may be rounded in other places.
        same(alone.params, eager.params, tolerance(dtype, 1000))
        assert lane.status == eager.status == Status.CONVERGED
        np.testing.assert_allclose(lane.log_likelihood, eager.log_likelihood, rtol=1e-6)
        # Batched products may add in another order, and a rounding can change the number of steps.
        same(lane.params, eager.params, 5e-3 if dtype == np.float32 else 1e-4)


def test_a_bad_lane_leaves_the_others_alone(start, x):
    spoilt = dataclasses.replace(start, means=start.means * jnp.nan)
    collapsing = dataclasses.replace(start, scale=jax.tree.map(lambda a: a * 0, start.scale))

    def lanes(*starts):
        batch = jax.tree.map(lambda *a: jnp.stack(a), *starts)
        return jax.vmap(lambda p: jaxgmm.fit(p, x))(batch)

    good = lanes(start, start, start)
    mixed = lanes(spoilt, start, collapsing)
    assert mixed.status.tolist()[0] == Status.NONFINITE
    assert mixed.status.tolist()[2] in (Status.NONFINITE, Status.DEGENERATE)
    middle = [jax.tree.map(lambda a: a[1], results) for results in (mixed, good)]
    chex.assert_trees_all_equal(*middle)


def test_nan_data_inside_jit_is_a_status_and_keeps_the_start(name):
    x = X.astype(np.float32)
    start = start_from(X, LABELS, name, np.float32)
    spoilt = jnp.asarray(x).at[7, 1].set(jnp.nan)
    result = jax.jit(lambda d: jaxgmm.fit(start, d))(spoilt)
    assert result.status == Status.NONFINITE
    assert result.n_iter == 0
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(result.params.scale))


@every
def test_a_switched_off_component_stays_off_and_finite(start, x, dtype):
    off = dataclasses.replace(start, log_weights=start.log_weights.at[1].set(-jnp.inf))
    result = jaxgmm.fit(off, x)
    assert result.status == Status.CONVERGED
    assert result.params.log_weights[1] == -np.inf
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((result.params.means, result.params.scale)))
    alone = jaxgmm.fit(jaxgmm.mixture.active(off), x)
    np.testing.assert_allclose(result.log_likelihood, alone.log_likelihood, atol=1e-6)


def test_one_component_is_the_sample_mean_and_covariance(name, double):
    result = jaxgmm.fit(jaxgmm.m_step(np.ones((N, 1)), X, covariance_type=name), X, reg_covar=0.0)
    expected = m_step_by_hand(np.ones((N, 1)), X, name)
    for a, b in zip(dense(result.params), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_float32_data_in_a_64_bit_session_stay_float32(name, double):
    start = start_from(X, LABELS, name, np.float32)
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(start))
    result = jaxgmm.fit(start, X.astype(np.float32))
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(result.params))
    assert result.log_likelihood.dtype == result.history.dtype == np.float32
    assert result.n_iter.dtype == result.status.dtype == np.int32


def test_the_steps_compose_in_a_users_own_jitted_loop(start, x, name, dtype):
    @jax.jit
    def own(params):
        def body(_, p):
            resp, _ = jaxgmm.e_step(p, x)
            return jaxgmm.m_step(resp, x, covariance_type=name)

        return jax.lax.fori_loop(0, 3, body, params)

    expected = jaxgmm.fit(start, x, max_iter=3, tol=0.0, accelerate=False)
    same(own(start), expected.params, tolerance(dtype, 200))


def test_data_that_a_users_jit_closes_over_are_checked_and_fit(x, dtype):
    """Such data are concrete although a trace is under way."""
    name = "full"
    start = start_from(X, LABELS, name, dtype)
    w = jnp.ones(N, dtype)
    data = jnp.asarray(x)

    @jax.jit
    def inside(scale):
        result = jaxgmm.fit(start, data, w, max_iter=2, tol=0.0)
        resp, _ = jaxgmm.e_step(start, data)
        params = jaxgmm.m_step(resp, data, covariance_type=name, sample_weight=w)
        return result.log_likelihood * scale, params.means

    negative = -w
    expected = jaxgmm.fit(start, data, w, max_iter=2, tol=0.0).log_likelihood
    np.testing.assert_allclose(inside(jnp.ones((), dtype))[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="sample_weight must not be negative"):
        jax.jit(lambda s: jaxgmm.fit(start, data, negative).log_likelihood * s)(jnp.ones((), dtype))


# The iteration in a loop of one's own


def test_steps_of_ones_own_are_those_of_a_fit(start, x, name, dtype):
    prior = jaxgmm.default_prior(x, start.n_components, name) if dtype == np.float32 else None
    expected = jaxgmm.fit(start, x, prior=prior, options=EMOptions(kernel="whitened"))
    state = jaxgmm.em.init(start, x, prior=prior)
    same(state.params, start, tolerance(dtype))
    for _ in range(int(expected.n_iter) + 1):
        assert state.iteration.status == RUNNING
        state, info = jaxgmm.em.step(state, x)
    assert info.status == expected.status
    assert info.n_iter == expected.n_iter
    same(state.params, expected.params, tolerance(dtype, 100))
    again, _ = jaxgmm.em.step(state, x)  # the iteration has ended
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_the_first_step_is_an_em_step_and_plain_ones_never_fall_in_scan_and_vmap():
    dtype = np.float32
    X, labels = overlapping(N, D, K)
    X = X + 20  # far enough from 0 for the data to be centred
    x, w = X.astype(dtype), np.random.default_rng(0).uniform(0.5, 1.5, N).astype(dtype)
    start = start_from(X, labels, "diag", dtype)
    state, info = jaxgmm.em.step(jaxgmm.em.init(start, x, w), x, w)
    expected, moments = jaxgmm.em_step(start, x, w)
    same(state.params, expected, tolerance(dtype))
    np.testing.assert_allclose(info.log_likelihood, moments.log_likelihood / moments.total_weight, rtol=1e-5)

    begin = jaxgmm.em.init(start, x)
    several = jax.tree.map(lambda a: jnp.stack([a, a]), begin)

    def run(state, accelerate):
        step = functools.partial(jaxgmm.em.step, X=x, tol=0.0, accelerate=accelerate)
        return jax.lax.scan(lambda s, _: step(s), state, length=8)

    states, infos = jax.jit(jax.vmap(run, in_axes=(0, None)))(several, jnp.asarray(False))
    for i in range(2):
        one, params = (jax.tree.map(lambda a, i=i: a[i], tree) for tree in (states, states.params))
        jax.tree.map(np.testing.assert_array_equal, params, one.params)
    climbs = np.asarray(infos.log_likelihood, float)
    np.testing.assert_array_equal(climbs[0], climbs[1])
    assert (np.diff(climbs[0]) >= -64 * np.finfo(dtype).eps * abs(climbs[0, 0])).all()
    assert infos.n_iter[0].tolist() == list(range(1, 9))
    assert not infos.accelerated.any()


def test_a_step_refuses_what_is_no_state_and_other_data():
    X, labels = overlapping(N, D, K)
    x, start = X.astype(np.float32), start_from(X, labels, "diag", np.float32)
    state = jaxgmm.em.init(start, x)
    with pytest.raises(TypeError, match=r"state must be what jaxgmm\.em\.init gives"):
        jaxgmm.em.step(start, x)
    with pytest.raises(ValueError, match="features of params"):
        jaxgmm.em.step(state, x[:, :-1])
