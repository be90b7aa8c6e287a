"""Runs of two processes: what they compute together, and how they end when one of them comes to harm."""

import contextlib
import json
import os
import signal
import socket

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm.outofcore import Checkpoint
from jaxgmm.parallel.processes import (
    EXIT_FAILED,
    EXIT_STOPPED,
    ProcessError,
    fit_distributed,
    initialize,
    over_processes,
    together,
)
from jaxgmm.parallel.processes import _collectives as collectives
from tests.conftest import x64
from tests.outofcore.streams import CHUNK, gap, start
from tests.parallel.children import Child
from tests.problems import X

BOUNDS = (0, 150, 200)  # of the processes' parts
STEPS = 12

FAULTS = ("nan", "wide", "empty", "cut", "noise", "missing")


class Run:
    """What process i of two does, which reads its own part.

    What happens to process 1 happens at the beginning of its 7th pass: pass 1 is the survey, and the
    checkpoint then holds step 5.
    """

    def __init__(self, index, folder, mode):
        self.index, self.folder, self.mode, self.passes = index, folder, mode, -1
        self.own, self.said = f"{folder}/part{index}.npy", {}

    def harmed(self):
        """The source to which it happens."""
        self.passes += 1
        if self.index == 1 and self.passes == 7:
            os.kill(os.getpid(), getattr(signal, self.mode))
        yield np.load(self.own)

    def fit(self, source=None, **options):
        options = {"tol": 0.0, "max_iter": STEPS, "chunk_size": CHUNK, **options}
        return fit_distributed(jaxgmm.load(f"{self.folder}/start.npz"), source or self.own, **options)

    def keep(self, name, result):
        np.savez(f"{self.folder}/{name}{self.index}.npz", *jax.tree.leaves(result))

    def refused(self, name, function, *args, **options):
        try:
            function(*args, **options)
        except ProcessError as error:
            self.said[name] = str(error)

    def all_that_goes_well(self):
        self.keep("whole", self.fit())
        for harm in ("SIGKILL", "SIGTERM"):
            self.keep(harm, self.fit(checkpoint=f"{self.folder}/{harm}.npz"))
        collectives._AT_ONCE = 0
        self.keep("divided", self.fit())

        for fault in FAULTS:
            torn = [self.own, f"{self.folder}/{fault}.npy"]
            self.refused(fault, self.fit, self.own if self.index == 0 else torn)
        self.refused("settings", self.fit, tol=0.1 * self.index)
        self.refused("checkpoint", self.fit, reg_covar=1e-3, checkpoint=f"{self.folder}/SIGKILL.npz")

        # Process i has i + 1 devices, and the loop runs on all three.
        mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
        mine = np.load(self.own)
        x, weight = over_processes(mine, mesh=mesh)
        assert x.shape[0] % 3 == 0
        assert len(x.addressable_shards) == self.index + 1
        begin = jaxgmm.load(f"{self.folder}/start.npz")
        self.keep("mesh", jaxgmm.fit_sharded(begin, x, weight, mesh=mesh, tol=0.0, max_iter=STEPS))
        mine[3, 1] = [np.nan, 1.0][self.index]
        self.refused("mesh", over_processes, mine, mesh=mesh)
        with open(f"{self.folder}/said{self.index}.json", "w") as file:
            json.dump(self.said, file)
        self.fit(progress=fail)  # called on process 0


def fail(progress):
    raise KeyError("made up")


def one_of_two(index, port, folder, mode):
    """All that a process does."""
    run = Run(index, folder, mode)
    if mode == "well":
        jaxgmm.parallel.use_cores(index + 1)
    with together():
        initialize(f"localhost:{port}", 2, index, heartbeat=60, initialization=90)
        if mode == "well":
            run.all_that_goes_well()
        run.fit(run.harmed, checkpoint=Checkpoint(f"{folder}/{mode}.npz", every_iterations=1))


def free_ports(n):
    """Ports of this host that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(n)]
        for probe in probes:
            probe.bind(("localhost", 0))
        return [probe.getsockname()[1] for probe in probes]


def begin(mode, port, folder):
    """The processes of one run."""
    return [Child(folder / f"{mode}{i}.log", one_of_two, i, port, str(folder), mode) for i in (0, 1)]


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
    return {mode: [child.end(150) for child in run] for mode, run in runs.items()}


@pytest.fixture(scope="module")
def well(folder, harmed):
    """The run that nothing happens to, after those in which something did."""
    ended = [child.end(150) for child in begin("well", free_ports(1)[0], folder)]
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
