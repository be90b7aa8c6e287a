"""The loop of a fit, from one start or from many: its kernels in turn, and what it reports in the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.components.covariance.base import Family
from jaxgmm.data import Context, summarise
from jaxgmm.em_map import admissible, chart, coordinates, evaluate, with_prior
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.blocked_sum import AxisName, block_rows, rows_over, sum_rows
from jaxgmm.kernels.exact import accumulate
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import batched, squarem
from jaxgmm.solvers.implicit import Derivative, Evaluation
from jaxgmm.solvers.squarem import Memory, Solution, State, Status, no_memory

TOL = 1e-5
MAX_ITER = 1000
REG_COVAR = 1e-6
HISTORY_SIZE = 256
_TOGETHER = 1 << 18  # numbers that fits side by side may work on for each block of rows: a CPU's cache

Step = Callable[..., Evaluation]


@dataclasses.dataclass(frozen=True)
class EMOptions:
    """What few people touch in a fit; static under `jit`.

    Attributes:
      block_size: rows per block; None chooses from the shapes.
      history_size: how many entries `FitResult.history` has.
      unconverged_gradient: what becomes of a derivative that cannot be trusted, because the fit has not
        converged or its linear solve left a residual: "nan" makes it NaN, "warn" leaves it as it is and
        issues a RuntimeWarning when it is computed, "ignore" leaves it. A fit that does not enter what is
        differentiated spoils nothing.
      kernel: how the sums over samples are computed. "whitened": about each component, right to rounding.
        "quadratic": by one matrix product about the data's mean, several times faster; its rounding grows
        with the squared distance of the components in units of their widths, and ends a fit early there.
        "auto": for large problems the quadratic one as far as its rounding allows, and from there, for the
        steps that decide convergence and the result, the whitened one.

    Raises:
      ValueError, TypeError: when it is built, for values that are none of these.

    Example:
      >>> import jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = [[-2.0], [-1.0], [1.0], [2.0]]
      >>> jaxgmm.fit(start, X, options=jaxgmm.EMOptions(kernel="whitened", history_size=5)).history.shape
      (5,)
    """

    block_size: int | None = None
    history_size: int = HISTORY_SIZE
    unconverged_gradient: str = "nan"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no fit understands."""
        if self.block_size is not None:
            validate.count(self.block_size, "block_size", 1)
        validate.count(self.history_size, "history_size", 0)
        validate.choice(self.unconverged_gradient, "unconverged_gradient", ("nan", "warn", "ignore"))
        validate.choice(self.kernel, "kernel", ("auto", "whitened", "quadratic"))

    def only(self, caller: str, *fields: str) -> None:
        """Raise where an option is set that `caller` has no use for; `fields` are those it uses."""
        for field in dataclasses.fields(self):
            if field.name not in fields and getattr(self, field.name) != field.default:
                raise ValueError(f"{caller} does not use options.{field.name}; leave it as it is")


def check_options(options: Any) -> EMOptions:
    """The options, or an error that says what to write."""
    if not isinstance(options, EMOptions):
        raise TypeError(
            f"options must be an EMOptions, such as EMOptions(kernel='whitened'); got {options!r}"
        )
    return options


DEFAULT_OPTIONS = EMOptions()


