"""A bad hyper-parameter raises in the constructor and where it is assigned."""

import re

import numpy as np
import pytest
from common import assert_same_bits
from refusals import ANY, CALLS, built, check_usable, memory, refused, state

from rmsprop_c import Optimizer, RMSprop

NOT_NUMBERS = [True, np.True_, "0.1", b"1", 1j, [0.1], (0.1,), {}, object()]


HYPERPARAMETER_CASES = [
    *(
        (name, value, TypeError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay", "clipnorm", "clipvalue")
        for value in NOT_NUMBERS
    ),
    *((name, None, TypeError) for name in ("lr", "learning_rate", "rho", "decay")),
    *(
        (name, value, ValueError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay", "clipnorm", "clipvalue")
        for value in (
            float("nan"),
            float("inf"),
            -float("inf"),
            np.float64("nan"),
            np.float32("inf"),
            10**400,
            -(10**400),
        )
    ),
    *(
        (name, value, ValueError)
        for name in ("lr", "learning_rate", "rho", "epsilon", "decay")
        for value in (-1, -1e-300, np.float32(-0.5))
    ),
    *(("rho", value, ValueError) for value in (1.0000000000000002, 2, 1e300)),
]


HYPERPARAMETER_IDS = [
    f"{name}={str(value)[:20] if type(value) is not object else 'object'}"
    for name, value, _ in HYPERPARAMETER_CASES
]


def names(name, value):
    """The message names the argument (learning_rate is lr) and the value."""
    called = "(lr|learning_rate)" if name == "learning_rate" else name
    return rf"^{called} is {re.escape(repr(value))[:200]}"


@pytest.mark.parametrize(
    ("name", "value", "exception"), HYPERPARAMETER_CASES, ids=HYPERPARAMETER_IDS
)
def test_a_bad_hyperparameter_is_refused_by_the_constructor(name, value, exception):
    with pytest.raises(exception, match=names(name, value)) as raised:
        RMSprop(**{name: value})
    assert type(raised.value) is exception


@pytest.mark.parametrize(
    ("name", "value", "exception"), HYPERPARAMETER_CASES, ids=HYPERPARAMETER_IDS
)
def test_a_bad_hyperparameter_is_refused_by_assignment(name, value, exception):
    opt, params, grads = built("after steps", clipvalue=3.0)
    before, params_before = state(opt), memory(params)
    with pytest.raises(exception, match=names(name, value)):
        setattr(opt, name, value)
    assert state(opt) == before
    assert memory(params) == params_before
    check_usable(opt, params, grads)


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
