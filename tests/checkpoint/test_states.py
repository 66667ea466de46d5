"""A state that no run reaches is not taken over."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop


class Sub(np.ndarray):
    """An ndarray that a kernel does not read as it lies, as np.memmap and np.matrix are."""


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
