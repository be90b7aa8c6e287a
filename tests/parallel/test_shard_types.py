"""Fits inside a `shard_map`, and of arrays whose type says how they are divided (explicit sharding)."""

import subprocess
import sys

import jax
import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
import optax
import jaxgmm
jaxgmm.parallel.use_cores(2)
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.conftest import overlapping, start_from

X, labels = overlapping(200, 2, 2, seed=2)
jax.config.update("jax_enable_x64", True)
start = start_from(X, labels, "full", np.float64)
STRUCTURES = {name: start_from(X, labels, name, np.float64) for name in ("VVE", "VEV", "factor(1)")}
CALLS = {
    "fit": lambda p, x: jaxgmm.fit(p, x, options=jaxgmm.EMOptions(kernel="whitened")),
    "quadratic": lambda p, x: jaxgmm.fit(p, x, options=jaxgmm.EMOptions(kernel="quadratic", block_size=16)),
    "auto": lambda p, x: jaxgmm.fit(p, x, x[:, 0] ** 2, options=jaxgmm.EMOptions(kernel="auto")),
    "e_step": jaxgmm.e_step,
    "m_step": lambda p, x: jaxgmm.m_step(jaxgmm.e_step(p, x)[0], x),
    "em_step": jaxgmm.em_step,
    "predict": jaxgmm.predict,
    "log_prob": jaxgmm.log_prob,
    "fit_restarts": lambda p, x: jaxgmm.fit_restarts(jax.random.key(0), x, 2, n_init=3),
}
KEY = jax.random.key(0)
OTHERS = {
    "hierarchical": lambda _, x: jaxgmm.fit_restarts(KEY, x, 2, init="hierarchical", n_init=1, max_iter=9),
    "fit_unrolled": lambda p, x: jaxgmm.gradients.fit_unrolled(p, x, n_steps=5),
    "fit_gradient": lambda p, x: jaxgmm.fit_gradient(p, x, optax.adam(1e-2), n_steps=5, key=KEY),
    "fit_variational": lambda p, x: jaxgmm.fit_variational(jaxgmm.e_step(p, x)[0], x),
    **{name: lambda _, x, q=q: jaxgmm.fit(q, x, max_iter=20) for name, q in STRUCTURES.items()},
}


def same(got, want):
    # In float64, programs of other shapes round differently by some 1e-13, and a fit contracts errors.
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


def in_shard_map(calls):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    try:
        shard_map, flag = jax.shard_map, "check_vma"
    except AttributeError:  # before JAX 0.6
        from jax.experimental.shard_map import shard_map
        flag = "check_rep"
    # JAX 0.5 cannot check a while_loop in shard_map.
    flags = [{flag: True}, {flag: False}] if flag == "check_vma" else [{flag: False}]
    both = jax.tree.map(lambda a: jnp.stack([a, a]), start)

    def divided(call, x, options, params, spec):
        def part(p, x):
            p = p if spec == P() else jax.tree.map(lambda a: a[0], p)
            return jax.tree.map(lambda a: jnp.asarray(a)[None], call(p, x))

        mapped = shard_map(part, mesh=mesh, in_specs=(spec, P("data")), out_specs=P("data"), **options)
        return jax.jit(mapped)(params, x)

    for name, call in calls.items():
        wanted = [call(start, part) for part in (X[:100], X[100:])]
        for options in flags if name in ("fit", "fit_restarts") else flags[:1]:
            got = divided(call, X, options, start, P())
            for i, want in enumerate(wanted):
                same(jax.tree.map(lambda a: a[i], got), want)
    if calls is OTHERS:
        return
    same(divided(CALLS["fit"], X, flags[0], both, P("data")), divided(CALLS["fit"], X, flags[0], start, P()))

    def slope(p, x):
        return jax.grad(lambda y: CALLS["fit"](p, y).log_likelihood)(x)

    got = divided(slope, X, flags[0], start, P())
    for i, part in enumerate((X[:100], X[100:])):
        same(got[i], slope(start, part))


def explicit():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(X, NamedSharding(mesh, P("data", None)))
    for name, call in CALLS.items():
        want = call(start, X)
        same(call(start, x), want)
        with jax.set_mesh(mesh):
            same(jax.jit(call)(start, x), want)
            if name in ("fit", "log_prob"):
                same(call(start, x), want)
        if name in ("fit", "log_prob"):
            same(jax.jit(call)(start, x), want)


if sys.argv[1] == "explicit":
    explicit()
else:
    in_shard_map(OTHERS if sys.argv[1] == "map others" else CALLS)
"""


def run(what):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_fit_for_each_shard_is_the_fit_of_that_part():
    run("map")


@pytest.mark.slow
def test_other_structures_and_fits_in_each_shard_are_those_of_that_part():
    run("map others")


@pytest.mark.skipif(
    not hasattr(jax, "set_mesh"), reason="this version of JAX has no arrays with explicit sharding"
)
def test_arrays_with_explicit_sharding_are_fitted():
    run("explicit")
