"""Cycles and counts go to other frameworks and come back, or raise."""

import collections
import copy

import numpy as np
import pytest
from common import assert_same_bits
from states import keras_form

from rmsprop_c import RMSprop, schedules

Rms = collections.namedtuple("Rms", "nu")


Count = collections.namedtuple("Count", "count")


def test_a_cycle_that_keras_cannot_end_is_not_exported():
    opt, w = RMSprop(gradient_accumulation_steps=4), [np.ones(2)]
    for _ in range(2):
        opt.step(w, [np.ones(2)])
    opt.gradient_accumulation_steps = 2
    form = keras_form(w, 2)
    with pytest.raises(ValueError, match=r"^Keras can't end a cycle of 2 calls that has 2 already"):
        opt.export_state("keras3", form)
    opt.step(w, [np.full(2, 4.0)])
    assert opt.export_state("keras3", form)[0] == 2
    opt.gradient_accumulation_steps = None
    assert opt.export_state("keras3", keras_form(w))[0] == 1


def test_a_parameter_without_gradients_in_a_cycle_has_none_after_a_round_trip():
    arguments = {"gradient_accumulation_steps": 3, "momentum": 0.9}
    opt, w = RMSprop(**arguments), [np.ones(2), np.ones(2)]
    for _ in range(3):
        opt.step(w, [np.ones(2), np.ones(2)])
    opt.step(w, [np.ones(2), None])
    twin, p = RMSprop(**arguments), copy.deepcopy(w)
    twin.build(p)
    twin.import_state("keras3", opt.export_state("keras3", keras_form(w, 3)))
    assert twin._snapshot().pending == [True, False]
    before = p[1].copy()
    for x, params in ((opt, w), (twin, p)):
        x.step(params, [np.ones(2), None])
        x.step(params, [np.ones(2), None])
    assert_same_bits(p[1], before)
    assert opt.iterations == twin.iterations == 2
    for x, y in zip(w + opt.weights, p + twin.weights, strict=True):
        assert_same_bits(x, y)


def test_a_schedule_whose_calls_keras_would_count_otherwise_is_not_exported():
    opt, w = RMSprop(lr=schedules.InverseTimeDecay(1.0, 1, 1.0)), [np.ones(2)]
    opt.step(w, [np.ones(2)])
    assert opt.export_state("keras3", keras_form(w))[0] == 1
    opt.gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match=r"has come to call 1, but Keras would go on at call 2"):
        opt.export_state("keras3", keras_form(w, 2))
    opt.iterations = 1
    assert opt.export_state("keras3", keras_form(w, 2))[0] == 2


NO_COUNTS = [-1, 7.9, 2**62 + 1, 2**63 - 1, 2**63, 2**64, float("inf"), float("nan"), "7", 1j, True]


@pytest.mark.parametrize("framework", ["torch", "keras3", "optax"])
@pytest.mark.parametrize("count", NO_COUNTS, ids=str)
def test_no_other_frameworks_count_is_taken_for_what_it_is_not(framework, count):
    opt = RMSprop()
    opt.build([np.ones(2)])
    entry = {"step": count, "square_avg": np.ones(2)}
    state = {
        "torch": {"state": {0: entry}, "param_groups": [{"params": [0]}]},
        "keras3": [count, np.float32(0.1), np.ones(2)],
        "optax": (Rms([np.ones(2)]), Count(count)),
    }[framework]
    with pytest.raises(ValueError, match=r"it must be (a whole number|in \[0, 2\*\*62\])$"):
        opt.import_state(framework, state)
    assert (opt.iterations, opt.weights[0].any()) == (0, False)


@pytest.mark.parametrize("framework", ["torch", "keras3", "optax"])
@pytest.mark.parametrize(
    "leaf", [np.ones(2, complex), np.array(["1", "2"]), np.array([True, False])], ids=str
)
def test_leaves_that_are_no_real_numbers_raise(framework, leaf):
    opt = RMSprop()
    opt.build([np.ones(2)])
    state = {
        "torch": {
            "state": {0: {"step": 1, "square_avg": leaf}},
            "param_groups": [{"params": [0]}],
        },
        "keras3": [1, np.float32(0.1), leaf],
        "optax": (Rms([leaf]), Count(1)),
    }[framework]
    with pytest.raises(TypeError, match=r"^accumulator\[0\] of the state has dtype"):
        opt.import_state(framework, state)


def test_a_count_is_not_wrapped_to_what_their_dtype_holds():
    opt, w = RMSprop(), [np.ones(2)]
    opt.build(w)
    opt.iterations = 2**31 - 1
    assert opt.export_state("keras3", keras_form(w))[0] == 2**31 - 1
    opt.iterations = 2**31
    message = r"^state\[0\] is 2147483648, more than the int32 there can hold"
    with pytest.raises(ValueError, match=message):
        opt.export_state("keras3", keras_form(w))
    with pytest.raises(ValueError, match=r"^count is 2147483648, more than the int32"):
        opt.export_state("optax", (Rms([np.ones(2)]), Count(np.int32(0))))
    opt.set_weights([np.array([1.0, 2.0**40])])
    with pytest.raises(ValueError, match=r"^nu\[0\] is .*, more than the int32 there can hold"):
        opt.export_state("optax", (Rms([np.ones(2, np.int32)]), Count(np.int64(0))))


@pytest.mark.parametrize("steps", [None, 2])
def test_whatever_count_is_reached_can_be_saved_and_set(steps, tmp_path):
    opt, w = RMSprop(gradient_accumulation_steps=steps), [np.ones(2)]
    opt.iterations = 2**62 // (steps or 1)
    before = w[0].copy()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^2\*\*62 calls are as many as can be counted"):
            opt.step(w, [np.ones(2)])
    assert_same_bits(w[0], before)
    opt.iterations -= 1
    for _ in range(steps or 1):
        opt.step(w, [np.ones(2)])
    opt.save(tmp_path / "run.npz")
    twin = RMSprop.load(tmp_path / "run.npz")
    twin.iterations = opt.iterations
    twin.set_weights([opt.iterations, *opt.get_weights()])
    assert twin.iterations == 2**62 // (steps or 1)
    twin.gradient_accumulation_steps = 3
    with pytest.raises(ValueError, match=r"iterations of 3 calls are more than the 2\*\*62 calls"):
        twin.iterations = 2**62 // 2
