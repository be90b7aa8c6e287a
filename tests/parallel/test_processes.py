"""Runs of two processes: what they compute together, and how they end when one of them comes to harm."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm.parallel.processes import EXIT_FAILED, EXIT_STOPPED
from tests.conftest import x64
from tests.outofcore.streams import CHUNK, gap, start
from tests.problems import X

ROOT = pathlib.Path(__file__).parent.parent.parent
BOUNDS = (0, 150, 200)  # of the processes' parts
STEPS = 12

# Process i of two reads its own part. What happens to process 1 happens at the beginning of its 7th pass:
# pass 1 is the survey, and the checkpoint then holds step 5.
PROGRAM = """
import json, os, signal, sys, time
import jax, numpy as np
import jaxgmm
from jaxgmm.parallel import processes
from jaxgmm.parallel.processes import ProcessError, fit_distributed, initialize, over_processes, together

mode, index, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_enable_x64", True)
own = f"{folder}/part{index}.npy"


def harmed():
    harmed.passes += 1
    if index == 1 and harmed.passes == 7:
        os.kill(os.getpid(), getattr(signal, mode))
    yield np.load(own)


def fit(source=own, **options):
    options = {"tol": 0.0, "max_iter": STEPS, "chunk_size": CHUNK, **options}
    return fit_distributed(jaxgmm.load(f"{folder}/start.npz"), source, **options)


def keep(name, result):
    np.savez(f"{folder}/{name}{index}.npz", *jax.tree.leaves(result))


def fail(progress):
    raise KeyError("made up")


def all_that_goes_well():
    keep("whole", fit())
    for harm in ("SIGKILL", "SIGTERM"):
        keep(harm, fit(checkpoint=f"{folder}/{harm}.npz"))
    processes._collectives._AT_ONCE = 0
    keep("divided", fit())

    said = {}
    def refused(name, function, *args, **options):
        try:
            function(*args, **options)
        except ProcessError as error:
            said[name] = str(error)

    for fault in sys.argv[5:]:
        refused(fault, fit, own if index == 0 else [own, f"{folder}/{fault}.npy"])
    refused("settings", fit, tol=0.1 * index)
    refused("checkpoint", fit, reg_covar=1e-3, checkpoint=f"{folder}/SIGKILL.npz")

    # Process i has i + 1 devices, and the loop runs on all three.
    mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
    mine = np.load(own)
    x, weight = over_processes(mine, mesh=mesh)
    assert x.shape[0] % 3 == 0 and len(x.addressable_shards) == index + 1
    begin = jaxgmm.load(f"{folder}/start.npz")
    keep("mesh", jaxgmm.fit_sharded(begin, x, weight, mesh=mesh, tol=0.0, max_iter=STEPS))
    mine[3, 1] = [np.nan, 1.0][index]
    refused("mesh", over_processes, mine, mesh=mesh)
    with open(f"{folder}/said{index}.json", "w") as file:
        json.dump(said, file)
    fit(progress=fail)  # called on process 0


if mode == "well":
    jaxgmm.parallel.use_cores(index + 1)
harmed.passes = -1
with together():
    initialize(f"localhost:{port}", 2, index, heartbeat=60, initialization=90)
    if mode == "well":
        all_that_goes_well()
    fit(harmed, checkpoint=jaxgmm.outofcore.Checkpoint(f"{folder}/{mode}.npz", every_iterations=1))
""".replace("STEPS", str(STEPS)).replace("CHUNK", str(CHUNK))


class Ended(NamedTuple):
    """How a process ended, and what it wrote."""

    code: int
    said: str


def free_ports(n):
    """Ports of this host that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(n)]
        for probe in probes:
            probe.bind(("localhost", 0))
        return [probe.getsockname()[1] for probe in probes]


def begin(mode, port, folder, *words):
    """Processes of one run."""
    programs = os.environ.get("JAXGMM_TEST_PROGRAMS", str(folder / "programs"))
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": programs, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, str(i), str(port), str(folder), *words],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip


def end(processes, seconds):
    """Wait for processes, and kill those that have not ended in time."""
    ended = []
    for p in processes:
        try:
            said = "".join(p.communicate(timeout=seconds))
        except subprocess.TimeoutExpired:
            p.kill()
            said = "TIMED OUT " + "".join(p.communicate())
        ended.append(Ended(p.returncode, said))
    return ended