def concurrency(n_fits: int, n_samples: int, numbers: int) -> int:
    """How many fits to have under way at once, for so many numbers to work on in each for every sample.

    A CPU gains by several only as long as they fit its cache; an accelerator takes as many as there are.
    """
    if jax.default_backend() != "cpu":
        return n_fits
    most = max(1, min(n_fits, _TOGETHER // (numbers * min(n_samples, 2048))))
    # As many in the last round as in the others, where all take as long.
    return -(-n_fits // max(1, round(n_fits / most)))


class Settings(NamedTuple):
    """What the fits have in common."""

    x: Array
    w: Array | None
    tol: Array
    accelerate: Array
    block_size: int
    history_size: int
    unconverged: str
    kernel: str
    axis_name: AxisName = None


def _continued(
    first: Solution, begin: GMMParams, again: Callable[[GMMParams, Array, Memory], Solution], max_iter: Array
) -> Solution:
    """A fit that begins where another one ended, as one fit; from `begin`, if that one came to harm.

    Of fits with a leading axis.
    """
    sound = (first.status == Status.CONVERGED) | (first.status == Status.MAX_ITER)

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(sound.reshape(sound.shape + (1,) * (a.ndim - sound.ndim)), a, b)

    taken = jnp.where(sound, first.n_iter, 0)
    fresh = no_memory(first.report.dtype)
    memory = jax.tree.map(lambda a, b: jnp.where(sound, a, b), first.memory, fresh)
    rest = again(jax.tree.map(choose, first.point, begin), max_iter - taken, memory)
    history = rest.history
    size = history.shape[-1]
    if size:
        at = jnp.arange(size, dtype=jnp.int32).reshape((1,) * taken.ndim + (-1,))
        later = jnp.take_along_axis(history, jnp.clip(at - taken[..., None], 0, size - 1), axis=-1)
        history = jnp.where(at < taken[..., None], first.history, later)
    return rest._replace(n_iter=taken + rest.n_iter, history=history)


def _options(family: Family, s: Settings) -> dict[str, Any]:
    return {"chart": chart(family), "tol": s.tol, "accelerate": s.accelerate}


def _derivative(family: Family, s: Settings) -> Derivative:
    return Derivative(coordinates(family), s.unconverged, symmetric=family.to_natural is not None)


def _for_features(
    f: Context, s: Settings, family: Family, n_components: int, width: int = 1
) -> tuple[Context, int]:
    """The context where the quadratic kernel is used, and the rows of its blocks for so many fits at once."""
    kind = family.quadratic
    assert kind is not None
    # Features and responsibilities of a block, twice over: as they are and as they are multiplied.
    features = quadratic.n_features_of(kind, s.x.shape[1])
    rows = block_rows(s.x.shape[0], features + width * n_components, 2)
    with rows_over(s.axis_name):
        return f._replace(quadratic=quadratic.coordinates(kind, s.x, s.w, f.shift, f.centre)), rows


_ROUGH, _EXACT, _CLOSING = range(3)  # stages of a fit


def _staged(begin: GMMParams, f: Context, s: Settings, max_iter: Array) -> Solution:
    """Where one fit ends, on the kernels that are asked for, with its likelihood in the data's own place.

    One loop, compiled once, inside a loop over stages: steps on the quadratic kernel; steps on the whitened
    one, from where those ended or, if they came to harm, from `begin`; and a single evaluation of what will
    be returned, where the shift rounds it, for the likelihood that is reported.
    """
    family = begin.family
    step = functools.partial(evaluate, s.block_size, axis_name=s.axis_name)
    stages, turned, last = [_EXACT, _CLOSING], functools.partial(step, by_pairs=True), f
    if s.kernel != "whitened" and family.quadratic is not None:
        f, rows = _for_features(f, s, family, begin.n_components)
        turned = functools.partial(turned, quadratic_rows=rows)
        stages = [_ROUGH, *stages] if s.kernel == "auto" else [_ROUGH, _CLOSING]
        last = last if s.kernel == "auto" else f
    x, w, fixed, start = lax.stop_gradient((s.x, s.w, f, begin))
    fresh = squarem.begin(start, no_memory(s.tol.dtype), s.history_size)

    def stage(i: Array, carried: tuple[State, Array]) -> tuple[State, Array]:
        ended, report = carried
        which = jnp.asarray(stages, jnp.int32)[i]
        closing = which == _CLOSING
        sound = (ended.status == Status.CONVERGED) | (ended.status == Status.MAX_ITER)
        going_on = squarem.onward(ended)
        first = jax.tree.map(lambda a, b: jnp.where(sound | closing, a, b), going_on, fresh)
        # At a large offset the last digits of the means are lost when the shift is added back.
        back = jnp.where(closing, fixed.shift, 0)
        needed = ~closing | ((back != 0).any() & jnp.isfinite(ended.report))
        first = first._replace(
            point=translate(first.point, back),
            status=jnp.where(needed, first.status, ended.status),
        )
        # In the end only the likelihood is asked for: a prior stands about the shift as it was.
        here = fixed._replace(shift=fixed.shift - back)
        if fixed.quadratic is not None:
            here = here._replace(rough=which == _ROUGH)
        limit = jnp.where(closing, 0, max_iter)
        then = squarem.advance(turned, first, (x, w, here), max_iter=limit, **_options(family, s))
        report = jnp.where(closing & ~needed, ended.report, then.report)
        chosen = jax.tree.map(lambda a, b: jnp.where(closing, a, b), ended, then)
        return varying_like((chosen, report), outside)

    # The number of stages is no constant: XLA would write each of them out.
    n_stages = jnp.asarray(len(stages), jnp.int32)
    outside = x, w, fixed, s.tol, s.accelerate, max_iter
    begun = varying_like((fresh, fresh.report), outside)
    end, report = lax.fori_loop(jnp.zeros_like(n_stages), n_stages, stage, begun)
    return squarem.solution(step, _derivative(family, s), end._replace(report=report), (s.x, s.w, last))


def _many(
    begin: GMMParams,
    f: Context,
    s: Settings,
    max_iter: Array,
    context_of: Callable[[Context, Array], Context],
) -> Solution:
    """The same from starts with a leading axis, of whose fits some are under way at a time."""
    family, n_samples, (n_fits, k, d) = begin.family, s.x.shape[0], begin.means.shape
    options = _options(family, s) | {"derivative": _derivative(family, s), "history_size": s.history_size}

    def run(
        step: Step, f: Context, start: GMMParams, limit: Array, memory: Memory | None, width: int
    ) -> Solution:
        def data_of(index: Array) -> Any:
            return s.x, s.w, context_of(f, index)

        turning = functools.partial(step, by_pairs=True)
        return batched.solve(
            step, start, data_of, width=width, max_iter=limit, memory=memory, turning=turning, **options
        )

    def exact(point: GMMParams, limit: Array, memory: Memory | None = None) -> Solution:
        step = functools.partial(evaluate, s.block_size, axis_name=s.axis_name)
        return run(step, f, point, limit, memory, concurrency(n_fits, n_samples, k * d))

    if s.kernel == "whitened" or family.quadratic is None:
        return exact(begin, max_iter)
    width = concurrency(n_fits, n_samples, k)
    raw, rows = _for_features(f, s, family, k, width)
    first = run(functools.partial(evaluate, rows, axis_name=s.axis_name), raw, begin, max_iter, None, width)
    if s.kernel == "quadratic":
        return first
    return _continued(lax.stop_gradient(first), begin, exact, max_iter)


def _as_rounded(solution: Solution, f: Context, s: Settings) -> Solution:
    """A fit of several, with its likelihood in the data's own place."""

    def measured(point: GMMParams) -> Array:
        # At a large offset the last digits of the means are lost when the shift is added back, and what is
        # reported is the likelihood of what is returned.
        with rows_over(s.axis_name):
            moments = accumulate(translate(point, f.shift), s.x, s.w, block_size=s.block_size)
        return jnp.where(
            jnp.isfinite(solution.report), moments.log_likelihood / moments.total_weight, solution.report
        )

    # The condition is the same for all fits of the data, so that of many none does what is not needed.
    seen = solution.report, solution.point, f.shift, s.x, s.w
    report = lax.cond(
        (f.shift != 0).any(),
        lambda point: varying_like(measured(point), seen),
        lambda _: varying_like(solution.report, seen),
        solution.point,
    )
    return solution._replace(report=report)


def _result(solution: Solution, f: Context, s: Settings) -> FitResult:
    """A fit's result, in the data's own place."""
    objective = solution.report
    if f.prior is not None:
        with rows_over(s.axis_name):
            total = sum_rows(lambda w, _: w.sum(), s.w, s.x, block_size=s.block_size)
        objective = solution.report + priors.log_density(solution.point, f.prior)[0] / total
    fitted = translate(solution.point, f.shift)
    return FitResult(fitted, solution.report, objective, solution.n_iter, solution.status, solution.history)


def run(
    params: GMMParams,
    x: Array,
    w: Array | None,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior: Prior | None = None,
    *,
    block_size: int,
    history_size: int,
    surveyed: Context | None = None,
    unconverged: str = "nan",
    kernel: str = "whitened",
    axis_name: AxisName = None,
) -> FitResult:
    """`fit` without its checks, for code that is already inside `jit` or `vmap`.

    `surveyed` is what `frame` says of the data, where the caller already has it. With the name of an axis of
    `shard_map`, x and w are one part of the rows, and the fit is that of all of them.
    """
    s = Settings(x, w, tol, accelerate, block_size, history_size, unconverged, kernel, axis_name)
    with rows_over(axis_name):
        f = summarise(x, w, reg_covar) if surveyed is None else surveyed
    f = with_prior(f, prior, params.family, params.means.shape)
    begin = translate(admissible(params), -f.shift)
    return _result(_staged(begin, f, s, max_iter), f, s)


def run_many(
    params: GMMParams,
    x: Array,
    w: Array | None,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior_of: Callable[[Array], Prior | None] | None = None,
    *,
    block_size: int,
    history_size: int,
    surveyed: Context | None = None,
    unconverged: str = "nan",
    kernel: str = "whitened",
    axis_name: AxisName = None,
) -> FitResult:
    """`run` from starts with a leading axis R.

    `prior_of` gives the prior of the fit at an index () int32.
    """
    s = Settings(x, w, tol, accelerate, block_size, history_size, unconverged, kernel, axis_name)
    with rows_over(axis_name):
        f = summarise(x, w, reg_covar) if surveyed is None else surveyed
    family, (n_fits, *shape) = params.family, params.means.shape
    indices = jnp.arange(n_fits, dtype=jnp.int32)

    def own(index: Array) -> priors.Pseudo | None:
        return with_prior(f, None if prior_of is None else prior_of(index), family, tuple(shape)).prior

    pseudo = jax.vmap(own)(indices)

    def context_of(f: Context, index: Array) -> Context:
        return f._replace(prior=jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), pseudo))

    begin = jax.vmap(lambda p: translate(admissible(p), -f.shift))(params)
    solution = _many(begin, f, s, jnp.broadcast_to(max_iter, (n_fits,)), context_of)

    def one(end: Solution, index: Array) -> FitResult:
        own = context_of(f, index)
        return _result(_as_rounded(end, own, s), own, s)

    return jax.vmap(one)(solution, indices)
