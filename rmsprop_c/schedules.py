"""Learning rates that depend on the step: the schedules of Keras 3, in double precision.

A schedule is called with the number of calls of `step` before this one, without skipped ones, and
is passed as the `lr` of an optimizer. Formulas, arguments and configs are those of
``keras.optimizers.schedules`` (Keras 3.15), but the backends of Keras compute in float32 unless
told otherwise. Where Keras returns NaN or infinity, Python's arithmetic raises ValueError or
ArithmeticError here.

Examples
--------
>>> from rmsprop_c import schedules
>>> rate = schedules.CosineDecay(0.0, 1000, warmup_target=0.1, warmup_steps=100)
>>> [rate(step) for step in (0, 50, 100, 600, 1100, 5000)]
[0.0, 0.05, 0.1, 0.05, 0.0, 0.0]
>>> schedules.deserialize(schedules.serialize(rate)) == rate
True
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from . import serialization


class LearningRateSchedule:
    """Base of the schedules: call it with a step to get the learning rate of that step."""

    name: str | None = None  # Keras's, in its configs

    def __call__(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` others."""
        raise TypeError(f"{type(self).__name__} does not say what it is: define __call__")

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain JSON types; Keras 3 accepts them. A name is there if it is set."""
        config = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        name = config.pop("name", None)
        return config if name is None else config | {"name": name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from what `get_config`, of Keras 3 too, returned."""
        return cls(**config)


def _number(name: str, value: Any) -> float:
    """The value as an int or float, or an error that names the argument and the value."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; it must be a real number")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not abs(number) <= sys.float_info.max:  # also an int that no double can hold
        raise ValueError(f"{name} is {value!r}; it must be finite")
    if name in ("decay_steps", "first_decay_steps", "t_mul") and number <= 0:
        raise ValueError(f"{name} is {value!r}; it must be greater than 0")
    if name == "warmup_steps" and number < 0:
        raise ValueError(f"{name} is {value!r}; it must be at least 0")
    return number


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(f"{name} is {value!r}; it must be a sequence of real numbers")
    return tuple(_number(f"{name}[{i}]", entry) for i, entry in enumerate(value))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be a string")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


@dataclass(frozen=True)
class _Checked(LearningRateSchedule):
    """The arguments as Python's own numbers, or an error."""

    name: str | None = dataclasses.field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        checks = {bool: _flag, Sequence[float]: _numbers, str | None: _text}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                value = checks.get(field.type, _number)(field.name, value)  # type: ignore[arg-type]
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True)
class ExponentialDecay(_Checked):
    """``initial_learning_rate * decay_rate ** (step / decay_steps)``.

    Parameters
    ----------
    initial_learning_rate, decay_steps, decay_rate : float
        As in the formula.
    staircase : bool
        Round the exponent down.
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __call__(self, step: int) -> float:
        periods = step / self.decay_steps
        if self.staircase:
            periods = math.floor(periods)
        # math.pow, as ** of a negative number may be complex.
        return self.initial_learning_rate * math.pow(self.decay_rate, periods)


@dataclass(frozen=True)
class InverseTimeDecay(_Checked):
    """``initial_learning_rate / (1 + decay_rate * step / decay_steps)``.

    Parameters
    ----------
    initial_learning_rate, decay_steps, decay_rate : float
        As in the formula.
    staircase : bool
        Round step / decay_steps down.
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __call__(self, step: int) -> float:
        periods = step / self.decay_steps
        if self.staircase:
            periods = math.floor(periods)
        return self.initial_learning_rate / (1 + self.decay_rate * periods)


@dataclass(frozen=True)
class PiecewiseConstantDecay(_Checked):
    """``values[i]`` up to and including step ``boundaries[i]``, and the last one after them all.

    Parameters
    ----------
    boundaries : sequence of int
        Steps, none smaller than the one before.
    values : sequence of float
        One more than there are boundaries.
    """

    boundaries: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values has {len(self.values)} entries, but boundaries has {len(self.boundaries)};"
                " there must be one value more"
            )
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries is {list(self.boundaries)}; it must not decrease")

    def __call__(self, step: int) -> float:
        for boundary, value in zip(self.boundaries, self.values, strict=False):
            if step <= boundary:
                return value
        return self.values[-1]


