"""Checkpoints: the state of a fit between two iterations, kept so that a killed fit goes on from there."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
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
from jaxgmm.outofcore import _host_em as host_em
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

    @staticmethod
    def relative(values: Any) -> Near:
        """Small against the largest of them."""
        a = np.asarray(values, np.float64)
        return Near(a, float(np.abs(a).max(initial=0, where=np.isfinite(a))))


@dataclasses.dataclass(frozen=True)
class Settings:
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
    summary: host_em.DataSummary,
    f: Context,
    numbers: host_em.Numbers,
    prior: Prior | None,
    history_size: int,
    source: Mapping[str, Any],
) -> Settings:
    """The settings of a fit by `outer.climb`, from what it begins with.

    Args:
      params: where it starts, checked, in the dtype of the fit and in the coordinates of the data.
      summary: of all its data.
      f: the context that the summary gave.
      numbers: tol, max_iter, reg_covar and accelerate. The limit may change, the others may not.
      prior: a checked one, or None.
      history_size: of the state.
      source: what describes the data: text, numbers, and lists and dicts of these.
    """
    tol, max_iter, reg_covar, accelerate = numbers
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
        near[f"starting scale, array {i}"] = Near.relative(leaf)
    parts = {} if prior is None else {n: a for n, a in vars(prior).items() if a is not None}
    for name, value in parts.items():
        near[f"prior.{name}"] = placed(value) if name == "mean" else Near.relative(value)
    same = {
        "model": params.model.name,
        "n_components": params.n_components,
        "n_features": params.n_features,
        "n_samples": summary.n_samples,
        "dtype": str(params.means.dtype),
        "tol": float(tol),
        "reg_covar": float(reg_covar),
        "accelerate": bool(accelerate),
        "history_size": history_size,
        "prior": None if prior is None else sorted(parts),
        "source": dict(source),
    }
    return Settings(host_em.start(params, f, history_size), np.asarray(f.shift), int(max_iter), same, near)


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
      >>> import jax, jaxgmm, os, tempfile
      >>> X = jax.random.normal(jax.random.key(0), (500, 1))
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
        if every_seconds is None and every_iterations is None:
            every_seconds = _SECONDS
        if every_seconds is not None:
            if isinstance(every_seconds, bool) or not isinstance(every_seconds, int | float):
                raise TypeError(f"every_seconds must be a number; got {every_seconds!r}")
            if not every_seconds > 0:
                raise ValueError(f"every_seconds must be positive; got {every_seconds}")
        self.path = os.fspath(path)
        self.every_iterations = every_iterations
        self.every_seconds = every_seconds
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
        loaded = self.load_with(settings)
        return None if loaded is None else loaded[0]

    def load_with(self, settings: Settings) -> tuple[State, dict[str, np.ndarray]] | None:
        """`load`, with the other arrays that were saved beside the state."""
        self._check_place()
        self._clock, self._iteration = time.monotonic(), None
        if not os.path.lexists(self.path):
            return None
        members = read_arrays(self.path, _accept, "checkpoint")
        try:
            state, extra = _restore(members, settings)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        self._iteration = int(state.n_iter)
        return state, extra

    def save(self, state: State, settings: Settings, extra: Mapping[str, np.ndarray] | None = None) -> None:
        """Replace the file's contents by a state, whole or not at all.

        Raises:
          OSError: it cannot be written; what the file held before is still there.
        """
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        about = {
            "checkpoint_version": VERSION,
            "same": settings.same,
            "near": list(settings.near),
            "extra": list(extra or {}),
            "written_by": {"jaxgmm": __version__, "jax": jax.__version__, "numpy": np.__version__},
        }
        members = {
            "checkpoint": np.asarray(json.dumps(about), np.str_),
            "shift": settings.shift,
            **{f"near_{i}": np.asarray(a.values) for i, a in enumerate(settings.near.values())},
            **{f"extra_{i}": _storable(np.asarray(a)) for i, a in enumerate((extra or {}).values())},
            **{f"state_{i}": _storable(leaf) for i, leaf in enumerate(leaves)},
        }
        try:
            with atomic_write(self.path) as stream:
                write_arrays(stream, members)
        except OSError as error:
            kept = (
                "there is none yet" if self._iteration is None else f"that of step {self._iteration} is kept"
            )
            raise OSError(
                error.errno,
                f"the checkpoint could not be written ({error.strerror or error}); {kept}",
                self.path,
            ) from error
        self._iteration = int(state.n_iter)
        self._clock = time.monotonic()

    def due(self, state: State) -> bool:
        """Whether it is time to save: enough steps or seconds have passed, or the fit has ended."""
        if int(state.status) != RUNNING:
            return True
        if self.every_seconds is not None and time.monotonic() - self._clock >= self.every_seconds:
            return True
        done = int(state.n_iter) - (self._iteration or 0)
        return self.every_iterations is not None and done >= self.every_iterations

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


def _running(state: State, max_iter: int) -> State:
    """The state, running again if all that ended it was a limit on its steps that is higher now."""
    if int(state.status) != Status.MAX_ITER or int(state.n_iter) >= max_iter:
        return state
    # The iteration that met the limit has prepared the next point, one step further on.
    return state._replace(
        n_iter=state.n_iter + jnp.ones((), jnp.int32), status=jnp.full((), RUNNING, jnp.int32)
    )


def _storable(a: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) if a.dtype.kind in "iu" else a


def _accept(names: set[str]) -> str | None:
    missing = {"checkpoint", "shift", "state_0"} - names
    return f"it has no {sorted(missing)[0]}" if missing else None


def _restore(members: dict[str, np.ndarray], settings: Settings) -> tuple[State, dict[str, np.ndarray]]:
    about = _about(members["checkpoint"])
    different = list(_differences(about["same"], _plain(settings.same), ""))
    if about["near"] == list(settings.near):
        pairs = zip(
            settings.near.items(), (members.get(f"near_{i}") for i in range(len(about["near"]))), strict=True
        )
        different += [said for (name, new), old in pairs if (said := _apart(name, old, new)) is not None]
    elif not different:
        different = ["its settings have other names"]
    if different:
        more = f"; and {len(different) - 3} more differences" if len(different) > 3 else ""
        raise ValueError(
            f"a checkpoint of other data or settings: {'; '.join(different[:3])}{more}. Give what "
            "it was begun with, or another path for a new fit"
        )
    state = _running(_state(members, settings), settings.max_iter)
    extra = {name: members.get(f"extra_{i}") for i, name in enumerate(about["extra"])}
    missing = [name for name, a in extra.items() if a is None]
    if missing:
        raise ValueError(f"damaged: it has no {missing[0]}")
    return state, {name: a for name, a in extra.items() if a is not None}


def _about(text: np.ndarray) -> dict[str, Any]:
    try:
        about = json.loads(str(text[()])) if text.shape == () and text.dtype.kind == "U" else None
    except (ValueError, RecursionError):
        about = None
    kinds = {"checkpoint_version": int, "same": dict, "near": list, "extra": list}
    if not isinstance(about, dict) or not all(isinstance(about.get(k), t) for k, t in kinds.items()):
        raise ValueError("damaged: what it says of itself cannot be read")
    if about["checkpoint_version"] > VERSION:
        raise ValueError(
            f"a checkpoint of version {about['checkpoint_version']}, written by a newer jaxgmm; this one "
            f"reads up to {VERSION}"
        )
    return about


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _state(members: dict[str, np.ndarray], settings: Settings) -> State:
    like, structure = jax.tree.flatten(settings.like)
    kept = [members.get(f"state_{i}") for i in range(len(like))]
    for i, (a, b) in enumerate(zip(kept, like, strict=True)):
        if a is None or a.shape != b.shape or a.dtype != _storable(np.empty(0, b.dtype)).dtype:
            raise ValueError(
                f"damaged: array {i} of its state is missing, or not of the fit's shape and dtype"
            )
    state: State = jax.tree.unflatten(
        structure, [jnp.asarray(np.asarray(a), b.dtype) for a, b in zip(kept, like, strict=True)]
    )
    if not RUNNING <= int(state.status) <= max(Status) or int(state.n_iter) < 0:
        raise ValueError("damaged: its state has no such status, or a negative number of steps")
    moved = members["shift"]
    if moved.shape != settings.shift.shape or moved.dtype != settings.shift.dtype:
        raise ValueError("damaged: its shift is not of the fit's shape and dtype")
    if (bad := _not_finite(state, moved)) is not None:
        raise ValueError(
            f"damaged: its {bad} is not finite, which no fit leaves there; delete the file, or give another "
            "path, to begin anew"
        )
    if (moved == settings.shift).all():
        return state
    # The same data, summed in another order: a shift that differs in its last digits.
    by = (moved.astype(np.float64) - settings.shift.astype(np.float64)).astype(moved.dtype)
    base, image, point = (translate(p, jnp.asarray(by)) for p in (state.base, state.image, state.point))
    return state._replace(base=base, image=image, point=point)


def _not_finite(state: State, shift: np.ndarray) -> str | None:
    """What holds NaN or infinity where no fit puts it, or None.

    A fit that has failed may hold either in `image` and `point`, which are then not used any more, and an
    extrapolation that is not evaluated yet may be infinite.
    """

    def all_of(test: Callable[[Any], Any], tree: Any) -> bool:
        return all(bool(np.all(test(np.asarray(a)))) for a in jax.tree.leaves(tree))

    def known(a: Any) -> Any:
        return ~np.isnan(a)

    goes_on = int(state.status) in (RUNNING, Status.MAX_ITER)
    for name in ("base", "image") if goes_on else ("base",):
        params = getattr(state, name)
        if not all_of(known, params.log_weights) or not np.isfinite(np.max(params.log_weights)):
            return f"{name}.log_weights"
        for part in ("means", "scale"):
            if not all_of(np.isfinite, getattr(params, part)):
                return f"{name}.{part}"
    if goes_on and not all_of(known, state.point):
        return "point"
    begun = float(state.objective) != -np.inf
    tests: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "shift": (np.isfinite, shift),
        "radius": (known, state.radius),
        "horizon": (np.isfinite, state.horizon),
        "objective": (np.isfinite, state.objective if begun else 0.0),
        "report": (np.isfinite, state.report if begun else 0.0),
        "step": (known, state.step if begun and goes_on else 0.0),
    }
    return next((name for name, (test, a) in tests.items() if not all_of(test, a)), None)


def _differences(was: Any, now: Any, name: str) -> Iterator[str]:
    """Where two trees of plain values differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in was if k not in now)]:
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{name} had {len(was)} entries and has {len(now)}"
        for i, (a, b) in enumerate(zip(was, now, strict=False)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif was != now or type(was) is not type(now):
        yield f"{name} was {was!r} and is {now!r}"


def _apart(name: str, old: np.ndarray | None, new: Near) -> str | None:
    """In words, where two arrays are further apart than rounding; None where they are not."""
    now = new.values
    if old is None or old.shape != now.shape:
        return f"{name} had shape {None if old is None else old.shape} and has {now.shape}"
    apart = ~np.isclose(old, now, rtol=_NEAR, atol=_NEAR * new.unit, equal_nan=True)
    if not apart.any():
        return None
    at = tuple(int(i) for i in np.argwhere(apart)[0])
    place = f" at {at[0] if len(at) == 1 else at}" if at else ""
    return f"{name} was {float(old[at]):.9g}{place} and is {float(now[at]):.9g}"
