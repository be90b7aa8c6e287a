"""The number of components inside one fit: the mixture of the shortest description."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _coordinates as coordinates
from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import FREE, Model
from jaxgmm.data import Data, summarise
from jaxgmm.density import check_accepts, check_ungrouped, get_data
from jaxgmm.em import MAX_ITER, REG_COVAR, assessed
from jaxgmm.init._starts import Init, check_init, start
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, scale_like, translate
from jaxgmm.result import FitResult
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import RUNNING, State, Status

MAX_COMPONENTS = 30
CRITERIA = ("length", "bic")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class DescriptionFit(FitResult):
    """A `FitResult` whose number of components is that of the shortest description.

    Its objective is −length / Σ w, so that `best` finds the shortest of several; its history is empty, and
    its n_iter counts the steps of the whole search. By criterion "bic", a length is half of that.

    Attributes:
      n_components: () int32, how many components are on.
      length: () the description length of data and mixture, in nats.
      lengths: (max_components,) the length by number of components, 1 to max_components; inf where the fit
        converged with no such number.
    """

    n_components: Array  # ()
    length: Array  # ()
    lengths: Array  # (max_components,)

    def _remarks(self) -> list[str]:
        if not validate.is_concrete(self.length, self.n_components) or np.ndim(self.length):
            return []
        return [f"{int(self.n_components)} components, description length {float(self.length):.6g}"]


class _Charge(NamedTuple):
    """How many parameters a description has: of each component, without its weight, and of all together."""

    each: int
    shared: int

    def length(self, log_weights: Array, log_likelihood: Array, n: Array) -> Array:
        """() the description length, from the total log-likelihood of samples of total weight n."""
        on = log_weights > -jnp.inf
        k = on.sum().astype(n.dtype)
        shares = jnp.where(on, log_weights, 0).sum()
        return 0.5 * (self.each * shares + (k * (self.each + 1) + self.shared) * jnp.log(n)) - log_likelihood

    def half_bic(self, log_weights: Array, log_likelihood: Array, n: Array) -> Array:
        """() half of Schwarz's criterion: the length if all components had all samples."""
        k = (log_weights > -jnp.inf).sum().astype(n.dtype)
        return 0.5 * (k * (self.each + 1) - 1 + self.shared) * jnp.log(n) - log_likelihood

    def shares(self, params: GMMParams, counts: Array, may_die: Array) -> tuple[Array, Array]:
        """(K,) what the next weights are in proportion to, max(0, n_k − T/2); and whether one dies by it.

        Of several components with too little to pay for their parameters only the weakest dies: the others
        keep their weights, for they may get its samples.
        """
        on = params.log_weights > -jnp.inf
        left = counts - 0.5 * self.each
        poor = on & (left <= 0)
        first = jnp.argmin(jnp.where(poor, counts, jnp.inf))
        dies = (jnp.arange(on.size) == first) & poor & may_die
        held = jnp.where(poor & ~dies, params.weights, 0)
        rich = jnp.where(on & ~poor, left, 0)
        rest = (1 - held.sum()) / jnp.where(rich.sum() > 0, rich.sum(), 1)
        return held + rich * rest, dies.any()


class _Search(NamedTuple):
    """Where the fit is: EM with the components that are on, and the shortest description so far."""

    iteration: State
    params: GMMParams
    log_likelihood: Array  # ()  a mean
    status: Array  # ()
    length: Array  # ()
    lengths: Array  # (K,)
    n_iter: Array  # ()
    is_running: Array  # ()


