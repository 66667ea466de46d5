"""Schedules have the values and the configs of Keras 3."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rmsprop_c import RMSprop, schedules
from rmsprop_c.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

# Written by tests/peers/record_schedules.py from Keras 3 in float64.
with np.load(Path(__file__).parents[1] / "peers" / "recorded" / "schedules.npz") as file:
    CASES = [json.loads(case) for case in file["cases"].tolist()]
    VALUES = file["values"]

EACH = [
    ExponentialDecay(0.1, 100, 0.5, staircase=True),
    InverseTimeDecay(0.1, 100, 0.5),
    PiecewiseConstantDecay([10, 20], [0.1, 0.2, 0.3]),
    PolynomialDecay(0.1, 100, 0.01, 2.0, True),
    CosineDecay(0.1, 100, 0.5, warmup_target=0.2, warmup_steps=10),
    CosineDecayRestarts(0.1, 100, 1.5, 0.9, 0.1),
]


def make(name, **arguments):
    return schedules.KNOWN[name](**arguments)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i][0]}-{i}")
def test_values_are_those_of_keras_at_every_step(index):
    # Powers, cosines and logarithms differ between mathematical libraries in their last bits.
    name, arguments = CASES[index]
    schedule = make(name, **arguments)
    found = [schedule(step) for step in range(len(VALUES[index]))]
    largest = arguments.get("initial_learning_rate") or max(arguments["values"])
    assert np.abs(np.subtract(found, VALUES[index])).max() <= 1e-12 * largest
    assert len(found) == 1001


def test_every_schedule_of_keras_is_recorded():
    assert {name for name, _ in CASES} == set(schedules.KNOWN) == {type(s).__name__ for s in EACH}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            ExponentialDecay(0.5, 10, 0.5, True),
            {0: 0.5, 9: 0.5, 10: 0.25, 19: 0.25, 20: 0.125},
        ),
        (InverseTimeDecay(0.5, 10, 1.0, True), {9: 0.5, 10: 0.25, 30: 0.125}),
        (
            PiecewiseConstantDecay([0, 10], [0.1, 0.2, 0.3]),
            {0: 0.1, 1: 0.2, 10: 0.2, 11: 0.3, 10**9: 0.3},
        ),
        (PiecewiseConstantDecay([10.5], [0.1, 0.2]), {10: 0.1, 11: 0.2}),
        (PiecewiseConstantDecay([5, 5], [0.1, 0.2, 0.3]), {5: 0.1, 6: 0.3}),
        (PiecewiseConstantDecay([], [0.1]), {0: 0.1, 7: 0.1}),
        (
            PolynomialDecay(0.5, 100, 0.25),
            {0: 0.5, 50: 0.375, 100: 0.25, 101: 0.25, 10**9: 0.25},
        ),
        (
            PolynomialDecay(0.5, 100, 0.25, cycle=True),
            {0: 0.5, 100: 0.25, 150: 0.25 + 0.25 / 4, 200: 0.25, 300: 0.25},
        ),
        (PolynomialDecay(0.5, 100, 0.25, power=0), {0: 0.5, 99: 0.5, 100: 0.5}),
        (CosineDecay(0.5, 100), {0: 0.5, 50: 0.25, 100: 0.0, 101: 0.0}),
        (CosineDecay(0.5, 100, 0.5), {0: 0.5, 100: 0.25, 10**9: 0.25}),
        (
            CosineDecay(0.0, 100, warmup_target=0.5, warmup_steps=10),
            {0: 0.0, 5: 0.25, 9: 0.45, 10: 0.5, 60: 0.25, 110: 0.0, 111: 0.0},
        ),
        (CosineDecay(0.1, 100, warmup_target=0.5), {0: 0.5, 100: 0.0}),
        (CosineDecay(0.5, 100, warmup_steps=10), {0: 0.5, 100: 0.0}),
        (
            CosineDecayRestarts(0.5, 100),
            {0: 0.5, 50: 0.25, 100: 0.5, 200: 0.25, 300: 0.5, 700: 0.5, 1100: 0.25},
        ),
        (CosineDecayRestarts(0.5, 100, 1), {50: 0.25, 100: 0.5, 200: 0.5, 250: 0.25}),
        (CosineDecayRestarts(0.5, 100, m_mul=0.5), {99.999: 0.0, 100: 0.25, 300: 0.125}),
        (CosineDecayRestarts(0.5, 64, 0.5), {32: 0.25, 64: 0.5, 80: 0.25, 96: 0.5, 112: 0.5}),
    ],
    ids=lambda x: repr(x) if callable(x) else "",
)
def test_what_happens_at_the_ends_and_boundaries_is_as_computed_by_hand(schedule, expected):
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, abs=1e-9), step


@pytest.mark.parametrize(("first", "t_mul"), [(1, 3), (5, 3), (64, 1.25), (1, 7), (50, 1.1)])
def test_restarts_are_exactly_at_their_boundaries(first, t_mul):
    # Keras on TensorFlow misses those at 121, 605, 244 and 105 by rounding.
    schedule = CosineDecayRestarts(1.0, first, t_mul)
    boundary, length = 0.0, float(first)
    while boundary + length < 1e6:
        boundary, length = boundary + length, length * t_mul
        if abs(boundary - round(boundary)) < 1e-9:
            assert schedule(round(boundary)) == pytest.approx(1.0)
            last = 0.5 * (1 + math.cos(math.pi * (1 - t_mul / length)))
            assert schedule(round(boundary) - 1) == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize("schedule", EACH, ids=repr)
def test_configs_go_through_json_and_have_the_keys_of_keras(schedule):
    config = schedule.get_config()
    (arguments, *_) = [given for name, given in CASES if name == type(schedule).__name__]
    assert set(arguments) <= set(config)
    serialized = schedules.serialize(schedule)
    assert serialized == {"class_name": type(schedule).__name__, "config": config}
    read = json.loads(json.dumps(serialized))
    assert read == serialized
    for again in (
        schedules.deserialize(read),
        type(schedule).from_config(read["config"]),
        eval(repr(schedule)),
    ):
        assert type(again) is type(schedule)
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert again.get_config() == config
    assert read == serialized, "the caller's dict was changed"


def test_configs_as_keras_writes_them_are_read():
    config = {"initial_learning_rate": 0.1, "decay_steps": 800, "alpha": 0.0}
    config |= {"name": "CosineDecay", "warmup_target": None, "warmup_steps": 0}
    serialized = {
        "module": "keras.optimizers.schedules",
        "class_name": "CosineDecay",
        "config": config,
        "registered_name": None,
    }
    schedule = schedules.deserialize(serialized)
    assert schedule == CosineDecay(0.1, 800)
    assert schedule.get_config() == config
    config["name"] = None  # as tf_keras has it
    schedule = schedules.deserialize(serialized)
    assert schedule.get_config() == {k: v for k, v in config.items() if k != "name"}


@pytest.mark.parametrize("schedule", EACH, ids=repr)
def test_a_name_is_kept_and_changes_nothing(schedule):
    arguments = schedule.get_config()
    named = type(schedule)(**arguments, name="mine")
    assert named.get_config() == {**arguments, "name": "mine"}
    assert (named, hash(named), repr(named)) == (schedule, hash(schedule), repr(schedule))
    assert [named(step) for step in range(5)] == [schedule(step) for step in range(5)]
    again = RMSprop.from_config(RMSprop(lr=named).get_config())
    assert again.get_config()["lr"]["config"]["name"] == "mine"
    with pytest.raises(TypeError, match=r"^name is 3; it must be a string$"):
        type(schedule)(**arguments, name=3)


@pytest.mark.parametrize(
    ("config", "exception", "message"),
    [
        ({"class_name": "Nope", "config": {}}, ValueError, "Unknown schedule: Nope"),
        ({"config": {}}, ValueError, "Improper config format"),
        ({"class_name": "CosineDecay", "config": {}}, TypeError, "initial_learning_rate"),
        ({"class_name": "CosineDecay", "config": {"beta": 1}}, TypeError, "'beta'"),
    ],
    ids=["unknown", "no name", "missing", "surplus"],
)
def test_a_config_that_means_nothing_is_refused(config, exception, message):
    with pytest.raises(exception, match=message):
        schedules.deserialize(config)


@pytest.mark.parametrize(
    ("name", "arguments", "exception", "message"),
    [
        ("ExponentialDecay", {"decay_steps": 0}, ValueError, "decay_steps is 0; it must be gr"),
        ("InverseTimeDecay", {"decay_steps": -1}, ValueError, "decay_steps is -1; it must be gr"),
        ("PolynomialDecay", {"decay_steps": 0.0}, ValueError, "decay_steps is 0.0; it must be g"),
        ("CosineDecay", {"decay_steps": math.inf}, ValueError, "decay_steps is inf; .* finite"),
        ("CosineDecay", {"decay_steps": 10**400}, ValueError, "decay_steps is 1000.* finite"),
        ("CosineDecay", {"alpha": math.nan}, ValueError, "alpha is nan; it must be finite"),
        ("CosineDecay", {"warmup_steps": -1}, ValueError, "warmup_steps is -1; .* at least 0"),
        ("CosineDecay", {"warmup_steps": None}, TypeError, "warmup_steps is None; .* real number"),
        ("CosineDecay", {"warmup_target": "0.1"}, TypeError, "warmup_target is '0.1'; it must"),
        ("CosineDecay", {"initial_learning_rate": True}, TypeError, "learning_rate is True; it"),
        ("CosineDecay", {"initial_learning_rate": None}, TypeError, "learning_rate is None; it"),
        ("CosineDecay", {"initial_learning_rate": 1j}, TypeError, "initial_learning_rate is 1j"),
        ("CosineDecayRestarts", {"first_decay_steps": 0}, ValueError, "first_decay_steps is 0"),
        ("CosineDecayRestarts", {"t_mul": 0}, ValueError, "t_mul is 0; it must be greater"),
        ("PolynomialDecay", {"cycle": 1}, TypeError, "cycle is 1; it must be True or False"),
        ("ExponentialDecay", {"staircase": None}, TypeError, "staircase is None; it must be True"),
        ("PiecewiseConstantDecay", {"boundaries": 3}, TypeError, "boundaries is 3; .* sequence"),
        ("PiecewiseConstantDecay", {"values": "12"}, TypeError, "values is '12'; .* sequence"),
        ("PiecewiseConstantDecay", {"values": [1, "a"]}, TypeError, r"values\[1\] is 'a'; it"),
        ("PiecewiseConstantDecay", {"values": [1]}, ValueError, "values has 1 .* boundaries has 1"),
        (
            "PiecewiseConstantDecay",
            {"boundaries": [5, 4], "values": [1, 2, 3]},
            ValueError,
            r"boundaries is \[5, 4\]; it must not decrease",
        ),
    ],
)
def test_arguments_without_meaning_are_refused_by_name(name, arguments, exception, message):
    (usual, *_) = [given for known, given in CASES if known == name]
    with pytest.raises(exception, match=message):
        make(name, **{**usual, **arguments})


def test_arguments_may_be_of_numpy_and_are_kept_as_pythons_own():
    schedule = PiecewiseConstantDecay(np.array([1, 2]), np.array([0.5, 0.25, 0.125], np.float32))
    assert schedule == PiecewiseConstantDecay((1, 2), (0.5, 0.25, 0.125))
    assert (
        json.dumps(schedule.get_config()) == '{"boundaries": [1, 2], "values": [0.5, 0.25, 0.125]}'
    )
    cycle = PolynomialDecay(np.float64(0.5), np.int64(10), cycle=np.True_)
    assert json.dumps(cycle.get_config()) == json.dumps(
        PolynomialDecay(0.5, 10, cycle=True).get_config()
    )


@pytest.mark.parametrize(
    ("schedule", "step"),
    [
        (ExponentialDecay(0.1, 2, -0.5), 1),
        (ExponentialDecay(0.1, 1, 10.0), 1000),
        (InverseTimeDecay(0.1, 1, -0.5), 2),
        (PolynomialDecay(0.1, 10, power=-1.0), 10),
        (CosineDecayRestarts(0.1, 10, 0.5), 20),
    ],
    ids=repr,
)
def test_where_a_formula_has_no_value_there_is_an_error(schedule, step):
    assert schedule(0) == pytest.approx(0.1)
    with pytest.raises((ValueError, ArithmeticError)):
        schedule(step)


@pytest.mark.parametrize("schedule", EACH, ids=repr)
@pytest.mark.parametrize("integer", [np.int64, np.uint32], ids=lambda x: x.__name__)
def test_steps_may_be_numpy_integers(schedule, integer):
    for step in (0, 5, 10, 100, 1000):
        assert schedule(integer(step)) == schedule(step)


def test_a_schedule_does_not_change():
    with pytest.raises(AttributeError):
        EACH[0].decay_steps = 3


class Own(schedules.LearningRateSchedule):
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start / (step + 1)


def test_own_schedules_are_written_as_in_keras():
    assert Own(0.5)(4) == 0.1
    serialized = schedules.serialize(Own(0.5))
    assert serialized == {"class_name": "Own", "config": {"start": 0.5}}
    assert schedules.deserialize(serialized, {"Own": Own})(4) == 0.1


def test_the_base_class_is_no_schedule():
    with pytest.raises(TypeError, match="define __call__"):
        schedules.LearningRateSchedule()(0)
