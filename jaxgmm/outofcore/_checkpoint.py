"""Checkpoints: the state of a fit between two iterations, kept so that a killed fit goes on from there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm import _validate as validate
from jaxgmm._version import __version__
from jaxgmm.data import Context
from jaxgmm.io.archive import read_arrays, write_arrays
from jaxgmm.io.atomic import atomic_write
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.outofcore import _data_summary as data_summary
from jaxgmm.priors import Prior
from jaxgmm.solvers.squarem import RUNNING, State, Status

VERSION = 1

# How near numbers of the data must be to those in a checkpoint: sums over the same rows in another order are.
_NEAR = 1e-5
_SECONDS = 60.0


class Near(NamedTuple):
    """Numbers that come of sums over the data, and are the same but for rounding."""

    values: np.ndarray  # float64
    unit: float = 0.0  # what they are small against, where they are small


def _relative(values: Any) -> Near:
    """Small against the largest of them."""
    a = np.asarray(values, np.float64)
    return Near(a, float(np.abs(a).max(initial=0, where=np.isfinite(a))))


class Settings(NamedTuple):
    """What must be the same for a fit to be taken up again.

    Attributes:
      like: the state that the fit begins with, or the shapes of one.
      shift: (D,) what the means in the state are relative to.
      max_iter: the limit on steps, which may change: a fit that met a lower one goes on.
      same: names and values that must be equal: text, numbers, None, and lists and dicts of these.
      near: names and numbers that must be equal but for the rounding of their sums.
    """

    like: State
    shift: np.ndarray
    max_iter: int
    same: Mapping[str, Any]
    near: Mapping[str, Near]


def settings(
    params: GMMParams,
    summary: data_summary.DataSummary,
    f: Context,
    numbers: data_summary.Numbers,
    prior: Prior | None,
    history_size: int,
    source: Mapping[str, Any],
) -> Settings:
    """The settings of a fit by `_host_driver.fit`, from what it begins with.

    Args:
      params: where it starts, checked, in the dtype of the fit and in the coordinates of the data.
      summary: of all its data.
      f: the context that the summary gave.
      numbers: tol, max_iter, reg_covar and accelerate. The limit may change, the others may not.
      prior: a checked one, or None.
      history_size: of the state.
      source: what describes the data: text, numbers, and lists and dicts of these.
    """
    tol, max_iter, reg_covar, accelerate = (a.item() for a in numbers)
    widths = np.sqrt(np.asarray(f.variance, np.float64))

    def placed(means: Any) -> Near:
        return Near((np.asarray(means, np.float64) - summary.mean) / widths, 1.0)

    near = {
        "mean of the data, in its widths": Near(summary.mean / widths, 1.0),
        "variance of the data": Near(widths**2),
        "total weight": Near(np.asarray(summary.total_weight)),
        "starting log_weights": Near(np.asarray(params.log_weights, np.float64), 1.0),
        "starting means, in widths of the data": placed(params.means),
    }
    for i, leaf in enumerate(jax.tree.leaves(params.scale)):
        near[f"starting scale, array {i}"] = _relative(leaf)
    parts = {} if prior is None else {n: a for n, a in vars(prior).items() if a is not None}
    for name, value in parts.items():
        near[f"prior.{name}"] = placed(value) if name == "mean" else _relative(value)
    same = {
        "model": params.model.name,
        "n_components": params.n_components,
        "n_features": params.n_features,
        "n_samples": summary.n_samples,
        "dtype": str(params.means.dtype),
        "tol": tol,
        "reg_covar": reg_covar,
        "accelerate": accelerate,
        "history_size": history_size,
        "prior": None if prior is None else sorted(parts),
        "source": dict(source),
    }
    like = data_summary.start(params, f.shift, history_size)
    return Settings(like, np.asarray(f.shift), max_iter, same, near)


class Checkpoint:
    """A file that a fit keeps its state in, and is taken up from.

    Given to a fit, it is read if it exists and written every so often, whole or not at all: killed at any
    moment, the fit goes on from the last one and ends with the same bits, where the data are read in the same
    way by as many processes; with another number of them, to rounding. A file that belongs to other data or
    other settings is refused, and says what is different; only max_iter may change. Nothing in a file is
    executed when it is read.

    Args:
      path: the file. It stays when the fit has ended: a fit that is called again returns its result at once.
      every_iterations: how many EM steps are taken between two writings; None for no such rule.
      every_seconds: how much time passes between them; None for no such rule. Without either rule, 60.

    Raises:
      ValueError, TypeError: for numbers that are not positive, or a path that is not one.

    Example:
      >>> import jaxgmm, numpy as np, os, tempfile
      >>> X = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> path = os.path.join(tempfile.mkdtemp(), "fit.npz")
      >>> first = jaxgmm.fit_stream(start, X, max_iter=3, checkpoint=jaxgmm.outofcore.Checkpoint(path))
      >>> second = jaxgmm.fit_stream(start, X, max_iter=5, checkpoint=jaxgmm.outofcore.Checkpoint(path))
      >>> int(first.n_iter), int(second.n_iter)
      (3, 5)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_iterations: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path must be the name of a file; got {path!r}")
        if every_iterations is not None:
            every_iterations = validate.count(every_iterations, "every_iterations", 1)
        elif every_seconds is None:
            every_seconds = _SECONDS
        if isinstance(every_seconds, bool) or not isinstance(every_seconds, int | float | None):
            raise TypeError(f"every_seconds must be a number; got {every_seconds!r}")
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(f"every_seconds must be positive; got {every_seconds}")
        self.path = os.fspath(path)
        self.every_iterations = every_iterations
        self.every_seconds = every_seconds
        self.phase = 0  # which of the fit's kernels the state belongs to
        self._iteration: int | None = None  # of the state that the file holds
        self._clock = time.monotonic()

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r})"

    def load(self, settings: Settings) -> State | None:
        """The state that the file holds, ready for the next iteration; None where there is no file.

        Raises:
          ValueError: it is damaged, or of other data or settings; the message says which and what differs.
          OSError: it cannot be read, or none could be written there.
        """
        self._check_place()
        self._clock, self._iteration, self.phase = time.monotonic(), None, 0
        if not os.path.lexists(self.path):
            return None
        members = read_arrays(self.path, _accept, "checkpoint")
        try:
            state = _restore(members, settings)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        self._iteration, self.phase = int(state.n_iter), int(members.get("extra_0", np.zeros(())))
        return state

    def save(self, state: State, settings: Settings) -> None:
        """Replace the file's contents by a state, whole or not at all.

        Raises:
          OSError: it cannot be written; what the file held before is still there.
        """
        about = {
            "checkpoint_version": VERSION,
            "same": settings.same,
            "near": list(settings.near),
            "extra": ["phase"],
            "written_by": {"jaxgmm": __version__, "jax": jax.__version__, "numpy": np.__version__},
        }
        members = {
            "checkpoint": np.asarray(json.dumps(about), np.str_),
            "shift": settings.shift,
            **{f"near_{i}": np.asarray(a.values) for i, a in enumerate(settings.near.values())},
            "extra_0": np.asarray(self.phase, np.int64),
            **{f"state_{i}": _storable(np.asarray(a)) for i, a in enumerate(jax.tree.leaves(state))},
        }
        try:
            with atomic_write(self.path) as stream:
                write_arrays(stream, members)
        except OSError as error:
            before = self._iteration
            kept = "there is none yet" if before is None else f"that of step {before} is kept"
            said = f"the checkpoint could not be written ({error.strerror or error}); {kept}"
            raise OSError(error.errno, said, self.path) from error
        self._iteration, self._clock = int(state.n_iter), time.monotonic()

    def due(self, state: State) -> bool:
        """Whether it is time to save: enough steps or seconds have passed, or the fit has ended."""
        seconds, steps = time.monotonic() - self._clock, int(state.n_iter) - (self._iteration or 0)
        rules = ((seconds, self.every_seconds), (steps, self.every_iterations))
        return int(state.status) != RUNNING or any(most is not None and now >= most for now, most in rules)

    def _check_place(self) -> None:
        """Raise now, before the work, where no file could be written afterwards."""
        directory = os.path.dirname(os.path.realpath(self.path))
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"checkpoint {self.path} is a directory; give the name of a file")
        if not os.path.isdir(directory):
            raise FileNotFoundError(f"checkpoint {self.path}: the directory {directory} does not exist")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"checkpoint {self.path}: the directory {directory} is not writable")


