"""Every covariance structure, and one written here by a user, through the same checks."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import FAMILIES, Family, get_family
from jaxgmm.components.covariance.base import check_record, is_from_package
from tests.conftest import (
    CORE,
    NAMES,
    costly,
    given,
    lapack_calls,
    overlapping,
    soft_labels,
    start_from,
    takes_rows,
    x64,
)


def _two_widths() -> Family:
    """A user's structure: Σ_k = σ_k² diag(1, 4, 9, …), with one σ for each component."""

    def shape_of(n_features, dtype):
        return jnp.arange(1, n_features + 1, dtype=dtype)

    def update(scale, weight, mean, second, ridge):
        on = weight > 0
        spread = (second.sum(-1) / jnp.where(on, weight, 1) - jnp.square(mean).sum(-1)) / mean.shape[-1]
        widths = shape_of(mean.shape[-1], mean.dtype)
        target = spread + (ridge / widths**2).mean() / scale**2
        target = jnp.where(on, target, 1)
        return scale * jnp.sqrt(target), mean.shape[-1] * jnp.square(target - 1)

    def spread_out(scale, shape):
        return scale[..., None] * shape_of(shape[-1], scale.dtype).reshape((1,) * scale.ndim + (-1,))

    return Family(
        name="two_widths",
        covariance_shape=lambda k, d: (k,),
        whitener=lambda s: lambda r: r / (s[:, None] * shape_of(r.shape[1], s.dtype)[None, :])[:, :, None],
        colour=lambda s, y: y * (s[:, None] * shape_of(y.shape[1], s.dtype)[None, :])[:, :, None],
        log_det=lambda s, shape: 2 * jnp.log(spread_out(s, shape)).sum(-1),
        diagonal=lambda s, shape: spread_out(s, shape) ** 2,
        inverse_diagonal=lambda s, shape: spread_out(s, shape) ** -2,
        second_moment=lambda s, y, r: (y * y * r[:, None, :]).sum(-1),
        update=update,
        to_covariance=lambda s, shape: jax.vmap(jnp.diag)(spread_out(s, shape) ** 2),
        from_covariance=jnp.sqrt,
        from_variances=lambda v: jnp.sqrt((v / shape_of(v.shape[-1], v.dtype)[None, :] ** 2).mean(-1)),
        n_parameters=lambda k, d: k,
    )


USERS = _two_widths()
ALL = [*(FAMILIES[n] for n in NAMES), USERS]


@pytest.fixture(params=[costly(n) for n in NAMES])
def name(request):
    return request.param


@pytest.fixture(
    params=[pytest.param(f, marks=() if f.name in CORE or f is USERS else pytest.mark.slow) for f in ALL],
    ids=lambda f: f.name,
)
def family(request):
    return request.param


def _update(family):
    """Compiled: outside of `jit` every operation of an iteration would be compiled by itself."""
    return jax.jit(family.update)


def _scale(family, dtype, n_components=3, n_features=4, seed=0):
    """A scale of the family, and its dense covariances in float64."""
    return _cached_scale(family, np.dtype(dtype), n_components, n_features, seed)


@functools.cache
def _cached_scale(family, dtype, n_components, n_features, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n_components, n_features, n_features)) + 2 * np.eye(n_features)
    cov = np.einsum("kde,kfe->kdf", root, root)
    scale = family.from_covariance(jnp.asarray(given(family, cov), dtype))
    return scale, np.asarray(family.to_covariance(scale, (n_components, n_features)), np.float64)


# Their M-step is an iteration, warm-started from the current parameters.
ITERATE = {"VEI", "VEE", "EVE", "VVE", "VEV"}


def _tolerance(dtype, factor=100):
    return factor * float(np.finfo(dtype).eps)


def test_whitening_gives_the_mahalanobis_distance(family, dtype):
    scale, cov = _scale(family, dtype)
    r = np.random.default_rng(1).normal(size=(3, 4, 20))
    y = family.whitener(scale)(jnp.asarray(r, dtype))
    expected = np.einsum("kdb,kde,keb->kb", r, np.linalg.inv(cov), r)
    np.testing.assert_allclose(np.square(y).sum(1), expected, rtol=_tolerance(dtype))


