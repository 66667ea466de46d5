"""Constraints on weights, as in Keras 2.0: callables that return the constrained value.

K.epsilon(), which keeps the norms from 0, is 1e-7 in TensorFlow 1.3 and here.
"""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import serialization
from .model import Model, arrays_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

EPSILON = 1e-7


class Constraint:
    """Base of the constraints: call it with an array to get the constrained array."""

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        """Return the constrained value of `w`, an array of its shape and dtype."""
        raise TypeError(f"{type(self).__name__} does not say how it constrains: define __call__")

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain JSON types."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Constraint:
        """Make a constraint from what `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def _axis(axis: Any) -> Any:
    """NumPy wants several axes as a tuple; JSON and Keras have lists."""
    return tuple(axis) if isinstance(axis, list) else axis


def _norms(w: NDArray[Any], axis: Any) -> NDArray[Any]:
    return np.asarray(np.sqrt(np.sum(np.square(w), axis=_axis(axis), keepdims=True)))


class MaxNorm(Constraint):
    """Scale vectors of weights down to a norm of at most `max_value`.

    Parameters
    ----------
    max_value : float
        The largest norm.
    axis : int or list of int
        Axes along which norms are taken: 0 for the incoming weights of a dense layer's units.
    """

    def __init__(self, max_value: float = 2, axis: Any = 0) -> None:
        self.max_value = max_value
        self.axis = axis

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        norms = _norms(w, self.axis)
        # float: a NumPy scalar would promote float32 weights to float64
        desired = np.clip(norms, 0, float(self.max_value))
        return np.asarray(w * (desired / (EPSILON + norms)))

    def get_config(self) -> dict[str, Any]:
        return {"max_value": self.max_value, "axis": self.axis}


class NonNeg(Constraint):
    """Set negative weights to 0."""

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(w * (w >= 0))


class UnitNorm(Constraint):
    """Scale vectors of weights to norm 1.

    Parameters
    ----------
    axis : int or list of int
        Axes along which norms are taken.
    """

    def __init__(self, axis: Any = 0) -> None:
        self.axis = axis

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(w / (EPSILON + _norms(w, self.axis)))

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis}


class MinMaxNorm(Constraint):
    """Scale vectors of weights towards norms between `min_value` and `max_value`.

    Parameters
    ----------
    min_value, max_value : float
        The range of norms.
    rate : float
        How much of the way is gone at a step: 1 enforces the range.
    axis : int or list of int
        Axes along which norms are taken.
    """

    def __init__(
        self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Any = 0
    ) -> None:
        self.min_value = min_value
        self.max_value = max_value
        self.rate = rate
        self.axis = axis

    def __call__(self, w: NDArray[Any]) -> NDArray[Any]:
        norms = _norms(w, self.axis)
        low, high, rate = float(self.min_value), float(self.max_value), float(self.rate)
        desired = rate * np.clip(norms, low, high) + (1 - rate) * norms
        return np.asarray(w * (desired / (EPSILON + norms)))

    def get_config(self) -> dict[str, Any]:
        return {
            "min_value": self.min_value,
            "max_value": self.max_value,
            "rate": self.rate,
            "axis": self.axis,
        }


# Keras's names for the same classes.
max_norm = maxnorm = MaxNorm
non_neg = nonneg = NonNeg
unit_norm = unitnorm = UnitNorm
min_max_norm = MinMaxNorm

KNOWN = {
    "MaxNorm": MaxNorm,
    "max_norm": MaxNorm,
    "maxnorm": MaxNorm,
    "NonNeg": NonNeg,
    "non_neg": NonNeg,
    "nonneg": NonNeg,
    "UnitNorm": UnitNorm,
    "unit_norm": UnitNorm,
    "unitnorm": UnitNorm,
    "MinMaxNorm": MinMaxNorm,
    "min_max_norm": MinMaxNorm,
}


def serialize(constraint: Constraint) -> dict[str, Any]:
    """The constraint as ``{"class_name": ..., "config": ...}``."""
    return serialization.serialize(constraint)


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Make the constraint that `serialize` described; `config` is not changed."""
    return serialization.deserialize(config, KNOWN, custom_objects, "constraint")


def get(identifier: Any) -> Any:
    """The constraint for a name, a serialized constraint, a callable or None.

    Raises
    ------
    ValueError
        If there is none.
    """
    if isinstance(identifier, type):
        raise ValueError(f"{identifier.__name__} is a class; pass an instance")
    if identifier is None or (callable(identifier) and not isinstance(identifier, Mapping)):
        return identifier
    return serialization.get(identifier, KNOWN, "constraint")


def chosen(constraints: Any, params: Model) -> dict[Any, Any]:
    """Constraints by index or key, checked before anything changes."""
    if not isinstance(params, (list, tuple, dict, np.ndarray)):
        raise TypeError(
            f"params is of type {type(params).__name__}; pass a list or tuple of arrays, a dict of "
            "arrays, or one array"
        )
    names: list[Any] = (
        list(params) if isinstance(params, dict) else list(range(len(arrays_of(params))))
    )
    if constraints is None:
        return {}
    if isinstance(constraints, Mapping):
        for key in constraints:
            if key not in names:
                raise ValueError(f"constraints has the key {key!r}, but params has {names!r}")
        given = dict(constraints)
    elif isinstance(constraints, (list, tuple)):
        if len(constraints) != len(names):
            raise ValueError(
                f"constraints has {len(constraints)} entries, but params has {len(names)}; "
                "pass None where there is no constraint, or a dict"
            )
        given = dict(zip(names, constraints, strict=True))
    else:
        raise TypeError(
            f"constraints is of type {type(constraints).__name__}; pass None, a list with an "
            "entry for each parameter, or a dict by index or key"
        )
    found = {}
    for name, constraint in given.items():
        try:
            found[name] = get(constraint)
        except ValueError as error:
            raise ValueError(f"constraints[{name!r}]: {error}") from None
    return found


def constrain(constraint: Callable[[Any], Any], name: Any, param: NDArray[Any]) -> None:
    """Apply a constraint to a parameter, in place."""
    returned = constraint(param)
    if returned is None:
        return
    value = np.asarray(returned)
    if value.shape != param.shape:
        raise ValueError(
            f"constraints[{name!r}] returned shape {value.shape}, but its parameter has shape "
            f"{param.shape}"
        )
    if not np.can_cast(value.dtype, param.dtype, "same_kind"):
        raise TypeError(
            f"constraints[{name!r}] returned dtype {value.dtype}, but its parameter has dtype "
            f"{param.dtype}"
        )
    param[...] = value
