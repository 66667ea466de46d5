"""The learning rate as a number and as a schedule."""

import copy
import json
import re

import numpy as np
import pytest
from common import assert_same_bits, label
from option_sets import (
    RATES,
    by_config,
    model,
    refused,
    usable,
)

import rmsprop_c
from rmsprop_c import RMSprop, schedules


class Seen:
    """A schedule that remembers what it was asked for."""

    def __init__(self, rate=lambda step: 0.1 / (1 + step)):
        self.rate = rate
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)
        return self.rate(step)


class Halving(schedules.LearningRateSchedule):
    """A schedule that this package does not know."""

    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5**step


@pytest.mark.parametrize("rate", [Halving(0.5), lambda step: np.float32(0.1) * step], ids=label)
def test_lr_shows_the_rate_of_the_next_update(rate):
    (w,), opt = [np.zeros(2)], RMSprop(lr=rate, rho=0.0, epsilon=0.0)
    for step in range(5):
        shown = opt.lr
        assert type(shown) is float
        assert shown == opt.learning_rate == float(rate(step))
        before = w.copy()
        opt.step([w], [np.array([2.0, -4.0])])  # rho 0: the step is lr
        assert_same_bits(w, before - np.array([shown, -shown]))
    opt.iterations = 2
    assert opt.lr == float(rate(2))


def test_a_schedule_is_asked_once_for_each_update():
    seen = Seen()
    opt, params = RMSprop(lr=seen), [np.ones(3)]
    for _ in range(4):
        opt.step(params, [np.ones(3)])
    assert seen.steps == [0, 1, 2, 3]
    assert all(type(step) is int for step in seen.steps)
    opt.iterations = 2**62 - 1
    opt.step(params, [np.ones(3)])
    assert seen.steps[-1] == 2**62 - 1


def test_a_schedule_sees_calls_where_gradients_are_accumulated():
    seen = Seen()
    opt, params = RMSprop(lr=seen, gradient_accumulation_steps=3), [np.ones(3)]
    for _ in range(7):
        opt.step(params, [np.ones(3)])
    assert seen.steps == [2, 5]
    assert opt.lr == seen.rate(7)
    assert opt.iterations == 2


def test_skipped_and_refused_steps_do_not_count_for_a_schedule():
    seen = Seen()
    opt, w = RMSprop(lr=seen, nonfinite="skip"), np.ones(3)
    for g in (1.0, np.nan, np.inf, 2.0):
        opt.step([w], [np.full(3, g)])
    with pytest.raises(ValueError, match=r"^grads\[0\] has shape"):
        opt.step([w], [np.ones(4)])
    opt.step([w], [np.ones(3)])
    counted = list(dict.fromkeys(seen.steps))
    assert counted == [0, 1, 2]
    assert (opt.iterations, opt.skipped_steps) == (3, 2)


BAD_RATES = [
    float("nan"),
    float("inf"),
    -0.001,
    np.float32("nan"),
    "abc",
    "0.1",
    b"0.1",
    None,
    True,
    np.True_,
    1j,
    [0.1],
    np.array([0.1]),
    {},
    10**400,
    -(10**400),
]


@pytest.mark.parametrize("stage", ["first step", "later"])
@pytest.mark.parametrize("rate", BAD_RATES, ids=lambda x: f"{x!r:.20}")
def test_what_is_no_rate_is_refused_with_the_call_and_changes_nothing(rate, stage):
    good, bad = Seen(), Seen(lambda step: rate)
    params, (first, second) = model("mixed", 2, 0)
    opt = RMSprop(lr=good, momentum=0.5)
    if stage == "later":
        opt.step(params, first)
    call = opt.iterations
    twin = copy.deepcopy(opt)
    opt.lr = bad
    for way in ("step", "bind", "get_updates"):
        refused(way, opt, params, second, ValueError, "^" + re.escape(f"lr({call}) is {rate!r};"))
    with pytest.raises(ValueError, match=rf"^lr\({call}\) is "):
        _ = opt.lr
    twin.lr = opt.lr = good
    usable(opt, twin, params, second)


def test_an_error_of_a_schedule_comes_through_and_changes_nothing():
    def broken(step):
        raise ZeroDivisionError("in the schedule")

    opt, params, grads = RMSprop(lr=broken), [np.ones(3)], [np.ones(3)]
    refused("step", opt, params, grads, ZeroDivisionError, "in the schedule")
    assert opt.weights == []
    opt.lr = 0.1
    opt.step(params, grads)


