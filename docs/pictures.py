"""Draws the README's second picture: `python docs/pictures.py`, from the root of the clone."""

import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxgmm
from jaxgmm.plot import plot_criteria, plot_density, plot_uncertainty

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
COLUMNS = ["eruption (min)", "wait for the next (min)"]

X = np.loadtxt(FOLDER / "data" / "faithful.csv", delimiter=",", skiprows=1)
structures = ["EII", "EEE", "VVI", "VVV"]
choice = jaxgmm.select(jax.random.key(0), X, range(1, 7), covariance_types=structures)
print(choice)

figure = Figure(figsize=(10.5, 3.4), layout="constrained")
axes = figure.subplots(1, 3)
plot_criteria(choice.table, ax=axes[0])
plot_density(choice.params, X, ax=axes[1], columns=COLUMNS)
plot_uncertainty(choice.params, X, ax=axes[2], columns=COLUMNS)
figure.savefig(FOLDER / "img" / "selection.png", dpi=160)
