"""An engine gives what the fit in memory gives, whatever the blocks are and whatever becomes of a worker."""

import dataclasses
import functools
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
from jaxgmm.parallel.engines import DaskEngine, LocalEngine, SparkEngine, fit_engine
from jaxgmm.parallel.engines import _blocks as blocks
from tests.conftest import case
from tests.outofcore.streams import assert_same_bits, gap, parts, start, streamed, weighted_parts
from tests.outofcore.test_stream import PRIOR
from tests.parallel import children  # noqa: F401  what the server of forked processes loads
from tests.problems import WEIGHT, D, X

STEPS = {"tol": 0.0, "max_iter": 8}


def local(dtype="float32", shift=0.0, **options):
    """An engine of the shared parts with their weights; one part has a single row."""
    xs, ws = zip(*weighted_parts(dtype, shift), strict=True)
    return LocalEngine(xs, ws, **options)


class Sent:
    """Each block in a process of its own, as far as its arguments can tell."""

    def map_reduce(self, function, *broadcast):
        function, broadcast = pickle.loads(pickle.dumps((function, broadcast)))
        values = [function(x, w, *broadcast) for x, w in weighted_parts("float64")]
        return functools.reduce(operator.add, (pickle.loads(pickle.dumps(v)) for v in values))


def test_weights_and_a_prior_are_those_of_em_step(double):
    params = start("float64")
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHT, prior=PRIOR)
    steps = {"tol": 0.0, "max_iter": 3, "accelerate": False, "prior": PRIOR}
    found = fit_engine(start("float64"), local("float64"), **steps)
    assert gap(params, found.params) < 1e-12
    # An engine is one method and is sent what can be pickled; threads add in the parts' order.
    for engine in (Sent(), local("float64", threads=2)):
        assert_same_bits(fit_engine(start("float64"), engine, **steps), found)
    # Also the steps that extrapolate.
    whole = jaxgmm.fit(start("float64"), X, **STEPS)
    assert gap(whole, fit_engine(start("float64"), LocalEngine(parts("float64")), **STEPS)) < 1e-12


def test_rows_with_gaps_are_fitted_to_what_is_observed(double, tmp_path):
    gaps = np.where(np.random.default_rng(0).random((200, D)) < 0.3, np.nan, X)
    engine = LocalEngine([gaps[:70], gaps[70:]], [WEIGHT[:70], WEIGHT[70:]])
    whole = jaxgmm.fit(start("float64"), jaxgmm.observe(gaps, missing="nan", sample_weight=WEIGHT), **STEPS)
    found = fit_engine(start("float64"), engine, missing="nan", **STEPS)
    assert gap(whole, found) < 1e-9
    kept = tmp_path / "fit.npz"
    fit_engine(start("float64"), engine, missing="nan", tol=0.0, max_iter=5, checkpoint=kept)
    assert_same_bits(fit_engine(start("float64"), engine, missing="nan", checkpoint=kept, **STEPS), found)
    with pytest.raises(ValueError, match=r"part 0, row \d+: column \d is nan"):
        fit_engine(start("float64"), engine, **STEPS)
    with pytest.raises(ValueError, match="missing must be one of"):
        fit_engine(start("float64"), engine, missing="no", **STEPS)


def test_in_float32_it_ends_where_a_stream_does():
    result = fit_engine(start(), LocalEngine(parts()))
    assert result.params.means.dtype == np.float32
    assert int(result.status) == jaxgmm.Status.CONVERGED
    assert gap(streamed().params, result.params, 0.1) < 1e-4


