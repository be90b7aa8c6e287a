import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import STRUCTURES as RECORDS
from jaxgmm.mixture import active, translate
from tests.conftest import given

ROOT = np.random.default_rng(0).normal(size=(2, 3, 3)) + 2 * np.eye(3)
FULL = np.einsum("kde,kfe->kdf", ROOT, ROOT)
DIAG = np.einsum("kdd->kd", FULL)
# What scikit-learn takes, and what it stands for.
COVARIANCES = {
    "full": (FULL, FULL),
    "tied": (FULL[0], FULL[[0, 0]]),
    "diag": (DIAG, np.stack([np.diag(v) for v in DIAG])),
    "spherical": (np.array([1.5, 2.5]), np.stack([1.5 * np.eye(3), 2.5 * np.eye(3)])),
}


def params_of(name="full", weights=(0.25, 0.75), means=None):
    means = np.zeros((2, 3)) if means is None else means
    return jaxgmm.make_params(list(weights), means, COVARIANCES[name][0], name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("full", "float64"), *((name, "float32") for name in ("tied", "diag", "spherical"))],
    indirect=["dtype"],
)
def test_make_params_takes_scikit_learns_shapes_and_batches_keep_their_leading_axes(name, dtype):
    covariances, dense = COVARIANCES[name]
    means = np.arange(6.0).reshape(2, 3).astype(dtype)
    params = jaxgmm.make_params([0.25, 0.75], means, covariances.astype(dtype), name)
    assert params.means.dtype == dtype
    np.testing.assert_allclose(params.weights, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(params.covariances, dense, rtol=1e-5, atol=1e-5)
    assert (params.n_components, params.n_features, params.model.name) == (2, 3, name)
    batch = jax.tree.map(lambda a: np.stack([a, a, a, a]), params)
    assert batch.weights.shape == (4, 2)
    assert batch.covariances.shape == (4, 2, 3, 3)
    assert (batch.n_components, batch.n_features) == (2, 3)
    np.testing.assert_array_equal(batch.covariances[2], params.covariances)


def test_pytrees_are_built_without_validation_and_params_do_not_change():
    params = jax.tree.map(np.asarray, params_of())
    assert jax.tree.map(lambda a: None, params).means is None
    assert jax.tree.structure(params) == jax.tree.structure(jax.tree.map(lambda a: a * 2, params))
    with pytest.raises(AttributeError):
        params.means = params.means


def test_make_params_runs_inside_jit_and_marks_what_it_cannot_refuse():
    bad = jax.jit(lambda v: jaxgmm.make_params([1.0], [[0.0]], v, "diag"))(np.float32([[-1]]))
    assert np.isnan(bad.scale).all()


@pytest.mark.parametrize("name", ["full", "tied"])
def test_a_zero_weight_switches_a_component_off_and_active_leaves_it_out(name):
    params = params_of(name, (0.0, 1.0))
    assert params.log_weights[0] == -np.inf
    alone = active(params)
    assert alone.n_components == 1
    np.testing.assert_allclose(alone.covariances[0], COVARIANCES[name][1][1], rtol=1e-5, atol=1e-5)
    whole = params_of(name)
    assert active(whole) is whole


def test_translate_moves_the_means_only():
    params = params_of()
    moved = translate(params, np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(moved.means, [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(moved.scale, params.scale)


def test_a_covariance_that_is_not_positive_definite_is_refused():
    bad = np.stack([np.eye(3), -np.eye(3)])
    for name in ("full", "tied", "diag", "EII", "EEV"):
        family = RECORDS[name]
        cov = given(family, bad[::-1] if family.covariance_shape(5, 7) in ((7,), (7, 7)) else bad)
        if name == "EII":
            cov = np.asarray(-1.0)
        with pytest.raises(ValueError, match=r"must be positive definite; (component 1|the shared)"):
            jaxgmm.make_params([0.5, 0.5], np.zeros((2, 3)), cov, name)
