"""Saving, loading and exporting: exact round trips, and a reader that no file can fool."""

import contextlib
import dataclasses
import io
import os
import pickle
import stat
import struct
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxgmm
from jaxgmm.components import STRUCTURES as RECORDS
from jaxgmm.components import gaussian, get_model
from jaxgmm.io import atomic_write, load, load_columns, save
from jaxgmm.io.archive import FORMAT_VERSION
from jaxgmm.io.exported import model_as_bytes, model_of_bytes
from tests.conftest import case, x64
from tests.problems import K, every_structure_and_precision


def mixture(name, dtype="float32", n_components=K, n_features=2, off=()):
    """A mixture of one family in NumPy arrays, with numbers that no decimal notation holds exactly."""
    rng = np.random.default_rng(5)
    component = gaussian(RECORDS[name])
    weights = rng.uniform(1, 2, n_components)
    weights[list(off)] = 0
    means = rng.normal(size=(n_components, n_features)) * 1e3

    def numbers(like):
        # Positive, as are what a covariance's determinant is made of; some structures keep a triangle.
        values = rng.uniform(0.1, 2, like.shape).astype(dtype)
        return np.tril(values) if name in ("full", "tied", "VEE", "EVV") and like.ndim > 1 else values

    scale = jax.tree.map(numbers, jaxgmm.mixture.scale_like(component, n_components, n_features))
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum())
    return jaxgmm.GMMParams(log_weights.astype(dtype), means.astype(dtype), scale, component)


def identical(a, b):
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    return (
        a.model == b.model
        and len(left) == len(right)
        and all(
            x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
            for x, y in zip(left, right, strict=True)
        )
    )


