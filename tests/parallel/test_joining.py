"""How processes find each other and share out the parts, what is refused, and what one alone does."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxgmm
import jaxgmm.parallel.processes
from jaxgmm import EMOptions
from jaxgmm.parallel.processes import Stopped, fit_distributed, initialize, together
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes import _initialize as joining
from jaxgmm.parallel.processes._partition import expand, share_out
from tests.conftest import overlapping, start_from

X, LABELS = overlapping(300, 2, 3, seed=6)
STEPS = {"tol": 0.0, "max_iter": 6}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_processes": 2}, "come together"),
        ({"num_processes": 2, "process_id": 2, "coordinator_address": "a:1"}, "process_id must be below"),
        ({"num_processes": 2, "process_id": 0}, "coordinator_address must be given"),
        ({"coordinator_address": "host"}, '"host:port"'),
        ({"coordinator_address": "host:99999"}, '"host:port"'),
        ({"heartbeat": 0}, "heartbeat must be at least 1"),
        ({"initialization": -1}, "initialization must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_say_so(arguments, says):
    with pytest.raises(ValueError, match=says):
        initialize(**arguments)


def addresses(monkeypatch, found):
    def resolve(host, port, **_):
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")


def test_a_host_name_that_leads_to_itself_is_refused_among_several_hosts(monkeypatch):
    joined = []

    def join(address, n, i, initialization_timeout=300, heartbeat_timeout_seconds=100):
        joined.append((initialization_timeout, heartbeat_timeout_seconds))

    monkeypatch.setattr(jax.distributed, "initialize", join)
    several = {"coordinator_address": "10.0.0.1:8476", "num_processes": 2, "process_id": 1}
    addresses(monkeypatch, "127.0.1.1")
    monkeypatch.setattr(joining, "_on_one_host", lambda *_: False)
    with pytest.raises(RuntimeError, match=r"'node7', leads to its loopback address.*/etc/hosts"):
        initialize(**several)
    addresses(monkeypatch, None)
    with pytest.raises(RuntimeError, match="'node7', has no address"):
        initialize(**several)
    assert not joined
    addresses(monkeypatch, "10.0.0.2")
    initialize(**several, heartbeat=7)
    assert joined == [(120, 7)]


@pytest.mark.parametrize(
    ("address", "n", "variables", "alone"),
    [
        ("localhost:1", 2, {}, True),
        ("127.0.0.1:1", 2, {}, True),
        ("10.0.0.1:1", 2, {}, False),
        ("node1:1", 2, {}, False),
        ("node1:1", 1, {}, True),
        (None, None, {"SLURM_JOB_NUM_NODES": "1"}, True),
        (None, None, {"SLURM_JOB_NUM_NODES": "4"}, False),
        (None, None, {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        (None, None, {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "4"}, False),
        (None, None, {}, False),
    ],
)
def test_whether_a_run_is_of_one_host(monkeypatch, address, n, variables, alone):
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert joining._on_one_host(address, n) == alone


def test_parts_are_shared_out_each_once_and_evenly(tmp_path):
    sizes = [10, 9000, 20, 4000, 5000, 0]
    for i, size in enumerate(sizes):
        (tmp_path / f"p{i}.npy").write_bytes(b"x" * size)
    paths = expand([str(tmp_path / "*.npy"), str(tmp_path / "p0.npy")])
    assert [os.path.basename(p) for p in paths] == [f"p{i}.npy" for i in range(6)]
    for n in (1, 2, 4, 6):
        shares = share_out(paths, n)
        assert sorted(path for share in shares for path in share) == paths
        assert all(shares)
    loads = [sum(os.path.getsize(p) for p in share) for share in share_out(paths, 2)]
    assert max(loads) == 9020
    with pytest.raises(FileNotFoundError, match=r"none\*: no file"):
        expand([str(tmp_path / "none*")])


def test_one_process_alone_fits_as_fit_does(dtype):
    x = (X + 30).astype(dtype)
    start = start_from(x, LABELS, "full", dtype)
    whole = jaxgmm.fit(start, x, options=EMOptions(kernel="whitened"), **STEPS)
    alone = fit_distributed(start, [x[:100], x[100:]], **STEPS)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol={"float64": 1e-11, "float32": 2e-5}[dtype.name], atol=1e-6)


def test_sigterm_keeps_the_state_of_the_step_before(tmp_path):
    start, path = start_from(X, LABELS, "full", np.float32), tmp_path / "fit.npz"
    x = X.astype(np.float32)

    def tell(progress):
        if progress.n_iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="kept in the checkpoint") as stopped, together():
        fit_distributed(start, x, checkpoint=path, progress=tell, **STEPS)
    assert stopped.value.code == 143
    assert not collectives.signal.listening
    straight = fit_distributed(start, x, **STEPS)
    told = []
    resumed = fit_distributed(start, x, checkpoint=path, progress=lambda p: told.append(p.n_iter), **STEPS)
    assert min(told) > 3
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    with pytest.raises(Stopped), together():
        os.kill(os.getpid(), signal.SIGTERM)  # outside a fit: at once


def test_what_is_wrong_is_said_of_the_process():
    torn = X.astype(np.float32)
    torn[5, 1] = np.nan
    start = start_from(X, LABELS, "full", np.float32)
    with pytest.raises(
        jaxgmm.parallel.processes.ProcessError, match="process 0 of 1: array 0, row 5, column 1"
    ):
        fit_distributed(start, torn)
    with pytest.raises(jaxgmm.parallel.processes.ProcessError, match="must have the 2 features"):
        fit_distributed(start, X[:, :1])
    with pytest.raises(jaxgmm.parallel.processes.ProcessError, match="dtype must be float32"):
        fit_distributed(start, X, dtype="int32")


@pytest.mark.slow
def test_the_command_line_starts_processes_and_ends_with_their_status(tmp_path):
    for i, (a, b) in enumerate([(0, 200), (200, 300)]):
        np.save(tmp_path / f"part{i}.npy", X[a:b])
    model, kept = tmp_path / "model.npz", tmp_path / "kept.npz"
    command = [
        sys.executable,
        "-m",
        "jaxgmm.parallel.processes",
        "fit",
        "--parts",
        str(tmp_path / "part*.npy"),
    ]
    root = os.path.dirname(os.path.dirname(jaxgmm.__file__))

    def run(*words):
        return subprocess.run(
            [*command, "--out", str(model), "--launch", "2", *words],
            env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = run("--components", "3", "--checkpoint", str(kept))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("CONVERGED after")
    params = jaxgmm.load(model)
    alone = jaxgmm.fit_restarts(jax.random.key(0), X, 3, n_init=1, init="kmeans")
    assert abs(float(jaxgmm.score(params, X)) - float(alone.log_likelihood[0])) < 1e-4
    assert kept.exists()
    model.unlink()
    X2 = X[:50].copy()
    X2[7, 0] = np.inf
    np.save(tmp_path / "part2.npy", X2)
    failed = run("--components", "3")
    assert failed.returncode == 2
    assert failed.stderr.count("part2.npy, row 7, column 0") == 2
    assert not model.exists()
