"""The command line, tried as a user would: right answers, and one line for every mistake."""

import csv
import gzip
import io
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import polars
import pytest
import scipy.special
import scipy.stats

import jaxgmm
from jaxgmm import cli
from jaxgmm.cli import _run, fitting, signals
from jaxgmm.cli.options import integers, name_list, spell
from jaxgmm.cli.reading import Format, read
from jaxgmm.cli.tables import UserError, write
from jaxgmm.io import load, load_columns, save
from jaxgmm.kernels.program_store import AVAILABLE
from tests.conftest import case, x64

# Nearly all fits are of 120 rows by these programs; what else is asked for costs nothing to compile.
QUICK = ("-k", "1:3", "--covariance", "diag", "--n-init", "2")


@pytest.fixture(scope="module")
def blobs():
    """Two clusters that nobody could miss: X (120, 2)."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(80, 2)) * [0.5, 2], rng.normal(size=(40, 2)) + np.array([[8.0, 50.0]])
    return np.concatenate([near, far]).round(4)


@pytest.fixture
def data(tmp_path, blobs):
    frame = polars.DataFrame({"width": blobs[:, 0], "kind": ["x"] * len(blobs), "height": blobs[:, 1]})
    frame.write_csv(tmp_path / "data.csv")
    return str(tmp_path / "data.csv")


@pytest.fixture
def command(capfdbinary):
    """Run the command line in this process: status, stdout, stderr. JAX is left as it was found."""
    before = jax.config.jax_enable_x64

    def run(*arguments):
        try:
            code, message = _run([str(argument) for argument in arguments])
        finally:
            jax.config.update("jax_enable_x64", before)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        errors = captured.err.decode() + (f"jaxgmm: {message}\n" if message else "")
        return code, captured.out.decode(), errors

    return run


def put(folder, content, name="data.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.fixture(scope="module")
def process():
    """Run the command, or other code, in a process of its own."""

    def run(*arguments, code=None, **environment):
        start = ["-c", code] if code else ["-m", "jaxgmm.cli"]
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | environment,
        )

    return run


# --- fit


def test_fit_prints_draws_and_saves(command, data, blobs, tmp_path):
    picture, model = tmp_path / "p.png", tmp_path / "m.npz"
    code, out, err = command("fit", data, *QUICK, "--plot", picture, "--out", model)
    assert code == 0
    lines = out.splitlines()
    marked = [line for line in lines if line.startswith("*  ")]
    assert len(marked) == 1
    assert marked[0].split()[1:4] == ["diag", "2", "9"]
    assert sum(line.strip(" *").startswith("diag") for line in lines) == 3
    assert "Best by BIC: diag, K = 2  (120 rows, 2 columns)" in lines
    assert "CV" not in out
    assert "HELDOUT" not in out
    weights = next(line for line in lines if line.startswith("weight")).split()[1:]
    assert sorted(weights) == ["0.3333", "0.6667"]
    assert any(re.match(r"width +-?\d+\.\d+ ± \d", line) for line in lines)
    assert any(line.startswith("height") for line in lines)
    assert all(len(line) <= 100 for line in lines)
    assert err.splitlines() == [
        f"jaxgmm: {data}: left out, not numeric: kind",
        f"jaxgmm: saved {model}",
        f"jaxgmm: drew {picture}",
    ]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert load_columns(model) == ("width", "height")
    means = np.sort(np.asarray(load(model).means), 0)
    np.testing.assert_allclose(means, [blobs[:80].mean(0), blobs[80:].mean(0)], rtol=1e-3)


def test_the_table_is_what_the_library_says(command, data, blobs):
    words = ("fit", data, *QUICK, "--seed", "3")
    answer = command(*words)
    row = next(line for line in answer[1].splitlines() if line.startswith("*  ")).split()[4:8]
    with x64(True):
        results = jaxgmm.fit_components(jax.random.key(3), blobs, (1, 2, 3), covariance_type="diag", n_init=2)
        best = jax.tree.map(lambda a: np.asarray(a)[1], results)
    params = best.params  # the third of its components is off
    resp, log_density = evaluated(blobs, params.log_weights[:2], params.means[:2], params.scale[:2])
    deviance = -2 * log_density.sum()
    bic = deviance + 9 * np.log(len(blobs))
    criteria = (deviance + 2 * 9, bic, bic - 2 * np.log(resp.max(1)).sum())
    assert row == [f"{log_density.mean():.4f}", *(f"{value:.1f}" for value in criteria)]
    assert command(*words) == answer


def evaluated(X, log_weights, means, deviations):
    """Responsibilities (N, K) and log-densities (N,) of Gaussians without correlations."""
    normal = scipy.stats.norm(means[None], deviations[None])
    joint = log_weights + normal.logpdf(X[:, None]).sum(2)
    log_density = scipy.special.logsumexp(joint, axis=1)
    return np.exp(joint - log_density[:, None]), log_density


def test_a_seed_out_of_range_is_refused(command, data):
    for seed in ("99999999999999999999", "-1"):
        code, _, err = command("fit", data, *QUICK, "--seed", seed)
        assert code == 2
        assert "--seed" in err
        assert "0<=x<=4294967295" in err


@pytest.fixture
def asked(monkeypatch):
    """What the library's search is asked for; rows that are left out choose one component."""
    calls = []

    def select(key, x, sizes, *, covariance_types, **options):
        calls.append(options)
        (name,) = covariance_types
        results = jaxgmm.fit_components(key, x, sizes, covariance_type=name, n_init=2)
        row = {"aic": 1.0, "bic": 2.0, "icl": 3.0, "spurious": ""}
        table = [row | {options["criterion"]: value} for value in (0.5, 0.75, 0.6251)]
        return types.SimpleNamespace(results={name: results}, table=table)

    monkeypatch.setattr(jaxgmm, "select", select)
    return calls


@pytest.mark.parametrize("criterion", ["cv", "heldout"])
def test_rows_left_out_decide(command, data, asked, criterion):
    words = ("-k", "1:3", "--covariance", "diag", "--budget", "20", "--folds", "3", "--prior", "default")
    code, out, _ = command("fit", data, *words, "--criterion", criterion)
    assert code == 0
    (options,) = asked
    wanted = {"criterion": criterion, "n_folds": 3, "budget": 20, "prior": "default"}
    assert {name: options[name] for name in wanted} == wanted
    header = next(line for line in out.splitlines() if "covariance" in line).split()
    column = header.index(criterion.upper()) - len(header)
    rows = [line.strip("* ").split() for line in out.splitlines()]
    shown = [row[column] for row in rows if row[:1] == ["diag"] and len(row) > 4]
    assert shown == ["0.5000", "0.7500", "0.6251"]
    assert f"smallest {criterion.upper()}" in out
    assert f"{criterion.upper()}: minus the mean log-likelihood per row" in out
    assert f"Best by {criterion.upper()}: diag, K = 1" in out


