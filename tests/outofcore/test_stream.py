"""A fit of data that are read in pieces is the fit of the whole."""

import errno
import io
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.exact import accumulate
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from jaxgmm.outofcore import _progress as progress
from jaxgmm.outofcore import _streaming_statistics as streaming_statistics
from jaxgmm.outofcore._host_em import Survey
from jaxgmm.outofcore._source import Piece
from tests.conftest import CORE, costly, dense, overlapping, start_from, x64

X, LABELS = overlapping(1300, 3, 3, seed=1)
W = np.random.default_rng(0).uniform(0.5, 2, 1300)
W[700] = 0
RARE = (pytest.mark.slow, pytest.mark.exhaustive)
CUTS = ((0, 370), (370, 371), (371, 1000), (1000, 1300))  # none of them where a chunk ends


def parts(shift=0.0, dtype=np.float64):
    return [((X[i:j] + shift).astype(dtype), W[i:j].astype(dtype)) for i, j in CUTS]


def apart(a, b, least=1e-3):
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(
        jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]  # fmt: skip
    # The history is −inf where there is none, in both at the same places.
    assert all((np.isfinite(x) == np.isfinite(y)).all() for x, y in pairs)
    pairs = [(x[np.isfinite(x)], y[np.isfinite(x)]) for x, y in pairs]
    return max(float(np.nanmax(np.abs(x - y) / (least + np.abs(x)), initial=0)) for x, y in pairs)


@pytest.mark.parametrize(
    ("structure", "kernel"),
    [
        ("full", "whitened"),
        *(pytest.param(n, "whitened", marks=pytest.mark.slow) for n in ("tied", "diag", "spherical")),
        *(pytest.param(n, "whitened", marks=pytest.mark.slow) for n in ("VEV", "factor(1)")),
        *(pytest.param(n, "quadratic", marks=pytest.mark.slow) for n in ("full", "tied")),
        *(pytest.param(n, "quadratic", marks=RARE) for n in ("diag", "spherical", "VEV")),
    ],
)
def test_it_is_the_fit_of_all_the_rows(double, structure, kernel):
    start = start_from(X + 30, LABELS, structure, np.float64)
    options = {"tol": 0.0, "max_iter": 8, "options": EMOptions(kernel=kernel)}
    whole = jaxgmm.fit(start, X + 30, W, **options)
    result = jaxgmm.fit_stream(start, parts(30.0), chunk_size=256, **options)
    assert int(result.n_iter) == 8
    assert apart(whole, result) < 1e-12


@pytest.fixture(scope="module")
def single():
    """A start and its streamed fit in float32."""
    start = start_from(X, LABELS, "full", np.float32)
    return start, jaxgmm.fit_stream(start, parts(dtype=np.float32), **CHUNKS)


# Few programs: all fits of this file in float32 have these chunks.
FAST = {"tol": 1e-4, "options": EMOptions(kernel="whitened")}
CHUNKS = {"chunk_size": 256, **FAST}


@pytest.mark.slow
def test_in_float32_to_rounding(single):
    start, result = single
    whole = jaxgmm.fit(start, X.astype(np.float32), W.astype(np.float32), **FAST)
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert abs(int(result.n_iter) - int(whole.n_iter)) <= 2
    assert apart(whole.params, result.params, 0.1) < 1e-4
    fixed = {"tol": 0.0, "max_iter": 10, "options": EMOptions(kernel="whitened")}
    whole = jaxgmm.fit(start, X.astype(np.float32), W.astype(np.float32), **fixed)
    result = jaxgmm.fit_stream(start, parts(dtype=np.float32), chunk_size=256, **fixed)
    assert apart(whole.params, result.params, 1.0) < 1e-5


@pytest.mark.slow
def test_both_kernels_in_turn(single, monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 1)
    start, whole = single
    seen = []
    result = jaxgmm.fit_stream(
        start,
        parts(dtype=np.float32),
        **{**CHUNKS, "options": EMOptions(kernel="auto")},
        progress=seen.append,
    )
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert apart(whole.params, result.params, 0.1) < 1e-4
    n = int(result.n_iter)
    history = np.asarray(result.history)
    assert np.isfinite(history[:n]).all()
    assert (history[n:] == -np.inf).all()
    assert (np.diff(history[:n]) > -1e-5).all()


