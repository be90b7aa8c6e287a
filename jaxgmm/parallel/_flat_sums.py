"""Arrays of a tree as one float64 vector: what is sent between processes, and added."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: Any) -> np.ndarray[Any, Any]:
    """(n,) float64, all numbers of a tree."""
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


def unflat(like: Any, vector: np.ndarray[Any, Any]) -> Any:
    """The tree of such a vector, in the shapes and dtypes of another tree."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(vector, np.cumsum([a.size for a in leaves])[:-1])
    arrays = [jnp.asarray(p.reshape(a.shape), a.dtype) for p, a in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)
