"""RMSprop.like: the defaults and the names of other frameworks, and numbers that they compute.

The golden numbers are from those projects' own tests, or were recorded from them once; tests/peers
compares whole trajectories.
"""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import Optimizer, RMSprop, presets, schedules

REQUIRED = {"tf1": {"learning_rate": 0.01}, "optax": {"learning_rate": 0.01}}
PLAIN = {"lr": 0.001, "rho": 0.9, "epsilon": 1e-8, "decay": 0.0}

# What the frameworks' documentation says of their defaults; options that are not named are off.
DEFAULTS = {
    "keras2": PLAIN,
    "keras3": PLAIN | {"epsilon": 1e-7, "epsilon_in_sqrt": True, "decoupled_weight_decay": True},
    "tf1": PLAIN
    | {"lr": 0.01, "epsilon": 1e-10, "epsilon_in_sqrt": True, "initial_accumulator_value": 1.0},
    "tf_keras": PLAIN | {"epsilon": 1e-7},
    "torch": PLAIN | {"lr": 0.01, "rho": 0.99, "lr_in_momentum": False},
    "optax": PLAIN | {"lr": 0.01, "epsilon_in_sqrt": True},
    "timm": PLAIN
    | {"lr": 0.01, "epsilon": 1e-10, "epsilon_in_sqrt": True, "initial_accumulator_value": 1.0},
}

# (framework, its arguments, what differs from its defaults)
ARGUMENTS = [
    ("keras2", {"lr": 0.5, "rho": 0.5, "epsilon": 1.0, "decay": 0.5}, None),
    ("keras2", {"learning_rate": 0.5}, {"lr": 0.5}),
    ("keras2", {"clipnorm": 1.0}, {"clipnorm": 1.0}),
    ("keras2", {"clipvalue": 0.5}, None),
    ("keras3", {"learning_rate": 0.5, "rho": 0.5}, {"lr": 0.5, "rho": 0.5}),
    ("keras3", {"momentum": 0.5, "epsilon": 1e-3, "centered": True}, None),
    ("keras3", {"clipnorm": 1.0}, {"parameter_clipnorm": 1.0}),
    ("keras3", {"global_clipnorm": 1.0}, {"clipnorm": 1.0}),
    ("keras3", {"clipvalue": 0.5, "weight_decay": 0.1}, None),
    ("keras3", {"weight_decay": None, "clipnorm": None, "momentum": None}, {}),
    ("keras3", {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}, None),
    (
        "keras3",
        {"gradient_accumulation_steps": 4, "name": "rmsprop"},
        {"gradient_accumulation_steps": 4},
    ),
    (
        "tf1",
        {"learning_rate": 0.5, "decay": 0.5, "momentum": 0.5},
        {"lr": 0.5, "rho": 0.5, "momentum": 0.5},
    ),
    (
        "tf1",
        {"epsilon": 1e-3, "centered": True, "use_locking": True, "name": "x"},
        {"epsilon": 1e-3, "centered": True},
    ),
    ("tf1", {"lr": 0.5, "rho": 0.5}, None),
    (
        "tf_keras",
        {"learning_rate": 0.5, "centered": True, "decay": 0.5},
        {"lr": 0.5, "centered": True, "decay": 0.5},
    ),
    ("tf_keras", {"momentum": 0.5}, {"momentum": 0.5, "epsilon_in_sqrt": True}),
    ("tf_keras", {"momentum": np.float32(0.5)}, {"momentum": 0.5, "epsilon_in_sqrt": True}),
    ("tf_keras", {"momentum": np.int64(1)}, {"momentum": 1.0, "epsilon_in_sqrt": True}),
    ("tf_keras", {"momentum": 0.0}, {}),
    ("tf_keras", {"momentum": None}, {}),
    ("tf_keras", {"clipnorm": 1.0}, {"parameter_clipnorm": 1.0}),
    ("tf_keras", {"global_clipnorm": 1.0}, {"clipnorm": 1.0}),
    ("tf_keras", {"clipvalue": 0.5, "clipnorm": None}, {"clipvalue": 0.5}),
    ("torch", {"lr": 0.5, "alpha": 0.5, "eps": 1e-3}, {"lr": 0.5, "rho": 0.5, "epsilon": 1e-3}),
    ("torch", {"momentum": 0.5, "centered": True, "weight_decay": 0.1, "maximize": True}, None),
    ("torch", {"foreach": None, "capturable": False, "differentiable": False}, {}),
    ("torch", {"rho": 0.5, "epsilon": 1e-3, "learning_rate": 0.5}, None),
    (
        "optax",
        {"learning_rate": 0.5, "decay": 0.5, "eps": 1e-3},
        {"lr": 0.5, "rho": 0.5, "epsilon": 1e-3},
    ),
    (
        "optax",
        {"initial_scale": 1.0, "eps_in_sqrt": False},
        {"initial_accumulator_value": 1.0, "epsilon_in_sqrt": False},
    ),
    ("optax", {"centered": True, "nesterov": True, "momentum": 0.5, "bias_correction": True}, None),
    ("optax", {"momentum": None}, {}),
    ("keras3", {"loss_scale_factor": None}, {}),
    ("timm", {"caution": False, "corrected_weight_decay": False}, {}),
    ("timm", {"lr": 0.5, "alpha": 0.5, "eps": 1e-3}, {"lr": 0.5, "rho": 0.5, "epsilon": 1e-3}),
    (
        "timm",
        {"momentum": 0.5, "centered": True, "lr_in_momentum": False, "weight_decay": 0.1},
        None,
    ),
    ("timm", {"decoupled_decay": True, "foreach": True}, {"decoupled_weight_decay": True}),
]


