"""Fits inside a `shard_map`, and of arrays whose type says how they are divided (explicit sharding).

What is wrong there is wrong when a program is traced, so that only test_sharded.py runs such programs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxgmm
from jaxgmm import EMOptions
from tests.inference.optimum import start_from
from tests.problems import K, X

KEY = jax.random.key(0)
CALLS = {
    "fit": lambda p, x: jaxgmm.fit(p, x),
    "fit by both kernels": lambda p, x: jaxgmm.fit(
        p, x, x[:, 0] ** 2, options=EMOptions(kernel="auto", block_size=16)
    ),
    "fit of VVE": lambda p, x: jaxgmm.fit(as_structure(p, "VVE"), x),
    "step of VEV": lambda p, x: jaxgmm.em_step(as_structure(p, "VEV"), x),
    "step of factor(1)": lambda p, x: jaxgmm.em_step(as_structure(p, "factor(1)"), x),
    "fit and its gradient": lambda p, x: jax.grad(lambda y: jaxgmm.fit(p, y).log_likelihood)(x),
    "steps": lambda p, x: (
        jaxgmm.e_step(p, x),
        jaxgmm.m_step(jaxgmm.e_step(p, x)[0], x),
        jaxgmm.em_step(p, x),
    ),
    "densities": lambda p, x: (jaxgmm.predict(p, x), jaxgmm.log_prob(p, x), jaxgmm.score(p, x)),
    "fit_restarts": lambda p, x: jaxgmm.fit_restarts(KEY, x, K, n_init=3),
    "hierarchical starts": lambda p, x: jaxgmm.init.hierarchical_labels(x[:20], K),
    "fit_unrolled": lambda p, x: jaxgmm.gradients.fit_unrolled(p, x, n_steps=5),
    "fit_gradient": lambda p, x: jaxgmm.fit_gradient(p, x, optax.adam(1e-2), n_steps=5, key=KEY),
    "fit_variational": lambda p, x: jaxgmm.fit_variational(jaxgmm.e_step(p, x)[0], x),
}


def as_structure(params, name):
    """The same weights and means in another structure."""
    family = jaxgmm.components.get_covariance(name)
    scale = family.from_variances(jnp.ones_like(params.means))
    return dataclasses.replace(params, scale=scale, component=jaxgmm.components.gaussian(family))


def single():
    """A start and data in float32."""
    return jax.tree.map(lambda a: np.asarray(a, np.float32), start_from(X, "diag")), X.astype("f4")


@pytest.mark.parametrize("name", [name for name in CALLS if name != "fit"])  # its gradient traces it
def test_it_can_be_called_inside_a_shard_map(name):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    try:
        shard_map, flags = jax.shard_map, {"check_vma": True}
    except AttributeError:  # before JAX 0.6
        from jax.experimental.shard_map import shard_map

        flags = {"check_rep": False}  # JAX 0.5 cannot check a while_loop

    def part(params, x):
        return jax.tree.map(lambda a: jnp.asarray(a)[None], CALLS[name](params, x))

    rows = PartitionSpec("data")
    mapped = shard_map(part, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, **flags)
    jax.eval_shape(mapped, *single())


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this JAX has no arrays with explicit sharding")
@pytest.mark.parametrize("name", ["fit", "fit of VVE", "steps", "densities", "fit_restarts"])
def test_it_takes_arrays_with_explicit_sharding(name):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    start, x = single()
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, PartitionSpec("data", None)))
    assert x.aval.sharding.spec[0] == "data"
    jax.eval_shape(CALLS[name], start, x)
    if name in ("fit", "steps"):
        with jax.set_mesh(mesh):
            jax.eval_shape(CALLS[name], start, x)
