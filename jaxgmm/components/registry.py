"""Names of models."""

from __future__ import annotations

import re
from collections.abc import Callable

from jaxgmm.components.background import background
from jaxgmm.components.base import Component
from jaxgmm.components.contaminated import contaminated
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.registry import get_covariance
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.student_t import student_t
from jaxgmm.components.weights import Model, Weights, split_name

# What `get_model` takes.
ModelLike = str | Covariance | Component | Model

# Families of components that are made of another one or of a covariance structure, by name.
FAMILIES: dict[str, Callable[..., Component]] = {
    "student_t": student_t,
    "contaminated": contaminated,
    "background": background,
}


def get_component(name: str | Covariance | Component) -> Component:
    """The record for a component's name, such as "full" or "student_t(VVE)"; a structure's is Gaussian.

    Raises:
      ValueError: for a name that is not in the table.
      TypeError: for anything that is no name, `Covariance` or `Component`.

    Example:
      >>> from jaxgmm.components import get_component
      >>> get_component("student_t(VVE)")
      Component('student_t(VVE)')
    """
    if isinstance(name, Component):
        return name
    parts = re.fullmatch(r"([a-z_]+)\((.+)\)", name) if isinstance(name, str) else None
    if parts is not None and (family := FAMILIES.get(parts[1])) is not None:
        if family is background:
            return background(get_component(parts[2]))
        inside, *options = re.split(r", (?![^(]*\))", parts[2])
        return family(get_covariance(inside), *options)
    return gaussian(get_covariance(name))


def get_model(covariance_type: ModelLike) -> Model:
    """The model for a name, a covariance structure or a component; a model is returned as it is.

    A name is a component's, such as "full", "factor(5)" or "student_t(VVE)", with "-equal" or "-fixed" at its
    end for weights that are equal or fixed.

    Raises:
      ValueError: for a name that is not in the table.
      TypeError: for anything else.

    Example:
      >>> from jaxgmm.components import get_model
      >>> get_model("full-equal")
      Model('full-equal')
    """
    if isinstance(covariance_type, Model):
        return covariance_type
    if isinstance(covariance_type, str):
        name, weights = split_name(covariance_type)
        return Model(get_component(name), weights)
    return Model(get_component(covariance_type))


def equal_weights(covariance_type: ModelLike) -> Model:
    """The same mixtures with components that all have the same weight.

    A fit holds every π_k at 1/K, K being the number of components that are on, and the criteria count K − 1
    parameters fewer. Nothing else changes: mixtures with unequal weights can be evaluated, and are made equal
    where a fit begins.

    Args:
      covariance_type: a name, a `Covariance` or a `Component`.

    Returns:
      A `Model`, its name that of the component and "-equal": "full-equal" can be passed as covariance_type
      too.

    Raises:
      ValueError, TypeError: as `get_model`.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.components import equal_weights
      >>> resp = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
      >>> X, model = [[0.0], [1.0], [2.0], [3.0]], equal_weights("full")
      >>> jaxgmm.m_step(resp, X, covariance_type=model).weights.tolist()
      [0.5, 0.5]

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28: the models
      with equal proportions.
    """
    return get_model(covariance_type)._replace(weights=Weights("equal"))


def fixed_weights(covariance_type: ModelLike) -> Model:
    """The same mixtures with weights that a fit keeps as it found them.

    The criteria count K − 1 parameters fewer.

    Args:
      covariance_type: a name, a `Covariance` or a `Component`.

    Returns:
      A `Model`, its name that of the component and "-fixed".

    Raises:
      ValueError, TypeError: as `get_model`.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.components import fixed_weights
      >>> model = fixed_weights("spherical")
      >>> start = jaxgmm.make_params([0.2, 0.8], [[-1.0], [1.0]], [1.0, 1.0], model)
      >>> new, _ = jaxgmm.em_step(start, [[-2.0], [-1.0], [1.0], [2.0]])
      >>> new.weights.round(3).tolist()
      [0.2, 0.8]
    """
    return get_model(covariance_type)._replace(weights=Weights("fixed"))
