"""One EM step by engines with two local workers: N = 200,000, D = 8, K = 8, full covariances, float32.

    PYSPARK_PYTHON=$(which python) python benchmarks/engines.py [memory local dask spark mllib]

Each engine holds its data in memory before the clock starts. A step of ours is the median time from one step
of a fit to the next, MLlib's the difference of fits of 21 and 1 iterations. Load matters: the engines are
run alternately, several times over, and the least median is given. MLlib computes in float64 and starts by
itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

import jax
import jax.numpy as jnp
import numpy as np
import tables

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.parallel.engines import DaskEngine, LocalEngine, SparkEngine, fit_engine

N, D, K, STEPS = 200_000, 8, 8, 20
NAMES = [f"x{j}" for j in range(D)]


def data() -> tuple[np.ndarray, Any]:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(K, D)) * 3
    x = (means[rng.integers(K, size=N)] + rng.normal(size=(N, D))).astype(np.float32)
    eyes = np.tile(np.eye(D, dtype=np.float32), (K, 1, 1))
    return x, jaxgmm.make_params(np.full(K, 1 / K, np.float32), x[:K], eyes, "full")


Timed = Callable[[], tuple[float, Any]]  # ms per step, and the fitted means or None


def by_engine(start: Any, engine: Any) -> Timed:
    def run() -> tuple[float, Any]:
        ticks: list[float] = []
        result = fit_engine(
            start, engine, tol=0.0, max_iter=STEPS, progress=lambda _: ticks.append(time.perf_counter())
        )
        return 1e3 * float(np.median(np.diff(ticks))), np.asarray(result.params.means)

    return run


def in_memory(start: Any, x: np.ndarray) -> Timed:
    held = jnp.asarray(x)

    def run() -> tuple[float, Any]:
        times = []
        for steps in (0, STEPS):
            clock = time.perf_counter()
            result = jax.block_until_ready(
                jaxgmm.fit(start, held, tol=0.0, max_iter=steps, options=EMOptions(kernel="whitened"))
            )
            times.append(time.perf_counter() - clock)
        return 1e3 * (times[1] - times[0]) / STEPS, np.asarray(result.params.means)

    return run


@contextlib.contextmanager
def dask(start: Any, x: np.ndarray) -> Iterator[dict[str, Timed]]:
    import dask.array as da
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        held = da.from_array(x, chunks=(N // 4, D)).persist()
        wait(held)
        yield {"dask": by_engine(start, DaskEngine(held, client=client))}


@contextlib.contextmanager
def spark(start: Any, x: np.ndarray, chosen: list[str]) -> Iterator[dict[str, Timed]]:
    import pandas as pd
    from pyspark.ml.clustering import GaussianMixture
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2,4]").config("spark.driver.memory", "2g")
    session = (
        builder.config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    frame = session.createDataFrame(pd.DataFrame(x, columns=NAMES)).repartition(2).cache()
    frame.count()
    runs: dict[str, Timed] = {}
    if "spark" in chosen:
        runs["spark"] = by_engine(start, SparkEngine(frame, NAMES))
    if "mllib" in chosen:
        vectors = VectorAssembler(inputCols=NAMES, outputCol="features").transform(frame).select("features")
        vectors = vectors.cache()
        vectors.count()

        def mllib() -> tuple[float, Any]:
            times = []
            for steps in (1, STEPS + 1):
                clock = time.perf_counter()
                GaussianMixture(k=K, maxIter=steps, tol=0.0, seed=1).fit(vectors)
                times.append(time.perf_counter() - clock)
            return 1e3 * (times[1] - times[0]) / STEPS, None

        runs["mllib"] = mllib
    try:
        yield runs
    finally:
        session.stop()


def main() -> None:
    names = ["memory", "local", "dask", "spark", "mllib"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=names, help=" ".join(names))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    x, start = data()
    runs: dict[str, Timed] = {}
    with contextlib.ExitStack() as stack:
        if "memory" in arguments.what:
            runs["memory"] = in_memory(start, x)
        if "local" in arguments.what:
            runs["local"] = by_engine(start, LocalEngine(np.array_split(x, 2), threads=2))
        if "dask" in arguments.what:
            runs |= stack.enter_context(dask(start, x))
        if {"spark", "mllib"} & set(arguments.what):
            runs |= stack.enter_context(spark(start, x, arguments.what))
        for run in runs.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        means: dict[str, Any] = {}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                milliseconds, means[name] = run()
                times[name].append(milliseconds)
    first = next((m for m in means.values() if m is not None), None)
    for name, each in times.items():
        apart = "" if means[name] is None else f"   means apart {np.abs(means[name] - first).max():.1e}"
        rounds = ", ".join(f"{t:.0f}" for t in each)
        print(f"{name:<8}{min(each):>8.0f} ms a step   ({rounds}){apart}", flush=True)
    if arguments.json:
        tables.add(
            arguments.json, "Engines",
            f"Time of one EM step with two local workers, {N=:,} {D=} {K=} full, in several rounds; mllib is "
            "Spark's own `GaussianMixture`.",
            ["engine", *(f"round {i + 1}, ms" for i in range(arguments.rounds))],
            [[name, *map(tables.significant, each)] for name, each in times.items()],
            ("jax", "dask", "pyspark"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
