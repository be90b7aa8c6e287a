"""An engine gives what the fit in memory gives, whatever the blocks are and whatever becomes of a worker."""

import functools
import itertools
import operator
import os
import pickle
import signal
import sys
import warnings

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.parallel.engines import DaskEngine, LocalEngine, SparkEngine, fit_engine
from jaxgmm.parallel.engines._blocks import Fault, moments_block, over, survey_block
from tests.conftest import overlapping, start_from

N, D, K = 2600, 2, 3
X, LABELS = overlapping(N, D, K, seed=5, separation=1.5)
W = np.random.default_rng(0).uniform(0.5, 2.0, N)
CUTS = [0, 1100, 1101, 2600]  # uneven; one part of a single row, one that fills more than a chunk
STEPS = {"tol": 0.0, "max_iter": 12}


def parts(a, dtype):
    return [a[i:j].astype(dtype) for i, j in itertools.pairwise(CUTS)]


def start(dtype, offset=0.0):
    return start_from(X + offset, LABELS, "full", dtype)


def close(a, b, rtol):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # The history is −inf where there is none, in both at the same places.
        scale = np.abs(np.asarray(other, np.float64)).max(where=np.isfinite(other), initial=0)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_blocks_in_memory_give_the_fit_of_all_rows(dtype, offset):
    begin = start(dtype, offset)
    x = (X + offset).astype(dtype)
    whole = jaxgmm.fit(begin, x, W.astype(dtype), options=EMOptions(kernel="whitened"), **STEPS)
    engine = LocalEngine(parts(X + offset, dtype), parts(W, dtype), threads=2)
    divided = fit_engine(begin, engine, **STEPS)
    assert divided.params.means.dtype == dtype
    close(divided, whole, {"float64": 1e-12, "float32": 1e-5}[dtype.name])
    again = fit_engine(begin, engine, **STEPS)
    jax.tree.map(np.testing.assert_array_equal, divided, again)


class Sent:
    """Each block in a process of its own, as far as its arguments can tell."""

    def map_reduce(self, function, *broadcast):
        function, broadcast = pickle.loads(pickle.dumps((function, broadcast)))
        blocks = zip(parts(X, np.float64), parts(W, np.float64), strict=True)
        values = [function(x, w, *broadcast) for x, w in blocks]
        return functools.reduce(operator.add, (pickle.loads(pickle.dumps(v)) for v in values))


@pytest.mark.slow
def test_an_engine_is_one_method_and_is_sent_what_can_be_pickled(double):
    begin = start(np.float64)
    local = LocalEngine(parts(X, np.float64), parts(W, np.float64))
    one, other = (jax.tree.leaves(fit_engine(begin, e, **STEPS)) for e in (Sent(), local))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_prior_is_that_of_fit(double):
    begin = start_from(X, LABELS, "diag", np.float64)
    prior = jaxgmm.default_prior(X, K, covariance_type="diag")
    whole = jaxgmm.fit(begin, X, W, prior=prior, options=EMOptions(kernel="whitened"), **STEPS)
    close(fit_engine(begin, Sent(), prior=prior, **STEPS), whole, 1e-11)


def test_a_checkpoint_is_taken_up_and_progress_is_told(tmp_path):
    begin, engine = start(np.float32), LocalEngine(parts(X, np.float32))
    told = []
    straight = fit_engine(begin, engine, progress=told.append, **STEPS)
    assert told[-1].n_iter == 12
    kept = tmp_path / "fit.npz"
    fit_engine(begin, engine, tol=0.0, max_iter=5, checkpoint=kept)
    told.clear()
    resumed = fit_engine(begin, engine, checkpoint=str(kept), progress=told.append, **STEPS)
    assert len(told) < 10
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    with pytest.raises(ValueError, match="reg_covar was"):
        fit_engine(begin, engine, checkpoint=kept, reg_covar=1e-3, **STEPS)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x, w: x.__setitem__((7, 1), np.nan), "part 1, row 7: column 1 is nan"),
        (lambda x, w: x.__setitem__((8, 0), -np.inf), "part 1, row 8: column 0 is -inf"),
        (lambda x, w: w.__setitem__(9, -1.0), "part 1, row 9: its weight is -1.0"),
    ],
)
def test_a_row_that_is_not_sound_is_named(spoil, says):
    xs, ws = [X[:50].copy(), X[50:90].copy()], [W[:50].copy(), W[50:90].copy()]
    spoil(xs[1], ws[1])
    with pytest.raises(ValueError, match=says):
        fit_engine(start(np.float32), LocalEngine(xs, ws))


