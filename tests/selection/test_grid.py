"""Choosing a structure and a number of components: the grid, its criteria, and what does not win."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import get_family
from jaxgmm.selection._cross_validation import assign
from jaxgmm.selection._programs import settings_of
from jaxgmm.selection._spurious import MAX_RATIO, limits, spurious, total_for
from jaxgmm.selection._threads import side_by_side
from tests.conftest import overlapping

N = 200
SIZES = (1, 2, 3, 4)
# Two spherical clusters of different widths, and a third between them.
_LABELS = np.random.default_rng(0).integers(3, size=N)
X = np.array([[-6.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[_LABELS]
X = X + np.random.default_rng(1).normal(size=(N, 2)) * np.array([0.7, 1.0, 1.5])[_LABELS][:, None]
X = X.astype(np.float32)


@functools.cache
def chosen(criterion="bic"):
    names = ("spherical", "diag") if criterion == "bic" else ("spherical",)
    return jaxgmm.select(
        jax.random.key(0), X, SIZES, covariance_types=names, criterion=criterion, budget=150, n_folds=4
    )


def test_it_finds_the_structure_and_the_number():
    choice = chosen()
    assert (choice.best_row["covariance_type"], choice.best_row["n_components"]) == ("spherical", 3)
    assert choice.params.family.name == "spherical"
    assert choice.params.n_components == 3
    assert choice.best.status == Status.CONVERGED
    assert [(r["covariance_type"], r["n_components"]) for r in choice.table] == [
        (name, k) for name in ("spherical", "diag") for k in SIZES
    ]


def test_the_criteria_are_those_of_the_fitted_mixtures():
    choice = chosen()
    for row in choice.table:
        cell = choice.result(row["covariance_type"], row["n_components"])
        assert cell.params.n_components == row["n_components"]
        assert row["n_parameters"] == jaxgmm.n_parameters(cell.params)
        for name in ("aic", "bic", "icl"):
            value = getattr(jaxgmm, name)(cell.params, X)
            np.testing.assert_allclose(row[name], value, rtol=2e-6, atol=1e-2)
        np.testing.assert_allclose(row["log_likelihood"], jaxgmm.score(cell.params, X), rtol=1e-5)


def test_it_prints_as_a_table_with_the_best_marked():
    text = str(chosen())
    lines = text.splitlines()
    assert lines[0] == "BIC (smaller is better)"
    assert [line.split()[0] for line in lines[2:4]] == ["spherical", "diag"]
    assert text.count("*") == 2
    assert lines[-1] == "* best: spherical, K = 3"
    best = f"{chosen().best_row['bic']:.1f}*"
    assert best in lines[2]
    assert repr(chosen()) == text


@pytest.mark.slow
def test_cross_validation_is_a_likelihood_of_what_was_left_out():
    choice = chosen("cv")
    values = [row["cv"] for row in choice.table]
    assert int(np.argmin(values)) == 2
    # One fold by hand, from where the full fit ended.
    fold = np.asarray(assign(jax.random.key(0), N, 4))
    assert np.bincount(fold).tolist() == [50] * 4
    total = 0.0
    start = choice.result("spherical", 3).params
    for i in range(4):
        fitted = jaxgmm.fit(start, X, jnp.asarray(fold != i, jnp.float32)).params
        total += float(jaxgmm.log_prob(fitted, X)[fold == i].sum())
    np.testing.assert_allclose(values[2], -total / N, rtol=1e-5)
    # It costs something not to have seen a sample.
    assert all(-row["cv"] < row["log_likelihood"] for row in choice.table)


def test_one_fold_held_out():
    choice = chosen("heldout")
    assert choice.criterion == "heldout"
    assert np.isfinite([row["heldout"] for row in choice.table]).all()


def test_failed_and_spurious_cells_are_marked_and_do_not_win():
    choice = chosen()
    table = [dict(row) for row in choice.table]
    table[0].update(status="DEGENERATE", bic=np.nan)
    table[2].update(spurious="few samples")
    table = [row for row in table if row["n_components"] != 4]
    marked = dataclasses.replace(choice, table=tuple(table), n_components=SIZES[:3])
    text = str(marked)
    assert "degen." in text
    assert "?" in text
    assert "? spurious: few samples. Cannot win while another cell is sound" in text
    assert "~" not in text
    failures = marked.failures
    assert [f[:2] for f in failures][:2] == [("spherical", 1), ("spherical", 3)]
    assert "singular" in failures[0][2]
    assert failures[1][2] == "spurious: few samples"

    from jaxgmm.selection._grid import _best_row

    winner = _best_row(table, "bic")
    assert (winner["covariance_type"], winner["n_components"]) == ("diag", 3)
    # Where there is nothing else, a spurious cell is better than none.
    assert _best_row([table[2]], "bic")["spurious"]
    assert _best_row([table[0]], "bic") is None


def test_cells_that_did_not_converge_are_marked():
    choice = chosen()
    table = [dict(row) for row in choice.table]
    table[1].update(status="MAX_ITER", spurious="twins")
    table[2].update(status="MAX_ITER")
    marked = dataclasses.replace(choice, table=tuple(table))
    lines = str(marked).splitlines()
    assert f"{table[1]['bic']:.1f}?~" in lines[2]
    assert f"{table[2]['bic']:.1f}~*" in lines[2]
    assert "~ ended at max_iter before it had converged" in lines
    # The digits of a column end below one another.
    last = [
        line.index(f"{row['bic']:.1f}") for line, row in zip(lines[2:4], (table[3], table[7]), strict=True)
    ]
    ends = [at + len(f"{row['bic']:.1f}") for at, row in zip(last, (table[3], table[7]), strict=True)]
    assert ends == [len(lines[1].rstrip())] * 2
    shown = marked._repr_html_()
    assert "?~" in shown
    assert "~ ended at max_iter before it had converged" in shown


@pytest.mark.slow
def test_one_feature_has_the_structures_e_and_v():
    choice = jaxgmm.select(jax.random.key(0), X[:, :1], (1, 2), budget=100)
    assert list(choice.results) == ["E", "V"]
    assert [row["covariance_type"] for row in choice.table] == ["E", "E", "V", "V"]
    assert [line.split()[0] for line in str(choice).splitlines()[2:4]] == ["E", "V"]
    one, same = choice.result("V", 2), choice.result("spherical", 2)
    assert float(one.log_likelihood) == float(same.log_likelihood)
    assert choice.result("EII", 2).params.family.name == "EII"
    with pytest.raises(KeyError, match="no cell 'full'"):
        choice.result("full", 2)


@pytest.mark.slow
def test_data_that_no_cell_can_fit_are_said_to_have_failed():
    x = np.full((20, 2), np.float32(3.0))
    choice = jaxgmm.select(
        jax.random.key(0), x, (1, 2), covariance_types=("spherical",), budget=100, reg_covar=0.0
    )
    assert choice.best is None
    assert choice.best_row is None
    assert len(choice.failures) == 2
    assert "every cell failed" in str(choice)
    with pytest.raises(ValueError, match="every cell failed"):
        _ = choice.params


def test_progress_is_told_of_each_structure():
    seen = []
    jaxgmm.select(
        jax.random.key(0), X, SIZES, covariance_types=("spherical",), budget=150, progress=seen.append
    )
    assert seen == ["spherical"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "wic"}, "criterion must be one of"),
        ({"covariance_types": "full"}, "must be a sequence"),
        ({"covariance_types": ()}, "at least one structure"),
        ({"covariance_types": ("full", "full")}, "twice"),
        ({"covariance_types": ("fulll",)}, "did you mean"),
        ({"n_components": 3}, "must be a sequence of ints"),
        ({"n_components": ()}, "at least one number"),
        ({"n_components": (1, N + 1)}, "must not exceed n_samples"),
        ({"n_folds": 1}, "n_folds must be at least 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        jaxgmm.select(jax.random.key(0), X, **{"covariance_types": ("diag",), **options})


def test_traced_data_are_refused():
    with pytest.raises(TypeError, match="concrete data"):
        jax.jit(lambda x: jaxgmm.select(jax.random.key(0), x).best)(X)
    with pytest.raises(KeyError, match="no cell"):
        chosen().result("full", 3)


@pytest.mark.slow
def test_weights_are_counts():
    counts = np.random.default_rng(3).integers(1, 3, size=N).astype(np.float32)
    options = {"covariance_types": ("spherical",), "budget": 150}
    weighted = jaxgmm.select(jax.random.key(0), X, SIZES, counts, **options)
    for row in weighted.table:
        params = weighted.result("spherical", row["n_components"]).params
        np.testing.assert_allclose(row["bic"], jaxgmm.bic(params, X, counts), rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_many_overlapping_data_have_the_same_grid_in_both_precisions(dtype):
    x = overlapping(150, 2, 3, seed=1)[0].astype(dtype)
    choice = jaxgmm.select(jax.random.key(0), x, (1, 2), covariance_types=("spherical",), budget=100)
    assert choice.params.means.dtype == dtype
    assert isinstance(choice.best.log_likelihood, jax.Array)


def test_structures_side_by_side_keep_their_order_and_their_errors():
    said = []
    begun = threading.Barrier(2, timeout=30)

    def slow_first(name, argument):
        if argument < 2:
            begun.wait()  # both are under way at once, or this breaks
        return name * argument

    found = list(side_by_side(slow_first, {"a": 0, "b": 1, "c": 2}, said.append, at_once=2))
    assert found == [("a", ""), ("b", "b"), ("c", "cc")]
    assert said == ["a", "b", "c"]

    def fails(name, argument):
        raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        list(side_by_side(fails, {"a": 0, "b": 1}, at_once=2))


def test_a_setting_of_this_thread_alone_keeps_the_work_in_it():
    def where(name, argument):
        return threading.get_ident(), jax.config.jax_default_matmul_precision

    with jax.default_matmul_precision("float32"):
        found = dict(side_by_side(where, {"a": 0, "b": 1}, at_once=2))
    assert set(found.values()) == {(threading.get_ident(), "float32")}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["iris", "faithful"])
def test_no_likelihood_is_below_mclusts(mclust, double, data):
    """With no other argument, in every cell of mclust's table that is not empty.

    But where mclust's mixture is spurious and ours, of lower likelihood, is not: a sound one is preferred.
    """
    reference, x = mclust[data], np.array(mclust[data]["X"])
    choice = jaxgmm.select(jax.random.key(0), x)
    settings = settings_of(x, None, 1e-8, 5000, 0.0, True, MAX_RATIO, (), in_units_of_x=True)[0]
    for row in choice.table:
        model, k = row["covariance_type"], row["n_components"]
        theirs = reference["loglik"][k - 1][reference["models"].index(model)]
        if theirs is not None and len(x) * row["log_likelihood"] < theirs - 1e-3:
            # From the partition that mclust starts from, to what it ends with.
            labels = np.array(reference["hc_labels"][str(k)]) - 1
            start = jaxgmm.m_step(np.eye(k)[labels], x, covariance_type=model, reg_covar=0)
            end = jaxgmm.fit(start, x, reg_covar=0, tol=1e-8, max_iter=5000)
            assert len(x) * float(end.log_likelihood) >= theirs - 1e-3, (model, k)
            p = end.params
            flags = spurious(
                p.log_weights,
                p.means,
                p.covariances,
                settings.n_effective,
                total_for(get_family(model), settings.total),
                settings.max_ratio,
                limits(get_family(model), x.shape[1]),
            )
            assert flags, (model, k)
            assert not row["spurious"], (model, k)
    best = choice.best_row
    assert (best["covariance_type"], best["n_components"]) == {"iris": ("VEV", 2), "faithful": ("EEE", 3)}[
        data
    ]
