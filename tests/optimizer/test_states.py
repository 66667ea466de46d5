"""States that long runs reach: options changed in mid-run, cycles cut short, states taken over."""

import collections
import copy
import gc
import itertools
import os
import pickle
import re
import sys
import threading

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, interchange, reference, schedules, set_num_threads

Rms = collections.namedtuple("Rms", "nu")
Count = collections.namedtuple("Count", "count")


class Sub(np.ndarray):
    """An ndarray that a kernel does not read as it lies, as np.memmap and np.matrix are."""


class Asked:
    """A schedule that remembers what it was asked for."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)
        return 0.5


def slots_of(opt):
    return list(opt._snapshot().slots)


# Memory.


@pytest.mark.parametrize("other", [(7, 90), (7, 3000)])
def test_zero_grad_clears_a_subclass_and_nothing_else(other):
    # What looks at the second gradient has its strides where the first's were, if those are freed.
    base = np.ones((2, 63 * other[1]))
    grads = [base[0, :63].reshape(7, 9).view(Sub), np.ones(other).view(Sub)]
    params = [np.zeros((7, 9), order="F"), np.zeros(other)]
    RMSprop(zero_grad=True).step(params, grads)
    assert not grads[0].any()
    assert not grads[1].any()
    assert base.sum() == base.size - 63


def test_state_of_keras_without_sums_is_not_that_of_an_optimizer_that_sums():
    opt, params = RMSprop(), [np.ones(4)]
    opt.build(params)
    opt.gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match=r"has shape \(\), but the optimizer was built for \(4,\)"):
        opt.import_state("keras3", [np.int64(7), np.float32(0.001), np.zeros(4)])
    state = [np.int64(7), np.float32(0.001), np.full(4, 3.0), np.zeros(4)]  # a sum of one call
    opt.import_state("keras3", state)
    assert (opt.iterations, opt._snapshot().calls) == (3, 1)
    opt.gradient_accumulation_steps = None
    opt.step(params, [np.full(4, 1.0)])
    assert_same_bits(opt.weights[0], np.full(4, (1 - 0.9) * 4.0), "the mean of 3 and 1, squared")
    opt.step(params, [np.ones(4)])


UNREACHABLE = {
    "pending, but no call": ({"pending": [True, False], "calls": 0}, "a cycle that has not begun"),
    "calls without a sum": ({"slots": ["accumulator", "momentum"]}, "but there is no gradient_sum"),
    "a sum that nothing is in": ({"pending": [False, False]}, r"gradient_sum\[0\] is not 0"),
    "more updates than calls": ({"total_calls": 4}, "but 4 updates and 1 calls are more"),
    "a negative count": ({"iterations": -1}, "iterations is -1"),
    "a count of 2**62 + 1": ({"total_calls": 2**62 + 1}, "total_calls is 4"),
    "a count that is none": ({"skipped_steps": True}, "skipped_steps is True"),
    "too few bits": ({"pending": [True]}, "there are 2 accumulators"),
    "bits that are none": ({"pending": [1, 0]}, "pending is"),
    "too many keys": ({"keys": ("a", "b", "c")}, "there are 3 keys, but 2 accumulators"),
    "a key twice": ({"keys": ("a", "a")}, "keys has an entry twice: "),
    "slots in another order": (
        {"slots": ["gradient_sum", "momentum", "accumulator"]},
        "slots is",
    ),
    "no accumulator": ({"slots": ["momentum", "gradient_sum"]}, "slots is"),
}


def stopped(folder):
    """An optimizer in the middle of a cycle, and its checkpoint."""
    opt = RMSprop(momentum=0.5, gradient_accumulation_steps=3)
    opt.iterations = 4
    opt.step([np.ones(2), np.ones((2, 3), np.float32)], [np.ones(2), None])
    opt.save(folder / "run.npz")
    return opt


@pytest.mark.parametrize("case", UNREACHABLE)
def test_a_state_that_no_run_reaches_is_not_taken_over(case, tmp_path):
    changes, message = UNREACHABLE[case]
    state = stopped(tmp_path).__getstate__()
    if "slots" in changes:
        slots = state["state"]["slots"]
        changes = {"slots": {name: slots[name] for name in changes["slots"]}}
    state["state"] |= changes
    twin = RMSprop.__new__(RMSprop)
    with pytest.raises(ValueError, match=message):
        twin.__setstate__(state)
    assert twin.weights == []
    twin.step([np.ones(2)], [np.ones(2)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"rho": 2.0}, "rho is 2.0"),
        ({"clipnorm": 1.0, "parameter_clipnorm": 1.0}, "parameter_clipnorm is 1.0, but clipnorm"),
        ({"rho": 1.0, "bias_correction": 1.0}, "rho can't be 1"),
        ({"gradient_accumulation_steps": 1.0}, "gradient_accumulation_steps is 1"),
    ],
    ids=str,
)
def test_options_that_no_assignment_makes_are_not_unpickled(changes, message, tmp_path):
    state = stopped(tmp_path).__getstate__()
    state["settings"] |= changes
    twin = RMSprop.__new__(RMSprop)
    with pytest.raises(ValueError, match=message):
        twin.__setstate__(state)
    assert (twin.iterations, twin.weights) == (0, [])


@pytest.mark.parametrize("name", ["iterations", "calls", "total_calls", "slots", "pending", "keys"])
def test_a_pickle_that_lacks_a_part_of_the_state_raises(name, tmp_path):
    state = stopped(tmp_path).__getstate__()
    del state["state"][name]
    with pytest.raises(ValueError, match=f"^the state has no {name}"):
        RMSprop.__new__(RMSprop).__setstate__(state)


def test_a_model_without_parameters_has_no_call_behind_it():
    opt = RMSprop(gradient_accumulation_steps=2)
    opt.build([])
    state = opt.__getstate__()
    state["state"] |= {"calls": 1, "total_calls": 1}
    with pytest.raises(ValueError, match=r"but there is no gradient_sum$"):
        RMSprop.__new__(RMSprop).__setstate__(state)


def test_slots_of_another_form_than_the_accumulators_are_not_taken_over(tmp_path):
    for change in (
        lambda slots: slots["momentum"].pop(),
        lambda slots: slots["momentum"].reverse(),
        lambda slots: slots.update(momentum=[x.astype("f2") for x in slots["momentum"]]),
        lambda slots: slots.update(momentum=[x.tolist() for x in slots["momentum"]]),
    ):
        state = stopped(tmp_path).__getstate__()
        change(state["state"]["slots"])
        with pytest.raises(ValueError, match="momentum"):
            RMSprop.__new__(RMSprop).__setstate__(state)


# Numbers.


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


# A cycle in the form of Keras.


def keras_form(like, slots=1):
    return [np.int32(0), np.float32(0.001)] + [np.zeros_like(x) for _ in range(slots) for x in like]


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


# Counts.

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


# averaged().


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("raising", [False, True])
def test_averaged_restores_what_can_be_restored_and_names_the_rest(form, raising):
    arrays = [np.ones(2)] if form == "bare" else [np.ones(2), np.ones((2, 3)), np.ones(2)]
    make = {
        "list": list,
        "dict": lambda x: dict(zip("abc", x, strict=False)),
        "bare": lambda x: x[0],
    }
    opt, params = RMSprop(use_ema=True), make[form](arrays)
    for _ in range(3):
        opt.step(params, make[form]([np.ones_like(x) for x in arrays]))
    before = [x.copy() for x in arrays]
    name = {"list": r"params\[0\]", "dict": r"params\['a'\]", "bare": "params"}[form]

    def evaluate():
        with opt.averaged(params):
            arrays[0].flags.writeable = False
            if raising:
                raise KeyError("in the body")

    with pytest.raises(ValueError, match=rf"^{name} \(.*read-only\) can't be set back") as raised:
        evaluate()
    assert isinstance(raised.value.__context__, KeyError) == raising
    for x, y in zip(arrays[1:], before[1:], strict=True):
        assert_same_bits(x, y)
    arrays[0].flags.writeable = True
    arrays[0][...] = before[0]
    opt.step(params, make[form]([np.ones_like(x) for x in arrays]))


def test_averaged_restores_a_dict_that_has_changed_meanwhile():
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = RMSprop(use_ema=True)
    for _ in range(3):
        opt.step(params, {"b": np.ones(2), "a": np.full(2, 3.0)})
    held, before = dict(params), {key: x.copy() for key, x in params.items()}
    with opt.averaged(params):
        params.clear()
    for key, x in held.items():
        assert_same_bits(x, before[key])

    def freeze():
        with opt.averaged({"b": held["b"], "a": held["a"]}):
            held["a"].flags.writeable = False

    with pytest.raises(ValueError, match=r"^params\['a'\] \(.*and still holds its average"):
        freeze()
    assert_same_bits(held["b"], before["b"])


# Scalars.

RUINOUS = {
    "rho": (1 - 1e-9, "rounds to 1 in float32; use at most 0.9999999, or 1 itself"),
    "momentum": (1 - 1e-9, "rounds to 1 in float32"),
    "ema_momentum": (1 - 1e-9, "rounds to 1 in float32"),
    "lr": (1e39, "is infinite in the dtype of a parameter"),
    "weight_decay": (1e39, "rounds to inf in float32; use at most 3.4e38"),
    "epsilon": (1e39, "rounds to inf in float32"),
    "clipvalue": (1e-46, "rounds to 0 in float32; use at least 1e-45, or None"),
    "clipnorm": (1e-46, "rounds to 0 in float32"),
    "parameter_clipnorm": (1e-46, "rounds to 0 in float32"),
}
WAYS = {
    "step": lambda opt, params, grads: opt.step(params, grads),
    "bind": lambda opt, params, grads: opt.bind(params, grads),
    "get_updates": lambda opt, params, grads: opt.get_updates(params, None, lambda _: (0, grads)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", RUINOUS)
def test_a_scalar_with_which_float32_cannot_train_raises_by_name(name, later, way):
    value, message = RUINOUS[name]
    opt = RMSprop(use_ema=name == "ema_momentum")
    params = [np.ones(2), np.ones(2, np.float32)]
    grads = [np.ones_like(p) for p in params]
    if later:
        opt.step(params, grads)
    before, weights = copy.deepcopy(params), opt.get_weights()
    setattr(opt, name, value)
    with pytest.raises(ValueError, match="^" + re.escape(f"{name}={value!r} {message}")):
        WAYS[way](opt, params, grads)
    for x, y in zip(params + opt.get_weights(), before + weights, strict=True):
        assert_same_bits(x, y)
    setattr(opt, name, 0.5)
    WAYS[way](opt, params, grads)


@pytest.mark.parametrize("name", RUINOUS)
def test_float64_takes_such_a_scalar(name):
    opt = RMSprop(**{name: RUINOUS[name][0]})
    w = np.ones(2)
    opt.step([w], [np.ones(2)])
    assert np.isfinite(w).all()


@pytest.mark.parametrize("inside", [False, True])
def test_the_bias_correction_makes_no_epsilon_fit_that_does_not(inside):
    # Its factor is 1 - rho at the first step, or the root of that, and grows to 1.
    w, g = [np.ones(2, np.float32)], [np.ones(2, np.float32)]
    opt = RMSprop(rho=0.999, bias_correction=True, epsilon_in_sqrt=inside)
    opt.epsilon = 1e39
    with pytest.raises(ValueError, match=r"^epsilon=1e\+39 rounds to inf in float32"):
        opt.step(w, g)
    opt.epsilon = 1e-45 / (1e-3 if inside else 1e-3**0.5) / 2
    with pytest.raises(ValueError, match=r"^epsilon=.* multiplied by the bias correction's factor"):
        opt.step(w, g)
    opt.epsilon *= 3
    opt.step(w, g)


def test_a_scalar_that_plays_no_part_does_not_raise():
    w, g = [np.ones(2, np.float32)], [np.ones(2, np.float32)]
    opt = RMSprop(ema_momentum=1 - 1e-9)
    opt.step(w, g)
    opt.initial_accumulator_value = 1e-46
    opt.step(w, g)
    opt = RMSprop(rho=1 - 1e-9, epsilon=1e39, clipvalue=1.0)
    opt.get_gradients(lambda p: (0.0, g), w)


def test_a_rate_that_only_its_factors_make_infinite_raises():
    w, g = [np.ones(2, np.float32), np.ones(2)], [np.ones(2, np.float32), np.ones(2)]
    opt = RMSprop(lr=10.0, lr_scale=(1.0, 1e38))
    opt.step(w, g)
    opt.lr_scale = (1e38, 1.0)
    with pytest.raises(ValueError, match=r"^lr=10.0 times lr_scale is infinite"):
        opt.step(w, g)
    opt = RMSprop(lr=10.0, weight_decay=1e38, decoupled_weight_decay=True)
    with pytest.raises(ValueError, match=r"^lr=10.0 times weight_decay is infinite"):
        opt.step(w, g)
    opt = RMSprop(lr=lambda step: 1e39 if step else 0.1)
    opt.step(w, g)
    with pytest.raises(ValueError, match=r"^lr=1e\+39 is infinite"):
        opt.step(w, g)
    opt = RMSprop(lr=1e39, gradient_accumulation_steps=2)
    opt.lr = lambda step: 0.1
    for _ in range(2):
        opt.step(w, g)  # what lr was before the schedule plays no part
    opt = RMSprop(lr=1e300, lr_scale=(0.0, 1e300))
    with pytest.raises(ValueError, match=r"^lr=1e\+300 times lr_scale is infinite"):
        opt.step(w, g)


def test_the_last_scalars_that_float32_can_train_with_are_taken():
    w, g = [np.ones(2, np.float32)], [np.full(2, 1e-3, np.float32)]
    for arguments in (
        {"rho": 0.9999999, "lr": 3.4e38, "lr_scale": (1e-30,)},
        {"clipvalue": 1e-45, "epsilon": 1e-45, "momentum": 0.9999999},
        {"rho": 1.0, "momentum": 1.0, "epsilon": 0.0, "initial_accumulator_value": 1.0},
        {"clipvalue": 1e39, "clipnorm": 1e39, "weight_decay": 1e-60, "lr": 1e-60},
    ):
        RMSprop(**arguments).step(w, g)
        assert np.isfinite(w[0]).all(), arguments


# The norm.


def differing(shape):
    """Gradients whose norm another order of the same elements would round to another number."""
    for seed in range(1000):
        g = np.random.default_rng(seed).standard_normal(shape)
        if reference.global_norm([g]) != reference.global_norm([g.T]):
            return g
    raise AssertionError("there are none")


@pytest.mark.parametrize("clip", ["clipnorm", "parameter_clipnorm"])
@pytest.mark.parametrize("cycle", [None, 2])
@pytest.mark.parametrize("shape", [(3, 1999), (97, 89), (5, 31, 61), (2, 3, 4, 5, 200)])
def test_the_norm_does_not_depend_on_how_arrays_lie(clip, cycle, shape, team_at_any_size):
    grads = differing(shape)
    options = {clip: 0.5, "gradient_accumulation_steps": cycle, "epsilon": 1.0, "rho": 0.5}
    oracle, p = reference.RMSprop([np.ones(shape)], **options), np.ones(shape)
    for _ in range(4):
        oracle.step([p], [grads])
    (clipped,) = reference.clip([grads], 0.5, None)
    for first, later, threads in itertools.product("CF", "CF", (1, 3)):
        set_num_threads(threads)
        opt, w = RMSprop(**options), np.ones(shape)
        for order in (first, later, later, first):
            w = np.array(w, order=order)
            opt.step([w], [np.array(grads, order=later)])
        assert_same_bits(w, p, f"{first}, then {later}, on {threads}")
        given = np.array(grads, order=later)
        assert_same_bits(opt.get_gradients(lambda _, g=given: (0, [g]), [w])[0], clipped)


# One definition.


def test_a_cycle_that_ends_early_looks_at_its_gradients_as_they_come():
    for limit in (None, 1.0):
        arguments = {"nonfinite": "skip", "clipvalue": limit, "gradient_accumulation_steps": 3}
        opt, w = RMSprop(**arguments), np.ones(2, np.float32)
        oracle, p = reference.RMSprop([w], **arguments), w.copy()
        for step in range(3):
            g = np.full(2, 1e30 if step == 1 else 1.0, np.float32)
            if step == 1:
                opt.gradient_accumulation_steps = None
                oracle.options["gradient_accumulation_steps"] = None
            opt.step([w], [g])
            oracle.step([p], [g])
            assert_same_bits(w, p)
        assert opt.skipped_steps == oracle.skipped_steps == 1


@pytest.mark.parametrize("make", [RMSprop, lambda **x: reference.RMSprop([np.ones(2)], **x)])
def test_none_counts_as_zero_within_a_cycle(make):
    opt, w = make(gradient_accumulation_steps=3, lr=1.0, rho=0.0, epsilon=0.0), np.ones(2)
    opt.step([w], [None])
    opt.step([w], [np.full(2, 3.0)])
    opt.step([w], [None])
    assert_same_bits(w, np.zeros(2), "the mean of 0, 3 and 0")
    assert (opt.iterations, opt.weights[0].tolist()) == (1, [1.0, 1.0])
    for _ in range(2):
        opt.step([w], [None])
    for _ in range(2):
        with pytest.raises(ValueError, match="None"):
            opt.step([w], [None])
    assert opt.iterations == 1
    opt.step([w], [np.full(2, 3.0)])
    assert opt.iterations == 2


@pytest.mark.parametrize("make", [RMSprop, lambda **x: reference.RMSprop([np.ones(2)] * 2, **x)])
@pytest.mark.parametrize("cycle", [None, 2])
@pytest.mark.parametrize("frequency", [None, 2])
def test_averages_follow_parameters_without_gradients(make, cycle, frequency):
    arguments = {"use_ema": True, "ema_momentum": 0.5, "gradient_accumulation_steps": cycle}
    opt = make(**arguments, ema_overwrite_frequency=frequency)
    w = [np.ones(2), np.ones(2)]
    average = w[1].copy()
    for call in range(6):
        w[1] += 1.0  # another part of the program trains it
        moved, before = w[1].copy(), opt.weights[3].copy() if opt.weights else w[1].copy()
        opt.step(w, [np.ones(2), None])
        steps = call // (cycle or 1)
        keep = 0.5 if steps else 0.0
        average = keep * average + (1 - keep) * w[1] if not frequency else None
        if average is not None:
            assert_same_bits(opt.weights[3], average)
        else:
            e = keep * before + (1 - keep) * moved
            assert_same_bits(opt.weights[3], e)
            assert_same_bits(w[1], e if (steps + 1) % frequency == 0 else moved)


@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_finalize_gives_a_frozen_parameter_what_it_is(layout):
    base = np.ones((2, 8))
    frozen = base[:, ::2] if layout == "strided" else base
    opt, w = RMSprop(use_ema=True, lr=0.1), np.ones(3)
    opt.build([w, frozen])
    frozen[...] = 5.0
    for _ in range(3):
        opt.step([w, frozen], [np.ones(3), None])
    opt.finalize_variable_values([w, frozen])
    assert (frozen == 5.0).all()


def test_set_weights_begins_a_cycle_and_get_weights_leaves_its_sum_out():
    opt, w = RMSprop(gradient_accumulation_steps=2), np.ones(2)
    opt.step([w], [np.full(2, 100.0)])
    assert len(opt.get_weights()) == len(opt.weights) == 1
    opt.set_weights(opt.get_weights())
    twin, p = RMSprop(gradient_accumulation_steps=2), np.ones(2)
    for _ in range(2):
        opt.step([w], [np.ones(2)])
        twin.step([p], [np.ones(2)])
    assert_same_bits(w, p)
    assert opt.iterations == 1


@pytest.mark.parametrize("form", ["plain", "strided", "swapped"])
@pytest.mark.parametrize("cycle", [None, 2])
def test_skip_clears_the_gradients_that_zero_grad_clears_and_raise_none(form, cycle):
    base = np.full((3, 8), np.nan, ">f8" if form == "swapped" else "f8")
    g = base[:, ::2] if form == "strided" else base
    w = np.ones(g.shape)
    arguments = {"zero_grad": True, "gradient_accumulation_steps": cycle}
    with pytest.raises(ValueError, match="holds NaN"):
        RMSprop(nonfinite="raise", **arguments).step([w], [g])
    assert np.isnan(base).all()
    opt = RMSprop(nonfinite="skip", **arguments)
    opt.step([w], [g])
    assert not g.any()
    assert np.isnan(base).sum() == base.size - g.size
    assert (opt.skipped_steps, opt.iterations) == (1, 0)
    g += 1.0  # as a buffer that accumulates does
    for _ in range(cycle or 1):
        opt.step([w], [g])
    assert opt.iterations == 1
    kept = np.full(3, np.nan)
    RMSprop(nonfinite="skip").step([np.ones(3)], [kept])
    assert np.isnan(kept).all(), "without zero_grad gradients are only read"


def test_reset_forgets_the_last_loss():
    opt = RMSprop()
    opt.get_gradients(lambda p: (3.0, [np.ones(2)]), [np.ones(2)])
    assert opt.last_loss == 3.0
    opt.reset()
    assert opt.last_loss is None


# Small things.


@pytest.mark.parametrize("value", [{0.5, 1.0}, frozenset([0.5]), {0.5: 1, 1.0: 2}.keys()])
def test_factors_without_an_order_raise(value):
    with pytest.raises(TypeError, match=r"^lr_scale is .*pass a sequence"):
        RMSprop(lr_scale=value)


@pytest.mark.parametrize("built", [False, True])
def test_bind_checks_gradients_as_a_step_does(built):
    opt, params, grads = RMSprop(nonfinite="raise"), [np.ones(2)], [np.full(2, np.inf)]
    if built:
        opt.build(params)
    with pytest.raises(ValueError, match=r"^grads\[0\] holds NaN, infinity"):
        opt.bind(params, grads)
    assert len(opt.weights) == built
    for arguments in ({"clipvalue": 1.0}, {"nonfinite": "skip"}, {"nonfinite": "propagate"}):
        RMSprop(**{"nonfinite": "raise", **arguments}).bind(params, grads)
    assert np.isinf(grads[0]).all()
    opt.gradient_accumulation_steps = 2
    opt.step(params, [np.ones(2)])
    before = opt._snapshot()
    with pytest.raises(ValueError, match=r"^grads\[0\] holds NaN, infinity"):
        opt.bind(params, grads)
    opt.bind(params, [np.ones(2)])
    after = opt._snapshot()
    assert_same_bits(after.slots["gradient_sum"][0], before.slots["gradient_sum"][0])
    assert opt.skipped_steps == 0


def test_bind_asks_a_schedule_as_a_step_does():
    seen = Asked()
    opt, params, grads = RMSprop(lr=seen, gradient_accumulation_steps=2), [np.ones(2)], [np.ones(2)]
    opt.bind(params, grads)
    assert seen.steps == [], "a call that makes no update needs no rate"
    opt.step(params, grads)
    opt.bind(params, grads)
    assert seen.steps == [1]


@pytest.mark.parametrize(
    ("grads", "exception", "message"),
    [
        ([np.ones(3)], ValueError, r"^grads\[0\] has shape"),
        ([np.ones(2, np.float32)], TypeError, r"^grads\[0\] has dtype float32"),
        ([np.ones(2), np.ones(2)], ValueError, "2 gradients, but params has 1"),
        ((np.ones(2) for _ in range(1)), TypeError, "^params is of type list, but grads"),
    ],
    ids=["shape", "dtype", "count", "form"],
)
def test_get_gradients_with_clipping_checks_them_as_a_step_does(grads, exception, message):
    with pytest.raises(exception, match=message):
        RMSprop(clipnorm=1.0).get_gradients(lambda p: (0.0, grads), [np.ones(2)])


def test_get_gradients_refuses_a_limit_that_float32_rounds_to_0():
    params = [np.ones(2, np.float32)]
    with pytest.raises(ValueError, match=r"^clipvalue=1e-46 rounds to 0"):
        RMSprop(clipvalue=1e-46).get_gradients(lambda p: (0.0, [np.ones(2, np.float32)]), params)


def test_export_of_what_the_next_step_makes():
    opt, w = RMSprop(), [np.ones(2)]
    opt.step(w, [np.ones(2)])
    opt.momentum = 0.5
    state = opt.export_state("keras3", keras_form(w, 2))
    assert not state[3].any()
    opt.use_ema = True
    with pytest.raises(ValueError, match=r"call build\(params\) or step first"):
        opt.export_state("keras3", keras_form(w, 3))
    opt.import_state("keras3", [np.int32(4), np.float32(0.1), np.ones(2), np.ones(2), np.ones(2)])
    assert [x.tolist() for x in opt.weights] == [[1.0, 1.0]] * 3


def test_averages_and_frameworks_that_have_none():
    opt = RMSprop(use_ema=True)
    opt.build([np.ones(2)])
    state = {"state": {}, "param_groups": [{"params": [0]}]}  # no step has been made there
    with pytest.raises(ValueError, match=r"^torch keeps no average of the weights"):
        opt.import_state("torch", state)
    with pytest.raises(ValueError, match=r"^torch keeps no average of the weights"):
        interchange.write("torch", state, opt._snapshot().slots, 0)


# What other code does in the middle of a call.


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