# 2,000 small chunks, and a hundred million rows in chunks of the size that a fit takes.
@pytest.mark.parametrize(
    ("rows", "times"), [(1024, 2000), pytest.param(1 << 17, 763, marks=pytest.mark.slow)]
)
def test_sums_over_many_rows_are_right(single, rows, times):
    x = np.resize(X, (rows, 3)).astype(np.float32)

    class Long:
        n_features, columns = 3, None

        def __init__(self, times):
            self.times = times

        def chunks(self, rows):
            for i in range(self.times):
                yield Piece(x, None, "x", i * rows)

    start = jax.tree.map(jnp.asarray, single[0])

    def summed(times):
        survey = Survey(times * rows, float(times * rows), np.zeros(3), np.ones(3))
        frame = survey.context(jnp.asarray(1e-6, jnp.float32), None, start)
        return streaming_statistics.Passes(Long(times), survey, rows, np.dtype("f4")).moments(start, frame)

    many = summed(times)
    with x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), start)
        once = accumulate(wide, jnp.asarray(x, jnp.float64), None, block_size=min(rows, 4096))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(many), strict=True):
        size = np.abs(a).max()
        np.testing.assert_allclose(np.asarray(b, np.float64) / times, a, rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(np.asarray(many.weight, np.float64) / times, once.weight, rtol=1e-6)


class Dying:
    """Gives its arrays, and does something at the beginning of a certain pass."""

    def __init__(self, at, action):
        self.at, self.action, self.passes = at, action, -1

    def __call__(self):
        self.passes += 1  # opening looks at the first array: that is pass 0
        if self.passes == self.at:
            self.action()
        yield from parts(dtype=np.float32)


def fail():
    raise OSError(errno.EIO, "the disk is gone")


def test_an_interrupted_fit_goes_on_where_it_was(single, tmp_path):
    start = single[0]
    path = tmp_path / "fit.npz"
    never = Dying(-1, fail)
    whole = jaxgmm.fit_stream(start, never, **CHUNKS)
    kept = jaxgmm.outofcore.Checkpoint(path, every_iterations=2)
    with pytest.raises(OSError, match="the disk is gone"):
        jaxgmm.fit_stream(start, Dying(7, fail), checkpoint=kept, **CHUNKS)
    # Pass 1 is the survey, 2 … 6 were steps: the file holds step 4.
    source = Dying(-1, fail)
    result = jaxgmm.fit_stream(start, source, checkpoint=str(path), **CHUNKS)
    jax.tree.map(np.testing.assert_array_equal, whole, result)
    assert source.passes == never.passes - 4
    # A fit that has ended is only read.
    again = Dying(-1, fail)
    jax.tree.map(
        np.testing.assert_array_equal,
        whole,
        jaxgmm.fit_stream(start, again, checkpoint=str(path), **CHUNKS),
    )
    assert again.passes == never.passes - (int(whole.n_iter) + 1)
    with pytest.raises(ValueError, match=r"source\.chunk_size was 256 and is 128"):
        jaxgmm.fit_stream(start, again, checkpoint=str(path), **{**CHUNKS, "chunk_size": 128})
    with pytest.raises(ValueError, match="n_samples was 1300 and is 1000"):
        jaxgmm.fit_stream(start, parts(dtype=np.float32)[:3], checkpoint=str(path), **CHUNKS)


KILLED = """
import os, signal, sys
import jaxgmm
from tests.outofcore.test_stream import CHUNKS, LABELS, X, Dying
from tests.conftest import start_from
import numpy as np

source = Dying(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
checkpoint = jaxgmm.outofcore.Checkpoint(sys.argv[1], every_iterations=1)
result = jaxgmm.fit_stream(start_from(X, LABELS, "full", np.float32), source, checkpoint=checkpoint, **CHUNKS)
jaxgmm.save(sys.argv[3], result.params)
"""


@pytest.mark.slow
def test_a_fit_that_is_killed_ends_with_the_same_bits(tmp_path):
    def run(name, at):
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), str(at), str(tmp_path / f"{name}.out")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("whole", -1).returncode == 0
    assert run("killed", 6).returncode == -signal.SIGKILL
    assert (tmp_path / "killed").exists()
    assert not (tmp_path / "killed.out").exists()
    assert run("killed", 4).returncode == -signal.SIGKILL  # again, further on
    assert run("killed", -1).returncode == 0
    assert (tmp_path / "whole.out").read_bytes() == (tmp_path / "killed.out").read_bytes()


def test_data_that_go_wrong_leave_the_last_checkpoint(single, tmp_path):
    start = single[0]
    path = tmp_path / "fit.npz"
    kept = jaxgmm.outofcore.Checkpoint(path, every_iterations=1)
    rows = parts(dtype=np.float32)

    def spoil():
        rows[2][0][100, 1] = np.nan

    class Spoilt(Dying):
        def __call__(self):
            self.passes += 1
            if self.passes == self.at:
                self.action()
            yield from rows

    with pytest.raises(ValueError, match="array 2, row 100, column 1: must be finite"):
        jaxgmm.fit_stream(start, Spoilt(5, spoil), checkpoint=kept, **CHUNKS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="array 2, row 100, column 1: must be finite"):
        jaxgmm.fit_stream(start, Spoilt(-1, spoil), checkpoint=kept, **CHUNKS)
    assert path.read_bytes() == before
    del rows[3]
    rows[2][0][100, 1] = 0
    with pytest.raises(ValueError, match="n_samples was 1300 and is 1000"):
        jaxgmm.fit_stream(start, Spoilt(-1, spoil), checkpoint=kept, **CHUNKS)


