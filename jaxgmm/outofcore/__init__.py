"""Out-of-core fits: streams, stepwise and incremental EM, checkpoints."""

from jaxgmm.outofcore._checkpoint import Checkpoint
from jaxgmm.outofcore._open_source import open_source
from jaxgmm.outofcore._progress import Progress
from jaxgmm.outofcore._source import Source
from jaxgmm.outofcore._stepwise import StepwiseState, fit_stepwise, stepwise_init, stepwise_step
from jaxgmm.outofcore._stream import fit_stream

__all__ = [
    "Checkpoint",
    "Progress",
    "Source",
    "StepwiseState",
    "fit_stepwise",
    "fit_stream",
    "open_source",
    "stepwise_init",
    "stepwise_step",
]
