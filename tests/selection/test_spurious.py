"""What is flagged as spurious: only what can collapse, in the terms of each structure."""

import functools

import jax.numpy as jnp
import numpy as np

from jaxgmm.components import get_covariance, get_model
from jaxgmm.components.covariance.base import Collapse
from jaxgmm.data import Data
from jaxgmm.selection import Spurious
from jaxgmm.selection._grid import STRUCTURES
from jaxgmm.selection._spurious import describe, spurious, total_factor, total_for
from tests.conftest import case
from tests.quick import quick_jit

D = 3
FEATURES = np.array([1.0, 10.0, 1e4])  # standard deviations of the data
OTHERS = ("factor(1)", "factor(2)", "full-ratio(100)", "full-equal", "spherical-equal")


_total = quick_jit(lambda x: total_factor(Data(x), 50))


@quick_jit
def _flags(log_weights, means, covariances, total, collapse, bounded):
    n, ratio = jnp.float32(100), jnp.float32(1e5)
    return spurious(log_weights, means, covariances, n, total, ratio, collapse, bounded)


def flags(name, weights, variances, bounded=False):
    """Of components far apart with diagonal covariances, in the data of 100 samples."""
    weights, variances = np.asarray(weights, np.float32), np.asarray(variances, np.float32)
    means = (np.arange(len(weights))[:, None] * FEATURES[None, :] * 10).astype(np.float32)
    family = get_model(name).covariance
    total = total_for(family, np.diag(FEATURES.astype(np.float32)))
    dense = variances[:, :, None] * np.eye(D, dtype=np.float32)
    return Spurious(int(_flags(np.log(weights), means, dense, total, family.collapse(D), bounded)))


@functools.cache
def smallest_counts(name):
    """The samples, of 100, that a structure asks of the smallest of three components."""
    variances = np.broadcast_to(np.square(FEATURES)[None, :], (3, D))
    small = [n for n in range(1, 9) if flags(name, [n / 100, 0.5, 0.5 - n / 100], variances) & Spurious.FEW]
    return max(small, default=0) + 1


def test_a_component_has_few_samples_only_where_it_could_collapse_on_them():
    for names, count in [
        (("VVV", "EVV", "VVE", "EVE", "factor(2)", "full-equal"), D + 2),
        (("factor(1)",), 4),
        (("VVI", "EVI", "VII", "VEI", "VEE", "VEV", "spherical-equal"), 3),
        (("EII", "EEI", "EEE", "EEV", "full-ratio(100)"), 1),
    ]:
        with case(names, count):
            assert {name: smallest_counts(name) for name in names} == dict.fromkeys(names, count)


_one = quick_jit(
    lambda n, limited: spurious(jnp.zeros(1), jnp.zeros((1, D)), None, n, jnp.eye(D), 1e5, limited)
)


def test_one_component_is_never_narrow_and_few_only_where_the_data_are():
    for name in [*STRUCTURES, *OTHERS]:
        with case(name):
            narrow = np.square(FEATURES)[None, :] * np.array([1.0, 1.0, 1e-9])
            assert flags(name, [1.0], narrow) == 0
            assert flags(name, [1.0], np.ones((1, D))) == 0
            c = get_model(name).covariance.collapse(D)
            needed = max(c.each, c.largest, c.pooled)
            few = [
                int(_one(np.float32(n), get_model(name).covariance.collapse(D))) for n in (needed - 1, needed)
            ]
            assert few == [Spurious.FEW, 0]


def test_narrowness_is_measured_in_what_a_structure_can_say():
    square = np.square(FEATURES)
    # Spheres in data whose features differ by 1e4: 1e8 between eigenvalues relative to the data.
    spheres = np.ones((2, D)) * np.array([[1.0], [4.0]])
    for name in ("VII", "EII", "VEI", "VEE", "VEV", "EEV", "EEE"):
        assert flags(name, [0.5, 0.5], spheres) == 0, name
    for name in ("VVV", "VVI", "EVI", "EVV", "EVE", "VVE", "factor(1)"):
        assert flags(name, [0.5, 0.5], spheres) == Spurious.NARROW, name
    # Volumes that differ by more than the ratio.
    volumes = np.ones((2, D)) * np.array([[1.0], [2e5]])
    for name in ("VII", "VEI", "VEE", "VEV", "VVI"):
        assert flags(name, [0.5, 0.5], volumes) & Spurious.NARROW, name
    for name in ("EII", "EEI", "EEE", "EEV", "full-ratio(100)"):
        assert flags(name, [0.5, 0.5], volumes) == 0, name
    # One axis of one component.
    needle = square[None, :] * np.array([[1.0, 1.0, 1.0], [1e-6, 1.0, 1.0]])
    for name in ("VVV", "VVI", "EVI"):
        assert flags(name, [0.5, 0.5], needle) == Spurious.NARROW, name
    assert flags("VEI", [0.5, 0.5], needle) == 0


