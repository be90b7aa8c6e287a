"""``python -m jaxgmm.parallel.processes fit``: a fit of Parquet or npy parts by many processes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgmm import _validate as validate
from jaxgmm.components.registry import get_model
from jaxgmm.io import load, save
from jaxgmm.outofcore._checkpoint import Checkpoint
from jaxgmm.outofcore._open_source import open_source
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes import _init as init
from jaxgmm.parallel.processes import _launcher as launcher
from jaxgmm.parallel.processes._collectives import agreed
from jaxgmm.parallel.processes._fit import fit_distributed
from jaxgmm.parallel.processes._initialize import initialize
from jaxgmm.parallel.processes._partition import expand, share_out
from jaxgmm.parallel.processes._shutdown import EXIT_FAILED, together
from jaxgmm.selection._criteria import check
from jaxgmm.solvers.squarem import Status

DESCRIPTION = """Fit a mixture to Parquet, Arrow or npy files by many processes, each of which reads some of
them.

Every process runs this command. Under Slurm, Open MPI or Kubernetes it finds the others by itself; elsewhere
say --coordinator, --num-processes and --process-id. --launch N starts N of them on this host, to try it."""

STATUS = """Exit status: 0; 1 if the fit did not converge; 2 for a mistake in the command or the data, and
where a process failed or was lost; 143 after SIGTERM, once the checkpoint is written. Run again, a fit goes
on from its checkpoint."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxgmm.parallel.processes", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser(
        "fit", description=DESCRIPTION, epilog=STATUS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = fit.add_argument
    add("--parts", nargs="+", required=True, metavar="PATTERN", help="files, or patterns: 'data/*.npy'")
    add("--own", action="store_true", help="the files found here are this process's, not to be shared out")
    add("--out", required=True, metavar="MODEL", help="the model, which jaxgmm.load reads; by process 0")
    start = fit.add_mutually_exclusive_group(required=True)
    start.add_argument("--components", type=int, metavar="K", help="number of components")
    start.add_argument("--init", metavar="MODEL", help="a model to start from")
    add("--covariance", default="full", metavar="NAME", help="covariance structure (default full)")
    add(
        "--columns",
        metavar="NAMES",
        help="features, joined by commas: names, or numbers for npy; default all",
    )
    add("--weight-column", metavar="NAME", help="the column that holds sample weights")
    add("--checkpoint", metavar="FILE", help="where the fit is kept, and taken up from")
    add("--every-iterations", type=int, metavar="N", help="steps between two writings of the checkpoint")
    add("--every-seconds", type=float, metavar="S", help="seconds between them (default 60)")
    add("--tol", type=float, default=1e-5)
    add("--max-iter", type=int, default=1000)
    add("--reg-covar", type=float, default=1e-6)
    add("--dtype", choices=["float32", "float64"], help="default: as the data")
    add("--seed", type=int, default=0, help="of the start (default 0)")
    add("--progress", action="store_true", help="tell of it on stderr")
    add("--coordinator", metavar="HOST:PORT", help="of process 0")
    add("--num-processes", type=int, metavar="N")
    add("--process-id", type=int, metavar="I")
    add("--heartbeat", type=int, default=30, metavar="S", help="seconds until a silent process is lost")
    add("--initialization", type=int, default=120, metavar="S", help="seconds until all must have come")
    add("--launch", type=int, metavar="N", help="start N processes on this host")
    return parser


def _column(name: str) -> Any:
    return int(name) if name.lstrip("-").isdigit() else name


def _fit(options: argparse.Namespace) -> int:
    """The fit of this process; its status."""
    jax.config.update("jax_enable_x64", True)
    initialize(
        options.coordinator, options.num_processes, options.process_id,
        heartbeat=options.heartbeat, initialization=options.initialization,
    )  # fmt: skip
    index, n = jax.process_index(), jax.process_count()
    parts = agreed(lambda: expand(options.parts))
    if not options.own:
        listed = json.dumps([(os.path.basename(p), os.path.getsize(p)) for p in parts]).encode()
        collectives.same(
            collectives.digest(listed),
            "the processes find different files for --parts; with --own each of them reads what it finds",
        )
        parts = agreed(lambda: share_out(parts, n)[index])
    columns = None if options.columns is None else [_column(c) for c in options.columns.split(",")]
    weights = None if options.weight_column is None else _column(options.weight_column)
    source = agreed(lambda: open_source(parts, columns, weights))
    if options.init is not None:
        params = agreed(lambda: load(options.init))
    else:
        k = agreed(lambda: validate.count(options.components, "--components", 1))
        model = agreed(lambda: get_model(options.covariance))
        params = init.cluster(source, k, model, np.dtype(np.float64), options.seed)
    often = {"every_iterations": options.every_iterations, "every_seconds": options.every_seconds}
    checkpoint = agreed(lambda: options.checkpoint and Checkpoint(options.checkpoint, **often))
    result = fit_distributed(
        params, source, tol=options.tol, max_iter=options.max_iter, reg_covar=options.reg_covar,
        dtype=options.dtype, checkpoint=checkpoint, progress=options.progress,
    )  # fmt: skip
    status = Status(int(result.status))

    def write() -> None:
        if index == 0 and status in (Status.CONVERGED, Status.MAX_ITER):
            save(options.out, result.params, columns=source.columns)
        elif index == 0:
            check(result)

    agreed(write)
    if index == 0:
        said = f"{int(result.n_iter)} steps, log-likelihood {float(result.log_likelihood):.9g} per row"
        sys.stdout.write(f"{status.name} after {said}; wrote {options.out}\n")
    return 0 if status == Status.CONVERGED else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    if options.launch is not None:
        if options.launch < 1 or options.coordinator is not None or options.num_processes is not None:
            sys.stderr.write("jaxgmm: --launch takes a number of processes, and goes without --coordinator\n")
            return EXIT_FAILED
        if "--launch" in words:
            del words[words.index("--launch") + 1]
        rest = [word for word in words if not word.startswith("--launch")]
        return launcher.launch(rest, options.launch)
    with together():
        return _fit(options)


if __name__ == "__main__":
    sys.exit(main())
