"""A value that an option can't have, or not with the others, raises by name."""

import copy
import re

import numpy as np
import pytest
from common import label
from option_sets import (
    OPTION_SETS,
    WAYS,
    as_form,
    as_list,
    assert_same_snapshot,
    everything,
    model,
    refused,
    same,
    usable,
)

from rmsprop_c import RMSprop, schedules

FLAGS = (
    "nesterov",
    "centered",
    "epsilon_in_sqrt",
    "lr_in_momentum",
    "bias_correction",
    "maximize",
    "decoupled_weight_decay",
    "use_ema",
    "flush_subnormals",
    "zero_grad",
)


FROM_0 = ("lr", "learning_rate", "epsilon", "decay", "weight_decay", "initial_accumulator_value")


FROM_0_TO_1 = ("rho", "momentum", "ema_momentum")


OPTIONAL = ("clipnorm", "clipvalue", "parameter_clipnorm")


COUNTS = ("ema_overwrite_frequency", "gradient_accumulation_steps")


NOT_NUMBERS = ["abc", "0.5", b"1", [0.5], (), (0.1,), 1j, True, np.True_, np.False_]
NOT_NUMBERS += [np.array(0.5), np.array([0.5]), object()]


NOT_FINITE = [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float32("inf")]
NOT_FINITE += [np.float64("nan"), 10**400, -(10**400)]


def bad_values():
    """(name, value, exception) of values that are refused at once."""
    for name in (*FROM_0, *FROM_0_TO_1):
        yield from ((name, value, TypeError) for value in NOT_NUMBERS)
        if name != "epsilon":  # where it is 1e-7, as in Keras 2.1
            yield name, None, TypeError
        yield from (
            (name, value, ValueError) for value in [*NOT_FINITE, -1, -1e-300, np.float32(-0.5)]
        )
    for name in FROM_0_TO_1:
        yield from ((name, value, ValueError) for value in (1.5, 2, 1e300, np.nextafter(1, 2)))
    for value in (1e39, 3.5e38):  # it would be infinity in float32
        yield "initial_accumulator_value", value, ValueError
    for name in OPTIONAL:
        yield from ((name, value, TypeError) for value in NOT_NUMBERS)
        yield from ((name, value, ValueError) for value in NOT_FINITE)
    for name in FLAGS:
        values = [0, 1, 1.0, None, "True", "", [], np.int64(1), np.array(True)]
        yield from ((name, value, TypeError) for value in values)
    for name in COUNTS:
        values = [*NOT_NUMBERS, 2.0, np.float64(3), float("nan"), np.array(2)]
        yield from ((name, value, TypeError) for value in values)
        yield from ((name, value, ValueError) for value in (0, -1, -(10**30), 2**53 + 1, 10**400))
    yield "gradient_accumulation_steps", 1, ValueError
    values = ["abc", "", "Raise", b"raise", None, True, 1, ["raise"], np.array(["raise", "skip"])]
    yield from (("nonfinite", value, ValueError) for value in values)
    for value in ("abc", b"abc", "", 3, 0.5, True, np.float64(1), np.array(0.5)):
        yield "lr_scale", value, TypeError
    for value in ("abc", b"abc", "", 3, None, True, np.array(1)):
        yield "exclude_from_weight_decay", value, TypeError


BAD_VALUES = list(bad_values())


@pytest.mark.parametrize(
    ("name", "value", "exception"),
    BAD_VALUES,
    ids=[f"{n}={label(repr(v)):.20}" for n, v, _ in BAD_VALUES],
)
def test_a_bad_value_is_refused_with_its_name_and_changes_nothing(name, value, exception):
    called = "(lr|learning_rate)" if name == "learning_rate" else name
    message = rf"^{called} is {re.escape(repr(value))}[;,]"
    for make in (RMSprop, lambda **arguments: RMSprop.from_config(arguments)):
        with pytest.raises(exception, match=message) as raised:
            make(**{name: value})
        assert type(raised.value) is exception
    params, (first, second) = model("mixed", 2, 0)
    opt = RMSprop(**OPTION_SETS["torch"])
    opt.step(params, first)
    twin, before = copy.deepcopy(opt), everything(opt)
    with pytest.raises(exception, match=message):
        setattr(opt, name, value)
    assert everything(opt) == before
    usable(opt, twin, params, second)


