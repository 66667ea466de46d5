"""Unknown names, nested configs, and an epsilon that float32 rounds to 0."""

import numpy as np
import pytest
from common import assert_same_bits
from refusals import ANY, CALLS, built, check_usable, refused

from rmsprop_c import Optimizer, RMSprop


@pytest.mark.parametrize("name", ["amsgrad", "beta_1", "clip_norm", "name", "Lr"])
def test_an_unknown_keyword_is_refused_in_the_words_of_keras(name):
    message = f"^Unexpected keyword argument passed to optimizer: {name}$"
    with pytest.raises(TypeError, match=message):
        RMSprop(**{name: 0.1})
    with pytest.raises(TypeError, match=message):
        RMSprop.from_config({"lr": 0.1, name: 0.1})


@pytest.mark.parametrize("name", ["lr", "rho", "nesterov", "nonfinite", "lr_scale"])
@pytest.mark.parametrize("inner", [lambda x: [x], lambda x: {"config": x}])
def test_a_config_of_any_depth_is_a_value_error(inner, name):
    value = 1.0
    for _ in range(10**5):
        value = inner(value)
    config = {name: [value] if name == "lr_scale" else value}
    if name == "lr":
        config = {"lr": {"class_name": "CosineDecay", "config": {"initial_learning_rate": value}}}
        config["lr"]["config"]["decay_steps"] = 1
    with pytest.raises(ValueError, match="nested too deeply"):
        RMSprop.from_config(config)


@pytest.mark.parametrize("lr", [0.001, 0.1, 1e-3 + 0.0, np.float64(0.001)], ids=repr)
def test_lr_and_learning_rate_together_are_refused(lr):
    with pytest.raises(TypeError, match=r"both lr and learning_rate"):
        RMSprop(lr=lr, learning_rate=0.1)
    with pytest.raises(TypeError, match=r"both lr and learning_rate"):
        RMSprop(lr, learning_rate=lr)


def test_the_base_class_is_no_optimizer():
    with pytest.raises(TypeError, match="use RMSprop"):
        Optimizer()


@pytest.mark.parametrize("epsilon", [2.0**-150, 1e-46, 5e-324])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("stage", ANY)
def test_an_epsilon_that_rounds_to_0_in_float32_is_refused(stage, call, epsilon):
    opt, params, grads = built(stage)
    opt.epsilon = epsilon
    message = rf"^epsilon\W+{epsilon!r} rounds to 0 in float32"
    refused(call, opt, params, grads, ValueError, message)
    opt.epsilon = 1e-8
    check_usable(opt, params, grads)


@pytest.mark.parametrize(
    ("epsilon", "dtype"),
    [
        (5e-324, "float64"),
        (0.0, "float64"),
        (0.0, "float32"),
        (float(np.nextafter(2.0**-150, 1)), "float32"),
    ],
)
def test_an_epsilon_that_is_kept_is_accepted(epsilon, dtype):
    opt, p, g = RMSprop(epsilon=epsilon), np.ones(3, dtype), np.zeros(3, dtype)
    opt.step([p], [g])
    expected = np.nan if epsilon == 0 else 1.0
    assert_same_bits(p, np.full(3, expected, dtype))