def arrays(path):
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def rewrite(path, members, method=zipfile.ZIP_STORED):
    """A file with these members, whatever they are."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in members.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(array), version=(1, 0))
            archive.writestr(f"{name}.npy", content.getvalue())


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.npz"
    save(path, mixture("full"), columns=["a", "b c"])
    return path


# --- round trips


@every_structure_and_precision
def test_a_round_trip_is_exact(tmp_path, name, dtype):
    params = mixture(name, dtype, off=(1,))
    save(tmp_path / "m", params)
    assert identical(load(tmp_path / "m"), params)
    assert load_columns(tmp_path / "m") is None


def test_a_round_trip_of_any_size_is_exact(tmp_path):
    for shape in ((1, 1), (1, 5), (40, 7)):
        params = mixture("spherical", n_components=shape[0], n_features=shape[1])
        save(tmp_path / "m", params)
        assert identical(load(str(tmp_path / "m")), params)


def test_same_model_same_bytes(tmp_path):
    save(tmp_path / "a", mixture("tied"), columns=["x", "y"])
    save(tmp_path / "b", mixture("tied"), columns=["x", "y"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numpy_reads_it(saved):
    members = arrays(saved)
    assert str(members["model"]) == "full"
    assert members["means"].shape == (3, 2)


def test_float64_in_a_float32_session(tmp_path):
    with x64(True):
        save(tmp_path / "m", mixture("full", "float64"))
    with x64(False):
        params = load(tmp_path / "m")
    assert params.means.dtype == np.float32
    np.testing.assert_allclose(params.means, arrays(tmp_path / "m")["means"], rtol=1e-7)


def test_float64_that_float32_cannot_hold(tmp_path):
    with x64(True):
        params = mixture("spherical", "float64")
        params.scale[:] = 1e-100
        save(tmp_path / "m", params)
    with x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        load(tmp_path / "m")


def test_columns(tmp_path):
    for columns in [["a", "b"], ["é 世", "x,y"], ["a\ud800", "b"]]:
        with case(columns):
            if "\ud800" in columns[0]:
                with pytest.raises(ValueError, match="columns"):
                    save(tmp_path / "m", mixture("diag"), columns=columns)
                return
            save(tmp_path / "m", mixture("diag"), columns=columns)
            assert load_columns(tmp_path / "m") == tuple(columns)


def test_bad_columns_are_refused(tmp_path):
    for columns in (["a"], ["a", "a"], ["a", ""], ["a", "b\0"], ["a", 3], ["a", "\x1b[31m"]):
        with pytest.raises(ValueError, match="columns"):
            save(tmp_path / "m", mixture("diag"), columns=columns)
    assert os.listdir(tmp_path) == []


# --- what save refuses


def test_batched_params_are_refused(tmp_path):
    batch = jax.tree.map(lambda a: np.stack([a]), mixture("full"))
    with pytest.raises(ValueError, match=r"batch axes \(1,\)"):
        save(tmp_path / "m", batch)


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="GMMParams"):
        save(tmp_path / "m", {"means": 1})
    params = mixture("diag")
    result = jaxgmm.FitResult(params, *5 * [params.log_weights[0]])
    with pytest.raises(TypeError, match=r"result\.params"):
        save(tmp_path / "m", result)


def test_bad_values_are_refused(tmp_path):
    for field in ["log_weights", "means", "scale"]:
        with case(field):
            params = mixture("diag")
            for value in (np.nan, np.inf):
                spoilt = np.array(getattr(params, field))
                spoilt.flat[0] = value
                with pytest.raises(ValueError, match=r"finite|sum to 1"):
                    save(tmp_path / "m", dataclasses.replace(params, **{field: spoilt}))
            assert os.listdir(tmp_path) == []


def test_half_precision_is_refused(tmp_path):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16.dtype), mixture("diag"))
    with pytest.raises(ValueError, match="float32 or float64, got bfloat16"):
        save(tmp_path / "m", half)


def test_a_user_family_must_be_confirmed(tmp_path):
    own = RECORDS["diag"]._replace(name="mine")
    params = jaxgmm.GMMParams(*jax.tree.leaves(mixture("diag")), component=gaussian(own))
    with pytest.raises(ValueError, match=r"'mine' is not in jaxgmm's table.*covariance_type="):
        save(tmp_path / "m", params)
    save(tmp_path / "m", params, covariance_type=own)
    assert identical(load(tmp_path / "m", covariance_type=own), params)
    with pytest.raises(ValueError, match="user's own"):
        load(tmp_path / "m")
    with pytest.raises(ValueError, match="'mine', not the 'full'"):
        load(tmp_path / "m", covariance_type=RECORDS["full"])


def test_a_user_family_that_borrows_a_name(tmp_path):
    own = RECORDS["diag"]._replace(to_covariance=lambda scale, shape: scale)
    params = jaxgmm.GMMParams(*jax.tree.leaves(mixture("diag")), component=gaussian(own))
    with pytest.raises(ValueError, match="not in jaxgmm's table"):
        save(tmp_path / "m", params)
    with pytest.raises(ValueError, match="another record"):
        save(tmp_path / "m", params, covariance_type=RECORDS["diag"])
    save(tmp_path / "m", params, covariance_type=own)
    with pytest.raises(ValueError, match="user's own"):
        load(tmp_path / "m")


def test_a_user_family_with_a_tree_for_a_scale(tmp_path):
    diag = RECORDS["diag"]
    own = diag._replace(
        name="tree",
        from_variances=lambda v: {"b": {"sd": jnp.sqrt(v)}, "a": (jnp.ones(v.shape[1]),)},
        log_det=lambda scale, shape: diag.log_det(scale["b"]["sd"], shape),
    )
    base = mixture("diag")
    scale = {"b": {"sd": base.scale}, "a": (np.array([1.0, 2.0], np.float32),)}
    params = jaxgmm.GMMParams(base.log_weights, base.means, scale, gaussian(own))
    save(tmp_path / "m", params, covariance_type=own)
    again = load(tmp_path / "m", covariance_type=own)
    assert identical(again, params)
    assert jax.tree.structure(again) == jax.tree.structure(params)


# --- exported programs


def through_export(function, *arguments):
    """What an exported program gives after it was written and read."""
    pytest.importorskip("flatbuffers", reason="JAX writes exported programs by flatbuffers")
    written = export.export(jax.jit(function))(*arguments).serialize()
    return export.deserialize(written).call(*arguments)


MODELS = [
    *RECORDS, "factor(1)", "full-ratio(5)", "VVE-equal", "diag-fixed", "student_t(VVE)", "student_t(full, 4)",
    "contaminated(full)", "background(student_t(full))",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_program_has_the_model_by_its_name(name):
    model = get_model(name)
    assert model_of_bytes(model_as_bytes(tuple(model))) == model
    held = model._replace(weights=model.weights._replace(means=(0, 2), covariances=True))
    assert model_of_bytes(model_as_bytes(tuple(held))) == held


def test_exported_programs_take_and_return_mixtures_and_results():
    params, x = mixture("diag"), np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    held = jaxgmm.mixture.hold(params, means=[1])
    heavy = jaxgmm.make_params([1.0], [[0.0, 0.0]], np.ones((1, 2)), "student_t(diag)")
    for given in (params, held, heavy):
        again = through_export(lambda p: jaxgmm.mixture.translate(p, jnp.ones(2, jnp.float32)), given)
        assert identical(again, jaxgmm.mixture.translate(given, np.ones(2, np.float32)))
    number = jnp.zeros(())
    result = jaxgmm.FitResult(params, number, number, number, number, jnp.zeros(3))
    again = through_export(lambda r: r, result)
    assert isinstance(again, jaxgmm.FitResult)
    assert identical(again.params, params)
    data = jaxgmm.observe(
        np.where(x > 1, np.nan, x), missing="nan", labels=np.arange(20) % 3 - 1, noise=np.ones((20, 2))
    )
    prior = jaxgmm.default_prior(x, 3, "diag")
    for tree in (data, dataclasses.replace(data, tile=4), prior):
        again = through_export(lambda t: t, tree)
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_exported_program_refuses_a_user_family_by_name():
    params = mixture("diag")
    for own in (
        RECORDS["diag"]._replace(name="mine"),
        RECORDS["diag"]._replace(to_covariance=lambda scale, shape: scale),
    ):
        component = gaussian(own)
        with pytest.raises(ValueError, match=r"is not in jaxgmm's table.*take and return arrays"):
            model_as_bytes((component, params.weights_rule))
    with pytest.raises(ValueError, match="'mine' is not in jaxgmm's table"):
        through_export(
            lambda p: p, dataclasses.replace(params, component=gaussian(own._replace(name="mine")))
        )


# --- writing whole or not at all


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "f"

    def write_half():
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == []
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == ["f"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_save_leaves_the_old_model(saved, monkeypatch):
    before = saved.read_bytes()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(saved, mixture("diag"))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_replaced_file_keeps_its_permissions_and_links(tmp_path):
    path, link = tmp_path / "f", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to(path)
    with atomic_write(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "f") as stream:
            stream.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(IsADirectoryError):
        save(tmp_path, mixture("full"))
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no" / "m", mixture("full"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        save(tmp_path / "pipe", mixture("full"))


# --- files that are not models


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "m")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        load(tmp_path / "pipe")


def refused(path, match=None):
    """`load` says which file and why, in one line; `load_columns` either reads it or does too."""
    with pytest.raises(ValueError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with contextlib.suppress(ValueError):
        load_columns(path)


def test_what_is_no_zip_is_refused(tmp_path):
    for content in (b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(1000)):
        (tmp_path / "m").write_bytes(content)
        refused(tmp_path / "m", "not a jaxgmm model")


def test_an_npz_of_something_else(tmp_path):
    np.savez(tmp_path / "m.npz", X=np.zeros(3))
    refused(tmp_path / "m.npz", "no format_version")


def test_truncation_anywhere(saved):
    content = saved.read_bytes()
    for end in range(0, len(content), 17):
        saved.write_bytes(content[:end])
        refused(saved)


def test_a_flipped_byte_is_found_or_harmless(saved):
    params, content = load(saved), saved.read_bytes()
    harmless = 0
    every = range(0, len(content), 3)
    for at in every:
        saved.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        with contextlib.suppress(ValueError):
            assert identical(load(saved), params), f"byte {at}: another model"
            harmless += 1
    # Dates, attributes and the like; everything else is under a checksum.
    assert harmless < 0.25 * len(every)


def test_random_bytes_in_place_of_members(saved):
    rng = np.random.default_rng(0)
    content = bytearray(saved.read_bytes())
    for _ in range(100):
        damaged = bytearray(content)
        at = int(rng.integers(len(content) - 40))
        damaged[at : at + 40] = rng.bytes(40)
        saved.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            load(saved)


def test_random_headers_inside_a_sound_zip(saved):
    """The checksums are right, so that the npy parser itself has to hold."""
    rng = np.random.default_rng(1)
    members = arrays(saved)
    for _ in range(100):
        with zipfile.ZipFile(saved, "w") as archive:
            for name, array in members.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, array, version=(1, 0))
                raw = bytearray(content.getvalue())
                if rng.random() < 0.3:
                    at = int(rng.integers(min(len(raw), 128)))
                    raw[at] = int(rng.integers(256))
                archive.writestr(f"{name}.npy", bytes(raw))
        with contextlib.suppress(ValueError):
            load(saved)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(saved, tmp_path):
    witness = tmp_path / "witness"
    members = arrays(saved)
    evil = np.empty(members["means"].shape, object)
    evil[...] = Payload(witness)
    rewrite(saved, members | {"means": evil})
    refused(saved, "does not hold plain numbers")
    raw = pickle.dumps(Payload(witness))
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("format_version.npy", raw)
    refused(saved, "not an array")
    saved.write_bytes(raw)
    refused(saved)
    assert not witness.exists()


def test_a_header_is_not_evaluated(saved, tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 400 + "1,), }"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + bytes(4)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("format_version.npy", body)
    refused(saved, "does not hold plain numbers")


def test_a_bomb_is_refused_before_it_is_unpacked(saved):
    members = arrays(saved)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        rewrite(saved, members | {"means": np.zeros((3, 500_000), np.float32)}, method)
        assert saved.stat().st_size < 1_000_000
        tracemalloc.start()
        try:
            refused(saved, "compressed")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000


def test_a_huge_declared_shape(saved):
    def declare(shape, dtype="<f4", size=24):
        header = repr({"descr": dtype, "fortran_order": False, "shape": shape})[:-1] + ", }"
        header += " " * (117 - len(header)) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(size)

    members = arrays(saved)
    cases = [
        ((10**12, 2), "<f4"),
        ((2**62, 2**62), "<f4"),
        ((3, 2**63), "<f4"),
        ((), "<U999999999"),
        ((0,), "<U0"),
    ]
    for shape, dtype in cases:
        rewrite(saved, {name: array for name, array in members.items() if name != "means"})
        with zipfile.ZipFile(saved, "a") as archive:
            archive.writestr("means.npy", declare(shape, dtype))
        refused(saved, "damaged")


def test_a_family_that_would_need_far_more_memory_than_the_file(saved):
    """(1, 200 000) means fit in a file; their dense covariance would be 160 GB."""
    n = 200_000
    rewrite(
        saved,
        {
            "format_version": np.int64(1),
            "model": np.str_("full"),
            "custom_model": np.False_,
            "log_weights": np.zeros(1, np.float32),
            "means": np.zeros((1, n), np.float32),
            "scale_0": np.zeros((1, 1, 1), np.float32),
        },
    )
    refused(saved, "shapes")


def test_a_lying_directory(saved):
    """The zip's directory may claim any size: a member is never read beyond it, nor trusted to it."""
    content = bytearray(saved.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    for claim in (0, 1, 10**9, 2**32 - 2):
        lying = bytearray(content)
        struct.pack_into("<II", lying, at + 20, claim, claim)
        saved.write_bytes(lying)
        refused(saved)


def test_foreign_members_are_refused(saved):
    members = arrays(saved)
    for name in ("../../evil", "/etc/evil", "means.npy/x", "scale_2", "scale_00", "Means", ""):
        rewrite(saved, members | {name: np.zeros(2)})
        refused(saved, "unknown")
    assert os.listdir(saved.parent) == [saved.name]


def test_a_member_that_is_no_array(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("run.py", "print()")
    refused(saved, "unknown")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("means.npy", archive.read("means.npy"))
    refused(saved, "one name twice")


def test_too_many_members(saved):
    rewrite(saved, arrays(saved) | {f"scale_{i}": np.zeros(2) for i in range(1, 100)})
    refused(saved, "too many")


def test_a_missing_member(saved):
    members = arrays(saved)
    for name in ("model", "custom_model", "log_weights", "means"):
        rewrite(saved, {other: array for other, array in members.items() if other != name})
        refused(saved, f"missing: \\['{name}'\\]")


def test_a_newer_version_is_said_to_be_newer(saved):
    members = arrays(saved)
    rewrite(saved, members | {"format_version": np.int64(FORMAT_VERSION + 1), "something_new": np.zeros(2)})
    refused(saved, "newer jaxgmm.*upgrade")


def test_a_bad_version_is_refused(saved):
    members = arrays(saved)
    for version in (np.int64(0), np.int64(-1), np.float64(1), np.ones(2, np.int64), np.str_("1")):
        rewrite(saved, members | {"format_version": version})
        refused(saved, "format_version")


full = np.tile(np.eye(2, dtype=np.float32), (3, 1, 1))


NO_MIXTURES = [
    ({"model": np.str_("nonsense")}, "covariance_type must be one of"),
    ({"model": np.str_("diag")}, "shapes"),
    ({"model": np.array(["full"])}, "model must be text"),
    ({"model": np.float64(1)}, "model must be text"),
    ({"custom_model": np.int64(0)}, "custom_model"),
    ({"custom_model": np.True_}, "user's own"),
    ({"log_weights": np.zeros(3, np.float32)}, "sum to 1, got 3"),
    ({"log_weights": np.array([0, np.nan, -np.inf], np.float32)}, "finite"),
    ({"log_weights": np.full(3, -np.inf, np.float32)}, "sum to 1, got 0"),
    ({"log_weights": np.full(3, 1e30, np.float32)}, "sum to 1"),
    ({"log_weights": np.zeros((3, 1), np.float32)}, "log_weights must have shape"),
    ({"log_weights": np.zeros(2, np.float32)}, "log_weights must have shape"),
    ({"log_weights": np.log(np.full(3, 1 / 3))}, "dtype of means"),
    ({"means": np.zeros((3, 2), np.int64)}, "floating point"),
    ({"means": np.zeros((3, 2), bool)}, "floating point"),
    ({"means": np.zeros(3, np.float32)}, "means must have shape"),
    ({"means": np.zeros((0, 2), np.float32)}, "means must have shape"),
    ({"means": np.zeros((3, 3), np.float32)}, "shapes"),
    ({"means": np.full((3, 2), np.inf, np.float32)}, "finite"),
    ({"means": np.asfortranarray(np.zeros((3, 2), np.float32))}, "plain numbers"),
    ({"means": np.zeros((3, 2), ">f4")}, "plain numbers"),
    ({"means": np.zeros((3, 2), np.float16)}, "plain numbers"),
    ({"means": np.zeros((3, 2), np.complex64)}, "plain numbers"),
    ({"scale_0": -full}, "positive definite"),
    ({"scale_0": 0 * full}, "positive definite"),
    ({"scale_0": np.ones((3, 2, 2), np.float32)}, "lower triangular"),
    ({"scale_0": full * np.nan}, "finite"),
    ({"scale_0": full.astype(np.float64)}, "dtype of means"),
    ({"scale_1": full}, "shapes"),
    ({"columns": np.array(["a"])}, "columns must name"),
    ({"columns": np.array(["a", "a"])}, "differ"),
    ({"columns": np.array(["a", "\x1b[2J"])}, "printable"),
    ({"columns": np.zeros(2)}, "columns must be text"),
]


def test_contents_that_are_no_mixture_are_refused(saved):
    members = arrays(saved)
    for changes, match in NO_MIXTURES:
        rewrite(saved, members | changes)
        refused(saved, match)


def test_text_that_is_not_unicode(saved):
    members = arrays(saved)
    bad = np.frombuffer(struct.pack("<II", 0x61, 0x7FFFFFFF), "<U1")
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(2, np.int32), version=(1, 0))
    raw = content.getvalue()[:-8].replace(b"'<i4'", b"'<U1'") + bad.tobytes()
    rewrite(saved, {name: array for name, array in members.items() if name != "columns"})
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("columns.npy", raw)
    refused(saved)


def test_columns_of_a_damaged_file(saved):
    rewrite(saved, arrays(saved) | {"columns": np.array(["a", "b", "c"])})
    with pytest.raises(ValueError, match="columns must name the 2 features"):
        load_columns(saved)
