"""Every covariance structure, and one written here by a user, through the same checks."""

import functools
import types

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import STRUCTURES as RECORDS
from jaxgmm.components import Covariance, get_covariance
from jaxgmm.components.covariance.base import check_record, is_from_package
from tests.conftest import case, given, soft_labels, takes_rows, x64
from tests.problems import LABELS, STRUCTURES, X
from tests.quick import quick_jit


def _two_widths() -> Covariance:
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

    return Covariance(
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
K, D, N = 3, 4, 50
# Their M-step is an iteration, warm-started from the current parameters.
ITERATE = {"VEI", "VEE", "EVE", "VVE", "VEV"}


def each(*families):
    return pytest.mark.parametrize("family", families, ids=lambda f: f.name)


FACTORS = get_covariance("factor(1)")
NAMED = tuple(map(get_covariance, STRUCTURES))
every_natural = each(*NAMED, FACTORS)
every_family_and_factors = each(*NAMED, USERS, FACTORS)


def units(family, n_features):
    """Powers of two for the features, the same where the structure wants that."""
    return 2.0 ** (np.arange(n_features) if family.by_feature else np.ones(n_features))


@functools.cache
def _everything(family):
    """All that the record computes, as one program: that compiles faster than its parts."""

    def function(
        scale, trial, residuals, resp, counted, ridge, weights, shift, change, variances, free_change
    ):
        shape = residuals.shape[:2]
        y = family.whitener(scale)(residuals)
        own = resp * counted[None, :]
        weight = own.sum(1)
        share = own / jnp.where(weight > 0, weight, 1)[:, None]
        mean = jnp.einsum("kdb,kb->kd", y, share)
        new, length = family.update(scale, weight, mean, family.moments(scale, y, resp), ridge)
        centred = residuals - jnp.einsum("kdb,kb->kd", residuals, share)[:, :, None]

        def expected(s):
            distance = jnp.square(family.whitener(s)(centred)).sum(1)
            return -0.5 * (own * (distance + family.log_det(s, shape)[:, None])).sum()

        out = {
            "y": y,
            "back": family.colour(scale, y),
            "log_det": family.log_det(scale, shape),
            "diagonal": family.diagonal(scale, shape),
            "inverse_diagonal": family.inverse_diagonal(scale, shape),
            "covariance": family.to_covariance(scale, shape),
            "new": new,
            "length": length,
            "new_covariance": family.to_covariance(new, shape),
            "centred": centred,
            "from_variances": family.to_covariance(family.from_variances(variances), shape),
        }
        if family.rescale is not None:
            out["rescaled"] = family.to_covariance(family.rescale(scale, units(family, shape[1])), shape)
        if family.to_unconstrained is None:
            out["value"], out["slope"] = jax.value_and_grad(expected)(trial)
        else:
            free, unravel = jax.flatten_util.ravel_pytree(family.to_unconstrained(trial))

            def covariance(v):
                return family.to_covariance(family.from_unconstrained(unravel(v), shape), shape)

            def of_free(v):
                return expected(family.from_unconstrained(unravel(v), shape))

            out["free"], out["of_free"] = free, covariance(free + free_change)
            out["value"], out["slope"] = jax.value_and_grad(of_free)(free)
        if family.to_natural is not None:
            natural = family.to_natural(scale, weights, trial, shift)
            outside = jax.tree.map(lambda a: a - 100 * change, natural)
            if "precision" in natural:
                outside = {**natural, "precision": natural["precision"] * (1 - 10 * change)}
            there, moved = family.from_natural(scale, weights, outside)
            out["natural"], out["there"], out["moved"] = natural, there, moved
            out["there_covariance"] = family.to_covariance(there, shape)
        return out

    return quick_jit(function)


@functools.cache
def _from_covariance(family):
    return quick_jit(family.from_covariance)


@functools.cache
def _scale(family, n_features=D, seed=0):
    """A scale of the family."""
    root = np.random.default_rng(seed).normal(size=(K, n_features, n_features)) + 2 * np.eye(n_features)
    scale = _from_covariance(family)(given(family, np.einsum("kde,kfe->kdf", root, root)))
    return jax.tree.map(np.asarray, scale)


def everything(family, scale, n_features=D, **changes):
    """The record's numbers at a scale, from 50 random residuals and four that count in `resp` alone."""
    rng = np.random.default_rng(2)
    arguments = {
        "trial": scale,
        "residuals": np.concatenate(
            [1.5 * rng.normal(size=(K, n_features, N)) + 0.3, np.zeros((K, n_features, 4))], 2
        ),
        "resp": np.pad(rng.dirichlet(np.ones(K), size=N).T, ((0, 0), (0, 4))),
        "counted": np.repeat([1.0, 0.0], [N, 4]),
        "ridge": np.zeros(n_features),
        "weights": np.array([0.2, 0.3, 0.5]),
        "shift": np.random.default_rng(3).normal(size=(K, n_features)),
        "change": 0.0,
        "variances": np.array([[1.0, 4.0, 9.0, 16.0]])[:, :n_features].repeat(K, 0),
        "free_change": np.zeros(family.n_parameters(K, n_features)),
    } | changes
    found = jax.tree.map(np.asarray, _everything(family)(scale, **arguments))
    return types.SimpleNamespace(inputs=arguments, **found)


@every_family_and_factors
def test_whitening_and_the_rest_are_those_of_the_dense_covariances(family, double):
    found = everything(family, _scale(family))
    inverse, r = np.linalg.inv(found.covariance), found.inputs["residuals"]
    np.testing.assert_allclose(found.back, r, atol=1e-13)
    distance = np.einsum("kdb,kde,keb->kb", r, inverse, r)
    np.testing.assert_allclose(np.square(found.y).sum(1), distance, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.log_det, np.linalg.slogdet(found.covariance)[1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.diagonal, np.einsum("kdd->kd", found.covariance), rtol=1e-13)
    np.testing.assert_allclose(found.inverse_diagonal, np.einsum("kdd->kd", inverse), rtol=1e-12)
    if family is not USERS:
        unit = units(family, D)
        np.testing.assert_allclose(found.rescaled, found.covariance * np.outer(unit, unit), rtol=1e-13)
    # From variances come the nearest diagonal covariances.
    np.testing.assert_allclose(np.trace(found.from_variances, axis1=1, axis2=2), 30, rtol=1e-12)
    if family is not FACTORS:  # whose loadings need something to grow from
        np.testing.assert_allclose(np.asarray(found.from_variances) * (1 - np.eye(D)), 0, atol=1e-12)
    # Covariances that the structure can have are kept.
    if (
        family is not USERS and family.name != "factor(1)"
    ):  # which approaches it geometrically: see test_factor
        again = _from_covariance(family)(given(family, np.asarray(found.covariance)))
        np.testing.assert_allclose(
            everything(family, again).covariance, found.covariance, rtol=1e-9, atol=1e-9
        )


def check_maximum(family, n_features):
    scale = _scale(family, n_features=n_features)
    step = first = everything(family, scale, n_features=n_features)
    # Those that iterate go on from where they stand: 12 steps later the change is too small to check.
    for _ in range(12 * (family.name in ITERATE)):
        step = everything(family, step.new, n_features=n_features, residuals=first.centred)
    there = everything(family, scale, n_features=n_features, trial=step.new)
    size = float(there.value)
    assert max(float(np.abs(g).max(initial=0)) for g in jax.tree.leaves(there.slope)) < 1e-10 * abs(size)
    after_one = everything(family, scale, n_features=n_features, trial=first.new)
    assert size + 1e-12 * abs(size) >= float(after_one.value) >= float(first.value)
    whitened = np.linalg.solve(first.covariance, first.new_covariance - first.covariance)
    np.testing.assert_allclose(first.length, np.einsum("kde,ked->k", whitened, whitened), rtol=1e-9)


def test_an_update_maximises_the_expected_log_likelihood(double):
    """The gradient vanishes in the structure's own coordinates; the change is measured in Fisher length."""
    for family in (*NAMED, USERS):
        with case(family.name):
            check_maximum(family, D)


@pytest.mark.parametrize("name", ["VEI", "VVE", "EEV"])
def test_an_update_maximises_it_for_a_single_feature_too(name, double):
    check_maximum(get_covariance(name), 1)


def test_a_ridge_is_scatter_that_the_data_do_not_have(double):
    """What n_k samples of variance `ridge` about the mean would add to every component."""
    for family in NAMED:
        with case(family.name):
            scale, ridge = _scale(family), np.array([0.1, 0.2, 0.3, 0.4])
            plain = everything(family, scale)
            ridged = everything(family, scale, ridge=ridge)
            residuals, resp = (np.array(plain.inputs[name]) for name in ("residuals", "resp"))
            weight = resp.sum(1)
            residuals[:, :, N:], resp[:, N:] = np.diag(np.sqrt(ridge)), weight[:, None]
            added = everything(family, scale, residuals=residuals, resp=resp)
            np.testing.assert_allclose(ridged.new_covariance, added.new_covariance, atol=1e-11)
            # At the maximum tr Σ_k n_k S_k Σ_k⁻¹ is D Σ n_k, and so Σ n_k log |Σ_k| is what it leaves to
            # minimise: it grows with the scatter. A single component's variances need not, where something
            # is shared.
            after, before = (np.linalg.slogdet(found.new_covariance)[1] for found in (ridged, plain))
            assert weight @ (after - before) > 0.01 * weight.sum()


def test_a_component_without_weight_has_no_say_and_keeps_what_is_its_own(double):
    """The others move as if it were one half of a component that is there twice; its own arrays stay."""
    for family in (*NAMED, USERS, FACTORS):
        with case(family.name):
            scale = _scale(family)
            rows = takes_rows(family, scale, K, D)
            own = np.array(everything(family, scale).inputs["resp"])
            own[1], residuals = 0, np.array(everything(family, scale).inputs["residuals"])
            ridge = np.full(D, 0.5)
            off = everything(family, scale, resp=own, ridge=ridge)
            leaves, tree = jax.tree.flatten(scale)
            first = np.array([0, 0, 2])
            twin = jax.tree.unflatten(tree, [a[first] if r else a for a, r in zip(leaves, rows, strict=True)])
            halves, both = own * np.array([0.5, 0, 1])[:, None], residuals.copy()
            halves[1], both[1] = halves[0], both[0]
            expected = everything(family, twin, resp=halves, residuals=both, ridge=ridge)
            others = np.array([0, 2])
            np.testing.assert_allclose(
                off.new_covariance[others], expected.new_covariance[others], rtol=1e-9, atol=1e-9
            )
            for before, after, of_each in zip(*map(jax.tree.leaves, (scale, off.new)), rows, strict=True):
                if of_each:
                    np.testing.assert_allclose(after[1], before[1], rtol=1e-13)
            if all(rows):
                assert off.length[1] == 0
                np.testing.assert_allclose(off.new_covariance[1], off.covariance[1], rtol=1e-12)


def test_an_update_never_gives_nan_where_a_covariance_is_exactly_zero(double):
    unit = np.broadcast_to(np.eye(D), (K, D, D))
    residuals, resp = np.full((K, D, N + 4), 1e3), np.repeat([[1.0, 0.0]], [2, N + 2], axis=1).repeat(K, 0)
    for family in (*map(get_covariance, STRUCTURES), FACTORS):
        scale = _from_covariance(family)(given(family, unit))
        found = everything(family, scale, residuals=residuals, resp=resp)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(found.new)), family.name
        assert (np.einsum("kdd->kd", found.new_covariance) > 0).all(), family.name


@every_natural
def test_natural_coordinates_go_there_and_back_and_have_fisher_length(family, double):
    """Σ⁻¹ → 1.001 Σ⁻¹ everywhere is a whitened change of length² D · 0.001², to first order."""
    reference, trial = _scale(family, seed=1), _scale(family, seed=2)
    found = everything(family, reference, trial=trial)
    cov = everything(family, trial).covariance
    np.testing.assert_allclose(found.there_covariance, cov, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.moved, found.inputs["shift"], rtol=1e-9, atol=1e-9)
    far = everything(family, reference, change=0.3)
    # Outside the domain the way back gives NaN; coordinates without a precision cannot leave it.
    left = any(np.isnan(a).any() for a in jax.tree.leaves(far.there))
    assert left == ("precision" in far.natural)
    if family is FACTORS:
        return  # its coordinates are not linear in the precision, and one M-step is not the maximum
    here = everything(family, reference, shift=np.zeros((K, D)))
    # By an M-step, which keeps the order and the signs of axes as the steps of a fit do.
    residuals, resp = np.zeros((K, D, N + 4)), np.zeros((K, N + 4))
    root = np.linalg.cholesky(here.covariance)
    residuals[:, :, :D], residuals[:, :, D : 2 * D] = np.sqrt(D / 1.001) * root, -np.sqrt(D / 1.001) * root
    resp[:, : 2 * D] = 0.5 / D
    smaller = everything(family, reference, residuals=residuals, resp=resp)
    np.testing.assert_allclose(smaller.new_covariance, here.covariance / 1.001, rtol=1e-6, atol=1e-9)
    moved = everything(family, reference, trial=smaller.new, shift=np.zeros((K, D)))
    leaves = zip(*map(jax.tree.leaves, (moved.natural, here.natural)), strict=True)
    length = sum(float(np.square(a - b).sum()) for a, b in leaves)
    # Exact where the coordinates are linear in the precision; to first order where they are logarithms.
    np.testing.assert_allclose(length, 0.5 * D * 0.001**2, rtol=2e-3)


@every_natural
def test_unconstrained_coordinates_are_minimal_identified_and_go_there_and_back(family, double):
    found = everything(family, _scale(family))
    assert found.free.size == family.n_parameters(K, D)
    np.testing.assert_allclose(found.of_free, found.covariance, rtol=1e-10, atol=1e-10)
    # The Jacobian of the covariances, by differences, has full rank: standard errors exist.
    h = 1e-5

    def moved(by):
        return everything(family, _scale(family), free_change=by).of_free

    jacobian = [np.ravel(moved(h * e) - moved(-h * e)) / (2 * h) for e in np.eye(found.free.size)]
    assert np.linalg.matrix_rank(jacobian, tol=1e-6) == found.free.size
    # Any real numbers give a valid scale, and another one.
    other = moved(np.full(found.free.size, 0.3))
    assert (np.linalg.eigvalsh(other) > 0).all()
    assert not np.allclose(other, found.covariance)


def test_a_fit_of_a_structure_written_by_a_user_climbs_and_keeps_its_shape():
    x = X.astype(np.float32)

    @quick_jit
    def run(resp):
        result = jaxgmm.fit(jaxgmm.m_step(resp, x, covariance_type=USERS), x)
        return result, result.params.covariances

    result, cov = jax.tree.map(np.asarray, run(soft_labels(LABELS, 3, np.float32)))
    jaxgmm.check(result)
    history = np.asarray(result.history)
    assert (np.diff(history[np.isfinite(history)]) > -2e-6).all()
    np.testing.assert_allclose(cov[:, 1, 1] / cov[:, 0, 0], 4, rtol=1e-4)
    np.testing.assert_allclose(cov[:, 0, 1], 0)
    assert jaxgmm.n_parameters(result.params) == 2 + 9 + 3


def test_structures_go_by_name_alias_and_record():
    assert get_covariance("diag") is RECORDS["diag"]
    aliases = {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical", "E": "EII", "V": "spherical"}
    for alias, name in aliases.items():
        assert get_covariance(alias) is RECORDS[name]
    assert get_covariance(USERS) is USERS
    for wrong, right in (("VVEE", "VVE"), ("diagg", "diag")):
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            get_covariance(wrong)
    with pytest.raises(TypeError, match="covariance_type"):
        get_covariance(3)
    assert RECORDS["full"] == RECORDS["full"]._replace()
    assert hash(RECORDS["full"]) == hash(RECORDS["full"]._replace())


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


def test_a_record_that_does_not_keep_its_promise_is_refused_by_the_field():
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    for field, function in FIELDS.items():
        broken = RECORDS["diag"]._replace(name="mine", **{field: function})
        for call in (
            lambda broken=broken: jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=broken),
            lambda broken=broken: jaxgmm.fit_restarts(jax.random.key(0), x, 3, covariance_type=broken),
            lambda broken=broken: jaxgmm.fit_best(jax.random.key(0), x, 3, covariance_type=broken),
        ):
            with pytest.raises(TypeError, match=f"'mine': {field}"):
                call()


def test_the_packages_own_records_keep_theirs():
    for structure in (*STRUCTURES, "factor(1)", "diag-ratio(9)"):
        family = get_covariance(structure)
        assert is_from_package(family)
        assert not is_from_package(family._replace(log_det=lambda scale, shape: scale))
    for structure in ("full", "EVE", "VEV", "factor(1)", "diag-ratio(9)"):
        with x64(True):  # where a constant without a dtype would make something of it float64
            check_record(get_covariance(structure), 1, 2, jnp.float32)


def test_a_record_that_knows_only_float32_is_refused_where_float64_is_asked_for():
    def from_variances(variances):
        return jnp.sqrt(variances).astype(jnp.float32)

    mine = RECORDS["diag"]._replace(name="mine", from_variances=from_variances)
    x = np.random.default_rng(0).normal(size=(20, 2))
    with x64(False):
        jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=mine)
    with x64(True), pytest.raises(TypeError, match="'mine': from_variances must give float64"):
        jaxgmm.m_step(np.full((20, 2), 0.5), x, covariance_type=mine)