def test_too_few_rows_for_the_folds(command, data):
    code, out, err = command(
        "fit", data, "-k", "1", "--covariance", "diag", "--criterion", "cv", "--folds", "121"
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"jaxgmm: {data}: 120 rows are too few for 121 folds"


def test_a_collapsed_component_is_pointed_out(command, blobs, tmp_path):
    # Five times the same row: one component shrinks onto it.
    rows = np.concatenate([blobs[:115], np.full((5, 2), 30.0)])
    polars.DataFrame({"a": rows[:, 0], "b": rows[:, 1]}).write_csv(tmp_path / "spike.csv")
    _, _, err = command("fit", tmp_path / "spike.csv", *QUICK)
    assert "collapsed onto a point" in err
    assert "the criteria flatter this" in err


@pytest.mark.parametrize("criterion", ["aic", "icl"])
def test_the_criterion_decides(command, data, criterion):
    _, out, _ = command("fit", data, *QUICK, "--criterion", criterion)
    lines = [line.strip("* ").split() for line in out.splitlines()]
    header, *body = [words for words in lines if "covariance" in words or words[:1] == ["diag"]]
    column = header.index(criterion.upper()) - len(header)
    values = {int(words[1]): float(words[column]) for words in body if len(words) > 4}
    assert len(values) == 3
    assert f"K = {min(values, key=values.get)} " in out
    assert f"smallest {criterion.upper()}" in out


@pytest.fixture
def given(monkeypatch):
    """What `fit_components` is given, which then fits in float64, without weights, by the one program."""
    calls, genuine = [], jaxgmm.fit_components

    def fit_components(key, rows, sizes, **options):
        calls.append((np.asarray(rows.x), None if rows.weight is None else np.asarray(rows.weight), options))
        return genuine(key, np.asarray(rows.x, np.float64), sizes, **{**options, "prior": None})

    monkeypatch.setattr(jaxgmm, "fit_components", fit_components)
    return calls


def test_weights_and_the_prior_go_to_the_fit(command, blobs, tmp_path, given):
    weights = np.arange(len(blobs)) % 3
    frame = polars.DataFrame({"x": blobs[:, 0], "n": weights, "y": blobs[:, 1]})
    frame.write_csv(tmp_path / "weighted.csv")
    code, out, _ = command("fit", tmp_path / "weighted.csv", *QUICK, "--weights", "n", "--prior", "default")
    assert code == 0
    ((x, w, options),) = given
    np.testing.assert_array_equal(x, blobs)
    np.testing.assert_array_equal(w, weights)
    assert options["prior"] == "default"
    assert "per unit of weight" in out


def test_float32_data_are_centred(command, blobs, tmp_path, given):
    far = blobs + 1e7
    polars.DataFrame({"a": far[:, 0], "b": far[:, 1]}).write_parquet(tmp_path / "far.parquet")
    for precision in ("--float32", "--float64"):
        out = tmp_path / f"{precision}.npz"
        assert command("fit", tmp_path / "far.parquet", *QUICK, precision, "--out", out)[0] == 0
    x = given[0][0]
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, far - far.mean(0), atol=1e-4)
    means = []
    for precision in ("--float32", "--float64"):
        with np.load(tmp_path / f"{precision}.npz") as model:
            assert model["means"].dtype == np.float64
            means.append(model["means"][np.argsort(model["means"][:, 0])])
    # Rows of up to 60 in float32 are rounded by 4e-6.
    np.testing.assert_allclose(means[0] - 1e7, means[1] - 1e7, atol=1e-3)


def test_a_fit_that_did_not_converge_says_so(command, data, tmp_path):
    code, out, err = command(
        "fit", data, *QUICK, "--max-iter", "1", "--tol", "0", "--out", tmp_path / "m.npz"
    )
    assert code == 1
    assert "max. steps" in out
    assert "weight" in out
    assert err.splitlines()[-1] == "jaxgmm: the best fit did not converge: raise --max-iter, or loosen --tol"
    assert (tmp_path / "m.npz").exists()


def test_every_fit_failed(command, data, tmp_path, monkeypatch):
    genuine = fitting.fit_structure

    def failing(*arguments):
        cells = genuine(*arguments)
        return [
            fitting.dataclasses.replace(c, criteria=dict.fromkeys(c.criteria, np.nan), status="NONFINITE")
            for c in cells
        ]

    monkeypatch.setattr(fitting, "fit_structure", failing)
    code, out, err = command("fit", data, *QUICK, "--out", tmp_path / "m.npz", "--plot", tmp_path / "p.png")
    assert code == 1
    assert "not finite" in out
    assert "every fit failed (NONFINITE)" in err
    assert sorted(os.listdir(tmp_path)) == ["data.csv"]


def test_a_constant_column_is_pointed_out(command, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no more than this")

    monkeypatch.setattr(fitting, "fit_structure", refuse)
    path = put(tmp_path, "x,y,c\n1,2,1\n2,7,1\n4,3,1\n")
    code, _, err = command("fit", path, *QUICK)
    assert code == 2
    assert "constant, and so no help in telling components apart: c" in err
    assert err.splitlines()[-1] == "jaxgmm: no more than this"


def test_defaults_in_the_help(command):
    code, out, _ = command("fit", "--help")
    assert code == 0
    for text in (
        "[default: 1:9]",
        "full,tied,diag,spherical",
        "mean log-likelihood per row",
        "Example:",
        "jaxgmm fit faithful",
    ):
        assert text in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_version_and_bare_command(command):
    code, out, _ = command("--version")
    assert (code, out) == (0, f"jaxgmm {jaxgmm._version.__version__}\n")
    code, out, _ = command()
    assert code == 0
    assert {"fit", "predict", "impute", "sample"} <= set(out.split())


# --- predict and sample


@pytest.fixture
def model(tmp_path):
    params = jaxgmm.make_params([0.25, 0.75], [[0.0, 0.0], [8.0, 50.0]], [1.0, 4.0], "spherical")
    save(tmp_path / "model.npz", params, columns=["width", "height"])
    return str(tmp_path / "model.npz")


def test_predict_is_what_the_library_says(command, model, data, blobs):
    code, out, err = command("predict", model, data)
    assert (code, err) == (0, "")
    frame = polars.read_csv(io.StringIO(out))
    assert frame.columns == ["label", "responsibility", "log_density"]
    deviations = np.array([[1.0, 1.0], [2.0, 2.0]])
    means = np.array([[0.0, 0.0], [8.0, 50.0]])
    resp, log_density = evaluated(blobs, np.log([0.25, 0.75]), means, deviations)
    np.testing.assert_array_equal(frame["label"], resp.argmax(1))
    np.testing.assert_allclose(frame["log_density"], log_density, rtol=1e-4)
    np.testing.assert_allclose(frame["responsibility"], resp.max(1), rtol=1e-4)


def test_predict_in_parts_is_predict_at_once(command, model, data, monkeypatch):
    from jaxgmm.cli import commands

    whole = command("predict", model, data)
    monkeypatch.setattr(commands, "_ROWS_AT_ONCE", 50)  # not a divisor of the number of rows
    assert command("predict", model, data) == whole


@pytest.mark.parametrize("extension", [".csv", ".parquet", ".npy"])
def test_predict_writes_files(command, model, data, tmp_path, extension):
    path = tmp_path / f"labels{extension}"
    code, out, _ = command("predict", model, data, "--out", path)
    assert (code, out) == (0, "")
    readers = {".csv": polars.read_csv, ".parquet": polars.read_parquet, ".npy": np.load}
    assert readers[extension](path).shape == (120, 3)


def test_predict_finds_columns_by_name(command, model, blobs, tmp_path):
    frame = polars.DataFrame({"height": blobs[:, 1], "z": blobs[:, 0] * 9, "width": blobs[:, 0]})
    frame.write_csv(tmp_path / "other.csv")
    np.save(tmp_path / "plain.npy", blobs)
    frame.rename({"width": "w", "height": "h"}).write_csv(tmp_path / "renamed.csv")
    results = [
        command("predict", model, tmp_path / "other.csv"),
        command("predict", model, tmp_path / "plain.npy"),
        command("predict", model, tmp_path / "renamed.csv", "--columns", "w,h"),
    ]
    assert results[0][0] == 0
    assert results[0] == results[1] == results[2]


def test_predict_with_a_model_that_has_no_names(command, model, data, tmp_path):
    save(tmp_path / "nameless.npz", load(model))
    assert command("predict", tmp_path / "nameless.npz", data) == command("predict", model, data)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--columns", "width"), r"1 column \(width\), but .*model.npz was fitted to 2 \(width,height\)"),
        (("--columns", "width,kind"), "'kind' is not numeric: row 1 holds 'x'"),
        (("--columns", "width,heigth"), "no column 'heigth'; did you mean 'height'?"),
    ],
)
def test_predict_with_the_wrong_columns(command, model, data, arguments, match):
    code, out, err = command("predict", model, data, *arguments)
    assert (code, out) == (2, "")
    assert re.search(match, err)


