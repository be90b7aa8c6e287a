"""How long to the same likelihood: jaxgmm's default fit beside scikit-learn's EM, from the same start.

    python benchmarks/reach.py                 # cases a to e of speed.py
    python benchmarks/reach.py --cases b,c --repeats 5

Two marks: where scikit-learn stops by its own rule (tol=1e-3), and 1e-6 nats per sample below the best
likelihood that either comes to in 200 steps. After how many steps each is at a mark is found by bisection, in
float64 over all rows, and a fit of so many steps is timed: seconds of CPU on one core, interleaved, medians,
without compilation. The third line is both with their defaults but for the start. The fits are in float32.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from peers import Sklearn, covariances, data, dense, log_likelihood  # noqa: E402
from speed import CASES  # noqa: E402

import jaxgmm  # noqa: E402

MOST = 200  # EM steps


def first_at(value: Callable[[int], float], mark: float) -> int | None:
    """After how many steps the likelihood is at the mark, if it is then; it rises, but for rounding."""
    if value(MOST) < mark:
        return None
    low, high = 0, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if value(middle) >= mark else (middle, high)
    return high


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def compare(name: str, repeats: int) -> None:
    case = CASES[name] | {"seed": 0}
    kind, k = str(case["kind"]), int(case["k"])
    x, weights, means, variances = data(case)
    cov = covariances(kind, k, variances)
    X, start = jnp.asarray(x), jaxgmm.make_params(weights, means, cov, kind)

    def ours(max_iter: int = 1000, **options: Any) -> Any:
        result = jaxgmm.fit(start, X, max_iter=max_iter, **options)
        return jax.block_until_ready(result)

    def theirs(max_iter: int, tol: float = 0.0) -> Any:
        peer = Sklearn(x, weights, means, cov, kind)
        peer.model.tol = tol
        peer.run(max_iter)
        return peer

    def reached(answer: tuple[Any, Any, Any]) -> float:
        mixing, centres, found = answer
        full = dense(found, len(mixing), x.shape[1], kind)
        parts = [x[i : i + 20_000] for i in range(0, len(x), 20_000)]
        return sum(log_likelihood(part, mixing, centres, full) * len(part) for part in parts) / len(x)

    def of_ours(result: Any) -> float:
        p = result.params
        return reached((np.asarray(p.weights), np.asarray(p.means), np.asarray(p.covariances)))

    @functools.cache
    def our_value(n: int) -> float:
        return of_ours(ours(n, tol=0.0))

    steps_of_theirs = []
    peer = Sklearn(x, weights, means, cov, kind)
    peer.run(1)
    for _ in range(MOST):
        steps_of_theirs.append(peer.answer())
        peer.model.fit(x)  # one more: it goes on from where it is

    @functools.cache
    def their_value(n: int) -> float:
        return reached(steps_of_theirs[n - 1])

    stopped = theirs(MOST, 1e-3)
    best = max(our_value(MOST), their_value(MOST))
    marks = {
        "scikit-learn's own stop": reached(stopped.answer()),
        "1e-6 nats below the best": best - 1e-6,
    }
    print(f"{name}: N={case['n']:,} D={case['d']} K={k} {kind}")
    for mark, value in marks.items():
        steps = first_at(our_value, value), first_at(their_value, value)
        known = {who: n for who, n in zip(("jaxgmm", "scikit-learn"), steps, strict=True) if n is not None}
        runs: dict[str, Callable[[], Any]] = {}
        if "jaxgmm" in known:
            runs["jaxgmm"] = lambda n=known["jaxgmm"]: ours(n, tol=0.0)  # type: ignore[misc]
        if "scikit-learn" in known:
            runs["scikit-learn"] = lambda n=known["scikit-learn"]: theirs(n)  # type: ignore[misc]
        show(mark, timed(runs, repeats), known)
    runs = {"jaxgmm": ours, "scikit-learn": lambda: theirs(MOST, 1e-3)}
    taken = timed(runs, repeats)
    result = ours()
    steps_taken = {"jaxgmm": int(result.n_iter), "scikit-learn": stopped.model.n_iter_}
    show("each by its own defaults", taken, steps_taken)
    end = of_ours(result)
    theirs_end = marks["scikit-learn's own stop"]
    print(f"    log-likelihoods: jaxgmm {end:.6f}, scikit-learn {theirs_end:.6f}, best {best:.6f}")


def show(mark: str, taken: dict[str, float], steps: dict[str, int]) -> None:
    words = [f"{who} {seconds:8.3f} s in {steps[who]:4d} steps" for who, seconds in taken.items()]
    missing = [f"{who} not in {MOST} steps" for who in ("jaxgmm", "scikit-learn") if who not in taken]
    ratio = f"   {taken['scikit-learn'] / taken['jaxgmm']:6.1f} ×" if len(taken) == 2 else ""
    print(f"  {mark:26s} {',  '.join(words + missing)}{ratio}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="a,b,c,d,e", help="letters of the cases of speed.py, with commas")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for letter in asked.cases.split(","):
        compare(letter, asked.repeats)
