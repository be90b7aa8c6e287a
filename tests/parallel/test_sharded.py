"""A fit whose rows are divided among devices is the fit of all of them."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.parallel import _sharded as sharded
from tests.conftest import NAMES, costly, overlapping, start_from

PROGRAM = """
import functools, json, sys
import jaxgmm
jaxgmm.parallel.use_cores(4)
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jaxgmm.parallel import _sharded as sharded
from tests.conftest import overlapping, start_from

X, labels = overlapping(301, 3, 3, seed=2)
rng = np.random.default_rng(0)
w = rng.uniform(0.5, 2, size=301)
w[5] = 0.0
mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("rows",))
gaps = {}
for name, kernel in (("full", "whitened"), ("full", "quadratic"), ("diag", "auto"), ("VEV", "whitened")):
    start = start_from(X, labels, name, np.float64)
    prior = jaxgmm.default_prior(X, 3, covariance_type=name) if name == "full" else None
    options = {"tol": 0.0, "max_iter": 25, "prior": prior, "options": jaxgmm.EMOptions(kernel=kernel)}
    one = jaxgmm.fit(start, X, w, **options)
    many = jaxgmm.fit_sharded(start, X, w, mesh=mesh, **options)
    assert int(one.n_iter) == int(many.n_iter) == 25
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (one, many)), strict=True)]
    apart = [np.abs(a - b) / (1 + np.abs(a)) for a, b in pairs]
    gaps[name + kernel] = max(float(np.nanmax(a)) for a in apart)

# What the compiled loop sends: sums of moments, and never rows.
start = start_from(X, labels, "full", np.float64)
x, weight = sharded.divide(jnp.asarray(X), None, mesh, "rows")
numbers = (jnp.asarray(0.0), jnp.asarray(9, jnp.int32), jnp.asarray(1e-6), jnp.asarray(True))
program = sharded.fit_parts._part.lower(
    start, x, weight, numbers, None, mesh=mesh, axis_name="rows", block_size=64, history_size=0,
    unconverged="nan", kernel="whitened",
).compile().as_text()
sums = [line for line in program.splitlines() if " all-reduce(" in line and "while/body" in line]
sent = {word: program.count(word + "(") for word in ("all-gather", "all-to-all", "collective-permute")}

# Three starts over two columns of devices, the rows over two: every start ends where it ends alone.
starts = [start_from(X, np.roll(labels, i), "diag", np.float64) for i in (0, 1, 100)]
several = jax.tree.map(lambda *a: jnp.stack(a), *starts)
square = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("restarts", "rows"))
whitened = jaxgmm.EMOptions(kernel="whitened")
options = {"mesh": square, "axis_name": "rows", "restarts_axis": "restarts", "options": whitened}
lanes = jaxgmm.fit_sharded(several, X, w, tol=1e-6, **options)
alone = [jaxgmm.fit(s, X, w, tol=1e-6, options=jaxgmm.EMOptions(kernel="whitened")) for s in starts]
restarts = {
    "shape": lanes.params.means.shape,
    "steps": [int(a.n_iter) for a in alone],
    "same steps": [int(i) for i in lanes.n_iter],
    "gap": max(float(jnp.abs(lanes.params.means[i] - a.params.means).max()) for i, a in enumerate(alone)),
}

# All four, in float32.
four = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
narrow = [a.astype(np.float32) for a in (X, w)]
start = start_from(X, labels, "diag", np.float32)
pair = (
    jaxgmm.fit_sharded(start, *narrow, mesh=four, tol=0.0, max_iter=25, options=whitened),
    jaxgmm.fit(start, *narrow, tol=0.0, max_iter=25, options=whitened),
)
pairs = zip(*(jax.tree.leaves(p.params) for p in pair), strict=True)
narrow = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)

# Its derivatives are those of the fit.
def far(w, x, fit):
    return (jnp.square(fit(start, x, w, tol=1e-11).params.means) * jnp.arange(9.0).reshape(3, 3)).sum()
many = functools.partial(jaxgmm.fit_sharded, mesh=mesh, options=jaxgmm.EMOptions(kernel="whitened"))
one = functools.partial(jaxgmm.fit, options=jaxgmm.EMOptions(kernel="whitened"))
start, x, w = start_from(X, labels, "diag", np.float64), jnp.asarray(X), jnp.asarray(w)
pairs = zip(jax.grad(far, (0, 1))(w, x, many), jax.grad(far, (0, 1))(w, x, one), strict=True)
slopes = [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs]

