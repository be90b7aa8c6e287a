"""A checkpoint gives back the state that was kept, bit for bit, to the fit that kept it and to no other."""

import dataclasses
import errno
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import _validate as validate
from jaxgmm.kernels.exact import accumulate
from jaxgmm.outofcore import _checkpoint as checkpoint
from jaxgmm.outofcore import _host_em as host_em
from jaxgmm.outofcore._checkpoint import Checkpoint
from jaxgmm.solvers.squarem import RUNNING
from tests.conftest import overlapping, start_from

X, LABELS = overlapping(300, 2, 3, seed=3)
X = (X + 50.0).astype(np.float32)  # so that there is a shift
_moments = jax.jit(functools.partial(accumulate, block_size=128))


class Fit:
    """A fit of X by `outer.climb`, with what a checkpoint asks of one."""

    def __init__(self, *, max_iter=30, tol=1e-4, source="a", prior=None, seed=0, history_size=8, rows=X):
        self.params = start_from(rows, np.roll(LABELS[: len(rows)], seed), "full", np.float32)
        wide = rows.astype(np.float64)
        self.survey = host_em.Survey(len(rows), float(len(rows)), wide.mean(0), wide.var(0))
        self.numbers = validate.iteration(tol, max_iter, 1e-6, True, jnp.float32)
        self.frame = self.survey.context(self.numbers[2], prior, self.params)
        self.rows = jnp.asarray(rows)
        self.settings = checkpoint.settings(
            self.params, self.survey, self.frame, self.numbers, prior, history_size, {"parts": [source]}
        )

    def moments(self, params):
        return _moments(params, self.rows, None, shift=self.frame.shift)

    def climb(self, state=None, after=None):
        state = self.settings.like if state is None else state
        return host_em.climb(state, self.frame, self.numbers, self.moments, after)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A file after six turns of a fit, and that fit's states from there on."""
    path = tmp_path_factory.mktemp("kept") / "fit.npz"
    fit, states = Fit(), []
    fit.climb(after=states.append)
    assert len(states) > 10
    Checkpoint(path).save(states[5], fit.settings)
    return path, states


def test_a_fit_that_is_taken_up_ends_with_the_same_bits(kept):
    path, states = kept
    state = Checkpoint(path).load(Fit().settings)
    equal(state, states[5])
    assert state.base.family is states[5].base.family
    equal(Fit().climb(state), states[-1])


def test_where_there_is_no_file_there_is_no_state(tmp_path):
    assert Checkpoint(tmp_path / "none.npz").load(Fit().settings) is None


def test_a_higher_limit_on_the_steps_goes_on_as_if_it_had_been_the_first(tmp_path):
    path = tmp_path / "fit.npz"
    for low in (3, 4, 5):  # on and off an extrapolation
        short = Fit(max_iter=low)
        Checkpoint(path).save(short.climb(), short.settings)
        longer = Fit(max_iter=11)
        equal(longer.climb(Checkpoint(path).load(longer.settings)), Fit(max_iter=11).climb())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"tol": 1e-3}, "tol was .* and is"),
        ({"source": "b"}, r"source.parts\[0\] was 'a' and is 'b'"),
        ({"history_size": 9}, "history_size was 8 and is 9"),
        ({"seed": 1}, "starting"),
        ({"rows": X[:250]}, "n_samples was 300 and is 250"),
        ({"rows": X * np.float32(1.01)}, "variance of the data was"),
        ({"prior": jaxgmm.Prior(mean=jnp.zeros(2), strength=jnp.ones(()))}, "prior was None"),
    ],
)
def test_other_data_and_settings_are_refused_by_name(kept, other, named):
    with pytest.raises(ValueError, match=f"fit.npz: a checkpoint of other data or settings: .*{named}"):
        Checkpoint(kept[0]).load(Fit(**other).settings)


def test_the_rounding_of_sums_in_another_order_is_no_difference(kept):
    path, states = kept
    fit = Fit()
    shift = np.nextafter(fit.settings.shift, np.float32(np.inf))
    near = {n: checkpoint.Near(a.values * (1 + 1e-9), a.unit) for n, a in fit.settings.near.items()}
    state = Checkpoint(path).load(dataclasses.replace(fit.settings, shift=shift, near=near))
    # In the data's own place the means are where they were.
    for a, b in ((state.base, states[5].base), (state.point, states[5].point)):
        np.testing.assert_allclose(
            np.asarray(a.means, np.float64) + shift,
            np.asarray(b.means, np.float64) + fit.settings.shift,
            rtol=1e-7,
        )


