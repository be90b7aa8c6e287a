"""Files: saving and loading mixtures, exporting programs, and writing any file whole or not at all."""

from jaxgmm.io import exported as exported
from jaxgmm.io.atomic import atomic_write as atomic_write
from jaxgmm.io.model import load as load
from jaxgmm.io.model import load_columns as load_columns
from jaxgmm.io.model import save as save
