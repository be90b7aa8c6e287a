"""Derivatives of a fit, against finite differences of complete refits."""

import dataclasses
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status, loop
from jaxgmm.solvers import implicit
from tests.conftest import NAMES, overlapping, start_from

X, LABELS = overlapping(120, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, size=len(X))
TIGHT = {"tol": 1e-13, "max_iter": 5000}


def summary(result):
    """One number that every part of the result has a say in."""
    p = result.params
    return jnp.sin(p.means).sum() + p.weights[0] + jnp.log1p(p.covariances**2).sum() + result.log_likelihood


def total(start, x, w, reg):
    return summary(jaxgmm.fit(start, x, w, reg_covar=reg, **TIGHT))


def arguments():
    return jnp.asarray(X), jnp.asarray(WEIGHTS), jnp.asarray(1e-3)


def directions():
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.normal(size=X.shape)), jnp.asarray(rng.normal(size=len(X))), jnp.asarray(1.0)


def data_sets():
    """Name, X (120, 2) and a partition: of one shape, so that one program serves them all."""
    folder = pathlib.Path(__file__).parent.parent / "notebooks" / "data"
    iris = np.genfromtxt(folder / "iris.csv", delimiter=",", skip_header=1, usecols=(2, 3))[:120]
    faithful = np.genfromtxt(folder / "faithful.csv", delimiter=",", skip_header=1, usecols=(0, 1))[:120]
    yield "synthetic", X, LABELS
    yield "iris", iris, (iris[:, 0] > 2.5).astype(int)
    yield "faithful", faithful, (faithful[:, 0] > 3.0).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_tangents_agree_with_refits(name, double):
    function = jax.jit(total)
    differentiate = jax.jit(jax.grad(total, argnums=(1, 2, 3)))
    push = jax.jit(lambda start, at, along: jax.jvp(lambda *a: total(start, *a), at, along)[1])
    for which, data, labels in data_sets():
        start = start_from(data, labels, name, double)
        _, w, reg = arguments()
        at, along = (jnp.asarray(data), w, reg), directions()
        along = (along[0] * data.std(0)[None, :], *along[1:])
        gradients = differentiate(start, *at)
        slopes = [float((g * d).sum()) for g, d in zip(gradients, along, strict=True)]
        for i, h in enumerate((1e-5, 1e-5, 1e-6)):
            up, down = (function(start, *at[:i], at[i] + s * h * along[i], *at[i + 1 :]) for s in (1, -1))
            np.testing.assert_allclose(slopes[i], (up - down) / (2 * h), rtol=1e-6, err_msg=f"{which} {i}")
        np.testing.assert_allclose(push(start, at, along), sum(slopes), rtol=1e-10, err_msg=which)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_by_the_prior_agree_with_refits(name, double):
    def posterior(start, x, prior):
        return summary(jaxgmm.fit(start, x, jnp.asarray(WEIGHTS), prior=prior, **TIGHT))

    function = jax.jit(posterior)
    differentiate = jax.jit(jax.grad(posterior, argnums=2))
    for which, data, labels in data_sets():
        x = jnp.asarray(data)
        # Strong enough to be more than a ripple: by default the strength is 0.01.
        prior = jaxgmm.default_prior(x, 2, name, jnp.asarray(WEIGHTS), strength=2.0, dof=8.0)
        start = start_from(data, labels, name, double)
        slopes = differentiate(start, x, prior)
        for field, h in (("strength", 1e-4), ("dof", 1e-4), ("scale", 1e-5)):
            value = getattr(prior, field)
            up, down = (
                function(start, x, dataclasses.replace(prior, **{field: value * (1 + s * h)}))
                for s in (1, -1)
            )
            got = (getattr(slopes, field) * value).sum()
            np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=1e-6, err_msg=f"{which} {field}")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients_are_near_those_of_float64_for_every_structure(name, double):
    differentiate = jax.jit(jax.grad(total, argnums=(1, 2)))
    for which, data, labels in data_sets():
        gradients = []
        for kind in (np.float32, np.float64):
            at = (jnp.asarray(a, kind) for a in (data, WEIGHTS, 1e-3))
            gradients.append(differentiate(start_from(data, labels, name, kind), *at))
        for got, expected in zip(*gradients, strict=True):
            assert got.dtype == np.float32
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(np.asarray(got, float), expected, atol=1e-3 * scale, err_msg=which)


