"""Sets of options, models for them, and what of an optimizer is compared."""

import hashlib
import json

import numpy as np
import pytest
from common import assert_same_bits
from hypothesis import HealthCheck, settings, strategies as st

from rmsprop_c import RMSprop, schedules

SHAPES = ((2500,), (3, 7), (), (16,), (0, 4))


KEYS = ("W", "b", "s", "v", "none")


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


def usable(opt, twin, params, grads):
    """After refusals a step has the bits of a twin's that has seen none of them."""
    twin_params = copied(params)
    opt.step(params, copied(grads))
    twin.step(twin_params, copied(grads))
    same(params, twin_params)
    assert_same_snapshot(opt, twin)


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