def test_parts_that_do_not_fit_are_named():
    begin = start(np.float32)
    for part, says in [
        (np.ones((4, 3)), "part 1: it has 3 columns; params have 2 features"),
        (np.ones(4), r"part 1: it has shape \(4,\)"),
        (np.array([["a", "b"]]), "part 1: it holds <U1, not real numbers"),
        (np.full((4, 2), 1e300), "part 1, row 0: column 0 is inf"),
    ]:
        with pytest.raises(ValueError, match=says):
            fit_engine(begin, LocalEngine([X, part]))
    with pytest.raises(ValueError, match="part 0: its weights have shape"):
        fit_engine(begin, LocalEngine([X], [W[:5]]))
    with pytest.raises(ValueError, match="there is nothing to fit"):
        fit_engine(begin, LocalEngine([X[:0]]))
    with pytest.raises(ValueError, match="there is nothing to fit"):
        fit_engine(begin, LocalEngine([X], [0 * W]))
    with pytest.raises(ValueError, match="parts must hold"):
        LocalEngine([])
    with pytest.raises(ValueError, match="one array for each of the 1 parts"):
        LocalEngine([X], [W, W])
    with pytest.raises(TypeError, match="engine must have a method map_reduce"):
        fit_engine(begin, [X])
    with pytest.raises(TypeError, match="params must be GMMParams"):
        fit_engine(None, LocalEngine([X]))


def test_faults_count_the_rows_of_a_part_and_survive_the_way_back():
    torn = X[:30].copy()
    torn[4, 1] = np.nan
    found = over(
        survey_block, [(X[:20], None), (X[:0], None), (torn, None)], (D, "float32"), 3, "partition 3"
    )
    assert found.problem.startswith("partition 3, row 24: column 1 is nan")
    assert found.place == (3, 24)
    fault = pickle.loads(pickle.dumps(Fault("it is so", 5)))
    assert (fault.what, fault.row) == ("it is so", 5)
    sound = over(survey_block, [(X, None)], (D, "float32"), 0, "partition 0")
    assert (sound + found).problem == (found + sound).problem == found.problem


def test_a_block_compiles_two_programs_however_long_it_is():
    from jaxgmm.parallel.engines import _blocks as blocks

    params = jax.device_get(start(np.float32))
    shift = np.zeros(D, np.float32)
    x = np.concatenate([X] * 7).astype(np.float32)
    moments_block(x, None, params, shift)
    before = blocks._moments._cache_size()
    for n in (1, 1000, 1024, 2600, 17000, len(x)):
        moments_block(x[:n], None, params, shift)
    assert blocks._moments._cache_size() == before


def test_what_an_extra_is_needed_for_says_so(monkeypatch):
    for name in ("dask", "pyspark", "pyarrow"):
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"jaxgmm\[dask\]"):
        DaskEngine(X)
    with pytest.raises(ImportError, match=r"jaxgmm\[spark\]"):
        SparkEngine(X)


class Deadly:
    """An engine during the nth pass of which one worker is killed, having done half of its work."""

    def __init__(self, engine, passing, mark):
        self.engine, self.passing, self.mark, self.calls = engine, passing, mark, 0

    def map_reduce(self, function, *broadcast):
        self.calls += 1
        if self.calls != self.passing:
            return self.engine.map_reduce(function, *broadcast)
        return self.engine.map_reduce(_dying, function, str(self.mark), *broadcast)


def _dying(x, w, function, mark, *broadcast):
    value = function(x, w, *broadcast)
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return value
    return os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole():
    """The fit in memory, for engines in float32."""
    return jaxgmm.fit(
        start(np.float32),
        X.astype(np.float32),
        W.astype(np.float32),
        options=EMOptions(kernel="whitened"),
        **STEPS,
    )


@pytest.mark.slow
@pytest.mark.engine
def test_dask_gives_the_same_also_where_a_worker_is_lost(whole, tmp_path):
    da = pytest.importorskip("dask.array", reason="needs the extra dask")
    pytest.importorskip("distributed", reason="needs the extra dask")
    from distributed import Client, LocalCluster

    begin = start(np.float32)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        x = da.from_array(X.astype(np.float32), chunks=(700, D))
        w = da.from_array(W.astype(np.float32), chunks=700)
        engine = DaskEngine(x, sample_weight=w, client=client)
        sound = fit_engine(begin, engine, **STEPS)
        close(sound, whole, 1e-5)

        hurt = fit_engine(begin, Deadly(engine, 4, tmp_path / "killed"), **STEPS)
        assert (tmp_path / "killed").exists()
        jax.tree.map(np.testing.assert_array_equal, hurt, sound)
        torn = da.concatenate([x[:1400], da.full((3, D), np.nan, dtype=np.float32, chunks=(3, D))])
        with pytest.raises(ValueError, match="partition 2, row 0: column 0 is nan"):
            fit_engine(begin, DaskEngine(torn, client=client))


