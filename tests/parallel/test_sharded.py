"""A fit whose rows are divided among devices is the fit of all of them."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.data import Data
from jaxgmm.parallel import _sharded as sharded
from tests.conftest import equations, x64
from tests.inference.optimum import natural
from tests.outofcore.streams import gap, start
from tests.outofcore.test_stream import PRIOR
from tests.parallel.children import Child
from tests.problems import WEIGHT, X


def four_devices(begin, out):
    """What a process with four devices finds, as JSON; 199 rows, of which one is there twice."""
    jaxgmm.parallel.use_cores(4)
    first = jaxgmm.load(begin)
    x, w = X[:-1], WEIGHT[:-1]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    result = {"devices": len(jax.devices())}

    def sharded_fit(w, start=first, **options):
        return jaxgmm.fit_sharded(start, x, w, mesh=mesh, prior=PRIOR, **options)

    result["steps"] = [
        a.tolist() for a in natural(sharded_fit(w, tol=0.0, max_iter=3, accelerate=False).params)
    ]

    trimmed = jaxgmm.fit_sharded(first, x, w, mesh=mesh, trim=0.1, tol=0.0, max_iter=3, accelerate=False)
    result["trimmed"] = [a.tolist() for a in natural(trimmed.params)]

    # Every row counts once, however few there are.
    result["sums"] = {}
    for n in (1, 5, 7, 12, 199):
        numbers = np.arange(3.0 * n).reshape(n, 3)  # their sums are exact
        divided = sharded.divide(Data(numbers), mesh, "rows")
        assert len(divided.x.addressable_shards) == 4
        traced = jax.jit(lambda x: sharded.divide(Data(x), mesh, "rows"))(numbers)
        jax.tree.map(np.testing.assert_array_equal, traced, divided)
        result["sums"][n] = (np.asarray(divided.weight) @ np.asarray(divided.x)).tolist()

    # A large fit divides itself.
    sharded._PAYS = 1
    divided = jaxgmm.fit(first, x, w, prior=PRIOR)
    whole = sharded_fit(w)
    result["divided"] = gap(divided, whole)
    result["on"] = len(divided.params.means.sharding.device_set)
    sharded._PAYS = 1 << 60

    # Three starts over two columns of devices, the rows over two: every start ends where it ends alone.
    starts = [dataclasses.replace(first, means=np.asarray(first.means) + by) for by in (0.0, 0.3, 1.0)]
    several = jax.tree.map(lambda *a: np.stack(a), *starts)
    square = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("restarts", "rows"))
    lanes = jaxgmm.fit_sharded(
        several, x, w, mesh=square, axis_name="rows", restarts_axis="restarts", prior=PRIOR
    )
    alone = [whole, *(sharded_fit(w, start) for start in starts[1:])]
    result["lanes"] = [gap(jax.tree.map(lambda a, i=i: np.asarray(a)[i], lanes), alone[i]) for i in range(3)]
    result["lane steps"] = [int(n) for n in lanes.n_iter]

    # Inside a shard_map each device has a fit of its own.
    if hasattr(jax, "shard_map"):
        spec = jax.sharding.PartitionSpec("restarts")

        def own(p):
            found = jaxgmm.fit(jax.tree.map(lambda a: a[0], p), jnp.asarray(X), max_iter=8, tol=0.0)
            return jax.tree.map(lambda a: a[None], found)

        two = jax.tree.map(lambda a: a[:2], several)
        found = jax.jit(jax.shard_map(own, mesh=square, in_specs=spec, out_specs=spec))(two)
        result["inside"] = [a[0].tolist() for a in natural(found.params)]
    pathlib.Path(out).write_text(json.dumps(result))


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """What a process with four devices has found."""
    folder = tmp_path_factory.mktemp("devices")
    with x64(True):
        jaxgmm.save(folder / "start.npz", start("float64"))
    child = Child(folder / "log", four_devices, str(folder / "start.npz"), str(folder / "found.json"))
    ended = child.end(250)
    assert ended.code == 0, ended.said[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_over_devices_it_takes_the_steps_of_em(double, devices):
    assert devices["devices"] == 4
    params, w = start("float64"), WEIGHT.copy()
    w[-1] = 0.0
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, w, prior=PRIOR)
    for a, b in zip(natural(params), devices["steps"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_over_devices_the_rows_of_lowest_density_are_those_of_all(double, devices):
    params, w = start("float64"), WEIGHT.copy()
    w[-1] = 0.0
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, w, trim=0.1)
    for a, b in zip(natural(params), devices["trimmed"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_it_has_derivatives_in_reverse_mode(double):
    """Traced only: the program takes 20 seconds to compile."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))

    def value(w, x):
        return jaxgmm.fit_sharded(start("float64"), x, w, mesh=mesh).log_likelihood

    slopes = jax.eval_shape(jax.grad(value, (0, 1)), jnp.asarray(WEIGHT), jnp.asarray(X))
    assert [a.shape for a in slopes] == [(200,), (200, 3)]


