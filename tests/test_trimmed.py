"""Trimmed fits: which rows are left out, against sorting; and what they reduce to without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import jaxgmm
from jaxgmm import Status, observe
from jaxgmm.components import get_model
from jaxgmm.init._clusters import plusplus
from jaxgmm.kernels.blocked_sum import rows_over
from jaxgmm.kernels.kept_share import kept_shares
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.kernels.trimmed import log_densities
from jaxgmm.mixture import translate
from jaxgmm.outofcore._streaming_statistics import Passes
from tests.conftest import DATA, case, start_from, times_used, x64
from tests.outofcore.streams import CHUNK, gap, parts, start, weighted_parts
from tests.problems import LABELS, WEIGHT, D, K, N, X
from tests.quick import quick_jit

TRIM = 0.085  # of 200 rows 17
KEY = jax.random.key(0)
COUNTS = np.random.default_rng(2).integers(0, 3, N)
COUNTS[np.flatnonzero(COUNTS)[: COUNTS.sum() % 10]] -= 1  # a tenth of them is a whole number
GAPS = np.where(np.random.default_rng(3).random((N, D)) < 0.2, np.nan, X)

shares = quick_jit(kept_shares)


def kept_by_sorting(values, weight, amount):
    """Kept shares by adding up the weights of the sorted rows, equal values together."""
    kept, left = np.ones(len(values)), amount
    for value in np.unique(values):
        among = values == value
        total = weight[among].sum()
        kept[among] -= np.clip(left / total if total > 0 else 1.0, 0, 1)
        left -= total
        if left <= 0:
            break
    return kept


def test_what_is_kept_is_what_sorting_keeps(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=100) * 10.0 ** rng.integers(-30, 30, 100), np.zeros(40)])
    values[:3], values[3:8] = -np.inf, np.inf
    values = rng.permutation(values).astype(dtype)
    weight = rng.integers(0, 4, 140) / 4
    for w in (np.ones(140), weight):
        for amount in (0.0, 2.0, 3.0, 31.5, 50.0, w.sum() - 6):
            found = np.asarray(shares(values, w.astype(dtype), np.asarray(amount, dtype)))
            assert_allclose(found, kept_by_sorting(values, w, amount), rtol=4 * np.finfo(dtype).eps)
            assert_allclose((1 - found) @ w, amount, rtol=1e-6)


def test_the_trimmed_number_is_exact_for_many_rows_and_over_parts_of_them():
    values = np.random.default_rng(0).normal(size=140_000).astype(np.float32)
    found = shares(values, None, np.float32(7001))
    assert set(np.unique(found)) == {0.0, 1.0}
    np.testing.assert_array_equal(np.flatnonzero(found == 0), np.sort(np.argsort(values)[:7001]))

    @quick_jit
    def parted(parts):
        with rows_over("rows"):
            return jax.vmap(lambda v: kept_shares(v, None, jnp.float32(7001)), axis_name="rows")(parts)

    np.testing.assert_array_equal(parted(values.reshape(4, -1)).ravel(), found)


def test_nothing_is_added_to_a_fit_without_trimming():
    begin = start()  # made and kept before anything is traced

    def uses(**options):
        program = jax.make_jaxpr(lambda x: jaxgmm.fit(begin, x, **options))(X.astype(np.float32))
        return times_used("bitcast_convert_type", program)

    assert uses() == 0
    assert uses(trim=0.1) > 0


@pytest.mark.parametrize("weight", [None, WEIGHT, COUNTS.astype(float)], ids=["rows", "weights", "counts"])
def test_a_step_is_that_of_the_rows_of_highest_density(weight, double):
    params = start("float64")
    joint = np.stack(
        [
            float(w) + multivariate_normal(m, np.diag(s**2)).logpdf(X)
            for w, m, s in zip(params.log_weights, params.means, params.scale, strict=True)
        ],
        axis=1,
    )
    log_prob = logsumexp(joint, axis=1)
    own = np.ones(N) if weight is None else weight
    amount = 17.0 if weight is None else TRIM * weight.sum()
    kept = kept_by_sorting(log_prob, own, amount)
    assert_allclose(
        jaxgmm.outliers(params, observe(X, sample_weight=weight), trim=TRIM), 1 - kept, atol=1e-12
    )
    found, statistics = jaxgmm.em_step(params, X, weight, trim=TRIM, reg_covar=0.0)
    assert_allclose(statistics.total_weight, own.sum() - amount, rtol=1e-13)
    assert_allclose(statistics.log_likelihood, (own * kept) @ log_prob, rtol=1e-12)
    resp = (own * kept)[:, None] * np.exp(joint - log_prob[:, None])
    means = resp.T @ X / resp.sum(0)[:, None]
    assert_allclose(found.means, means, rtol=1e-10)
    assert_allclose(found.weights, resp.sum(0) / resp.sum(), rtol=1e-12)
    variances = resp.T @ X**2 / resp.sum(0)[:, None] - means**2
    assert_allclose(np.asarray(found.scale) ** 2, variances, rtol=1e-9)


def test_the_trimmed_likelihood_never_falls(double):
    fitted = jaxgmm.fit(start("float64"), X, tol=0.0, max_iter=20, reg_covar=0.0, accelerate=False, trim=TRIM)
    history = np.asarray(fitted.history[:20])
    assert np.diff(history).min() > -1e-13
    assert np.diff(history).max() > 1e-4
    kept = 1 - np.asarray(jaxgmm.outliers(fitted.params, X, trim=TRIM))
    assert kept.sum() == N - 17
    assert_allclose(fitted.log_likelihood, jaxgmm.score(fitted.params, X, kept), rtol=1e-12)


def test_the_densities_of_rows_in_tiles_are_those_of_the_observed_entries(double):
    rows = in_tiles(observe(np.tile(GAPS, (3, 1)), missing="nan"), get_model("full").covariance)
    params, shift = start_from(X, LABELS, "full", "float64"), np.array([1.0, -2.0, 3.0])
    assert rows.tile

    @quick_jit
    def densities(params):
        return log_densities(translate(params, -shift), rows, jnp.asarray(shift), 128)

    found, seen = np.asarray(densities(params)), np.asarray(rows.weight) > 0
    expected = np.asarray(jaxgmm.log_prob(params, observe(GAPS, missing="nan")))
    assert seen.sum() == 3 * N
    assert_allclose(np.sort(found[seen]), np.sort(np.tile(expected, 3)), rtol=1e-10)


@pytest.fixture(scope="module")
def notes():
    """The Swiss bank notes, whether they are counterfeit, and fits with both numbers and both shares."""
    table = np.loadtxt(DATA / "swiss_bank_notes.csv", delimiter=",", skiprows=2)
    x, counterfeit = table[:, :6], table[:, 6].astype(int)
    with x64(True):
        curve = jaxgmm.selection.trim_curve(
            KEY, x, (1, 2), trims=(0.0, 0.1), covariance_type="full-ratio(50)", n_init=4, init="random_points"
        )
    return x, counterfeit, curve


def test_swiss_bank_notes_are_clustered_as_tclust_does(notes, double):
    """k = 2, α = 0.10, ratio 50: sizes 95 and 85, 20 trimmed."""
    x, counterfeit, curve = notes
    best = curve.result(2, 0.1)
    assert best.status == Status.CONVERGED
    kept = 1 - np.asarray(jaxgmm.outliers(best.params, x, trim=0.1))
    assert [(kept == s).sum() for s in (0, 1)] == [20, 180]
    labels = np.asarray(jaxgmm.predict(best.params, x))
    assert sorted(np.bincount(labels[kept > 0])) == [85, 95]
    # Each cluster is of one kind of notes.
    assert len(np.unique([labels[kept > 0], counterfeit[kept > 0]], axis=1).T) == 2
    variances = np.linalg.eigvalsh(np.asarray(best.params.covariances))
    assert variances.max() <= 50 * variances.min() * (1 + 1e-9)


def test_a_batch_of_fits_has_the_share_of_each(notes, double):
    x, _, curve = notes
    assert curve.kept.tolist() == [200, 180]
    for k, trim in np.ndindex(2, 2):
        params = curve.result(k + 1, curve.trims[trim]).params
        assert params.n_components == k + 1
        log_prob = np.sort(np.asarray(jaxgmm.log_prob(params, x)))
        assert_allclose(curve.total[k, trim], log_prob[20 * trim :].sum(), rtol=1e-10)
    assert_allclose(curve.result(1, 0.0).params.means[0], x.mean(0), rtol=1e-9)
    assert (curve.total[0] < curve.total[1]).all()
    assert "K = 2" in repr(curve)
    with pytest.raises(KeyError, match="no fit with n_components 3"):
        curve.result(3, 0.1)


def test_criteria_are_those_of_the_kept_rows():
    noise = np.concatenate([X, np.random.default_rng(0).uniform(-30, 30, (20, D))]).astype(np.float32)
    chosen = jaxgmm.select(
        KEY, noise, (2,), covariance_types=("spherical",), trim=20 / 220, budget=60, init="random_points"
    )
    found = np.asarray(jaxgmm.outliers(chosen.params, noise, trim=20 / 220))
    assert found.sum() == 20
    assert found[N:].sum() > 15
    log_prob = np.asarray(jaxgmm.log_prob(chosen.params, noise), float)[found == 0].sum()
    sure = np.log(np.asarray(jaxgmm.responsibilities(chosen.params, noise)).max(1))[found == 0].sum()
    bic = -2 * log_prob + 9 * np.log(200)
    assert_allclose([chosen.best_row[name] for name in ("bic", "icl")], [bic, bic - 2 * sure], rtol=1e-5)


def test_derivatives_are_those_of_the_kept_rows(double):
    rng = np.random.default_rng(0)
    along, weights, params = rng.normal(size=(N, D)), 0.1 * rng.normal(size=N), start("float64")

    def value(t):
        share = TRIM + 0.01 * t
        rows = X + t * along, WEIGHT + t * weights
        fitted = jaxgmm.fit(params, *rows, trim=share, tol=1e-11, max_iter=5000).params
        return (fitted.means**2).sum() + fitted.covariances.sum() + fitted.weights[0]

    both, step = quick_jit(lambda t: jax.jvp(value, (t,), (1.0,))), 1e-6
    difference = (float(both(step)[0]) - float(both(-step)[0])) / (2 * step)
    assert_allclose(both(0.0)[1], difference, rtol=1e-5)


def test_a_stream_keeps_the_rows_of_the_whole(double):
    options = {"tol": 0.0, "max_iter": 2, "accelerate": False, "trim": TRIM}
    for source, weight in ((parts, None), (weighted_parts, WEIGHT)):
        whole = jaxgmm.fit(start("float64"), X, weight, **options)
        streamed = jaxgmm.fit_stream(start("float64"), source("float64"), chunk_size=CHUNK, **options)
        assert gap(whole, streamed) < 1e-10


def test_passes_find_the_threshold_of_sorting(dtype):
    rng = np.random.default_rng(1)
    values = np.round(rng.normal(size=300) * 50, 0).astype(dtype)
    passes = object.__new__(Passes)
    passes.dtype, often = dtype, []
    for weight in (np.ones(300), rng.uniform(size=300)):

        def over(of, ahead=True, weight=weight):
            often.append(of)
            return iter([(values[:70], weight[:70]), (values[70:], weight[70:])])

        passes._over = over
        for amount in (0.0, 1.0, 20.5, 100.0):
            found = passes._threshold(None, None, amount)(values)
            assert_allclose(found, kept_by_sorting(values, weight, amount), atol=1e-12)
    assert len(often) == 8 * dtype.itemsize // 2  # 16 bits in each pass


def test_the_state_of_a_loop_of_ones_own_knows_what_is_trimmed(double):
    assert jaxgmm.em.init(start("float64"), X, trim=TRIM).context.trim == 17


def test_seeds_are_not_drawn_among_the_farthest_rows():
    far = np.concatenate([X, 1e3 * np.eye(3)]).astype(np.float32)
    draw = quick_jit(plusplus, static_argnames=("n_components",))
    for i in range(4):
        seeds = draw(jax.random.key(i), far, jnp.ones(N + 3), n_components=K, trim=jnp.float32(5))
        assert (np.abs(np.asarray(seeds)) < 100).all()


MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))


def test_what_cannot_be_trimmed_is_refused():
    for call, words in [
        (lambda p, x: jaxgmm.fit(p, x, trim=1.0), "from 0 to below 1"),
        (lambda p, x: jaxgmm.fit(p, x, trim=-0.1), "from 0 to below 1"),
        (lambda p, x: jaxgmm.fit(p, x, trim="0.1"), "must be a number"),
        (lambda p, x: jaxgmm.fit(p, x, trim=[0.1]), "must have shape"),
        (lambda p, x: jaxgmm.fit(p, x, trim=0.999), "at least one of 200 rows"),
        (
            lambda p, x: jaxgmm.fit(p, x, trim=0.1, options=jaxgmm.EMOptions(kernel="quadratic")),
            "no trim; use kernel='auto'",
        ),
        (
            lambda p, x: jaxgmm.fit(p, observe(x, groups=np.arange(N) // 2), trim=0.1),
            "groups are not for trim",
        ),
        (lambda p, x: jaxgmm.fit_sharded(p, x, mesh=MESH, trim=2.0), "from 0 to below 1"),
        (lambda p, x: jaxgmm.em_step(p, x, trim=0.1, axis_name="rows"), "use fit_sharded"),
        (lambda p, x: jaxgmm.fit_stream(p, x, trim=0.1, incremental=True), "incremental=True"),
        (lambda p, x: jaxgmm.select(KEY, x, (2,), trim=0.1, criterion="cv"), "not for criterion='cv'"),
        (lambda p, x: jaxgmm.outliers(p, x, trim=1.5), "from 0 to below 1"),
        (lambda p, x: jaxgmm.selection.trim_curve(KEY, x, trims=0.1), "a sequence of shares"),
        (lambda p, x: jaxgmm.selection.trim_curve(KEY, x, trims=(0.1, 1.0)), "from 0 to below 1"),
        (lambda p, x: jax.jit(lambda x: jaxgmm.selection.trim_curve(KEY, x))(x), "needs concrete data"),
    ]:
        with case(words), pytest.raises((ValueError, TypeError), match=words):
            call(start(), X.astype(np.float32))
