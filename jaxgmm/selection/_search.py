"""Tournament: successive halving of many starts, then split–merge moves between optima.

Every stage advances its mixtures a few at a time by one and the same compiled program, so that a
tournament over starts, stages and numbers of components compiles the loop once. Where several sizes run at
once, their mixtures are starts for the next size up and down.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data
from jaxgmm.density import check_accepts, check_sizes, get_data
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions, check_options
from jaxgmm.init._starts import WIDEN, Init, check_init, check_prior, metric
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.mixture import GMMParams, scale_like
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection import _programs as programs
from jaxgmm.selection._criteria import has_failed
from jaxgmm.selection._dense import alike, one_of, own_params
from jaxgmm.selection._spurious import MAX_RATIO, describe, total_for

BUDGET = 2000
_WIDTH = 3  # mixtures for each number of components in one call, and finalists
_MOVES, _TRY, _REFINE = 18, 10, 40  # moves in a round, and EM steps for each of them and for the best
_WARD = 1 << 24  # samples × components up to which one of the starts is Ward's
_MORE = 3  # times that a search goes on that has found only spurious optima
R = TypeVar("R")
_AGREE = 1e-4  # nats per sample within which two finalists are at the same optimum


def plan(budget: int, *, several: bool = False) -> tuple[int, int, int]:
    """Spend about `budget` EM steps: three quarters on successive halving (by thirds), the rest on moves.

    27 starts and three stages at the default; with nine times the budget 81 and four, and so on. Where there
    are several sizes, whose mixtures are starts for one another, half of it goes to the moves.

    Returns:
      The number of starts, of steps for each mixture in the first stage (three times as many in each one
      after), and of rounds of split–merge moves.
    """
    stages = 3
    while budget >= 9 * BUDGET * 3 ** (stages - 3):
        stages += 1
    steps = max(2, round((0.5 if several else 0.73) * budget / (stages * 3**stages)))
    left = budget - stages * 3**stages * steps
    return 3**stages, steps, max(0, round(left / (_MOVES * _TRY + _WIDTH * _REFINE)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class BestFit(FitResult):
    """A `FitResult` with what the search knows of it.

    Attributes:
      flags: () int32, `Spurious` flags of the mixture; 0 is none.
      n_agreed: () int32, how many finalists ended at the winner's likelihood, the winner included.
      n_finalists: () int32, how many finalists there are: the best of what was brought to convergence.
      n_steps: () int32, EM steps taken in the whole search.
    """

    flags: Array  # ()
    n_agreed: Array  # ()
    n_finalists: Array  # ()
    n_steps: Array  # ()

    def _remarks(self) -> list[str]:
        agreed, finalists, flags = (display.look(a) for a in (self.n_agreed, self.n_finalists, self.flags))
        if agreed is None or finalists is None or flags is None or agreed.ndim:
            return []
        flaws = [f"spurious ({describe(int(flags))})"] if flags else []
        return [f"{int(agreed)} of {int(finalists)} finalists agree", *flaws]


class Field(NamedTuple):
    """Candidates, all with leading axes (L, n): L numbers of components, n of each."""

    results: FitResult
    flags: Any  # int32, `Spurious`
    factors: Any  # `Factors`, or None for many features


def arrays(tree: Any) -> Any:
    """The module that moves mixtures between two programs: NumPy compiles nothing, but cannot be traced."""
    return np if validate.is_concrete(tree) else jnp


def best_of(field: Field, n: int) -> Field:
    """The best n (L, n), best first: sound ones, by objective, then spurious ones, failed ones last."""
    xp, value = arrays(field), field.results.objective
    lost = has_failed(field.results.status) | ~xp.isfinite(value)
    rank = xp.where(lost, 2, xp.where(field.flags != 0, 1, 0))
    rows = xp.lexsort((xp.where(lost, 0, -value), rank))[:, :n]
    at = np.arange(rows.shape[0])[:, None]
    kept: Field = jax.tree.map(lambda a: a[at, rows], field)
    return kept


class Tournament:
    """One search over one data set: what its programs are called with."""

    def __init__(
        self, settings: programs.Settings, model: Model, sizes: Sequence[int], init: Init, history_size: int,
        prior: Prior | str | None = None, structures: tuple[Covariance, ...] = (),
        seeds: dict[Any, Any] | None = None,
    ) -> None:  # fmt: skip
        """With `structures`, among which the model's is, the programs are those of `one_of` them.

        `seeds` is where searches of the same rows find the seeds of one another.
        """
        data, self.n_components = settings.data, max(sizes)
        check_sizes(data, sizes)
        if model.weights.holds:
            raise ValueError("held means and covariances are those of a start: use fit or fit_restarts")
        x, shape = data.x, (self.n_components, data.n_features)
        scale_like(model.component, *shape)
        # Rows with gaps in groups of one pattern, for structures that gain by it.
        settings = settings._replace(data=in_tiles(data, model.covariance))
        self.model, self.init, self.sizes = model, check_init(init), np.asarray(sizes, np.int32)
        self.seeds = seeds
        # What its programs know of the model.
        self.structures, self.which, self.shared = structures, None, model
        if structures:
            self.which = np.int32(structures.index(model.covariance))
            self.shared = Model(gaussian(one_of(structures)))
        self.settings = settings._replace(
            prior=check_prior(prior, model, shape, x.dtype),
            # `stop_gradient` gives Python's numbers another type: there would be a second program.
            collapse=jax.tree.map(np.int32, model.covariance.collapse(shape[1])),
            bounded=np.bool_(isinstance(prior, str) or getattr(prior, "dof", None) is not None),
            total=total_for(model.covariance, settings.total),
        )
        # Only the finalists' last stage has a derivative: where a fit began does not matter to it.
        self.frozen: programs.Settings = jax.lax.stop_gradient(self.settings)
        n_fits, k = _WIDTH * len(sizes), self.n_components
        self.block_size = block_rows(x.shape[0], *shape, n_fits)
        if not data.is_complete:
            self.block_size = rows_of(self.settings.data, model.component, k, n_fits)
        self.history_size = history_size
        variance = self.frozen.context.variance
        self.unit = metric(model.covariance, arrays(variance).asarray(variance))
        self.n_steps: Any = np.zeros(len(sizes), np.int32)
        self.with_ward = x.shape[0] * k <= _WARD and data.is_complete
        self.active = np.repeat(self.sizes, _WIDTH)  # of the mixtures of one program
        self.factors: Any = None  # (L, n) `Factors` of the finalists, where they are not large

    def starts(self, key: Array, n: int, half: int | None = None) -> GMMParams:
        """n starts for each size, leading axes (L, n); with one half of the key."""
        s, common = self.frozen, (self.frozen.data, self.frozen.context)
        keys = programs.key_data(key, None, half=half, shape=(n // _WIDTH, len(self.active)))
        typed = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))
        static: Any = {"n_components": self.n_components, "init": self.init}
        if self.init not in ("kmeans++", "kmeans"):
            static |= {"model": self.model, "block_size": self.block_size}
            return self._over(
                lambda k: programs.start(typed(k), self.active, *common, s.prior, **static), keys
            )

        def place(places: Array) -> GMMParams:
            begin, scale = programs.begin(
                places, self.active, s.context, self.which, model=self.shared, structures=self.structures
            )
            moments = programs.partition(alike(begin, scale), s, block_size=self.block_size)
            return programs.widen(begin, scale, moments, self.active, WIDEN, s)

        def seeds() -> Any:
            places = self._over(lambda k: programs.seed(typed(k), *common, self.unit, **static), keys)
            if not self.with_ward:
                return places
            one = programs.ward(self.sizes, *common, self.unit, n_components=self.n_components)
            xp = arrays((places, one))
            return xp.concatenate([xp.asarray(one)[:, None], places[:, 1:]], 1)

        if self.seeds is None or not s.data.is_complete:
            return self._over(place, self._chunks(seeds()))
        # Structures differ in their seeds only by the units of the features.
        this = tuple(np.asarray(a).tobytes() for a in (keys, self.unit, self.active, self.with_ward))
        if this not in self.seeds:
            self.seeds[this] = seeds()
        return self._over(place, self._chunks(self.seeds[this]))

    def advance(self, params: GMMParams, steps: int | None) -> Field:
        """Mixtures (L, n) so many steps further, or to convergence; n is a multiple of the width."""
        s, static = self.settings, {"block_size": self.block_size, "history_size": self.history_size}
        if steps is not None:
            s = self.frozen._replace(tol=np.zeros((), s.tol.dtype), max_iter=np.int32(steps))

        def chunk(batch: GMMParams) -> Field:
            result, factors = programs.advance(batch, self.active, s, **static)
            p = result.params
            return Field(result, programs.flags_of(p.log_weights, p.means, factors, self.frozen), factors)

        field = self._over(chunk, self._chunks(params))
        self.n_steps = self.n_steps + field.results.n_iter.sum(1).astype(np.int32)
        return field

    def moves(self, key: Array, i: int, field: Field, *, exchange: bool = False) -> GMMParams:
        """_MOVES moves, in round i, from the first of each size's mixtures, leading axes (L, _MOVES).

        Splits and merges at once; or, in turn, splits of the next smaller mixture and merges in the next
        larger one, where these are among the sizes.
        """
        s, xp = self.frozen, arrays((field, self.frozen))
        finalists = (field.results.params, field.factors)
        best = jax.tree.map(lambda a: xp.repeat(a[:, 0], _WIDTH, axis=0), finalists)
        # Those of every mixture: as many products again, and one more shape that is not compiled.
        closeness = programs.overlaps(alike(*best), s.data, block_size=self.block_size)

        def chunk(inputs: tuple[Array, Array, Array]) -> GMMParams:
            key_data, donors, change = inputs
            keys = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
            (origin, scale), near = jax.tree.map(lambda a: xp.asarray(a)[donors], (best, closeness))
            drawn = programs.draw_moves(keys, origin.log_weights, near, change, n_features=origin.n_features)
            moments = programs.rearrange(drawn, alike(origin, scale), s, block_size=self.block_size)
            return programs.widen(origin, scale, moments, self.active, 0.0, s)

        # A move is an E-step and an M-step too.
        self.n_steps = self.n_steps + _MOVES
        shape = (_MOVES // _WIDTH, len(self.active))
        keys = programs.key_data(key, np.int32(i), half=1, shape=shape)
        return self._over(chunk, (keys, *self._donors(len(keys), exchange)))

    def _donors(self, n: int, exchange: bool) -> tuple[Any, Any]:
        """For n programs, the index that each move begins from, and the change of size: (n, B)."""
        sizes = self.sizes.tolist()
        donors, change = np.tile(np.arange(len(sizes)), (n, 1)), np.zeros((n, len(sizes)), np.int32)
        for i, at in np.ndindex(donors.shape if exchange else (0, 0)):
            step = 1 if i % 2 == 0 else -1
            # Nothing is merged into one component, which has its maximum in closed form.
            if sizes[at] > 1 and sizes[at] - step in sizes:
                donors[i, at], change[i, at] = sizes.index(sizes[at] - step), step
        index = np.repeat(donors, _WIDTH, axis=1) * _WIDTH + np.tile(np.arange(_WIDTH), len(sizes))
        return index, np.repeat(change, _WIDTH, axis=1)

    def play(self, key: Array, budget: int) -> Field:
        """The finalists of every size, converged, best first: leading axes (L, _WIDTH)."""
        several = len(self.sizes) > 1
        n, steps, rounds = plan(budget, several=several)
        params = self.starts(key, n, half=0)
        while True:
            field = best_of(self.advance(params, steps), max(_WIDTH, n // 3))
            if n == _WIDTH:
                break
            params, n, steps = field.results.params, n // 3, 3 * steps
        for i in range(rounds):
            exchange = several and (rounds - i) % 2 == 1
            moved = self.moves(key, i, field, exchange=exchange)
            tried = best_of(self.advance(moved, _TRY), _WIDTH)
            refined = self.advance(tried.results.params, _REFINE)
            both = jax.tree.map(lambda *leaves: arrays(leaves).concatenate(leaves, 1), field, refined)
            field = best_of(both, _WIDTH)
        return best_of(self.advance(field.results.params, None), _WIDTH)

    def go_on(self, key: Array, field: Field, budget: int) -> Field:
        """The finalists of a search that goes on for sizes of which all are spurious.

        At most `_MORE` times and for `budget` EM steps in all, but two for each start, and not counting those
        to convergence: new starts, of which the best that are still sound are brought to convergence. The
        first sound optimum ends it. All mixtures of a program go to the sizes in question, so that nothing
        is compiled anew.
        """
        if not validate.is_concrete(field, self.settings):
            return field
        n_sizes = len(self.sizes)
        for i in range(_MORE):
            flags, status = field.flags[:, 0], field.results.status[:, 0]
            # A single component has one optimum.
            flawed = np.flatnonzero((flags != 0) & ~np.asarray(has_failed(status)) & (self.sizes > 1))
            if flawed.size == 0:
                break
            more = copy.copy(self)
            more.sizes = np.resize(self.sizes[flawed], n_sizes)
            more.active = np.repeat(more.sizes, _WIDTH)
            more.n_steps, more.with_ward = np.zeros(n_sizes, np.int32), False
            often = -(-n_sizes // len(flawed))  # mixtures that the first of them has
            n_starts = _WIDTH * max(1, round(3 / often))
            steps = max(2, budget // (_MORE * n_starts * often))
            # Apart from the keys of `play`, which are two halves of the key.
            started = more.starts(jax.random.fold_in(jax.random.fold_in(key, budget), i), n_starts)
            tried = best_of(more.advance(started, steps), _WIDTH)
            found = more.advance(tried.results.params, None)
            for j, at in enumerate(flawed):
                lanes_of = slice(j, None, len(flawed))
                both = jax.tree.map(
                    lambda old, new, at=at, those=lanes_of: np.concatenate([old[at], *new[those]])[None],
                    field, found,
                )  # fmt: skip
                jax.tree.map(lambda a, b, at=at: np.copyto(a[at], b[0]), field, best_of(both, _WIDTH))
                self.n_steps[at] += more.n_steps[lanes_of].sum()
        return field

    def best(self, key: Array, budget: int) -> BestFit:
        """The winner of every size, leading axis (L,), on the host."""
        results, flags, self.factors = self.go_on(key, self.play(key, budget), budget)
        top = results.objective[:, :1]
        agree = (results.objective >= top - _AGREE) & ~has_failed(results.status)
        winner = jax.tree.map(lambda a: a[:, 0], results)
        finalists: Any = np.full(len(self.sizes), _WIDTH, np.int32)
        found = BestFit(
            **vars(winner),
            flags=flags[:, 0],
            n_agreed=agree.sum(1).astype(np.int32),
            n_finalists=finalists,
            n_steps=self.n_steps,
        )
        return found

    def own(self, found: BestFit) -> BestFit:
        """What `best` found, as a mixture of the model."""
        if not self.structures:
            return found
        return dataclasses.replace(found, params=own_params(found.params, self.model.covariance))

    def _chunks(self, tree: Any) -> Any:
        """Lanes (L, n, ...) as the inputs of programs, (n / _WIDTH, L · _WIDTH, ...)."""

        def chunked(a: Any) -> Any:
            split = a.reshape((len(self.sizes), -1, _WIDTH, *a.shape[2:])).swapaxes(0, 1)
            return split.reshape((-1, len(self.active), *a.shape[2:]))

        return jax.tree.map(chunked, tree)

    def _over(self, chunk: Callable[[Any], R], inputs: Any) -> R:
        """`chunk` of each of the inputs (n, B, ...); what it gives, with leading axes (L, n · _WIDTH).

        Inside somebody's trace the calls are one loop, or the program would be compiled n times over.
        """
        n_sizes, n = len(self.sizes), jax.tree.leaves(inputs)[0].shape[0]
        if validate.is_concrete(inputs, self.settings):
            parts = [chunk(jax.tree.map(lambda a, i=i: np.asarray(a)[i], inputs)) for i in range(n)]
            stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(a) for a in leaves]), *parts)
        else:
            stacked = jax.lax.map(chunk, inputs)

        def lanes(a: Any) -> Any:
            apart = a.reshape((n, n_sizes, _WIDTH, *a.shape[2:])).swapaxes(0, 1)
            return apart.reshape((n_sizes, n * _WIDTH, *a.shape[2:]))

        together: R = jax.tree.map(lanes, stacked)
        return together


def fit_best(
    key: Array,
    X: ArrayLike | Data,
    n_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    budget: int = BUDGET,
    init: Init = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
    trim: ArrayLike | None = None,
    max_ratio: ArrayLike | None = MAX_RATIO,
    options: EMOptions = DEFAULT_OPTIONS,
) -> BestFit:
    """The best optimum that a budget of EM steps finds: a tournament of starts, then split–merge moves.

    27 starts, one of them Ward's hierarchy, take a few EM steps; the best third of them three times as many,
    and again. From the best of the last three, 18 moves that merge two components and split a third are
    tried, and the result replaces it if it is better. The three finalists are brought to convergence.

    Where all finalists are spurious the search goes on, up to three times and for `budget` further EM steps:
    new starts, of which those that are sound after their share of the steps are brought to convergence, until
    an optimum is sound. Not inside `jit`, where that would be done in every case.

    Args:
      key: a JAX PRNG key; same key, same result.
      X: (N, D).
      n_components: K; static.
      sample_weight: (N,) or None for ones.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      budget: about how many EM steps to spend before the finalists converge; static. As many again where all
        of them are spurious.
      init: as in `fit_restarts`.
      tol: as in `fit`.
      max_iter: as in `fit`; for each finalist.
      reg_covar: as in `m_step`.
      prior: as in `fit_restarts`.
      accelerate: as in `fit`.
      trim: as in `fit`.
      max_ratio: the largest ratio of covariance eigenvalues, relative to the covariance of all the data, that
        is not taken for an artefact (`Spurious.NARROW`); None for no bound. A sound optimum wins over a
        spurious one of higher likelihood.
      options: the size of the history, which is the final stage's; as in `fit`.

    Returns:
      BestFit: a FitResult that also says how many finalists agreed on the winner, and whether it is spurious.

    Raises:
      ValueError, TypeError: as `fit_restarts`.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> result = jaxgmm.fit_best(jax.random.key(1), X, 2, covariance_type="spherical", budget=100)
      >>> jaxgmm.Status(int(result.status)).name
      'CONVERGED'

    References:
      Karnin, Koren & Somekh (2013), Almost optimal exploration in multi-armed bandits, for successive
      halving; Ueda, Nakano, Ghahramani & Hinton (2000) for split–merge moves.
    """
    model = get_model(covariance_type)
    check_options(options).only("fit_best", "history_size")
    data = get_data(X, sample_weight)
    n = validate.n_components(n_components, data.x.shape[0])
    check_sizes(data, (n,))
    check_accepts(data, model.component)
    budget = validate.count(budget, "budget", 1)
    settings, unit = programs.settings_of(
        data, None, tol, max_iter, reg_covar, accelerate, max_ratio, (model,),
        in_units_of_x=isinstance(prior, Prior) or callable(check_init(init)), trim=trim,
    )  # fmt: skip
    tournament = Tournament(settings, model, (n,), init, options.history_size, prior)
    result: BestFit = jax.tree.map(lambda a: a[0], tournament.best(validate.key(key), budget))
    # `jnp.asarray` compiles a program for each shape; `device_put` has no derivative out of a scan.
    concrete = validate.is_concrete(result)
    result = jax.device_put(result) if concrete else jax.tree.map(jnp.asarray, result)
    return result if unit is None else units.multiply_back(result, unit)