@pytest.mark.parametrize("name", ["lr", "learning_rate", "epsilon", "decay", "rho", *OPTIONAL])
def test_a_dict_is_no_number(name):
    """In a config it may describe a schedule."""
    opt = RMSprop()
    for use in (lambda: RMSprop(**{name: {}}), lambda: setattr(opt, name, {})):
        with pytest.raises(TypeError, match=r"is \{\}; it must be a real number"):
            use()
    assert opt.get_config() == RMSprop().get_config()


@pytest.mark.parametrize(
    ("value", "exception", "entry", "shown"),
    [
        ([1, "abc"], TypeError, 1, "'abc'"),
        ([None, 1], TypeError, 0, "None"),
        ([1, 1, True], TypeError, 2, "True"),
        ([1, -0.5], ValueError, 1, "-0.5"),
        ((float("nan"),), ValueError, 0, "nan"),
        ([1, float("inf")], ValueError, 1, "inf"),
        (np.ones((1, 1)), TypeError, 0, "array([1.])"),
        ({"W": -1}, ValueError, "'W'", "-1"),
        ({"W": 1, ("b", 0): "1"}, TypeError, "('b', 0)", "'1'"),
        ({2: False}, TypeError, 2, "False"),
    ],
    ids=label,
)
def test_a_bad_factor_is_refused_with_its_index_or_key(value, exception, entry, shown):
    message = "^" + re.escape(f"lr_scale[{entry}] is {shown};")
    with pytest.raises(exception, match=message):
        RMSprop(lr_scale=value)
    opt = RMSprop(lr_scale=[0.5])
    with pytest.raises(exception, match=message):
        opt.lr_scale = value
    assert opt.lr_scale == (0.5,)


NOT_OF_THE_MODEL = {
    "too few factors": (
        "list",
        {"lr_scale": [1.0] * 4},
        ValueError,
        "^lr_scale has 4 factors, but there are 5 parameters$",
    ),
    "too many factors": (
        "list",
        {"lr_scale": [1.0] * 6},
        ValueError,
        "^lr_scale has 6 factors, but there are 5 parameters$",
    ),
    "no factors": ("list", {"lr_scale": []}, ValueError, "^lr_scale has 0 factors"),
    "a factor of a bare array too many": (
        "bare",
        {"lr_scale": [1, 1]},
        ValueError,
        "^lr_scale has 2 factors, but there is 1 parameter$",
    ),
    "factors by key for a list": (
        "list",
        {"lr_scale": {0: 1.0}},
        TypeError,
        r"^lr_scale is a dict, but the parameters have no keys; pass a sequence",
    ),
    "factors in order for a dict": (
        "dict",
        {"lr_scale": [1.0] * 5},
        TypeError,
        "^lr_scale is a tuple, but the parameters have keys; pass a dict$",
    ),
    "a factor of an unknown key": (
        "dict",
        {"lr_scale": {"W": 1, "w": 1}},
        ValueError,
        r"^lr_scale has 'w', but the parameters are .'W', 'b'",
    ),
    "an index behind the last": (
        "list",
        {"exclude_from_weight_decay": (0, 5)},
        ValueError,
        r"^exclude_from_weight_decay has 5, but the parameters are \[0, 1, 2, 3, 4\]",
    ),
    "an index from the end": (
        "list",
        {"exclude_from_weight_decay": (-1,), "weight_decay": 0.1},
        ValueError,
        "^exclude_from_weight_decay has -1,",
    ),
    "a key for a list": (
        "list",
        {"exclude_from_weight_decay": ("b",)},
        ValueError,
        "^exclude_from_weight_decay has 'b',",
    ),
    "an index for a dict": (
        "dict",
        {"exclude_from_weight_decay": (0,)},
        ValueError,
        "^exclude_from_weight_decay has 0,",
    ),
    "an unknown key": (
        "dict",
        {"exclude_from_weight_decay": ("W", "bias")},
        ValueError,
        "^exclude_from_weight_decay has 'bias',",
    ),
    "an epsilon that the bias correction rounds to 0": (
        "list",
        {"epsilon": 1e-44, "rho": 0.999, "bias_correction": True},
        ValueError,
        "^epsilon=1e-44 rounds to 0 in float32",
    ),
}