def test_colouring_undoes_whitening(family, dtype):
    scale, _ = _scale(family, dtype)
    r = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 20)), dtype)
    back = family.colour(scale, family.whitener(scale)(r))
    np.testing.assert_allclose(back, r, atol=_tolerance(dtype))


def test_log_det_and_diagonals(family, dtype):
    scale, cov = _scale(family, dtype)
    tolerance = _tolerance(dtype)
    np.testing.assert_allclose(family.log_det(scale, (3, 4)), np.linalg.slogdet(cov)[1], rtol=tolerance)
    np.testing.assert_allclose(family.diagonal(scale, (3, 4)), np.einsum("kdd->kd", cov), rtol=tolerance)
    inverse = np.einsum("kdd->kd", np.linalg.inv(cov))
    np.testing.assert_allclose(family.inverse_diagonal(scale, (3, 4)), inverse, rtol=tolerance)


def test_from_variances_is_the_nearest_diagonal(family, dtype):
    variances = jnp.asarray(np.array([[1.0, 4.0, 9.0, 16.0]]).repeat(3, 0), dtype)
    cov = np.asarray(family.to_covariance(family.from_variances(variances), (3, 4)))
    np.testing.assert_allclose(np.trace(cov, axis1=1, axis2=2), 30, rtol=_tolerance(dtype))
    np.testing.assert_allclose(cov * (1 - np.eye(4, dtype=dtype)), 0, atol=1e-6)


@pytest.mark.parametrize("n_features", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_update_maximises_the_expected_log_likelihood(family, n_features, double):
    """Against a numerical check: no small change within the structure does better."""
    rng = np.random.default_rng(2)
    scale, _ = _scale(family, double, n_features=n_features)
    y = jnp.asarray(rng.normal(size=(3, n_features, 50)) * 1.5 + 0.3)
    resp = jnp.asarray(rng.dirichlet(np.ones(3), size=50).T)
    weight, mean = resp.sum(1), jnp.einsum("kdb,kb->kd", y, resp) / resp.sum(1)[:, None]
    shape = (3, n_features)
    new, change = _update(family)(
        scale, weight, mean, family.second_moment(scale, y, resp), jnp.zeros(n_features)
    )
    residuals = family.colour(scale, y - mean[:, :, None])
    first = new
    if family.name in ITERATE:
        # They go on from where they stand; the last one's change is too small to check.
        for _ in range(12):
            y = family.whitener(new)(residuals)
            second = family.second_moment(new, y, resp)
            new, _ = _update(family)(new, weight, jnp.zeros_like(mean), second, jnp.zeros(n_features))

    def expected(s):
        distance = jnp.square(family.whitener(s)(residuals)).sum(1)
        return -0.5 * (resp * (distance + family.log_det(s, shape)[:, None])).sum()

    if family.to_unconstrained is None:
        slope = jax.grad(expected)(new)
    else:
        slope = jax.grad(lambda f: expected(family.from_unconstrained(f, shape)))(
            family.to_unconstrained(new)
        )
    size = float(expected(new))
    assert max(float(jnp.abs(g).max(initial=0)) for g in jax.tree.leaves(slope)) < 1e-10 * abs(size)
    assert size + 1e-12 * abs(size) >= float(expected(first)) >= float(expected(scale))
    whitened = family.whitener(scale)(
        family.whitener(scale)(
            family.to_covariance(first, shape) - family.to_covariance(scale, shape)
        ).swapaxes(1, 2)
    )
    np.testing.assert_allclose(change, jnp.square(whitened).sum((1, 2)), rtol=1e-9)


def test_a_ridge_is_scatter_that_the_data_do_not_have(name, double):
    """What n_k samples of variance `ridge` about the mean would add to every component."""
    family = get_family(name)
    scale, _ = _scale(family, double)
    rng = np.random.default_rng(3)
    y, resp = jnp.asarray(rng.normal(size=(3, 4, 50))), jnp.asarray(rng.uniform(size=(3, 50)))
    weight, mean = resp.sum(1), jnp.einsum("kdb,kb->kd", y, resp) / resp.sum(1)[:, None]
    second = family.second_moment(scale, y, resp)
    ridge = jnp.array([0.1, 0.2, 0.3, 0.4])
    axes = jnp.broadcast_to(jnp.diag(jnp.sqrt(ridge))[None], (3, 4, 4))
    pseudo = family.second_moment(
        scale, family.whitener(scale)(axes), jnp.broadcast_to(weight[:, None], (3, 4))
    )
    both = jax.tree.map(jnp.add, second, pseudo)
    added, _ = _update(family)(scale, weight, mean, both, jnp.zeros(4))
    ridged, _ = _update(family)(scale, weight, mean, second, ridge)
    np.testing.assert_allclose(
        family.to_covariance(ridged, (3, 4)), family.to_covariance(added, (3, 4)), atol=1e-11
    )
    plain, _ = _update(family)(scale, weight, mean, second, jnp.zeros(4))
    # At the maximum tr Σ_k n_k S_k Σ_k⁻¹ is D Σ n_k, and so Σ n_k log |Σ_k| is what it leaves to minimise:
    # it grows with the scatter. A single component's variances need not, where something is shared.
    grown = family.log_det(ridged, (3, 4)) - family.log_det(plain, (3, 4))
    assert (weight * grown).sum() > 0.01 * weight.sum()


def test_a_component_without_weight_has_no_say_and_keeps_what_is_its_own(name, dtype):
    """The others move as they would without it, and its own arrays stay, for any moments that it has."""
    family = get_family(name)
    scale, cov = _scale(family, dtype)
    rows = takes_rows(family, scale, 3, 4)
    y = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4, 50)), dtype)
    resp = jnp.ones((3, 50), dtype).at[1].set(0)
    mean, ridge = jnp.zeros((3, 4), dtype), jnp.full(4, 0.5, dtype)
    new, change = _update(family)(scale, resp.sum(1), mean, family.second_moment(scale, y, resp), ridge)
    others = np.array([0, 2])

    def kept(s):
        leaves, tree = jax.tree.flatten(s)
        return jax.tree.unflatten(tree, [a[others] if r else a for a, r in zip(leaves, rows, strict=True)])

    alone, _ = _update(family)(
        kept(scale), resp.sum(1)[others], mean[others],
        family.second_moment(kept(scale), y[others], resp[others]), ridge,
    )  # fmt: skip
    np.testing.assert_allclose(
        family.to_covariance(new, (3, 4))[others],
        family.to_covariance(alone, (2, 4)),
        rtol=_tolerance(dtype),
        atol=_tolerance(dtype),
    )
    for before, after, own in zip(*map(jax.tree.leaves, (scale, new)), rows, strict=True):
        if own:
            np.testing.assert_allclose(after[1], before[1], rtol=_tolerance(dtype))
    if all(rows):
        assert change[1] == 0
        np.testing.assert_allclose(family.to_covariance(new, (3, 4))[1], cov[1], rtol=_tolerance(dtype))


