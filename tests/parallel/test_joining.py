"""How processes find each other and share out the parts, what is refused, and what one alone does."""

import os
import signal
import socket

import jax
import numpy as np
import pytest

import jaxgmm
import jaxgmm.parallel.processes
from jaxgmm.parallel.processes import ProcessError, Stopped, fit_distributed, initialize, together
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes.__main__ import main
from jaxgmm.parallel.processes._partition import expand, share_out
from tests.conftest import case
from tests.outofcore.streams import CHUNK, assert_same_bits, parts, start, stream, streamed
from tests.problems import X, fitted

STEPS = {"tol": 0.0, "max_iter": 6}


def test_arguments_that_do_not_fit_say_so():
    for arguments, says in [
        ({"num_processes": 2}, "come together"),
        ({"num_processes": 2, "process_id": 2, "coordinator_address": "a:1"}, "process_id must be below"),
        ({"num_processes": 2, "process_id": 0}, "coordinator_address must be given"),
        ({"coordinator_address": "host"}, '"host:port"'),
        ({"coordinator_address": "host:99999"}, '"host:port"'),
        ({"heartbeat": 0}, "heartbeat must be at least 1"),
        ({"initialization": -1}, "initialization must be at least 1"),
    ]:
        with case(arguments, says), pytest.raises(ValueError, match=says):
            initialize(**arguments)


@pytest.fixture
def network(monkeypatch):
    """A host whose name leads to `found`, and what `jax.distributed.initialize` was called with."""

    class Network:
        found, joined = "127.0.1.1", []

    def resolve(host, port, **_):
        if host == "127.0.0.1" or Network.found is not None:
            address = host if host == "127.0.0.1" else Network.found
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]
        raise socket.gaierror(-2, "Name or service not known")

    def join(address, n, i, initialization_timeout=300, heartbeat_timeout_seconds=100):
        Network.joined.append((initialization_timeout, heartbeat_timeout_seconds))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(jax.distributed, "initialize", join)
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    Network.joined = []
    return Network


def test_a_host_name_that_leads_to_itself_is_refused_among_several_hosts(network):
    several = {"coordinator_address": "node1:8476", "num_processes": 2, "process_id": 1}
    with pytest.raises(RuntimeError, match=r"'node7', leads to its loopback address.*/etc/hosts"):
        initialize(**several)
    network.found = None
    with pytest.raises(RuntimeError, match="'node7', has no address"):
        initialize(**several)
    assert not network.joined
    network.found = "10.0.0.2"
    initialize(**several, heartbeat=7)
    assert network.joined == [(120, 7)]


@pytest.mark.parametrize(
    ("address", "n", "variables", "alone"),
    [
        ("localhost:1", 2, {}, True),
        ("127.0.0.1:1", 2, {}, True),
        ("node1:1", 2, {}, False),
        ("node1:1", 1, {}, True),
        (None, None, {"SLURM_JOB_NUM_NODES": "1"}, True),
        (None, None, {"SLURM_JOB_NUM_NODES": "4"}, False),
        (None, None, {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        (None, None, {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "4"}, False),
        (None, None, {}, False),
    ],
)
def test_a_run_of_one_host_may_have_a_loopback_address(network, monkeypatch, address, n, variables, alone):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    arguments = {"coordinator_address": address, "num_processes": n, "process_id": None if n is None else 0}
    if alone:
        initialize(**arguments)
    else:
        with pytest.raises(RuntimeError, match="leads to its loopback address"):
            initialize(**arguments)
    assert len(network.joined) == alone


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


def test_one_process_alone_is_a_stream():
    assert_same_bits(fit_distributed(start(), parts(), chunk_size=CHUNK), streamed())


def test_sigterm_keeps_the_state_of_the_step_before(tmp_path):
    path = tmp_path / "fit.npz"

    def tell(progress):
        if progress.n_iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"chunk_size": CHUNK, **STEPS}
    with pytest.raises(Stopped, match="kept in the checkpoint") as stopped, together():
        fit_distributed(start(), parts(), checkpoint=path, progress=tell, **options)
    assert stopped.value.code == 143
    assert not collectives.signal.listening
    told = []
    resumed = fit_distributed(start(), parts(), checkpoint=path, progress=told.append, **options)
    assert told[0].n_iter > 3
    assert_same_bits(resumed, stream(parts(), **STEPS))
    with pytest.raises(Stopped), together():
        os.kill(os.getpid(), signal.SIGTERM)  # outside a fit: at once


def test_what_is_wrong_is_said_of_the_process():
    torn = X.astype(np.float32)
    torn[5, 1] = np.nan
    for source, options, said in (
        (torn, {}, "process 0 of 1: array 0, row 5, column 1"),
        (X[:, :1], {}, "must have the 3 features"),
        (X, {"dtype": "int32"}, "dtype must be float32"),
    ):
        with pytest.raises(ProcessError, match=said):
            fit_distributed(start(), source, **options)


def test_the_command_line_fits_from_a_start_of_its_own(double, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    for i, (a, b) in enumerate([(0, 150), (150, 200)]):
        np.save(tmp_path / f"part{i}.npy", X[a:b])
    model, kept = tmp_path / "model.npz", tmp_path / "kept.npz"
    words = ["fit", "--parts", str(tmp_path / "part*.npy"), "--out", str(model), "--covariance", "diag"]
    assert main([*words, "--components", "3", "--checkpoint", str(kept)]) == 0
    assert capsys.readouterr().out.startswith("CONVERGED after")
    assert kept.exists()
    found, best = jaxgmm.load(model), fitted("diag", "float64").params
    order, other = np.argsort(found.means[:, 0]), np.argsort(best.means[:, 0])
    np.testing.assert_allclose(found.means[order], best.means[other], atol=1e-3)
    assert main([*words, "--init", str(model), "--max-iter", "1"]) == 0


def test_the_launcher_ends_with_the_status_of_the_process_that_failed(tmp_path, monkeypatch, capfd):
    np.save(tmp_path / "part0.npy", X)
    torn = X[:50].copy()
    torn[7, 0] = np.inf
    np.save(tmp_path / "part1.npy", torn)
    jaxgmm.save(tmp_path / "start.npz", start())
    words = ["--parts", str(tmp_path / "part*.npy"), "--init", str(tmp_path / "start.npz"), "--out", "m.npz"]
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(jaxgmm.__file__)))
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words, "--launch", "2"]) == 2
    assert capfd.readouterr().err.count("part1.npy, row 7, column 0") == 2
    assert not (tmp_path / "m.npz").exists()
