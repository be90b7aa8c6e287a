"""Sources give all rows in order, again and again, and say which part and row is wrong."""

import errno
import os
import threading

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.outofcore._prefetch import ReadAhead
from jaxgmm.outofcore._streaming_statistics import summarise
from tests.conftest import case

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
W = RNG.uniform(0.5, 2, 60).astype(np.float32)
CUTS = ((0, 17), (17, 18), (18, 60))
NAMES = ["a", "b", "c"]
ONCE = iter([X])


def arrow():
    pytest.importorskip("pyarrow", reason="the extra arrow is not installed")
    import pyarrow as pa
    import pyarrow.dataset
    import pyarrow.feather
    import pyarrow.parquet

    return pa


def table(x, w=None, names=NAMES):
    columns = {n: x[:, j] for j, n in enumerate(names)}
    return arrow().table(columns if w is None else {**columns, "w": w})


def write(folder, suffix, parts):
    """Files of some kind, of pairs of rows and weights, in the order of their names."""
    paths = []
    for i, (x, w) in enumerate(parts):
        path = str(folder / f"part{i}{suffix}")
        paths.append(path)
        if suffix == ".npy":
            np.save(path, np.column_stack([x, w]) if w is not None else x)
        elif suffix == ".parquet":
            arrow().parquet.write_table(table(x, w), path, row_group_size=16)
        else:
            with arrow().OSFile(path, "wb") as sink, arrow().ipc.new_file(sink, table(x, w).schema) as out:
                out.write_table(table(x, w), max_chunksize=11)
    return paths


def rows(source, size=7):
    pieces = [
        (p.rows.copy(), None if p.weight is None else p.weight.copy(), p.part, p.first)
        for p in source.chunks(size)
    ]
    assert all(len(x) <= size for x, *_ in pieces)
    x = np.concatenate([p[0] for p in pieces])
    w = None if pieces[0][1] is None else np.concatenate([p[1] for p in pieces])
    return x, w, [(p[2], p[3]) for p in pieces]


def same(source, x, w):
    for _ in range(2):
        got, weights, places = rows(source)
        np.testing.assert_array_equal(got, x)
        assert (weights is None) == (w is None)
        if w is not None:
            np.testing.assert_array_equal(weights, w)
    assert source.n_features == x.shape[1]
    assert source.n_samples in (None, len(x))
    return places


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow"])
def test_files_give_their_rows_and_weights(tmp_path, suffix):
    paths = write(tmp_path, suffix, [(X[i:j], W[i:j]) for i, j in CUTS])
    weight = 3 if suffix == ".npy" else "w"
    for given in (paths, str(tmp_path), str(tmp_path / f"part*{suffix}"), tmp_path):
        source = jaxgmm.outofcore.open_source(given, weight_column=weight)
        places = same(source, X, W)
        assert source.n_samples == 60
    # A piece's place is that of its first row in its own part.
    assert {part for part, _ in places} == set(paths)
    assert (paths[1], 0) in places
    some = [2, 0] if suffix == ".npy" else ["c", "a"]
    same(jaxgmm.outofcore.open_source(paths, columns=some), X[:, [2, 0]], None)
    assert jaxgmm.outofcore.open_source(paths, columns=some).columns == (
        None if suffix == ".npy" else ("c", "a")
    )
    parts = source.describe()["parts"]
    assert [p["name"] for p in parts] == [os.path.basename(p) for p in paths]


def test_zarr_arrays(tmp_path):
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    path = str(tmp_path / "x.zarr")
    array = zarr.create_array(path, shape=X.shape, chunks=(20, 2), dtype="float32")
    array[:] = X
    for given in (path, zarr.open_array(path, mode="r")):
        for size in (7, 25, 100):
            got, _, places = rows(jaxgmm.outofcore.open_source(given), size)
            np.testing.assert_array_equal(got, X)
            assert places[0][1] == 0
    with pytest.raises(OSError, match=r"nothing.zarr: not a Zarr array|no such file"):
        jaxgmm.outofcore.open_source(str(tmp_path / "nothing.zarr"))