def test_damaged_files_are_refused(kept, tmp_path):
    whole = kept[0].read_bytes()
    path = tmp_path / "damaged.npz"
    rng = np.random.default_rng(0)
    settings = Fit().settings
    messages = []
    for i in range(60):
        damaged = bytearray(whole)
        if i % 2:
            del damaged[int(rng.integers(len(whole))) :]
        else:
            damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            state = Checkpoint(path).load(settings)
        except ValueError as error:
            messages.append(str(error))
        else:
            equal(state, kept[1][5])  # a byte that nothing depends on
    assert len(messages) > 45
    assert all(str(path) in message for message in messages)
    jaxgmm.save(path, Fit().params)
    with pytest.raises(ValueError, match="not a jaxgmm checkpoint"):
        Checkpoint(path).load(settings)


EDITED = {
    "base.log_weights": lambda s: jnp.full_like(s.base.log_weights, -jnp.inf),
    "base.means": lambda s: s.base.means.at[1, 0].set(jnp.nan),
    "base.scale": lambda s: s.base.scale.at[0, 0, 0].set(jnp.inf),
    "image.means": lambda s: s.image.means.at[0, 1].set(jnp.inf),
    "point": lambda s: s.point.means * jnp.nan,
    "radius": lambda s: s.radius * jnp.nan,
    "horizon": lambda s: s.horizon + jnp.inf,
    "objective": lambda s: s.objective * jnp.nan,
    "report": lambda s: s.report + jnp.inf,
    "step": lambda s: s.step * jnp.nan,
    "shift": None,
}


@pytest.mark.parametrize("name", EDITED)
def test_numbers_that_are_not_finite_are_refused_by_name(kept, tmp_path, name):
    fit, state = Fit(), kept[1][5]
    settings = fit.settings
    if name == "shift":
        settings = dataclasses.replace(settings, shift=settings.shift * np.float32(np.nan))
    else:
        field, _, part = name.partition(".")
        part = "means" if field == "point" else part
        value = EDITED[name](state)
        if part:
            value = dataclasses.replace(getattr(state, field), **{part: value})
        state = state._replace(**{field: value})
    path = tmp_path / "edited.npz"
    Checkpoint(path).save(state, settings)
    with pytest.raises(ValueError, match=rf"edited\.npz: damaged: its {name} is not finite"):
        Checkpoint(path).load(fit.settings)


def test_a_fit_that_failed_is_taken_up_as_it_ended(kept, tmp_path):
    state = kept[1][5]._replace(status=jnp.asarray(jaxgmm.Status.DEGENERATE, jnp.int32))
    state = state._replace(image=dataclasses.replace(state.image, means=state.image.means * jnp.nan))
    path = tmp_path / "failed.npz"
    Checkpoint(path).save(state, Fit().settings)
    equal(Checkpoint(path).load(Fit().settings), state)


def test_a_full_disk_leaves_what_was_there(kept, tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    fit, ck = Fit(), Checkpoint(path)
    ck.save(kept[1][3], fit.settings)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"could not be written .*No space left.*; that of step 4 is kept"
    ) as error:
        ck.save(kept[1][5], fit.settings)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_it_is_due_after_so_many_steps_or_seconds_and_in_the_end(kept, tmp_path, monkeypatch):
    states, settings = kept[1], Fit().settings
    ck = Checkpoint(tmp_path / "fit.npz", every_iterations=3)
    assert [ck.due(s) for s in states[:4]] == [False, False, True, True]
    ck.save(states[2], settings)
    assert [ck.due(s) for s in states[3:6]] == [False, False, True]
    assert int(states[-1].status) != RUNNING
    assert ck.due(states[-1])

    clock = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    ck = Checkpoint(tmp_path / "fit.npz", every_seconds=5)
    clock[0] = 104.9
    assert not ck.due(states[8])
    clock[0] = 105.0
    assert ck.due(states[8])


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path):
    settings = Fit().settings
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Checkpoint(tmp_path / "nowhere" / "fit.npz").load(settings)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        Checkpoint(tmp_path).load(settings)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="path must be"):
        Checkpoint(3)
    with pytest.raises(ValueError, match="every_iterations must be at least 1"):
        Checkpoint("a", every_iterations=0)
    with pytest.raises(ValueError, match="every_seconds must be positive"):
        Checkpoint("a", every_seconds=0)
    with pytest.raises(TypeError, match="every_seconds must be a number"):
        Checkpoint("a", every_seconds="5")
    assert Checkpoint("a").every_seconds == 60
    with pytest.raises(TypeError, match="checkpoint must be"):
        checkpoint.check(3)
    assert checkpoint.check("a").path == "a"
