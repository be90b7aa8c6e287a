"""EM steps on a GPU: jaxgmm, gmmx and a hand-written PyTorch EM, interleaved, and what the card allows.

    python benchmarks/gpu.py                 # every case
    python benchmarks/gpu.py --cases A,C

As `speed.py`, with wall time: (a fit of 2n steps − a fit of n steps) / n, the median of the repeats. The
products of the card in full float32 precision and its copying are measured first; the shares that an EM step
reaches of them count the arithmetic of the quadratic form and one reading of X. A library that runs out of
memory says so.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from typing import Any

import tables
from speed import LIBRARIES, Library

CASES: dict[str, dict[str, Any]] = {
    "A": {"n": 1_000_000, "d": 32, "k": 64, "kind": "full", "n_iter": 5},
    "B": {"n": 1_000_000, "d": 32, "k": 64, "kind": "diag", "n_iter": 10},
    "C": {"n": 10_000_000, "d": 32, "k": 64, "kind": "full", "n_iter": 2},
    "D": {"n": 10_000_000, "d": 32, "k": 64, "kind": "diag", "n_iter": 5},
    "E": {"n": 1_000_000, "d": 32, "k": 1000, "kind": "diag", "n_iter": 3},
    "F": {"n": 200_000, "d": 32, "k": 1000, "kind": "full", "n_iter": 2},
    "G": {"n": 100_000, "d": 16, "k": 16, "kind": "full", "n_iter": 50},
    "H": {"n": 1_000_000, "d": 32, "k": 64, "kind": "tied", "n_iter": 5},
}


def rates() -> dict[str, float]:
    """Products in full float32 precision (FLOP/s) and bytes read and written (1/s), of JAX on this card."""
    import jax
    import jax.numpy as jnp

    def best(function: Any, *arguments: Any) -> float:
        jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(5):
            clock = time.perf_counter()
            for _ in range(5):
                out = function(*arguments)
            jax.block_until_ready(out)
            times.append((time.perf_counter() - clock) / 5)
        return min(times)

    a = jax.random.normal(jax.random.key(0), (8192, 8192))
    long = jnp.zeros(1 << 28, jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return {
        "gemm": 2 * 8192**3 / best(product, a),
        "copy": 2 * long.nbytes / best(jax.jit(lambda v: v + 1), long),
    }


def measure(case: dict[str, Any], libraries: list[str], repeats: int, rate: dict[str, float]) -> list[Any]:
    """Print what each library took; the row of the table."""
    n, d, k, n_iter = case["n"], case["d"], case["k"], case["n_iter"]
    features = {"full": d * (d + 3) // 2, "tied": d, "diag": 2 * d, "spherical": d + 1}[case["kind"]]
    work, read = 4 * n * k * features, 4 * n * d
    own = None
    taken: dict[str, float] = {}
    for name in libraries:
        library = Library(name, len(os.sched_getaffinity(0)))
        answer = library.ask(do="prepare", case=case | {"seed": 0})
        times = []
        for _ in range(repeats):
            if "absent" in answer:
                break
            short, long = (library.ask(do="run", n_iter=i) for i in (n_iter, 2 * n_iter))
            answer = answer | {key: v for key, v in (short | long).items() if key == "absent"}
            if "absent" not in answer:
                times.append((long["wall"] - short["wall"]) / n_iter)
        if "absent" in answer:
            print(f"  {name:<10} left out: {answer['absent']}", flush=True)
            library.close()
            continue
        wall = statistics.median(times)
        own = own or wall
        taken[name] = wall
        end = library.ask(do="finish")
        library.close()
        products, reading = work / wall / rate["gemm"], read / wall / (rate["copy"] / 2)
        print(
            f"  {name:<10}{1e3 * wall:>10.2f} ms{wall / own:>8.2f} ×{products:>9.0%} of products"
            f"{reading:>8.1%} of reading{answer['ready']:>8.1f} s first{end['log_likelihood']:>13.5f}",
            flush=True,
        )
    ours = taken.get("jaxgmm", math.nan)
    ratios = [taken.get(name, math.nan) / ours for name in libraries if name != "jaxgmm"]
    measured = [tables.significant(v) for v in (1e3 * ours, *ratios, 100 * work / ours / rate["gemm"])]
    return [n, d, k, case["kind"], *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--libraries", default="jaxgmm,gmmx,torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    args = parser.parse_args()
    # Each process takes what it needs, and no more: they share the card.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ |= {"BENCHMARK_TORCH_DEVICE": "cuda", "JAX_PLATFORMS": "cuda"}
    rate = rates()
    print(
        f"float32 products {rate['gemm'] / 1e12:.1f} TFLOP/s, copying {rate['copy'] / 1e12:.2f} TB/s",
        flush=True,
    )
    libraries, rows = args.libraries.split(","), []
    for letter in args.cases.split(","):
        case = CASES[letter]
        print(f"{letter}: N={case['n']:,} D={case['d']} K={case['k']} {case['kind']}", flush=True)
        rows.append(measure(case, libraries, args.repeats, rate))
    if args.json:
        import jax

        names = [f"{LIBRARIES[name]} / jaxgmm" for name in libraries if name != "jaxgmm"]
        tables.add(
            args.json, "One EM step on a GPU",
            "Wall time of one EM step, and the share of the rate of float32 products that jaxgmm reaches.",
            ["N", "D", "K", "covariance", "jaxgmm, wall ms", *names, "share of products, %"], rows,
            ("jax", *libraries), on=jax.devices()[0].device_kind,
            notes=[f"Products {rate['gemm'] / 1e12:.1f} TFLOP/s, copying {rate['copy'] / 1e12:.2f} TB/s."],
        )  # fmt: skip


if __name__ == "__main__":
    main()