@pytest.mark.slow
def test_the_start_has_no_gradient(double):
    start = start_from(X, LABELS, "full", double)
    gradient = jax.grad(lambda p: total(p, *arguments()))(start)
    assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_second_derivatives(double):
    start = start_from(X, LABELS, "diag", double)
    x, w, _ = arguments()
    first = jax.jit(jax.grad(lambda r: total(start, x, w, r)))
    second = jax.jit(jax.grad(jax.grad(lambda r: total(start, x, w, r))))
    h = 1e-5
    numerical = (first(1e-2 + h) - first(1e-2 - h)) / (2 * h)
    np.testing.assert_allclose(second(1e-2), numerical, rtol=1e-5)


@pytest.mark.slow
def test_float32_gradients_are_near_those_of_float64(dtype):
    gradient = {}
    for kind in ("float32", "float64"):
        if kind == "float64" and dtype == np.float32:
            continue
        start = start_from(X, LABELS, "full", np.dtype(kind))
        x = jnp.asarray(X, kind)
        gradient[kind] = np.asarray(
            jax.grad(lambda x, s=start: jaxgmm.fit(s, x).params.means.sum())(x), float
        )
    if dtype == np.float64:
        scale = np.abs(gradient["float64"]).max()
        np.testing.assert_allclose(gradient["float32"] / scale, gradient["float64"] / scale, atol=1e-3)
    # Moving every sample by 1 moves every mean by 1.
    np.testing.assert_allclose(gradient["float32"].sum(0), 2, rtol=1e-3)


