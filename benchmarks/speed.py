"""How fast EM steps are: jaxgmm, scikit-learn, tgmm, gmmx, pomegranate and EM written in PyTorch, in turn.

    python benchmarks/speed.py                        # every case
    python benchmarks/speed.py --clusters separated   # instead of both separated and overlapping clusters
    python benchmarks/speed.py --cases a,b --repeats 5 --threads 1
    python benchmarks/speed.py --isa avx2             # no AVX-512, as far as the libraries can be told
    python benchmarks/speed.py --json FILE            # and the table of it for tables.py

Same float32 data, same start, the same fixed number of plain EM iterations; one process per library, pinned
to the same cores. Time per iteration is the difference between fits of 2n and n iterations, over n, so that
what a fit costs once does not count; the first call and the peak memory stand beside it. The median of the
repeats is shown, and the float64 log-likelihood of the result, so that a fast wrong answer shows. The bound
is the time that the arithmetic of the quadratic form of EM takes at the machine's own rates, which NumPy
measures between the repeats: two products of (K, F) features, K exponentials per sample, and reading X once.
A library that is not installed, or has no such covariances, is left out with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import tables

CASES: dict[str, dict[str, Any]] = {
    "a": {"n": 10_000, "d": 2, "k": 5, "kind": "full", "n_iter": 50},
    "b": {"n": 100_000, "d": 16, "k": 16, "kind": "full", "n_iter": 5},
    "c": {"n": 100_000, "d": 16, "k": 16, "kind": "diag", "n_iter": 5},
    "d": {"n": 100_000, "d": 16, "k": 16, "kind": "tied", "n_iter": 5},
    "e": {"n": 100_000, "d": 16, "k": 16, "kind": "spherical", "n_iter": 5},
    "f": {"n": 1_000_000, "d": 32, "k": 64, "kind": "diag", "n_iter": 1},
    # The first step that is counted is the third: before, responsibilities are not yet near 0 and 1, and the
    # evaluation that ends a fit would differ between the two. The last case has too thin covariances by then.
    "g": {"n": 200_000, "d": 32, "k": 64, "kind": "full", "n_iter": 2},
    "h": {"n": 50_000, "d": 128, "k": 32, "kind": "full", "n_iter": 1},
}
LIBRARIES = {
    "jaxgmm": "jaxgmm", "scikit-learn": "scikit-learn", "tgmm": "tgmm", "gmmx": "gmmx", "torch": "PyTorch",
    "pomegranate": "pomegranate",
}  # fmt: skip

# XLA compiles loops for what it is told, but chooses the routines of its matrix products by the processor.
AVX2 = {
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
LIMITED = (
    "The processor has AVX-512. NumPy, SciPy and PyTorch were limited to AVX2 by their own switches, and so "
    "was the code that XLA compiles, but not XLA's matrix products, which have none."
)


def limit_to_avx2() -> None:
    """Set the switches in this process, which has no NumPy yet, and see in another that they are heeded."""
    names = (
        "from numpy._core._multiarray_umath import __cpu_dispatch__ as f;"
        "print(*(name for name in f if name == 'X86_V4' or name.startswith('AVX512')))"
    )
    python = [sys.executable, "-c"]
    above = subprocess.run([*python, names], check=True, capture_output=True, text=True).stdout.strip()
    flags = f"{os.environ.get('XLA_FLAGS', '')} {AVX2['XLA_FLAGS']}".strip()
    os.environ.update(AVX2 | {"NPY_DISABLE_CPU_FEATURES": above, "XLA_FLAGS": flags})
    ask = {
        "Haswell": "import scipy.linalg, threadpoolctl as t;"
        "print(*{i['architecture'] for i in t.threadpool_info() if i['internal_api'] == 'openblas'})"
    }
    if importlib.util.find_spec("torch"):
        ask["AVX2"] = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    for wanted, program in ask.items():
        found = subprocess.run([*python, program], check=True, capture_output=True, text=True).stdout.strip()
        if found != wanted:
            sys.exit(f"a library is not limited to AVX2: it names {found!r} in place of {wanted!r}")


class Library:
    """A process that runs one library."""

    def __init__(self, name: str, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        count = str(threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count
        )
        self.name = name
        environment["JAX_PLATFORMS"] = environment.get("JAX_PLATFORMS", "cpu")
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("peers.py")), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        os.sched_setaffinity(self.process.pid, cores)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"absent": f"it ended with status {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rates() -> dict[str, float]:
    """On one core: float32 products (FLOP/s), exponentials (1/s), bytes read and written (1/s)."""
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(768, 768)).astype(np.float32) for _ in range(2))
    e = rng.normal(size=1 << 18).astype(np.float32)
    powers = np.empty_like(e)
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)

    def best(function: Any) -> float:
        times = []
        for _ in range(5):
            clock = time.perf_counter()
            function()
            times.append(time.perf_counter() - clock)
        return min(times)

    return {
        "gemm": 2 * 768**3 / best(lambda: a @ b),
        "exp": e.size / best(lambda: np.exp(e, out=powers)),
        "copy": 2 * source.nbytes / best(lambda: np.copyto(target, source)),
    }


def bound(case: dict[str, Any], rate: dict[str, float]) -> float:
    """Seconds per iteration that the quadratic form of EM needs at these rates."""
    n, d, k = case["n"], case["d"], case["k"]
    features = {"full": (d + 1) * (d + 2) // 2, "tied": d + 1, "diag": 2 * d + 1, "spherical": d + 2}
    products = 2 * 2 * n * k * features[case["kind"]]
    return products / rate["gemm"] + n * k / rate["exp"] + 4 * n * d / (rate["copy"] / 2)


def measure(
    case: dict[str, Any], libraries: list[str], threads: int, repeats: int, seconds: float
) -> list[Any]:
    """Print what each library took; the row of the table."""
    running, answers = [], {}
    for name in libraries:
        library = Library(name, threads)
        answer = library.ask(do="prepare", case=case | {"seed": 0})
        if "absent" in answer:
            print(f"  {name:<14}left out: {answer['absent']}")
            library.close()
            continue
        running.append(library)
        answers[name] = answer
    n = case["n_iter"]
    times: dict[str, list[tuple[float, float]]] = {library.name: [] for library in running}
    bounds: list[float] = []
    began = time.perf_counter()
    for done in range(repeats):
        if done and time.perf_counter() - began > seconds:
            print(f"  stopped after {done} of {repeats} repeats")
            break
        bounds.append(bound(case, rates()))
        for library in tuple(running):
            short, long = (library.ask(do="run", n_iter=i) for i in (n, 2 * n))
            if lost := short.get("absent") or long.get("absent"):
                print(f"  {library.name:<14}given up: {lost}")
                running.remove(library)
                continue
            times[library.name].append(tuple((long[what] - short[what]) / n for what in ("cpu", "wall")))
    least = statistics.median(bounds)
    print(f"  bound {1e3 * least:.2f} ms")
    print(
        f"  {'':<14}{'CPU ms':>9}{'wall ms':>9}{'jaxgmm ×':>10}{'to bound':>10}{'first s':>9}{'peak MB':>9}"
        f"{'log-lik.':>13}"
    )
    own = None
    taken: dict[str, tuple[float, float]] = {}  # CPU and wall time
    reached: list[float] = []
    for library in running:
        cpu, wall = (statistics.median(t[i] for t in times[library.name]) for i in (0, 1))
        own = cpu if library.name == "jaxgmm" else own
        end = library.ask(do="finish")
        library.close()
        taken[library.name] = cpu, wall
        reached.append(end.get("log_likelihood", math.nan))
        print(
            f"  {library.name:<14}{1e3 * cpu:>9.2f}{1e3 * wall:>9.2f}{cpu / (own or cpu):>10.2f}"
            f"{cpu / least:>10.2f}{answers[library.name]['ready']:>9.2f}{end.get('peak_mb', math.nan):>9.0f}"
            f"{end.get('log_likelihood', math.nan):>13.5f}",
            flush=True,
        )
    absent = (math.nan, math.nan)
    ours, clock = taken.get("jaxgmm", absent), 0 if threads == 1 else 1
    ratios = [taken.get(name, absent)[clock] / ours[clock] for name in libraries if name != "jaxgmm"]
    spread = max(reached) - min(reached) if reached else math.nan
    measured = [tables.significant(v) for v in (1e3 * ours[clock], *ratios, ours[0] / least, spread)]
    return [case["n"], case["d"], case["k"], case["kind"], case["clusters"], len(bounds), *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="letters of the cases, with commas")
    parser.add_argument("--clusters", default="separated,overlapping", help="one of them, or both")
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="names, with commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="begin no repeat of a case after these")
    parser.add_argument("--threads", type=int, default=1, help="cores that each process is pinned to")
    parser.add_argument("--isa", choices=("avx2",), help="limit the libraries to these vector instructions")
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    args = parser.parse_args()
    if args.isa:
        limit_to_avx2()
    # The rates are those of one core, too; before NumPy starts its threads.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    libraries, rows = args.libraries.split(","), []
    for letter, clusters in itertools.product(args.cases.split(","), args.clusters.split(",")):
        case = CASES[letter] | {"clusters": clusters}
        print(
            f"{letter}: N={case['n']:,} D={case['d']} K={case['k']} {case['kind']}, {clusters} clusters,"
            f" {args.threads} thread(s)"
        )
        rows.append(measure(case, libraries, args.threads, args.repeats, args.seconds))
    if args.json:
        cores = {1: "one core", 2: "two cores"}.get(args.threads, f"{args.threads} cores")
        clock = "CPU" if args.threads == 1 else "wall"
        names = [f"{LIBRARIES[name]} / jaxgmm" for name in libraries if name != "jaxgmm"]
        vectors = tables.processor()[1] or ["unknown vector instructions"]
        limited = bool(args.isa) and vectors[-1] != "AVX2"
        tables.add(
            args.json,
            f"One EM step, {cores} " + ("limited to AVX2" if limited else f"with {vectors[-1]}"),
            f"Time of one EM step, each process on {cores}; the ratios of libraries are of {clock} time.",
            ["N", "D", "K", "covariance", "clusters", "repeats", f"jaxgmm, {clock} ms", *names,
             "jaxgmm, CPU / bound", "largest difference of mean log-likelihoods"],
            rows, ("jax", *libraries),
            ["The centres of two clusters are about 2.5 √D of their standard deviations apart, or 2.5 of "
             "them where they overlap.", *([LIMITED] if limited else [])],
        )  # fmt: skip


if __name__ == "__main__":
    main()
