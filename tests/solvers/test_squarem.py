"""The iteration on maps that know nothing of mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgmm.solvers import squarem
from jaxgmm.solvers.implicit import Chart, Evaluation
from jaxgmm.solvers.squarem import Status

CHART = Chart(to=lambda reference, x: x - reference, back=lambda reference, c: reference + c)


def linear(rates, target, **changes):
    """x -> target + rates (x − target): climbs −½ (x − target)ᵀ(1 − rates)(x − target)."""
    rates, target = jnp.asarray(rates), jnp.asarray(target)
    eps = jnp.finfo(target.dtype).eps

    def evaluate(x):
        image = target + rates * (x - target)
        objective = -0.5 * ((1 - rates) * (x - target) ** 2).sum()
        parts = {
            "image": image,
            "objective": objective,
            "report": objective,
            "step": jnp.linalg.norm(image - x),
            "noise": 4 * eps * jnp.abs(target).max(),
            "slack": 10 * eps,
            "valid": jnp.asarray(True),
        }
        parts.update({k: f(x, parts) for k, f in changes.items()})
        return Evaluation(**parts)

    return evaluate


def solve(evaluate, start, dtype, *, tol=1e-5, max_iter=5000, accelerate=True, chart=CHART, history_size=64):
    return jax.jit(
        lambda s, t, m, a: squarem.solve(
            lambda p, _: evaluate(p),
            s,
            None,
            chart=chart,
            tol=t,
            max_iter=m,
            accelerate=a,
            history_size=history_size,
        )
    )(
        jnp.asarray(start, dtype),
        jnp.asarray(tol, dtype),
        jnp.asarray(max_iter, jnp.int32),
        jnp.asarray(accelerate),
    )


@pytest.mark.parametrize("accelerate", [False, True])
def test_finds_the_fixed_point_and_says_so(dtype, accelerate):
    target = np.array([1.0, -2.0, 0.5], dtype)
    evaluate = linear(np.array([0.9, 0.5, 0.1], dtype), target)
    s = solve(evaluate, np.zeros(3), dtype, accelerate=accelerate)
    assert s.status == Status.CONVERGED
    np.testing.assert_allclose(s.point, target, atol=2e-5)
    assert s.report == evaluate(s.point).report


def test_tol_bounds_the_distance_and_not_the_step(double):
    # One slow mode at rate 0.99: when the step is 1e-4, a hundred times that is still to go.
    s = solve(linear(np.array([0.99]), np.array([1.0])), [0.0], double, tol=1e-4, accelerate=False)
    assert s.status == Status.CONVERGED
    assert abs(float(s.point[0]) - 1) < 1.2e-4


def test_acceleration_saves_most_steps_of_a_slow_map(double):
    evaluate = linear(np.array([0.999, 0.7, 0.2]), np.array([1.0, -1.0, 3.0]))
    plain = solve(evaluate, np.zeros(3), double, accelerate=False, max_iter=50_000)
    quick = solve(evaluate, np.zeros(3), double)
    assert plain.status == quick.status == Status.CONVERGED
    np.testing.assert_allclose(plain.point, [1, -1, 3], atol=2e-5)
    # Extrapolation leaves the slowest mode hidden behind the others, so that its estimate is rougher.
    np.testing.assert_allclose(quick.point, [1, -1, 3], atol=1e-3)
    assert int(quick.n_iter) * 10 < int(plain.n_iter)


def test_max_iter_counts_applications_of_the_map(dtype):
    target = np.array([1.0], dtype)
    for n in (0, 1, 5):
        s = solve(linear(np.array([0.5], dtype), target), [0.0], dtype, tol=0, max_iter=n, accelerate=False)
        assert s.status == Status.MAX_ITER
        assert s.n_iter == n
        np.testing.assert_allclose(s.point, 1 - 0.5**n, rtol=1e-6)


def test_tol_zero_goes_on_to_max_iter(dtype):
    s = solve(linear(np.array([0.1], dtype), np.array([1.0], dtype)), [0.0], dtype, tol=0, max_iter=200)
    assert s.status == Status.MAX_ITER
    assert s.n_iter == 200


@pytest.mark.parametrize("accelerate", [False, True])
def test_history_is_monotone_ends_at_the_report_and_is_minus_infinity_after(dtype, accelerate):
    s = solve(
        linear(np.array([0.9, 0.3], dtype), np.ones(2, dtype)), np.zeros(2), dtype, accelerate=accelerate
    )
    n = min(int(s.n_iter), 64)
    history = np.asarray(s.history)
    assert np.isfinite(history[:n]).all()
    assert (history[n:] == -np.inf).all()
    assert (np.diff(history[:n]) >= -10 * np.finfo(dtype).eps).all()
    if s.n_iter <= 64:
        assert history[n - 1] == s.report


def test_a_short_history_keeps_its_first_entries(double):
    evaluate = linear(np.array([0.9]), np.array([1.0]))
    long = solve(evaluate, [0.0], double, accelerate=False)
    short = solve(evaluate, [0.0], double, accelerate=False, history_size=3)
    np.testing.assert_array_equal(short.history, long.history[:3])
    assert short.n_iter == long.n_iter


def test_a_nan_objective_is_not_convergence(dtype):
    evaluate = linear(
        np.array([0.5], dtype),
        np.array([1.0], dtype),
        objective=lambda x, p: jnp.where(x[0] > 0.7, jnp.nan, p["objective"]),
    )
    s = solve(evaluate, [0.0], dtype, accelerate=False)
    assert s.status == Status.NONFINITE
    assert np.isfinite(s.point).all()
    assert s.point[0] <= 0.7


def test_nan_from_the_start_returns_the_start(dtype):
    evaluate = linear(np.array([0.5], dtype), np.array([1.0], dtype), objective=lambda x, p: x[0] * jnp.nan)
    s = solve(evaluate, [0.25], dtype)
    assert s.status == Status.NONFINITE
    assert s.point[0] == 0.25
    assert np.isnan(s.report)


def test_a_falling_objective_is_reported(dtype):
    evaluate = linear(np.array([0.5], dtype), np.array([1.0], dtype), objective=lambda x, p: -p["objective"])
    s = solve(evaluate, [0.0], dtype, accelerate=False)
    assert s.status == Status.DECREASED
    assert s.point[0] == 0


def test_leaving_the_domain_keeps_the_last_point_inside(dtype):
    evaluate = linear(np.array([0.5], dtype), np.array([1.0], dtype), valid=lambda x, p: p["image"][0] < 0.8)
    s = solve(evaluate, [0.0], dtype, accelerate=False)
    assert s.status == Status.DEGENERATE
    assert s.point[0] == 0.75


def test_a_trial_outside_the_domain_is_only_rejected(dtype):
    nowhere = Chart(to=CHART.to, back=lambda reference, c: jnp.full_like(reference, jnp.nan))
    evaluate = linear(np.array([0.8], dtype), np.array([1.0], dtype))
    s = solve(evaluate, [0.0], dtype, chart=nowhere)
    plain = solve(evaluate, [0.0], dtype, accelerate=False)
    assert s.status == Status.CONVERGED
    assert s.n_iter == plain.n_iter


def test_a_worse_trial_costs_one_step_and_changes_nothing(double):
    # Extrapolations that always land far away: every one is rejected, and the plain steps go on.
    astray = Chart(to=CHART.to, back=lambda reference, c: reference + 100.0)
    evaluate = linear(np.array([0.8]), np.array([1.0]))
    s = solve(evaluate, [0.0], double, chart=astray)
    plain = solve(evaluate, [0.0], double, accelerate=False)
    np.testing.assert_allclose(s.point, plain.point)
    assert int(s.n_iter) <= 2 * int(plain.n_iter) + 2


def test_without_a_chart_it_is_the_plain_iteration(dtype):
    evaluate = linear(np.array([0.8], dtype), np.array([1.0], dtype))
    a, b = solve(evaluate, [0.0], dtype, chart=None), solve(evaluate, [0.0], dtype, accelerate=False)
    assert a.n_iter == b.n_iter
    np.testing.assert_array_equal(a.point, b.point)


def test_rounding_stops_it_where_tol_cannot_be_reached():
    # In float32 near 1e3 a step cannot be made shorter than 1e-4.
    evaluate = linear(np.array([0.9], np.float32), np.array([1e3], np.float32))
    s = solve(evaluate, [0.0], np.dtype("float32"), tol=1e-7)
    assert s.status == Status.CONVERGED
    assert abs(float(s.point[0]) - 1e3) < 2e-2


def test_lanes_under_vmap_do_not_touch_each_other(double):
    def lane(rate, start):
        evaluate = linear(jnp.stack([rate, jnp.asarray(0.3)]), np.ones(2))
        return squarem.solve(
            lambda p, _: evaluate(p), start, None, chart=CHART, tol=jnp.asarray(1e-6),
            max_iter=jnp.asarray(500, jnp.int32), accelerate=jnp.asarray(True), history_size=8,
        )  # fmt: skip

    rates = jnp.array([0.5, 0.99, jnp.nan])
    starts = jnp.zeros((3, 2))
    together = jax.vmap(lane)(rates, starts)
    assert together.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NONFINITE]
    for i in range(2):
        alone = lane(rates[i], starts[i])
        assert alone.n_iter == together.n_iter[i]
        np.testing.assert_allclose(alone.point, together.point[i], rtol=1e-12)


@pytest.mark.slow
def test_the_derivative_is_the_implicit_functions(double):
    """x = r t + r² sin(x): dx/dt = r / (1 − r² cos x), in both modes and twice."""
    rate = 0.9

    def solution(t):
        def evaluate(x, t):
            image = rate * t + rate**2 * jnp.sin(x)
            gap = jnp.abs(image - x).max()
            zero, one = jnp.zeros(()), jnp.ones(())
            return Evaluation(image, -gap, image.sum(), gap, zero, slack=one, valid=jnp.asarray(True))

        tol, limit = jnp.asarray(1e-14), jnp.asarray(5000, jnp.int32)
        s = squarem.solve(
            evaluate, jnp.zeros(2), t, chart=None, tol=tol, max_iter=limit,
            accelerate=jnp.asarray(False), history_size=1,
        )  # fmt: skip
        return s.point

    t = jnp.array([0.4, 1.1])
    x = solution(t)
    slope = rate / (1 - rate**2 * jnp.cos(x))
    np.testing.assert_allclose(jax.jacfwd(solution)(t), jnp.diag(slope), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.jacrev(solution)(t), jnp.diag(slope), rtol=1e-9, atol=1e-12)
    second = -(slope**3) * rate * jnp.sin(x)
    got = jax.hessian(lambda t: solution(t).sum())(t)
    np.testing.assert_allclose(got, jnp.diag(second), rtol=1e-8, atol=1e-10)