def test_what_is_already_in_memory():
    parts = [X[i:j] for i, j in CUTS]
    pairs = [(X[i:j], W[i:j]) for i, j in CUTS]
    same(jaxgmm.outofcore.open_source(X), X, None)
    same(jaxgmm.outofcore.open_source(jnp.asarray(X)), X, None)
    same(jaxgmm.outofcore.open_source((X, W)), X, W)
    same(jaxgmm.outofcore.open_source(parts), X, None)
    same(jaxgmm.outofcore.open_source(pairs), X, W)
    same(jaxgmm.outofcore.open_source(lambda: iter(pairs)), X, W)
    same(jaxgmm.outofcore.open_source(lambda: (x for x in parts)), X, None)
    same(jaxgmm.outofcore.open_source(np.column_stack([X, W]), weight_column=-1), X, W)
    source = jaxgmm.outofcore.open_source(X)
    assert jaxgmm.outofcore.open_source(source) is source


def test_arrow_data_in_memory():
    source = arrow().dataset.dataset(table(X, W))
    same(jaxgmm.outofcore.open_source(source, weight_column="w"), X, W)
    same(jaxgmm.outofcore.open_source(table(X)), X, None)


def test_npy_files_of_every_type_and_order(tmp_path):
    for dtype in ["<f8", ">f4", "<f2", "<i4", "|u1", "|b1"]:
        with case(dtype):
            for order in "CF":
                x = np.asarray(np.abs(X * 9), np.dtype(dtype), order=order)
                np.save(tmp_path / "x.npy", x)
                source = jaxgmm.outofcore.open_source(tmp_path / "x.npy")
                same(source, x, None)
                assert source.wide == (dtype not in (">f4", "<f2"))


def test_chunks_are_of_one_shape_whatever_the_parts(tmp_path):
    source = jaxgmm.outofcore.open_source([(X[i:j], W[i:j]) for i, j in CUTS])
    x, w, found = [], [], []
    with ReadAhead(source, 8, np.dtype(np.float32)) as chunks:
        for chunk in chunks:
            assert chunk.x.shape == (8, 3)
            assert not chunk.w[chunk.n :].any()
            x.append(chunk.x[: chunk.n].copy())
            w.append(chunk.w[: chunk.n].copy())
            found += [chunk.place(i) for i in range(chunk.n)]
            chunks.release(chunk)
    np.testing.assert_array_equal(np.concatenate(x), X)
    np.testing.assert_array_equal(np.concatenate(w), W)
    assert found == [(f"array {p}", i) for p, (a, b) in enumerate(CUTS) for i in range(b - a)]


def test_the_thread_ends_with_whoever_reads():
    closed = []

    class Watched:
        n_features = 3

        def chunks(self, size):
            try:
                while True:
                    yield jaxgmm.outofcore._source.Piece(X[:size], None, "x", 0)
            finally:
                closed.append(True)

    before = threading.active_count()
    with ReadAhead(Watched(), 8, np.dtype("f4")) as chunks:
        assert next(iter(chunks)).n == 8
        assert threading.active_count() == before + 1
    assert closed == [True]
    assert threading.active_count() == before