def test_update_never_gives_nan_where_a_covariance_vanishes(name, dtype):
    family = get_family(name)
    scale, _ = _scale(family, dtype)
    mean = jnp.full((3, 4), 1e3, dtype)
    y = jnp.broadcast_to(mean[:, :, None], (3, 4, 7))
    resp = jnp.ones((3, 7), dtype)
    new, _ = _update(family)(
        scale, resp.sum(1), mean, family.second_moment(scale, y, resp), jnp.zeros(4, dtype)
    )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(new))
    assert (np.asarray(family.diagonal(new, (3, 4))) > 0).all()


def test_natural_coordinates_go_there_and_back(name, dtype):
    family = get_family(name)
    reference, _ = _scale(family, dtype, seed=1)
    scale, cov = _scale(family, dtype, seed=2)
    weights = jnp.asarray([0.2, 0.3, 0.5], dtype)
    shift = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4)), dtype)
    natural = family.to_natural(reference, weights, scale, shift)
    back, moved = family.from_natural(reference, weights, natural)
    np.testing.assert_allclose(
        family.to_covariance(back, (3, 4)), cov, rtol=_tolerance(dtype, 1e4), atol=1e-4
    )
    np.testing.assert_allclose(moved, shift, rtol=_tolerance(dtype, 1e4), atol=1e-4)


