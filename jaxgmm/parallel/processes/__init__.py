"""Fits by many processes over `jax.distributed`: each reads its own data, and only sums are sent.

On the command line, `python -m jaxgmm.parallel.processes fit --help`. A program of one's own::

    with jaxgmm.parallel.processes.together():
        jaxgmm.parallel.processes.initialize()
        mine = f"part{jax.process_index()}.npy"
        result = jaxgmm.parallel.processes.fit_distributed(start, mine, checkpoint="fit.npz")
"""

from jaxgmm.parallel.processes._collectives import LostProcessError as LostProcessError
from jaxgmm.parallel.processes._collectives import ProcessError as ProcessError
from jaxgmm.parallel.processes._fit import fit_distributed as fit_distributed
from jaxgmm.parallel.processes._global_array import over_processes as over_processes
from jaxgmm.parallel.processes._initialize import initialize as initialize
from jaxgmm.parallel.processes._shutdown import EXIT_FAILED as EXIT_FAILED
from jaxgmm.parallel.processes._shutdown import EXIT_STOPPED as EXIT_STOPPED
from jaxgmm.parallel.processes._shutdown import Stopped as Stopped
from jaxgmm.parallel.processes._shutdown import together as together
