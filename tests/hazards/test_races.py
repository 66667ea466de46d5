"""Options and states that change while a call is under way."""

import copy
import gc
import os
import sys
import threading

import numpy as np
import pytest
from common import assert_same_bits
from interpreters import sleeping
from promises import linux
from states import Asked, slots_of

from rmsprop_c import RMSprop, schedules


def test_a_cycle_keeps_its_sum_if_the_option_goes_while_a_state_is_taken_over():
    opt, w = RMSprop(), [np.ones(4)]
    opt.build(w)
    opt.gradient_accumulation_steps = 2

    def meanwhile(frame, event, argument):  # as another thread may
        if event == "call" and frame.f_code.co_name == "slab":
            opt.gradient_accumulation_steps = None

    sys.setprofile(meanwhile)
    try:
        opt.import_state("keras3", [np.int64(7), np.float32(0.1), np.ones(4), np.ones(4)])
    finally:
        sys.setprofile(None)
    assert slots_of(opt) == ["accumulator", "gradient_sum"]
    opt.step(w, [np.full(4, 3.0)])
    assert_same_bits(opt.weights[0], np.full(4, 0.9 * 1 + (1 - 0.9) * 4.0))


@pytest.mark.parametrize("dtypes", [("f4", "f8"), ("f8", "f4")])
def test_weights_are_not_set_into_a_model_of_another_dtype(dtypes):
    class Meanwhile:
        def __array__(self, dtype=None, copy=None):
            opt.reset()
            opt.build([np.ones(1000, dtypes[1])])
            return np.full(1000, 2, dtypes[0])

    opt = RMSprop()
    opt.build([np.ones(1000, dtypes[0])])
    with pytest.raises(RuntimeError, match=r"^another thread has rebuilt the optimizer meanwhile"):
        opt.set_weights([Meanwhile()])
    assert not opt.weights[0].any()


def test_weights_are_shown_although_the_state_is_forgotten_meanwhile():
    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            opt.reset()

    threshold = gc.get_threshold()
    try:
        for count in range(1, 30):
            gc.disable()
            opt = RMSprop()
            opt.build([np.ones(2)] * 9)
            gc.collect()
            Garbage()
            gc.set_threshold(count, 1000, 1000)
            gc.enable()
            assert len(opt.weights) in (0, 9)
    finally:
        gc.set_threshold(*threshold)
        gc.enable()


def test_a_step_that_updates_asks_the_schedule_even_if_the_cycle_goes_meanwhile():
    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            opt.gradient_accumulation_steps = None
            return str.__eq__(self, other)

    seen = Asked()
    opt, w = RMSprop(lr=seen, rho=0.0, epsilon=0.0, gradient_accumulation_steps=2), np.ones(2)
    opt.exclude_from_weight_decay = (Key("w"),)
    opt.step({Key("w"): w}, {"w": np.ones(2)})
    assert (opt.iterations, seen.steps) == (1, [0])
    assert_same_bits(w, np.full(2, 0.5))


@pytest.mark.parametrize("way", ["skip", "raise"])
def test_what_a_step_does_about_nan_is_what_was_set_when_it_began(way):
    other = {"skip": "raise", "raise": "skip"}[way]
    size, wrong = 3_000_000, []
    for _ in range(5):
        opt, w, g = RMSprop(nonfinite=way, zero_grad=True), np.ones(size), np.ones(size)
        g[-1] = np.nan
        begun = threading.Event()

        def change(opt=opt, begun=begun):
            begun.wait()
            opt.nonfinite = other

        thread = threading.Thread(target=change)
        thread.start()
        begun.set()
        try:
            opt.step([w], [g])
            did = "skip"
        except ValueError:
            did = "raise"
        thread.join()
        if (did == "skip") != (not g.any()) or (did == "skip") != (opt.skipped_steps == 1):
            wrong.append(did)
    assert not wrong


def test_averaged_that_can_save_nothing_lets_steps_go_on():
    class Full(np.ndarray):
        def copy(self, order="C"):
            raise MemoryError

    opt, w = RMSprop(use_ema=True), np.ones(3).view(Full)
    opt.step([w], [np.ones(3)])
    with pytest.raises(MemoryError):
        opt.averaged([w]).__enter__()
    opt.step([w], [np.ones(3)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_child_forked_by_a_schedule_is_in_the_step_too():
    def forking(step):
        child = os.fork()
        if child:
            status.append(os.waitpid(child, 0)[1])
            return 0.1
        try:
            opt.get_weights()
        except RuntimeError:
            os._exit(0)
        finally:
            os._exit(1)

    status: list[int] = []
    opt = RMSprop(lr=forking)
    opt.step([np.ones(3)], [np.ones(3)])
    assert status == [0]


def test_constraints_know_an_update_whatever_the_loss_does():
    def restarting(params):
        opt.reset()
        return 0.0, [np.ones(2)]

    w, opt = np.ones(2), RMSprop(nonfinite="skip", lr=0.0)
    opt.step([w], [np.full(2, np.nan)])
    assert len(opt.get_updates([w], [lambda w: w * 2], restarting)) == 2
    assert_same_bits(w, [2.0, 2.0])


def test_a_parameter_that_is_the_optimizers_own_state_raises():
    opt = RMSprop(momentum=0.5)
    opt.step([np.ones(4)], [np.ones(4)])
    for view in opt.weights:
        view.flags.writeable = True
        message = r"^params\[0\] shares memory with the optimizer's weights; pass a copy$"
        with pytest.raises(ValueError, match=message):
            opt.step([view], [np.ones(4)])


class Slow(schedules.LearningRateSchedule):
    """A step that asks it waits in the middle."""

    began, goes_on = threading.Event(), threading.Event()

    def __call__(self, call):
        Slow.began.set()
        assert Slow.goes_on.wait(10)
        return 0.1


def saved(opt, folder):
    opt.save(folder / "run.npz")
    return lambda: RMSprop.load(folder / "run.npz", {"Slow": Slow})


def copied(opt, folder):
    twin = copy.deepcopy(opt)
    return lambda: twin


def weighed(opt, folder):
    weights = opt.get_weights()
    twin = RMSprop(use_ema=True)
    twin.build([np.ones(3)])
    twin.set_weights(weights)  # of an accumulator and an average
    return lambda: twin


@linux
@pytest.mark.parametrize("keep", [saved, copied, weighed])
def test_what_is_kept_is_of_one_moment_though_options_change_while_it_waits(keep, tmp_path):
    Slow.began.clear(), Slow.goes_on.clear()
    opt, params, grads = RMSprop(momentum=0.9), [np.ones(3)], [np.ones(3)]
    opt.step(params, grads)
    opt.lr = Slow()
    kept = []
    step = threading.Thread(target=opt.step, args=(params, grads))
    step.start()
    assert Slow.began.wait(10)
    keeper = threading.Thread(target=lambda: kept.append(keep(opt, tmp_path)))
    keeper.start()
    sleeping(keeper)
    opt.momentum, opt.use_ema = 0.0, True
    Slow.goes_on.set()
    step.join()
    keeper.join()
    twin = kept[0]()
    assert (twin.momentum, twin.use_ema) == (0.0, True)
    assert list(twin._snapshot().slots) == ["accumulator", "moving_average"]
