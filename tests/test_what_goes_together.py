"""The table of docs/incomplete.md says what goes together, and what does not is refused by name.

Nothing is compiled: a call that comes to its first program has passed every check.
"""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import get_model
from jaxgmm.components.weights import Weights
from jaxgmm.kernels import programs
from jaxgmm.mixture import hold, scale_like
from jaxgmm.parallel.processes import ProcessError
from tests.conftest import case
from tests.problems import FEW, LABELS, STRUCTURES, WEIGHT, D, K
from tests.test_observed import ENTRY_POINTS, OBSERVATIONS, REFUSALS, data

PAGE = Path(__file__).parent.parent / "docs/incomplete.md"
COLUMNS = {
    "gaps": ("gaps",),
    "noise": ("noise", "covariances"),
    "projections": ("projections",),
    "labels, soft labels": ("labels", "soft labels"),
    "groups": ("groups",),
}
COMPONENTS = ("full", "diag", "student_t(full)", "contaminated(full)", "background(full)")
KEY = jax.random.key(0)


class Reached(Exception):
    """A program would be compiled now."""


@pytest.fixture
def no_programs(monkeypatch):
    """What would compile a program raises `Reached`; what is traced is traced."""
    traced = programs._Program.__call__

    def call(program, *args, **kwargs):
        if programs.is_tracing() or not programs.is_concrete(args, kwargs):
            return traced(program, *args, **kwargs)
        raise Reached

    monkeypatch.setattr(programs._Program, "__call__", call)


@functools.cache
def start(name):
    """A mixture of a structure; nobody looks at its numbers."""
    model = get_model(name)
    ones = functools.partial(np.ones, dtype=np.float32)
    scale = jax.tree.map(lambda a: ones(a.shape), scale_like(model.component, K, D))
    params = jaxgmm.GMMParams(ones(K), ones((K, D)), scale, *model)
    return jax.device_put(params)


@functools.cache
def rows_of(kind):
    return data(kind, "float32")


def refusal(call, *args):
    """The message of the refusal of a call, or None where it comes to a program."""
    try:
        call(*args)
    except Reached:
        return None
    except (ValueError, TypeError, ProcessError) as error:
        return str(error)
    return None


def entry(name):
    return lambda kind: ENTRY_POINTS[name](rows_of(kind), start("full"), "full")


def density(component):
    return lambda kind: jaxgmm.log_prob(start(component), rows_of(kind))


def weighted(kind):
    known = dict(OBSERVATIONS[kind])
    return jaxgmm.observe(known.pop("X"), sample_weight=WEIGHT, **known)


def with_a_prior(kind):  # refused where it is traced
    prior = jaxgmm.Prior(mean=np.zeros(D), strength=1.0)
    return jax.eval_shape(lambda x: jaxgmm.em_step(start("full"), x, prior=prior), rows_of(kind))


def select(kind):
    return jaxgmm.select(KEY, rows_of(kind), (K,), covariance_types=("full",))


def elbo(kind):
    return jaxgmm.elbo(start("full"), np.full((len(LABELS), K), 1 / K, np.float32), rows_of(kind))


def likelihood_ratio(kind):
    return jaxgmm.inference.bootstrap_likelihood_ratio(KEY, rows_of(kind), K)


def streamed(kind):
    return jaxgmm.fit_stream(start("full"), rows_of(kind), missing="nan")


def distributed(kind):
    return jaxgmm.parallel.processes.fit_distributed(start("full"), rows_of(kind), missing="nan")


CALLS = {
    "Gaussian components, every structure": [density(name) for name in FEW],
    "Student-t components": [density("student_t(full)")],
    "contaminated components": [density("contaminated(full)")],
    "uniform background": [density("background(full)")],
    "held parameters": [lambda kind: jaxgmm.fit(hold(start("full"), means=[0]), rows_of(kind))],
    "`sample_weight`": [weighted],
    "priors": [with_a_prior],
    "`fit_best`, `select`; `fit_restarts` without given starts": [
        *map(entry, ("fit_best", "fit_restarts")),
        select,
    ],
    "standard errors, `bootstrap`": [*map(entry, ("information", "bootstrap", "influence"))],
    "`fit_gradient`, `fit_unrolled`, `elbo`": [*map(entry, ("fit_gradient", "fit_unrolled")), elbo],
    "`impute`": [entry("impute")],
    "`fit_sharded`": [entry("fit_sharded")],
    "`fit_stream`, `fit_distributed`": [streamed, distributed],
    "`fit_stepwise`": [
        lambda kind: jaxgmm.outofcore.fit_stepwise(start("full"), rows_of(kind)),
    ],
    '`EMOptions(kernel="quadratic")`': [
        lambda kind: jaxgmm.fit(start("full"), rows_of(kind), options=jaxgmm.EMOptions(kernel="quadratic"))
    ],
    "`leave_one_out`": [entry("leave_one_out")],
    "`bootstrap_likelihood_ratio`": [likelihood_ratio],
    "`fit_variational`": [entry("fit_variational")],
    "`summary`": [entry("summary")],
}
# Derivatives are computed in tests/test_observed.py; an engine is given arrays, which say of gaps alone.
ELSEWHERE = {"derivatives of a fit", "`fit_engine`"}


