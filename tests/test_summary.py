"""What people see of a mixture and of a fit: at a prompt, printed, in a notebook, and summed up."""

import dataclasses
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxgmm
from jaxgmm.selection._search import BestFit
from jaxgmm.selection._spurious import Spurious
from tests.conftest import case
from tests.problems import WEIGHT

X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
PARAMS = jaxgmm.make_params([0.25, 0.75], [[0.0, 5.0], [3.0, 1.0]], [1.0, 4.0], "spherical")


def result(params, status=0, n_iter=7, log_likelihood=-1.5):
    values = (np.float32(log_likelihood), np.float32(log_likelihood))
    history = np.zeros((*np.shape(status), 4), np.float32)
    fit = jaxgmm.FitResult(params, *values, np.int32(n_iter), np.int32(status), history)
    return jax.device_put(fit)


def stacked(n=3, **ends):
    return result(jax.tree.map(lambda a: np.stack([a] * n), PARAMS), **ends)


class Cells(HTMLParser):
    """The text of every cell, and whether every tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.cells[-1] += data


def test_a_mixture_is_a_line_and_prints_as_a_table():
    assert repr(PARAMS) == "GMMParams(spherical, K = 2, D = 2, float32)"
    assert str(PARAMS).splitlines()[-2:] == [
        "x0         0.00 ± 1.00  3.00 ± 2.00",
        "x1         5.00 ± 1.00  1.00 ± 2.00",
    ]
    assert "\n".join(str(result(PARAMS)).splitlines()[1:]) == "\n".join(str(PARAMS).splitlines()[1:])


def test_a_fit_says_how_it_ended():
    assert repr(result(PARAMS)).endswith("converged after 7 EM steps, log-likelihood -1.5)")
    assert "max. steps after 1 EM step," in repr(result(PARAMS, status=1, n_iter=1))
    several = stacked(status=[0, 0, 4], n_iter=[3, 4, 5], log_likelihood=[-2.0, -1.0, np.nan])
    assert "3 mixtures" in repr(several)
    assert repr(several).endswith("2 converged, 1 degenerate, log-likelihoods -2 to -1)")
    assert str(several) == repr(several)


def test_a_search_says_what_it_knows():
    fields = {f.name: getattr(result(PARAMS), f.name) for f in dataclasses.fields(jaxgmm.FitResult)}
    numbers = {"n_agreed": jnp.asarray(2), "n_finalists": jnp.asarray(3), "n_steps": jnp.asarray(9)}
    found = BestFit(**fields, **numbers, flags=jnp.asarray(int(Spurious.TWINS)))
    assert repr(found).startswith("BestFit(")
    assert repr(found).endswith("2 of 3 finalists agree, spurious (twins))")


def test_nothing_is_looked_at_while_it_is_traced():
    fit, seen = result(PARAMS), []

    def show(one):
        seen.extend([repr(one), str(one), one._repr_html_(), str(one.params), one.params._repr_html_()])
        return one.params.means

    jax.jit(show)(fit)
    jax.vmap(show)(stacked(status=[0, 1, 2], n_iter=[1, 2, 3], log_likelihood=[1.0, 2.0, 3.0]))
    show(jax.eval_shape(lambda: fit))
    assert len(seen) == 15
    for text in seen:
        assert "spherical, K = 2, D = 2, float32" in text
        assert "±" not in text

    # A mixture that a trace closes over is concrete: its table adds nothing to the program.
    def closed_over(x):
        seen.append(str(PARAMS))
        return x

    assert len(jax.make_jaxpr(closed_over)(1.0).eqns) == 0
    assert seen[-1] == str(PARAMS)


def test_placeholders_do_not_fail():
    puts = [
        lambda a: a.shape,
        lambda a: None,
        lambda a: object(),
        lambda a: np.asarray(a)[..., None],
        lambda a: np.asarray(a) * np.nan,
    ]
    for put in puts:
        other = jax.tree.map(put, result(PARAMS))
        assert repr(other).startswith("FitResult(")
        assert "spherical" in repr(other)
        assert str(other)
        assert other._repr_html_()


def test_a_deleted_mixture_and_a_broken_structure_do_not_fail():
    gone = jax.tree.map(lambda a: jax.device_put(np.array(a)), PARAMS)
    jax.tree.map(lambda a: a.delete(), gone)
    assert str(gone) == repr(gone)
    broken = dataclasses.replace(
        PARAMS,
        component=jaxgmm.components.gaussian(PARAMS.covariance._replace(diagonal=lambda scale, shape: 1 / 0)),
    )
    assert "nan" in str(broken)


def test_of_many_components_and_features_the_first_are_shown():
    means = np.arange(40 * 30, dtype=np.float32).reshape(40, 30)
    log_weights, scale = np.log(np.full(40, 1 / 40, np.float32)), np.ones(40, np.float32)
    wide = jaxgmm.GMMParams(log_weights, means, scale, PARAMS.component)
    text = str(wide)
    assert text.endswith("… 28 more components and 10 more features")
    assert max(map(len, text.splitlines())) <= 100
    assert "more" not in str(jaxgmm.summary(wide))


def test_html_has_the_same_cells_as_the_text():
    for shown in (PARAMS, result(PARAMS)):
        cells = Cells(shown._repr_html_()).cells
        text = [part for line in str(shown).splitlines()[1:] for part in re.split(r"\s{2,}", line)]
        assert [c for c in cells if c] == [t for t in text if "─" not in t]
        assert "color" not in shown._repr_html_()  # of its own: it must be legible on dark and on light


def test_names_are_escaped():
    shown = jaxgmm.summary(PARAMS, columns=["<script>", "a & b"])._repr_html_()
    assert Cells(shown).cells[-6::3] == ["<script>", "a & b"]
    assert "<script>" not in shown


def test_a_summary_says_what_the_library_computes():
    text = str(jaxgmm.summary(result(PARAMS), X, sample_weight=WEIGHT))
    normal = scipy.stats.norm(np.array([[0.0, 5.0], [3.0, 1.0]]), np.array([[1.0], [2.0]]))
    joint = np.log([0.25, 0.75]) + normal.logpdf(X[:, None]).sum(2)
    log_density = scipy.special.logsumexp(joint, axis=1)
    resp = np.exp(joint - log_density[:, None])
    deviance, n = -2 * WEIGHT @ log_density, WEIGHT.sum()
    bic = deviance + 7 * np.log(n)
    icl = bic - 2 * WEIGHT @ np.log(resp.max(1))
    assert f"AIC {deviance + 2 * 7:.1f}   BIC {bic:.1f}   ICL {icl:.1f}" in text
    assert f"({-deviance / 2 / n:.4f} per sample)" in text
    counts = WEIGHT @ resp
    assert re.search(r"samples\s+" + r"\s+".join(f"{n:.1f}" for n in counts), text)
    assert "7 free parameters" in text


def test_a_summary_says_what_to_do_and_takes_a_data_frames_names():
    frame = pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(
        X, columns=["up", "over"]
    )
    text = str(jaxgmm.summary(result(PARAMS, status=1), frame))
    assert "Raise max_iter" in text
    assert "\nover " in text


def test_a_summary_of_several_fits_has_a_line_for_each():
    several = stacked(status=[0, 1, 4], n_iter=[3, 4, 5], log_likelihood=[-2.0, -1.0, np.nan])
    lines = str(jaxgmm.summary(several)).splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["converged", "steps", "degenerate"]
    with pytest.raises(ValueError, match="best"):
        jaxgmm.summary(several, X)


def test_a_summary_of_a_selection():
    rows = [
        {"covariance_type": name, "n_components": k, "bic": value, "status": "CONVERGED", "spurious": flaw}
        for name, k, value, flaw in [("VII", 1, 9.0, ""), ("VII", 2, 8.0, "twins"), ("VVV", 1, 8.5, ""),
                                     ("VVV", 2, 9.5, "")]
    ]  # fmt: skip
    choice = jaxgmm.Selection("bic", tuple(rows), {"VII": None, "VVV": None}, (1, 2), result(PARAMS), rows[2])
    assert str(jaxgmm.summary(choice)).startswith(str(choice))
    assert "± " in str(jaxgmm.summary(choice))
    shown = choice._repr_html_()
    assert Cells(shown).cells == ["", "K = 1", "K = 2", "VII", "9.0", "8.0?", "VVV", "8.5", "9.5"]
    assert "<b>8.5</b>" in shown
    assert "spurious: twins" in shown
    failed = dataclasses.replace(choice, best=None, best_row=None)
    assert "every cell failed" in failed._repr_html_()
    assert str(jaxgmm.summary(failed)) == str(failed)


def test_what_cannot_be_summed_up():
    for arguments, error, match in [
        ((3,), TypeError, "GMMParams"),
        ((PARAMS, np.ones((3, 2)), np.ones(4)), ValueError, "sample_weight"),
        ((PARAMS, None, None, ["a"]), TypeError, "positional"),
        ((PARAMS, np.ones((3, 5))), ValueError, "2 features"),
        ((jax.tree.map(lambda a: np.asarray(a)[None], PARAMS),), ValueError, "one mixture"),
    ]:
        with case(error, match), pytest.raises(error, match=match):
            jaxgmm.summary(*arguments)


def test_no_summary_inside_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda p: jaxgmm.summary(p) and p.means)(PARAMS)