@dataclass(frozen=True)
class PolynomialDecay(_Checked):
    """From `initial_learning_rate` to `end_learning_rate` in `decay_steps`, along a power.

    Parameters
    ----------
    initial_learning_rate, decay_steps, end_learning_rate : float
        Where it starts, how many steps it takes and where it ends.
    power : float
        The power of the share of steps that is left: 1 is a straight line.
    cycle : bool
        Begin again, over twice, three times, ... as many steps, instead of staying at the end.
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= max(1, math.ceil(step / steps))
        left = 1 - min(step, steps) / steps
        span = self.initial_learning_rate - self.end_learning_rate
        return span * math.pow(left, self.power) + self.end_learning_rate


def _cosine(fraction: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


@dataclass(frozen=True)
class CosineDecay(_Checked):
    """Down along half a cosine, after a linear warm-up if there is one (Loshchilov & Hutter 2016).

    Parameters
    ----------
    initial_learning_rate, decay_steps : float
        Where it starts, and how many steps the decay takes after the warm-up.
    alpha : float
        The share of the decay's start that is left at its end.
    warmup_target : float, optional
        Where the warm-up ends and the decay starts; None for no warm-up.
    warmup_steps : float
        How many steps the warm-up takes, if there is one.
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    # By keyword: Keras has its name before them.
    warmup_target: float | None = dataclasses.field(default=None, kw_only=True)
    warmup_steps: float = dataclasses.field(default=0, kw_only=True)

    def __call__(self, step: int) -> float:
        start, done = self.initial_learning_rate, float(step)
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * (step / self.warmup_steps)
            start, done = self.warmup_target, step - self.warmup_steps
        fraction = min(done, self.decay_steps) / self.decay_steps
        return start * ((1 - self.alpha) * _cosine(fraction) + self.alpha)


@dataclass(frozen=True)
class CosineDecayRestarts(_Checked):
    """Down along half a cosine, again and again (Loshchilov & Hutter 2016).

    Parameters
    ----------
    initial_learning_rate, first_decay_steps : float
        Where it starts, and how many steps the first decay takes.
    t_mul, m_mul : float
        Each decay takes t_mul times as many steps as the one before and starts m_mul times as high.
    alpha : float
        The share of initial_learning_rate below which it does not fall.
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def __call__(self, step: int) -> float:
        periods = step / self.first_decay_steps  # in units of the first decay
        if self.t_mul == 1:
            restarts = math.floor(periods)
            fraction = periods - restarts
        else:  # solved from the geometric series of the lengths
            exponent = math.log(1 - periods * (1 - self.t_mul)) / math.log(self.t_mul)
            # The quotient may round below a whole number: log(243) / log(3) is 4.999999999999999,
            # and on some backends Keras then restarts a step late.
            restarts = math.floor(exponent + 1e-9)
            length = math.pow(self.t_mul, restarts)
            fraction = (periods - (1 - length) / (1 - self.t_mul)) / length
        height = math.pow(self.m_mul, restarts) * _cosine(fraction)
        return self.initial_learning_rate * ((1 - self.alpha) * height + self.alpha)


KNOWN = {
    schedule.__name__: schedule
    for schedule in (
        CosineDecay,
        CosineDecayRestarts,
        ExponentialDecay,
        InverseTimeDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
    )
}


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """The schedule as ``{"class_name": ..., "config": ...}``, which Keras 3 accepts."""
    return serialization.serialize(schedule)


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Make the schedule that `serialize`, of Keras 3 too, described; `config` is not changed."""
    return serialization.deserialize(config, KNOWN, custom_objects, "schedule")
