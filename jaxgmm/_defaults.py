"""Defaults that interfaces show before JAX is imported."""

MAX_ITER = 1000
REG_COVAR = 1e-6
SEARCH_BUDGET = 1000  # EM steps of `select` for each number of components
FOLDS = 5
