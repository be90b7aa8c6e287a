"""Covariance structures: the record `Covariance`, one file for each kind, and their names."""