def test_what_goes_wrong_in_the_thread_is_raised_by_the_reader():
    def broken():
        yield X
        raise OSError(errno.EIO, "the disk is gone")

    before = threading.active_count()
    source = jaxgmm.outofcore.open_source(broken)
    with pytest.raises(OSError, match="the disk is gone"):
        summarise(source, 8, np.dtype(np.float32))
    assert threading.active_count() == before


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
class TestParts:
    """What is wrong with one of three files."""

    def opened(self, tmp_path, suffix, spoil):
        paths = write(tmp_path, suffix, [(X[i:j], None) for i, j in CUTS])
        spoil(paths[1])
        return jaxgmm.outofcore.open_source(paths)

    def test_an_empty_one(self, tmp_path, suffix):
        def spoil(path):
            os.unlink(path)
            write(tmp_path, suffix, [(X[:5], None), (X[:0], None)])
            write(tmp_path, suffix, [(X[:5], None)])

        with pytest.raises(ValueError, match=rf"part1{suffix}: an empty part"):
            self.opened(tmp_path, suffix, spoil)

    def test_one_with_other_columns(self, tmp_path, suffix):
        def spoil(path):
            if suffix == ".npy":
                np.save(path, X[:5, :2])
            else:
                arrow().parquet.write_table(table(X[:5], names=["a", "b", "d"]), path)

        said = rf"part1{suffix}: has " + (
            "2 columns; .*part0.npy has 3" if suffix == ".npy" else "no column 'c'"
        )
        with pytest.raises(ValueError, match=said):
            self.opened(tmp_path, suffix, spoil)

    def test_one_that_is_cut_short(self, tmp_path, suffix):
        def spoil(path):
            with open(path, "r+b") as stream:
                stream.truncate(os.path.getsize(path) - 5)

        with pytest.raises((ValueError, OSError), match=rf"part1{suffix}: (is cut short|cannot be read)"):
            self.opened(tmp_path, suffix, spoil)

    def test_one_that_is_something_else(self, tmp_path, suffix):
        def spoil(path):
            with open(path, "wb") as stream:
                stream.write(b"nonsense" * 9)

        with pytest.raises((ValueError, OSError), match=rf"part1{suffix}: (not an npy|cannot be read)"):
            self.opened(tmp_path, suffix, spoil)

    def test_one_that_changes_while_it_is_used(self, tmp_path, suffix):
        source = self.opened(tmp_path, suffix, lambda path: None)
        time = os.stat(tmp_path / f"part1{suffix}").st_mtime_ns + 1000
        os.utime(tmp_path / f"part1{suffix}", ns=(time, time))
        with pytest.raises(ValueError, match=rf"part1{suffix}: has changed"):
            summarise(source, 8, np.dtype(np.float32))

    def test_a_row_that_is_not_finite(self, tmp_path, suffix):
        x = X.copy()
        x[18 + 23, 1] = np.nan
        paths = write(tmp_path, suffix, [(x[i:j], None) for i, j in CUTS])
        column = "column 1" if suffix == ".npy" else "column 'b'"
        with pytest.raises(ValueError, match=rf"part2{suffix}, row 23, {column}: must be finite .*; got nan"):
            summarise(jaxgmm.outofcore.open_source(paths), 8, np.dtype(np.float32))

    def test_one_that_is_not_there(self, tmp_path, suffix):
        with pytest.raises(FileNotFoundError, match=rf"part1{suffix}: no such file"):
            self.opened(tmp_path, suffix, os.unlink)


