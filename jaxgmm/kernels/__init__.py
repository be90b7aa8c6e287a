"""How sums over rows are computed, and how programs are compiled: what knows of the backend and of XLA."""