def config(framework, arguments):
    """All options that the preset sets: what is at its default here is left out."""
    given = dict(arguments)
    for name, value in REQUIRED.get(framework, {}).items():
        if name not in given and "lr" not in given:
            given[name] = value
    return RMSprop.like(framework, **given).get_config()


def without_defaults(expected):
    """As a config has it: everything of Keras 2.0, and of the rest what is not off."""
    off = RMSprop()
    return {k: v for k, v in expected.items() if k in PLAIN or v != getattr(off, k)}


def test_every_framework_is_in_the_tables():
    assert set(presets.PRESETS) == set(DEFAULTS) == {framework for framework, *_ in ARGUMENTS}


@pytest.mark.parametrize("framework", DEFAULTS)
def test_defaults_are_those_of_the_framework(framework):
    assert config(framework, {}) == DEFAULTS[framework]
    opt = RMSprop.like(framework, **REQUIRED.get(framework, {}))
    assert type(opt) is RMSprop
    for name, value in DEFAULTS[framework].items():
        assert getattr(opt, name) == value
    assert (opt.iterations, opt.weights) == (0, [])


@pytest.mark.parametrize(("framework", "arguments", "changes"), ARGUMENTS, ids=str)
def test_arguments_have_the_names_of_the_framework(framework, arguments, changes):
    if changes is None:
        changes = {{"learning_rate": "lr"}.get(name, name): x for name, x in arguments.items()}
    before = dict(arguments)
    assert config(framework, arguments) == without_defaults(DEFAULTS[framework] | changes)
    assert arguments == before


@pytest.mark.parametrize("framework", DEFAULTS)
@pytest.mark.parametrize(
    "own",
    [
        {"nonfinite": "skip"},
        {"flush_subnormals": True, "zero_grad": True},
        {"lr_scale": [0.5, 1.0]},
        {"exclude_from_weight_decay": [1]},
        {"maximize": True},
        {"epsilon_in_sqrt": False},
        {"epsilon_in_sqrt": True},
    ],
    ids=str,
)
def test_options_that_a_framework_does_not_have_go_beside_its_own(framework, own):
    assert config(framework, own) == without_defaults(DEFAULTS[framework] | own)
    assert config("torch", {"decay": 0.5, **own})["decay"] == 0.5


