"""What a step holds lives until it ends, whatever user code does in it."""

import gc
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, _core


def resident():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def refused(opt, params, grads):
    with pytest.raises(ValueError, match="lr_scale"):
        opt.step(params, grads)


def loaded(opt, params, grads):
    opt.step(params, grads)
    opt._restore(RMSprop()._snapshot())


def reset(opt, params, grads):
    opt.step(params, grads)
    opt.reset()


@pytest.mark.parametrize(
    ("forget", "scale"), [(reset, None), (loaded, None), (refused, [1.0, 2.0])]
)
def test_accumulators_that_are_forgotten_are_freed(forget, scale):
    params, grads = [np.ones(1 << 18)], [np.ones(1 << 18)]
    opt = RMSprop(lr_scale=scale)
    tracemalloc.start()
    try:
        before = resident()
        forget(opt, params, grads)
        assert resident() - before < 1 << 18
    finally:
        tracemalloc.stop()


def test_a_schedule_that_assigns_lr_keeps_what_it_assigned():
    w, g, opt = np.ones(1), np.ones(1), None

    def last(call):
        opt.lr = 0.25
        return 0.5

    opt = RMSprop(lr=last)
    opt.step([w], [g])
    assert opt.lr == 0.25
    twin, expected = RMSprop(lr=0.5), np.ones(1)
    twin.step([expected], [g])
    assert_same_bits(w, expected)
    twin.lr = 0.25
    for one, array in ((opt, w), (twin, expected)):
        one.step([array], [g])
    assert_same_bits(w, expected)


class Key:
    """A key of a model that does something when it is compared."""

    def __init__(self, name):
        self.name, self.then = name, lambda: None

    def __hash__(self):
        return 0

    def __eq__(self, other):
        then, self.then = self.then, lambda: None
        then()
        return self is other


def test_an_lr_scale_that_is_set_while_the_old_one_is_resolved_is_used():
    first, second = Key("a"), Key("b")
    params = {first: np.ones(2), second: np.ones(2)}
    grads = {first: np.ones(2), second: np.ones(2)}
    opt = RMSprop(lr=0.5, lr_scale={first: 2.0})
    opt.build(params)

    def assign():
        opt.lr_scale = {second: 4.0}

    first.then = assign  # a lookup compares the keys of one hash
    opt.step(params, grads)
    expected = {"a": np.ones(2), "b": np.ones(2)}
    RMSprop(lr=0.5, lr_scale={"b": 4.0}).step(expected, {"a": np.ones(2), "b": np.ones(2)})
    assert_same_bits(params[first], expected["a"])
    assert_same_bits(params[second], expected["b"])


@pytest.mark.parametrize("bad", ["iterations", "calls", "skipped_steps", "slots", "pending"])
def test_a_state_that_can_not_be_taken_leaves_the_optimizer_usable(bad):
    opt, w = RMSprop(), np.ones(3)
    opt.step([w], [np.ones(3)])
    state = opt._snapshot()
    with pytest.raises((TypeError, ValueError, KeyError)):
        opt._restore(state._replace(**{bad: {"nothing": 1} if bad == "slots" else "x"}))
    opt.step([w], [np.ones(3)])
    assert opt.iterations == 2


class Poisoned:
    """Memory that is filled with NaN when the last array over it has gone."""

    def __init__(self, values):
        self.values = values.copy()
        self.__array_interface__ = self.values.__array_interface__

    def __del__(self):
        self.values[...] = np.nan


class Fleeting(dict):
    """A dict that makes its arrays when they are asked for."""

    def __getitem__(self, key):
        return np.asarray(Poisoned(super().__getitem__(key)))


@pytest.mark.parametrize("size", [1, 2000, 40_000])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "nonfinite": "raise"}])
def test_gradients_that_only_the_step_holds_live_until_it_ends(size, options):
    w, g = np.ones(size), np.full(size, 0.5)
    expected = {"W": w.copy()}
    params, grads = {"W": w}, Fleeting(W=g)
    opt, twin = RMSprop(**options), RMSprop(**options)
    for _ in range(2):
        opt.step(params, grads)
        twin.step(expected, {"W": g})
    step = opt.bind(params, grads)
    step()
    twin.step(expected, {"W": g})
    assert_same_bits(w, expected["W"])


def test_a_number_as_gradient_of_a_bare_parameter():
    w = np.array(2.0)
    RMSprop(lr=0.1).step(w, np.float64(0.5))
    assert f"{w:.3f}" == "1.684"


def test_a_gradient_is_let_go_of_after_the_step():
    g = np.ones(2000)
    gone = weakref.ref(g)
    RMSprop().step({"W": np.ones(2000)}, {"W": g})
    del g
    assert gone() is None


def test_lr_may_become_a_number_while_another_thread_steps_with_a_schedule():
    """With a switch interval of a microsecond the schedule was None in the middle of its call."""
    opt, w, g, errors = RMSprop(), np.ones(3), np.ones(3), []
    stop = threading.Event()

    def schedule(call):
        return 0.001

    def run(work):
        try:
            while not stop.is_set():
                work()
        except Exception as error:
            errors.append(error)

    def assign():
        opt.lr = schedule
        opt.lr = 0.001

    def look():
        assert opt.lr == 0.001
        repr(opt)

    threads = [
        threading.Thread(target=run, args=(f,)) for f in (assign, look, lambda: opt.step([w], [g]))
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        stop.wait(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors


def test_a_step_on_lent_state_keeps_no_array():
    before = _core.configure_minimums(unlocked=1)
    try:
        opt, params, grads = RMSprop(), [np.ones(64)], [np.ones(64)]
        state = {"accumulator": [np.zeros(64)]}
        for _ in range(2):
            assert _core.step_on(opt, params, grads, state, [], (0,)) == []
        gone = [weakref.ref(x) for x in (*params, *grads, *state["accumulator"])]
        params.clear(), grads.clear(), state.clear()
        assert [ref() for ref in gone] == [None] * 3
    finally:
        _core.configure_minimums(**before)