@pytest.mark.slow
@pytest.mark.engine
def test_dask_takes_data_frames_and_says_what_does_not_fit(whole):
    dd = pytest.importorskip("dask.dataframe", reason="needs the extra dask")
    da = pytest.importorskip("dask.array", reason="needs the extra dask")
    import pandas as pd

    frame = pd.DataFrame(X.astype(np.float32), columns=["a.b", "c"]).assign(w=W.astype(np.float32), name="x")
    data = dd.from_pandas(frame, npartitions=3)
    engine = DaskEngine(data, ["a.b", "c"], sample_weight="w")
    close(fit_engine(start(np.float32), engine, **STEPS), whole, 1e-5)
    with pytest.raises(ValueError, match="no column 'd'"):
        DaskEngine(data, ["a.b", "d"])
    with pytest.raises(TypeError, match="must be a Dask array or data frame; got ndarray"):
        DaskEngine(X)
    x = da.from_array(X, chunks=(1000, 1))
    with pytest.raises(ValueError, match="with the chunks of data's rows"):
        DaskEngine(x, sample_weight=da.from_array(W, chunks=900))
    with pytest.raises(TypeError, match="columns are of data frames"):
        DaskEngine(x, ["a"])
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        DaskEngine(x[:, 0])


@pytest.fixture(scope="module")
def spark():
    sql = pytest.importorskip("pyspark.sql", reason="needs the extra spark")
    before = os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = (
                sql.SparkSession.builder.master("local[2,4]")
                .config("spark.ui.enabled", "false")
                .config("spark.driver.host", "127.0.0.1")
                .config("spark.sql.shuffle.partitions", "2")
                .getOrCreate()
            )
    except Exception as error:
        pytest.skip(f"Spark does not start, which needs Java 17 or later: {error}")
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    os.environ.pop("PYSPARK_PYTHON") if before is None else os.environ.update(PYSPARK_PYTHON=before)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::FutureWarning:pyspark", "ignore::ResourceWarning")
def test_spark_gives_the_same_also_where_a_worker_is_killed(spark, whole, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra spark")
    import pyarrow.parquet

    names = ["a.b", "c", "w"]
    columns = [*X.astype(np.float32).T, W.astype(np.float32)]
    folder = tmp_path / "data"
    folder.mkdir()
    for i, (first, last) in enumerate([(0, 1700), (1700, 2600)]):
        part = [c[first:last] for c in columns]
        table = pa.table(dict(zip(names, part, strict=True)) | {"name": ["x"] * len(part[0])})
        pyarrow.parquet.write_table(table, folder / f"part{i}.parquet")
    data = spark.read.parquet(str(folder))
    begin = start(np.float32)
    with SparkEngine(data, ["a.b", "c"], "w") as engine:
        sound = fit_engine(begin, engine, **STEPS)
        close(sound, whole, 1e-5)
        hurt = fit_engine(begin, Deadly(engine, 4, tmp_path / "killed"), **STEPS)
        assert (tmp_path / "killed").exists()
        jax.tree.map(np.testing.assert_array_equal, hurt, sound)
    anew = SparkEngine(data, ["a.b", "c"], "w", keep=False)
    close(fit_engine(begin, anew, tol=0.0, max_iter=2), fit_engine(begin, engine, tol=0.0, max_iter=2), 1e-6)

    with pytest.raises(ValueError, match="no column 'd'"):
        SparkEngine(data, ["d"])
    with pytest.raises(ValueError, match="column 'name' holds string"):
        SparkEngine(data, ["c", "name"])
    with pytest.raises(TypeError, match=r"must be a pyspark.sql.DataFrame; got ndarray"):
        SparkEngine(X)
    columns[0][1705] = np.nan
    table = pa.table({n: c[1700:2600] for n, c in zip(names, columns, strict=True)})
    pyarrow.parquet.write_table(table, folder / "part1.parquet")
    spark.catalog.refreshByPath(str(folder))
    with pytest.raises(ValueError, match=r"part1\.parquet, in partition \d, row 5: column 0 is nan"):
        fit_engine(begin, SparkEngine(spark.read.parquet(str(folder)), ["a.b", "c"], "w"))


def test_results_of_the_same_kind_are_added():
    one = survey_block(X[:100], W[:100], D, "float64")
    other = survey_block(X[100:], W[100:], D, "float64")
    total, whole = one + other, survey_block(X, W, D, "float64")
    for field in ("total_weight", "mean", "variance"):
        np.testing.assert_allclose(getattr(total, field), getattr(whole, field), rtol=1e-13)
    assert total.n_samples == N
