"""Fits by many processes over `jax.distributed`: each reads its own data, and only sums are sent.

On the command line, `python -m jaxgmm.distributed fit --help`. A program of one's own::

    with jaxgmm.distributed.together():
        jaxgmm.distributed.initialize()
        mine = f"part{jax.process_index()}.npy"
        result = jaxgmm.distributed.fit_distributed(start, mine, checkpoint="fit.npz")
"""

from jaxgmm.distributed.ending import EXIT_FAILED as EXIT_FAILED
from jaxgmm.distributed.ending import EXIT_STOPPED as EXIT_STOPPED
from jaxgmm.distributed.ending import Stopped as Stopped
from jaxgmm.distributed.ending import together as together
from jaxgmm.distributed.exchange import LostProcessError as LostProcessError
from jaxgmm.distributed.exchange import ProcessError as ProcessError
from jaxgmm.distributed.fitting import fit_distributed as fit_distributed
from jaxgmm.distributed.joining import initialize as initialize
from jaxgmm.distributed.rows import over_processes as over_processes