def test_natural_coordinates_have_fisher_length(name, double):
    family = get_family(name)
    reference, cov = _scale(family, double, seed=1)
    weights = jnp.asarray([0.2, 0.3, 0.5])
    zero = jnp.zeros((3, 4))
    base = family.to_natural(reference, weights, reference, zero)
    # Σ⁻¹ → 1.001 Σ⁻¹ everywhere: the whitened change of the covariance has length² D·0.001² to first order.
    # By an M-step, which keeps the order and the signs of axes as the steps of a fit do.
    y = jnp.broadcast_to(jnp.sqrt(4 / 1.001) * jnp.eye(4)[None], (3, 4, 4))
    second = family.second_moment(reference, y, jnp.full((3, 4), 0.25))
    smaller, _ = _update(family)(reference, jnp.ones(3), zero, second, jnp.zeros(4))
    np.testing.assert_allclose(family.to_covariance(smaller, (3, 4)), cov / 1.001, rtol=1e-6, atol=1e-9)
    moved = family.to_natural(reference, weights, smaller, zero)
    length = sum(
        float(jnp.square(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, (moved, base)), strict=True)
    )
    # Exact where the coordinates are linear in the precision; to first order where they are logarithms.
    np.testing.assert_allclose(length, 0.5 * 4 * 0.001**2, rtol=2e-3)


def test_natural_coordinates_outside_the_domain_give_nan(name, dtype):
    family = get_family(name)
    reference, _ = _scale(family, dtype)
    weights, zero = jnp.full(3, 1 / 3, dtype), jnp.zeros((3, 4), dtype)
    natural = family.to_natural(reference, weights, reference, zero)
    if "precision" not in natural:  # coordinates that cannot be left
        far = jax.tree.map(lambda a: a - 30, natural)
        scale, _ = family.from_natural(reference, weights, far)
        assert not any(np.isnan(a).any() for a in jax.tree.leaves(scale))
        return
    scale, _ = family.from_natural(reference, weights, {**natural, "precision": -natural["precision"]})
    assert any(np.isnan(a).any() for a in jax.tree.leaves(scale))


def test_unconstrained_coordinates_are_minimal_and_go_there_and_back(name, dtype):
    family = get_family(name)
    scale, cov = _scale(family, dtype)
    free = family.to_unconstrained(scale)
    assert sum(a.size for a in jax.tree.leaves(free)) == family.n_parameters(3, 4)
    back = family.from_unconstrained(free, (3, 4))
    np.testing.assert_allclose(family.to_covariance(back, (3, 4)), cov, rtol=_tolerance(dtype), atol=1e-5)
    # Any real numbers give a valid scale, and another one.
    moved = family.from_unconstrained(jax.tree.map(lambda a: a + 0.3, free), (3, 4))
    other = np.asarray(family.to_covariance(moved, (3, 4)), np.float64)
    assert (np.linalg.eigvalsh(other) > 0).all()
    assert not np.allclose(other, cov)


def test_unconstrained_coordinates_are_identified(name, double):
    """The Jacobian of the covariances has full rank: standard errors exist."""
    family = get_family(name)
    scale, _ = _scale(family, double)
    free, unravel = jax.flatten_util.ravel_pytree(family.to_unconstrained(scale))
    jacobian = jax.jacobian(
        lambda v: family.to_covariance(family.from_unconstrained(unravel(v), (3, 4)), (3, 4)).reshape(-1)
    )(free)
    assert np.linalg.matrix_rank(np.asarray(jacobian)) == free.size


def test_a_family_written_by_a_user_fits_every_way(dtype):
    X, labels = overlapping(n_features=3)
    resp = soft_labels(labels, 3, dtype)
    start = jaxgmm.m_step(resp, X.astype(dtype), covariance_type=USERS)
    result = jaxgmm.check(jaxgmm.fit(start, X.astype(dtype)))
    history = np.asarray(result.history)
    history = history[np.isfinite(history)]
    assert (np.diff(history) > -2e-6).all()
    again, _ = jaxgmm.em_step(result.params, X.astype(dtype))
    np.testing.assert_allclose(again.means, result.params.means, atol=1e-3)
    cov = np.asarray(result.params.covariances)
    np.testing.assert_allclose(cov[:, 1, 1] / cov[:, 0, 0], 4, rtol=1e-4)
    many = jaxgmm.fit_restarts(jax.random.key(0), X.astype(dtype), 2, covariance_type=USERS, n_init=2)
    assert many.log_likelihood.shape == (2,)
    assert jaxgmm.n_parameters(result.params) == 2 + 9 + 3