@pytest.mark.parametrize("stage", ["first step", "later"])
@pytest.mark.parametrize("case", NOT_OF_THE_MODEL)
def test_what_does_not_fit_the_model_is_refused_by_name_and_changes_nothing(case, stage):
    form, arguments, exception, message = NOT_OF_THE_MODEL[case]
    params, (first, second) = model("float32", 2, 1)
    params, first, second = (as_form(x, form) for x in (params, first, second))
    opt = RMSprop(momentum=0.5)
    if stage == "later":
        opt.step(params, first)
    twin = copy.deepcopy(opt)
    before = {name: getattr(opt, name) for name in arguments}
    for name, value in arguments.items():
        setattr(opt, name, value)
    for way in ("step", "bind", "get_updates"):
        refused(way, opt, params, second, exception, message)
    for name, value in before.items():
        setattr(opt, name, value)
    twin_params = copy.deepcopy(params)
    WAYS["step"](opt, params, second)
    WAYS["step"](twin, twin_params, second)
    same(as_list(params), as_list(twin_params))
    assert_same_snapshot(opt, twin)


# (what is set, what can't follow, the message)
CONFLICTS = [
    ({"lr": schedules.CosineDecay(0.1, 9)}, {"decay": 0.5}, "^decay is 0.5, but lr is a schedule"),
    ({"decay": 0.5}, {"lr": schedules.CosineDecay(0.1, 9)}, "^lr is a schedule.*decay is 0.5"),
    ({"decay": 0.5}, {"learning_rate": lambda step: 0.1}, "^lr is a schedule.*decay is 0.5"),
    (
        {"clipnorm": 1.0},
        {"parameter_clipnorm": 2.0},
        "^parameter_clipnorm is 2.0, but clipnorm is set",
    ),
    (
        {"parameter_clipnorm": 2.0},
        {"clipnorm": 1.0},
        "^clipnorm is 1.0, but parameter_clipnorm is set",
    ),
    ({"rho": 1.0}, {"bias_correction": True}, "^bias_correction .* rho can't be 1"),
    ({"bias_correction": True}, {"rho": 1}, "^bias_correction .* rho can't be 1"),
]


@pytest.mark.parametrize(("first", "second", "message"), CONFLICTS, ids=label)
def test_options_that_contradict_each_other_are_refused_in_either_order(first, second, message):
    opt = RMSprop(**first)
    before = everything(opt)
    ((name, value),) = second.items()
    with pytest.raises(ValueError, match=message):
        setattr(opt, name, value)
    assert everything(opt) == before
    params, (grads,) = model("float64", 1, 0)
    usable(opt, copy.deepcopy(opt), params, grads)
    with pytest.raises(ValueError, match=r"schedule|clipnorm|bias_correction"):
        RMSprop(**first, **second)
    with pytest.raises(ValueError, match=r"schedule|clipnorm|bias_correction"):
        RMSprop(**second, **first)


def test_options_that_are_off_contradict_nothing():
    opt = RMSprop(lr=lambda step: 0.1, decay=0)
    opt.lr = 0.1
    opt.decay = 0.5
    opt = RMSprop(clipnorm=-1.0, parameter_clipnorm=1.0)
    opt.clipnorm = 0
    opt.parameter_clipnorm = None
    opt.clipnorm = 1.0
    opt.parameter_clipnorm = 0.0
    opt = RMSprop(rho=1, bias_correction=False)
    opt.rho = 0.5
    opt.bias_correction = True


def test_skipped_steps_is_counted_not_set():
    opt = RMSprop()
    with pytest.raises(AttributeError):
        opt.skipped_steps = 3
    assert opt.skipped_steps == 0