@pytest.mark.parametrize("framework", DEFAULTS)
def test_lr_may_be_a_schedule(framework):
    rate = schedules.ExponentialDecay(0.5, 10, 0.5)
    for name in ("lr", "learning_rate"):
        opt = RMSprop.like(framework, **{name: rate})
        assert opt.get_config()["lr"] == schedules.serialize(rate)
        opt.step([np.ones(2)], [np.ones(2)])
        assert opt.lr == rate(1)


def test_a_subclass_is_made_of_its_own_kind():
    class Mine(RMSprop):
        pass

    assert type(Mine.like("torch")) is Mine
    assert not hasattr(Optimizer, "like")


@pytest.mark.parametrize("framework", ["pytorch", "", "Torch", "keras", "like", None, 3])
def test_an_unknown_framework_is_refused_with_those_that_are_known(framework):
    known = ", ".join(DEFAULTS)
    with pytest.raises(ValueError, match=f"^framework is {framework!r}; known are {known}$"):
        RMSprop.like(framework)


@pytest.mark.parametrize("framework", DEFAULTS)
@pytest.mark.parametrize("name", ["beta_1", "amsgrad", "Momentum", "square_avg"])
def test_an_unknown_argument_is_refused_by_name(framework, name):
    message = f"^Unexpected keyword argument passed to optimizer: {name}$"
    with pytest.raises(TypeError, match=message):
        config(framework, {name: 1})


# Names of one framework are not understood in another's.
FOREIGN = [
    ("keras2", "alpha"),
    ("keras2", "global_clipnorm"),
    ("keras3", "eps"),
    ("keras3", "initial_scale"),
    ("tf1", "global_clipnorm"),
    ("tf_keras", "alpha"),
    ("torch", "initial_scale"),
    ("torch", "name"),
    ("torch", "decoupled_decay"),
    ("optax", "alpha"),
    ("optax", "foreach"),
    ("timm", "capturable"),
]


@pytest.mark.parametrize(("framework", "name"), FOREIGN)
def test_an_argument_of_another_framework_is_refused_by_name(framework, name):
    with pytest.raises(TypeError, match=f"^Unexpected keyword .*: {name}$"):
        config(framework, {name: 0.5})


@pytest.mark.parametrize("framework", REQUIRED)
def test_a_missing_argument_is_asked_for(framework):
    for arguments in ({}, {"decay": 0.9}, {"momentum": 0.5}):
        with pytest.raises(TypeError, match=f"^{framework}'s learning_rate .*learning_rate="):
            RMSprop.like(framework, **arguments)


@pytest.mark.parametrize(
    ("framework", "arguments", "name", "own"),
    [
        ("keras2", {"lr": 0.1, "learning_rate": 0.1}, "learning_rate", "lr"),
        ("keras3", {"learning_rate": 0.1, "lr": 0.2}, "lr", "lr"),
        ("keras3", {"parameter_clipnorm": 1, "clipnorm": 1}, "clipnorm", "parameter_clipnorm"),
        ("tf1", {"lr": 0.1, "decay": 0.9, "rho": 0.9}, "rho", "rho"),
        ("tf1", {"learning_rate": 0.1, "lr": 0.1}, "lr", "lr"),
        ("tf_keras", {"lr": 0.1, "learning_rate": 0.1}, "learning_rate", "lr"),
        ("torch", {"alpha": 0.9, "rho": 0.9}, "rho", "rho"),
        ("torch", {"eps": 0.1, "epsilon": 0.1}, "epsilon", "epsilon"),
        ("torch", {"lr": 0.1, "learning_rate": 0.1}, "learning_rate", "lr"),
        (
            "optax",
            {"lr": 1, "eps_in_sqrt": True, "epsilon_in_sqrt": True},
            "epsilon_in_sqrt",
            "eps",
        ),
        ("optax", {"lr": 1, "decay": 0.9, "rho": 0.9}, "rho", "rho"),
        ("timm", {"alpha": 0.9, "rho": 0.9}, "rho", "rho"),
        ("timm", {"lr": 0.1, "learning_rate": 0.1}, "learning_rate", "lr"),
    ],
    ids=str,
)
def test_an_argument_under_two_names_is_refused(framework, arguments, name, own):
    with pytest.raises(TypeError, match=rf"\b{name}\b.*\b{own}|same argument"):
        RMSprop.like(framework, **arguments)