def test_columns_of_text_are_refused_by_name(tmp_path):
    pa = arrow()
    pa.parquet.write_table(pa.table({"a": [1.0, 2.0], "name": ["x", "y"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: column 'name' is of type string"):
        jaxgmm.outofcore.open_source(tmp_path / "x.parquet")
    same(jaxgmm.outofcore.open_source(tmp_path / "x.parquet", columns=["a"]), np.array([[1.0], [2.0]]), None)


def test_a_missing_value_is_named(tmp_path):
    pa = arrow()
    pa.parquet.write_table(pa.table({"a": [1.0, None, 3.0]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet, row 1, column 'a': .*got nan, as a missing value is"):
        summarise(jaxgmm.outofcore.open_source(tmp_path / "x.parquet"), 8, np.dtype(np.float32))


def test_weights_are_checked():
    for bad in (-1.0, np.nan, np.inf):
        w = W.copy()
        w[30] = bad
        with pytest.raises(
            ValueError, match="array 0, row 30: sample weights must be finite and not negative"
        ):
            summarise(jaxgmm.outofcore.open_source((X, w)), 8, np.dtype(np.float32))
    with pytest.raises(ValueError, match="must not be zero everywhere"):
        summarise(jaxgmm.outofcore.open_source((X, 0 * W)), 8, np.dtype(np.float32))


def test_numbers_too_large_for_the_dtype_are_named():
    x = X.astype(np.float64)
    x[40, 2] = 1e200
    with pytest.raises(ValueError, match="array 0, row 40, column 2: must be finite in float32; got inf"):
        summarise(jaxgmm.outofcore.open_source(x), 8, np.dtype(np.float32))


REFUSED = [
    ((x for x in [X]), TypeError, "can be read once"),
    (lambda: ONCE, TypeError, "same iterator"),
    (lambda: X, TypeError, "must return an iterable of arrays"),
    (3, TypeError, "source must be an array"),
    ([[1.0, 2.0]], TypeError, "a list that holds a list"),
    ([], ValueError, "at least one array"),
    ([X, X[:, :2]], ValueError, "array 1: has 2 columns"),
    ([X, X[:0]], ValueError, "array 1: an empty part"),
    (X[0], ValueError, "must be 2-D"),
    ([(X, W[:3])], ValueError, "its weights must have shape"),
    (X.astype(complex), ValueError, "must hold real numbers"),
    ("nothing.npy", FileNotFoundError, "nothing.npy: no such file"),
    ("nothing.txt", ValueError, "cannot tell the format"),
    ("no*thing.npy", FileNotFoundError, "no file has such a name"),
]


def test_other_things_are_refused():
    def read_twice(given):
        rows(jaxgmm.outofcore.open_source(given))
        rows(jaxgmm.outofcore.open_source(given))

    for given, kind, said in REFUSED:
        with pytest.raises(kind, match=said):
            read_twice(given)


def test_columns_are_checked():
    for wrong, kind, said in (
        ({"columns": [3]}, ValueError, "columns must lie between -3 and 2; got 3"),
        ({"columns": [0, 1], "weight_column": 1}, ValueError, "weight_column 1 is one of the columns"),
        ({"columns": [0, 0]}, ValueError, "each once"),
        ({"columns": ["a"]}, TypeError, "must be ints"),
    ):
        with pytest.raises(kind, match=said):
            jaxgmm.outofcore.open_source(X, **wrong)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_is_opened_by_the_names_of_its_columns(library):
    frames = pytest.importorskip(library, reason="the extra test has it")
    x = np.random.default_rng(0).normal(size=(7, 3))
    frame = frames.DataFrame({"a": x[:, 0], "flag": x[:, 1] > 0, "c": x[:, 1], "w": np.arange(7.0)})
    source = jaxgmm.outofcore.open_source(frame, columns=["c", "a"], weight_column="w")
    assert (source.columns, source.n_samples, source.n_features) == (("c", "a"), 7, 2)
    pieces = list(source.chunks(4))
    np.testing.assert_array_equal(np.concatenate([p.rows for p in pieces]), x[:, [1, 0]])
    np.testing.assert_array_equal(np.concatenate([p.weight for p in pieces]), np.arange(7.0))
    assert jaxgmm.outofcore.open_source(frame).columns == ("a", "flag", "c", "w")
    for bad, words in (({"columns": "z"}, "no column 'z'"), ({"columns": ["a", "a"]}, "each once")):
        with pytest.raises(ValueError, match=words):
            jaxgmm.outofcore.open_source(frame, **bad)


def test_a_data_frame_with_two_columns_of_one_name_is_refused():
    pandas = pytest.importorskip("pandas", reason="the extra test has it")
    frame = pandas.DataFrame(np.ones((3, 3)), columns=["a", "a", "w"])
    with pytest.raises(ValueError, match="several columns are called 'a'"):
        jaxgmm.outofcore.open_source(frame, columns=["a"], weight_column="w")