def test_an_offset_of_the_data_costs_no_digits():
    """Two float32 fits of the same rows, exactly moved; a shift is taken off each row before its sums."""
    rows = [np.round(a * 64) / 64 for a in parts()]  # so that adding 512 is exact
    far = dataclasses.replace(start(), means=np.asarray(start().means) + np.float32(512))
    near, moved = (
        fit_engine(begin, LocalEngine([a + by for a in rows]), **STEPS)
        for begin, by in ((start(), np.float32(0)), (far, np.float32(512)))
    )
    # The start's and the result's means are rounded at 512, by 3e-5.
    np.testing.assert_allclose(np.asarray(moved.params.means) - 512, near.params.means, atol=2e-4)
    variances = (np.square(np.asarray(fit.params.scale)) for fit in (moved, near))
    np.testing.assert_allclose(*variances, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_is_taken_up_and_progress_is_told(tmp_path):
    told, kept = [], tmp_path / "fit.npz"
    straight = fit_engine(start(), local(), progress=told.append, **STEPS)
    assert told[-1].n_iter == 8
    fit_engine(start(), local(), tol=0.0, max_iter=5, checkpoint=kept)
    told.clear()
    resumed = fit_engine(start(), local(), checkpoint=str(kept), progress=told.append, **STEPS)
    assert told[0].n_iter > 5
    assert_same_bits(resumed, straight)
    with pytest.raises(ValueError, match="reg_covar was"):
        fit_engine(start(), local(), checkpoint=kept, reg_covar=1e-3, **STEPS)


def test_a_row_that_is_not_sound_is_named():
    for spoil, says in [
        (lambda x, w: x.__setitem__((7, 1), np.nan), "part 1, row 7: column 1 is nan"),
        (lambda x, w: x.__setitem__((8, 0), -np.inf), "part 1, row 8: column 0 is -inf"),
        (lambda x, w: w.__setitem__(9, -1.0), "part 1, row 9: its weight is -1.0"),
    ]:
        with case(spoil, says):
            xs, ws = [X[:50].copy(), X[50:90].copy()], [WEIGHT[:50].copy(), WEIGHT[50:90].copy()]
            spoil(xs[1], ws[1])
            with pytest.raises(ValueError, match=says):
                fit_engine(start(), LocalEngine(xs, ws))


def test_what_does_not_fit_is_named():
    for made, kind, says in [
        (lambda: LocalEngine([X, np.ones((4, 2))]), ValueError, "part 1: it has 2 columns; params have 3"),
        (lambda: LocalEngine([X, np.ones(4)]), ValueError, r"part 1: it has shape \(4,\)"),
        (lambda: LocalEngine([X, np.array([["a", "b", "c"]])]), ValueError, "part 1: it holds <U1, not real"),
        (lambda: LocalEngine([X, np.full((4, 3), 1e300)]), ValueError, "part 1, row 0: column 0 is inf"),
        (lambda: LocalEngine([X], [WEIGHT[:5]]), ValueError, "part 0: its weights have shape"),
        (lambda: LocalEngine([X[:0]]), ValueError, "there is nothing to fit"),
        (lambda: LocalEngine([X], [0 * WEIGHT]), ValueError, "there is nothing to fit"),
        (lambda: LocalEngine([]), ValueError, "parts must hold"),
        (lambda: LocalEngine([X], [WEIGHT, WEIGHT]), ValueError, "one array for each of the 1 parts"),
        (lambda: [X], TypeError, "engine must have a method map_reduce"),
    ]:
        with case(says), pytest.raises(kind, match=says):
            fit_engine(start(), made())


def test_faults_count_the_rows_of_a_part_and_survive_the_way_back():
    torn = X[:30].copy()
    torn[4, 1] = np.nan
    survey, of = blocks.summary_block, (D, "float32")
    found = blocks.over(survey, [(X[:20], None), (X[:0], None), (torn, None)], of, 3, "partition 3")
    assert found.problem.startswith("partition 3, row 24: column 1 is nan")
    assert found.place == (3, 24)
    fault = pickle.loads(pickle.dumps(blocks.Fault("it is so", 5)))
    assert (fault.what, fault.row) == ("it is so", 5)
    sound = blocks.over(survey, [(X, None)], of, 0, "partition 0")
    assert (sound + found).problem == (found + sound).problem == found.problem


def test_a_block_compiles_two_programs_however_long_it_is():
    x, params = np.resize(X, (20_000, D)).astype(np.float32), jax.device_get(start())
    blocks.moments_block(x, None, params, np.zeros(D, np.float32))
    before = blocks._moments._cache_size()
    for n in (1, 1000, 1024, 2600, 17000):
        blocks.moments_block(x[:n], None, params, np.zeros(D, np.float32))
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
    """The fit that engines give in float32."""
    return fit_engine(start(), local(), **STEPS)


@pytest.mark.engine
def test_dask_gives_the_same_also_where_a_worker_is_lost(whole, tmp_path):
    da = pytest.importorskip("dask.array", reason="needs the extra dask")
    pytest.importorskip("distributed", reason="needs the extra dask")
    import dask
    from distributed import Client, LocalCluster

    begin = start()
    forked = {"distributed.worker.multiprocessing-method": "forkserver"}  # JAX is there already
    # A worker that is killed is started again. A second one takes 3 s more, and is sent the same blocks.
    with (
        dask.config.set(forked),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        x = da.from_array(X.astype(np.float32), chunks=(70, D))
        w = da.from_array(WEIGHT.astype(np.float32), chunks=70)
        engine = DaskEngine(x, sample_weight=w, client=client)
        sound = fit_engine(begin, engine, **STEPS)
        assert gap(whole, sound, 0.1) < 1e-5

        hurt = fit_engine(begin, Deadly(engine, 4, tmp_path / "killed"), **STEPS)
        assert (tmp_path / "killed").exists()
        assert_same_bits(hurt, sound)
        torn = da.concatenate([x[:140], da.full((3, D), np.nan, dtype=np.float32, chunks=(3, D))])
        with pytest.raises(ValueError, match="partition 2, row 0: column 0 is nan"):
            fit_engine(begin, DaskEngine(torn, client=client))


@pytest.mark.engine
def test_dask_takes_data_frames_and_says_what_does_not_fit(whole):
    dd = pytest.importorskip("dask.dataframe", reason="needs the extra dask")
    da = pytest.importorskip("dask.array", reason="needs the extra dask")
    import pandas as pd

    frame = pd.DataFrame(X.astype(np.float32), columns=["a.b", "c", "d"]).assign(
        w=WEIGHT.astype(np.float32), name="x"
    )
    data = dd.from_pandas(frame, npartitions=3)
    engine = DaskEngine(data, ["a.b", "c", "d"], sample_weight="w")
    assert gap(whole, fit_engine(start(), engine, **STEPS), 0.1) < 1e-5
    with pytest.raises(ValueError, match="no column 'e'"):
        DaskEngine(data, ["a.b", "e"])
    with pytest.raises(TypeError, match="must be a Dask array or data frame; got ndarray"):
        DaskEngine(X)
    x = da.from_array(X, chunks=(100, 1))
    with pytest.raises(ValueError, match="with the chunks of data's rows"):
        DaskEngine(x, sample_weight=da.from_array(WEIGHT, chunks=90))
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


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::FutureWarning:pyspark", "ignore::ResourceWarning")
def test_spark_gives_the_same_also_where_a_worker_is_killed(spark, whole, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra spark")
    import pyarrow.parquet

    names = ["a.b", "c", "d", "w"]
    columns = [*X.astype(np.float32).T, WEIGHT.astype(np.float32)]
    folder = tmp_path / "data"
    folder.mkdir()
    for i, (first, last) in enumerate([(0, 150), (150, 200)]):
        part = [c[first:last] for c in columns]
        table = pa.table(dict(zip(names, part, strict=True)) | {"name": ["x"] * len(part[0])})
        pyarrow.parquet.write_table(table, folder / f"part{i}.parquet")
    data = spark.read.parquet(str(folder))
    begin = start()
    with SparkEngine(data, ["a.b", "c", "d"], "w") as engine:
        sound = fit_engine(begin, engine, **STEPS)
        assert gap(whole, sound, 0.1) < 1e-5
        hurt = fit_engine(begin, Deadly(engine, 4, tmp_path / "killed"), **STEPS)
        assert (tmp_path / "killed").exists()
        assert_same_bits(hurt, sound)
    anew = SparkEngine(data, ["a.b", "c", "d"], "w", keep=False)
    few = {"tol": 0.0, "max_iter": 2}
    assert gap(fit_engine(begin, anew, **few), fit_engine(begin, engine, **few)) < 1e-6

    with pytest.raises(ValueError, match="no column 'e'"):
        SparkEngine(data, ["e"])
    with pytest.raises(ValueError, match="column 'name' holds string"):
        SparkEngine(data, ["c", "name"])
    with pytest.raises(TypeError, match=r"must be a pyspark.sql.DataFrame; got ndarray"):
        SparkEngine(X)
    columns[0][155] = np.nan
    table = pa.table({n: c[150:200] for n, c in zip(names, columns, strict=True)})
    pyarrow.parquet.write_table(table, folder / "part1.parquet")
    spark.catalog.refreshByPath(str(folder))
    with pytest.raises(ValueError, match=r"part1\.parquet, in partition \d, row 5: column 0 is nan"):
        fit_engine(begin, SparkEngine(spark.read.parquet(str(folder)), ["a.b", "c", "d"], "w"))
