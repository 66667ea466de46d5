"""Every option, alone and together: the bits of reference.py, and state that survives."""

import contextlib
import copy
import hashlib
import json
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from common import LAYOUTS, assert_same_bits, layouts, place
from hypothesis import HealthCheck, given, settings, strategies as st

import rmsprop_c
from rmsprop_c import RMSprop, reference, schedules, set_num_threads
from rmsprop_c.hyperparameters import DEFAULT

SHAPES = ((2500,), (3, 7), (), (16,), (0, 4))
KEYS = ("W", "b", "s", "v", "none")
KERAS = {"lr", "rho", "decay", "epsilon"}
SLOTS = {
    "accumulator": "accumulators",
    "momentum": "momentums",
    "average_gradient": "average_gradients",
    "moving_average": "moving_averages",
    "gradient_sum": "gradient_sums",
}  # by their names in reference.py

# Between them they use every option; lr_scale and exclude_from_weight_decay by position.
OPTION_SETS = {
    "keras 2": {"lr": 0.05, "decay": 0.1, "clipnorm": 0.7, "clipvalue": 0.1},
    "torch": {
        "lr": 0.01,
        "momentum": 0.9,
        "centered": True,
        "lr_in_momentum": False,
        "weight_decay": 0.1,
        "exclude_from_weight_decay": (1,),
        "maximize": True,
        "lr_scale": (1.0, 0.5, 0.0, 3.0, 1.0),
    },
    "keras 3": {
        "lr": schedules.InverseTimeDecay(0.1, 1, 0.5),
        "epsilon": 1e-3,
        "epsilon_in_sqrt": True,
        "weight_decay": 0.05,
        "decoupled_weight_decay": True,
        "parameter_clipnorm": 0.7,
        "momentum": 0.5,
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
    "optax": {
        "rho": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "bias_correction": True,
        "initial_accumulator_value": 0.1,
        "centered": True,
        "epsilon_in_sqrt": True,
        "epsilon": 1e-6,
    },
    "safe": {
        "nonfinite": "skip",
        "flush_subnormals": True,
        "zero_grad": True,
        "clipvalue": 0.5,
        "weight_decay": 1e-3,
        "use_ema": True,
        "gradient_accumulation_steps": 3,
        "clipnorm": 1.0,
    },
}


def options(rates=(2.0**-4, 0.01, lambda step: 0.1 / (1 + step))):
    """Strategies of arguments; lr and epsilon at sizes that matter in float32 too."""
    number = st.sampled_from
    fixed = {
        "lr": number(list(rates)),
        "rho": number([0.9, 0.0, 0.5]),
        "epsilon": number([1e-8, 1e-3, 0.0]),
    }
    optional = {
        "momentum": number([0.9, 0.3]),
        "nesterov": st.booleans(),
        "centered": st.booleans(),
        "epsilon_in_sqrt": st.booleans(),
        "initial_accumulator_value": number([1.0, 0.1]),
        "lr_in_momentum": st.booleans(),
        "bias_correction": st.booleans(),
        "maximize": st.booleans(),
        "weight_decay": number([0.1, 1e-4]),
        "decoupled_weight_decay": st.booleans(),
        "exclude_from_weight_decay": number([(0,), (1, 2), ()]),
        "lr_scale": number([(1.0, 0.5, 0.0, 3.0, 1.0)]),
        "clip": number(["clipnorm", "parameter_clipnorm"]),
        "clipvalue": number([0.5, 1e-3]),
        "use_ema": st.booleans(),
        "ema_momentum": number([0.5, 0.99]),
        "ema_overwrite_frequency": number([1, 2, 3]),
        "gradient_accumulation_steps": number([2, 3]),
        "nonfinite": number(["skip", "propagate"]),
        "flush_subnormals": st.booleans(),
        "zero_grad": st.booleans(),
    }

    def chosen(arguments):
        clip = arguments.pop("clip", None)
        return {**arguments, clip: 0.7} if clip else arguments

    return st.fixed_dictionaries(fixed, optional=optional).map(chosen)


def examples(count):
    """Hypothesis without its health check of fixtures: ours are the same for all examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


def model(dtype, calls, seed, nonfinite=False):
    """Parameters, and gradients of each call with a None here and there; "mixed": both dtypes."""
    rng = np.random.default_rng(seed)
    dtypes = [("float32", "float64")[i % 2] if dtype == "mixed" else dtype for i in range(5)]

    def arrays(scale=1.0):
        pairs = zip(SHAPES, dtypes, strict=True)
        return [np.array(rng.standard_normal(shape) * scale, kind) for shape, kind in pairs]

    params = arrays()
    grads = []
    for call in range(calls):
        grads.append(arrays(10.0 ** rng.uniform(-25, 3)))
        if rng.random() < 0.3:
            grads[-1][rng.integers(len(SHAPES) - 1) + 1] = None
        if nonfinite and call % 3 == 1:
            grads[-1][0][rng.integers(2500)] = rng.choice([np.nan, np.inf, 3e19, -np.inf])
    return params, grads


def copied(arrays):
    """Copies in the same memory order; None stays."""
    return [None if x is None else x.copy(order="K") for x in arrays]


def as_form(arrays, form):
    """A model of these arrays: a list, tuple or dict of them, or the first one alone."""
    makes = {"dict": lambda x: dict(zip(KEYS, x, strict=False)), "bare": lambda x: x[0]}
    return makes.get(form, {"list": list, "tuple": tuple}.get(form))(arrays)


def by_key(arguments):
    """Arguments for a model that is a dict."""
    arguments = dict(arguments)
    if arguments.get("lr_scale") is not None:
        arguments["lr_scale"] = dict(zip(KEYS, arguments["lr_scale"], strict=True))
    if "exclude_from_weight_decay" in arguments:
        arguments["exclude_from_weight_decay"] = tuple(
            KEYS[i] for i in arguments["exclude_from_weight_decay"]
        )
    return arguments


def made(arguments, form):
    return RMSprop(**(by_key(arguments) if form == "dict" else arguments))


def same(found, expected, what=""):
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert (x is None) == (y is None), f"{what}[{i}]"
        if x is not None:
            assert_same_bits(x, y, f"{what}[{i}]")


def assert_same_state(opt, reference_opt):
    """All state that our optimizer has is the reference's."""
    state = opt._snapshot()
    for name, arrays in state.slots.items():
        same(arrays, getattr(reference_opt, SLOTS[name]), name)
    for name in ("iterations", "calls", "total_calls", "skipped_steps"):
        assert getattr(state, name) == getattr(reference_opt, name), name


def assert_same_snapshot(opt, other):
    """Two optimizers of ours have the same state to the bit."""
    found, expected = opt._snapshot(), other._snapshot()
    assert list(found.slots) == list(expected.slots)
    for name, arrays in expected.slots.items():
        same(found.slots[name], arrays, name)
        for x, y in zip(found.slots[name], arrays, strict=True):
            assert x.strides == y.strides
    assert found._replace(slots={}) == expected._replace(slots={})


def digest(x):
    """Bytes, dtype, shape and strides of an array, short enough to be printed."""
    return hashlib.sha256(x.tobytes("A")).hexdigest()[:8], str(x.dtype), x.shape, x.strides


def everything(opt):
    """All that an optimizer is, as what == compares."""
    state = opt._snapshot()
    slots = {name: [digest(x) for x in arrays] for name, arrays in state.slots.items()}
    return slots, state._replace(slots={}), repr(opt), vars(opt).copy()


def memory(arrays):
    """The bytes of arrays and of what they are views of."""
    seen = []
    for x in arrays:
        while isinstance(x, np.ndarray):
            seen.append(digest(x))
            x = x.base
    return seen


def run(opt, own, expected, params, grads):
    for g in grads:
        ours, theirs = copied(g), copied(g)
        opt.step(own, ours)
        expected.step(params, theirs)
        same(ours, theirs, "grads")
        same(own, params, "params")
    assert_same_state(opt, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@examples(100)
@given(arguments=options(), seed=st.integers(0, 99), threads=st.sampled_from([1, 2, 3]))
def test_any_options_give_the_bits_of_the_reference(
    dtype, isa, team_at_any_size, arguments, seed, threads
):
    set_num_threads(threads)
    own, grads = model(dtype, 7, seed, nonfinite=arguments.get("nonfinite") == "skip")
    params = copied(own)
    run(RMSprop(**arguments), own, reference.RMSprop(params, **arguments), params, grads)


def test_every_option_is_in_one_of_the_sets():
    assert {name for arguments in OPTION_SETS.values() for name in arguments} == set(DEFAULT)


COPIES = {
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
    "pickle 2": lambda opt: pickle.loads(pickle.dumps(opt, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
RATES = (
    0.01,
    schedules.InverseTimeDecay(0.1, 2, 0.5),
    schedules.PiecewiseConstantDecay([1], [1, 2]),
)


def by_config(opt):
    """A new optimizer from the config, as a file would bring it back."""
    config = opt.get_config()
    read = json.loads(json.dumps(config, allow_nan=False))
    assert read == config
    twin = RMSprop.from_config(read)
    assert read == config, "from_config changed its argument"
    assert twin.get_config() == config
    assert repr(twin) == repr(opt)
    return twin


def assert_same_future(opt, twin, params, grads, form):
    """Both optimizers take the same bits of parameters through the same steps."""
    twin_params = copied(params)
    for g in grads:
        ours, theirs = copied(g), copied(g)
        opt.step(as_form(params, form), as_form(ours, form))
        twin.step(as_form(twin_params, form), as_form(theirs, form))
        same(twin_params, params, "params")
        same(theirs, ours, "grads")
    assert_same_snapshot(twin, opt)


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
    ids=str,
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
FROM_0 = ("lr", "epsilon", "decay", "weight_decay", "initial_accumulator_value")
FROM_0_TO_1 = ("rho", "momentum", "ema_momentum")
OPTIONAL = ("clipnorm", "clipvalue", "parameter_clipnorm")
COUNTS = ("ema_overwrite_frequency", "gradient_accumulation_steps")
NOT_NUMBERS = ["abc", "0.5", b"1", [0.5], (), 1j, True, np.False_, np.array(0.5), np.array([0.5])]
NOT_FINITE = [float("nan"), float("inf"), -float("inf"), np.float32("nan"), 10**400, -(10**400)]


def bad_values():
    """(name, value, exception) of values that are refused at once."""
    for name in (*FROM_0, *FROM_0_TO_1):
        yield from ((name, value, TypeError) for value in NOT_NUMBERS)
        if name != "epsilon":  # where it is 1e-7, as in Keras 2.1
            yield name, None, TypeError
        yield from ((name, value, ValueError) for value in [*NOT_FINITE, -1, -1e-300])
    for name in FROM_0_TO_1:
        yield from ((name, value, ValueError) for value in (1.5, 2, np.nextafter(1, 2)))
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


def usable(opt, twin, params, grads):
    """After refusals a step has the bits of a twin's that has seen none of them."""
    twin_params = copied(params)
    opt.step(params, copied(grads))
    twin.step(twin_params, copied(grads))
    same(params, twin_params)
    assert_same_snapshot(opt, twin)


@pytest.mark.parametrize(
    ("name", "value", "exception"), BAD_VALUES, ids=[f"{n}={v!r:.20}" for n, v, _ in BAD_VALUES]
)
def test_a_bad_value_is_refused_with_its_name_and_changes_nothing(name, value, exception):
    message = rf"^{name} is {re.escape(repr(value))}[;,]"
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
    ids=str,
)
def test_a_bad_factor_is_refused_with_its_index_or_key(value, exception, entry, shown):
    message = "^" + re.escape(f"lr_scale[{entry}] is {shown};")
    with pytest.raises(exception, match=message):
        RMSprop(lr_scale=value)
    opt = RMSprop(lr_scale=[0.5])
    with pytest.raises(exception, match=message):
        opt.lr_scale = value
    assert opt.lr_scale == (0.5,)


WAYS = {
    "step": lambda opt, params, grads: opt.step(params, grads),
    "bind": lambda opt, params, grads: opt.bind(params, grads),
    "apply_gradients": lambda opt, params, grads: opt.apply_gradients(
        zip(as_list(grads), as_list(params), strict=True)
    ),
    "get_updates": lambda opt, params, grads: opt.get_updates(params, None, lambda _: (0.0, grads)),
}


def as_list(arrays):
    if isinstance(arrays, np.ndarray):
        return [arrays]
    return list(arrays.values()) if isinstance(arrays, dict) else list(arrays)


def refused(way, opt, params, grads, exception, message):
    """The call is refused with this message, and no byte has changed anywhere."""
    arrays = as_list(params) + as_list(grads)
    before = memory(arrays), everything(opt)
    with pytest.raises(exception, match=message) as raised:
        WAYS[way](opt, params, grads)
    assert type(raised.value) is exception
    assert (memory(arrays), everything(opt)) == before


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


@pytest.mark.parametrize(("first", "second", "message"), CONFLICTS, ids=str)
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


CHANGES = [
    ({}, {"momentum": 0.9}),
    ({}, {"momentum": 0.9, "nesterov": True, "lr_in_momentum": False}),
    ({"momentum": 0.9}, {"momentum": 0.0}),
    ({"momentum": 0.9}, {"nesterov": True}),
    ({"momentum": 0.9}, {"lr_in_momentum": False}),
    ({}, {"centered": True}),
    ({"centered": True}, {"centered": False}),
    ({}, {"epsilon_in_sqrt": True}),
    ({}, {"bias_correction": True}),
    ({}, {"maximize": True}),
    ({}, {"weight_decay": 0.1}),
    ({"weight_decay": 0.1}, {"decoupled_weight_decay": True}),
    ({"weight_decay": 0.1}, {"exclude_from_weight_decay": (0, 3)}),
    ({"weight_decay": 0.1, "exclude_from_weight_decay": (0, 3)}, {"exclude_from_weight_decay": ()}),
    ({}, {"lr_scale": (2.0, 1.0, 1.0, 0.0, 1.0)}),
    ({"lr_scale": (2.0, 1.0, 1.0, 0.0, 1.0)}, {"lr_scale": None}),
    ({"clipnorm": 0.1}, {"clipnorm": None, "parameter_clipnorm": 0.1}),
    ({}, {"use_ema": True, "ema_overwrite_frequency": 1, "ema_momentum": 0.5}),
    ({"use_ema": True}, {"ema_overwrite_frequency": 2}),
    ({"use_ema": True, "ema_overwrite_frequency": 1}, {"ema_momentum": 0.1}),
    ({"use_ema": True, "ema_overwrite_frequency": 1}, {"use_ema": False}),
    ({}, {"gradient_accumulation_steps": 2}),
    ({"gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": None}),
    ({"gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 2}),
    ({"gradient_accumulation_steps": 3}, {"zero_grad": True}),
    ({}, {"zero_grad": True}),
    ({}, {"lr": lambda step: 1.0 / (1 + step)}),
    ({"lr": lambda step: 1.0 / (1 + step)}, {"lr": 0.5}),
    ({"nonfinite": "skip"}, {"nonfinite": "propagate"}),
]


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("way", ["step", "bound"])
@pytest.mark.parametrize(("before", "changes"), CHANGES, ids=str)
def test_an_assigned_option_takes_effect_at_the_next_step(before, changes, way, form):
    # At the call behind the second cycle of 3, or in the third cycle.
    at = 7 if changes.get("gradient_accumulation_steps") == 2 or "zero_grad" in changes else 6
    params, grads = model("mixed", 13, 4)
    grads = [
        [np.ones_like(p) if x is None else x for x, p in zip(g, params, strict=True)] for g in grads
    ]
    if "nonfinite" in before:
        grads[2][0][7] = grads[8][0][5] = np.nan
    unchanged, buffers = copied(params), [np.empty_like(p) for p in params]
    expected = copied(params)
    opt, oracle = made(before, form), reference.RMSprop(expected, **before)
    other = reference.RMSprop(unchanged, **before)
    given = as_form(params, form), as_form(buffers, form)
    step = opt.bind(*given) if way == "bound" else lambda: opt.step(*given)
    zeroed = False
    for call, g in enumerate(grads):
        if call == at:
            for name, value in changes.items():
                setattr(opt, name, by_key({name: value})[name] if form == "dict" else value)
                oracle.options[name] = value
        for buffer, x in zip(buffers, g, strict=True):
            buffer[...] = x
        theirs = copied(g)
        with np.errstate(all="ignore"):
            step()
            oracle.step(expected, theirs)
            other.step(unchanged, copied(g))
        same(params, expected, f"params at call {call}")
        same(buffers, theirs, f"grads at call {call}")
        zeroed = zeroed or not theirs[0].any()
    assert_same_state(opt, oracle)
    different = any(
        (x != y).any()
        for x, y in zip(
            [*expected, *oracle.moving_averages], [*unchanged, *other.moving_averages], strict=True
        )
    )
    assert different or zeroed, "it had no effect"


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("way", ["step", "bound"])
def test_a_cycle_that_is_cut_short_updates_along_the_mean_of_its_calls(steps, way):
    arguments = {"momentum": 0.9, "clipnorm": 0.5, "decay": 0.5}
    params, _ = model("float64", 0, 0)
    expected, grads = copied(params), [np.empty_like(p) for p in params]
    opt = RMSprop(gradient_accumulation_steps=5, **arguments)
    oracle = reference.RMSprop(expected, gradient_accumulation_steps=3, **arguments)
    step = opt.bind(params, grads) if way == "bound" else lambda: opt.step(params, grads)
    for call in range(3):
        if call == 2:
            opt.gradient_accumulation_steps = steps
        for g in grads:
            g[...] = 1 + call
        step()
        oracle.step(expected, grads)
    same(params, expected)
    assert_same_state(opt, oracle)
    assert opt.iterations == 1
    oracle.options["gradient_accumulation_steps"] = steps
    for _ in range(steps or 1):
        step()
        oracle.step(expected, grads)
    same(params, expected)
    assert opt.iterations == 2


def test_state_of_an_option_that_comes_starts_afresh_and_that_of_one_that_goes_is_dropped():
    params, grads = model("mixed", 6, 3)
    opt = RMSprop()
    opt.step(params, grads[0])
    assert len(opt.weights) == 5
    opt.momentum, opt.centered = 0.5, True
    assert len(opt.weights) == 5, "state is made where it is needed"
    opt.build(params)
    assert [w.any() for w in opt.weights[5:]] == [False] * 10
    opt.step(params, grads[1])
    kept = opt.get_weights()[5:]
    opt.momentum, opt.centered = 0.0, False
    assert len(opt.weights) == len(opt.get_weights()) == 5, (
        "weights are those that the options need"
    )
    opt.momentum, opt.centered = 0.5, True
    same(opt.weights[5:], kept)  # no step was in between
    opt.momentum, opt.centered = 0.0, False
    opt.step(params, grads[2])
    opt.momentum, opt.centered = 0.5, True
    assert len(opt.weights) == 5
    opt.build(params)
    assert [w.any() for w in opt.weights[5:]] == [False] * 10


def test_averages_that_come_later_start_at_the_parameters_of_that_step():
    w, opt = np.array([1.0, 2.0]), RMSprop(lr=0.1, ema_momentum=0.75)
    for _ in range(3):
        opt.step([w], [np.ones(2)])
    opt.use_ema = True
    w[...] = [8.0, 16.0]
    before = w.copy()
    opt.step([w], [np.ones(2)])
    assert_same_bits(opt.weights[1], 0.75 * before + 0.25 * w)


def test_where_accumulators_start_matters_when_state_is_made():
    w, opt = np.ones(3), RMSprop(initial_accumulator_value=2.0)
    opt.build([w])
    assert_same_bits(opt.weights[0], np.full(3, 2.0))
    opt.initial_accumulator_value = 4.0
    opt.step([w], [np.zeros(3)])
    assert_same_bits(opt.weights[0], np.full(3, 0.9 * 2.0))
    opt.reset()
    opt.step([w], [np.zeros(3)])
    assert_same_bits(opt.weights[0], np.full(3, 0.9 * 4.0))


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_reset_forgets_everything_but_the_options(options):
    params, grads = model("mixed", 8, 6, nonfinite="nonfinite" in options)
    opt, start = RMSprop(**options), copied(params)
    for g in grads[:5]:
        opt.step(params, copied(g))
    opt.reset()
    fresh = RMSprop(**options)
    assert everything(opt) == everything(fresh)
    assert_same_future(opt, fresh, start, grads, "list")


SWITCHED_ON = {
    "momentum": 0.9,
    "centered": True,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
}


@pytest.mark.parametrize("why", ["shape", "raise", "skip", "read-only"])
@pytest.mark.parametrize("name", SWITCHED_ON)
def test_a_step_that_is_not_made_leaves_no_state_of_an_option_that_was_switched_on(name, why):
    # Averages, for one, would start at the parameters of that step.
    params, (first, second) = model("float64", 2, 0)
    opt = RMSprop(nonfinite="propagate" if why == "shape" else why.replace("read-only", "skip"))
    opt.step(params, first)
    setattr(opt, name, SWITCHED_ON[name])
    twin = copy.deepcopy(opt)
    bad = copied(second)
    bad[0][3] = np.nan
    for _ in range(2):
        if why == "shape":
            message = "^grads has 4 entries, but params has 5"
            refused("step", opt, params, second[:4], ValueError, message)
        elif why == "raise":
            refused("step", opt, params, bad, ValueError, r"^grads\[0\] holds NaN")
        elif why == "skip":
            opt.step(params, bad)
            twin.step(params, bad)
        else:
            frozen = copied(params)
            frozen[-1].flags.writeable = False
            refused("step", opt, frozen, second, ValueError, r"^params\[4\] is read-only")
    assert everything(opt) == everything(twin)
    assert len(everything(opt)[0]) == 1
    for p in params:
        p += 1
    usable(opt, twin, params, second)
    assert len(everything(opt)[0]) == 2


# Options that change under a step: user code runs while its arrays are looked at.
CHANGING = """
    import numpy as np
    from rmsprop_c import RMSprop

    class Key(str):
        def __hash__(self):
            act()
            return str.__hash__(self)

    class Model(dict):
        def __getitem__(self, key):
            act()
            return super().__getitem__(key)

    def act():
        for name, value in changes.items():
            setattr(opt, name, value)

    changes, found = {}, []
    for later in ({}, {"centered": True, "momentum": 0.9, "nesterov": True, "use_ema": True}):
        opt = RMSprop(momentum=0.5, lr_scale={"w": 1.0})
        params, grads = {make_params}
        changes = later
        opt.step(params, grads)
        found.append(next(iter(params.values())))
        changes = {}
    assert np.isfinite(found).all()
"""


@pytest.mark.parametrize(
    "make_params",
    [
        'Model(w=np.ones(50_000)), {"w": np.ones(50_000)}',
        '{Key("w"): np.ones(50_000)}, {Key("w"): np.ones(50_000)}',
    ],
    ids=["values", "keys"],
)
def test_options_that_are_assigned_while_a_step_begins_crash_nothing(make_params):
    code = textwrap.dedent(CHANGING).replace("{make_params}", make_params)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


NOT_OF_FLOAT32 = (2e19, -2e19, 3e38)  # their squares overflow there
OF_FLOAT32 = (1.8e19, -1.8e19)


def trap(value, dtype="float32", form="list", at=1):
    """A model in which one element of one gradient is this."""
    shapes = ((3, 2), (5,), ())
    params = [np.linspace(-1, 1, int(np.prod(s))).reshape(s).astype(dtype) for s in shapes]
    grads = [np.full_like(p, 0.5) for p in params]
    with np.errstate(over="ignore"):
        grads[at].reshape(-1)[-1] = value
    if form == "bare":
        return params[at], grads[at]
    return as_form(params, form), as_form(grads, form)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("way", ["step", "bound", "get_updates", "apply_gradients"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 2e19])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"momentum": 0.5, "centered": True, "use_ema": True, "zero_grad": True},
        {"gradient_accumulation_steps": 2, "clipnorm": 1.0, "use_ema": True, "zero_grad": True},
    ],
    ids=["plain", "rich", "accumulation"],
)
def test_raise_names_the_gradient_and_changes_nothing(more, value, way, steps):
    opt = RMSprop(nonfinite="raise", **more)
    params, grads = trap(0.5)
    opt.build(params)
    for _ in range(steps):
        opt.step(params, copied(grads))
    params, grads = trap(value, at=1)
    message = r"^grads\[1\] holds NaN, infinity or a number whose square overflows; nothing was"
    if way == "bound":
        good = copied(grads)
        for g in good:
            g[...] = 0.5
        step = opt.bind(params, good)
        for g, bad in zip(good, grads, strict=True):
            g[...] = bad
        before = memory(params + good), everything(opt)
        with pytest.raises(ValueError, match=message):
            step()
        assert (memory(params + good), everything(opt)) == before
        way = "bind"
    refused(way, opt, params, grads, ValueError, message)
    twin = copy.deepcopy(opt)
    usable(opt, twin, *trap(0.5))


@pytest.mark.parametrize(
    ("form", "at", "name"),
    [
        ("list", 0, "grads[0]"),
        ("tuple", 2, "grads[2]"),
        ("dict", 1, "grads['b']"),
        ("bare", 1, "grads"),
    ],
)
def test_raise_names_the_position_in_every_form(form, at, name):
    params, grads = trap(np.inf, "float64", form, at)
    with pytest.raises(ValueError, match="^" + re.escape(name) + " holds NaN"):
        RMSprop(nonfinite="raise").step(params, grads)


def test_raise_names_the_first_of_several_and_forgets_them():
    opt, params = RMSprop(nonfinite="raise"), [np.ones(2) for _ in range(4)]
    bad, good = np.full(2, np.nan), np.ones(2)
    for grads, name in [([good, None, bad, bad], 2), ([bad, bad, good, good], 0)]:
        with pytest.raises(ValueError, match=rf"^grads\[{name}\] holds"):
            opt.step(params, grads)
    opt.step(params, [good] * 4)
    assert (opt.iterations, opt.skipped_steps) == (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, *NOT_OF_FLOAT32, *OF_FLOAT32, 1e154])
@pytest.mark.parametrize("way", ["raise", "skip"])
def test_what_counts_is_a_square_that_is_not_finite_in_the_dtype(way, value, dtype):
    with np.errstate(over="ignore"):
        kept = bool(np.isfinite(np.square(np.dtype(dtype).type(value))))
    assert kept == (np.isfinite(value) and (abs(value) < 1.9e19 or dtype == "float64"))
    params, grads = trap(value, dtype)
    opt, expected = RMSprop(nonfinite=way), copied(params)
    oracle = reference.RMSprop(expected, nonfinite=way)
    if kept or way == "skip":
        run(opt, params, oracle, expected, [grads])
        assert (opt.iterations, opt.skipped_steps) == (kept, not kept)
    else:
        with pytest.raises(ValueError, match="holds NaN, infinity"):
            opt.step(params, grads)


# (options, value, whether the step is made)
CLIPPED = [
    ({"clipvalue": 1.0}, 2e19, True),
    ({"clipvalue": 1.0}, np.inf, True),
    ({"clipvalue": 1.0}, -np.inf, True),
    ({"clipvalue": 1.0}, np.nan, False),
    ({"clipvalue": 2e19}, 3e19, False),
    ({"clipvalue": -1.0}, 2e19, False),
    ({"clipnorm": 1.0}, 2e19, True),
    ({"clipnorm": 1.0}, np.inf, False),  # scaled by 0
    ({"clipnorm": 1.0}, np.nan, False),  # not scaled at all
    ({"clipnorm": 1.0, "clipvalue": 1.0}, np.inf, False),
    ({"clipnorm": 3e19}, 2e19, False),
    ({"parameter_clipnorm": 1.0}, 2e19, True),
    ({"parameter_clipnorm": 1.0}, np.inf, False),
    ({"parameter_clipnorm": 3e19}, 2e19, False),
    ({"clipvalue": 1.0, "maximize": True}, 2e19, True),
    ({"clipvalue": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
    ({"clipnorm": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
    ({"parameter_clipnorm": 1.0, "gradient_accumulation_steps": 2}, 2e19, False),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("arguments", "value", "made"), CLIPPED, ids=str)
def test_gradients_are_looked_at_after_clipping_and_sums_before(arguments, value, made):
    arguments = {"nonfinite": "skip", **arguments}
    params, grads = trap(value)
    opt, expected = RMSprop(**arguments), copied(params)
    oracle = reference.RMSprop(expected, **arguments)
    run(opt, params, oracle, expected, [grads, grads])
    assert opt.skipped_steps == (0 if made else 2)
    assert all(np.isfinite(p).all() for p in params)
    arguments["nonfinite"] = "raise"
    if made:
        RMSprop(**arguments).step(*trap(value))
    else:
        with pytest.raises(ValueError, match=r"^grads\[1\] holds"):
            RMSprop(**arguments).step(*trap(value))


def test_a_skipped_call_does_nothing_but_count():
    arguments = OPTION_SETS["keras 3"] | {"nonfinite": "skip", "zero_grad": True}
    params, grads = model("mixed", 7, 3)
    opt = RMSprop(**arguments)
    assert opt.skipped_steps == 0
    for call, g in enumerate(grads):
        bad = [None if x is None else np.full_like(x, np.nan) for x in g]
        opt.build(params)
        before = memory(params), everything(opt)[0], opt._counts()[:2], opt.lr
        opt.step(params, bad)
        assert opt.skipped_steps == call + 1
        assert (memory(params), everything(opt)[0], opt._counts()[:2], opt.lr) == before
        assert not any(x.any() for x in bad if x is not None), "zero_grad clears them"
        opt.step(params, g)
    expected, all_grads = model("mixed", 7, 3)
    twin = RMSprop(**arguments)
    for g in all_grads:
        twin.step(expected, g)
    same(params, expected)
    assert twin._snapshot().skipped_steps == 0
    opt.reset()
    assert opt.skipped_steps == 0


@pytest.mark.parametrize("way", ["raise", "skip"])
def test_a_first_step_that_is_not_made_leaves_an_optimizer_that_has_seen_no_model(way):
    opt = RMSprop(nonfinite=way)
    try:
        opt.step([np.ones(3)], [np.full(3, np.nan)])
    except ValueError:
        assert way == "raise"
    assert (opt.skipped_steps, opt.weights) == (int(way == "skip"), [])
    opt.step({"w": np.ones(2)}, {"w": np.ones(2)})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [{}, {"parameter_clipnorm": 1e9}], ids=str)
def test_one_nan_anywhere_is_found(clip, dtype, threads, isa, team_at_any_size):
    set_num_threads(threads)
    opt = RMSprop(nonfinite="raise", **clip)
    params = [np.ones(n, dtype) for n in (5, 3 * 4096 + 7, 4096, 1)]
    grads = [np.ones_like(p) for p in params]
    opt.build(params)
    before = memory(params), everything(opt)
    for at in range(4):
        n = grads[at].size
        for index in {0, 4095, 4096, n // 2, n - 1} & set(range(n)):
            grads[at][index] = np.nan
            with pytest.raises(ValueError, match=rf"^grads\[{at}\] holds NaN"):
                opt.step(params, grads)
            grads[at][index] = 1
    assert (memory(params), everything(opt)) == before
    opt.step(params, grads)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["step", "bound"])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_zero_grad_clears_gradients_of_every_layout_and_nothing_else(name, steps, way, dtype):
    arguments = {"clipnorm": 1.0, "gradient_accumulation_steps": steps}
    rng = np.random.default_rng(0)
    for shape in ((4, 5), (3, 2, 4), (7,), (), (0, 3), (1, 1)):
        layout = layouts(len(shape))[name]
        p = np.array(rng.standard_normal(shape), dtype)
        g, buffer = place(np.zeros(shape, dtype), **layout)
        cleared = place(np.zeros(shape, dtype), **layout)[1]
        expected = p.copy()
        opt = RMSprop(zero_grad=True, **arguments)
        oracle = reference.RMSprop([expected], **arguments)
        step = (
            opt.bind([p], [g]) if way == "bound" else lambda p=p, g=g, opt=opt: opt.step([p], [g])
        )
        for _ in range(3):
            g[...] = values = np.array(rng.standard_normal(shape), dtype)
            step()
            oracle.step([expected], [values])
            assert_same_bits(p, expected, f"{shape}")
            assert buffer.tobytes() == cleared.tobytes(), f"{shape}"


def test_zero_grad_leaves_the_gradient_of_a_refused_step():
    params, grads = trap(0.5)
    wrong = [grads[0], np.ones(6, np.float32), grads[2]]
    message = r"^grads\[1\] has shape \(6,\)"
    refused("step", RMSprop(zero_grad=True), params, wrong, ValueError, message)


def read_only(g):
    g = g.copy()
    g.flags.writeable = False
    return g


def halves(share):
    """Two gradients of three elements in one buffer, which share so many of them."""
    buffer = np.arange(1.0, 7.0)
    return [buffer[:3], buffer[3 - share : 6 - share]]


NOT_TO_CLEAR = {
    "read-only": (lambda: [np.ones(3), read_only(np.ones(3))], ValueError, "{1} is read-only"),
    "read-only and strided": (
        lambda: [np.ones(3), read_only(np.ones(6))[::2]],
        ValueError,
        "{1} is read-only",
    ),
    "broadcast": (
        lambda: [np.broadcast_to(1.0, 3), np.ones(3)],
        ValueError,
        "{0} is read-only or overlaps itself",
    ),
    "with a stride of 0": (
        lambda: [np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,)), np.ones(3)],
        ValueError,
        "{0} is read-only or overlaps itself",
    ),
    "twice": (lambda: [np.ones(3)] * 2, ValueError, "{1} shares memory with {0};"),
    "two views of one": (lambda: halves(3), ValueError, "{1} shares memory with {0};"),
    "overlapping views": (lambda: halves(1), ValueError, "{1} shares memory with {0};"),
    "overlapping backwards": (
        lambda: [g[::-1] for g in halves(2)],
        ValueError,
        "{1} shares memory with {0};",
    ),
}


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
@pytest.mark.parametrize("way", ["step", "bind", "get_updates"])
@pytest.mark.parametrize("case", NOT_TO_CLEAR)
def test_a_gradient_that_zero_grad_cannot_clear_is_refused_by_name(case, way, form):
    make, exception, message = NOT_TO_CLEAR[case]
    names = ("grads['W']", "grads['b']") if form == "dict" else ("grads[0]", "grads[1]")
    message = "^" + re.escape(message.format(*names))
    params, grads = [np.ones(3), np.full(3, 2.0)], make()
    given = as_form(params, form), as_form(grads, form)
    opt = RMSprop(zero_grad=True)
    refused(way, opt, *given, exception, message)
    opt.step(*(as_form([x.copy() for x in arrays], form) for arrays in (params, grads)))
    refused(way, opt, *given, exception, message)
    opt.zero_grad = False
    before = memory(grads)
    opt.step(*given)
    assert memory(grads) == before


@pytest.mark.parametrize("case", NOT_TO_CLEAR)
@pytest.mark.parametrize("way", ["step", "bound"])
def test_gradients_that_were_accepted_are_refused_once_zero_grad_is_on(case, way):
    # The pointers have passed the checks of a step that only reads gradients.
    make, exception, message = NOT_TO_CLEAR[case]
    params, grads, opt = [np.ones(3), np.full(3, 2.0)], make(), RMSprop()
    step = opt.bind(params, grads) if way == "bound" else lambda: opt.step(params, grads)
    step()
    step()
    opt.zero_grad = True
    before = memory(params + grads), everything(opt)
    with pytest.raises(exception, match=re.escape(message.format("grads[0]", "grads[1]"))):
        step()
    assert (memory(params + grads), everything(opt)) == before


def test_gradients_are_looked_at_again_each_time_zero_grad_comes_back():
    opt, w, g = RMSprop(), [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]
    for one, other in [(0, 1), (0, 0), (1, 0), (1, 1)] * 2:
        grads = [g[one], g[other]]
        for on in (False, True, True, False):
            opt.zero_grad = on
            g[0][...], g[1][...] = 1, 2
            if on and one == other:
                refused("step", opt, w, grads, ValueError, r"^grads\[1\] shares memory with grads")
            else:
                opt.step(w, grads)
                assert (grads[0].any(), grads[1].any()) == (not on, not on)


@pytest.mark.parametrize("container", [lambda x: x, lambda x: [x], lambda x: {"w": x}])
def test_a_numpy_scalar_cannot_be_cleared(container):
    w, g = np.array(1.0), np.float64(0.5)
    opt = RMSprop(zero_grad=True)
    with pytest.raises(TypeError, match=r"^grads.* scalar|^params .* grads is of type float64"):
        opt.step(container(w), container(g))
    assert w == 1
    assert opt.weights == []
    opt.zero_grad = False
    opt.step(container(w), container(g))
    assert w < 1


def test_gradients_that_lie_between_each_other_are_cleared():
    buffer, w = np.arange(1.0, 9.0), [np.ones(4), np.ones(4)]
    RMSprop(zero_grad=True).step(w, [buffer[::2], buffer[1::2]])
    assert not buffer.any()
    RMSprop(zero_grad=True).step([np.ones(3), *w[:1]], [None, np.ones(4)])


@pytest.mark.parametrize("arguments", OPTION_SETS.values(), ids=OPTION_SETS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_without_zero_grad_gradients_never_change(name, arguments):
    arguments = {**arguments, "zero_grad": False}
    params, all_grads = model("mixed", 4, 9)
    opt = RMSprop(**arguments)
    for grads in all_grads:
        placed = [None if g is None else place(g, **layouts(g.ndim)[name]) for g in grads]
        before = [x and x[1].tobytes() for x in placed]
        for x in placed:
            if x:
                x[0].flags.writeable = False
        opt.step(params, [x and x[0] for x in placed])
        assert [x and x[1].tobytes() for x in placed] == before


AVERAGED = {"use_ema": True, "ema_momentum": 0.75, "lr": 0.1}


def averaged_model(form, steps=3, **more):
    """An optimizer that has averages, its arrays and their averages."""
    params, grads = model("mixed", steps, 7)
    arrays = params[:1] if form == "bare" else params
    opt, given = RMSprop(**AVERAGED, **more), as_form(arrays, form)
    for g in grads:
        opt.step(given, as_form(g, form))
    return opt, given, arrays, [view.copy() for view in opt._views()["moving_average"]]


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_averaged_shows_the_averages_and_restores_the_bits(form):
    opt, params, arrays, averages = averaged_model(form)
    before = memory(arrays), everything(opt)
    with opt.averaged(params) as nothing:
        assert nothing is None
        same(arrays, averages)
        assert memory(arrays) != before[0]
        assert everything(opt) == before[1]
    assert (memory(arrays), everything(opt)) == before
    if form == "dict":
        turned = dict(reversed(params.items()))
        with opt.averaged(turned):
            same(arrays, averages)
        assert memory(arrays) == before[0]


def test_averages_are_the_references():
    arguments = OPTION_SETS["keras 3"] | AVERAGED
    params, grads = model("float32", 7, 1)
    opt, expected = RMSprop(**arguments), copied(params)
    oracle = reference.RMSprop(expected, **arguments)
    for g in grads:
        run(opt, params, oracle, expected, [g])
        with opt.averaged(params):
            same(params, oracle.moving_averages)
    opt.finalize_variable_values(params)
    same(params, oracle.moving_averages)


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("ending", ["raise", "return", "changed"])
def test_averaged_restores_whatever_the_body_does(ending, form):
    opt, params, arrays, _ = averaged_model(form)
    before = memory(arrays), everything(opt)

    def body():
        with opt.averaged(params):
            for x in arrays:
                x[...] = np.nan if ending == "changed" else x
            if ending == "raise":
                raise ZeroDivisionError("in the body")
            if ending == "return":
                return
        if isinstance(params, list):
            assert memory(params) == before[0]

    if ending == "raise":
        with pytest.raises(ZeroDivisionError, match="in the body"):
            body()
    else:
        body()
    assert (memory(arrays), everything(opt)) == before
    opt.step(params, copy.deepcopy(params))


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
def test_what_would_be_lost_inside_averaged_is_refused(form):
    opt, params, arrays, averages = averaged_model(form)
    grads = copy.deepcopy(params)
    bound = opt.bind(params, grads)
    state = everything(opt)
    before = memory(arrays)
    with opt.averaged(params):
        for call in (
            lambda: opt.step(params, grads),
            bound,
            lambda: opt.bind(params, grads),
            lambda: opt.get_updates(params, None, lambda _: (0.0, grads)),
            lambda: opt.finalize_variable_values(params),
            lambda: opt.averaged(params).__enter__(),
        ):
            with pytest.raises(RuntimeError, match=r"averaged\(\)"):
                call()
            assert everything(opt) == state
        same(arrays, averages)
        opt.get_gradients(lambda _: (0.0, grads), params)
        assert copy.deepcopy(opt).weights
    assert memory(arrays) == before
    bound()
    with opt.averaged(params):
        pass


def test_a_copy_made_inside_averaged_is_not_inside():
    opt, params, _, _ = averaged_model("list")
    with opt.averaged(params):
        twin = pickle.loads(pickle.dumps(opt))
        twin.step(copied(params), copied(params))


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "bare"])
def test_finalize_sets_the_parameters_to_their_averages_for_good(form):
    opt, params, arrays, averages = averaged_model(form)
    state = everything(opt)
    assert any((x != y).any() for x, y in zip(arrays, averages, strict=True))
    opt.finalize_variable_values(params)
    same(arrays, averages)
    assert everything(opt) == state
    opt.step(params, copy.deepcopy(params))


@pytest.mark.parametrize("name", LAYOUTS)
def test_averages_reach_parameters_of_every_layout_and_nothing_else(name):
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(shape) for shape in ((4, 3), (5,), (), (2, 3, 2))]
    placed = [place(x, **layouts(x.ndim)[name]) for x in values]
    params, opt = [x for x, _ in placed], RMSprop(**AVERAGED)
    for _ in range(2):
        opt.step(params, values)
    averages = opt._views()["moving_average"]
    wanted = [
        place(x, **layouts(x.ndim)[name])[1].tobytes() for x in [np.array(a) for a in averages]
    ]
    before = [buffer.tobytes() for _, buffer in placed]
    with opt.averaged(params):
        assert [buffer.tobytes() for _, buffer in placed] == wanted
    assert [buffer.tobytes() for _, buffer in placed] == before
    opt.finalize_variable_values(params)
    assert [buffer.tobytes() for _, buffer in placed] == wanted


AVERAGING = {
    "averaged": lambda opt, params: opt.averaged(params).__enter__(),
    "finalize": lambda opt, params: opt.finalize_variable_values(params),
}


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
def test_without_use_ema_there_are_no_averages(call):
    opt, params, arrays, _ = averaged_model("list")
    opt.use_ema = False
    for optimizer in (opt, RMSprop()):
        before = memory(arrays), everything(optimizer)
        with pytest.raises(ValueError, match="use_ema=True"):
            call(optimizer, params)
        assert (memory(arrays), everything(optimizer)) == before
    opt.use_ema = True
    call(opt, params)


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
@pytest.mark.parametrize(
    ("form", "name"), [("list", "params[1]"), ("dict", "params['b']"), ("bare", "params")]
)
def test_read_only_parameters_are_refused_by_name_before_any_is_changed(form, name, call):
    opt, params, arrays, _ = averaged_model(form)
    arrays[-4 if form != "bare" else 0].flags.writeable = False
    before = memory(arrays), everything(opt)
    with pytest.raises(ValueError, match="^" + re.escape(name) + " is read-only"):
        call(opt, params)
    assert (memory(arrays), everything(opt)) == before
    opt.step(copy.deepcopy(params), copy.deepcopy(params))


@pytest.mark.parametrize("call", AVERAGING.values(), ids=AVERAGING)
@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda p: p[:4], ValueError, "^params has 4 entries"),
        (lambda p: [p[0][:9], *p[1:]], ValueError, r"^params\[0\] has shape \(9,\)"),
        (lambda p: [p[0].astype("f8"), *p[1:]], TypeError, r"^params\[0\] has dtype float64"),
        (lambda p: as_form(p, "dict"), TypeError, "^params is a dict"),
        (lambda p: None, TypeError, "^params is of type NoneType"),
    ],
    ids=["count", "shape", "dtype", "dict", "None"],
)
def test_averages_of_another_model_are_refused(change, exception, message, call):
    opt, params, arrays, _ = averaged_model("list")
    before = memory(arrays), everything(opt)
    with pytest.raises(exception, match=message):
        call(opt, change(params))
    assert (memory(arrays), everything(opt)) == before
    opt.step(params, copied(params))