def test_a_large_fit_divides_itself_among_the_cores_that_jax_shows(devices):
    assert devices["divided"] < 1e-10
    assert devices["on"] == 1


def test_several_starts_are_divided_over_a_second_axis(devices):
    assert len(set(devices["lane steps"])) > 1  # lanes that end at different times
    assert max(devices["lanes"]) < 1e-9


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="JAX 0.5 cannot check a while_loop in shard_map")
def test_a_fit_inside_a_shard_map_is_that_of_its_device(double, devices):
    whole = jaxgmm.fit(start("float64"), X, max_iter=8, tol=0.0)
    for a, b in zip(natural(whole.params), devices["inside"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_a_step_sends_one_sum_of_moments_and_no_rows(double):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    program = jax.make_jaxpr(functools.partial(jaxgmm.fit_sharded, mesh=mesh))(start("float64"), X)
    names = [e.primitive.name for e in equations(program)]
    assert not {n for n in names if n.startswith(("all_gather", "all_to_all", "ppermute", "reduce_scatter"))}
    sums = []
    for loop in equations(program):
        if loop.primitive.name == "while":
            inside = list(equations(loop.params["body_jaxpr"]))
            sums.append(sum(e.primitive.name.startswith("psum") for e in inside))
    # The loop of EM steps, and the loops over blocks within it, which send nothing.
    assert max(sums) == 1


def test_em_step_over_a_mapped_axis_is_that_of_all_rows(double):
    whole, moments = jaxgmm.em_step(start("float64"), X, WEIGHT, prior=PRIOR)
    step = functools.partial(jaxgmm.em_step, axis_name="rows", prior=PRIOR)
    parts, sums = jax.vmap(step, in_axes=(None, 0, 0), axis_name="rows")(
        start("float64"), jnp.asarray(X).reshape(4, 50, 3), jnp.asarray(WEIGHT).reshape(4, 50)
    )
    for i in range(4):
        assert gap(whole, jax.tree.map(lambda a, i=i: a[i], parts)) < 1e-9
    np.testing.assert_allclose(sums.log_likelihood, moments.log_likelihood, rtol=1e-12)


def test_every_row_counts_once_however_few_there_are(devices):
    for n, total in devices["sums"].items():
        np.testing.assert_array_equal(total, np.arange(3.0 * int(n)).reshape(-1, 3).sum(0))


def test_arguments_that_do_not_fit_say_so():
    params, x = start(), X.astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    with pytest.raises(ValueError, match=r"axis_name 'columns' is not an axis of the mesh.*\['rows'\]"):
        jaxgmm.fit_sharded(params, x, mesh=mesh, axis_name="columns")
    with pytest.raises(ValueError, match=r"restarts_axis must be an axis of the mesh.*got 'rows'"):
        jaxgmm.fit_sharded(params, x, mesh=mesh, restarts_axis="rows")
    square = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("rows", "restarts"))
    with pytest.raises(ValueError, match="is for several starts"):
        jaxgmm.fit_sharded(params, x, mesh=square, restarts_axis="restarts")
    torn = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    with pytest.raises(ValueError, match="share a leading axis"):
        jaxgmm.fit_sharded(dataclasses.replace(torn, log_weights=torn.log_weights[0]), x, mesh=mesh)
    with pytest.raises(ValueError, match="n_cores"):
        jaxgmm.parallel.use_cores(0)
    if jax.local_device_count("cpu") != 64:
        with pytest.raises(RuntimeError, match="comes too late"):
            jaxgmm.parallel.use_cores(64)
    assert jaxgmm.parallel.use_cores(jax.local_device_count("cpu")) == jax.local_device_count("cpu")
    numbers = (jnp.float32(1e-5), jnp.int32(5), jnp.float32(1e-6), jnp.asarray(True))
    assert sharded._over_cores(params, Data(jnp.asarray(x)), numbers, None) is None  # too small