def check(checkpoint: Any) -> Checkpoint | None:
    """A checkpoint, or the path of one, or None."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        return Checkpoint(checkpoint)
    raise TypeError(f"checkpoint must be a jaxgmm.outofcore.Checkpoint, a path or None; got {checkpoint!r}")


def _storable(a: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) if a.dtype.kind in "iu" else a


def _accept(names: set[str]) -> str | None:
    missing = {"checkpoint", "shift", "state_0"} - names
    return f"it has no {sorted(missing)[0]}" if missing else None


def _restore(members: dict[str, np.ndarray], settings: Settings) -> State:
    try:
        about = json.loads(str(members["checkpoint"]))
        version, same, near = about["checkpoint_version"], about["same"], about["near"]
        newer = version > VERSION
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("damaged: what it says of itself cannot be read") from None
    if newer:
        raise ValueError(f"of version {version}, by a newer jaxgmm; this one reads up to {VERSION}")
    different = list(_differences(same, json.loads(json.dumps(settings.same)), ""))
    different += _differences(near, list(settings.near), "compared numbers")
    if not different:
        for i, (name, new) in enumerate(settings.near.items()):
            different += _apart(name, members.get(f"near_{i}"), new)
    if different:
        more = f"; and {len(different) - 3} more differences" if len(different) > 3 else ""
        raise ValueError(
            f"a checkpoint of other data or settings: {'; '.join(different[:3])}{more}. Give what "
            "it was begun with, or another path for a new fit"
        )
    return _state(members, settings)


def _state(members: dict[str, np.ndarray], settings: Settings) -> State:
    like, structure = jax.tree.flatten(settings.like)
    kept = [members.get(f"state_{i}") for i in range(len(like))]
    moved = members["shift"]
    for a, b in zip([*kept, moved], [*like, settings.shift], strict=True):
        if a is None or a.shape != b.shape or a.dtype != _storable(np.empty(0, b.dtype)).dtype:
            raise ValueError("damaged: an array of its state is missing, or not of the fit's shape and dtype")
    state: State = jax.tree.unflatten(
        structure, [jnp.asarray(a, b.dtype) for a, b in zip(kept, like, strict=True)]
    )
    status, n_iter = int(state.status), int(state.n_iter)
    if not RUNNING <= status <= max(Status) or n_iter < 0:
        raise ValueError("damaged: its state has no such status, or a negative number of steps")
    # The history may hold anything, and what a fit that has failed does not use any more.
    unused = {"history"} if status <= Status.MAX_ITER else {"history", "image", "point", "step", "report"}
    used = {name: part for name, part in {"shift": moved, **state._asdict()}.items() if name not in unused}
    for path, leaf in jax.tree_util.tree_leaves_with_path(used):
        name = jax.tree_util.keystr(path)
        # Weights may be 0, an objective not known yet, and an extrapolation, not evaluated yet, infinite.
        known = name.startswith(("['base']", "['image']")) and ".log_weights" not in name
        known = known or name in ("['shift']", "['horizon']", "['radius']")
        if (~np.isfinite(leaf) if known else np.isnan(leaf)).any():
            raise ValueError(
                f"damaged: its {name} is not finite, which no fit leaves there; delete "
                "the file, or give another path, to begin anew"
            )
    if status == Status.MAX_ITER and n_iter < settings.max_iter:
        # The limit is higher now. The iteration that met it has prepared the next point, one step further on.
        again = [jnp.asarray(number, jnp.int32) for number in (n_iter + 1, RUNNING)]
        state = state._replace(n_iter=again[0], status=again[1])
    if (moved == settings.shift).all():
        return state
    # The same data, summed in another order: a shift that differs in its last digits.
    by = jnp.asarray(moved.astype(np.float64) - settings.shift, moved.dtype)
    base, image, point = (translate(p, by) for p in (state.base, state.image, state.point))
    return state._replace(base=base, image=image, point=point)


def _differences(was: Any, now: Any, name: str) -> Iterator[str]:
    """Where two trees of plain values differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**now, **was}:
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{name} had {len(was)} entries and has {len(now)}"
        for i, (a, b) in enumerate(zip(was, now, strict=False)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif was != now or type(was) is not type(now):
        yield f"{name} was {was!r} and is {now!r}"


def _apart(name: str, old: np.ndarray | None, new: Near) -> Iterator[str]:
    """In words, where two arrays are further apart than rounding."""
    now = new.values
    if old is None or old.shape != now.shape:
        yield f"{name} had shape {None if old is None else old.shape} and has {now.shape}"
        return
    apart = ~np.isclose(old, now, rtol=_NEAR, atol=_NEAR * new.unit, equal_nan=True)
    for index in np.argwhere(apart)[:1]:
        at = tuple(index.tolist())
        yield f"{name} was {old[at]:.9g}{f' at {at}' if at else ''} and is {now[at]:.9g}"