def test_get_family_takes_names_and_records():
    assert get_family("diag") is FAMILIES["diag"]
    for alias, name in {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical"}.items():
        assert get_family(alias) is FAMILIES[name]
    assert get_family("E") is FAMILIES["EII"]
    assert get_family("V") is FAMILIES["spherical"]
    with pytest.raises(ValueError, match="did you mean 'VVE'"):
        get_family("VVEE")
    assert get_family(USERS) is USERS
    with pytest.raises(ValueError, match="did you mean 'diag'"):
        get_family("diagg")
    with pytest.raises(TypeError, match="covariance_type"):
        get_family(3)


def test_equal_records_are_equal_and_hash_alike():
    assert FAMILIES["full"] == FAMILIES["full"]._replace()
    assert hash(FAMILIES["full"]) == hash(FAMILIES["full"]._replace())
    assert repr(FAMILIES["full"]) == "Family('full')"


@pytest.mark.parametrize("structure", [costly(n, quick=("full", "EEV")) for n in NAMES])
def test_a_fit_gives_lapack_few_matrices_at_once(structure):
    """Or two devices that share a machine's threads can wait for each other without end."""
    n, d, k = 200, 40, 20
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    start = start_from(x, np.arange(n) % k, structure, np.float32, reg_covar=0.1)

    def lane(x):
        return jaxgmm.fit(start, x, max_iter=3)

    several = jnp.broadcast_to(x, (3, n, d))
    calls = [*lapack_calls(jax.make_jaxpr(lane)(x)), *lapack_calls(jax.make_jaxpr(jax.vmap(lane))(several))]
    assert calls or structure in ("diag", "spherical", "EEI", "EII", "EVI", "VEI")
    assert all(call.is_undivided for call in calls), calls


FIELDS = {
    "update": lambda scale, weight, mean, second, ridge: (scale[:1], weight),
    "whitener": lambda scale: lambda residuals: residuals[0],
    "colour": lambda scale, y: y[..., :1],
    "log_det": lambda scale, shape: scale,
    "diagonal": lambda scale, shape: scale[0],
    "inverse_diagonal": lambda scale, shape: scale.sum(),
    "to_covariance": lambda scale, shape: scale,
    "rescale": lambda scale, unit: unit,
    "from_covariance": lambda covariance: covariance[:, :1],
    "to_natural": lambda reference, weights, scale, shift: shift[0].sum(0)[0, 0],
    "from_natural": lambda reference, weights, natural: (reference, weights),
    "to_unconstrained": lambda scale: scale[:, :1],
    "from_unconstrained": lambda free, shape: jnp.zeros(shape, jnp.float16),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_that_does_not_keep_its_promise_is_refused_by_the_field(field):
    broken = FAMILIES["diag"]._replace(name="mine", **{field: FIELDS[field]})
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    for call in (
        lambda: jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=broken),
        lambda: jaxgmm.fit_restarts(jax.random.key(0), x, 3, covariance_type=broken),
        lambda: jaxgmm.fit_best(jax.random.key(0), x, 3, covariance_type=broken),
    ):
        with pytest.raises(TypeError, match=f"'mine': {field}"):
            call()


@pytest.mark.parametrize("structure", [*NAMES, "factor(1)", "full-equal", "diag-ratio(9)"])
def test_the_packages_own_records_keep_theirs(structure):
    family = get_family(structure)
    assert is_from_package(family)
    assert not is_from_package(family._replace(log_det=lambda scale, shape: scale))
    for k, d in ((1, 2), (4, 3)):
        check_record(family, k, d)
        with x64(True):
            check_record(family, k, d, jnp.float64)


def test_a_record_that_knows_only_float32_is_refused_where_float64_is_asked_for():
    def from_variances(variances):
        return jnp.sqrt(variances).astype(jnp.float32)

    mine = FAMILIES["diag"]._replace(name="mine", from_variances=from_variances)
    x = np.random.default_rng(0).normal(size=(20, 2))
    with x64(False):
        jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=mine)
    with x64(True), pytest.raises(TypeError, match="'mine': from_variances must give float64"):
        jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=mine)