@pytest.mark.slow
def test_vmap_of_grad_is_the_loop_and_grad_of_vmap_its_sum(double):
    start = start_from(X, LABELS, "full", double)
    x, w, reg = arguments()
    batch = jnp.stack([x, x * 1.1 + 0.2])

    def value(x):
        return total(start, x, w, reg)

    together = jax.vmap(jax.grad(value))(batch)
    outside = jax.grad(lambda b: jax.vmap(value)(b).sum())(batch)
    for i in range(2):
        alone = jax.grad(value)(batch[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(outside[i], alone, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_through_restarts_best_jit_and_scan(double):
    key = jax.random.key(0)

    def winner(x):
        results = jaxgmm.fit_restarts(key, x, 2, n_init=3, tol=1e-10)
        return jaxgmm.best(results).params.means.sum()

    def descend(x, _):
        value, gradient = jax.value_and_grad(winner)(x)
        return x - 0.1 * gradient, value

    _, values = jax.jit(lambda x: jax.lax.scan(descend, x, length=3))(jnp.asarray(X))
    # The sum of the means falls by at most what a shift of all the data would make it fall.
    assert (np.diff(values) < 0).all()


@pytest.mark.slow
def test_switched_off_components_and_zero_weights_give_finite_gradients(double):
    start = start_from(X, LABELS, "full", double)
    padded = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), start)
    padded = dataclasses.replace(padded, log_weights=padded.log_weights.at[2].set(-jnp.inf))
    x, w, reg = arguments()

    def value(params):
        def of(x, w):
            p = jaxgmm.fit(params, x, w, reg_covar=reg, **TIGHT).params
            return jnp.sin(p.means[:2]).sum() + p.covariances[:2].sum()

        return of

    absent = w.at[3].set(0.0)
    for_x, for_w = jax.grad(value(start), argnums=(0, 1))(x, absent)
    assert np.isfinite(for_x).all()
    np.testing.assert_array_equal(for_x[3], 0)
    # The one-sided derivative at weight zero: what letting the sample in a little would do.
    h = 1e-6
    slope = (value(start)(x, absent.at[3].set(h)) - value(start)(x, absent)) / h
    np.testing.assert_allclose(for_w[3], slope, rtol=1e-4)
    off_x, off_w = jax.grad(value(padded), argnums=(0, 1))(x, absent)
    np.testing.assert_allclose(off_x, for_x, atol=1e-9)
    np.testing.assert_allclose(off_w, for_w, atol=1e-9)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("block_size", [50, 120])
def test_blocks_do_not_change_a_gradient(double, block_size):
    start = start_from(X, LABELS, "full", double)

    def value(x, rows):
        return jaxgmm.fit(start, x, options=EMOptions(block_size=rows), **TIGHT).params.means[0].sum()

    whole = jax.grad(value)(jnp.asarray(X), 120)
    parts = jax.grad(value)(jnp.asarray(X), block_size)
    np.testing.assert_allclose(parts, whole, rtol=1e-7, atol=1e-10)


def run(start, x, w, tol):
    """`fit` without its checks, which would refuse NaN, and without `jit`, which would remember a trace."""
    numbers = jnp.asarray(tol), jnp.asarray(500, jnp.int32), jnp.asarray(0.0), jnp.asarray(True)
    return loop.run(start, x, w, *numbers, block_size=len(X), history_size=0)


def test_nobody_pays_for_a_derivative_that_is_not_asked_for(double, monkeypatch):
    solves = []
    solver = implicit.krylov
    monkeypatch.setattr(implicit, "krylov", lambda *a: solves.append(None) or solver(*a))
    start = start_from(X, LABELS, "spherical", double)

    def value(x):
        return run(start, x, None, 1e-6).params.means.sum()

    jax.make_jaxpr(value)(jnp.asarray(X))
    assert not solves
    jax.make_jaxpr(jax.grad(value))(jnp.asarray(X))
    assert solves


@pytest.mark.slow
def test_an_unconverged_fit_has_no_gradient_and_spoils_no_other(double):
    start = start_from(X, LABELS, "spherical", double)
    x = jnp.asarray(X)

    def value(x, limits, pick, **options):
        results = jax.vmap(lambda m: jaxgmm.fit(start, x, max_iter=m, **options))(limits)
        return results.params.means[pick].sum(), results.status

    limits = jnp.array([500, 1], jnp.int32)
    good, status = jax.grad(value, has_aux=True)(x, limits, 0)
    assert status.tolist() == [Status.CONVERGED, Status.MAX_ITER]
    np.testing.assert_allclose(good.sum(), 4)
    bad, _ = jax.grad(value, has_aux=True)(x, limits, 1)
    assert np.isnan(bad).all()
    tangent = jax.jvp(lambda x: value(x, limits, 1)[0], (x,), (jnp.ones_like(x),))[1]
    assert np.isnan(tangent)
    ignored = jax.grad(lambda x: value(x, limits, 1, options=EMOptions(unconverged_gradient="ignore"))[0])(x)
    assert np.isfinite(ignored).all()


def late(function, *arguments):
    """Call, and wait for what the program has to say."""
    jax.block_until_ready(function(*arguments))
    jax.effects_barrier()


@pytest.mark.slow
def test_a_warning_instead(double):
    start = start_from(X, LABELS, "spherical", double)

    def value(x, limit):
        return jaxgmm.fit(
            start, x, max_iter=limit, options=EMOptions(unconverged_gradient="warn")
        ).params.means.sum()

    gradient = jax.jit(jax.grad(value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late(gradient, jnp.asarray(X), jnp.asarray(500, jnp.int32))
    with pytest.warns(RuntimeWarning, match="has not converged was differentiated"):
        late(gradient, jnp.asarray(X), jnp.asarray(1, jnp.int32))
    with pytest.raises(ValueError, match="unconverged_gradient must be one of"):
        jaxgmm.fit(start, X, options=EMOptions(unconverged_gradient="zero"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_loss_on_every_part_of_a_padded_fit_is_solved_like_any_other(double):
    """The switched-off rows of the Jacobian are the identity's, unless they are taken out of the system."""
    start = start_from(X, LABELS, "full", double)
    padded = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), start)
    padded = dataclasses.replace(padded, log_weights=padded.log_weights.at[2].set(-jnp.inf))

    def value(start, x):
        p = jaxgmm.fit(start, x, **TIGHT).params
        return jnp.sin(p.means).sum() + jnp.log1p(p.covariances**2).sum()

    x = jnp.asarray(X)
    got, expected = (jax.grad(value, 1)(p, x) for p in (padded, start))
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_row_that_holds_nan_and_does_not_count_has_no_gradient(double):
    start = start_from(X, LABELS, "diag", double)
    x = jnp.asarray(X)
    absent = jnp.asarray(WEIGHTS).at[3].set(0.0)

    def value(w, x):
        return run(start, x, w, 1e-10).params.means.sum()

    gradient = jax.jit(jax.grad(value, (0, 1)))
    for_w, for_x = gradient(absent, x.at[3].set(jnp.nan))
    clean, _ = gradient(absent, x)
    np.testing.assert_allclose(np.delete(for_w, 3), np.delete(clean, 3), rtol=1e-6, atol=1e-10)
    assert for_w[3] == 0
    assert (for_x[3] == 0).all()