def test_what_components_share_needs_samples_of_all_of_them():
    @quick_jit
    def flagged(weights, n, limited):
        return spurious(weights, jnp.zeros((4, D)), None, n, jnp.eye(D), 1e5, limited)

    def few(name, k, n):
        weights = np.where(np.arange(4) < k, -np.log(k), -np.inf).astype(np.float32)
        return bool(flagged(weights, np.float32(n), get_model(name).covariance.collapse(D)))

    # EEE: N − K ≥ D, and one to spare; EII: N − K ≥ 1, likewise; EEV: a component of D + 1, likewise.
    assert [few("EEE", 4, n) for n in (7, 8)] == [True, False]
    assert [few("EII", 4, n) for n in (5, 6)] == [True, False]
    assert [few("EEV", 2, n) for n in (9, 10)] == [True, False]
    assert [few("VVV", 2, n) for n in (9, 10)] == [True, False]


def test_a_prior_of_covariances_takes_the_place_of_samples():
    variances = np.broadcast_to(np.square(FEATURES)[None, :], (2, D))
    needle = variances * np.array([[1.0, 1.0, 1.0], [1e-6, 1.0, 1.0]])
    assert flags("VVV", [0.98, 0.02], variances) == Spurious.FEW
    assert flags("VVV", [0.98, 0.02], variances, bounded=True) == 0
    # The bound may be far away.
    assert flags("VVV", [0.98, 0.02], needle, bounded=True) == Spurious.NARROW


def test_one_feature_has_no_shape():
    for name in ("EVI", "EVV", "EVE"):
        assert get_covariance(name).collapse(1) == Collapse(pooled=2)
        assert get_covariance(name).collapse(2).each > 0
    assert get_covariance("VVV").collapse(1).each == 2


def test_a_record_of_your_own_counts_as_full():
    own = get_covariance("diag")
    fields = {name: getattr(own, name) for name in own._fields if name != "collapse"}
    assert type(own)(**fields).collapse(4) == get_covariance("VVV").collapse(4) == Collapse(each=5)


def test_the_total_of_a_structure_without_correlations(double):
    x = np.random.default_rng(0).normal(size=(50, 2)) @ np.array([[1, 0.9], [0, 0.1]])
    total = _total(jnp.asarray(x))
    assert total_for(get_covariance("full"), total) is total
    np.testing.assert_allclose(total_for(get_covariance("diag"), total), np.diag(x.std(0)), rtol=1e-6)


def test_narrowness_is_relative_to_the_covariance_of_the_data(double):
    """A direction in which all the data are narrow is not held against a component."""
    x = np.random.default_rng(0).normal(size=(50, 2)) * np.array([1.0, 1e-4]) @ np.array([[1, 1], [1, -1.0]])
    total = np.asarray(_total(x))
    np.testing.assert_allclose(total @ total.T, np.cov(x.T, bias=True), rtol=1e-6)
    cov = np.stack([np.cov(x.T, bias=True)] * 2)
    apart, narrow = np.array([x.mean(0), x.mean(0) + 10]), quick_jit(spurious)
    flag = narrow(np.log(np.full(2, 0.5)), apart, cov, 500.0, total, 10.0)
    assert int(flag) == 0
    flag = narrow(np.log(np.full(2, 0.5)), apart, cov, 500.0, np.eye(2), 10.0)
    assert int(flag) == Spurious.NARROW


def test_components_that_are_nearly_equal_are_twins():
    near = np.square(FEATURES)[None, :] * np.array([[1.0], [1.01]])

    def flag(gap, weights=(0.5, 0.5)):
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.array(weights, np.float32))
        means = (np.array([[0.0], [gap]]) * FEATURES).astype(np.float32)
        total = np.diag(FEATURES.astype(np.float32))
        dense = (near[:, :, None] * np.eye(D)).astype(np.float32)
        limits = get_covariance("full").collapse(D)
        return Spurious(int(_flags(log_weights, means, dense, total, limits, False)))

    assert flag(0.03) == Spurious.TWINS
    assert flag(3.0) == 0
    assert flag(0.03, (1.0, 0.0)) == 0
    assert describe(Spurious.FEW | Spurious.NARROW | Spurious.TWINS) == "few samples, too narrow, twins"
