"""The one table of hyper-parameters, and what each value may be."""

import numbers
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import numpy as np

INFINITY = float("inf")
NONFINITE = ("propagate", "raise", "skip")


class Hyperparameter(NamedTuple):
    """A row of the one table of hyper-parameters."""

    name: str
    default: Any
    kind: str  # number, optional, flag, count, or what CHOICES and OBJECTS say
    doc: str
    low: float = 0.0
    high: float = INFINITY  # the smallest and the largest value allowed


# The one table: properties, configs and defaults come from it. Those that are numbers in C are in
# RMSPROP_EACH_SETTING of src/step.h, too. A default of None makes an argument optional: for an
# "optional" number None and values <= 0 switch it off.
HYPERPARAMETERS = (
    Hyperparameter(
        "lr", 0.001, "number", "float, or callable of the iteration: the learning rate."
    ),
    Hyperparameter(
        "rho", 0.9, "number", "float: how much of the accumulator is kept at a step.", high=1.0
    ),
    Hyperparameter(
        "epsilon",
        1e-8,
        "number",
        "float: added to the root of the accumulator; None: Keras's 1e-7.",
    ),
    Hyperparameter("decay", 0.0, "number", "float: lr is divided by 1 + decay * iterations."),
    Hyperparameter(
        "clipnorm", None, "optional", "float or None: largest norm of all gradients together."
    ),
    Hyperparameter("clipvalue", None, "optional", "float or None: largest absolute gradient."),
    Hyperparameter(
        "parameter_clipnorm", None, "optional", "float or None: largest norm of each gradient."
    ),
    Hyperparameter(
        "momentum", 0.0, "number", "float: how much of the last step is kept.", high=1.0
    ),
    Hyperparameter("nesterov", False, "flag", "bool: Nesterov's momentum."),
    Hyperparameter("centered", False, "flag", "bool: divide by the deviation from the mean."),
    Hyperparameter("epsilon_in_sqrt", False, "flag", "bool: add epsilon under the root."),
    Hyperparameter(
        "initial_accumulator_value",
        0.0,
        "number",
        "float: where accumulators start.",
        high=float(np.finfo(np.float32).max),
    ),
    Hyperparameter("lr_in_momentum", True, "flag", "bool: lr multiplies what enters the momentum."),
    Hyperparameter("bias_correction", False, "flag", "bool: undo the accumulator's start at 0."),
    Hyperparameter("maximize", False, "flag", "bool: go up along the gradients."),
    Hyperparameter("weight_decay", 0.0, "number", "float: the factor of weight decay."),
    Hyperparameter(
        "decoupled_weight_decay", False, "flag", "bool: decay parameters, not gradients."
    ),
    Hyperparameter("use_ema", False, "flag", "bool: keep moving averages of the parameters."),
    Hyperparameter(
        "ema_momentum", 0.99, "number", "float: how much of an average is kept.", high=1.0
    ),
    Hyperparameter(
        "ema_overwrite_frequency", None, "count", "int or None: averages overwrite parameters."
    ),
    Hyperparameter(
        "gradient_accumulation_steps", None, "count", "int or None: calls for an update.", low=2
    ),
    Hyperparameter("nonfinite", "propagate", "choice", "str: what gradients not finite do."),
    Hyperparameter("flush_subnormals", False, "flag", "bool: store subnormal state as 0."),
    Hyperparameter("zero_grad", False, "flag", "bool: a step clears the gradients."),
    Hyperparameter("lr_scale", None, "factors", "sequence, dict or None: factors of lr."),
    Hyperparameter(
        "exclude_from_weight_decay", (), "names", "tuple: indices or keys without weight decay."
    ),
)
ROWS = {row.name: row for row in HYPERPARAMETERS}
DEFAULT: dict[str, Any] = {row.name: row.default for row in HYPERPARAMETERS}
NUMBERS = [row.name for row in HYPERPARAMETERS if row.kind not in ("factors", "names")]
KERAS = ("lr", "rho", "decay", "epsilon")  # in every config, in Keras 2.0's order
OPTIONS = tuple(name for name in DEFAULT if name not in KERAS)


