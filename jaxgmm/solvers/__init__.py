"""Solvers: fixed points of any map, their derivatives, and linear solves. Nothing of mixtures."""