FAULTS = ("nan", "wide", "empty", "cut", "noise", "missing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data of two processes and a start, in float64."""
    at = tmp_path_factory.mktemp("run")
    for i in (0, 1):
        np.save(at / f"part{i}.npy", X[BOUNDS[i] : BOUNDS[i + 1]])
    with x64(True):
        jaxgmm.save(at / "start.npz", start("float64"))
    row = X[150:200]
    torn = row.copy()
    torn[17, 1] = np.nan
    np.save(at / "nan.npy", torn)
    np.save(at / "wide.npy", np.column_stack([row, row]))
    np.save(at / "empty.npy", row[:0])
    np.save(at / "cut.npy", row)
    (at / "cut.npy").write_bytes((at / "cut.npy").read_bytes()[:-9])
    (at / "noise.npy").write_bytes(b"no array at all")
    return at


@pytest.fixture(scope="module")
def harmed(folder):
    """How the runs end in which process 1 is sent a signal."""
    modes = ("SIGKILL", "SIGTERM")
    runs = {mode: begin(mode, port, folder) for mode, port in zip(modes, free_ports(2), strict=True)}
    return {mode: end(run, 150) for mode, run in runs.items()}


@pytest.fixture(scope="module")
def well(folder, harmed):
    """The run that nothing happens to, after those in which something did."""
    ended = end(begin("well", free_ports(1)[0], folder, *FAULTS), 150)
    assert (folder / "said0.json").exists(), ended
    return ended, [json.loads((folder / f"said{i}.json").read_text()) for i in (0, 1)]


def leaves(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def same_bits(folder, *names):
    for name in names:
        for i in (0, 1):
            for a, b in zip(leaves(folder / f"{name}{i}.npz"), leaves(folder / "whole0.npz"), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_process_that_is_killed_ends_the_other(harmed):
    other, killed = harmed["SIGKILL"]
    assert killed.code == -signal.SIGKILL
    assert other.code == EXIT_FAILED, other
    assert "another process has ended or cannot be reached" in other.said or "another task died" in other.said


def test_sigterm_to_one_keeps_the_state_and_ends_both(harmed):
    for process in harmed["SIGTERM"]:
        assert process.code == EXIT_STOPPED, process
        assert "stopped by SIGTERM; the state is kept" in process.said


def test_an_exception_on_one_ends_both_with_its_words(well):
    for process in well[0]:
        assert process.code == EXIT_FAILED, process
        assert "made up" in process.said


def test_two_processes_fit_what_one_fits_and_hold_the_same_bits(folder, well):
    same_bits(folder, "whole")
    with x64(True):
        alone = jaxgmm.fit(start("float64"), X, tol=0.0, max_iter=STEPS)
    assert gap(jax.tree.leaves(alone), leaves(folder / "whole0.npz")) < 1e-12


def test_a_run_that_was_killed_or_stopped_goes_on_to_the_same_bits(folder, well):
    same_bits(folder, "SIGKILL", "SIGTERM")


def test_sums_that_are_divided_among_the_processes_have_the_same_bits(folder, well):
    same_bits(folder, "divided")


def test_what_is_wrong_with_one_part_is_said_by_all(folder, well):
    _, (said, other) = well
    assert said == other
    for fault in FAULTS:
        assert said[fault].startswith("process 1 of 2: ")
        assert f"{fault}.npy" in said[fault]
    assert "row 17, column 1" in said["nan"]
    assert "6 columns" in said["wide"]
    assert "empty" in said["empty"]
    assert "same params and settings" in said["settings"]
    assert "reg_covar was 1e-06 and is 0.001" in said["checkpoint"]


def test_fit_sharded_runs_over_the_devices_of_two_processes(folder, well):
    with x64(True):
        alone = jaxgmm.fit(start("float64"), X, tol=0.0, max_iter=STEPS)
    for i in (0, 1):
        assert gap(jax.tree.leaves(alone), leaves(folder / f"mesh{i}.npz")) < 1e-12
    assert well[1][0]["mesh"].startswith("process 0 of 2: X must be finite; got nan at row 3, column 1")
