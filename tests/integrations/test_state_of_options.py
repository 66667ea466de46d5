"""State with and without options goes to other frameworks and comes back."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop


def test_no_state_is_exported_before_there_is_one():
    with pytest.raises(ValueError, match="there is no state yet"):
        RMSprop().export_state("keras3", [0, 0.001])


def test_a_state_of_other_shapes_is_refused_and_nothing_is_set():
    opt, params = RMSprop(), [np.ones((2, 3)), np.ones(4)]
    opt.step(params, [np.ones((2, 3)), np.ones(4)])
    before = [w.copy() for w in opt.get_weights()]
    state = [9, 0.001, np.full((2, 3), 7.0), np.full((4, 1), 7.0)]
    with pytest.raises(ValueError, match=r"accumulator\[1\] of the state has shape \(4, 1\)"):
        opt.import_state("keras3", state)
    assert opt.iterations == 1
    assert all((a == b).all() for a, b in zip(opt.get_weights(), before, strict=True))


def test_no_state_is_imported_before_there_are_accumulators():
    with pytest.raises(ValueError, match=r"there is no state to set yet; call build\(params\)"):
        RMSprop().import_state("keras3", [3, 0.001])


def test_a_state_without_options_goes_to_keras_and_comes_back():
    params = [np.ones((2, 3)), np.ones(4)]
    opt, twin = RMSprop(), RMSprop()
    for _ in range(3):
        opt.step(params, [np.ones((2, 3)), np.full(4, 0.5)])
    variables = opt.export_state("keras3", [0, 0.001, *[np.empty_like(p) for p in params]])
    assert variables[0] == 3
    twin.build(params)
    twin.import_state("keras3", variables)
    assert twin.iterations == 3
    assert all((a == b).all() for a, b in zip(opt.weights, twin.weights, strict=True))


def test_without_momentum_it_does_not_matter_where_the_learning_rate_enters():
    params = [np.ones(4)]
    opt = RMSprop(lr_in_momentum=True)
    opt.step(params, [np.full(4, 0.5)])
    entries = {0: {"step": np.array(0.0), "square_avg": np.zeros(4)}}
    form = {"state": entries, "param_groups": [{"params": [0], "momentum": 0, "centered": False}]}
    state = opt.export_state("torch", form)
    assert (state["state"][0]["square_avg"] == opt.weights[0]).all()


@pytest.mark.parametrize("framework", ["torch", "keras3", "optax"])
def test_state_whose_momentum_means_something_else_is_refused(framework):
    opt = RMSprop(momentum=0.5, lr_in_momentum=framework == "torch")
    opt.build([np.ones(2)])
    with pytest.raises(ValueError, match=r"^lr_in_momentum is"):
        opt.import_state(framework, {})
    with pytest.raises(ValueError, match=r"^lr_in_momentum is"):
        opt.export_state(framework, {})


def test_a_parameter_without_state_in_torch_begins_with_zeros_here():
    opt = RMSprop()
    opt.build([np.ones(2), np.ones(3)])
    opt.set_weights([np.ones(2), np.ones(3)])
    state = {"step": np.float32(4), "square_avg": np.full(2, 0.5)}
    opt.import_state("torch", {"state": {0: state}, "param_groups": [{"params": [0, 1]}]})
    for found, wanted in zip(opt.get_weights(), ([0.5, 0.5], [0.0, 0.0, 0.0]), strict=True):
        assert_same_bits(found, np.array(wanted))


def test_a_model_without_parameters_goes_to_keras_and_comes_back_with_every_slot():
    opt = RMSprop(momentum=0.5, centered=True)
    opt.build([])
    variables = opt.export_state("keras3", [np.int64(0), np.float32(0.001)])
    opt.import_state("keras3", variables)
    assert list(opt._snapshot().slots) == ["accumulator", "momentum", "average_gradient"]
