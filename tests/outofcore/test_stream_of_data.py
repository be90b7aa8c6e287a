"""Streams of rows with gaps, noise, projections and labels are fitted as the whole, and taken up again."""

import itertools

import numpy as np
import pytest

import jaxgmm
from jaxgmm.outofcore import Checkpoint
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.parallel.processes import _fit as distributed
from tests.outofcore.streams import BOUNDS, CHUNK, Passes, assert_same_bits, gap, start
from tests.problems import LABELS, WEIGHT, D, K, N, X

rng = np.random.default_rng(3)
GAPS = np.where(rng.random((N, D)) < 0.3, np.nan, X)
KNOWN = np.where((rng.random(N) < 0.2) & (np.arange(N) < 150), LABELS, -1)  # none in the last part
NOISE = rng.uniform(0, 0.05, (N, D))
EVERYTHING = {"X": GAPS, "noise": NOISE, "labels": KNOWN, "sample_weight": WEIGHT}
PROJECTION = rng.normal(size=(N, 2, D))
PROJECTED = {"X": np.einsum("ned,nd->ne", PROJECTION, X), "projection": PROJECTION, "noise": NOISE[:, :2]}
SOFT = {"X": GAPS, "log_prior": np.log(rng.dirichlet(np.ones(K), N))}


def observed(known, rows=slice(None)):
    given = {name: a[rows] for name, a in known.items()}
    return jaxgmm.observe(given.pop("X"), missing="nan", **given)


def in_parts(known):
    """`Data` of different lengths."""
    return [observed(known, slice(i, j)) for i, j in itertools.pairwise(BOUNDS)]


def stream(source, **options):
    return jaxgmm.fit_stream(start("float64"), source, missing="nan", chunk_size=CHUNK, **options)


@pytest.mark.parametrize("known", [EVERYTHING, PROJECTED, SOFT], ids=["all", "projections", "soft labels"])
def test_it_takes_the_steps_of_fit(double, known):
    steps = {"tol": 0.0, "max_iter": 5}
    wanted = jaxgmm.fit(start("float64"), observed(known), **steps)
    assert gap(wanted, stream(lambda: iter(in_parts(known)), **steps)) < 1e-9


def test_a_fit_with_gaps_noise_and_labels_is_taken_up_with_the_same_bits(double, tmp_path):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    path, steps = tmp_path / "fit.npz", {"tol": 0.0, "max_iter": 9}
    source = Passes(6, stop, in_parts(EVERYTHING))
    with pytest.raises(Stop):
        stream(source, checkpoint=Checkpoint(path, every_iterations=1), **steps)
    told = []
    found = stream(in_parts(EVERYTHING), checkpoint=path, progress=told.append, **steps)
    assert told[0].n_iter > 2
    assert_same_bits(found, stream(in_parts(EVERYTHING), **steps))
    # Without the labels they are other data.
    other = in_parts({name: a for name, a in EVERYTHING.items() if name != "labels"})
    with pytest.raises(ValueError, match=r"a checkpoint of other data or settings: .*known"):
        stream(other, checkpoint=path, **steps)


def test_a_process_fits_its_own_rows_with_gaps_and_all_of_them_make_one_summary(double, monkeypatch):
    """One process here; the summaries of two are put together as if they had been gathered."""
    steps = {"tol": 0.0, "max_iter": 5}
    options = {"missing": "nan", "chunk_size": CHUNK, **steps}
    assert_same_bits(
        distributed.fit_distributed(start("float64"), in_parts(EVERYTHING), **options),
        stream(in_parts(EVERYTHING), **steps),
    )
    weight = np.asarray(WEIGHT)
    one, other = (DataSummary.of(GAPS[i], weight[i], missing=True) for i in (slice(80), slice(80, None)))
    sent = []
    monkeypatch.setattr(distributed, "gather_floats", lambda a: sent.append(a) or sent)
    distributed.total_summary(one)
    both, whole = distributed.total_summary(other), DataSummary.of(GAPS, weight, missing=True)
    for field in ("n_samples", "total_weight", "mean", "variance", "seen_weight"):
        np.testing.assert_allclose(getattr(both, field), getattr(whole, field), rtol=1e-12)


def test_what_does_not_go_in_a_stream_is_refused(double):
    rows, full_noise = observed(EVERYTHING), np.broadcast_to(0.1 * np.eye(D), (N, D, D))
    student = jaxgmm.make_params([0.5, 0.5], np.zeros((2, D)), [np.eye(D)] * 2, "student_t(full)")
    for call, words in (
        (
            lambda: stream([jaxgmm.observe(X), rows]),
            r"array 1: of noise it has rows of shape \(3,\); array 0 has",
        ),
        (
            lambda: stream([jaxgmm.observe(X, noise=full_noise), jaxgmm.observe(X)]),
            r"array 1: of noise it has none; array 0 has rows of shape \(3, 3\)",
        ),
        (
            lambda: stream(jaxgmm.observe(X, groups=np.arange(N) // 2)),
            "rows in groups are not for data in parts",
        ),
        (lambda: stream(jaxgmm.observe(X, labels=LABELS + 1)), r"array 0, row \d+: labels must be below"),
        (
            lambda: stream(jaxgmm.observe(X, log_prior=np.eye(N, 2))),
            "a column for each of 3 components; got 2",
        ),
        (lambda: stream(rows, columns=[0, 1, 2]), "columns and weight_column are for arrays"),
        (lambda: stream(rows, options=jaxgmm.EMOptions(kernel="quadratic")), "complete rows without labels"),
        (
            lambda: jaxgmm.fit_stream(start("float64"), rows),
            r"got nan, as a missing value is \(missing='nan'\)",
        ),
        (lambda: jaxgmm.fit_stream(student, jaxgmm.observe(X, noise=1.0)), "no density for rows with noise"),
        (
            lambda: jaxgmm.outofcore.fit_stepwise(start("float64"), rows),
            "rows with missing entries and noise and labels are not for stepwise EM",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()