# A large fit divides itself.
sharded._PAYS = 1
start = start_from(X, labels, "full", np.float64)
divided = jaxgmm.fit(start, X, tol=0.0, max_iter=25)
alone = jaxgmm.fit_sharded(
    start, X, mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",)),
    tol=0.0, max_iter=25,
)
print(json.dumps({
    "gaps": gaps, "sent": sent, "devices": len(jax.devices()),
    "on": len(divided.params.means.sharding.device_set),
    "divided": float(np.abs(np.asarray(divided.params.means) - np.asarray(alone.params.means)).max()),
    "sums": len(sums), "restarts": restarts, "slopes": slopes, "narrow": narrow,
}))
"""


@pytest.fixture(scope="module")
def devices():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_over_devices_it_is_the_same_fit(devices):
    assert devices["devices"] == 4
    for what, gap in devices["gaps"].items():
        assert gap < 1e-12, what
    assert devices["narrow"] < 1e-5


@pytest.mark.slow
def test_no_rows_are_sent_and_the_moments_at_once(devices):
    assert set(devices["sent"].values()) == {0}
    assert devices["sums"] == 1


@pytest.mark.slow
def test_several_starts_are_divided_over_a_second_axis(devices):
    found = devices["restarts"]
    assert found["shape"] == [3, 3, 3]
    assert len(set(found["steps"])) > 1  # lanes that end at different times
    assert found["same steps"] == found["steps"]
    assert found["gap"] < 1e-9


@pytest.mark.slow
def test_its_derivatives_are_those_of_the_fit(devices):
    assert max(devices["slopes"]) < 1e-6


@pytest.mark.slow
def test_a_large_fit_divides_itself_among_the_cores_that_jax_shows(devices):
    assert devices["divided"] < 1e-10
    assert devices["on"] == 1


@pytest.mark.parametrize("name", [costly(n, quick=["full"]) for n in NAMES])
def test_em_step_over_a_mapped_axis_is_that_of_all_rows(double, name):
    X, labels = overlapping(120, 2, 3)
    params = start_from(X, labels, name, np.float64)
    w = np.random.default_rng(0).uniform(0.5, 2, size=120)
    whole, moments = jaxgmm.em_step(params, X, w)
    step = functools.partial(jaxgmm.em_step, axis_name="rows")
    parts, sums = jax.vmap(step, in_axes=(None, 0, 0), axis_name="rows")(
        params, jnp.asarray(X).reshape(4, 30, 2), jnp.asarray(w).reshape(4, 30)
    )
    for i in range(4):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(b[i], a, rtol=1e-9, atol=1e-11), whole, parts
        )
    np.testing.assert_allclose(sums.log_likelihood, moments.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("n", [5, 7, 12])
def test_every_row_counts_once_however_few_there_are(n):
    x, rows = np.arange(2.0 * n).reshape(n, 2), -(-n // 4)
    total = np.zeros(2)
    for part in range(4):
        start, weight = sharded.part_of(part * rows, rows, np.ones(n))
        total += weight @ x[start : start + rows]
    np.testing.assert_array_equal(total, x.sum(0))


def test_arguments_that_do_not_fit_say_so():
    X, labels = overlapping(40, 2, 3)
    params = start_from(X, labels, "full", np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    with pytest.raises(ValueError, match=r"axis_name 'columns' is not an axis of the mesh.*\['rows'\]"):
        jaxgmm.fit_sharded(params, X, mesh=mesh, axis_name="columns")
    with pytest.raises(ValueError, match=r"restarts_axis must be an axis of the mesh.*got 'rows'"):
        jaxgmm.fit_sharded(params, X, mesh=mesh, restarts_axis="rows")
    square = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("rows", "restarts"))
    with pytest.raises(ValueError, match="is for several starts"):
        jaxgmm.fit_sharded(params, X, mesh=square, restarts_axis="restarts")
    torn = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    with pytest.raises(ValueError, match="share a leading axis"):
        jaxgmm.fit_sharded(dataclasses.replace(torn, log_weights=torn.log_weights[0]), X, mesh=mesh)
    with pytest.raises(ValueError, match="n_cores"):
        jaxgmm.parallel.use_cores(0)
    if jax.local_device_count("cpu") != 64:
        with pytest.raises(RuntimeError, match="comes too late"):
            jaxgmm.parallel.use_cores(64)
    assert jaxgmm.parallel.use_cores(jax.local_device_count("cpu")) == jax.local_device_count("cpu")
    assert sharded.over_cores(params, jnp.asarray(X), None) is None


MANY_FEATURES = """
import jaxgmm
jaxgmm.parallel.use_cores(2)
import jax, jax.numpy as jnp, numpy as np

rng = np.random.default_rng(0)
n, d, k = 4000, 48, 32
labels = rng.integers(k, size=n)
X = jnp.asarray(rng.normal(size=(n, d)) + 3 * rng.normal(size=(k, d))[labels], jnp.float32)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
for name in ("full", "VEV"):
    start = jaxgmm.m_step(jax.nn.one_hot(labels, k), X, covariance_type=name, reg_covar=0.1)
    found = jaxgmm.fit_sharded(start, X, mesh=mesh, max_iter=20, tol=0.0, reg_covar=0.1)
    assert np.isfinite(found.log_likelihood), found
"""


@pytest.mark.slow
def test_devices_that_share_threads_do_not_wait_for_each_other():
    """Factors of many larger matrices, which LAPACK would divide among the threads that wait for it."""
    subprocess.run([sys.executable, "-c", MANY_FEATURES], timeout=200, check=True, capture_output=True)