@functools.partial(jit, static_argnames=("model", "n_components", "block_size", "init", "criterion"))
def _fit(
    key: Array, data: Data, tol: Array, max_iter: Array, reg_covar: Array, accelerate: Array, fewest: Array,
    *, model: Model, n_components: int, block_size: int, init: Init, criterion: str,
) -> DescriptionFit:  # fmt: skip
    data, reg_covar = lax.stop_gradient((data, reg_covar))
    context = summarise(data, reg_covar)
    x, c, dtype = data.x, model.component, data.x.dtype
    n = jnp.asarray(x.shape[0], dtype) if data.weight is None else data.weight.sum()
    one, two = (c.n_parameters(c, k, data.n_features) for k in (1, 2))
    charge = _Charge(two - one, 2 * one - two)
    chart = coordinates.extrapolation(model)

    measure = charge.length if criterion == "length" else charge.half_bic
    first = start(
        key, jnp.asarray(n_components, jnp.int32), data, context, None, model=model,
        n_components=n_components, block_size=block_size, init=init,
    )  # fmt: skip
    first = translate(first, -context.shift)

    def begin(params: GMMParams) -> State:
        return squarem.begin(params, squarem.no_memory(dtype), 0)

    def without_weakest(params: GMMParams) -> GMMParams:
        off = jnp.arange(n_components) == jnp.argmin(
            jnp.where(params.log_weights > -jnp.inf, params.log_weights, jnp.inf)
        )
        rest = jnp.where(off, -jnp.inf, params.log_weights)
        return dataclasses.replace(params, log_weights=jax.nn.log_softmax(rest))

    def evaluate(s: State, n_on: Array) -> tuple[Any, Array]:
        params = s.point
        statistics: Statistics = exact.sums(params, data, context.shift, block_size=block_size)
        # A component dies in a step that is taken, not in one that is tried.
        shares, dies = charge.shares(params, statistics.weight, ~s.extrapolated & (n_on > fewest))
        statistics = dataclasses.replace(statistics, share=shares)
        found = assessed(params, statistics, context, jnp.zeros((), dtype), hold=False)
        length = charge.length(params.log_weights, statistics.log_likelihood, n)
        charged = -length / n - found.report  # what the parameters cost
        # The slack is rounding of numbers as large as the likelihood; the charges are no larger.
        return found._replace(objective=found.objective + charged), dies

    def iterate(search: _Search) -> _Search:
        s = search.iteration
        n_on = (s.base.log_weights > -jnp.inf).sum()
        found, dies = evaluate(s, n_on)
        after = squarem.update(found, s, chart, tol, max_iter, accelerate)
        ended = ~dies & (after.status != RUNNING)
        sound = ended & ((after.status == Status.CONVERGED) | (after.status == Status.MAX_ITER))
        length = measure(after.base.log_weights, n * after.report, n)
        length = jnp.where(sound & jnp.isfinite(length), length, jnp.inf)
        shorter = length < search.length
        # Where nothing has been found yet, the reason is that of the latest failure.
        told = shorter | (ended & jnp.isinf(search.length))
        new = after.base, after.report, after.status
        old = search.params, search.log_likelihood, search.status
        params, log_likelihood, _ = squarem.select(shorter, new, old)
        next_start = squarem.select(dies, found.image, without_weakest(after.base))
        return _Search(
            iteration=squarem.select(dies | ended, begin(next_start), after),
            params=params,
            log_likelihood=log_likelihood,
            status=jnp.where(told, after.status, search.status),
            length=jnp.where(shorter, length, search.length),
            lengths=search.lengths.at[n_on - 1].set(jnp.where(ended, length, search.lengths[n_on - 1])),
            n_iter=search.n_iter + 1,
            is_running=~ended | (n_on > fewest),
        )

    infinite = jnp.full((), jnp.inf, dtype)
    nothing = _Search(
        iteration=begin(first),
        params=first,
        log_likelihood=-infinite,
        status=jnp.full((), int(Status.NONFINITE), jnp.int32),
        length=infinite,
        lengths=jnp.full(n_components, jnp.inf, dtype),
        n_iter=jnp.zeros((), jnp.int32),
        is_running=jnp.asarray(True),
    )
    end = lax.while_loop(lambda search: search.is_running, iterate, nothing)
    return DescriptionFit(
        params=translate(end.params, context.shift),
        log_likelihood=end.log_likelihood,
        objective=-end.length / n,
        n_iter=end.n_iter,
        status=end.status,
        history=jnp.zeros(0, dtype),
        n_components=(end.params.log_weights > -jnp.inf).sum().astype(jnp.int32),
        length=end.length,
        lengths=end.lengths,
    )