def test_a_schedule_cannot_step_the_optimizer_that_asks_it():
    def greedy(step):
        opt.step(params, grads)

    opt, params, grads = RMSprop(lr=greedy), [np.ones(3)], [np.ones(3)]
    refused("step", opt, params, grads, RuntimeError, "in use further up")


def test_a_number_replaces_a_schedule_and_a_schedule_a_number():
    opt, w = RMSprop(lr=0.5, rho=0.0, epsilon=0.0), np.zeros(1)
    expected = 0.0
    for rate, value in [(0.5, 0.5), (Halving(1.0), 0.5), (0.25, 0.25), (lambda step: 2, 2.0)]:
        opt.lr = rate
        opt.step([w], [np.ones(1)])
        expected -= value
        assert w[0] == expected
    opt.lr = 0.125
    assert opt.get_config()["lr"] == 0.125
    assert repr(opt).startswith("RMSprop(lr=0.125,")
    opt.decay = 1.0  # no schedule any more


def test_a_bound_step_asks_the_schedule():
    w, opt = np.zeros(1), RMSprop(lr=Halving(1.0), rho=0.0, epsilon=0.0)
    step = opt.bind([w], [np.ones(1)])
    for expected in (-1.0, -1.5, -1.75):
        step()
        assert w[0] == expected


@pytest.mark.parametrize("schedule", RATES[1:], ids=repr)
def test_a_config_holds_the_schedule_itself(schedule):
    opt = RMSprop(lr=schedule)
    for _ in range(3):
        opt.step([np.ones(2)], [np.ones(2)])
    config = opt.get_config()
    assert config["lr"] == {
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
    }
    again = by_config(opt)
    assert again._get_objects()[0] == schedule
    assert again.lr == schedule(0)
    renamed = {"learning_rate" if key == "lr" else key: value for key, value in config.items()}
    assert RMSprop.from_config(renamed).lr == schedule(0)


def test_a_schedule_of_ones_own_comes_back_through_custom_objects():
    opt = RMSprop(lr=Halving(0.5))
    config = json.loads(json.dumps(opt.get_config()))
    assert config["lr"] == {"class_name": "Halving", "config": {"start": 0.5}}
    custom = {"Halving": Halving}
    for again in (
        RMSprop.from_config(config, custom_objects=custom),
        RMSprop.from_config(config, custom),
        rmsprop_c.deserialize(rmsprop_c.serialize(opt), custom),
    ):
        assert (again.lr, again._get_objects()[0].start) == (0.5, 0.5)
    with pytest.raises(ValueError, match="Unknown schedule: Halving"):
        RMSprop.from_config(config)
    with pytest.raises(ValueError, match="Unknown schedule: Halving"):
        rmsprop_c.deserialize(rmsprop_c.serialize(opt))
    assert config["lr"]["config"] == {"start": 0.5}


@pytest.mark.parametrize("rate", [lambda step: 0.1, Seen(), abs], ids=["lambda", "object", "abs"])
def test_a_callable_without_get_config_has_no_config_but_a_repr(rate):
    opt = RMSprop(lr=rate, momentum=0.5)
    with pytest.raises(TypeError, match=r"^lr is " + re.escape(repr(rate)) + ", which a config"):
        opt.get_config()
    with pytest.raises(TypeError, match=r"^lr is "):
        rmsprop_c.serialize(opt)
    assert repr(opt).startswith(f"RMSprop(lr={rate!r}, ")
    opt.step([np.ones(2)], [np.ones(2)])
    assert copy.deepcopy(opt).iterations == 1


def test_a_class_of_schedules_is_no_schedule():
    with pytest.raises(TypeError, match="a class; pass an instance"):
        RMSprop(lr=schedules.CosineDecay)


def test_a_plain_number_as_a_loss_has_gradients_of_zero_and_autograds_warning():
    opt, w = RMSprop(lr=0.1), np.array([3.0])
    with pytest.warns(UserWarning, match="independent of input"):
        (grad,) = opt.get_gradients(lambda params: 2.0, [w])
    assert_same_bits(grad, np.zeros(1))


def test_the_repr_of_a_schedule_in_a_subclass_shows_the_subclass_too():
    class Halved(RMSprop):
        def get_config(self):
            return super().get_config() | {"half": True}

    opt = Halved(lr=schedules.ExponentialDecay(0.1, 10, 0.5))
    assert "half=True" in repr(opt)
