"""A list, tuple or dict of arrays, or one array <-> a flat list, with the names that errors use."""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Model = Any  # list or tuple of arrays, dict of arrays, or one array


def check(params: Model) -> None:
    """An error by name if an entry is no array, before it ends in one of NumPy's."""
    if isinstance(params, (list, tuple, dict)):
        for name, array in params.items() if isinstance(params, dict) else enumerate(params):
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"params[{name!r}] is of type {type(array).__name__}, not a NumPy array"
                )


def arrays_of(model: Model) -> list[Any]:
    """The arrays of a model, in its order."""
    if isinstance(model, (np.ndarray, np.generic)):
        return [model]
    return list(model.values()) if isinstance(model, dict) else list(model)


def names_of(model: Model) -> list[str]:
    """What errors call the arrays of a model, in its order."""
    if isinstance(model, np.ndarray):
        return ["params"]
    return [f"params[{key!r}]" for key in (model if isinstance(model, dict) else range(len(model)))]


def write(arrays: list[NDArray[Any]], values: list[NDArray[Any]]) -> None:
    """Give each parameter a value."""
    for array, value in zip(arrays, values, strict=True):
        array[...] = value


def set_back(names: list[str], arrays: list[NDArray[Any]], saved: list[NDArray[Any]]) -> None:
    """Give each parameter its value back; raise for those that can't be written any more."""
    lost = []
    for name, array, value in zip(
        names, arrays, saved, strict=False
    ):  # none, if not all were saved
        try:
            array[...] = value
        except (ValueError, TypeError) as error:
            lost.append(f"{name} ({error})")
    if lost:
        raise ValueError(
            f"{', '.join(lost)} can't be set back and still holds its average; all others are as "
            "they were before averaged()"
        )


def like(model: Model, arrays: list[Any]) -> Any:
    """Arrays in the form of a model."""
    if isinstance(model, np.ndarray):
        return arrays[0]
    return dict(zip(model, arrays, strict=True)) if isinstance(model, dict) else arrays


def parted(grads_and_vars: Any) -> tuple[list[Any], list[Any]]:
    """Parameters and gradients from Keras's pairs of a gradient and its parameter."""
    if not isinstance(grads_and_vars, Iterable):
        raise TypeError(
            f"grads_and_vars is of type {type(grads_and_vars).__name__}; pass zip(grads, params)"
        )
    pairs = list(grads_and_vars)
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)):
            raise TypeError(
                f"grads_and_vars[{i}] is of type {type(pair).__name__}, not a pair of a gradient "
                "and a parameter"
            )
        if len(pair) != 2:
            raise ValueError(
                f"grads_and_vars[{i}] has {len(pair)} entries, not a gradient and a parameter"
            )
    return [param for _, param in pairs], [grad for grad, _ in pairs]
