"""Streaming from disk beside EM in memory: seconds per step and anonymous memory.

    python benchmarks/stream.py                                # 4M and 16M rows of 16 features, float32
    python benchmarks/stream.py --rows 250000,1000000 --folder /somewhere/large

Each measurement is a process of its own. Time per step is the least of several, so that what else the
machine does counts little: of a stream each step is one pass; in memory it is the difference between long
and short fits by plain steps. Memory is the largest RssAnon of /proc/self/status while the fit runs,
compilation included, and `base` what it was before. `ratio` compares with the time in memory for the first
number of rows, scaled by the number of rows; `cpu` is the processor's time of a step. Files are written to
a temporary folder and removed; they are read warm, as far as the page cache holds them; `--drop` evicts a
file before its fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import tables

D, K, STEPS, REPEATS = 16, 8, 4, 3


def means() -> Any:
    import numpy as np

    return np.random.default_rng(0).normal(size=(K, D)).astype(np.float32) * 1.5


def write(folder: str, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    centres, block = means(), 250_000
    schema = pa.schema([(f"x{j}", pa.float32()) for j in range(D)])
    with (
        open(os.path.join(folder, f"{rows}.npy"), "wb") as npy,
        pq.ParquetWriter(os.path.join(folder, f"{rows}.parquet"), schema) as table,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, D)}
        np.lib.format.write_array_header_1_0(npy, header)
        for first in range(0, rows, block):
            n = min(block, rows - first)
            x = rng.standard_normal((n, D), dtype=np.float32) + centres[rng.integers(K, size=n)]
            npy.write(x.tobytes())
            table.write_table(pa.table([x[:, j] for j in range(D)], schema=schema))


def anonymous() -> float:
    """RssAnon in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def evict(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(how: str, path: str, kernel: str, drop: bool) -> None:
    import jax
    import numpy as np

    import jaxgmm

    start = jaxgmm.make_params(
        np.full(K, 1 / K), means() + 0.3, np.broadcast_to(2 * np.eye(D), (K, D, D)).astype(np.float32)
    )
    base, most, running = anonymous(), [0.0], [True]

    def sample() -> None:
        while running[0]:
            most[0] = max(most[0], anonymous())
            time.sleep(0.02)

    sampler = threading.Thread(target=sample)
    options: dict[str, Any] = {"tol": 0.0, "accelerate": False, "options": jaxgmm.EMOptions(kernel=kernel)}
    whole = np.load(path) if how == "memory" else None
    if whole is not None:
        whole = jax.device_put(whole)

    def fit(n: int) -> tuple[float, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(jaxgmm.fit(start, whole, max_iter=n, **options))
        return time.perf_counter() - clock, time.process_time() - cpu

    sampler.start()
    if whole is not None:
        fit(1)
        short = [fit(1) for _ in range(REPEATS)]
        long = [fit(1 + STEPS) for _ in range(REPEATS)]
        seconds, cpu = (
            (min(b) - min(a)) / STEPS
            for a, b in zip(zip(*short, strict=True), zip(*long, strict=True), strict=True)
        )
    else:
        if drop:
            evict(path)
        ends: list[tuple[float, float]] = []
        jaxgmm.fit_stream(
            start, path, max_iter=STEPS * REPEATS, **options,
            progress=lambda _: ends.append((time.perf_counter(), time.process_time())),
        )  # fmt: skip
        # The first step compiles.
        times = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends[1:])]
        seconds, cpu = (min(t) for t in zip(*times, strict=True))
    running[0] = False
    sampler.join()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "base": base, "most": most[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default="4000000,16000000")
    parser.add_argument("--folder")
    parser.add_argument("--kernel", default="quadratic")
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    parser.add_argument("--measure", nargs=2, metavar=("HOW", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure, given.kernel, given.drop)
        return
    sizes = [int(n) for n in given.rows.split(",")]
    in_memory: float | None = None
    lines: list[list[Any]] = []
    print(
        f"{'rows':>10} {'how':>8} {'s/step':>8} {'ratio':>6} {'cpu':>6} {'base MB':>8} {'anonymous MB':>13}"
    )
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write(folder, rows)
            for how in ("memory", "npy", "parquet"):
                if how == "memory" and rows != sizes[0]:
                    continue
                path = os.path.join(folder, f"{rows}.{'npy' if how == 'memory' else how}")
                command = [sys.executable, __file__, "--kernel", given.kernel, "--measure", how, path]
                done = subprocess.run(
                    command + ["--drop"] * given.drop, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                got = json.loads(done.stdout)
                in_memory = got["seconds"] / rows if how == "memory" else in_memory
                ratio = got["seconds"] / rows / in_memory if in_memory else float("nan")
                measured = (got["seconds"], ratio, got["cpu"], got["most"])
                lines.append([rows, how, *map(tables.significant, measured)])
                print(
                    f"{rows:>10} {how:>8} {got['seconds']:8.3f} {ratio:6.2f} {got['cpu']:6.2f} "
                    f"{got['base']:8.0f} {got['most']:13.0f}",
                    flush=True,
                )
    if given.json:
        tables.add(
            given.json, "Streams",
            f"Time of one EM step on N × {D} data read from files, {K=} full, {given.kernel} kernel, beside "
            "a fit in memory, and the anonymous memory of the process.",
            ["N", "source", "s per step", "time per row / in memory", "CPU s per step",
             "anonymous memory, MB"],
            lines, ("jax", "pyarrow"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
