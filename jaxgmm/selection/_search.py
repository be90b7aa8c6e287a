"""Tournament: successive halving of many starts, then split–merge moves between optima.

Every stage advances its mixtures a few at a time by one and the same compiled program, so that a
tournament over starts, stages and numbers of components compiles the loop once. Where several sizes run at
once, their mixtures are starts for the next size up and down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, TOL, EMOptions, check_options
from jaxgmm.init._starts import WIDEN, Init, check_init
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.mixture import GMMParams, scale_like
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection import _programs as programs
from jaxgmm.selection._candidates import Field, arrays, best_of
from jaxgmm.selection._continuation import go_on
from jaxgmm.selection._criteria import has_failed
from jaxgmm.selection._dense_view import Factors, alike
from jaxgmm.selection._spurious import MAX_RATIO, describe, limits, total_for

BUDGET = 2000
_WIDTH = 3  # mixtures for each number of components in one call, and finalists
_MOVES, _TRY, _REFINE = 18, 10, 40  # moves in a round, and EM steps for each of them and for the best
_WARD = 1 << 24  # samples × components up to which one of the starts is Ward's
_AGREE = 1e-4  # nats per sample within which two finalists are at the same optimum


class Plan(NamedTuple):
    """How a budget of EM steps is spent."""

    n_starts: int
    steps: int  # for each mixture in the first stage; three times as many in each one after
    rounds: int  # of split–merge moves


def plan(budget: int, *, several: bool = False) -> Plan:
    """Spend about `budget` EM steps: three quarters on successive halving (by thirds), the rest on moves.

    27 starts and three stages at the default; with nine times the budget 81 and four, and so on. Where there
    are several sizes, whose mixtures are starts for one another, half of it goes to the moves.
    """
    n_starts = 27
    while budget >= 9 * BUDGET * n_starts / 27:
        n_starts *= 3
    stages = {27: 3, 81: 4, 243: 5}.get(n_starts, 6)
    steps = max(2, round((0.5 if several else 0.73) * budget / (stages * n_starts)))
    left = budget - stages * n_starts * steps
    return Plan(n_starts, steps, max(0, round(left / (_MOVES * _TRY + _WIDTH * _REFINE))))


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


class Tournament:
    """One search over one data set: what its programs are called with."""

    def __init__(
        self,
        settings: programs.Settings,
        model: Model,
        sizes: Sequence[int],
        init: Init,
        history_size: int,
        prior: Prior | str | None = None,
    ) -> None:
        n_samples, n_features = settings.x.shape
        self.settings, self.model, self.init = settings, model, init
        self.default = isinstance(prior, str)
        if isinstance(prior, Prior):
            shape = (max(sizes), settings.x.shape[1])
            checked = priors.check(prior, model.component, shape, settings.x.dtype)
            self.settings = settings = settings._replace(prior=checked)
        bounded = self.default or (isinstance(prior, Prior) and prior.dof is not None)
        self.settings = settings = settings._replace(
            limits=limits(model.covariance, n_features, bounded),
            total=total_for(model.covariance, settings.total),
        )
        # Only the finalists' last stage has a derivative: where a fit began does not matter to it.
        self.frozen: programs.Settings = jax.lax.stop_gradient(settings)
        self.sizes = np.asarray(sizes, np.int32)
        self.n_components = max(sizes)
        scale_like(model.component, self.n_components, n_features)
        self.block_size = block_rows(n_samples, self.n_components, n_features, _WIDTH * len(sizes))
        self.history_size = history_size
        self.unit, self.reference = programs.reference(
            self.frozen.context, model=model, n_components=self.n_components
        )
        self.n_steps: Any = np.zeros(len(sizes), np.int32)
        self.with_ward = settings.x.shape[0] * self.n_components <= _WARD
        self.factors: Any = None  # (L, n) `Factors` of the finalists, where they are not large

    def starts(self, key: Array, n: int) -> GMMParams:
        """n starts for each size, leading axes (L, n)."""
        active = np.repeat(self.sizes, _WIDTH)
        keys = self._keys(key, n // _WIDTH)
        together: GMMParams
        if self.init not in ("kmeans++", "kmeans"):

            def chunk(keys: Array) -> GMMParams:
                return programs.start_anyhow(
                    keys, active, self.frozen, default=self.default, model=self.model, init=self.init,
                    n_components=self.n_components, block_size=self.block_size,
                )  # fmt: skip

            together = self._over(chunk, keys)
            return together

        def draw(keys: Array) -> Array:
            return programs.seed(keys, self.unit, self.frozen, n_components=self.n_components, init=self.init)

        def place(places: Array) -> GMMParams:
            begin, scale = self._at(places)
            moments = programs.partition(alike(begin, scale), self.frozen, block_size=self.block_size)
            return self._settle(begin, scale, moments, WIDEN)

        places = self._over(draw, keys)
        if self.with_ward:
            one = programs.ward_places(self.sizes, self.unit, self.frozen, n_components=self.n_components)
            xp = arrays((places, one))
            places = xp.concatenate([xp.asarray(one)[:, None], places[:, 1:]], 1)
        together = self._over(place, self._chunks(places))
        return together

    def advance(self, params: GMMParams, steps: int | None) -> Field:
        """Mixtures (L, n) so many steps further, or to convergence; n is a multiple of the width."""
        s = self.settings if steps is None else self.frozen
        tol, max_iter = (s.tol, s.max_iter) if steps is None else (np.zeros((), s.tol.dtype), np.int32(steps))
        active = np.repeat(self.sizes, _WIDTH)

        def chunk(batch: GMMParams) -> Field:
            result, factors = programs.advance(
                batch, active, s, tol, max_iter, default=self.default, block_size=self.block_size,
                history_size=self.history_size,
            )  # fmt: skip
            p = result.params
            flags = programs.flags_of(p.log_weights, p.means, factors, self.frozen)
            return Field(result, flags, factors)

        field: Field = self._over(chunk, self._chunks(params))
        self.n_steps = self.n_steps + field.results.n_iter.sum(1).astype(np.int32)
        return field

    def moves(self, key: Array, field: Field, *, exchange: bool = False) -> GMMParams:
        """_MOVES moves from the first of each size's mixtures, leading axes (L, _MOVES).

        Splits and merges at once; or, in turn, splits of the next smaller mixture and merges in the next
        larger one, where these are among the sizes.
        """
        xp = arrays((field, self.frozen))
        best = jax.tree.map(
            lambda a: xp.repeat(a[:, 0], _WIDTH, axis=0), (field.results.params, field.factors)
        )
        # Those of every mixture: as many products again, and one more shape that is not compiled.
        closeness = programs.overlaps(alike(*best), self.frozen, block_size=self.block_size)

        def chunk(inputs: tuple[Array, Array, Array]) -> GMMParams:
            keys, donors, change = inputs
            (origin, scale), near = jax.tree.map(lambda a: xp.asarray(a)[donors], (best, closeness))
            drawn = programs.draw_moves(keys, origin.log_weights, near, change, n_features=origin.n_features)
            moments = programs.rearrange(drawn, alike(origin, scale), self.frozen, block_size=self.block_size)
            moved = self._settle(origin, scale, moments, 0)
            pick = arrays((drawn, moved))
            possible = pick.asarray(drawn.possible)

            def chosen(a: Any, b: Any) -> Any:
                return pick.where(possible.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

            kept: GMMParams = jax.tree.map(chosen, moved, origin)
            return kept

        n = _MOVES // _WIDTH
        donors, change = self._donors(n if exchange else 0, n)
        # A move is an E-step and an M-step too.
        self.n_steps = self.n_steps + _MOVES
        together: GMMParams = self._over(chunk, (self._keys(key, n), donors, change))
        return together

    def _at(self, places: Any) -> tuple[GMMParams, Factors | None]:
        """One program's mixtures with equal components at `places`, and their dense factors."""
        xp = arrays((places, self.frozen, self.reference))
        unit, shift, begin = jax.tree.map(xp.asarray, (self.unit, self.frozen.context.shift, self.reference))
        on = np.arange(self.n_components)[None, :] < np.repeat(self.sizes, _WIDTH)[:, None]
        scale = None
        if len(unit) <= programs.DENSE:
            each = xp.broadcast_to(unit[None, :], (self.n_components, len(unit)))
            identity = np.eye(len(unit), dtype=unit.dtype)[None]
            scale = Factors(
                each[:, None, :] * identity, identity / each[:, None, :], 2 * xp.log(each).sum(-1)
            )
        begin, scale = jax.tree.map(lambda a: xp.broadcast_to(a, (len(on), *a.shape)), (begin, scale))
        log_weights = xp.where(on, begin.log_weights, -np.inf)
        return dataclasses.replace(begin, log_weights=log_weights, means=places + shift[None, None, :]), scale

    def _settle(self, params: GMMParams, scale: Any, moments: Any, share: float) -> GMMParams:
        """An M-step of one program's mixtures."""
        active = np.repeat(self.sizes, _WIDTH)
        wider = np.asarray(share, self.settings.x.dtype)
        return programs.widen(params, scale, moments, active, wider, self.frozen, default=self.default)

    def _donors(self, n_exchanges: int, n: int) -> tuple[Any, Any]:
        """For n programs, the index that each move begins from, and the change of size: (n, B)."""
        own = np.arange(len(self.sizes))
        donors, change = np.tile(own, (n, 1)), np.zeros((n, len(self.sizes)), np.int32)
        for i in range(n_exchanges):
            # Nothing is merged into one component, which has its maximum in closed form.
            step = 1 if i % 2 == 0 else -1
            for at, size in enumerate(self.sizes):
                found = np.flatnonzero(self.sizes == size - step)
                if found.size and (size > 1):
                    donors[i, at], change[i, at] = found[0], step
        index = np.repeat(donors, _WIDTH, axis=1) * _WIDTH + np.tile(np.arange(_WIDTH), len(self.sizes))
        return index, np.repeat(change, _WIDTH, axis=1)

    def play(self, key: Array, budget: int) -> Field:
        """The finalists of every size, converged, best first: leading axes (L, _WIDTH)."""
        several = len(self.sizes) > 1
        game = plan(budget, several=several)
        key_start, key_moves = jax.random.split(key)
        params, steps = self.starts(key_start, game.n_starts), game.steps
        while True:
            n_lanes = params.log_weights.shape[1]
            field = best_of(self.advance(params, steps), max(_WIDTH, n_lanes // 3))
            if n_lanes == _WIDTH:
                break
            params, steps = field.results.params, 3 * steps
        for i in range(game.rounds):
            exchange = several and (game.rounds - i) % 2 == 1
            moved = self.moves(jax.random.fold_in(key_moves, i), field, exchange=exchange)
            tried = best_of(self.advance(moved, _TRY), _WIDTH)
            refined = self.advance(tried.results.params, _REFINE)
            xp = arrays((field, refined))
            both = jax.tree.map(lambda *leaves, xp=xp: xp.concatenate(leaves, 1), field, refined)
            field = best_of(both, _WIDTH)
        final = self.advance(field.results.params, None)
        return best_of(final, _WIDTH)

    def best(self, key: Array, budget: int) -> BestFit:
        """The winner of every size, leading axis (L,)."""
        results, flags, self.factors = go_on(self, key, self.play(key, budget), budget, _WIDTH)
        top = results.objective[:, :1]
        agree = (results.objective >= top - _AGREE) & ~has_failed(results.status)
        winner = jax.tree.map(lambda a: a[:, 0], results)
        finalists: Any = np.full(len(self.sizes), _WIDTH, np.int32)
        found = BestFit(
            **{field.name: getattr(winner, field.name) for field in dataclasses.fields(FitResult)},
            flags=flags[:, 0],
            n_agreed=agree.sum(1).astype(np.int32),
            n_finalists=finalists,
            n_steps=self.n_steps,
        )  # fmt: skip
        # `jnp.asarray` compiles a program for each shape; `device_put` has no derivative out of a scan.
        placed: BestFit = (
            jax.device_put(found) if validate.is_concrete(found) else jax.tree.map(jnp.asarray, found)
        )
        return placed

    def _keys(self, key: Array, n: int) -> Array:
        """(n, B) keys, n times as many as a program has mixtures."""
        n_lanes = len(self.sizes) * _WIDTH
        return jax.random.split(key, (n, n_lanes))

    def _chunks(self, tree: Any) -> Any:
        """Lanes (L, n, ...) as the inputs of programs, (n / _WIDTH, L · _WIDTH, ...)."""

        def chunked(a: Any) -> Any:
            n_sizes, n = a.shape[:2]
            split = a.reshape((n_sizes, n // _WIDTH, _WIDTH, *a.shape[2:])).swapaxes(0, 1)
            return split.reshape((n // _WIDTH, n_sizes * _WIDTH, *a.shape[2:]))

        return jax.tree.map(chunked, tree)

    def _over(self, chunk: Callable[[Any], Any], inputs: Any) -> Any:
        """`chunk` of each of the inputs (n, B, ...); what it gives, with leading axes (L, n · _WIDTH).

        Inside somebody's trace the calls are one loop, or the program would be compiled n times over.
        """
        n_sizes, n = len(self.sizes), jax.tree.leaves(inputs)[0].shape[0]
        if not validate.is_concrete(inputs, self.settings):
            mapped = jax.lax.map(chunk, inputs)

            def ungroup(a: Array) -> Array:
                return a.reshape((n, n_sizes, _WIDTH, *a.shape[2:])).swapaxes(0, 1)

            return jax.tree.map(lambda a: ungroup(a).reshape((n_sizes, n * _WIDTH, *a.shape[2:])), mapped)
        parts = [chunk(jax.tree.map(lambda a, i=i: a[i], inputs)) for i in range(n)]
        return jax.tree.map(
            lambda *leaves: np.concatenate(
                [np.asarray(a).reshape((n_sizes, _WIDTH, *a.shape[1:])) for a in leaves], 1
            ),
            *parts,
        )


def fit_best(
    key: Array,
    X: ArrayLike,
    n_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    budget: int = BUDGET,
    init: Init = "kmeans++",
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
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
    settings, unit = programs.settings_of(
        X, sample_weight, tol, max_iter, reg_covar, accelerate, max_ratio, (model,),
        in_units_of_x=isinstance(prior, Prior) or callable(init),
    )  # fmt: skip
    n = validate.n_components(n_components, settings.x.shape[0])
    tournament = Tournament(
        settings, model, (n,), check_init(init),
        options.history_size, priors.check_name(prior, model.component),
    )  # fmt: skip
    found = tournament.best(validate.key(key), validate.count(budget, "budget", 1))
    result = jax.tree.map(lambda a: a[0], found)
    return result if unit is None else units.multiply_back(result, unit)
