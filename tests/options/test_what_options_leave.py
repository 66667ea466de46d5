"""What an option that is off has left, and what follows updates alone."""

import copy
import pickle

import numpy as np
import pytest
from common import assert_same_bits
from states import Asked, slots_of

from rmsprop_c import RMSprop, reference, schedules


def test_a_schedule_sees_the_calls_so_far_whatever_the_cycles_were():
    seen = Asked()
    opt, w = RMSprop(lr=seen), np.ones(2)
    oracle, p = reference.RMSprop([w], lr=Asked()), w.copy()
    for steps, calls in ((4, 8), (None, 3), (10, 10)):
        opt.gradient_accumulation_steps = steps
        oracle.options["gradient_accumulation_steps"] = steps
        for _ in range(calls):
            opt.step([w], [np.ones(2)])
            oracle.step([p], [np.ones(2)])
    assert seen.steps == [3, 7, 8, 9, 10, 20]
    assert oracle.options["lr"].steps == seen.steps
    opt.iterations = 5
    assert opt._counts()[1] == 50
    _ = opt.lr
    assert seen.steps[-1] == 50, "a count that is assigned is that of updates of the present cycle"


@pytest.mark.parametrize("way", ["copy", "pickle", "file"])
def test_copies_know_the_calls_so_far(way, tmp_path):
    opt, w = RMSprop(lr=schedules.InverseTimeDecay(1.0, 1, 1.0)), np.ones(2)
    for steps, calls in ((4, 8), (None, 3)):
        opt.gradient_accumulation_steps = steps
        for _ in range(calls):
            opt.step([w], [np.ones(2)])
    opt.save(tmp_path / "run.npz")
    twin = {
        "copy": lambda: copy.copy(opt),
        "pickle": lambda: pickle.loads(pickle.dumps(opt)),
        "file": lambda: RMSprop.load(tmp_path / "run.npz"),
    }[way]()
    assert opt.lr == twin.lr == 1 / 12


def shown(opt, name, params):
    """Let the parameters be their averages, by the method of this name."""
    if name == "averaged":
        opt.averaged(params).__enter__()
    else:
        opt.finalize_variable_values(params)


@pytest.mark.parametrize("name", ["averaged", "finalize_variable_values"])
@pytest.mark.parametrize("built", [False, True])
def test_averages_that_are_not_shown_make_no_state(name, built):
    opt, frozen = RMSprop(), np.full(3, 7.0)
    if built:
        opt.build([np.ones(3)])
    opt.use_ema = True
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\[0\] is read-only"):
        shown(opt, name, [frozen])
    assert slots_of(opt) == (["accumulator"] if built else [])
    opt.build([np.ones(3)])
    assert_same_bits(opt.weights[1], np.ones(3), "averages begin at what was not refused")


def test_constraints_follow_updates_alone():
    ran = []

    def halve(w):
        ran.append(1)
        return w * 0.5

    w, nan = np.array([0.3, 0.4]), np.full(2, np.nan)
    opt = RMSprop(nonfinite="skip")
    for _ in range(3):
        assert opt.get_updates([w], [halve], lambda p: (0.0, [nan])) == []
    assert (ran, opt.skipped_steps) == ([], 3)
    assert len(opt.get_updates([w], [halve], lambda p: (0.0, [np.ones(2)]))) == 2
    before = w.copy()
    assert opt.get_updates([w], [halve], lambda p: (0.0, [nan])) == []
    assert_same_bits(w, before)
    assert len(ran) == 1
    opt.gradient_accumulation_steps = 2
    opt.get_updates([w], [halve], lambda p: (0.0, [np.ones(2)]))
    assert_same_bits(w, before)
    opt.get_updates([w], [halve], lambda p: (0.0, [np.ones(2)]))
    assert len(ran) == 2


def test_constraints_follow_a_step_that_counts_nothing():
    class Own(RMSprop):
        def step(self, params, grads):
            params[0] -= grads[0]

    w = np.array([1.0, 2.0])
    Own().get_updates([w], [lambda w: w * 2], lambda p: (0.0, [np.ones(2)]))
    assert_same_bits(w, [0.0, 2.0])


OFF = {
    "momentum": (0.5, 0.0, "momentum"),
    "centered": (True, False, "average_gradient"),
    "use_ema": (True, False, "moving_average"),
}


@pytest.mark.parametrize("name", OFF)
def test_what_an_option_that_is_off_has_left_is_dropped_at_the_next_step(name):
    on, off, slot = OFF[name]
    opt, w, g = RMSprop(**{name: on}), np.ones(3), np.full(3, 2.0)
    opt.step([w], [g])
    setattr(opt, name, off)
    assert len(opt.weights) == len(opt.get_weights()) == 1
    assert slots_of(opt) == ["accumulator", slot], "no step has been made since"
    with pytest.raises(ValueError, match="has shape"):
        opt.step([w], [np.ones(4)])
    assert slots_of(opt) == ["accumulator", slot], "a step that raises changes nothing"
    twin = RMSprop.from_config(opt.get_config())
    twin.build([w])
    twin.set_weights(opt.get_weights())
    p = w.copy()
    opt.step([w], [g])
    twin.step([p], [g])
    assert slots_of(opt) == ["accumulator"]
    for x in (opt, twin):
        setattr(x, name, on)
    opt.step([w], [g])
    twin.step([p], [g])
    assert_same_bits(w, p, "it starts afresh")


def test_what_is_off_is_no_part_of_other_frameworks_states_nor_of_centered():
    opt, w = RMSprop(momentum=0.9, lr_in_momentum=False), [np.ones(3)]
    for _ in range(3):
        opt.step(w, [np.full(3, 2.0)])
    opt.momentum, opt.centered = 0.0, True
    opt.step(w, [np.full(3, 2.0)])
    mean = opt.weights[1]
    assert_same_bits(mean, np.full(3, (1 - 0.9) * 2.0), "a mean of this one step")
    form = {"params": [0], "momentum": 0, "centered": True}
    theirs = {"state": {}, "param_groups": [form]}
    state = opt.export_state("torch", theirs)
    assert set(state["state"][0]) == {"step", "square_avg", "grad_avg"}
    opt.import_state("torch", state)


def test_views_of_what_is_dropped_stay_as_they_were():
    opt, w = RMSprop(momentum=0.9, use_ema=True), [np.ones(100_000)]
    opt.step(w, [np.ones(100_000)])
    views = opt.weights
    before = [view.copy() for view in views]
    opt.momentum = 0.0
    opt.step(w, [np.ones(100_000)])
    assert len(opt.weights) == 2
    assert_same_bits(views[1], before[1])
