"""Runs of two processes: what they compute together, and how they end when one of them comes to harm."""

import contextlib
import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.parallel.processes import EXIT_FAILED
from jaxgmm.parallel.processes._launcher import free_port
from tests.conftest import overlapping, start_from, x64

ROOT = pathlib.Path(__file__).parent.parent.parent
PROMPT = 30  # seconds within which the others must have ended
STEPS = 60

# Process i of two reads its own file, slowly, and keeps its state every five steps.
PROGRAM = """
import os, sys, time
import jax, numpy as np
import jaxgmm
from jaxgmm.parallel.processes import fit_distributed, initialize, together

index, port, folder, mode, heartbeat = sys.argv[1:]
index, comes = int(index), 5 if mode == "alone" else 60
jax.config.update("jax_enable_x64", True)
def progress(p):
    with open(f"{folder}/step", "w") as f:
        f.write(str(p.n_iter))
    if mode == "raise" and p.n_iter == 8:
        raise KeyError("made up")
    time.sleep(0.0 if mode == "fast" else 0.1)

with together():
    initialize(f"localhost:{port}", 2, index, heartbeat=int(heartbeat), initialization=comes)
    start = jaxgmm.load(f"{folder}/start.npz")
    path = f"{folder}/{mode if mode == 'fast' else 'kept'}.npz"
    checkpoint = jaxgmm.outofcore.Checkpoint(path, every_iterations=5)
    result = fit_distributed(
        start, f"{folder}/part{index}.npy", tol=0.0, max_iter=STEPS, checkpoint=checkpoint,
        progress=progress,
    )
    np.savez(f"{folder}/{mode}{index}.npz", *jax.tree.leaves(result))
""".replace("STEPS", str(STEPS))


@contextlib.contextmanager
def processes(code, *words, n=2, folder=None):
    """Two processes of a program, which are gone when the block ends, whatever happens in it."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), "JAX_PLATFORMS": "cpu"}
    times = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    port, started = free_port(), []
    try:
        for i in range(n):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(i), str(port), str(folder), *map(str, words)],
                    env={**os.environ, **cache, **times}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True,
                )
            )  # fmt: skip
        yield started
    finally:
        for p in started:
            if p.poll() is None:
                p.kill()
            p.communicate()


def ends(process, seconds):
    """Its status and what it wrote, where it ends in time."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out + error


