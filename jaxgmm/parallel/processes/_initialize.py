"""`initialize`: joining processes into one run, and what is refused."""

from __future__ import annotations

import inspect
import ipaddress
import os
import signal
import socket
import threading
from typing import Any

import jax

from jaxgmm import _validate as validate


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 30,
    shutdown: int = 30,
    initialization: int = 120,
) -> None:
    """Join the processes of a run: `jax.distributed.initialize` with times that end a broken run soon.

    Where a cluster is known to JAX (Slurm, Open MPI, Kubernetes with `jax[k8s]`, TPU pods) no argument is
    needed. The coordination service has neither encryption nor authentication: private networks only.

    Args:
      coordinator_address: "host:port" of process 0, the same in every process; None for what JAX finds.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      heartbeat: seconds without a sign of life after which a process counts as lost, and the others end.
        JAX before 0.7 takes no such number, and waits for 100 seconds.
      shutdown: seconds that processes wait for each other in the end. As for heartbeat.
      initialization: seconds within which all of them must have come.

    Raises:
      ValueError, TypeError: for numbers that do not fit.
      RuntimeError: where this host's name leads to its loopback address in a run of several hosts: that
        address is what the other hosts would be told to connect to. Also where JAX has already met its
        devices, or a process does not come in time.

    Example:
      In each of two processes, i = 0 and 1:
      `jaxgmm.parallel.processes.initialize("10.0.0.1:8476", num_processes=2, process_id=i)`.
    """
    times = {
        "heartbeat_timeout_seconds": validate.count(heartbeat, "heartbeat", 1),
        "shutdown_timeout_seconds": validate.count(shutdown, "shutdown", 1),
        "initialization_timeout": validate.count(initialization, "initialization", 1),
    }
    _check_processes(coordinator_address, num_processes, process_id)
    if not _on_one_host(coordinator_address, num_processes):
        check_host_name()
    # Its handler would swallow SIGTERM; the runs of this package stop on it by themselves.
    before = signal.getsignal(signal.SIGTERM)
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    known = inspect.signature(jax.distributed.initialize).parameters
    options: dict[str, Any] = {name: value for name, value in times.items() if name in known}
    jax.distributed.initialize(coordinator_address, num_processes, process_id, **options)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # JAX before 0.6 cannot be told to leave it alone


def _check_processes(address: Any, num_processes: Any, process_id: Any) -> None:
    if (num_processes is None) != (process_id is None):
        raise ValueError("num_processes and process_id come together; give both or neither")
    if address is not None:
        host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f'coordinator_address must be "host:port", as 10.0.0.1:8476; got {address!r}')
    if num_processes is None:
        return
    n = validate.count(num_processes, "num_processes", 1)
    if validate.count(process_id, "process_id", 0) >= n:
        raise ValueError(f"process_id must be below num_processes = {n}; got {process_id}")
    if n > 1 and address is None:
        raise ValueError("coordinator_address must be given with num_processes")


def _is_loopback(host: str) -> bool:
    """Whether the first address of a host, which is the one that gloo binds, is of the loopback interface."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return ipaddress.ip_address(str(found[0][4][0]).partition("%")[0]).is_loopback


def _on_one_host(address: str | None, num_processes: int | None) -> bool:
    if num_processes == 1:
        return True
    if address is not None:
        host = address.rpartition(":")[0].strip("[]")
        return host in ("localhost", "::1") or (host.replace(".", "").isdigit() and _is_loopback(host))
    hosts = os.environ.get("SLURM_JOB_NUM_NODES", os.environ.get("SLURM_NNODES"))
    if hosts is not None:
        return hosts == "1"
    local, size = (os.environ.get(f"OMPI_COMM_WORLD_{name}") for name in ("LOCAL_SIZE", "SIZE"))
    return size is not None and local == size


def check_host_name() -> None:
    """Raise where the other hosts of a run could not connect to what this one's name leads to.

    Raises:
      RuntimeError: the name leads to the loopback interface, or nowhere.
    """
    name = socket.gethostname()
    try:
        loopback = _is_loopback(name)
    except OSError as error:
        raise RuntimeError(
            f"this host's name, {name!r}, has no address ({error.strerror or error}); the other hosts are "
            "told to connect to it. Give it its network address in /etc/hosts or the name service"
        ) from None
    if loopback:
        raise RuntimeError(
            f"this host's name, {name!r}, leads to its loopback address, and that is what the other hosts "
            "would be told to connect to: each would reach itself. Give the name its network address in "
            f"/etc/hosts, in a line such as `10.0.0.1 {name}` before those of 127.0.0.1 and 127.0.1.1. For "
            "processes on this host alone, use localhost as the coordinator's host"
        )
