"""Covariance structures: the record, one file for each structure, and the registry of their names."""