@pytest.mark.parametrize(
    ("framework", "arguments", "exception", "message"),
    [
        ("torch", {"alpha": 1.5}, ValueError, r"^rho is 1\.5; it must be in \[0, 1\]"),
        ("torch", {"eps": -1}, ValueError, "^epsilon is -1;"),
        ("torch", {"momentum": True}, TypeError, "^momentum is True;"),
        ("torch", {"maximize": 1}, TypeError, "^maximize is 1;"),
        ("tf1", {"learning_rate": float("nan")}, ValueError, "^lr is nan;"),
        ("tf1", {"learning_rate": None}, TypeError, "^lr is None;"),
        ("optax", {"learning_rate": 1, "initial_scale": -1}, ValueError, "^initial_accumulator"),
        ("keras3", {"clipnorm": 1.0, "global_clipnorm": 1.0}, ValueError, "clipnorm is 1.0, but"),
        ("keras3", {"loss_scale_factor": 2.0}, ValueError, "^loss_scale_factor is 2.0;.*None"),
        ("timm", {"caution": True}, ValueError, "^caution is True;.*False"),
        ("timm", {"corrected_weight_decay": True}, ValueError, "^corrected_weight_decay is True;"),
        ("tf_keras", {"clipnorm": 1.0, "clipvalue": 0.5}, ValueError, "clips by clipvalue before"),
        (
            "tf_keras",
            {"global_clipnorm": 1.0, "clipvalue": 0.5},
            ValueError,
            "clips by clipvalue before",
        ),
        ("keras3", {"centered": None}, TypeError, "^centered is None;"),
        ("keras3", {"gradient_accumulation_steps": 1}, ValueError, "must be at least 2"),
        ("tf_keras", {"momentum": "abc"}, TypeError, "^momentum is 'abc';"),
        ("tf_keras", {"momentum": np.ones(2)}, TypeError, r"^momentum is array\("),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_our_name(framework, arguments, exception, message):
    with pytest.raises(exception, match=message):
        RMSprop.like(framework, **arguments)


TF_KERAS = {  # tf_keras.optimizers.RMSprop().get_config(), of tf_keras 2.21
    "name": "RMSprop",
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": 100,
    "jit_compile": False,
    "is_legacy_optimizer": False,
    "learning_rate": np.float32(0.001),
    "rho": 0.9,
    "momentum": 0.0,
    "epsilon": 1e-07,
    "centered": False,
}
LEGACY = {  # tf_keras.optimizers.legacy.RMSprop().get_config()
    "name": "RMSprop",
    "learning_rate": 0.001,
    "decay": 0.0,
    "rho": 0.9,
    "momentum": 0.0,
    "epsilon": 1e-07,
    "centered": False,
}


def test_the_config_of_tf_keras_goes_to_the_preset_of_its_class():
    changed = {"weight_decay": 0.25, "global_clipnorm": 2.0, "learning_rate": 0.5}
    opt = RMSprop.like("keras3", **TF_KERAS | changed)
    assert opt.get_config() == config("keras3", changed | {"ema_overwrite_frequency": 100})
    with pytest.raises(TypeError, match=r"use RMSprop\.like\('keras3', \*\*config\)$"):
        RMSprop.from_config(TF_KERAS)
    legacy = LEGACY | {"is_legacy_optimizer": True}  # some versions add it
    assert RMSprop.like("tf_keras", **legacy).get_config() == config("tf_keras", {})


@pytest.mark.parametrize(
    ("framework", "arguments", "message"),
    [
        (
            "tf_keras",
            TF_KERAS,
            "^jit_compile is of tf_keras.optimizers.RMSprop .tf.keras from 2.11",
        ),
        (
            "tf_keras",
            {"weight_decay": 0.01},
            r"^weight_decay is of .* RMSprop.like\('keras3', ...\)",
        ),
        ("tf_keras", {"use_ema": False}, "^use_ema is of tf_keras.optimizers.RMSprop"),
        ("tf_keras", LEGACY | {"is_legacy_optimizer": False}, "^is_legacy_optimizer=False is of"),
        ("keras3", LEGACY, r"legacy.RMSprop .*; use RMSprop.like\('tf_keras', ...\)$"),
        (
            "keras3",
            TF_KERAS | {"is_legacy_optimizer": True},
            r"legacy.RMSprop .*'tf_keras', ...\)$",
        ),
        ("keras3", TF_KERAS | {"use_ema": True}, "^averages of tf_keras begin at the parameters"),
    ],
)
def test_arguments_of_the_other_class_of_tf_keras_raise(framework, arguments, message):
    with pytest.raises(ValueError, match=message):
        RMSprop.like(framework, **arguments)


# f(x) = sum([.1, .2, .3] * x**2) from x = 1: ten steps with each framework's own defaults.
TEN_STEPS = {
    "keras2": [0.9827184899341675, 0.9827184891036894, 0.9827184888268633],
    "torch": [0.5498912329331297, 0.5498911696704399, 0.5498911485828718],
    "keras3": [0.9827185778595166, 0.9827185106699866, 0.98271849822735],
    "tf1": [0.9737728046544958, 0.9505561281914865, 0.9312628931590093],
    "optax": [0.8320525044348532, 0.8320524373841409, 0.8320524249673288],
}


@pytest.mark.parametrize("framework", TEN_STEPS)
def test_ten_steps_with_the_defaults_are_those_of_the_framework(framework):
    x, c = np.ones(3), np.array([0.1, 0.2, 0.3])
    opt = RMSprop.like(framework, **REQUIRED.get(framework, {}))
    for _ in range(10):
        opt.step([x], [2 * c * x])
    np.testing.assert_allclose(x, TEN_STEPS[framework], rtol=2e-15, atol=0)


def test_centered_is_that_of_keras_3s_own_test():
    x = np.ones(10)
    opt = RMSprop.like("keras3", centered=True)
    opt.step([x], [np.full(10, 0.01)])
    for expected in (0.9967, 0.9933, 0.9908, 0.9885, 0.9864):
        np.testing.assert_allclose(x, expected, rtol=5e-4, atol=5e-4)
        opt.step([x], [np.arange(0.1, 1.1, 0.1)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_steps_are_those_of_tf_trains_own_test(dtype):
    # Its accumulator starts at 1 and its epsilon stands inside the root.
    w, opt = np.ones(1, dtype), RMSprop.like("tf1", learning_rate=2.0, decay=0.9, epsilon=1.0)
    for expected in (0.8549429178729161, 0.7063620526007386):
        opt.step([w], [np.full(1, 0.1, dtype)])
        np.testing.assert_allclose(w, expected, rtol=1e-15 if dtype == "float64" else 2e-7, atol=0)


@pytest.mark.parametrize(
    ("framework", "arguments", "same_as"),
    [
        ("keras2", {"clipnorm": 0.5}, {"clipnorm": 0.5}),
        ("tf_keras", {"learning_rate": 0.1}, {"lr": 0.1, "epsilon": 1e-7}),
        ("timm", {}, {"tf1": {"learning_rate": 0.01}}),
        ("timm", {"momentum": 0.9}, {"tf1": {"learning_rate": 0.01, "momentum": 0.9}}),
        (
            "tf_keras",
            {"momentum": 0.9, "centered": True},
            {"keras3": {"momentum": 0.9, "centered": True}},
        ),
    ],
    ids=str,
)
def test_where_frameworks_agree_so_do_the_bits(framework, arguments, same_as):
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(20), rng.standard_normal((3, 4)).astype(np.float32)]
    y = [p.copy() for p in x]
    opt = RMSprop.like(framework, **arguments)
    ((name, value),) = list(same_as.items())[:1]
    other = RMSprop.like(name, **value) if name in DEFAULTS else RMSprop(**same_as)
    for _ in range(5):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in x]
        opt.step(x, grads)
        other.step(y, grads)
    for found, expected in zip(x, y, strict=True):
        assert_same_bits(found, expected)