def test_predict_on_other_data(command, model, tmp_path):
    code, _, err = command("predict", model, put(tmp_path, "a,b\n1,2\n"))
    assert code == 2
    assert "no column 'width'; it has a, b" in err
    assert "was fitted to width,height" in err
    code, _, err = command("predict", model, put(tmp_path, "width,height\n1,2\n,3\n"))
    assert code == 2
    assert "column 'width', row 2: the value is missing" in err


def test_sample(command, model, tmp_path):
    first = command("sample", model, 4000, "--seed", "1")
    assert first[0] == 0
    assert first[1].splitlines()[0] == "width,height"
    assert len(first[1].splitlines()) == 4001
    assert command("sample", model, 4000, "--seed", "1") == first
    assert command("sample", model, 4000, "--seed", "2") != first
    assert command("sample", model, 4000, "--labels")[1].splitlines()[0] == "width,height,label"
    path = tmp_path / "s.parquet"
    assert command("sample", model, 4000, "--out", path)[0] == 0
    frame = polars.read_parquet(path)
    np.testing.assert_allclose(frame.to_numpy().mean(0), [6.0, 37.5], rtol=0.05)

    frame.head(120).write_parquet(path)
    code, out, _ = command("fit", path, *QUICK)
    assert code == 0
    assert "120 rows, 2 columns" in out


@pytest.mark.parametrize("name", ["predict", "sample"])
def test_a_bad_model(command, data, tmp_path, name):
    last = data if name == "predict" else "3"
    bad = put(tmp_path, b"PK\x03\x04 nonsense", "bad.npz")
    for path in (bad, str(tmp_path / "missing.npz"), str(tmp_path)):
        code, out, err = command(name, path, last)
        assert (code, out) == (2, "")
        assert err.startswith(f"jaxgmm: {path}: ")
        assert err.count("\n") == 1


# --- missing values


@pytest.fixture(scope="module")
def gapped(blobs):
    """The clusters with a sixth of the entries missing; some rows have none."""
    X = blobs.copy()
    X[::6, 0] = np.nan
    X[3::7, 1][:18] = np.nan
    X[7] = np.nan
    return X


@pytest.fixture
def gaps(tmp_path, gapped):
    """A table of them as text, in which a gap is written in several ways."""
    words = iter(["", "NA", "", "nan", "?"] * 20)
    lines = ["id,width,kind,height"]
    for i, row in enumerate(gapped):
        width, height = (next(words) if np.isnan(v) else f"{v:.5f}" for v in row)
        lines.append(f'{i + 1:04d},{width},"a, ""b""",{height}')
    return put(tmp_path, "\n".join(lines) + "\n", "gaps.csv")


def test_gaps_are_fitted_as_the_library_fits_them(command, gaps, gapped, tmp_path):
    words = (
        "fit",
        gaps,
        *QUICK,
        "--columns",
        "width,height",
        "--missing",
        "fit",
        "--out",
        tmp_path / "m.npz",
    )
    code, out, err = command(*words)
    assert code == 0
    with x64(True):
        data = jaxgmm.observe(gapped, missing="nan")
        key = jax.random.key(0)
        results = jaxgmm.fit_components(key, data, (1, 2, 3), covariance_type="diag", n_init=2)
        best = jax.tree.map(lambda a: np.asarray(a)[1], results)
        criteria = [float(f(best.params, data)) for f in (jaxgmm.aic, jaxgmm.bic)]
        log_likelihood = float(jaxgmm.score(best.params, data))
    row = next(line for line in out.splitlines() if line.startswith("*  ")).split()
    assert row[1:7] == ["diag", "2", "9", f"{log_likelihood:.4f}", *(f"{value:.1f}" for value in criteria)]
    missing = np.isnan(gapped)
    counts = f"{missing.sum()} of 240 values are missing, in {missing.any(1).sum()} of 120 rows"
    assert f"{counts}; fitted to the others." in out.splitlines()
    assert f"without any value in width,height: {missing.all(1).sum()} of 120 rows" in err
    np.testing.assert_allclose(load(tmp_path / "m.npz").means, best.params.means[:2], rtol=1e-5)


def test_complete_rows_are_fitted_alike_whatever_is_missing(command, data):
    answers = [command("fit", data, *QUICK, *words) for words in ((), ("--missing", "fit"))]
    assert answers[0] == answers[1]
    assert "missing" not in answers[0][1]


@pytest.fixture
def seen(monkeypatch):
    """The data that the command hands over, which are not fitted."""
    given = []

    def refuse(key, data, sizes, **_):
        given.append(data)
        raise ValueError("seen")

    monkeypatch.setattr(jaxgmm, "fit_components", refuse)
    return given


def test_float32_gaps_are_centred_at_what_is_there(command, gapped, tmp_path, seen):
    far = gapped + 1e7
    np.save(tmp_path / "far.npy", far)
    assert command("fit", tmp_path / "far.npy", *QUICK, "--float32", "--missing", "fit")[0] == 2
    (data,) = seen
    assert data.weight is None
    assert data.x.dtype == np.float32
    there = np.isfinite(far)
    np.testing.assert_array_equal(data.observed, there)
    np.testing.assert_allclose(np.asarray(data.x)[there], (far - np.nanmean(far, 0))[there], atol=1e-4)


def test_weights_go_with_the_gaps(command, gapped, tmp_path, seen):
    weights = np.arange(120) % 3
    columns = {"a": gapped[:, 0], "n": weights, "b": gapped[:, 1]}
    polars.DataFrame(columns).write_csv(tmp_path / "w.csv")
    command("fit", tmp_path / "w.csv", *QUICK, "--weights", "n", "--missing", "fit")
    command("fit", tmp_path / "w.csv", *QUICK, "--weights", "n", "--missing", "drop")
    np.testing.assert_array_equal(seen[0].weight, weights)
    np.testing.assert_array_equal(seen[1].x, gapped[np.isfinite(gapped).all(1)])


def test_rows_with_gaps_are_dropped(command, gaps, gapped, seen):
    _, _, err = command("fit", gaps, *QUICK, "--columns", "width,height", "--missing", "drop")
    whole = gapped[np.isfinite(gapped).all(1)]
    np.testing.assert_array_equal(seen[0].x, whole)
    left_out = 120 - len(whole)
    assert err.splitlines()[0] == (f"jaxgmm: {gaps}: left out, with a missing value: {left_out} of 120 rows")


