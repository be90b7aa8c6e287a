"""Record of what the library computes: `write FILE` before a change, `compare FILE` after it.

Some fifty fits over structures, dtypes, kernels, priors, restarts, shards, streams and derivatives: their
parameters, status, iterations, histories, the number of programs compiled and the time of a second call. A
change that only moves code reproduces the numbers to the bit; one that merges code, to rounding. `compare`
prints every array that differs, and ends with status 1 if one differs by more than `--rtol` (default 0).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm

STRUCTURES = (
    "full", "tied", "diag", "spherical", "EII", "EEI", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV",
    "factor(1)", "full-equal", "full-ratio(5)",
)  # fmt: skip
KEY = 7


def data(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Three overlapping clusters of 100 rows in 3 features, and weights."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    shapes = rng.normal(size=(3, 3, 3)) + 2 * np.eye(3)
    x = (
        np.einsum("nij,nj->ni", shapes[labels], rng.normal(size=(300, 3)))
        + 4 * rng.normal(size=(3, 3))[labels]
    )
    return jnp.asarray(x + 10, dtype), jnp.asarray(rng.uniform(0.5, 1.5, 300), dtype)


def start(x: jax.Array, structure: str) -> Any:
    """The M-step of softened labels."""
    resp = jnp.asarray(0.7 * np.eye(3)[np.arange(300) % 3] + 0.1, x.dtype)
    return jaxgmm.m_step(resp, x, covariance_type=structure)


def options(**given: Any) -> dict[str, Any]:
    """The rare options of a fit: keywords, or an `EMOptions`, whichever the library takes."""
    rare = {k: given.pop(k) for k in ("kernel", "block_size", "history_size") if k in given}
    if not rare:
        return given
    return given | ({"options": jaxgmm.EMOptions(**rare)} if hasattr(jaxgmm, "EMOptions") else rare)


def cases(x: jax.Array, w: jax.Array) -> dict[str, Callable[[], Any]]:
    """Name -> a function without arguments that gives a pytree."""
    key = jax.random.key(KEY)
    fit, restarts = jaxgmm.fit, jaxgmm.fit_restarts
    found: dict[str, Callable[[], Any]] = {}
    wide = x.dtype == jnp.float64
    for name in STRUCTURES if wide else ("full", "diag", "VVE"):
        p = start(x, name)
        found[f"fit {name}"] = lambda p=p: fit(p, x)
    for name in ("full", "tied", "diag"):
        p = start(x, name)
        for kernel in ("whitened", "quadratic", "auto"):
            found[f"kernel {kernel} {name}"] = lambda p=p, kernel=kernel: fit(
                p, x, w, **options(kernel=kernel)
            )
        prior = jaxgmm.default_prior(x, 3, name)
        found[f"prior {name}"] = lambda p=p, prior=prior: fit(p, x, prior=prior)
        found[f"plain EM {name}"] = lambda p=p: fit(p, x, accelerate=False, max_iter=50)
        found[f"restarts {name}"] = lambda name=name: restarts(key, x, 3, covariance_type=name, n_init=3)
        found[f"gradient {name}"] = lambda p=p: jax.grad(
            lambda a, b: fit(p, a, b, tol=1e-9 if wide else 1e-5).params.means.sum(), (0, 1)
        )(x, w)
        found[f"shards {name}"] = lambda p=p: jaxgmm.fit_sharded(p, x, mesh=jax.make_mesh((2,), ("rows",)))
        found[f"stream {name}"] = lambda p=p: jaxgmm.fit_stream(p, [np.asarray(x[:110]), np.asarray(x[110:])])
    p = start(x, "full")
    several = jax.tree.map(lambda a: jnp.stack([a, a]), p)
    found["vmap over starts"] = lambda: jax.vmap(lambda q: fit(q, x))(several)
    found["vmap over data"] = lambda: jax.vmap(lambda a: fit(p, a))(jnp.stack([x, x[::-1]]))
    found["user's jit"] = lambda: jax.jit(lambda a: fit(p, a))(x)
    found["m_step, em_step, e_step"] = lambda: (jaxgmm.em_step(p, x, w), jaxgmm.e_step(p, x))
    found["criteria"] = lambda: [f(p, x) for f in (jaxgmm.aic, jaxgmm.bic, jaxgmm.icl, jaxgmm.score)]
    found["components"] = lambda: jaxgmm.fit_components(key, x, (1, 2, 3), n_init=2)
    found["best"] = lambda: jaxgmm.fit_best(key, x, 3)
    return found


def plain(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {str(i): np.asarray(a) for i, (_, a) in enumerate(leaves) if hasattr(a, "dtype")}


def run() -> dict[str, np.ndarray]:
    """All cases in both precisions: arrays, programs compiled, seconds of the second call."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    out: dict[str, np.ndarray] = {}
    for bits in (32, 64):
        jax.config.update("jax_enable_x64", bits == 64)
        x, w = data(jnp.float32 if bits == 32 else jnp.float64)
        for name, call in cases(x, w).items():
            before = len(compiled)
            try:
                found = jax.block_until_ready(call())
            except Exception as error:
                raise RuntimeError(f"{name}, {bits} bits") from error
            out |= {f"{bits} {name} :{k}": a for k, a in plain(found).items()}
            out[f"{bits} {name} :programs"] = np.asarray(len(compiled) - before)
            began = time.perf_counter()
            jax.block_until_ready(call())
            out[f"{bits} {name} :seconds"] = np.asarray(time.perf_counter() - began)
    return out


def compare(old: dict[str, np.ndarray], new: dict[str, np.ndarray], rtol: float) -> int:
    """Print what differs; how many arrays differ by more than rtol."""
    bad = 0
    for name in sorted(old.keys() ^ new.keys()):
        print(f"only in the {'old' if name in old else 'new'}: {name}")
        bad += 1
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name], new[name]
        if name.endswith(":seconds"):
            continue
        if name.endswith(":programs"):
            if a != b:
                print(f"{name}: {a} -> {b}")
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            print(f"{name}: {a.dtype}{a.shape} -> {b.dtype}{b.shape}")
            bad += 1
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            with np.errstate(invalid="ignore"):
                gap = np.abs(np.where(a == b, 0, a.astype(float) - b)).max() / max(
                    np.abs(a[np.isfinite(a)]).max(), 1e-30
                )
            print(f"{name}: differs by {gap:.2g} of the largest")
            bad += bool(not gap <= rtol)
    for what in ("programs", "seconds"):
        sums = [sum(float(v) for k, v in r.items() if k.endswith(f":{what}")) for r in (old, new)]
        print(f"{what}: {sums[0]:.4g} -> {sums[1]:.4g}")
    return bad


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file")
    parser.add_argument("--rtol", type=float, default=0.0)
    given = parser.parse_args()
    found = run()
    if given.action == "write":
        np.savez_compressed(given.file, **found)
        print(f"{len(found)} arrays")
        return
    with np.load(given.file) as stored:
        sys.exit(min(1, compare(dict(stored), found, given.rtol)))


if __name__ == "__main__":
    main()
