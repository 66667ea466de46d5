"""A scalar with which float32 can't train raises by name."""

import copy
import re

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop, _core

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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rho": 1.0},
        {"momentum": 1.0},
        {"ema_momentum": 1.0, "use_ema": True},
        {"ema_momentum": 1 - 2.0**-30},
        {"weight_decay": 1e300, "decoupled_weight_decay": True, "lr": 1e-300},
        {"epsilon": 0.0},
        {"clipnorm": 0.0, "clipvalue": -1.0},
    ],
    ids=str,
)
def test_scalars_that_float32_holds_cost_no_call_of_python_at_a_step(options, monkeypatch):
    asked = []
    monkeypatch.setattr(_core, "check_float32", lambda values: asked.append(values))
    RMSprop(**options).step([np.ones(3, np.float32)], [np.ones(3, np.float32)])
    assert asked == []
    opt = RMSprop(rho=1 - 2.0**-30)
    opt.step([np.ones(3, np.float32)], [np.ones(3, np.float32)])
    assert len(asked) == 1
