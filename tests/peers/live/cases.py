"""What is compared: arguments of the other frameworks' optimizers, starts and gradients.

Keras 2 is missing here: its trajectories are in tests/golden.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DTYPES = ("float64", "float32")
SHAPES = ((5,), (3, 4), ())
CALLS = 50
LR = 2.0**-8
MOMENTUM = {"momentum": (None, 0.875), "centered": (None, True)}
DECAY = {"weight_decay": (None, 0.25)}
CYCLE = {"gradient_accumulation_steps": (None, 4)}
# They clip some gradients of scale 1 and not others, and so they do means of four.
LIMITS = ({}, {"clipnorm": 1.0}, {"global_clipnorm": 2.0}, {"clipvalue": 0.5})
AVERAGES = (
    {},
    {"use_ema": True, "ema_momentum": 0.9375},
    {"use_ema": True, "ema_momentum": 0.9375, "ema_overwrite_frequency": 3},
)
SCHEDULES = {
    "ExponentialDecay": {"decay_steps": 8, "decay_rate": 0.75},
    "InverseTimeDecay": {"decay_steps": 8, "decay_rate": 0.75, "staircase": True},
    "PolynomialDecay": {"decay_steps": 32, "end_learning_rate": LR / 64, "power": 2.0},
    "CosineDecay": {"decay_steps": 32, "warmup_target": LR * 2, "warmup_steps": 8},
}


def inputs(dtype, scale, calls=CALLS):
    """Start and gradients of all cases with this dtype and scale; normal values.

    Parameters start 1 or more from zero and do not get there: errors are compared with the largest
    value of an array, and a scalar that passes through zero has none.
    """
    generator = np.random.default_rng(20260101)
    normal = [[generator.standard_normal(s) for s in SHAPES] for _ in range(calls + 1)]
    start = [np.asarray(x + np.sign(x), dtype) for x in normal[0]]
    return start, [[np.asarray(scale * x, dtype) for x in call] for call in normal[1:]]


@dataclass(frozen=True)
class Case:
    """Arguments of a framework's optimizer, and the gradients it is to see.

    Numbers are such as float32 holds exactly, for some frameworks round them to it in float64 too.
    Of defaults that are not, `rounded` holds those which this framework rounds, as rounded: the
    arguments that another implementation must be given in float64. `lr_at` are pairs of a call and
    the learning rate from there on: that alone shows whether lr is inside the momentum.
    """

    framework: str
    name: str
    arguments: dict[str, Any]
    scale: float = 1.0
    rounded: dict[str, float] = field(default_factory=dict)
    lr_at: list[tuple[int, float]] = field(default_factory=list)


def combinations(**choices):
    """All dicts with one value of each; None stands for an argument that isn't given."""
    for values in itertools.product(*choices.values()):
        pairs = zip(choices, values, strict=True)
        yield {key: value for key, value in pairs if value is not None}


def label(arguments):
    def text(key, value):
        if isinstance(value, dict):
            return value["class_name"]
        return key if value is True else f"{key}={value}"

    return ",".join(text(key, value) for key, value in arguments.items()) or "plain"


def cases_of(framework, required, base, options, main=MOMENTUM, rounded=()):
    """Every option at scale 1, the main ones at all scales and with lr changing, and the defaults.

    `required` are arguments without default, `base` those of all cases but the defaults.
    """

    def case(name, arguments, scale=1.0, **more):
        name = name if scale == 1 else f"{name},scale={scale}"
        return Case(framework, name, arguments, scale, **more)

    for chosen in options:
        yield case(label(chosen), {**required, **base, **chosen})
    for chosen in combinations(**main):
        arguments = {**required, **base, **chosen}
        for scale in (1e-5, 1e4):
            yield case(label(chosen), arguments, scale)
        yield case(f"{label(chosen)},lr_at", arguments, lr_at=[(9, LR / 4), (31, LR * 2)])
    as_rounded = {name: float(np.float32(value)) for name, value in dict(rounded).items()}
    for scale in (1e-5, 1.0, 1e4):
        yield case("defaults", dict(required), scale, rounded=as_rounded)


def merged(*groups):
    """All dicts with one dict of each group."""
    for parts in itertools.product(*groups):
        yield {key: value for part in parts for key, value in part.items()}


def keras3_options():
    yield from merged(combinations(**MOMENTUM, **DECAY), LIMITS, AVERAGES, combinations(**CYCLE))
    for name, config in SCHEDULES.items():
        config = {"initial_learning_rate": LR, **config}
        schedule = {"learning_rate": {"class_name": name, "config": config}}
        yield from merged([schedule], combinations(momentum=(None, 0.875), **DECAY, **CYCLE))
    excluded = {"weight_decay": 0.25, "exclude_from_weight_decay": [1]}
    yield from merged([excluded], combinations(**MOMENTUM, **CYCLE))


def optax_options():
    # bias_correction with centered is left out: at the first step optax divides by the root of a
    # variance that is the rounding error of 0.
    roots = combinations(eps_in_sqrt=(None, False), initial_scale=(None, 0.25))
    variances = ({}, {"centered": True}, {"bias_correction": True})
    momentums = ({}, {"momentum": 0.875}, {"momentum": 0.875, "nesterov": True})
    return merged(roots, momentums, variances)


def grid():
    """All cases."""
    lr = {"learning_rate": LR}
    in_torch = combinations(**MOMENTUM, **DECAY, maximize=(None, True))
    placed = {**MOMENTUM, "lr_in_momentum": (None, False)}
    in_timm = combinations(**placed, **DECAY, decoupled_decay=(None, True))
    # clipvalue with a norm is left out of tf_keras: it comes first there, and last in Keras 2.
    in_tf_keras = merged(combinations(**MOMENTUM, decay=(None, 0.125)), LIMITS)
    # Where the accumulator starts at 1 a small epsilon would not be seen.
    in_tf1 = {"decay": 0.875, "epsilon": 2.0**-6}
    tf1_rounds = {"decay": 0.9, "epsilon": 1e-10}
    tf_keras_rounds = {"learning_rate": 0.001, "rho": 0.9}
    timm = {"lr": LR, "alpha": 0.875, "eps": 2.0**-6}
    return [
        *cases_of("torch", {}, {"lr": LR, "alpha": 0.9375}, in_torch),
        *cases_of("keras3", {}, {**lr, "rho": 0.875}, keras3_options()),
        *cases_of("tf1", lr, in_tf1, combinations(**MOMENTUM), rounded=tf1_rounds),
        *cases_of("tf_keras", {}, {**lr, "rho": 0.875}, in_tf_keras, rounded=tf_keras_rounds),
        *cases_of("optax", lr, {"decay": 0.875}, optax_options()),
        *cases_of("timm", {}, timm, in_timm, placed),
    ]