def checked(row: Hyperparameter, value: Any) -> float:
    """The value as a C double (None as NaN), or an error that names the argument and the value."""
    if value is None and row.default is None:
        return float("nan")
    if row.kind == "choice":
        if not isinstance(value, str) or value not in NONFINITE:
            raise ValueError(f"{row.name} is {value!r}; it must be one of {', '.join(NONFINITE)}")
        return NONFINITE.index(value)
    if row.kind == "flag":
        if not isinstance(value, (bool, np.bool_, ZeroGrad)):
            raise TypeError(f"{row.name} is {value!r}; it must be True or False")
        return float(value)
    if row.name == "epsilon" and value is None:
        return 1e-7  # K.epsilon(), as in Keras 2.1 to 2.3
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        text = repr(value)
        if len(text) > 1000:  # a model, most likely
            text = f"{text[:100]}..."
        raise TypeError(f"{row.name} is {text}; it must be a real number")
    if row.kind == "count":
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"{row.name} is {value!r}; it must be an integer or None")
        if int(value) > 2**53:
            raise ValueError(f"{row.name} is {value!r}; it must be at most 2**53")
    try:
        number = float(value)
    except OverflowError:
        number = INFINITY
    if not np.isfinite(number):
        raise ValueError(f"{row.name} is {value!r}; it must be finite")
    low = max(row.low, 1) if row.kind == "count" else row.low
    if row.kind != "optional" and not low <= number <= row.high:
        bound = f"at least {low:g}" if row.high == INFINITY else f"in [{low:g}, {row.high:g}]"
        raise ValueError(f"{row.name} is {value!r}; it must be {bound}")
    return number


# What float32 must not make of a value: with a rho of 1 accumulators stay, and a limit of 0 or a
# divisor that is infinite ends training, as an infinite factor does.
LIMITS = ("clipnorm", "clipvalue", "parameter_clipnorm")
ROUNDED_TO = {
    "rho": (1.0,),
    "momentum": (1.0,),
    "ema_momentum": (1.0,),
    "epsilon": (0.0, INFINITY),
    "weight_decay": (INFINITY,),
    **dict.fromkeys(LIMITS, (0.0,)),
}


def end_in_float32(value: float) -> float | None:
    """Which of 0, 1 and infinity float32 rounds another number to, if any."""
    if 0 < value <= 2.0**-150:
        return 0.0
    if 1 - 2.0**-25 <= value < 1:
        return 1.0
    return INFINITY if value >= 2.0**128 - 2.0**103 else None


def check_float32(values: Mapping[str, float], names: Iterable[str] = ROUNDED_TO) -> None:
    """Raise for a value that float32 rounds to another with which training ends."""
    unused = {
        "ema_momentum": not values["use_ema"],
        "weight_decay": values["decoupled_weight_decay"],  # it is lr that is multiplied by it
    }
    for name in names:
        end = None if unused.get(name) else end_in_float32(values[name])
        if end in ROUNDED_TO[name]:
            instead = {
                0.0: "at least 1e-45, or " + ("0 itself" if name == "epsilon" else "None"),
                1.0: "at most 0.9999999, or 1 itself",
                INFINITY: "at most 3.4e38",
            }
            raise ValueError(
                f"{name}={values[name]!r} rounds to {end:g} in float32; use {instead[end]}"
            )
    if values["bias_correction"] and "epsilon" in names:
        factor = 1 - values["rho"]  # of the first step, the least
        factor = factor if values["epsilon_in_sqrt"] else factor**0.5
        if end_in_float32(values["epsilon"] * factor) == 0:
            raise ValueError(
                f"epsilon={values['epsilon']!r} rounds to 0 in float32, multiplied by the bias "
                "correction's factor; use a larger one, or 0 itself"
            )


def check_conflict(
    name: str, number: float, value_of: Callable[[str], float], scheduled: bool
) -> None:
    """Raise for a value that can't go together with the others, or with a schedule as lr."""
    if name == "decay" and number > 0 and scheduled:
        raise ValueError(
            f"decay is {number!r}, but lr is a schedule, which says by itself how it decays; "
            "use one of the two"
        )
    for one, other in (("clipnorm", "parameter_clipnorm"), ("parameter_clipnorm", "clipnorm")):
        if name == one and number > 0 and value_of(other) > 0:
            raise ValueError(
                f"{one} is {number!r}, but {other} is set: gradients are clipped by the norm "
                "of all or of each; set one of them to None"
            )
    if (name == "rho" and number == 1 and value_of("bias_correction")) or (
        name == "bias_correction" and number and value_of("rho") == 1
    ):
        raise ValueError("bias_correction divides by 1 - rho**t, so rho can't be 1")


