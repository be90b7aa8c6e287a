"""A fit of data that are read in pieces is the fit of the whole."""

import errno
import functools
import io
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import stats

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.kernels import quadratic
from jaxgmm.outofcore import Checkpoint
from jaxgmm.outofcore import _progress as progress
from jaxgmm.outofcore import _streaming_statistics as streaming_statistics
from tests.closed import dense
from tests.conftest import case, x64
from tests.outofcore import streams
from tests.outofcore.streams import (
    CHUNK,
    Passes,
    assert_same_bits,
    gap,
    parts,
    start,
    stream,
    streamed,
    weighted_parts,
)
from tests.problems import WEIGHT, X

PRIOR = jaxgmm.Prior(
    mean=np.array([1.0, 2.0, 3.0]), strength=20.0, dof=30.0, scale=np.array([9.0, 4.0, 1.0]),
    weight_concentration=np.array([50.0, 5.0, 1.0]),
)  # fmt: skip


@functools.cache
def whole():
    """The fit of all rows as one array, in float64."""
    with x64(True):
        return jax.block_until_ready(jaxgmm.fit(start("float64"), X))


@pytest.mark.parametrize("kernel", ["whitened", "quadratic"])
def test_it_takes_the_steps_of_fit(double, kernel):
    steps = {"tol": 0.0, "max_iter": 8}
    wanted = jaxgmm.fit(start("float64"), X, **steps)
    result = jaxgmm.fit_stream(
        start("float64"), parts("float64"), chunk_size=CHUNK, options=EMOptions(kernel=kernel), **steps
    )
    assert int(result.n_iter) == 8
    # The sums of the quadratic kernel lose the digits of the squared distances in components' widths, 1e3.
    assert gap(wanted, result) < {"whitened": 1e-12, "quadratic": 1e-9}[kernel]


def test_weights_and_a_prior_are_those_of_em_step(double):
    params = start("float64")
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHT, prior=PRIOR)
    result = jaxgmm.fit_stream(
        start("float64"), weighted_parts("float64"), prior=PRIOR, chunk_size=CHUNK, tol=0.0, max_iter=3,
        accelerate=False,
    )  # fmt: skip
    assert gap(params, result.params) < 1e-12


def test_in_float32_it_ends_where_fit_does():
    result = streamed()
    assert result.params.means.dtype == np.float32
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert gap(whole().params, result.params, 0.1) < 1e-4


def test_the_quadratic_kernel_hands_over_to_the_whitened_one(double, monkeypatch):
    monkeypatch.setattr(quadratic, "_LARGE", 1)
    result = jaxgmm.fit_stream(start("float64"), parts("float64"), chunk_size=CHUNK)
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert gap(whole().params, result.params, 0.1) < 1e-4
    n, history = int(result.n_iter), np.asarray(result.history)
    assert (history[n:] == -np.inf).all()
    # The kernels' sums differ by some 1e-10, as above, and so do likelihoods where one follows the other.
    assert (np.diff(history[:n]) > -1e-9).all()


def test_sums_over_many_chunks_keep_their_digits():
    """Plain sums in float32 over 400 equal chunks would be wrong by 3e-6 on average, and by 6e-6 at most."""
    rows = X[:CHUNK].astype(np.float32)
    result = stream(lambda: (rows for _ in range(400)), max_iter=1, reg_covar=0.0)
    weights, means, covariances = dense(start())
    joint = weights * np.stack(
        [stats.multivariate_normal(m, c).pdf(rows) for m, c in zip(means, covariances, strict=True)], 1
    )
    resp = joint / joint.sum(1, keepdims=True)
    wanted = resp.mean(0), resp.T @ rows / resp.sum(0)[:, None]
    gaps = rows[:, None] - wanted[1]
    variances = np.einsum("nk,nkd->kd", resp, gaps**2) / resp.sum(0)[:, None]
    wanted = (*wanted, variances[:, :, None] * np.eye(3))
    for a, b in zip(wanted, dense(result.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * np.abs(a).max())


def fail():
    raise OSError(errno.EIO, "the disk is gone")


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path):
    path, never = tmp_path / "fit.npz", Passes()
    undisturbed = stream(never)
    with pytest.raises(OSError, match="the disk is gone"):
        stream(Passes(7, fail), checkpoint=Checkpoint(path, every_iterations=2))
    # Pass 1 is the survey, 2 … 6 were steps: the file holds step 4.
    resumed = Passes()
    assert_same_bits(stream(resumed, checkpoint=str(path)), undisturbed)
    assert resumed.passes == never.passes - 4
    # A fit that has ended is only read.
    again = Passes()
    assert_same_bits(stream(again, checkpoint=str(path)), undisturbed)
    assert again.passes == never.passes - (int(undisturbed.n_iter) + 1)


