"""Copies, pickles and configs continue any options with the same bits."""

import contextlib
import copy
import json
import pickle

import numpy as np
import pytest
from common import label
from hypothesis import given, strategies as st
from option_sets import (
    OPTION_SETS,
    RATES,
    as_form,
    assert_same_future,
    by_config,
    copied,
    everything,
    examples,
    made,
    model,
    options,
    run,
)

import rmsprop_c
from rmsprop_c import RMSprop, reference, schedules
from rmsprop_c.hyperparameters import DEFAULT

KERAS = {"lr", "rho", "decay", "epsilon"}


COPIES = {
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
    "pickle 2": lambda opt: pickle.loads(pickle.dumps(opt, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("way", COPIES)
@examples(80)
@given(
    arguments=options(RATES),
    seed=st.integers(0, 99),
    calls=st.integers(0, 5),
    form=st.sampled_from(["list", "dict"]),
)
def test_a_copy_continues_any_options_with_the_same_bits_also_within_a_cycle(
    way, arguments, seed, calls, form
):
    opt = made(arguments, form)
    params, grads = model("mixed", 9, seed, nonfinite=arguments.get("nonfinite") == "skip")
    for g in grads[:calls]:
        opt.step(as_form(params, form), as_form(copied(g), form))
    before = everything(opt)
    twin = COPIES[way](opt)
    assert everything(twin) == everything(opt) == before
    assert_same_future(opt, twin, params, grads[calls:], form)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("calls", [1, 2, 4, 5])
def test_a_copy_within_a_cycle_goes_on_with_what_it_has_summed(way, calls):
    # Parameter 1 has no gradient in the first cycle's later calls, parameter 3 never has one.
    arguments = OPTION_SETS["keras 3"] | {"gradient_accumulation_steps": 3}
    params, grads = model("mixed", 9, 5)
    for call, g in enumerate(grads):
        g[3] = None
        g[1] = None if call % 3 else np.ones_like(params[1])
    opt, expected = RMSprop(**arguments), copied(params)
    oracle = reference.RMSprop(expected, **arguments)
    run(opt, params, oracle, expected, grads[:calls])
    run(COPIES[way](opt), params, oracle, expected, grads[calls:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", ["in weights", "assigned"])
@examples(80)
@given(
    arguments=options(RATES),
    seed=st.integers(0, 99),
    updates=st.integers(1, 3),
    form=st.sampled_from(["list", "dict"]),
)
def test_config_and_weights_continue_any_options_with_the_same_bits(
    count, arguments, seed, updates, form
):
    calls = updates * (arguments.get("gradient_accumulation_steps") or 1)
    opt = made(arguments, form)
    params, grads = model("mixed", calls + 5, seed)
    for g in grads[:calls]:
        opt.step(as_form(params, form), as_form(copied(g), form))
    twin = by_config(opt)
    twin.build(as_form([np.full_like(p, 9) for p in params], form))
    weights = opt.get_weights()
    if count == "in weights":
        twin.set_weights([opt.iterations, *weights])
    else:
        twin.weights, twin.iterations = weights, opt.iterations
    assert_same_future(opt, twin, params, grads[calls:], form)


@examples(60)
@given(arguments=options(RATES), form=st.sampled_from(["list", "dict"]))
def test_a_config_holds_beside_keras_2s_keys_what_is_not_at_its_default(arguments, form):
    config = made(arguments, form).get_config()
    chosen = {name for name, value in arguments.items() if value != DEFAULT[name]}
    assert set(config) == KERAS | chosen
    by_config(made(arguments, form))


@pytest.mark.parametrize("name", OPTION_SETS)
@pytest.mark.parametrize("form", ["list", "dict"])
def test_an_optimizer_of_a_config_takes_the_same_steps(name, form):
    params, grads = model("mixed", 7, 3)
    opt = made(OPTION_SETS[name], form)
    assert_same_future(opt, by_config(opt), params, grads, form)
    again = rmsprop_c.deserialize(json.loads(json.dumps(rmsprop_c.serialize(opt))))
    assert repr(again) == repr(opt)
    assert repr(eval(repr(opt), {**vars(schedules), "RMSprop": RMSprop})) == repr(opt)


def test_a_plain_config_has_exactly_the_keys_of_keras_2():
    at_defaults = RMSprop(**DEFAULT)
    assert RMSprop().get_config() == at_defaults.get_config()
    assert list(RMSprop().get_config()) == ["lr", "rho", "decay", "epsilon"]


@pytest.mark.parametrize("key", ["amsgrad", "Momentum", "accumulator_value", "name", ""])
def test_an_unknown_key_of_a_config_is_refused_by_name(key):
    config = RMSprop(momentum=0.5).get_config()
    with pytest.raises(TypeError, match=rf"^Unexpected keyword .* to optimizer: {key}$"):
        RMSprop.from_config({**config, key: None})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr_scale": np.array([0.5, 2], np.float32)}, {"lr_scale": [0.5, 2.0]}),
        ({"lr_scale": {"W": np.float64(2)}}, {"lr_scale": {"W": 2.0}}),
        ({"lr_scale": lambda: (x for x in [1, 2])}, {"lr_scale": [1.0, 2.0]}),
        ({"lr_scale": ()}, {"lr_scale": []}),
        ({"exclude_from_weight_decay": np.array([0, 2])}, {"exclude_from_weight_decay": [0, 2]}),
        ({"exclude_from_weight_decay": {"W": 1}}, {"exclude_from_weight_decay": ["W"]}),
        ({"exclude_from_weight_decay": [2, 0].__iter__}, {"exclude_from_weight_decay": [2, 0]}),
        ({"gradient_accumulation_steps": np.int8(2)}, {"gradient_accumulation_steps": 2}),
        ({"ema_overwrite_frequency": np.uint64(2**53)}, {"ema_overwrite_frequency": 2**53}),
        ({"nesterov": np.True_, "centered": np.False_}, {"nesterov": True}),
        ({"nonfinite": np.str_("skip")}, {"nonfinite": "skip"}),
        ({"momentum": np.float32(0.5), "weight_decay": 1}, {"momentum": 0.5, "weight_decay": 1.0}),
    ],
    ids=label,
)
def test_what_numpy_gives_becomes_plain_json(given, expected):
    # An iterator is made for each run of the test: it can be read once.
    opt = RMSprop(**{name: x() if callable(x) else x for name, x in given.items()})
    config = {key: value for key, value in opt.get_config().items() if key not in KERAS}
    assert config == expected
    assert {key: type(value) for key, value in config.items()} == {
        key: type(value) for key, value in expected.items()
    }
    by_config(opt)


def test_nothing_that_is_given_or_returned_is_shared():
    given = {"W": 1.0}
    opt = RMSprop(lr_scale=given, exclude_from_weight_decay=["b"])
    twin = copy.copy(opt)
    given["W"] = 2.0
    assert opt.lr_scale == {"W": 1.0}
    opt.get_config()["lr_scale"]["W"] = 3.0
    opt.get_config()["exclude_from_weight_decay"].append("s")
    assert (opt.lr_scale, opt.exclude_from_weight_decay) == ({"W": 1.0}, ("b",))
    with contextlib.suppress(TypeError):  # a read-only mapping would do
        opt.lr_scale["W"] = -4.0
    assert opt.lr_scale == twin.lr_scale == {"W": 1.0}


def test_keras_state_within_a_cycle_goes_out_and_comes_back():
    # Its variables are calls, lr, then averages, sums and accumulators.
    arguments = {"gradient_accumulation_steps": 3, "use_ema": True, "momentum": 0.5}
    params, grads = model("mixed", 9, 8)
    grads = [
        [np.ones_like(p) if x is None else x for x, p in zip(g, params, strict=True)] for g in grads
    ]
    opt = RMSprop(**arguments)
    for g in grads[:4]:
        opt.step(params, g)
    form = [0, 0.001, *[np.empty_like(p) for _ in range(4) for p in params]]
    variables = opt.export_state("keras3", form)
    assert variables[0] == 4
    twin = RMSprop(**arguments)
    twin.build(params)
    twin.import_state("keras3", variables)
    assert_same_future(opt, twin, params, grads[4:], "list")
