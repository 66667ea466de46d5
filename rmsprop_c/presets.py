"""The RMSprop of each framework in terms of ours: arguments, defaults, and what is fixed."""

import numbers
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """How one framework's arguments become ours."""

    source: str  # the class, and the version it was compared with
    names: Mapping[str, str]  # its names of our arguments, where they differ
    defaults: Mapping[str, Any]  # in our names
    required: tuple[str, ...] = ()  # in its names
    ignored: tuple[str, ...] = ()  # arguments that change no number
    neutral: Mapping[str, Any] = MappingProxyType({})  # known at this value only
    check: Callable[[Mapping[str, Any]], None] = lambda given: None  # in its names
    adjust: Callable[[dict[str, Any]], None] = lambda arguments: None


# Arguments of tf_keras.optimizers.RMSprop, the class of tf.keras from 2.11 on, that the legacy one
# does not have: its formula is that of Keras 3.
_LATER = ("jit_compile", "use_ema", "ema_momentum", "ema_overwrite_frequency", "weight_decay")


_LEGACY = {"name", "learning_rate", "decay", "rho", "momentum", "epsilon", "centered"}  # its config


def _check_legacy(given: Mapping[str, Any]) -> None:
    found = [name for name in _LATER if name in given]
    if found or not given.get("is_legacy_optimizer", True):
        raise ValueError(
            f"{found[0] if found else 'is_legacy_optimizer=False'} is of tf_keras.optimizers."
            "RMSprop (tf.keras from 2.11 on), which is RMSprop.like('keras3', ...); "
            "like('tf_keras') is tf_keras.optimizers.legacy.RMSprop"
        )


def _check_keras3(given: Mapping[str, Any]) -> None:
    if given.get("is_legacy_optimizer") or given.keys() >= _LEGACY:
        raise ValueError(
            "the arguments are those of tf_keras.optimizers.legacy.RMSprop (tf.keras up to 2.10); "
            "use RMSprop.like('tf_keras', ...)"
        )
    if given.get("use_ema") and {"jit_compile", "is_legacy_optimizer"} & given.keys():
        raise ValueError(
            "averages of tf_keras begin at the parameters before the first step, those of Keras 3 "
            "and here at those after it; leave out jit_compile and is_legacy_optimizer to have the "
            "latter"
        )


def _tf_keras(arguments: dict[str, Any]) -> None:
    clipped = [arguments.get(name) for name in ("clipvalue", "clipnorm", "parameter_clipnorm")]
    on = [isinstance(x, numbers.Real) and float(x) > 0 for x in clipped]
    if on[0] and any(on[1:]):
        raise ValueError("tf_keras clips by clipvalue before the norm, here it is the other way")
    # Without momentum the formula is written out in Python, with it an op of TensorFlow runs.
    momentum = arguments.get("momentum", 0.0)
    if isinstance(momentum, numbers.Real):
        arguments.setdefault("epsilon_in_sqrt", float(momentum) > 0)


_KERAS_CLIPPING = {"clipnorm": "parameter_clipnorm", "global_clipnorm": "clipnorm"}
_KERAS_DEFAULTS = {"lr": 0.001, "rho": 0.9, "epsilon": 1e-7}
_TENSORFLOW = {"epsilon": 1e-10, "epsilon_in_sqrt": True, "initial_accumulator_value": 1.0}

