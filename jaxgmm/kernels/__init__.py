"""Kernels: sums over rows, linear algebra and compilation; all that knows of the backend and of XLA."""