def shown(row: Hyperparameter, number: float) -> Any:
    """What `checked` made of a value, as it was."""
    if number != number:
        return None
    if row.kind == "choice":
        return NONFINITE[int(number)]
    kinds: dict[str, Callable[[float], Any]] = {"flag": bool, "count": int}
    return kinds.get(row.kind, float)(number)


def checked_factors(value: Any) -> Any:
    """`lr_scale` as a tuple of floats or a dict of them, or an error that names entry and value."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        entries = dict(value)
    elif _is_sequence(value) and not isinstance(value, Set):
        entries = dict(enumerate(value))
    else:
        raise TypeError(
            f"lr_scale is {value!r}; pass a sequence with a factor for each parameter, or a dict"
        )
    row = ROWS["lr"]
    factors = {
        key: checked(row._replace(name=f"lr_scale[{key!r}]"), x) for key, x in entries.items()
    }
    return factors if isinstance(value, Mapping) else tuple(factors.values())


def checked_names(value: Any) -> tuple[Any, ...]:
    """`exclude_from_weight_decay` as a tuple, or an error."""
    if not _is_sequence(value):
        raise TypeError(
            f"exclude_from_weight_decay is {value!r}; pass a sequence of indices or keys"
        )
    names = tuple(x.item() if isinstance(x, np.generic) else x for x in value)
    for i, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, Hashable):
            raise TypeError(
                f"exclude_from_weight_decay[{i}] is {name!r}; it must be an index or a key"
            )
    return names


def scheduled_lr(schedule: Callable[[int], float], call: int) -> float:
    """What the schedule says, or an error that names it and the call."""
    value: Any = schedule(call)
    try:
        if hasattr(value, "__array__") and np.ndim(value) == 0:  # of any framework
            return checked(ROWS["lr"], np.asarray(value).item())
        return checked(ROWS["lr"], value)
    except (TypeError, ValueError):
        raise ValueError(
            f"lr({call}) is {value!r}; a schedule must return a finite number that is at least 0"
        ) from None


def by_position(
    names: list[Any], is_list: bool, lr_scale: Any, excluded: tuple[Any, ...]
) -> tuple[list[float], list[bool]]:
    """The factor of lr of each parameter, and whether it takes part in weight decay."""
    factors: dict[Any, float] = {}
    if lr_scale is not None:
        if isinstance(lr_scale, dict) == is_list:
            raise TypeError(
                f"lr_scale is a {type(lr_scale).__name__}, but the parameters have "
                + ("no keys; pass a sequence of factors" if is_list else "keys; pass a dict")
            )
        if is_list and len(lr_scale) != len(names):
            there = "is 1 parameter" if len(names) == 1 else f"are {len(names)} parameters"
            raise ValueError(f"lr_scale has {len(lr_scale)} factors, but there {there}")
        factors = dict(enumerate(lr_scale)) if is_list else lr_scale
    chosen = {"lr_scale": factors, "exclude_from_weight_decay": excluded}
    for which, entries in chosen.items():
        for name in entries:
            if name not in names:
                raise ValueError(f"{which} has {name!r}, but the parameters are {names}")
    return [factors.get(name, 1.0) for name in names], [name not in excluded for name in names]


def _is_sequence(value: Any) -> bool:
    """Whether it is iterable, and neither text nor a 0-d array, which only seems so."""
    return (
        isinstance(value, Iterable)
        and not isinstance(value, (str, bytes))
        and getattr(value, "ndim", 1) > 0
    )


class ZeroGrad(int):
    """The value of zero_grad: torch's optimizers have a method of that name."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "zero_grad is an option, not a method: with zero_grad=True each step clears the "
            "gradients; there is nothing to clear where they are new arrays"
        )

    def __repr__(self) -> str:
        return repr(bool(self))

    __str__ = __repr__
