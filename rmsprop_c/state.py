"""What the state of an optimizer is between two calls, and which states no run can reach."""

from __future__ import annotations  # NDArray's module takes a millisecond of the import

import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a position keeps, each made when an option first needs it: running means of the squared
# gradients, the momentum, running means of the gradients and of the parameters, and the sum of the
# gradients since the latest update.
SLOTS = ("accumulator", "momentum", "average_gradient", "moving_average", "gradient_sum")

# Updates; calls since the latest one; all calls, but for skipped ones; and skipped ones.
COUNTS = ("iterations", "calls", "total_calls", "skipped_steps")
LARGEST_COUNT = 2**62


def checked_count(value: Any, name: str) -> int:
    """The count as an int, or an error that names it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; iterations must be an integer") from None
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"{name} is {value!r}; iterations must be in [0, 2**62]")
    return count


def total_calls(iterations: int, cycle: int, calls: int) -> int:
    """How many calls so many updates take, each a cycle of them, and those behind them."""
    total = iterations * cycle + calls
    if total > LARGEST_COUNT:
        raise ValueError(
            f"{iterations} iterations of {cycle} calls are more than the 2**62 calls that can be "
            "counted"
        )
    return total


def forms(arrays: Iterable[NDArray[Any]]) -> list[tuple[Any, ...]]:
    """Shapes and dtypes."""
    return [(array.shape, array.dtype) for array in arrays]


def check(state: Mapping[str, Any]) -> None:
    """Raise for a state that no run can reach.

    Parameters
    ----------
    state : mapping
        COUNTS; ``keys``, a tuple or None; ``slots``, lists of arrays by name; and ``pending``, for
        each position whether its gradient_sum holds a gradient.

    Raises
    ------
    ValueError
        With the entry that is wrong. Which options are set does not matter: they may be assigned
        between any two calls, and what they leave or miss is put right at the next one.
    """
    for name in (*COUNTS, "keys", "slots", "pending"):
        if name not in state:
            raise ValueError(f"the state has no {name}")
    for name in COUNTS:
        count = state[name]
        if type(count) is not int or not 0 <= count <= LARGEST_COUNT:
            raise ValueError(f"{name} is {reprlib.repr(count)}; it must be in [0, 2**62]")
    iterations, calls, total, _ = (state[name] for name in COUNTS)
    if total < iterations + calls:
        raise ValueError(
            f"total_calls is {total}, but {iterations} updates and {calls} calls are more"
        )
    slots, pending, keys = state["slots"], state["pending"], state["keys"]
    _check_slots(slots)
    count = len(slots.get("accumulator", ()))
    if type(pending) is not list or len(pending) != count or {*map(type, pending)} - {bool}:
        raise ValueError(f"pending is {reprlib.repr(pending)}, but there are {count} accumulators")
    if keys is not None and (type(keys) is not tuple or not slots or len(keys) != count):
        raise ValueError(f"there are {len(keys)} keys, but {count} accumulators")
    if keys is not None and len(set(keys)) != count:
        raise ValueError(f"keys has an entry twice: {reprlib.repr(keys)}")
    if calls > 0 and not slots.get("gradient_sum"):
        raise ValueError(
            f"calls is {calls}, in the middle of a cycle, but there is no gradient_sum"
        )
    if calls == 0 and any(pending):
        raise ValueError("there are gradients of a cycle that has not begun: calls is 0")
    for i, gradient_sum in enumerate(slots.get("gradient_sum", ())):
        if not pending[i] and gradient_sum.any():
            raise ValueError(f"gradient_sum[{i}] is not 0, but no gradient is pending there")


def _check_slots(slots: Mapping[str, list[NDArray[Any]]]) -> None:
    """Raise unless all slots are known and like the accumulators."""
    if slots and list(slots) != [x for x in SLOTS if x == "accumulator" or x in slots]:
        raise ValueError(f"slots is {reprlib.repr(list(slots))}")
    like = slots.get("accumulator", ())
    for name, arrays in slots.items():
        if len(arrays) != len(like):
            raise ValueError(f"there are {len(arrays)} of {name}, but {len(like)} accumulators")
        for i, (array, accumulator) in enumerate(zip(arrays, like, strict=True)):
            if not isinstance(array, np.ndarray) or array.dtype.char not in "fd":
                raise ValueError(f"{name}[{i}] is no array of float32 or float64")
            if (array.shape, array.dtype.char) != (accumulator.shape, accumulator.dtype.char):
                raise ValueError(f"{name}[{i}] is of another parameter than accumulator[{i}]")