def reached(folder, step, among):
    """Wait until a fit has come to a step."""
    limit = time.monotonic() + 90
    path = folder / "step"
    while not (path.exists() and path.read_text().isdigit() and int(path.read_text()) >= step):
        assert time.monotonic() < limit
        assert all(p.poll() is None for p in among), [p.communicate() for p in among if p.poll() is not None]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two parts of very different lengths, a start, and the run that nothing happens to."""
    at = tmp_path_factory.mktemp("run")
    X, labels = overlapping(1201, 2, 3, seed=4, separation=1.0)
    X += 20.0
    np.save(at / "part0.npy", X[:1000])
    np.save(at / "part1.npy", X[1000:])
    with x64(True):
        jaxgmm.save(at / "start.npz", start_from(X, labels, "full", np.float64))
    with processes(PROGRAM, "fast", 30, folder=at) as both:
        for p in both:
            code, said = ends(p, 120)
            assert code == 0, said
    return at


def leaves(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def goes_on(folder):
    """Start all of them again: they go on from the checkpoint, and end with the bits of the other run."""
    with processes(PROGRAM, "again", 30, folder=folder) as both:
        for p in both:
            code, said = ends(p, 120)
            assert code == 0, said
    for a, b in zip(leaves(folder / "again0.npz"), leaves(folder / "fast0.npz"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def fresh(folder):
    for name in ("step", "kept.npz"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.slow
def test_two_processes_fit_what_one_fits_and_hold_the_same_bits(folder):
    first, second = (leaves(folder / f"fast{i}.npz") for i in (0, 1))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    X = np.concatenate([np.load(folder / f"part{i}.npy") for i in (0, 1)])
    with x64(True):
        alone = jaxgmm.fit(
            jaxgmm.load(folder / "start.npz"),
            X,
            tol=0.0,
            max_iter=STEPS,
            options=EMOptions(kernel="whitened"),
        )
    for a, b in zip(first, jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_one_that_is_killed_ends_the_other_and_the_next_run_goes_on(fresh, victim):
    with processes(PROGRAM, "slow", 30, folder=fresh) as both:
        reached(fresh, 12, both)
        both[victim].send_signal(signal.SIGKILL)
        code, said = ends(both[1 - victim], PROMPT)
    # Where it is process 0 that is killed, JAX may be quicker than the exchange, and aborts.
    assert code == 2 or (victim == 0 and code == -signal.SIGABRT), said
    assert "another process has ended or cannot be reached" in said or "another task died" in said
    goes_on(fresh)


@pytest.mark.slow
@pytest.mark.skipif(
    "heartbeat_timeout_seconds" not in inspect.signature(jax.distributed.initialize).parameters,
    reason="this JAX waits for 100 seconds, and cannot be told otherwise",
)
def test_one_that_is_stopped_ends_the_other(fresh):
    with processes(PROGRAM, "slow", 10, folder=fresh) as both:
        reached(fresh, 7, both)
        both[1].send_signal(signal.SIGSTOP)
        code, said = ends(both[0], PROMPT)
    assert code in (2, -signal.SIGABRT)
    assert "another task died" in said or "another process has ended or cannot be reached" in said


@pytest.mark.slow
def test_an_exception_on_one_ends_both_with_its_words(fresh):
    with processes(PROGRAM, "raise", 30, folder=fresh) as both:
        for p in both:
            code, said = ends(p, 60)
            assert code == 2
            assert "made up" in said
    with np.load(fresh / "kept.npz"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("told", [1, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_sigterm_to_one_keeps_the_state_and_ends_both(fresh, told):
    with processes(PROGRAM, "slow", 30, folder=fresh) as both:
        reached(fresh, 12, both)
        both[told].send_signal(signal.SIGTERM)
        for p in both:
            code, said = ends(p, PROMPT)
            assert code == 143, said
            assert "stopped by SIGTERM; the state is kept" in said
    if told == 1:
        goes_on(fresh)


@pytest.mark.slow
def test_one_that_waits_for_another_that_never_comes_ends(fresh):
    with processes(PROGRAM, "alone", 30, n=1, folder=fresh) as (alone,):
        code, said = ends(alone, PROMPT)
    assert code in (2, -signal.SIGABRT)
    assert "Deadline Exceeded" in said or "DEADLINE_EXCEEDED" in said


FAULTS = """
import json, sys
import jax, numpy as np
import jaxgmm
from jaxgmm.parallel.processes import ProcessError, fit_distributed, initialize, together

index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_enable_x64", True)
said = {}
with together():
    initialize(f"localhost:{port}", 2, index, heartbeat=30, initialization=60)
    start = jaxgmm.load(f"{folder}/start.npz")
    for fault in sys.argv[4:]:
        mine = f"{folder}/part0.npy" if index == 0 else [f"{folder}/part1.npy", f"{folder}/{fault}.npy"]
        try:
            fit_distributed(start, mine, max_iter=3, checkpoint=f"{folder}/fast.npz")
        except ProcessError as error:
            said[fault] = str(error)
    # One of them is given other settings; and a checkpoint that is another fit's.
    for fault, tol, reg_covar in (("settings", 0.1 * index, 1e-6), ("checkpoint", 0.0, 1e-3)):
        try:
            fit_distributed(
                start, f"{folder}/part{index}.npy", tol=tol, reg_covar=reg_covar, max_iter=STEPS,
                checkpoint=f"{folder}/fast.npz",
            )
        except ProcessError as error:
            said[fault] = str(error)
    with open(f"{folder}/said{index}.json", "w") as file:
        json.dump(said, file)
""".replace("STEPS", str(STEPS))


@pytest.mark.slow
def test_what_is_wrong_with_one_part_is_said_by_all_and_the_checkpoint_is_as_it_was(folder):
    row = np.load(folder / "part1.npy")[:50]
    torn, bad = row.copy(), (folder / "cut.npy")
    torn[17, 1] = np.nan
    np.save(folder / "nan.npy", torn)
    np.save(folder / "wide.npy", np.column_stack([row, row]))
    np.save(folder / "empty.npy", row[:0])
    np.save(bad, row)
    bad.write_bytes(bad.read_bytes()[:-9])
    (folder / "noise.npy").write_bytes(b"no array at all")
    before = (folder / "fast.npz").read_bytes()
    faults = ["nan", "wide", "empty", "cut", "noise", "missing"]
    with processes(FAULTS, *faults, folder=folder) as both:
        for p in both:
            code, text = ends(p, 120)
            assert code == 0, text
    said = [json.loads((folder / f"said{i}.json").read_text()) for i in (0, 1)]
    assert said[0] == said[1]
    for fault in faults:
        assert said[0][fault].startswith("process 1 of 2: ")
        assert f"{fault}.npy" in said[0][fault]
    assert "row 17, column 1" in said[0]["nan"]
    assert "4 columns" in said[0]["wide"]
    assert "empty" in said[0]["empty"]
    assert "same params and settings" in said[0]["settings"]
    assert "reg_covar was 1e-06 and is 0.001" in said[0]["checkpoint"]
    assert (folder / "fast.npz").read_bytes() == before


# Process i of two, with i + 1 devices, has its own rows, and the loop runs on all three.
MESH = """
import sys
import jax, numpy as np
import jaxgmm
from jaxgmm.parallel.processes import initialize, over_processes, together