def test_gaps_are_drawn(command, gaps, tmp_path):
    picture = tmp_path / "p.png"
    words = ("--columns", "width,height", "--missing", "fit", "--plot", picture)
    code, _, err = command("fit", gaps, *QUICK, *words)
    assert code == 0
    assert err.splitlines()[-1] == f"jaxgmm: drew {picture}"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


UNUSABLE_GAPS = [
    ("fit", "a,b\n1,2\n3,oops\n,6\n", (), "column 'b', row 2: 'oops' is not a number; drop the row"),
    ("fit", "a,b\n1,2\n,7\n3,inf\n,6\n", (), "column 'b', row 3: the value is inf; drop the row"),
    ("fit", "a,b\n1,NA\n3,\n5,NA\n", ("--columns", "a,b"), "column 'b' has no value; leave it out"),
    ("fit", "a,b,w\n1,,1\n3,,2\n5,6,0\n", ("--weights", "w"), "column 'b' has no value in a row with weight"),
    ("fit", "a,b\n1,x\n3,y\n5,\n", ("--columns", "a,b"), "column 'b' is not numeric: row 1 holds 'x'"),
    ("fit", "a,w\n1,1\n,1\n3,\n4,1\n", ("--weights", "w"), "column 'w', row 3: .* missing; drop the row or"),
    ("fit", "a,b\n1,2\n,\n,\n3,4\n", (), "2 rows are too few for 3 components"),
    ("drop", "a,b\n1,\n3,\n,6\n", ("--columns", "a,b"), "every row has a missing value; use --missing fit"),
    ("drop", "a,w\n1,0\n,1\n3,0\n", ("--weights", "w"), "every row with weight has a missing value"),
    ("drop", "a,b\n1,2\n3,\n,6\n7,8\n", (), "2 rows are too few for 3 components"),
    ("drop", "a,b\n1,2\n3,oops\n5,6\n", (), "column 'b', row 2: 'oops' is not a number"),
    ("mean", "a,b\n1,2\n", (), "'mean'.*error"),
]


def test_gaps_that_cannot_be_fitted(command, tmp_path):
    for missing, content, words, match in UNUSABLE_GAPS:
        path = put(tmp_path, content)
        code, out, err = command(
            "fit", path, *QUICK, *words, "--missing", missing, "--out", tmp_path / "m.npz"
        )
        assert (code, out) == (2, ""), content
        assert err.count("\n") == 1, err
        assert re.search(match, err), err
        assert os.listdir(tmp_path) == ["data.csv"]


