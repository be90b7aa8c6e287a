import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import FAMILIES
from jaxgmm.mixture import active, translate
from tests.conftest import CORE, every_name, given

SHAPES = {"full": (2, 3, 3), "tied": (3, 3), "diag": (2, 3), "spherical": (2,)}


def _covariances(name):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 3, 3)) + 2 * np.eye(3)
    cov = np.einsum("kde,kfe->kdf", root, root)
    return {
        "full": cov,
        "tied": cov[0],
        "diag": np.einsum("kdd->kd", cov),
        "spherical": np.array([1.5, 2.5]),
    }[name]


def _dense(name):
    given = _covariances(name)
    eye = np.eye(3)
    return {
        "full": lambda: given,
        "tied": lambda: np.stack([given, given]),
        "diag": lambda: np.stack([np.diag(v) for v in given]),
        "spherical": lambda: np.stack([v * eye for v in given]),
    }[name]()


def test_make_params_takes_scikit_learns_shapes(name, dtype):
    given = _covariances(name)
    assert given.shape == SHAPES[name]
    params = jaxgmm.make_params(
        [0.25, 0.75], np.arange(6.0).reshape(2, 3).astype(dtype), given.astype(dtype), name
    )
    assert params.means.dtype == dtype
    np.testing.assert_allclose(params.weights, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(params.covariances, _dense(name), rtol=1e-5, atol=1e-5)
    assert params.n_components == 2
    assert params.n_features == 3
    assert params.family.name == name


def test_a_batch_of_mixtures_keeps_its_leading_axes(name):
    given = _covariances(name)
    one = jaxgmm.make_params([0.25, 0.75], np.zeros((2, 3)), given, name)
    batch = jax.tree.map(lambda a: jnp.stack([a, a, a, a]), one)
    assert batch.weights.shape == (4, 2)
    assert batch.covariances.shape == (4, 2, 3, 3)
    assert (batch.n_components, batch.n_features) == (2, 3)
    np.testing.assert_array_equal(batch.covariances[2], one.covariances)


def test_pytrees_are_built_without_validation(name):
    params = jaxgmm.make_params([0.25, 0.75], np.zeros((2, 3)), _covariances(name), name)
    assert jax.tree.map(lambda a: None, params).means is None
    assert jax.tree.structure(params) == jax.tree.structure(jax.tree.map(lambda a: a * 2, params))
    with pytest.raises(AttributeError):
        params.means = jnp.zeros((2, 3))


def test_make_params_runs_inside_jit_and_marks_what_it_cannot_refuse():
    bad = jax.jit(lambda v: jaxgmm.make_params([1.0], [[0.0]], v, "diag"))(jnp.array([[-1.0]]))
    assert np.isnan(bad.scale).all()


def test_a_zero_weight_switches_a_component_off(name):
    params = jaxgmm.make_params([0.0, 1.0], np.zeros((2, 3)), _covariances(name), name)
    assert params.log_weights[0] == -np.inf
    alone = active(params)
    assert alone.n_components == 1
    np.testing.assert_allclose(alone.covariances[0], _dense(name)[1], rtol=1e-5, atol=1e-5)
    X = np.random.default_rng(1).normal(size=(10, 3))
    np.testing.assert_allclose(jaxgmm.log_prob(alone, X), jaxgmm.log_prob(params, X), rtol=1e-5)


def test_active_leaves_a_full_mixture_alone(name):
    params = jaxgmm.make_params([0.5, 0.5], np.zeros((2, 3)), _covariances(name), name)
    assert active(params) is params


def test_translate_moves_the_means_only():
    params = jaxgmm.make_params([0.5, 0.5], np.zeros((2, 3)), _covariances("full"))
    moved = translate(params, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(moved.means, [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(moved.scale, params.scale)


def test_names_cover_the_core():
    assert set(CORE) == set(SHAPES)


@every_name
def test_covariances_that_a_structure_can_have_are_kept(name, double):
    """What comes back from make_params goes in again unchanged, and lies as near as an M-step would."""
    family = FAMILIES[name]
    root = np.random.default_rng(0).normal(size=(2, 3, 3)) + 2 * np.eye(3)
    cov = np.einsum("kde,kfe->kdf", root, root)
    means = np.zeros((2, 3))
    once = jaxgmm.make_params([0.25, 0.75], means, given(family, cov), name).covariances
    twice = jaxgmm.make_params([0.25, 0.75], means, given(family, np.asarray(once)), name).covariances
    np.testing.assert_allclose(twice, once, rtol=1e-9, atol=1e-9)
    assert (np.linalg.eigvalsh(once) > 0).all()


@every_name
def test_a_covariance_that_is_not_positive_definite_is_refused(name):
    family = FAMILIES[name]
    bad = np.stack([np.eye(3), -np.eye(3)])
    cov = given(family, bad[::-1] if family.covariance_shape(5, 7) in ((), (7,), (7, 7)) else bad)
    if name == "EII":
        cov = np.asarray(-1.0)
    with pytest.raises(ValueError, match=r"covariances must be positive definite; (component 1|the shared)"):
        jaxgmm.make_params([0.5, 0.5], np.zeros((2, 3)), cov if name != "spherical" else [1.0, -1.0], name)
