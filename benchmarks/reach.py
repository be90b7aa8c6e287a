"""How long to the same likelihood: jaxgmm's default fit beside scikit-learn's EM and tgmm's, from one start.

    python benchmarks/reach.py                 # cases a to e of speed.py
    python benchmarks/reach.py --cases b,c --clusters overlapping --repeats 5 --json FILE

Two marks: where scikit-learn stops by its own rule (tol=1e-3), and 1e-6 nats per sample below the best
likelihood that either comes to in 200 steps. After how many steps each is at a mark is found by bisection, in
float64 over all rows, and a fit of so many steps is timed: seconds of CPU on one core, interleaved, medians,
without compilation. tgmm's steps are plain EM as scikit-learn's are, and it takes as many. The third line is
each with its defaults but for the start. The fits are in float32.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
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
import tables  # noqa: E402
from peers import Sklearn, Tgmm, covariances, data, dense, log_likelihood  # noqa: E402
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


WHO = ("jaxgmm", "scikit-learn", *(["tgmm"] if importlib.util.find_spec("tgmm") else []))


def compare(name: str, clusters: str, repeats: int) -> list[list[Any]]:
    """Print what each took to the marks; the rows of the table."""
    case = CASES[name] | {"seed": 0, "clusters": clusters}
    kind, k = str(case["kind"]), int(case["k"])
    x, weights, means, variances = data(case)
    cov = covariances(kind, k, variances)
    X, start = jnp.asarray(x), jaxgmm.make_params(weights, means, cov, kind)

    def ours(max_iter: int = 1000, **options: Any) -> Any:
        result = jaxgmm.fit(start, X, max_iter=max_iter, **options)
        return jax.block_until_ready(result)

    def sklearns(max_iter: int, tol: float = 0.0) -> Any:
        peer = Sklearn(x, weights, means, cov, kind)
        peer.model.tol = tol
        peer.run(max_iter)
        return peer

    def tgmms(max_iter: int, tol: float | None = None) -> Any:
        peer = Tgmm(x, weights, means, cov, kind)
        peer.tol = tol
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

    stopped = sklearns(MOST, 1e-3)
    best = max(our_value(MOST), their_value(MOST))
    marks = {"scikit-learn's stop": reached(stopped.answer()), "1e-6 below the best": best - 1e-6}
    print(f"{name}: N={case['n']:,} D={case['d']} K={k} {kind}, {clusters} clusters")
    about = [case["n"], case["d"], k, kind, clusters]
    rows = []
    for mark, value in marks.items():
        plain = first_at(their_value, value)
        steps = {who: first_at(our_value, value) if who == "jaxgmm" else plain for who in WHO}
        run = {"jaxgmm": lambda n: ours(n, tol=0.0), "scikit-learn": sklearns, "tgmm": tgmms}
        known = {who: n for who, n in steps.items() if n is not None}
        taken = timed({who: functools.partial(run[who], n) for who, n in known.items()}, repeats)
        rows.append([*about, mark, *show(mark, taken, steps), *[None] * (len(WHO) - 1)])
    runs: dict[str, Callable[[], Any]] = {
        "jaxgmm": ours, "scikit-learn": lambda: sklearns(MOST, 1e-3), "tgmm": lambda: tgmms(1000, 1e-4)
    }  # fmt: skip
    taken = timed({who: runs[who] for who in WHO}, repeats)
    result = ours()
    steps = {"jaxgmm": int(result.n_iter), "scikit-learn": stopped.model.n_iter_}
    ends = {"jaxgmm": of_ours(result), "scikit-learn": marks["scikit-learn's stop"]}
    if "tgmm" in WHO:
        last = tgmms(1000, 1e-4)
        steps["tgmm"], ends["tgmm"] = last.result.n_iter_ + 1, reached(last.answer())
    mark = "each one's default stop"
    less = [tables.significant(ends[who] - ends["jaxgmm"], 2) for who in WHO[1:]]
    rows.append([*about, mark, *show(mark, taken, steps), *less])
    print(
        "    log-likelihoods:", ", ".join(f"{who} {end:.6f}" for who, end in ends.items()), f"best {best:.6f}"
    )
    return rows


def show(mark: str, taken: dict[str, float], steps: dict[str, int | None]) -> list[Any]:
    """Print a line; the cells of it: jaxgmm's seconds and steps, and the ratios and steps of the others."""
    words = [
        f"{who} {taken[who]:8.3f} s in {steps[who]:4d} steps"
        if who in taken
        else f"{who} not in {MOST} steps"
        for who in WHO
    ]
    print(f"  {mark:26s} {',  '.join(words)}", flush=True)
    own = taken.get("jaxgmm")
    cells: list[Any] = [own and tables.significant(own), steps["jaxgmm"] or f"> {MOST}"]
    for who in WHO[1:]:
        ratio = taken[who] / own if own and who in taken else None
        cells += [tables.significant(ratio), steps[who] or f"> {MOST}"]
    return cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="a,b,c,d,e", help="letters of the cases of speed.py, with commas")
    parser.add_argument("--clusters", default="separated,overlapping", help="one of them, or both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    found = [
        row
        for letter in asked.cases.split(",")
        for clusters in asked.clusters.split(",")
        for row in compare(letter, clusters, asked.repeats)
    ]
    if asked.json:
        others = [cell for who in WHO[1:] for cell in (f"{who} / jaxgmm", f"{who}, steps")]
        vectors = tables.processor()[1] or ["unknown vector instructions"]
        tables.add(
            asked.json, f"To the same log-likelihood, one core with {vectors[-1]}",
            "CPU time and EM steps from one start to the same mean log-likelihood, on one core, compiled.",
            ["N", "D", "K", "covariance", "clusters", "until", "jaxgmm, CPU s", "jaxgmm, steps", *others,
             *(f"log-likelihood of {who} − jaxgmm, nats per sample" for who in WHO[1:])],
            found, ("jax", "scikit-learn", "tgmm", "torch"),
            ["\"scikit-learn's stop\": the log-likelihood at which scikit-learn stops by default, tol=1e-3. "
             "\"1e-6 below the best\": 1e-6 nats per sample below the best that jaxgmm or scikit-learn "
             "reached in 200 steps. By default tgmm stops at a relative change of 1e-4."],
        )  # fmt: skip
