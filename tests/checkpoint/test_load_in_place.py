"""An optimizer loads in place, wholly or not at all."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, schedules


def test_an_optimizer_loads_in_place_and_the_class_makes_a_new_one(tmp_path):
    path, w, g = tmp_path / "run.npz", np.ones(3), np.full(3, 0.5)
    saved = RMSprop(lr=schedules.ExponentialDecay(0.1, 10, 0.5), momentum=0.5, lr_scale=[2.0])
    saved.step([w], [g])
    saved.save(path)
    twin, twin_w = RMSprop.load(path), w.copy()
    opt = RMSprop(lr=9.0, use_ema=True)
    opt.step([np.ones((2, 2))], [np.ones((2, 2))])
    step = opt.bind([np.ones((2, 2))], [np.ones((2, 2))])
    assert opt.load(path) is opt
    assert opt.get_config() == saved.get_config() == twin.get_config()
    with pytest.raises(ValueError, match="has shape"):
        step()  # what was bound before sees the new state
    opt.step([w], [g])
    twin.step([twin_w], [g])
    assert_same_bits(w, twin_w)
    assert (opt.iterations, saved.iterations) == (2, 1)


def test_a_load_in_place_that_raises_changes_nothing(tmp_path):
    path, opt, w = tmp_path / "run.npz", RMSprop(lr=0.5, momentum=0.5), np.ones(3)
    opt.step([w], [np.ones(3)])
    opt.save(path)
    path.write_bytes(path.read_bytes()[:-30])
    before, weights = opt.get_config(), opt.get_weights()
    for bad in (path, tmp_path / "none.npz"):
        with pytest.raises((ValueError, OSError)):
            opt.load(bad)
    assert opt.get_config() == before
    assert opt.iterations == 1
    for found, expected in zip(opt.get_weights(), weights, strict=True):
        assert_same_bits(found, expected)


def test_a_subclass_loads_the_attributes_of_its_config_in_place(tmp_path):
    class Mine(RMSprop):
        def __init__(self, note="", **arguments):
            super().__init__(**arguments)
            self.note = note

        def get_config(self):
            return {**super().get_config(), "note": self.note}

    Mine("first").save(tmp_path / "run.npz")
    other = Mine("second")
    other.load(tmp_path / "run.npz")
    assert other.note == "first"


def test_a_load_in_place_takes_over_whose_names_the_attributes_have(tmp_path):
    RMSprop(decay=0.5).save(tmp_path / "run.npz")
    opt = RMSprop.like("tf1", learning_rate=0.1)
    opt.load(tmp_path / "run.npz")
    opt.decay = 0.25
    assert opt.get_config()["decay"] == 0.25


def test_a_subclass_s_own_load_loads_in_place_too(tmp_path):
    class Mine(RMSprop):
        @classmethod
        def load(cls, path, custom_objects=None):
            return super().load(path, custom_objects)

    opt = Mine(lr=0.5)
    opt.save(tmp_path / "run.npz")
    other = Mine(lr=0.25)
    assert other.load(tmp_path / "run.npz") is other
    assert other.lr == 0.5
    assert Mine.load(tmp_path / "run.npz").lr == 0.5


def test_a_load_inside_averaged_raises(tmp_path):
    opt, w = RMSprop(use_ema=True), np.ones(3)
    opt.step([w], [np.ones(3)])
    opt.save(tmp_path / "run.npz")
    with opt.averaged([w]), pytest.raises(RuntimeError, match="inside averaged"):
        opt.load(tmp_path / "run.npz")


def test_unpickling_inside_averaged_raises():
    opt, w = RMSprop(use_ema=True), [np.ones(3)]
    opt.step(w, [np.ones(3)])
    state = RMSprop().__getstate__()
    with opt.averaged(w), pytest.raises(RuntimeError, match=r"replaced inside averaged\(\)"):
        opt.__setstate__(state)
    assert opt.iterations == 1