index, port, folder = int(sys.argv[1]), *sys.argv[2:4]
jaxgmm.parallel.use_cores(index + 1)
jax.config.update("jax_enable_x64", True)
with together():
    initialize(f"localhost:{port}", 2, index, heartbeat=30, initialization=60)
    mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
    mine, start = np.load(f"{folder}/part{index}.npy"), jaxgmm.load(f"{folder}/start.npz")
    X, weight = over_processes(mine, np.linspace(0.5, 2, len(mine)), mesh=mesh)
    assert X.shape[0] % 3 == 0 and len(X.addressable_shards) == index + 1
    for kernel in ("whitened", "quadratic"):
        options = jaxgmm.EMOptions(kernel=kernel)
        result = jaxgmm.fit_sharded(start, X, weight, mesh=mesh, tol=0.0, max_iter=STEPS, options=options)
        np.savez(f"{folder}/{kernel}{index}.npz", *jax.tree.leaves(result))
    mine[3, 1] = [np.nan, 1.0][index]
    over_processes(mine, mesh=mesh)
""".replace("STEPS", str(STEPS))


@pytest.mark.slow
def test_fit_sharded_runs_over_the_devices_of_two_processes(folder):
    with processes(MESH, folder=folder) as both:
        for p in both:
            code, said = ends(p, 120)
            # After the fits: what is wrong with one process's rows ends all of them.
            assert code == EXIT_FAILED, said
            assert "process 0 of 2: X must be finite; got nan at row 3, column 1" in said
    parts = [np.load(folder / f"part{i}.npy") for i in (0, 1)]
    weight = np.concatenate([np.linspace(0.5, 2, len(part)) for part in parts])
    for kernel in ("whitened", "quadratic"):
        with x64(True):
            alone = jaxgmm.fit(
                jaxgmm.load(folder / "start.npz"), np.concatenate(parts), weight, tol=0.0, max_iter=STEPS,
                options=EMOptions(kernel=kernel),
            )  # fmt: skip
        for i in (0, 1):
            for a, b in zip(leaves(folder / f"{kernel}{i}.npz"), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


SUMS = """
import sys
import jax, numpy as np
from jaxgmm.parallel.processes import initialize, together
from jaxgmm.parallel.processes import _collectives as collectives

index, port, folder = int(sys.argv[1]), *sys.argv[2:4]
with together():
    initialize(f"localhost:{port}", 3, index, heartbeat=30, initialization=60)
    for n in (1, 2, 1001):
        own = np.random.default_rng(index).normal(size=n) * 10.0 ** index
        for at_once in (1 << 16, 0):
            collectives._AT_ONCE = at_once
            total = collectives.sum_floats(own, b"12345678", "unlike")
            np.save(f"{folder}/sum-{n}-{at_once}-{index}.npy", total)
    collectives.sum_floats(own, bytes([index % 2] * 8), "unlike")
"""


@pytest.mark.slow
def test_sums_that_are_divided_among_the_processes_have_the_bits_of_sums_that_are_not(tmp_path):
    with processes(SUMS, n=3, folder=tmp_path) as three:
        for p in three:
            code, said = ends(p, 120)
            assert code == EXIT_FAILED, said
            assert "jaxgmm: unlike" in said
    for n in (1, 2, 1001):
        first, *others = [np.random.default_rng(i).normal(size=n) * 10.0**i for i in range(3)]
        expected = first + others[0] + others[1]
        for at_once in (1 << 16, 0):
            for i in range(3):
                np.testing.assert_array_equal(np.load(tmp_path / f"sum-{n}-{at_once}-{i}.npy"), expected)
