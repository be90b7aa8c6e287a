"""A covariance structure and a component family of a user's own, without a change of the package."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import Component, Covariance, Sums, Target, gaussian
from jaxgmm.components.gaussian import mean_of, moments, move
from tests.conftest import soft_labels
from tests.problems import LABELS, D, K, X
from tests.quick import quick_jit

# A covariance structure in thirty lines: Σ_k = σ_k² diag(shape), with a shape that is known beforehand.
SHAPE = np.array([1.0, 4.0, 9.0])
_LENGTH = float(np.sqrt(2 * D))


def sds(scale):
    return jnp.exp(scale)[:, None] * jnp.asarray(np.sqrt(SHAPE), scale.dtype)[None, :]


def update(scale, weight, mean, second, ridge):
    on = weight > 0
    spread = second / jnp.where(on, weight, 1)[:, None] - mean**2 + ridge[None, :] / sds(scale) ** 2
    ratio = jnp.where(on, spread.mean(-1), 1)
    return scale + 0.5 * jnp.log(ratio), mean.shape[-1] * (ratio - 1) ** 2


def to_natural(reference, weights, scale, shift):
    root = jnp.sqrt(weights)
    return {"log": root * _LENGTH * (scale - reference), "shift": root[:, None] * shift}


def from_natural(reference, weights, natural):
    root = jnp.sqrt(weights)
    return reference + natural["log"] / (root * _LENGTH), natural["shift"] / root[:, None]


known_shape = Covariance(
    name="known shape",
    covariance_shape=lambda k, d: (k,),
    whitener=lambda scale: lambda residuals: residuals / sds(scale)[:, :, None],
    colour=lambda scale, y: y * sds(scale)[:, :, None],
    log_det=lambda scale, shape: 2 * jnp.log(sds(scale)).sum(-1),
    diagonal=lambda scale, shape: sds(scale) ** 2,
    inverse_diagonal=lambda scale, shape: 1 / sds(scale) ** 2,
    second_moment="diagonal",
    update=update,
    to_covariance=lambda scale, shape: jax.vmap(jnp.diag)(sds(scale) ** 2),
    from_covariance=lambda volume: 0.5 * jnp.log(volume),
    from_variances=lambda variances: (
        0.5 * jnp.log((variances / jnp.asarray(SHAPE[None, :], variances.dtype)).mean(-1))
    ),
    n_parameters=lambda k, d: k,
    to_natural=to_natural,
    from_natural=from_natural,
    to_unconstrained=lambda scale: scale,
    from_unconstrained=lambda free, shape: free,
    prior="VVI",
    free_volumes=True,
)


# A component family in sixty lines: the density exp(−√(1 + δ)) / Z, δ = ‖C⁻¹(x − μ)‖².
def _prepare(c, means, scale):
    return gaussian().prepare(c, means, scale)


def _length(prepared, x):
    y = prepared.whiten(x[None, :, :] - prepared.means[:, :, None])
    return y, jnp.minimum(jnp.square(y).sum(1), 1e30)


def _expect(c, prepared, x):
    y, length = _length(prepared, x)
    return -jnp.sqrt(1 + length), (y, length)


def _log_density(c, prepared, x, on):
    return _expect(c, prepared, x)[0], jnp.zeros_like(x[0])


# Z = 4π ∫ r² exp(−√(1 + r²)) dr for D = 3, by quadrature.
R = np.linspace(0, 80, 400_001)
LOG_Z = float(np.log(4 * np.pi * (R**2 * np.exp(-np.sqrt(1 + R**2))).sum() * (R[1] - R[0])))  # 0 at both ends


def _log_normaliser(c, scale, shape):
    return -LOG_Z - 0.5 * c.covariance.log_det(scale, shape)


def _statistics(c, prepared, latent, resp):
    y, length = latent
    u = resp / jnp.sqrt(1 + length)  # the weight of a row in the M-step: −2 d exponent / dδ
    return moments(c, prepared, y, u)._replace(extra=u.sum(1))


def _maximise(c, means, scale, weight, sums: Sums, target, ridge):
    mean = mean_of(sums.first, sums.extra)
    n = jnp.where(weight > 0, weight, 1)
    centre = mean * jnp.sqrt(sums.extra / n)[:, None]
    return move(c, means, scale, Target(mean, weight, centre, sums.second), ridge)


laplace: Component = gaussian("full")._replace(
    name="laplace",
    prepare=_prepare,
    expect=_expect,
    log_density=_log_density,
    log_normaliser=_log_normaliser,
    statistics=_statistics,
    maximise=_maximise,
    is_gaussian=False,
)


@pytest.fixture(params=[known_shape, laplace], ids=["covariance", "component"])
def record(request):
    return request.param


quick_fit = quick_jit(jaxgmm.fit)


@functools.cache
def start(record):
    resp = soft_labels(LABELS, K)
    return jax.tree.map(np.asarray, jaxgmm.m_step(resp, X, covariance_type=record))


def test_it_fits_accelerates_and_climbs(record, double):
    begin = start(record)
    fitted, plain = (quick_fit(begin, X, accelerate=a, tol=1e-5, max_iter=5000) for a in (True, False))
    assert fitted.status == plain.status == jaxgmm.Status.CONVERGED
    assert fitted.n_iter < plain.n_iter
    np.testing.assert_allclose(fitted.params.means, plain.params.means, atol=1e-4)
    history = np.asarray(plain.history)[: min(int(plain.n_iter), 256)]
    # But for the ridge's own penalty, of the order of reg_covar.
    assert (np.diff(history) > -1e-6 * 1e-6).all()


def test_it_differentiates(record, double):
    begin = start(record)

    def first_mean(by):
        params = jaxgmm.fit(begin, X + by * X**2 / 10, reg_covar=0.0, tol=1e-11, max_iter=20_000).params
        return params.means[0, 0], params

    @quick_jit
    def of(by):
        value, slope, params = jax.jvp(first_mean, (by,), (1.0,), has_aux=True)
        theta = jaxgmm.gradients.unconstrained(params)
        return value, slope, jax.grad(jaxgmm.gradients.negative_log_likelihood)(theta, params, X)

    h = 1e-4
    (_, slope, gradient), (up, *_), (down, *_) = (of(by) for by in (0.0, h, -h))
    np.testing.assert_allclose(slope, (float(up) - float(down)) / (2 * h), rtol=1e-5)
    assert max(np.abs(a).max() for a in map(np.asarray, jax.tree.leaves(gradient))) < 1e-7


def test_it_saves_prints_and_counts(record, tmp_path, double):
    params = start(record)
    with pytest.raises(ValueError, match="pass covariance_type="):
        jaxgmm.save(tmp_path / "model.npz", params)
    jaxgmm.save(tmp_path / "model.npz", params, covariance_type=record)
    again = jaxgmm.load(tmp_path / "model.npz", covariance_type=record)
    assert again.model == params.model
    assert (again.means == params.means).all()
    assert record.name in repr(params)
    assert "±" in str(params)
    own = K if record is known_shape else K * D * (D + 1) // 2
    assert int(jaxgmm.n_parameters(params)) == K - 1 + K * D + own
    assert dataclasses.replace(params, means=params.means + 1).model == params.model