def fit_mml(
    key: Array,
    X: ArrayLike | Data,
    max_components: int = MAX_COMPONENTS,
    sample_weight: ArrayLike | None = None,
    *,
    min_components: int | Array = 1,
    covariance_type: ModelLike = "full",
    criterion: str = "length",
    init: Init = "random_points",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    accelerate: bool | Array = True,
) -> DescriptionFit:
    """One fit that chooses its number of components: the mixture of the shortest description.

    It begins with max_components equal components at random rows, as wide as all the data, and climbs the
    log-likelihood less the parameters' description. With T parameters in a component the M-step of the
    weights is then π_k ∝ max(0, n_k − T/2): a component that is given less than T/2 samples dies. When the
    fit has converged, the weakest component is removed, and the fit goes on with the others, down to
    min_components. The mixture is returned for which

    L = T/2 Σ_k log(n π_k) + K/2 log n − log p(X)

    is smallest, sums over the K components that are on. Parameters that the structure shares among components
    cost ½ log n each. The paper adds ½ (1 − log 12) for each parameter, for its rounding. That is left out:
    with it, a component of fewer than 12 samples shortens the description, and most fits kept some. Two more
    things differ from the paper: a step updates all components and not one, and if several would die in a
    step, only the one with the fewest samples does. One program serves every K; it goes through `jit` and
    `vmap`.

    Args:
      key: a JAX PRNG key, for the start.
      X: (N, D), or `Data` without groups.
      max_components: how many components the fit begins with; static. Several times more than are expected.
      sample_weight: (N,) counts of the samples, or None for ones.
      min_components: the fit ends with so many components.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`, with free weights.
      criterion: which of the mixtures that the fit converged to is returned: "length" for the shortest
        description, or "bic" for the smallest `bic`, which charges small components more, and so keeps fewer.
      init: as in `fit_restarts`.
      tol: as in `fit`, for each number of components; None for 0.1/√N: lengths are then within 0.005 nats of
        their optimum.
      max_iter: limit on EM steps for each number of components.
      reg_covar: as in `m_step`.
      accelerate: as in `fit`.

    Returns:
      DescriptionFit; its params have max_components components, of which `jaxgmm.mixture.active` gives those
      that are on. It has no derivatives: those of `fit` from its params are the likelihood's.

    Raises:
      ValueError, TypeError: as `fit_restarts`, and for weights that are not free, a background, or groups.

    Example:
      >>> import jax, jaxgmm
      >>> truth = jaxgmm.make_params([0.3, 0.7], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> X, _ = jaxgmm.sample(jax.random.key(0), truth, 200)
      >>> found = jaxgmm.selection.fit_mml(jax.random.key(1), X, 8, criterion="bic")
      >>> int(found.n_components)
      2

    References:
      Figueiredo & Jain (2002), Unsupervised learning of finite mixture models, IEEE Transactions on Pattern
      Analysis and Machine Intelligence 24, equations 15 and 17; Figueiredo, Leitão & Jain (1999), On fitting
      mixture models, for the length.
    """
    data = get_data(X, sample_weight)
    check_ungrouped(data, "fit_mml")
    n_samples, model = data.x.shape[0], get_model(covariance_type)
    k = validate.count(max_components, "max_components", 1)
    if k > n_samples:
        raise ValueError(f"max_components must not exceed n_samples = {n_samples}; got {k}")
    fewest = validate.step_limit(min_components) if validate.is_concrete(min_components) else min_components
    if validate.is_concrete(fewest) and not 1 <= int(fewest) <= k:
        raise ValueError(f"min_components must lie between 1 and max_components = {k}; got {min_components}")
    if model.weights != FREE:
        raise ValueError(f"fit_mml needs weights that are free; covariance_type is {model.name!r}")
    if model.component.has_background:
        raise ValueError("fit_mml cannot have a background, which is no component to remove")
    scale_like(model.component, k, data.n_features)
    check_accepts(data, model.component, k)
    tol = 0.1 / max(n_samples, 1) ** 0.5 if tol is None else tol
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, data.x.dtype, n_samples)
    data = in_tiles(data, model.covariance)
    rows = min(rows_of(data, model.component, k), data.x.shape[0])
    unit = units.of_data(data, model)
    if unit is not None:
        reg = units.ridge_in_units(numbers[2], unit)
        data, numbers = Data(units.divide(data.x, unit), data.weight), (*numbers[:2], reg, numbers[3])
    found = _fit(
        validate.key(key),
        data,
        *numbers,
        fewest,
        model=model,
        n_components=k,
        block_size=rows,
        init=check_init(init),
        criterion=validate.choice(criterion, "criterion", CRITERIA),
    )
    if unit is None:
        return found
    found = units.multiply_back(found, unit)
    n = n_samples if data.weight is None else float(np.asarray(data.weight, float).sum())
    more = jnp.asarray(n * np.log(unit).sum(), data.x.dtype)
    return dataclasses.replace(found, length=found.length + more, lengths=found.lengths + more)