def test_a_source_that_gives_other_rows_in_a_later_pass_is_refused(single):
    rows = parts(dtype=np.float32)
    with pytest.raises(ValueError, match=r"gave 1000 rows .* and 1300 rows .* in the first"):
        jaxgmm.fit_stream(single[0], Leaving(rows), **CHUNKS)


class Leaving(Dying):
    """Leaves out the last part from the third pass on."""

    def __init__(self, rows):
        self.rows, self.passes = rows, -1

    def __call__(self):
        self.passes += 1
        yield from self.rows[: 4 if self.passes < 3 else 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "tied", "spherical", "VEV"])
def test_incremental_sweeps_end_at_the_same_optimum(double, name):
    # Components that all structures can fit, or there are other optima.
    x = np.random.default_rng(0).normal(size=X.shape) + 2.5 * np.eye(3)[LABELS]
    start = start_from(x, LABELS, name, np.float64)
    exact = jaxgmm.fit(start, x, W, tol=1e-7, options=EMOptions(kernel="whitened"))
    seen = []
    result = jaxgmm.fit_stream(
        start, [(x[i:j], W[i:j]) for i, j in CUTS], chunk_size=256, tol=1e-7,
        options=EMOptions(kernel="whitened"), incremental=True, progress=seen.append,
    )  # fmt: skip
    assert int(result.status) == jaxgmm.Status.CONVERGED
    for a, b in zip(dense(exact.params), dense(result.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    likelihoods = [p.log_likelihood for p in seen]
    assert likelihoods[1] > likelihoods[0]


def test_structures_whose_moments_cannot_be_carried_have_no_sweeps():
    start = start_from(X, LABELS, "factor(1)", np.float32)
    with pytest.raises(ValueError, match=r"incremental=True needs .* 'factor\(1\)' keeps others"):
        jaxgmm.fit_stream(start, parts(dtype=np.float32), incremental=True)


@pytest.mark.parametrize("name", [costly(n, quick=["tied"]) for n in [*CORE, "VEV"]])
@pytest.mark.slow
def test_moments_about_other_parameters_are_those_summed_about_them(double, name):
    first = start_from(X, LABELS, name, np.float64)
    second, about_first = jaxgmm.em_step(first, X, W)
    resp = jnp.asarray(jaxgmm.responsibilities(first, X))
    wanted = accumulate(second, jnp.asarray(X), jnp.asarray(W), resp=resp, block_size=1300)
    got = change_of_reference.rebase(about_first, first, second)
    for field in ("weight", "first", "second"):
        np.testing.assert_allclose(getattr(got, field), getattr(wanted, field), rtol=1e-9, atol=1e-8)


def test_progress_is_told(single, capsys):
    seen = []
    result = jaxgmm.fit_stream(single[0], parts(dtype=np.float32), **CHUNKS, progress=seen.append)
    assert len(seen) == int(result.n_iter) + 1
    assert [p.n_samples for p in seen] == [1300] * len(seen)
    assert seen[-1].seconds_left == 0
    assert seen[3].seconds_left > 0
    np.testing.assert_allclose(seen[-1].log_likelihood, result.log_likelihood, rtol=1e-6)
    assert "log-likelihood" in str(seen[-1])
    jaxgmm.fit_stream(single[0], parts(dtype=np.float32), **CHUNKS, progress=True)
    said = capsys.readouterr()
    assert not said.out
    assert "first pass" in said.err


def test_on_a_terminal_one_line_is_written_over(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    reporter = progress.Reporter(True)
    for rows in (10, 20, 30):
        clock[0] += 0.15
        reporter.watch(rows)
    reporter.end()
    assert progress.sys.stderr.getvalue() == "\rfirst pass, 10 rows\rfirst pass, 30 rows\n"


def test_the_number_of_chunks_and_of_parts_compiles_nothing(single):
    jaxgmm.fit_stream(single[0], parts(dtype=np.float32), **CHUNKS)
    before = streaming_statistics._moments._cache_size()
    x = X.astype(np.float32)
    jaxgmm.fit_stream(single[0], [x[:500], x[500:512], x[512:900]], **CHUNKS)
    jaxgmm.fit_stream(single[0], x, **CHUNKS)
    assert streaming_statistics._moments._cache_size() == before


def test_arguments_are_checked(single, tmp_path):
    start = single[0]
    for wrong, kind, said in [
        ({"progress": 3}, TypeError, "progress must be"),
        ({"incremental": 3}, TypeError, "incremental must be"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"dtype": "int8"}, TypeError, "dtype must be"),
        ({"dtype": "float64"}, ValueError, "needs 64-bit JAX"),
        ({"options": "x"}, TypeError, "options must be"),
        ({"tol": -1}, ValueError, "tol must be"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be"),
        ({"checkpoint": tmp_path / "no" / "x"}, FileNotFoundError, "does not exist"),
        ({"columns": [0, 1]}, ValueError, "the 3 features of params; it has 2"),
    ]:
        with pytest.raises(kind, match=said):
            jaxgmm.fit_stream(start, X.astype(np.float32), **wrong)
    with pytest.raises(TypeError, match="params must be GMMParams"):
        jaxgmm.fit_stream(3, X)
