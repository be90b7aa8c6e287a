"""Choosing a structure and a number of components: the grid, its criteria, and what does not win."""

import dataclasses
import functools
import io
import re
import sys
import threading
import types

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

import jaxgmm
from jaxgmm import Status
from jaxgmm.selection._grid import assign, side_by_side
from jaxgmm.selection._progress import progress_line
from tests.conftest import case
from tests.quick import quick_jit

N = 200
SIZES = (1, 2, 3, 5)  # not all of them are neighbours
# Two spherical clusters of different widths, and a third between them.
_LABELS = np.random.default_rng(0).integers(3, size=N)
X = np.array([[-6.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[_LABELS]
X = X + np.random.default_rng(1).normal(size=(N, 2)) * np.array([0.7, 1.0, 1.5])[_LABELS][:, None]
X = X.astype(np.float32)


NAMES = ("spherical", "diag")  # the Gaussian structures of every grid: they share one program


@functools.cache
def chosen(criterion="bic"):
    return jaxgmm.select(
        jax.random.key(0), X, SIZES, covariance_types=NAMES, criterion=criterion, budget=150, n_folds=4
    )


def test_it_finds_the_structure_and_the_number():
    choice = chosen()
    assert (choice.best_row["covariance_type"], choice.best_row["n_components"]) == ("spherical", 3)
    assert choice.params.model.name == "spherical"
    assert choice.params.n_components == 3
    assert choice.best.status == Status.CONVERGED
    for found in choice.results.values():
        # No mixture gains components beyond its size, and more components never fit worse.
        assert (np.asarray(found.params.weights) > 0).sum(1).tolist() == list(SIZES)
        assert (np.diff(np.asarray(found.log_likelihood)) > 0).all()
    assert [(r["covariance_type"], r["n_components"]) for r in choice.table] == [
        (name, k) for name in ("spherical", "diag") for k in SIZES
    ]


def test_gaussian_and_t_components_and_equal_weights_are_compared_in_one_table():
    """The Gaussian structures with free weights share a program, in which the others have no part."""
    rng, x = np.random.default_rng(2), X.copy()
    x[:20] += 3 * rng.standard_t(2, (20, 2)).astype(np.float32)
    names = (*NAMES, "student_t(spherical)", "spherical-equal")
    choice = jaxgmm.select(jax.random.key(0), x, SIZES, covariance_types=names, budget=150)
    assert choice.best_row["covariance_type"] == "student_t(spherical)"
    assert choice.best_row["n_components"] == 3
    np.testing.assert_allclose(choice.result("spherical-equal", 3).params.weights[:3], 1 / 3, rtol=1e-6)
    for row in choice.table:
        one = choice.result(row["covariance_type"], row["n_components"]).params
        assert row["n_parameters"] == jaxgmm.n_parameters(one)
        if row["n_components"] == 3:
            np.testing.assert_allclose(row["bic"], jaxgmm.bic(one, x), rtol=1e-5)


def test_the_criteria_are_those_of_the_fitted_mixtures():
    choice = chosen()
    for i, k in enumerate(SIZES):
        row, cell = choice.table[len(SIZES) + i], choice.result("diag", k)
        assert cell.params.n_components == row["n_components"] == k
        p = jaxgmm.n_parameters(cell.params)
        parts = (cell.params.log_weights, cell.params.means, cell.params.scale)
        log_weights, means, widths = (np.asarray(a, float) for a in parts)
        squares = (((X[:, None] - means) / widths) ** 2).sum(2)
        joint = log_weights - np.log(2 * np.pi) - np.log(widths).sum(1) - 0.5 * squares
        log_prob = logsumexp(joint, axis=1)
        deviance, uncertain = -2 * log_prob.sum(), -2 * (joint.max(1) - log_prob).sum()
        bic = deviance + p * np.log(N)
        for name, value in (("aic", deviance + 2 * p), ("bic", bic), ("icl", bic + uncertain)):
            np.testing.assert_allclose(row[name], value, rtol=2e-6, atol=1e-2)
        assert row["n_parameters"] == p
        np.testing.assert_allclose(row["log_likelihood"], log_prob.mean(), rtol=1e-5)


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


def test_cross_validation_is_a_likelihood_of_what_was_left_out():
    choice = chosen("cv")
    values = [row["cv"] for row in choice.table if row["covariance_type"] == "spherical"]
    assert int(np.argmin(values)) == 2
    # One fold by hand, from where the full fit ended.
    fold = np.asarray(assign(jax.random.key(0), N, 4))
    assert np.bincount(fold).tolist() == [50] * 4
    total = 0.0
    start = choice.result("spherical", 3).params
    fitted = quick_jit(lambda w: jaxgmm.log_prob(jaxgmm.fit(start, X, w).params, X))
    for i in range(4):
        total += float(np.asarray(fitted((fold != i).astype(np.float32)))[fold == i].sum())
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


def test_data_that_no_cell_can_fit_are_said_to_have_failed():
    choice = jaxgmm.select(
        jax.random.key(0), np.full_like(X, 3.0), SIZES, covariance_types=NAMES, budget=150, reg_covar=0.0
    )
    assert choice.best is None
    assert choice.best_row is None
    assert len(choice.failures) == len(NAMES) * len(SIZES)
    assert "every cell failed" in str(choice)
    with pytest.raises(ValueError, match="every cell failed"):
        _ = choice.params


def test_progress_is_told_of_each_structure_and_cells_are_found_by_any_name():
    seen = []
    options = {"covariance_types": NAMES, "budget": 150}
    choice = jaxgmm.select(jax.random.key(0), X, SIZES, progress=seen.append, **options)
    assert seen == list(NAMES)
    assert choice.result("VII", 2).log_likelihood == choice.result("spherical", 2).log_likelihood
    with pytest.raises(KeyError, match="no cell"):
        choice.result("full", 3)
    with pytest.raises(TypeError, match="progress must be True, False, None or a function; got 'yes'"):
        jaxgmm.select(jax.random.key(0), X, SIZES, progress="yes")


def test_a_terminal_has_a_line_of_progress_which_is_removed(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert progress_line("select", 4) is None
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    line = progress_line("select", 4)
    for name in ("EII", "VII"):
        line(name)
    line.end()
    first, second, empty, last = terminal.getvalue().split("\r")[1:]
    assert re.fullmatch("select ·{20} 0 of 4, 0 s: EII", first)
    assert re.fullmatch("select ━{5}·{15} 1 of 4, 0 s: VII", second)
    assert empty == " " * len(second)
    assert last == ""


def test_a_notebook_has_a_line_of_progress_which_ends_with_the_time(monkeypatch):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(content["text/plain"])

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    shell = type("ZMQInteractiveShell", (), {})()
    page = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", page)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    line = progress_line("select", 2)
    for name in ("EII", "VII"):
        line(name)
    line.end()
    assert len(shown) == 3
    assert re.fullmatch("select ━{10}·{10} 1 of 2, 0 s: VII", shown[1])
    assert re.fullmatch(r"select: 2 of 2 in 0\.\d s", shown[2])


def test_one_feature_has_the_structures_e_and_v(monkeypatch):
    """Which structures are asked for; nothing is fitted."""
    from jaxgmm.selection import _grid as grid

    class Asked(Exception):
        pass

    def stop(function, families, *rest, **options):
        raise Asked(list(families))

    monkeypatch.setattr(grid, "side_by_side", stop)
    with pytest.raises(Asked, match=r"\['E', 'V'\]"):
        jaxgmm.select(jax.random.key(0), X[:, :1], (1, 2))


def test_bad_arguments():
    for options, message in [
        ({"criterion": "wic"}, "criterion must be one of"),
        ({"covariance_types": "full"}, "must be a sequence"),
        ({"covariance_types": ()}, "at least one structure"),
        ({"covariance_types": ("full", "full")}, "twice"),
        ({"covariance_types": ("fulll",)}, "did you mean"),
        ({"n_components": 3}, "must be a sequence of ints"),
        ({"n_components": ()}, "at least one number"),
        ({"n_components": (1, N + 1)}, "must not exceed n_samples"),
        ({"n_folds": 1}, "n_folds must be at least 2"),
    ]:
        with case(options, message), pytest.raises((ValueError, TypeError), match=message):
            jaxgmm.select(jax.random.key(0), X, **{"covariance_types": ("diag",), **options})


def test_traced_data_are_refused():
    with pytest.raises(TypeError, match="concrete data"):
        jax.jit(lambda x: jaxgmm.select(jax.random.key(0), x).best)(X)


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