PRESETS = {
    "keras2": Preset(
        "tf.contrib.keras.optimizers.RMSprop, TensorFlow 1.3",
        {"learning_rate": "lr"},
        {"lr": 0.001, "rho": 0.9, "epsilon": 1e-8},
    ),
    "keras3": Preset(
        "keras.optimizers.RMSprop, Keras 3.15; tf_keras.optimizers.RMSprop, tf_keras 2.21",
        {"learning_rate": "lr", **_KERAS_CLIPPING},
        {**_KERAS_DEFAULTS, "epsilon_in_sqrt": True, "decoupled_weight_decay": True},
        ignored=("name", "jit_compile", "is_legacy_optimizer"),
        neutral={"loss_scale_factor": None},
        check=_check_keras3,
    ),
    "tf1": Preset(
        "tf.compat.v1.train.RMSPropOptimizer, TensorFlow 2.21",
        {"learning_rate": "lr", "decay": "rho"},
        {"rho": 0.9, **_TENSORFLOW},
        required=("learning_rate",),
        ignored=("use_locking", "name"),
    ),
    "tf_keras": Preset(
        "tf_keras.optimizers.legacy.RMSprop, tf_keras 2.21",
        {"learning_rate": "lr", **_KERAS_CLIPPING},
        _KERAS_DEFAULTS,
        ignored=("name", "is_legacy_optimizer"),
        check=_check_legacy,
        adjust=_tf_keras,
    ),
    "torch": Preset(
        "torch.optim.RMSprop, PyTorch 2.13",
        {"learning_rate": "lr", "alpha": "rho", "eps": "epsilon"},
        {"lr": 0.01, "rho": 0.99, "epsilon": 1e-8, "lr_in_momentum": False},
        ignored=("foreach", "capturable", "differentiable"),
    ),
    "optax": Preset(
        "optax.rmsprop, optax 0.2.8",
        {
            "learning_rate": "lr",
            "decay": "rho",
            "eps": "epsilon",
            "initial_scale": "initial_accumulator_value",
            "eps_in_sqrt": "epsilon_in_sqrt",
        },
        {"rho": 0.9, "epsilon": 1e-8, "epsilon_in_sqrt": True},
        required=("learning_rate",),
    ),
    "timm": Preset(
        "timm.optim.RMSpropTF, timm 1.0.31",
        {
            "learning_rate": "lr",
            "alpha": "rho",
            "eps": "epsilon",
            "decoupled_decay": "decoupled_weight_decay",
        },
        {"lr": 0.01, "rho": 0.9, **_TENSORFLOW},
        ignored=("foreach",),
        neutral={"caution": False, "corrected_weight_decay": False},
    ),
}
"""Presets by the name that `RMSprop.like` takes."""


def translate(framework: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A framework's arguments, and its defaults, as arguments of `RMSprop`.

    Raises
    ------
    ValueError
        For an unknown framework, and for what belongs to another class of it or can't be had here.
    TypeError
        For an argument that the framework requires and that is missing, or two for the same thing.
    """
    if not isinstance(framework, str) or framework not in PRESETS:
        raise ValueError(f"framework is {framework!r}; known are {', '.join(PRESETS)}")
    preset = PRESETS[framework]
    for name in preset.required:
        if name not in arguments and preset.names[name] not in arguments:
            raise TypeError(f"{framework}'s {name} has no default; pass {name}=...")
    preset.check(arguments)
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in preset.ignored:
            continue
        if name in preset.neutral:
            if value != preset.neutral[name]:
                raise ValueError(
                    f"{name} is {value!r}; of {framework}'s {name} only "
                    f"{preset.neutral[name]!r} can be done here"
                )
            continue
        own = preset.names.get(name, name)
        if own in given:
            raise TypeError(f"{name} was given twice: in {framework} it is {own} here")
        given[own] = value
    for name in ("momentum", "weight_decay"):  # None switches them off in Keras 3 and optax
        if given.get(name, 0.0) is None:
            given[name] = 0.0
    if isinstance(given.get("lr"), Mapping):
        from . import schedules

        given["lr"] = schedules.deserialize(given["lr"])
    translated = {**preset.defaults, **given}
    preset.adjust(translated)
    return translated


def origin(config: Mapping[str, Any]) -> str | None:
    """Which Keras a config comes from that has a name, as ours and those of Keras 2.0 have not."""
    if "name" not in config or "learning_rate" not in config:
        return None
    return "keras3" if "use_ema" in config else "tf_keras"


def translation(framework: str | None, name: str) -> str | None:
    """Our name of a framework's argument, if it has another one here."""
    return None if framework is None else PRESETS[framework].names.get(name)


def taken(framework: str | None, name: str) -> bool:
    """Whether our name of a hyper-parameter is a framework's name of another one."""
    return translation(framework, name) not in (None, name)


def explain(owner: str, framework: str | None, name: str, known: Iterable[str]) -> str | None:
    """Which hyper-parameter a name that is assigned to an optimizer may mean; None if none.

    Parameters
    ----------
    owner : str
        The class, as the message calls it.
    framework : str or None
        Whose preset the optimizer has.
    name : str
        What was assigned.
    known : iterable of str
        The names of our hyper-parameters.
    """
    own = translation(framework, name)
    if own is not None:
        return f"{framework}'s {name} is {own} here: assign {own}"
    others = [other for other in PRESETS if taken(other, name)]
    if others:
        own = PRESETS[others[0]].names[name]
        where = ", ".join(others)
        return f"{owner} has no attribute {name!r}; did you mean {own}? (It is {name} in {where}.)"
    import difflib  # takes half a megabyte, and only those who misspell a name need it

    close = difflib.get_close_matches(name, list(known), 1, 0.85)
    return f"{owner} has no attribute {name!r}; did you mean {close[0]}?" if close else None
