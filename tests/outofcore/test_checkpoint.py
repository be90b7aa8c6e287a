"""A checkpoint gives back the state that was kept, bit for bit, to the fit that kept it and to no other."""

import dataclasses
import errno
import io
import os
import zipfile

import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.outofcore import Checkpoint
from tests.conftest import case
from tests.outofcore.streams import Passes, assert_same_bits, parts, start, stream, streamed


class Stop(Exception):
    """What interrupts a fit."""


def interrupt(path, step, **options):
    """Keep the state of that step: a pass is a step, after those of opening and of the survey."""

    def stop():
        raise Stop

    with pytest.raises(Stop):
        stream(Passes(step + 2, stop), checkpoint=Checkpoint(path, every_iterations=1), **options)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The bytes of a checkpoint of step 6."""
    path = tmp_path_factory.mktemp("kept") / "fit.npz"
    interrupt(path, 6)
    return path.read_bytes()


def members_of(content):
    with np.load(io.BytesIO(content)) as archive:
        return {name: archive[name] for name in archive.files}


def rewrite(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in members.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(1, 0))
            archive.writestr(f"{name}.npy", stream.getvalue())


def test_a_fit_that_is_taken_up_ends_with_the_same_bits(kept, tmp_path):
    path, told = tmp_path / "fit.npz", []
    path.write_bytes(kept)
    assert_same_bits(stream(parts(), checkpoint=path, progress=told.append), streamed())
    assert told[0].n_iter == 7


def test_a_higher_limit_on_the_steps_goes_on_as_if_it_had_been_the_first(tmp_path):
    path = tmp_path / "fit.npz"
    for low in (3, 4, 5):  # on and off an extrapolation
        assert int(stream(parts(), max_iter=low, checkpoint=path).n_iter) == low
        path.rename(tmp_path / f"{low}.npz")
        longer = stream(parts(), max_iter=11, checkpoint=tmp_path / f"{low}.npz")
        assert_same_bits(longer, stream(parts(), max_iter=11))


def test_other_data_and_settings_are_refused_by_name(kept, tmp_path):
    for source, options, named in [
        (parts(), {"tol": 1e-3}, "tol was .* and is"),
        (parts(), {"reg_covar": 1e-3}, "reg_covar was"),
        (parts(), {"options": EMOptions(history_size=9)}, r"history_size was \d+ and is 9"),
        (parts(), {"chunk_size": 32}, r"source\.chunk_size was 64 and is 32"),
        (parts(), {"start": "moved"}, "starting means"),
        (parts()[:3], {}, "n_samples was 200 and is 150"),
        ([a * np.float32(1.01) for a in parts()], {}, "variance of the data was"),
        (parts(), {"prior": jaxgmm.Prior(mean=np.zeros(3), strength=1.0)}, "prior was None"),
    ]:
        with case(named):
            path = tmp_path / "fit.npz"
            path.write_bytes(kept)
            if "start" in options:
                options = {"start": dataclasses.replace(start(), means=start().means + 0.5)}
            with pytest.raises(
                ValueError, match=f"fit.npz: a checkpoint of other data or settings: .*{named}"
            ):
                stream(source, checkpoint=path, **options)
            assert path.read_bytes() == kept


def test_data_that_differ_by_rounding_are_the_same_data(kept, tmp_path):
    path = tmp_path / "fit.npz"
    path.write_bytes(kept)
    near = [a * np.float32(1 + 1e-6) for a in parts()]
    told = []
    result = stream(near, checkpoint=path, progress=told.append)
    assert told[0].n_iter == 7
    # The data's own change, and that of a tolerance of 1e-5 in the components' widths.
    np.testing.assert_allclose(result.params.means, streamed().params.means, atol=1e-4)


def test_damaged_files_are_refused_or_give_the_same_state(kept, tmp_path):
    path, rng = tmp_path / "damaged.npz", np.random.default_rng(0)
    messages = []
    for i in range(60):
        damaged = bytearray(kept)
        if i % 2:
            del damaged[int(rng.integers(len(kept))) :]
        else:
            damaged[int(rng.integers(len(kept)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            result = stream(parts(), checkpoint=path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert_same_bits(result, streamed())  # a byte that nothing depends on
    assert len(messages) > 45
    assert all(str(path) in message for message in messages)
    jaxgmm.save(path, start())
    with pytest.raises(ValueError, match="not a jaxgmm checkpoint"):
        stream(parts(), checkpoint=path)


def test_numbers_that_are_not_finite_are_refused_by_name(kept, tmp_path):
    """One number of each array in turn; only the history may hold them."""
    path, members = tmp_path / "edited.npz", members_of(kept)
    refused = set()
    for name in ("shift", *(n for n in members if n.startswith("state_"))):
        edited = members[name].copy()
        if edited.dtype.kind != "f":
            continue
        edited.flat[0] = np.nan
        rewrite(path, members | {name: edited})
        if edited.size > 100:
            stream(parts(), checkpoint=path, max_iter=7)
            continue
        with pytest.raises(ValueError, match=r"edited\.npz: damaged: its .* is not finite") as caught:
            stream(parts(), checkpoint=path)
        refused.add(named := str(caught.value).partition("its ")[2].partition(" is")[0])
        edited.flat[0] = np.inf
        rewrite(path, members | {name: edited})
        if named.endswith((".means", ".scale")) and not named.startswith("['point']"):
            with pytest.raises(ValueError, match="is not finite"):
                stream(parts(), checkpoint=path)
        elif named.startswith("['point']"):  # an extrapolation that is not evaluated yet may be infinite
            stream(parts(), checkpoint=path)
    of_params = {f"['{p}'].{part}" for p in ("base", "image") for part in ("log_weights", "means", "scale")}
    assert refused >= of_params
    others = {name.partition(".")[0] for name in refused - of_params}
    numbers = ("shift", "point", "radius", "horizon", "objective", "report", "step")
    assert others == {f"['{name}']" for name in numbers}


def test_a_fit_that_failed_is_taken_up_as_it_ended(tmp_path):
    path = tmp_path / "failed.npz"
    failing = dataclasses.replace(start(), means=start().means + 1e30)
    ended = stream(parts(), start=failing, checkpoint=path)
    assert int(ended.status) not in (jaxgmm.Status.CONVERGED, jaxgmm.Status.MAX_ITER)
    again = Passes()
    assert_same_bits(stream(again, start=failing, checkpoint=path), ended)
    assert again.passes <= 2


def test_a_full_disk_leaves_what_was_there(kept, tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    path.write_bytes(kept)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = r"could not be written .*No space left.*; that of step 6 is kept"
    with pytest.raises(OSError, match=said) as error:
        stream(parts(), checkpoint=Checkpoint(path, every_iterations=1))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["fit.npz"]


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ({"every_iterations": 3}, [3, 6, 9]),
        ({"every_seconds": 1e-9}, list(range(1, 12))),
        ({}, []),  # 60 seconds
    ],
)
def test_it_is_written_after_so_many_steps_or_seconds_and_in_the_end(tmp_path, rule, steps):
    path, seen = tmp_path / "fit.npz", [b""]

    def look(_):
        """Called after each step and once at the end, when the state is kept."""
        seen.append(path.read_bytes() if path.exists() else b"")

    stream(parts(), max_iter=11, checkpoint=Checkpoint(path, **rule), progress=look)
    assert [i for i in range(1, len(seen)) if seen[i] != seen[i - 1]] == [*steps, len(seen) - 1]
    assert path.read_bytes() == seen[-1]


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path):
    never = Passes()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stream(never, checkpoint=tmp_path / "nowhere" / "fit.npz")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        stream(never, checkpoint=tmp_path)
    assert never.passes <= 3  # two surveys


def test_arguments_are_checked():
    for arguments, kind, said in [
        ({"path": 3}, TypeError, "path must be"),
        ({"every_iterations": 0}, ValueError, "every_iterations must be at least 1"),
        ({"every_seconds": 0}, ValueError, "every_seconds must be positive"),
        ({"every_seconds": "5"}, TypeError, "every_seconds must be a number"),
    ]:
        with case(arguments), pytest.raises(kind, match=said):
            Checkpoint(**{"path": "a", **arguments})