def test_parameters_that_become_read_only_inside_averaged_do_not_lock_the_optimizer():
    opt, params, _, _ = averaged_model("list")
    with pytest.raises(ValueError, match="read-only"), opt.averaged(params):
        params[1].flags.writeable = False
    opt.step(model("mixed", 0, 0)[0], copied(params))


def test_before_the_first_step_averages_are_the_parameters():
    params, _ = model("mixed", 0, 0)
    before, opt = memory(params), RMSprop(use_ema=True)
    with opt.averaged(params):
        assert memory(params) == before
    opt.finalize_variable_values(params)
    assert memory(params) == before


def spells(dtype, steps, length, seed=0):
    """Gradients of each step: every element is 0 for a while and then not, in turns."""
    rng = np.random.default_rng(seed)
    on = (np.arange(steps)[:, None] // length + np.arange(8)) % 3 != 0
    values = rng.choice([-1, 1], (steps, 8)) * 10 ** rng.uniform(-3, 1, (steps, 8))
    return np.where(on, 0, values).astype(dtype)


def subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


FLUSHED = [
    {},
    {"momentum": 0.5, "centered": True},
    {"momentum": 0.5, "nesterov": True, "lr_in_momentum": False},
    {"epsilon_in_sqrt": True, "centered": True, "bias_correction": True},
]


@pytest.mark.parametrize(("dtype", "rho", "length"), [("float32", 0.5, 300), ("float64", 0.1, 700)])
@pytest.mark.parametrize("more", FLUSHED, ids=str)
def test_flushing_zeroes_what_died_and_changes_no_parameter(more, dtype, rho, length):
    grads = spells(dtype, 3 * length, length)
    for exponent in range(-14, -5):
        arguments = {"lr": 0.01, "rho": rho, "epsilon": 10.0**exponent, **more}
        start = np.linspace(-2, 2, 8).astype(dtype)
        (p, q), g = (start.copy(), start.copy()), np.empty(8, dtype)
        flushing, plain = RMSprop(flush_subnormals=True, **arguments), RMSprop(**arguments)
        steps = flushing.bind(p, g), plain.bind(q, g)
        found = False
        for t, values in enumerate(grads):
            g[...] = values
            for step in steps:
                step()
            if t % 10 == 0 or t == length - 1:
                assert not any(subnormal(x).any() for x in flushing.weights)
                found = found or subnormal(plain.weights[0]).any()
                assert_same_bits(p, q, f"epsilon 1e{exponent}, step {t}")
            if t == length - 1:  # some have had no gradient yet, others many
                assert (flushing.weights[0] == 0).sum() >= 3
        assert found, "without flushing there were no subnormal numbers"
        assert_same_bits(p, q, f"epsilon 1e{exponent}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_flushing_stops_at_the_smallest_normal_number(dtype, sign, isa):
    # rho 0 leaves g*g, and in the mean g; all of them around the limit.
    tiny = np.finfo(dtype).tiny
    below = np.nextafter(tiny, 0, dtype=dtype)
    grads = np.array([tiny, below, tiny * 2, tiny / 2, 0, 1] * 4, dtype) * sign
    opt = RMSprop(rho=0.0, centered=True, momentum=1.0, flush_subnormals=True, lr=0.0)
    opt.step([np.ones(24, dtype)], [grads])
    a, _, mean = opt.weights
    assert_same_bits(mean, np.where(np.abs(grads) < tiny, 0, grads) + np.zeros(24, dtype))
    assert_same_bits(a, np.array([0, 0, 0, 0, 0, 1] * 4, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inside", [False, True], ids=["epsilon out", "epsilon in"])
@pytest.mark.parametrize("more", [{}, {"bias_correction": True}, {"momentum": 0.9}], ids=str)
def test_centered_survives_the_cancellation_of_constant_gradients(more, inside, dtype):
    # The variance of what is constant is 0, which rounding makes negative now and then.
    g = np.concatenate([[0.1, 0.3, -0.7, 1 / 3], 10.0 ** np.arange(-12, 9)]).astype(dtype)
    cancelled = False
    for rho in (0.5, 0.9, 0.99):
        opt = RMSprop(lr=1e-3, rho=rho, epsilon=1e-8, centered=True, epsilon_in_sqrt=inside, **more)
        p = np.ones_like(g)
        step = opt.bind(p, g)
        for _ in range(1500):
            step()
            a, mean = opt.weights[0], opt.weights[-1]
            cancelled = cancelled or (a - mean * mean < 0).any()
        for x in (p, *opt.weights):
            assert np.isfinite(x).all()
    assert cancelled, "no variance was negative"


class Seen:
    """A schedule that remembers what it was asked for."""

    def __init__(self, rate=lambda step: 0.1 / (1 + step)):
        self.rate = rate
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)
        return self.rate(step)


class Halving(schedules.LearningRateSchedule):
    """A schedule that this package does not know."""

    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5**step


@pytest.mark.parametrize("rate", [Halving(0.5), lambda step: np.float32(0.1) * step], ids=str)
def test_lr_shows_the_rate_of_the_next_update(rate):
    (w,), opt = [np.zeros(2)], RMSprop(lr=rate, rho=0.0, epsilon=0.0)
    for step in range(5):
        shown = opt.lr
        assert type(shown) is float
        assert shown == opt.learning_rate == float(rate(step))
        before = w.copy()
        opt.step([w], [np.array([2.0, -4.0])])  # rho 0: the step is lr
        assert_same_bits(w, before - np.array([shown, -shown]))
    opt.iterations = 2
    assert opt.lr == float(rate(2))


def test_a_schedule_is_asked_once_for_each_update():
    seen = Seen()
    opt, params = RMSprop(lr=seen), [np.ones(3)]
    for _ in range(4):
        opt.step(params, [np.ones(3)])
    assert seen.steps == [0, 1, 2, 3]
    assert all(type(step) is int for step in seen.steps)
    opt.iterations = 2**62 - 1
    opt.step(params, [np.ones(3)])
    assert seen.steps[-1] == 2**62 - 1


def test_a_schedule_sees_calls_where_gradients_are_accumulated():
    seen = Seen()
    opt, params = RMSprop(lr=seen, gradient_accumulation_steps=3), [np.ones(3)]
    for _ in range(7):
        opt.step(params, [np.ones(3)])
    assert seen.steps == [2, 5]
    assert opt.lr == seen.rate(7)
    assert opt.iterations == 2


def test_skipped_and_refused_steps_do_not_count_for_a_schedule():
    seen = Seen()
    opt, w = RMSprop(lr=seen, nonfinite="skip"), np.ones(3)
    for g in (1.0, np.nan, np.inf, 2.0):
        opt.step([w], [np.full(3, g)])
    with pytest.raises(ValueError, match=r"^grads\[0\] has shape"):
        opt.step([w], [np.ones(4)])
    opt.step([w], [np.ones(3)])
    counted = list(dict.fromkeys(seen.steps))
    assert counted == [0, 1, 2]
    assert (opt.iterations, opt.skipped_steps) == (3, 2)


BAD_RATES = [
    float("nan"),
    float("inf"),
    -0.001,
    np.float32("nan"),
    "abc",
    "0.1",
    b"0.1",
    None,
    True,
    np.True_,
    1j,
    [0.1],
    np.array([0.1]),
    {},
    10**400,
    -(10**400),
]


@pytest.mark.parametrize("stage", ["first step", "later"])
@pytest.mark.parametrize("rate", BAD_RATES, ids=lambda x: f"{x!r:.20}")
def test_what_is_no_rate_is_refused_with_the_call_and_changes_nothing(rate, stage):
    good, bad = Seen(), Seen(lambda step: rate)
    params, (first, second) = model("mixed", 2, 0)
    opt = RMSprop(lr=good, momentum=0.5)
    if stage == "later":
        opt.step(params, first)
    call = opt.iterations
    twin = copy.deepcopy(opt)
    opt.lr = bad
    for way in ("step", "bind", "get_updates"):
        refused(way, opt, params, second, ValueError, "^" + re.escape(f"lr({call}) is {rate!r};"))
    with pytest.raises(ValueError, match=rf"^lr\({call}\) is "):
        _ = opt.lr
    twin.lr = opt.lr = good
    usable(opt, twin, params, second)


def test_an_error_of_a_schedule_comes_through_and_changes_nothing():
    def broken(step):
        raise ZeroDivisionError("in the schedule")

    opt, params, grads = RMSprop(lr=broken), [np.ones(3)], [np.ones(3)]
    refused("step", opt, params, grads, ZeroDivisionError, "in the schedule")
    assert opt.weights == []
    opt.lr = 0.1
    opt.step(params, grads)


def test_a_schedule_cannot_step_the_optimizer_that_asks_it():
    def greedy(step):
        opt.step(params, grads)

    opt, params, grads = RMSprop(lr=greedy), [np.ones(3)], [np.ones(3)]
    refused("step", opt, params, grads, RuntimeError, "in use further up")


def test_a_number_replaces_a_schedule_and_a_schedule_a_number():
    opt, w = RMSprop(lr=0.5, rho=0.0, epsilon=0.0), np.zeros(1)
    expected = 0.0
    for rate, value in [(0.5, 0.5), (Halving(1.0), 0.5), (0.25, 0.25), (lambda step: 2, 2.0)]:
        opt.lr = rate
        opt.step([w], [np.ones(1)])
        expected -= value
        assert w[0] == expected
    opt.lr = 0.125
    assert opt.get_config()["lr"] == 0.125
    assert repr(opt).startswith("RMSprop(lr=0.125,")
    opt.decay = 1.0  # no schedule any more


def test_a_bound_step_asks_the_schedule():
    w, opt = np.zeros(1), RMSprop(lr=Halving(1.0), rho=0.0, epsilon=0.0)
    step = opt.bind([w], [np.ones(1)])
    for expected in (-1.0, -1.5, -1.75):
        step()
        assert w[0] == expected


@pytest.mark.parametrize("schedule", RATES[1:], ids=repr)
def test_a_config_holds_the_schedule_itself(schedule):
    opt = RMSprop(lr=schedule)
    for _ in range(3):
        opt.step([np.ones(2)], [np.ones(2)])
    config = opt.get_config()
    assert config["lr"] == {
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
    }
    again = by_config(opt)
    assert again._get_objects()[0] == schedule
    assert again.lr == schedule(0)
    renamed = {"learning_rate" if key == "lr" else key: value for key, value in config.items()}
    assert RMSprop.from_config(renamed).lr == schedule(0)


def test_a_schedule_of_ones_own_comes_back_through_custom_objects():
    opt = RMSprop(lr=Halving(0.5))
    config = json.loads(json.dumps(opt.get_config()))
    assert config["lr"] == {"class_name": "Halving", "config": {"start": 0.5}}
    custom = {"Halving": Halving}
    for again in (
        RMSprop.from_config(config, custom_objects=custom),
        RMSprop.from_config(config, custom),
        rmsprop_c.deserialize(rmsprop_c.serialize(opt), custom),
    ):
        assert (again.lr, again._get_objects()[0].start) == (0.5, 0.5)
    with pytest.raises(ValueError, match="Unknown schedule: Halving"):
        RMSprop.from_config(config)
    with pytest.raises(ValueError, match="Unknown schedule: Halving"):
        rmsprop_c.deserialize(rmsprop_c.serialize(opt))
    assert config["lr"]["config"] == {"start": 0.5}


@pytest.mark.parametrize("rate", [lambda step: 0.1, Seen(), abs], ids=["lambda", "object", "abs"])
def test_a_callable_without_get_config_has_no_config_but_a_repr(rate):
    opt = RMSprop(lr=rate, momentum=0.5)
    with pytest.raises(TypeError, match=r"^lr is " + re.escape(repr(rate)) + ", which a config"):
        opt.get_config()
    with pytest.raises(TypeError, match=r"^lr is "):
        rmsprop_c.serialize(opt)
    assert repr(opt).startswith(f"RMSprop(lr={rate!r}, ")
    opt.step([np.ones(2)], [np.ones(2)])
    assert copy.deepcopy(opt).iterations == 1


def alone(params, grads, **options):
    """What separate optimizers, one for each position, make of the parameters."""
    params = copied(params)
    for i, p in enumerate(params):
        own = {name: values[i] for name, values in options.items()}
        opt = RMSprop(lr=own.pop("lr"), momentum=0.5, **own)
        for g in grads:
            if g[i] is not None:
                opt.step([p], [g[i]])
            else:  # no gradient leaves the parameter alone, yet the call counts
                opt.build([p])
                opt.iterations += 1
    return params


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize(
    ("factors", "excluded"),
    [
        ((2.0, 0.5, 0.0, 1.0, 3.0), (0, 2)),
        ((1.0, 0.1, 1.0, 1.0, 1.0), ()),
        (None, (1,)),
        (None, (0, 1, 2, 3, 4)),
    ],
    ids=str,
)
def test_options_by_position_are_those_of_separate_optimizers(factors, excluded, decoupled, form):
    params, grads = model("mixed", 7, 2)
    expected = alone(
        params,
        grads,
        lr=[0.01 * (factors[i] if factors else 1) for i in range(5)],
        weight_decay=[0.0 if i in excluded else 0.25 for i in range(5)],
        decoupled_weight_decay=[decoupled] * 5,
    )
    arguments = {"lr_scale": factors, "exclude_from_weight_decay": excluded}
    opt = made(
        arguments
        | {"lr": 0.01, "weight_decay": 0.25, "decoupled_weight_decay": decoupled}
        | {"momentum": 0.5},
        form,
    )
    for g in grads:
        opt.step(as_form(params, form), as_form(g, form))
    same(params, expected)


def test_parameters_are_clipped_as_by_separate_optimizers():
    params, grads = model("mixed", 5, 2)
    expected = alone(params, grads, lr=[0.01] * 5, parameter_clipnorm=[0.5] * 5)
    opt = RMSprop(lr=0.01, parameter_clipnorm=0.5, momentum=0.5)
    for g in grads:
        opt.step(params, g)
    same(params, expected)


def test_keys_go_by_name_not_by_order():
    params, grads = model("mixed", 4, 3)
    arguments = {"lr_scale": {"v": 0.5, "W": 2.0}, "exclude_from_weight_decay": ("s", "W")}
    arguments |= {"weight_decay": 0.5, "lr": 0.01}
    by_position = RMSprop(
        lr=0.01,
        weight_decay=0.5,
        lr_scale=(2.0, 1.0, 1.0, 0.5, 1.0),
        exclude_from_weight_decay=(0, 2),
    )
    opt, expected = RMSprop(**arguments), copied(params)
    for t, g in enumerate(grads):
        names = list(reversed(KEYS)) if t else [KEYS[i] for i in (3, 0, 4, 2, 1)]
        opt.step(
            {key: params[KEYS.index(key)] for key in names},
            {key: g[KEYS.index(key)] for key in reversed(names)},
        )
        by_position.step(expected, g)
    same(params, expected)


@pytest.mark.parametrize("form", [tuple, list, set, dict.fromkeys, iter, np.array])
def test_any_sequence_names_what_does_not_decay(form):
    excluded = form([0, 0])
    opt, w = RMSprop(lr=1.0, weight_decay=0.5, decoupled_weight_decay=True), np.ones(2)
    opt.exclude_from_weight_decay = excluded
    opt.step([w, np.ones(1)], [np.zeros(2), np.zeros(1)])
    assert_same_bits(w, np.ones(2))
    opt.exclude_from_weight_decay = [1]
    opt.step([w, np.ones(1)], [np.zeros(2), np.zeros(1)])
    assert_same_bits(w, np.full(2, 0.5))


@pytest.mark.parametrize("form", [list, tuple, np.array, iter])
def test_a_bare_array_has_the_position_0(form):
    w, v = np.ones(3), np.ones(3)
    RMSprop(lr=0.25, lr_scale=form([0.5])).step(w, np.ones(3))
    RMSprop(lr=0.125).step([v], [np.ones(3)])
    assert_same_bits(w, v)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("options", OPTION_SETS)
def test_bits_do_not_depend_on_layouts(options, name, dtype):
    # The gradients come in all layouts in turn; the norm follows the memory order of parameters.
    rng = np.random.default_rng(3)
    shapes = ((5, 7), (2, 3, 4), (33,), (), (0, 3))
    values = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
    placed = [place(x, **layouts(x.ndim)[name]) for x in values]
    params = [x for x, _ in placed]
    expected = [
        np.array(x, x.dtype.newbyteorder("="), order="F" if x.flags.fnc else "C") for x in params
    ]
    opt, oracle = (
        RMSprop(**OPTION_SETS[options]),
        reference.RMSprop(expected, **OPTION_SETS[options]),
    )
    clearing = OPTION_SETS[options].get("zero_grad")
    for call, layout in enumerate((*LAYOUTS, "plain")):
        grads = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
        if call == 4:
            grads[0] = None
        theirs = [
            None if g is None else np.array(g, order="F" if p.flags.fnc else "C")
            for g, p in zip(grads, expected, strict=True)
        ]
        ours = [None if g is None else place(g, **layouts(g.ndim)[layout]) for g in grads]
        after = [
            x and place(np.zeros_like(g) if clearing else g, **layouts(g.ndim)[layout])[1]
            for x, g in zip(ours, grads, strict=True)
        ]
        opt.step(params, [x and x[0] for x in ours])
        oracle.step(expected, theirs)
        for i, (x, wanted) in enumerate(zip(ours, after, strict=True)):
            assert x is None or x[1].tobytes() == wanted.tobytes(), f"grads[{i}], {layout}"
        for i, (_, buffer) in enumerate(placed):
            wanted = place(expected[i], **layouts(expected[i].ndim)[name])[1]
            assert buffer.tobytes() == wanted.tobytes(), f"params[{i}], {layout}"
    assert_same_state(opt, oracle)


LARGE = {
    "weight decay, averages, clipnorm, accumulation": {
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "clipnorm": 0.5,
        "gradient_accumulation_steps": 2,
        "zero_grad": True,
    },
    "everything of one parameter": {
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "exclude_from_weight_decay": (1, 3),
        "lr_scale": (1.0, 2.0, 0.5, 3.0, 1.0),
        "parameter_clipnorm": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "centered": True,
        "flush_subnormals": True,
        "nonfinite": "skip",
    },
    "no passes": {"momentum": 0.5, "centered": True, "epsilon_in_sqrt": True, "maximize": True},
}


def large(values, itemsize):
    """Arrays that begin so many elements behind a cache line, larger than all blocks."""
    placed = []
    for x, offset in zip(values, (3, 0, 7, 15, 1), strict=True):
        buffer = np.empty(x.nbytes + 64 + 16 * itemsize, np.uint8)
        start = -buffer.ctypes.data % 64 + offset * itemsize
        array = buffer[start : start + x.nbytes].view(x.dtype)
        array[...] = x
        placed.append(array)
    return placed


@pytest.fixture(scope="module")
def trajectories():
    """What the reference makes of large arrays, computed once."""
    found = {}
    sizes = (45_003, 17, 16_383, 4_097, 1)
    for dtype in ("float32", "float64"):
        rng = np.random.default_rng(4)
        start = [rng.standard_normal(n).astype(dtype) for n in sizes]
        grads = [[rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(5)]
        grads[1][1] = grads[3][0] = None
        for name, arguments in LARGE.items():
            params = copied(start)
            oracle = reference.RMSprop(params, **arguments)
            for g in grads:
                oracle.step(params, copied(g))
            found[name, dtype] = start, grads, params, oracle
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_large_arrays_have_the_bits_of_the_reference(
    name, dtype, threads, trajectories, isa, team_at_any_size
):
    set_num_threads(threads)
    start, all_grads, expected, oracle = trajectories[name, dtype]
    itemsize = start[0].itemsize
    params, opt = large(start, itemsize), RMSprop(**LARGE[name])
    for call, grads in enumerate(all_grads):
        given = large([p if g is None else g for g, p in zip(grads, start, strict=True)], itemsize)
        if call == 2:  # where the arrays begin changes between steps
            params = large(params[::-1], itemsize)[::-1]
        opt.step(params, [None if g is None else x for g, x in zip(grads, given, strict=True)])
    same(params, expected)
    assert_same_state(opt, oracle)


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


@pytest.mark.parametrize("name", [True, [1], {}], ids=str)
def test_what_can_be_no_key_is_not_excluded(name):
    opt = RMSprop()
    with pytest.raises(TypeError, match=r"^exclude_from_weight_decay\[1\] is .* index or a key$"):
        opt.exclude_from_weight_decay = [0, name]
    assert opt.exclude_from_weight_decay == ()


def test_a_class_of_schedules_is_no_schedule():
    with pytest.raises(TypeError, match="a class; pass an instance"):
        RMSprop(lr=schedules.CosineDecay)


def test_a_plain_number_as_a_loss_has_gradients_of_zero_and_autograds_warning():
    opt, w = RMSprop(lr=0.1), np.array([3.0])
    with pytest.warns(UserWarning, match="independent of input"):
        (grad,) = opt.get_gradients(lambda params: 2.0, [w])
    assert_same_bits(grad, np.zeros(1))


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


def test_the_repr_of_a_schedule_in_a_subclass_shows_the_subclass_too():
    class Halved(RMSprop):
        def get_config(self):
            return super().get_config() | {"half": True}

    opt = Halved(lr=schedules.ExponentialDecay(0.1, 10, 0.5))
    assert "half=True" in repr(opt)