KILLED = """
import os, signal, sys
import jaxgmm
from tests.outofcore.streams import Passes, stream
from tests.quick import compile_quickly

compile_quickly()
killing = Passes(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
kept = jaxgmm.outofcore.Checkpoint(sys.argv[1], every_iterations=1)
stream(killing, start=jaxgmm.load(sys.argv[2]), checkpoint=kept)
"""


def test_a_fit_that_is_killed_ends_with_the_same_bits(tmp_path):
    path, begun = tmp_path / "fit.npz", tmp_path / "start.npz"
    jaxgmm.save(begun, start())
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(begun)], capture_output=True, timeout=120, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    told = []
    result = stream(parts(), checkpoint=str(path), progress=told.append)
    assert told[0].n_iter == 5
    assert_same_bits(result, streamed())


def test_data_that_change_during_a_fit_are_refused_and_leave_the_last_checkpoint(tmp_path):
    kept, rows = Checkpoint(tmp_path / "fit.npz", every_iterations=1), parts()

    def spoil():
        rows[2][40, 1] = np.nan

    said = "array 2, row 40, column 1: must be finite"
    with pytest.raises(ValueError, match=said):
        stream(Passes(5, spoil, rows), checkpoint=kept)
    before = (tmp_path / "fit.npz").read_bytes()
    with pytest.raises(ValueError, match=said):
        stream(rows, checkpoint=kept)
    assert (tmp_path / "fit.npz").read_bytes() == before
    rows = parts()
    with pytest.raises(ValueError, match=r"gave 150 rows .* and 200 rows .* in the first"):
        stream(Passes(3, lambda: rows.pop(), rows))


def test_incremental_sweeps_end_at_the_same_optimum(double):
    begin = start("float64")
    nearer = jaxgmm.fit(begin, X, tol=1e-8)
    told = []
    result = jaxgmm.fit_stream(
        begin, parts("float64"), chunk_size=CHUNK, tol=1e-8, incremental=True, progress=told.append
    )
    assert int(result.status) == jaxgmm.Status.CONVERGED
    # A fit ends within its tolerance of the optimum, in units of the components' widths.
    assert gap(nearer.params, result.params, 1.0) < 1e-6
    assert told[1].log_likelihood > told[0].log_likelihood


def test_progress_is_told_to_a_function_and_on_stderr(capsys):
    told = []
    result = stream(parts(), progress=told.append)
    assert len(told) == int(result.n_iter) + 1
    assert [p.n_samples for p in told] == [200] * len(told)
    assert told[3].seconds_left > told[-1].seconds_left == 0
    np.testing.assert_allclose(told[-1].log_likelihood, result.log_likelihood, rtol=1e-6)
    assert "log-likelihood" in str(told[-1])
    stream(parts(), progress=True)
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


def test_the_number_of_rows_and_of_parts_compiles_nothing():
    streamed()
    before = streaming_statistics._statistics._cache_size()
    x = X.astype(np.float32)
    stream([x[:50], x[50:62], x[62:90]], max_iter=2)
    stream(x, max_iter=2)
    stream(weighted_parts(), max_iter=2)
    assert streaming_statistics._statistics._cache_size() == before


def test_arguments_are_checked():
    for wrong, kind, said in [
        ({"params": 3}, TypeError, "params must be GMMParams"),
        ({"progress": 3}, TypeError, "progress must be"),
        ({"incremental": 3}, TypeError, "incremental must be"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"dtype": "int8"}, TypeError, "dtype must be"),
        ({"dtype": "float64"}, ValueError, "needs 64-bit JAX"),
        ({"options": "x"}, TypeError, "options must be"),
        ({"options": EMOptions(block_size=8)}, ValueError, "fit_stream does not use options.block_size"),
        ({"tol": -1}, ValueError, "tol must be"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be"),
        ({"columns": [0, 1]}, ValueError, "the 3 features of params; it has 2"),
    ]:
        with case(wrong), pytest.raises(kind, match=said):
            jaxgmm.fit_stream(**{"params": start(), "source": X.astype(np.float32), **wrong})


def test_structures_whose_moments_cannot_be_carried_have_no_sweeps():
    own = streams.own_moments(start())
    with pytest.raises(ValueError, match=r"incremental=True needs .* 'mine' keeps others"):
        jaxgmm.fit_stream(own, parts(), incremental=True)
