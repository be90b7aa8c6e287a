"""The iteration on maps that know nothing of mixtures."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.solvers import squarem
from jaxgmm.solvers.implicit import Chart, Evaluation
from jaxgmm.solvers.squarem import Status
from tests.quick import quick_jit

# x -> target + rates (x − target), which climbs −½ (x − target)ᵀ(1 − rates)(x − target).
USUAL = {
    "rates": [0.9, 0.5, 0.1],
    "target": [1.0, -2.0, 0.5],
    "nan_above": np.inf,  # of x_0, from where on the objective is NaN
    "invalid_above": np.inf,  # of the image's x_0, from where on it is outside the domain
    "sign": 1.0,  # of the objective
    "astray": 0.0,  # what an extrapolation is moved by
}


def evaluate(x, data):
    image = data["target"] + data["rates"] * (x - data["target"])
    objective = -0.5 * ((1 - data["rates"]) * (x - data["target"]) ** 2).sum() * data["sign"]
    objective = jnp.where(x[0] > data["nan_above"], jnp.nan, objective)
    eps = jnp.finfo(x.dtype).eps
    return Evaluation(
        image=image,
        objective=objective,
        report=objective,
        step=jnp.linalg.norm(image - x),
        noise=4 * eps * jnp.abs(data["target"]).max(),
        slack=10 * eps,
        valid=image[0] < data["invalid_above"],
    )


def run(x, data, tol, max_iter, accelerate, *, with_chart, history_size):
    chart = Chart(
        to=lambda reference, p: p - reference, back=lambda reference, c: reference + c + data["astray"]
    )
    return squarem.solve(
        evaluate, x, data, chart=chart if with_chart else None, tol=tol, max_iter=max_iter,
        accelerate=accelerate, history_size=history_size,
    )  # fmt: skip


program = quick_jit(run, static_argnames=("with_chart", "history_size"))


def solve(dtype=np.float32, start=(0.0, 0.0, 0.0), *, tol=1e-5, max_iter=5000, accelerate=True, **changes):
    static = {"with_chart": changes.pop("with_chart", True), "history_size": changes.pop("history_size", 64)}
    data = {name: jnp.asarray(value, dtype) for name, value in (USUAL | changes).items()}
    numbers = jnp.asarray(tol, dtype), jnp.asarray(max_iter, jnp.int32), jnp.asarray(accelerate)
    return program(jnp.asarray(start, dtype), data, *numbers, **static)


def test_it_finds_the_fixed_point_and_says_so_with_a_history_that_climbs(dtype):
    for accelerate in (False, True):
        s = solve(dtype, accelerate=accelerate)
        assert s.status == Status.CONVERGED
        np.testing.assert_allclose(s.point, USUAL["target"], atol=2e-5)
        n, history = min(int(s.n_iter), 64), np.asarray(s.history)
        assert np.isfinite(history[:n]).all()
        assert (history[n:] == -np.inf).all()
        assert (np.diff(history[:n]) >= -10 * np.finfo(dtype).eps).all()
        if s.n_iter <= 64:
            assert history[n - 1] == s.report


def test_tol_bounds_the_distance_and_not_the_step(double):
    # A slow mode at rate 0.99: when the step is 1e-4, a hundred times that is still to go.
    s = solve(double, rates=[0.99, 0, 0], target=[1, 0, 0], tol=1e-4, accelerate=False)
    assert s.status == Status.CONVERGED
    assert abs(float(s.point[0]) - 1) < 1.2e-4


def test_acceleration_saves_most_steps_of_a_slow_map(double):
    slow = {"rates": [0.999, 0.7, 0.2], "target": [1, -1, 3]}
    plain, quick = solve(double, **slow, accelerate=False, max_iter=50_000), solve(double, **slow)
    assert plain.status == quick.status == Status.CONVERGED
    np.testing.assert_allclose(plain.point, [1, -1, 3], atol=2e-5)
    # Extrapolation leaves the slowest mode hidden behind the others, so that its estimate is rougher.
    np.testing.assert_allclose(quick.point, [1, -1, 3], atol=1e-3)
    assert int(quick.n_iter) * 10 < int(plain.n_iter)


def test_max_iter_counts_applications_of_the_map_and_tol_zero_goes_on_to_it():
    for n in (0, 1, 5):
        s = solve(rates=[0.5, 0, 0], target=[1, 0, 0], tol=0, max_iter=n, accelerate=False)
        assert (s.status, s.n_iter) == (Status.MAX_ITER, n)
        np.testing.assert_allclose(s.point[0], 1 - 0.5**n, rtol=1e-6)
    s = solve(rates=[0.1, 0, 0], target=[1, 0, 0], tol=0, max_iter=200)
    assert (s.status, s.n_iter) == (Status.MAX_ITER, 200)


def test_a_short_history_keeps_its_first_entries():
    long, short = solve(accelerate=False), solve(accelerate=False, history_size=3)
    np.testing.assert_array_equal(short.history, long.history[:3])
    assert short.n_iter == long.n_iter


def test_nan_a_fall_and_the_end_of_the_domain_are_statuses_and_keep_the_last_good_point():
    one = {"rates": [0.5, 0, 0], "target": [1, 0, 0]}
    s = solve(**one, nan_above=0.7, accelerate=False)
    assert s.status == Status.NONFINITE
    assert np.isfinite(s.point).all()
    assert s.point[0] <= 0.7
    s = solve(**one, start=(0.25, 0, 0), nan_above=-np.inf)
    assert (s.status, s.point[0]) == (Status.NONFINITE, 0.25)
    assert np.isnan(s.report)
    s = solve(**one, sign=-1.0, accelerate=False)
    assert (s.status, s.point[0]) == (Status.DECREASED, 0)
    s = solve(**one, invalid_above=0.8, accelerate=False)
    assert (s.status, s.point[0]) == (Status.DEGENERATE, 0.75)


def test_a_trial_that_is_worse_or_outside_the_domain_is_only_rejected(double):
    slow = {"rates": [0.8, 0, 0], "target": [1, 0, 0]}
    plain = solve(double, **slow, accelerate=False)
    for astray in (100.0, np.nan):
        s = solve(double, **slow, astray=astray)
        assert s.status == Status.CONVERGED
        np.testing.assert_allclose(s.point, plain.point)
        assert int(s.n_iter) <= 2 * int(plain.n_iter) + 2


def test_without_a_chart_it_is_the_plain_iteration():
    a, b = solve(with_chart=False), solve(accelerate=False)
    assert a.n_iter == b.n_iter
    np.testing.assert_array_equal(a.point, b.point)


def test_rounding_stops_it_where_tol_cannot_be_reached():
    # In float32 near 1e3 a step cannot be made shorter than 1e-4.
    s = solve(rates=[0.9, 0, 0], target=[1e3, 0, 0], tol=1e-7)
    assert s.status == Status.CONVERGED
    assert abs(float(s.point[0]) - 1e3) < 2e-2


def test_lanes_under_vmap_do_not_touch_each_other(double):
    def lane(rate):
        data = {name: jnp.asarray(value, float) for name, value in USUAL.items()}
        data["rates"] = data["rates"].at[0].set(rate)
        numbers = jnp.asarray(1e-6), jnp.asarray(5000, jnp.int32), jnp.asarray(False)
        return run(jnp.zeros(3), data, *numbers, with_chart=True, history_size=64)

    together = quick_jit(jax.vmap(lane))(jnp.array([0.5, 0.99, jnp.nan]))
    assert together.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NONFINITE]
    for i, rate in enumerate((0.5, 0.99)):
        alone = solve(double, rates=[rate, 0.5, 0.1], tol=1e-6, accelerate=False)
        assert alone.n_iter == together.n_iter[i]
        np.testing.assert_allclose(alone.point, together.point[i], rtol=1e-12)


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

    @quick_jit
    def derivatives(t):
        return solution(t), jax.jacfwd(solution)(t), jax.hessian(lambda t: solution(t).sum())(t)

    x, first, second = map(np.asarray, derivatives(np.array([0.4, 1.1])))
    slope = rate / (1 - rate**2 * np.cos(x))
    np.testing.assert_allclose(first, np.diag(slope), rtol=1e-9, atol=1e-12)
    expected = -(slope**3) * rate * np.sin(x)
    np.testing.assert_allclose(second, np.diag(expected), rtol=1e-8, atol=1e-10)