def table():
    """The rows of the page's table, by their first cells."""
    section = PAGE.read_text().split("## Supported combinations")[1]
    cells = [
        [c.strip() for c in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)
    ]
    header, _, *rows = cells
    assert header[1:] == list(COLUMNS)
    return {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in rows}


def test_the_table_is_of_all_that_there_is():
    assert set(table()) == set(CALLS) | ELSEWHERE


def test_the_table_says_what_goes_together(no_programs):
    for row in CALLS:
        with case(row):
            for column, cell in table()[row].items():
                for kind, call in itertools.product(COLUMNS[column], CALLS[row]):
                    message = refusal(call, kind)
                    goes = cell == "yes" or (cell == "labels" and kind == "labels")
                    assert (message is None) == goes, (column, kind, message)


def test_every_component_observation_and_entry_point_comes_to_a_program_or_is_refused_by_name(no_programs):
    unnamed = []
    entries = [name for name in ENTRY_POINTS if name not in ("gradient", "step")]
    for component, kind, name in itertools.product(COMPONENTS, OBSERVATIONS, entries):
        call = functools.partial(ENTRY_POINTS[name], name=component)
        message = refusal(call, rows_of(kind), start(component))
        if message is not None and not any(words in message for words in REFUSALS):
            unnamed.append((component, kind, name, message))
    assert not unnamed


FITS = {
    "fit": lambda params, rows, prior: jaxgmm.fit(params, rows, prior=prior),
    "em_step": lambda params, rows, prior: jaxgmm.em_step(params, rows, prior=prior),
    "fit_stream": lambda params, rows, prior: jaxgmm.fit_stream(params, rows, missing="nan", prior=prior),
    "fit_best": lambda params, rows, prior: jaxgmm.fit_best(
        KEY, rows, K, covariance_type=params.model, prior=prior
    ),
}
PRIOR = jaxgmm.Prior(mean=np.zeros(D), strength=1.0)


def test_every_structure_rule_and_prior_comes_to_a_program_or_is_refused_by_name(no_programs):
    named = (*REFUSALS, "where means are held", "held means and covariances", "share parts", "needs Gaussian")
    rules = {
        "free": lambda params: params,
        "equal": lambda params: dataclasses.replace(params, weights_rule=Weights("equal")),
        "fixed": lambda params: hold(params, weights=True),
        "held": lambda params: hold(params, means=[0], covariances=[1]),
    }
    unnamed = []
    some = itertools.product(("full", "VVE", "student_t(full)"), OBSERVATIONS, rules, (None, PRIOR), FITS)
    every = itertools.product(STRUCTURES, OBSERVATIONS, ("free",), (None,), ("fit",))
    for name, kind, rule, prior, fit in (*some, *every):

        def call(name=name, kind=kind, rule=rule, prior=prior, fit=fit):
            return FITS[fit](rules[rule](start(name)), rows_of(kind), prior)

        message = refusal(call)
        if message is not None and not any(words in message for words in named):
            unnamed.append((name, kind, rule, prior, fit, message))
    assert not unnamed


def test_every_family_and_observation_traces_or_is_refused_by_name():
    for component, kind in itertools.product(COMPONENTS[2:], OBSERVATIONS):
        if kind in ("weights", "gaps and noise", "soft labels"):  # as others
            continue
        call = functools.partial(jax.eval_shape, jaxgmm.em_step)
        message = refusal(call, start(component), rows_of(kind))
        assert message is None or "no density for rows with" in message, (component, kind, message)
