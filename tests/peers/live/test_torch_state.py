"""The state is torch's, and used as torch uses it."""

import copy

import pytest
import torch
from torch_runs import (
    assert_same_run,
    gradients,
    parameters,
    train,
)

from rmsprop_c.torch import RMSprop


def fill(state):
    for entry in state.values():
        entry["square_avg"].fill_(0.25)


def replace(state):
    for entry in state.values():
        entry["square_avg"] = torch.full_like(entry["square_avg"], 0.25)
        entry["momentum_buffer"] = entry["momentum_buffer"] + 1
        entry["step"] = torch.tensor(7.0)


def swap(state):
    first, second = list(state)[:2]
    state[first], state[second] = state[second], state[first]


def forget_one(state):
    del state[next(iter(state))]


@pytest.mark.parametrize("change", [fill, replace, swap, forget_one, dict.clear])
def test_state_that_the_user_changes_is_used_as_torch_uses_it(change):
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        params = parameters(shapes=((3,), (3,), (2, 2)))
        optimizer = kind(params, momentum=0.5)
        train(optimizer, params, range(3))
        change(optimizer.state)
        train(optimizer, params, range(3, 6))
        runs.append((optimizer, params))
    (ours, params), (theirs, expected) = runs
    assert_same_run(ours, theirs, params, expected)


def test_a_momentum_that_is_switched_on_starts_at_zero():
    """torch has a KeyError there: it makes state at the first step only."""
    params, expected = parameters(), parameters()
    optimizer, theirs = RMSprop(params), torch.optim.RMSprop(expected)
    train(optimizer, params, range(3))
    train(theirs, expected, range(3))
    for state in theirs.state.values():
        state["momentum_buffer"] = torch.zeros_like(state["square_avg"])
    for group in optimizer.param_groups + theirs.param_groups:
        group["momentum"] = 0.5
    train(optimizer, params, range(3, 6))
    train(theirs, expected, range(3, 6))
    assert_same_run(optimizer, theirs, params, expected)


def test_a_parameter_without_a_gradient_is_left_alone():
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        params = parameters()
        optimizer = kind([{"params": params[:2]}, {"params": params[2:], "lr": 0.25}])
        for step in range(8):
            optimizer.zero_grad()
            chosen = gradients(step)
            for i, p in enumerate(params):
                if step and (step + i) % 3 == 0:
                    p.grad = chosen[i]
            optimizer.step()
        runs.append((optimizer, params))
    (ours, params), (theirs, expected) = runs
    assert_same_run(ours, theirs, params, expected)
    assert {float(state["step"]) for state in ours.state.values()} == {2, 3}


def test_state_that_is_there_before_the_first_gradient_is_used():
    runs = []
    for kind in (RMSprop, torch.optim.RMSprop):
        params = parameters(shapes=((3,), (3,)))
        optimizer = kind(params)
        params[0].grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
        optimizer.state[params[1]] = copy.deepcopy(optimizer.state[params[0]])
        train(optimizer, params, range(3))
        runs.append((optimizer, params))
    (ours, params), (theirs, expected) = runs
    assert_same_run(ours, theirs, params, expected)