def test_predict_goes_by_the_values_that_are_there(command, model, gaps, gapped, monkeypatch):
    from jaxgmm.cli import commands

    code, out, err = command("predict", model, gaps)
    assert (code, out) == (2, "")
    assert "column 'width', row 1: the value is missing (and in 20 more rows); use --missing fit, " in err
    code, out, err = command("predict", model, gaps, "--missing", "fit")
    assert (code, err) == (0, "")
    frame = polars.read_csv(io.StringIO(out))
    there = np.isfinite(gapped)
    normal = scipy.stats.norm([[[0.0, 0.0], [8.0, 50.0]]], np.array([[[1.0], [2.0]]]))
    terms = np.where(there[:, None], normal.logpdf(np.nan_to_num(gapped)[:, None]), 0)
    joint = np.log([0.25, 0.75]) + terms.sum(2)
    log_density = scipy.special.logsumexp(joint, axis=1)
    np.testing.assert_array_equal(frame["label"], joint.argmax(1))
    np.testing.assert_allclose(frame["log_density"], log_density, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(frame["responsibility"], np.exp(joint.max(1) - log_density), rtol=1e-6)
    monkeypatch.setattr(commands, "_ROWS_AT_ONCE", 50)
    assert command("predict", model, gaps, "--missing", "fit")[1] == out


def test_one_row_may_have_one_value(command, model, tmp_path):
    # Of an empty column in a CSV file nobody can tell the type.
    path = put(tmp_path, "width,height\n7.5,\n")
    code, out, _ = command("predict", model, path, "--missing", "fit")
    assert (code, out.splitlines()[1].split(",")[0]) == (0, "1")
    code, out, _ = command("impute", model, path)
    assert code == 0
    assert out.startswith("width,height\n7.5,49.9")


@pytest.fixture
def tilted(tmp_path):
    """A model by which one column says something of the other."""
    covariances = [[[1.0, 1.5], [1.5, 4.0]], [[1.0, -0.5], [-0.5, 1.0]]]
    params = jaxgmm.make_params([0.25, 0.75], [[0.5, 0.0], [8.0, 50.0]], covariances)
    save(tmp_path / "tilted.npz", params, columns=["width", "height"])
    return str(tmp_path / "tilted.npz")


def cells(text):
    return list(csv.reader(io.StringIO(text)))


def filled_by(params, gapped, key=None):
    with x64(True):
        return np.asarray(jaxgmm.impute(params, gapped, key))


def test_impute_fills_the_gaps_and_keeps_all_else(command, tilted, gaps, gapped, tmp_path):
    path = tmp_path / "filled.csv"
    code, out, err = command("impute", tilted, gaps, "--out", path)
    assert (code, out) == (0, "")
    missing = np.isnan(gapped)
    counts = f"{missing.sum()} of 240 values are missing, in {missing.any(1).sum()} of 120 rows"
    assert err == f"jaxgmm: {gaps}: {counts}; filled in\n"
    before, after = (pathlib.Path(name).read_text() for name in (gaps, path))
    wanted = cells(before)
    for (i, j), value in np.ndenumerate(filled_by(load(tilted), gapped)):
        if missing[i, j]:
            wanted[i + 1][1 + 2 * j] = repr(float(value))
    assert cells(after) == wanted
    lines = zip(before.splitlines()[1:], after.splitlines()[1:], missing.any(1), strict=True)
    assert all((old == new) != gap for old, new, gap in lines)
    assert command("impute", tilted, gaps)[1] == after
    code, again, err = command("impute", tilted, path)
    assert (code, again, err) == (0, after, f"jaxgmm: {path}: no value is missing\n")


def test_impute_draws(command, tilted, gaps, gapped, tmp_path):
    path = tmp_path / "draws.parquet"
    assert command("impute", tilted, gaps, "--draws", "3", "--seed", "5", "--out", path)[0] == 0
    frame = polars.read_parquet(path)
    assert frame.columns == ["id", "width", "kind", "height", "draw"]
    assert frame["draw"].to_list() == [1] * 120 + [2] * 120 + [3] * 120
    found = frame["width", "height"].to_numpy().reshape(3, 120, 2)
    key = jax.random.key(5)
    for i in range(3):
        wanted = filled_by(load(tilted), gapped, jax.random.fold_in(key, i))
        np.testing.assert_allclose(found[i], wanted, rtol=1e-12)
    assert (found[0] == found[1])[np.isfinite(gapped)].all()
    assert not (found[0] == found[1])[np.isnan(gapped)].any()
    first = command("impute", tilted, gaps, "--draws", "1", "--seed", "5")[1]
    assert [row[-1] for row in cells(first)] == ["draw"] + ["1"] * 120
    assert command("impute", tilted, gaps, "--draws", "1", "--seed", "6")[1] != first


def test_impute_in_other_formats(command, tilted, gapped, tmp_path):
    wanted = filled_by(load(tilted), gapped)
    np.save(tmp_path / "gaps.npy", gapped)
    assert command("impute", tilted, tmp_path / "gaps.npy", "--out", tmp_path / "filled.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "filled.npy"), wanted, rtol=1e-12)
    # An integer column with gaps becomes one of real numbers; other types stay.
    width, height = (polars.Series(column, nan_to_null=True) for column in gapped.round().T)
    frame = polars.DataFrame(
        {
            "height": height.cast(polars.Int64),
            "day": polars.Series(["2020-01-01"] * 120).str.to_date(),
            "width": width.cast(polars.Float32),
        }
    )
    frame.write_parquet(tmp_path / "gaps.parquet")
    assert command("impute", tilted, tmp_path / "gaps.parquet", "--out", tmp_path / "filled.parquet")[0] == 0
    filled = polars.read_parquet(tmp_path / "filled.parquet")
    assert filled.schema == {"height": polars.Float64, "day": polars.Date, "width": polars.Float32}
    wanted = filled_by(load(tilted), gapped.round())
    np.testing.assert_allclose(filled["width", "height"].to_numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_impute_keeps_the_bytes_of_other_encodings(command, model, tmp_path):
    path = put(tmp_path, "width,height,caf\xe9\n1.50,,\xfc\n".encode("latin-1"))
    assert command("impute", model, path, "--out", tmp_path / "filled.csv")[0] == 0
    first, second = (tmp_path / "filled.csv").read_bytes().splitlines()
    assert first == "width,height,caf\xe9".encode("latin-1")
    assert second.startswith(b"1.50,")
    assert second.endswith(b",\xfc")


def test_impute_that_cannot_be_done(command, model, gaps, tmp_path):
    taken = put(tmp_path, "width,height,draw\n1,,2\n", "taken.csv")
    text = put(tmp_path, "width,height\n1,2\noops,\n3,4\n", "text.csv")
    before = sorted(os.listdir(tmp_path))
    cases = [
        ((model, gaps, "--out", gaps), "would overwrite the data"),
        ((model, gaps, "--out", tmp_path / "f.txt"), r"must end in \.csv, \.parquet, \.npy"),
        (
            (model, gaps, "--out", tmp_path / "f.npy"),
            "holds numbers only, and column 'kind' of .* has others",
        ),
        ((model, taken, "--draws", "2"), "has a column called 'draw' itself"),
        ((model, text), "column 'width', row 2: 'oops' is not a number"),
        ((model, gaps, "--columns", "width"), "was fitted to 2"),
        ((model, gaps, "--draws", "0"), "x>=1"),
        ((tmp_path / "no.npz", gaps), "no such file"),
    ]
    for words, match in cases:
        code, out, err = command("impute", *words)
        assert (code, out) == (2, ""), words
        assert err.count("\n") == 1, err
        assert re.search(match, err), err
        assert sorted(os.listdir(tmp_path)) == before


def test_impute_by_a_model_without_draws(command, gaps, tmp_path):
    heavy = jaxgmm.make_params([1.0], [[0.0, 0.0]], [1.0], "student_t(spherical)")
    save(tmp_path / "t.npz", heavy, columns=["width", "height"])
    assert command("impute", tmp_path / "t.npz", gaps)[0] == 0
    code, out, err = command("impute", tmp_path / "t.npz", gaps, "--draws", "2")
    assert (code, out) == (2, "")
    assert "t.npz: draws need Gaussian components" in err


# --- mistakes: one line, status 2, nothing written


UNUSABLE = [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b\n", "no rows of data"),
        ("1,2\n3,4\n", "the first line holds numbers; it must name the columns"),
        ("s,t\nx,y\n", "no numeric column among s, t"),
        ("a,b\n1,2,3\n", "row 1 has 3 fields, the header 2"),
        ("a,b\n1,2\n3,4\n5,6,7\n", "row 3 has 3 fields, the header 2"),
        ("a,b\n1,2\n,3\n4,5\n", "use --missing fit, drop the row, fill it in, or leave .* with --columns b"),
        ("a,b\n1,2\nNA,3\n,5\n6,7\n8,9\n", r"row 2: .*\(and in 1 more row\); use .*, fill them in"),
        ("a,b\n1,2\nnan,3\n4,5\n", "column 'a', row 2: the value is missing"),
        ("a\n1\n\n2\n", "column 'a', row 2: the value is missing; use --missing fit, drop the row or fill"),
        ("a,b\n1,2\n3\n4,5\n", "column 'b', row 2: the value is missing"),
        ("a,b\n1,2\n3,oops\n5,6\n", "column 'b', row 2: 'oops' is not a number"),
        ("a,b\n1,2\n3,-inf\n5,6\n", "column 'b', row 2: the value is -inf"),
        ("a,b\n1,2\n3,1e999\n5,6\n", "column 'b', row 2: the value is inf"),
        ("a;b\n1,5;2\n2,5;3\n", "column 'a' has numbers with commas, such as '1,5'"),
        ('a,b\n"1,234",2\n"2,345.6",3\n', "column 'a' has numbers with commas"),
        ("a, a\n1,2\n3,4\n", "columns 1 and 2 have the same name, 'a'"),
        ("\na,b\n1,2\n3,4\n", "the first line is blank; it must name the columns"),
        ("a,b\n1,2\n", "too few"),
    ]  # fmt: skip


def test_data_that_cannot_be_fitted(command, tmp_path):
    for content, match in UNUSABLE:
        path = put(tmp_path, content)
        code, out, err = command("fit", path, *QUICK, "--out", tmp_path / "m.npz")
        assert (code, out) == (2, ""), content
        assert err.startswith(f"jaxgmm: {path}: "), err
        assert err.count("\n") == 1, err
        assert re.search(match, err), err
        assert os.listdir(tmp_path) == ["data.csv"]


def test_data_that_cannot_be_read(command, data, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != data)  # root may read everything
    assert command("fit", data) == (2, "", f"jaxgmm: {data}: permission denied\n")


def test_other_formats_that_cannot_be_fitted(command, tmp_path):
    def npy(array):
        content = io.BytesIO()
        np.save(content, array, allow_pickle=True)
        return content.getvalue()

    noise = np.random.default_rng(0).bytes(2000)
    cases = {
        "text.txt": (b"a,b\n1,2\n", "the name must end in"),
        "noise.parquet": (noise, "not a readable parquet file"),
        "noise.csv": (noise, "jaxgmm"),
        "noise.npy": (noise, "not an npy file"),
        "short.npy": (npy(np.zeros((50, 2)))[:200], "damaged"),
        "huge.npy": (
            npy(np.zeros((9, 2))).replace(b"(9, 2)", b"(9999999999999, 2)")[:128],
            "damaged|too large",
        ),
        "object.npy": (npy(np.array([[1, "a"]], object)), "it holds Python objects"),
        "one.npy": (npy(np.zeros(5)), r"must be 2-D \(rows, columns\), its shape is \(5,\).*reshape"),
        "three.npy": (npy(np.zeros((2, 2, 2))), r"its shape is \(2, 2, 2\)"),
        "none.npy": (npy(np.zeros((0, 2))), "empty"),
        "nothing.npy": (b"", "the file is empty"),
        "nothing.parquet": (b"", "the file is empty"),
        "complex.npy": (npy(np.zeros((5, 2), complex)), "real numbers, not complex128"),
        "bool.npy": (npy(np.zeros((5, 2), bool)), "real numbers, not bool"),
        "nan.npy": (npy(np.array([[1, 2], [3, np.nan], [4, 5]])), "column 'x2', row 2: the value is missing"),
    }
    for name, (content, match) in cases.items():
        path = put(tmp_path, content, name)
        code, out, err = command("fit", path, *QUICK)
        assert (code, out) == (2, ""), name
        assert err.startswith(f"jaxgmm: {path}: "), err
        assert re.search(match, err), err
        assert err.count("\n") == 1, err


MISTAKES = [
    (("--columns", "widht"), "no column 'widht'; did you mean 'width'?"),
    (("--columns", "HEIGHT"), "no column 'HEIGHT'; did you mean 'height'?"),
    (("--columns", "zzzz"), "no column 'zzzz'; it has width, kind, height"),
    (("--columns", "kind,width"), "column 'kind' is not numeric: row 1 holds 'x'"),
    (("--columns", "width,width"), "a name twice"),
    (("--columns", "width,,height"), "an empty name"),
    (("--weights", "kind"), "column 'kind' is not numeric"),
    (("--weights", "widht"), "did you mean 'width'?"),
    (("--weights", "width"), r"column 'width', row \d+: the weight -[\d.]+ is negative"),
    (("--weights", "width", "--columns", "width"), "is also among --columns"),
    (("-k", "121"), "120 rows are too few for 121 components"),
    (("-k", "0"), "'0' is not a number"),
    (("-k", "3:1"), "'3:1' is not a number"),
    (("-k", "two"), "'two' is not a number"),
    (("-k", "1:99999999999"), "is not a number"),
    (("--covariance", "fulll"), "did you mean 'full'?"),
    (("--criterion", "dic"), "'dic'"),
    (("--criterion", "cv"), "--criterion cv needs the tournament: leave --n-init out"),
    (("--folds", "1"), "x>=2"),
    (("--prior", "weak"), "'weak'"),
    (("--n-init", "0"), "x>=1"),
    (("--tol", "nan"), "'nan' is not a finite number"),
    (("--reg-covar", "-1"), "x>=0"),
    (("--max-iter", "x"), "not a valid integer"),
    (("--plto", "x.png"), "No such option.*--plot"),
    (("--plot", "x.bmp"), r"must end in \.png, \.pdf, \.svg"),
    (("--plot", "no/where/x.png"), "the directory .*no/where does not exist"),
    (("--out", "m.csv"), r"must end in \.npz"),
    (("--out", "folder.npz"), "is a directory"),
    (("--out", "pipe.npz"), "not a regular file"),
    (("extra",), "unexpected extra argument"),
]


def test_options_that_cannot_be_used(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.npz")
    os.mkfifo("pipe.npz")
    for arguments, match in MISTAKES:
        code, out, err = command("fit", data, *QUICK, *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.count("\n") == 1, err
        assert re.search(match, err), err
        assert sorted(os.listdir()) == ["data.csv", "folder.npz", "pipe.npz"]


def test_nothing_is_written_over(command, data, model, tmp_path):
    code, _, err = command("predict", model, data, "--out", data)
    assert code == 2
    assert "would overwrite the data" in err
    link = tmp_path / "link.csv"
    link.symlink_to(data)
    assert command("predict", model, data, "--out", link)[0] == 2
    odd = put(tmp_path, "a,b\n1,2\n3,5\n", "data.npz.csv")
    os.symlink(odd, tmp_path / "odd.npz")
    assert command("fit", odd, *QUICK, "--out", tmp_path / "odd.npz")[0] == 2


def test_mistyped_commands(command):
    code, _, err = command("fti", "x.csv")
    assert code == 2
    assert "No such command 'fti'" in err
    code, _, err = command("fit")
    assert code == 2
    assert err == "jaxgmm: Missing argument 'DATA'.\n"
    code, _, err = command("fit", "nowhere.csv")
    assert (code, err) == (2, "jaxgmm: nowhere.csv: no such file\n")


def test_a_directory_that_cannot_be_written(command, data, tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    # Root may write anywhere, and tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != os.path.realpath(folder))
    code, _, err = command("fit", data, *QUICK, "--out", folder / "m.npz")
    assert code == 2
    assert "not writable" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "p.png"), KeyboardInterrupt()])
def test_no_partial_file_where_writing_fails(command, data, tmp_path, monkeypatch, error):
    def fail(figure, stream, **_):
        stream.write(b"half a picture")
        raise error

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    code, _, err = command("fit", data, *QUICK, "--plot", tmp_path / "p.png")
    assert code == (2 if isinstance(error, OSError) else 130)
    assert err.splitlines()[-1] == (
        "jaxgmm: p.png: No space left on device" if isinstance(error, OSError) else "jaxgmm: interrupted"
    )
    assert os.listdir(tmp_path) == ["data.csv"]


# --- reading tables


SPELLINGS = [
    "a,b,c\n1,2,x\n3.5,4,y\n",
    "a;b;c\r\n1;2;x\r\n3.5;4;y\r\n",
    "a\tb\tc\n1\t2\tx\n3.5\t4\ty\n",
    "\ufeffa,b,c\n1,2,x\n3.5,4,y\n",
    "a, b, c\n1, 2, x\n3.5, 4, y\n",
    '"a","b","c"\n"1","2","x"\n"3.5","4","y"\n',
    "a,b,c\n1,2,x\n3.5,4,y\n\n\n",
    "a,b,c\r\n1,2,x\r\n3.5,4,y\r\n\r\n",
    "a,b,c\n1,2,x\n3.5,4,y",
    "a,b,c\n1e0,+2,x\n35e-1,4.0,y\n",
    "a,b,c\n1,2,caf\xe9\n3.5,4,y\n".encode("latin-1"),
]


def test_ways_to_write_a_csv(tmp_path):
    for content in SPELLINGS:
        table = read(put(tmp_path, content))
        assert table.names == ["a", "b", "c"]
        assert table.default_columns(None) == (["a", "b"], ["left out, not numeric: c"])
        np.testing.assert_array_equal(table.matrix(["a", "b"]), [[1, 2], [3.5, 4]])


def test_parquet_types(tmp_path):
    frame = polars.DataFrame(
        {
            "whole": [1, 2, 4],
            "real": [0.5, 1.5, 2.5],
            "text": ["a", "b", "c"],
            "digits": ["1", "2", "7"],
            "truth": [True, False, True],
            "money": polars.Series(["1.25", "2.50", "3.75"]).cast(polars.Decimal(10, 2)),
            "day": polars.Series(["2020-01-01"] * 3).str.to_date(),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = read(str(tmp_path / "t.parquet"))
    names, notes = table.default_columns(None)
    assert names == ["whole", "real", "digits", "money"]
    assert notes == ["left out, not numeric: text, truth, day"]
    assert table.matrix(names)[1].tolist() == [2, 1.5, 2, 2.5]


def test_a_column_that_numbers_the_rows_is_left_out(tmp_path):
    table = read(put(tmp_path, ",x,y\n1,5,1\n2,7,2\n3,6,3\n"))
    names, notes = table.default_columns(None)
    assert names == ["x", "y"]
    assert "only numbers the rows: column 1" in notes[0]
    assert table.matrix(["column 1"]).shape == (3, 1)
    alone = read(put(tmp_path, "t\n1\n2\n3\n"))
    assert alone.default_columns(None) == (["t"], [])


def test_mostly_numbers_is_a_number_column(tmp_path):
    table = read(put(tmp_path, "a,b\n1,x\n2,3\noops,y\n4,\n"))
    assert table.is_numeric("a")
    assert not table.is_numeric("b")


def test_names_cannot_speak_to_the_terminal(tmp_path):
    assert read(put(tmp_path, "\x1b[31mred,[bold]b\n1,2\n")).names == ["?[31mred", "[bold]b"]


def test_names_with_markup_are_printed_as_they_are(command, tmp_path, blobs):
    rows = "".join(f"{x},{y}\n" for x, y in blobs)
    path = put(tmp_path, '"[red]a,b[/red]",$x$\n' + rows)
    code, out, _ = command("fit", path, *QUICK, "--plot", tmp_path / "p.pdf")
    assert code == 0
    assert "[red]a,b[/red]" in out


def test_writing_to_stdout_is_csv(capfdbinary):
    write(None, {"a": np.arange(2), "b c": np.array([0.1, 1e-20])})
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"a,b c\n0,0.1\n1,1e-20\n"


def test_components():
    for text, sizes in [
        ("3", (3,)),
        ("1:4", (1, 2, 3, 4)),
        ("1,2,5", (1, 2, 5)),
        ("5,1:2,2", (1, 2, 5)),
        (" 2 , 3", (2, 3)),
    ]:
        with case(text, sizes):
            assert integers(None, None, text) == sizes


def test_names_and_spelling():
    assert name_list(None, None, 'a, "b,c" ,d') == ("a", "b,c", "d")
    assert [spell(k) for k in [(3,), (1, 2), (1, 2, 3), (1, 2, 5)]] == ["3", "1, 2", "1..3", "1, 2, 5"]


def test_user_errors_end_with_2():
    assert UserError("x").exit_code == 2


# --- the process: signals, extras, the cache, pipes


WAITING = """
import sys, time
from jaxgmm.cli import fitting, main
def wait(*_):
    sys.stdout.write("fitting\\n"); sys.stdout.flush(); time.sleep(60)
fitting.fit_structure = wait
main(sys.argv[1:])
"""


def test_ctrl_c_during_a_fit_ends_it_and_leaves_no_file(data, tmp_path):
    outputs = ["--out", str(tmp_path / "m.npz"), "--plot", str(tmp_path / "p.png"), "--columns", "width"]
    outputs += ["--covariance", "full"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, "fit", data, *outputs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "fitting\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err == "jaxgmm: interrupted\n"
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_was_lost_ends_the_work_all_the_same(monkeypatch, number):
    """As one is that strikes while Python runs a finaliser, or between two steps of a lock of `threading`."""
    stop = threading.Event()
    monkeypatch.setattr(signals, "_received", [])

    def interrupted():
        signals._received.append(number)  # the handler ran, and what it raised came to nothing
        stop.wait(60)

    with pytest.raises(SystemExit):
        fitting.run_steps([("a", interrupted)])
    stop.set()
    assert signals.answer() == ((130, "interrupted") if number == signal.SIGINT else (143, ""))


def test_an_error_that_an_interrupt_turned_into_is_an_interrupt(monkeypatch):
    def broken(_):
        signals._received.append(signal.SIGINT)
        raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(cli, "_answer", broken)
    assert cli._run([]) == (130, "interrupted")
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(cli, "_answer", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli._run([])


def test_work_in_order_and_errors_from_it():
    assert fitting.run_steps([("a", lambda: 1), ("b", lambda: 2)]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        fitting.run_steps([("a", lambda: 1 / 0)])


def test_progress_is_for_terminals_only(capfd):
    import time

    assert fitting.run_steps([("a", lambda: time.sleep(0.3)), ("b", lambda: 2)], patience=0.05)[1] == 2
    assert capfd.readouterr() == ("", "")


def test_results_do_not_depend_on_the_cache(process, command, model, data, tmp_path):
    """Not on whether programs are kept, nor on whether they are there."""
    first, again = (process("predict", model, data, JAXGMM_CACHE=str(tmp_path / "programs")) for _ in "ab")
    assert (first.returncode, first.stdout, first.stderr) == command("predict", model, data)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    if AVAILABLE:
        assert os.listdir(tmp_path / "programs")


def test_a_terminal_without_unicode_gets_other_signs(command, data, monkeypatch):
    _, wanted, _ = command("fit", data, *QUICK)
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert command("fit", data, *QUICK)[0] == 0
    shown = content.getvalue().decode("ascii")
    assert "+/-" in shown
    numbers = re.compile(r"-?\d+\.\d+")
    assert numbers.findall(shown) == numbers.findall(wanted)


@pytest.mark.parametrize(
    ("missing", "extra"), [("click", "cli"), ("rich", "cli"), ("polars", "cli"), ("matplotlib", "plot")]
)
def test_a_missing_extra_is_named(command, monkeypatch, data, tmp_path, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    for module in ("report", "commands", "tables") if missing == "polars" else ("report",):
        monkeypatch.delitem(sys.modules, f"jaxgmm.cli.{module}", raising=False)
    monkeypatch.setattr(cli, "report", None, raising=False)
    monkeypatch.delattr(cli, "report")
    if missing == "polars":
        assert command("--help")[0] == 0  # without its import, which takes long
    code, out, err = command("fit", data, *QUICK, "--columns", "width", "--plot", tmp_path / "p.png")
    assert (code, out) == (2, "")
    assert err == f"jaxgmm: this needs {missing}: pip install 'jaxgmm[{extra}]'\n"


def test_the_library_does_not_load_the_command_line(process):
    code = "import sys, jaxgmm, jaxgmm.io; jaxgmm.fit; sys.stdout.write(' '.join(sys.modules))"
    loaded = set(process(code=code).stdout.split())
    assert "jaxgmm.em" in loaded
    assert not loaded & {"click", "rich", "polars", "matplotlib"}


def test_a_reader_that_stops_early(model):
    with subprocess.Popen(
        [sys.executable, "-m", "jaxgmm.cli", "sample", model, "200000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout.readline() == b"width,height\n"
        running.stdout.close()
        assert running.stderr.read() == b""


def test_a_request_too_large_for_memory_is_one_line(command, monkeypatch, data):
    def exhausted(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9999999999999 bytes.")

    monkeypatch.setattr(fitting, "fit_structure", exhausted)
    code, _, err = command("fit", data, *QUICK)
    assert (code, err.splitlines()[-1]) == (2, "jaxgmm: not enough memory")


# --- Texts written in other ways -------------------------------------------------------------------------


def test_texts_in_other_formats(tmp_path, monkeypatch):
    plain = "a,b,c\n1,2,é\n3.5,4,y\n"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(plain.encode())))
    german = Format(decimal_comma=True)
    assert read("-").path == "standard input"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(plain.encode())))
    frame = polars.DataFrame({"a": [1.0, 3.5], "b": [2, 4], "c": ["é", "y"]})
    frame.write_ipc(tmp_path / "t.feather")
    tables = [
        read("-"),
        read(put(tmp_path, gzip.compress(plain.encode()), "t.csv.gz")),
        read(put(tmp_path, gzip.compress(plain.replace(",", "\t").encode()), "t.tsv.gz")),
        read(put(tmp_path, plain.encode("utf-16"))),
        read(put(tmp_path, plain.encode("utf-32")), Format(encoding="utf-32")),
        read(put(tmp_path, plain.encode("cp1252"))),
        read(put(tmp_path, plain.replace(",", "|"))),
        read(put(tmp_path, plain.replace(",", "#")), Format(delimiter="#")),
        read(put(tmp_path, "a;b;c\n1;2;é\n3,5;4;y\n"), german),
        read(put(tmp_path, "a|b|c\n1|2|é\n3,5|4|y\n"), german),
        read(str(tmp_path / "t.feather")),
    ]
    for table in tables:
        assert table.names == ["a", "b", "c"]
        np.testing.assert_array_equal(table.matrix(["a", "b"]), [[1, 2], [3.5, 4]])
        assert table.columns["c"][0] == "é"
    bare = read(put(tmp_path, "1;2\n3,5;4\n"), Format(decimal_comma=True, header=False))
    assert (bare.names, bare.named) == (["x1", "x2"], False)
    np.testing.assert_array_equal(bare.matrix(bare.names), [[1, 2], [3.5, 4]])


def test_mistakes_in_the_format_of_a_text(command, tmp_path, data, monkeypatch):
    latin = put(tmp_path, "a,b\n1,é\n".encode("latin-1"), "latin.csv")
    numbers = put(tmp_path, "a;b\n1,5;2\n3,5;4\n", "comma.csv")
    for words, match in [
        ((data, "--delimiter", "::"), "--delimiter '::': it must be one character"),
        ((data, "--delimiter", "é"), "must be an ASCII character"),
        ((data, "--delimiter", ",", "--decimal-comma"), "the comma cannot be the delimiter too"),
        ((data, "--encoding", "klingon"), "no such encoding; such as utf-8, latin-1"),
        ((latin, "--encoding", "ascii"), "not readable as ascii"),
        ((put(tmp_path, b"\x1f\x8bno", "t.csv.gz"),), "not readable as a gzip file"),
        ((put(tmp_path, b"no table", "t.feather"),), "not a readable feather file"),
        ((put(tmp_path, b"no table", "t.npy"), "--no-header"), "and --encoding are for .csv and .tsv"),
        ((numbers,), "has numbers with commas, such as '1,5'; give --decimal-comma"),
        ((put(tmp_path, "1,2\n3,4\n"),), "it must name the columns, or give --no-header"),
    ]:  # fmt: skip
        code, out, err = command("fit", *words)
        assert (code, out) == (2, ""), words
        assert re.search(match, err), err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    err = command("fit", put(tmp_path, b"a book", "t.xlsx"))[2]
    assert "Excel files need fastexcel: pip install fastexcel" in err


def test_names_in_advice_are_quoted_for_a_shell(tmp_path):
    table = read(put(tmp_path, 'a,"b, or c",d e\n,1,2\n3,4,5\n'))
    with pytest.raises(UserError, match=re.escape("""--columns '"b, or c",d e'""")):
        table.matrix(table.names)


def test_predict_beside_the_columns_of_the_table(command, model, data, tmp_path):
    text = pathlib.Path(data).read_text().replace(",", ";").replace(".", ",")
    path = put(tmp_path, text.encode("utf-16"), "german.csv")
    out = tmp_path / "labelled.csv"
    words = ("--keep", "--decimal-comma", "--out", out)
    assert command("predict", model, path, *words) == (0, "", "")
    labels = polars.read_csv(io.StringIO(command("predict", model, data)[1]))
    before, after = text.splitlines(), out.read_text("utf-16").splitlines()
    assert after[0] == before[0] + ";label;responsibility;log_density"
    for old, new, row in zip(before[1:], after[1:], labels.iter_rows(), strict=True):
        assert new.startswith(f"{old};{row[0]};{str(row[1]).replace('.', ',')};")
    other = tmp_path / "labelled.parquet"
    assert command("predict", model, data, "--keep", "--out", other)[0] == 0
    assert polars.read_parquet(other).equals(polars.read_csv(data).hstack(labels))
    again = command("predict", model, other, "--keep", "--out", tmp_path / "twice.csv")
    assert again[0] == 2
    assert "it has a column called 'label' itself; leave --keep out" in again[2]


def test_impute_writes_a_text_as_it_was(command, tilted, tmp_path):
    path, out = put(tmp_path, "0,5;1\n;20\n8,25;\n"), tmp_path / "filled.csv"
    words = ("--decimal-comma", "--no-header", "--columns", "x1,x2", "--out", out)
    assert command("impute", tilted, path, *words)[0] == 0
    lines = out.read_text().splitlines()
    filled = filled_by(load(tilted), np.array([[0.5, 1], [np.nan, 20], [8.25, np.nan]]))
    first, last = (repr(float(v)).replace(".", ",") for v in (filled[1, 0], filled[2, 1]))
    assert lines == ["0,5;1", f"{first};20", f"8,25;{last}"]


# --- Results ---------------------------------------------------------------------------------------------


def test_json_is_what_the_tables_say(command, data, tmp_path):
    path = tmp_path / "m.npz"
    code, out, _ = command("fit", data, *QUICK, "--json", "--out", path)
    found, tables = json.loads(out), command("fit", data, *QUICK)[1]
    assert code == 0
    assert (found["columns"], found["n_rows"], found["criterion"]) == (["width", "height"], 120, "bic")
    assert [fit["n_components"] for fit in found["fits"]] == [1, 2, 3]
    for fit in found["fits"]:
        assert f"{fit['log_likelihood']:.4f}" in tables
        assert f"{fit['bic']:.1f}" in tables
    best, params = found["best"], load(path)
    assert best["bic"] == min(fit["bic"] for fit in found["fits"])
    np.testing.assert_allclose(best["weights"], params.weights, rtol=1e-6)
    np.testing.assert_allclose(best["means"], params.means, rtol=1e-6)
    assert np.shape(best["covariances"]) == (2, 2, 2)
    # The largest component comes first, in files and in tables.
    np.testing.assert_allclose(best["weights"], [2 / 3, 1 / 3], atol=0.01)


def test_json_of_fits_that_failed_is_json(command, data, monkeypatch):
    failed = fitting.Cell("full", 1, 3, math.nan, {"bic": math.nan}, "NONFINITE", None)
    monkeypatch.setattr(fitting, "fit_structure", lambda *_: [failed])
    code, out, _ = command("fit", data, "--json")
    found = json.loads(out)
    assert (code, found["best"], found["fits"][0]["bic"]) == (1, None, None)


def test_one_column_fits_what_differs_once(command, data, monkeypatch):
    fitted = []

    def fit_structure(X, weight, name, sizes, options):
        fitted.append(name)
        return [fitting.Cell(name, 1, 2, math.nan, {"bic": math.nan}, "NONFINITE", None)]

    monkeypatch.setattr(fitting, "fit_structure", fit_structure)
    words = ("--covariance", "diag,tied,full,EVV,full-equal,student_t(full)")
    err = command("fit", data, "--columns", "width", *words)[2]
    assert fitted == ["diag", "tied", "full-equal", "student_t(full)"]
    assert f"one of {', '.join(fitted)}, and not fitted again: full, EVV" in err
    command("fit", data, *words)
    assert len(fitted) == 4 + 6
    command("fit", data, "--columns", "width", "--covariance", "all")
    assert fitted[4 + 6 :] == ["E", "V"]


def test_a_mistyped_option_does_not_wait_for_jax(process):
    code = (
        "import sys\nfrom jaxgmm.cli import _run\n"
        "code, message = _run(['fit', 'x.csv', '--componets', '3'])\n"
        "assert code == 2 and '--components' in message\n"
        "sys.stdout.write(' '.join({'jax', 'polars', 'rich'} & set(sys.modules)))"
    )
    assert process(code=code).stdout == ""
